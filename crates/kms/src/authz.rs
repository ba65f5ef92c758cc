//! How key policy, identity policies and grants combine to one decision.
//!
//! 1. A `Deny` that applies, in the key policy or in a policy of the caller, decides.
//! 2. The key policy allows the caller by name; or it allows the caller's account and a policy of the caller allows; or a grant does.
//! 3. A caller of another account needs both: the key policy, and a policy of his own; and it must be an action across accounts.
//! 4. What is about no key is decided by the caller's policies alone.
//! 5. Everything else is denied.

use std::sync::Arc;

use holdfast_core::{Decision, Intent, Permit, Policy, Principal, Resource};

use crate::{
    action::KmsAction,
    authn::Identity,
    code::Code,
    error::ApiError,
    facts::RequestFacts,
    grants::{Grant, GrantTerms, Grants},
    keys::KeyEntry,
    policy::{Answer, Question},
};

/// Grants that an explanation lists.
const EXPLAINED_GRANTS_MAX: usize = 100;

/// A question: may this identity do this.
pub(crate) struct Ask<'a> {
    pub action: KmsAction,
    /// ARN of the key, of an alias, or `*`.
    pub resource: &'a str,
    pub key: Option<&'a KeyEntry>,
    pub facts: &'a RequestFacts<'a>,
    pub grants: &'a Grants,
    /// What a grant is to be made of: one made by leave of a grant must be within it.
    pub new_grant: Option<&'a GrantTerms>,
}

/// What kind of document refuses.
#[derive(Clone, Copy)]
enum Refusal {
    DeniedByIdentity,
    DeniedByResource,
    NotAllowedByIdentity,
    NotAllowedByResource,
}

impl Refusal {
    /// In the words of the service, which clients repeat to their users and look at.
    fn told(self, action: KmsAction) -> String {
        let action = action.name();
        match self {
            Self::DeniedByIdentity => "with an explicit deny in an identity-based policy".into(),
            Self::DeniedByResource => "with an explicit deny in a resource-based policy".into(),
            Self::NotAllowedByIdentity => format!("because no identity-based policy allows the {action} action"),
            Self::NotAllowedByResource => format!("because no resource-based policy allows the {action} action"),
        }
    }
}

/// What the caller's own policies say.
#[derive(Default)]
struct Own {
    deny: Option<String>,
    allow: Option<String>,
}

impl Ask<'_> {
    fn identity(&self) -> &Identity {
        self.facts.identity
    }

    fn question(&self) -> Question<'_> {
        Question {
            asker: self.identity().asker(),
            action: self.action.name(),
            resource: self.resource,
            facts: self.facts,
        }
    }

    fn own(&self) -> Own {
        let question = self.question();
        let mut own = Own::default();
        for (name, document) in &self.identity().policies {
            let answer = document.evaluate(&question);
            let told = |statement: &crate::policy::Statement| format!("policy {name}, statement {}", statement.name);
            own.deny = own.deny.or_else(|| answer.deny.map(told));
            own.allow = own.allow.or_else(|| answer.allow.map(told));
        }
        if own.allow.is_none() && self.identity().is_root {
            own.allow = Some("the account's root".into());
        }
        own
    }

    fn grant(&self) -> Option<Arc<Grant>> {
        let key = self.key?;
        let key = key.key_ref();
        let wanted = |grant: &Grant| self.allows(grant) && self.new_grant.is_none_or(|new| grant.covers(new));
        self.identity().parties().iter().find_map(|party| self.grants.find(&key, party, wanted))
    }

    fn allows(&self, grant: &Grant) -> bool {
        grant.allows(self.action, self.facts.context, self.facts.source_arn)
    }

    /// Decides; says by what.
    pub(crate) fn judge(&self) -> Decision {
        match self.weigh() {
            Ok(by) => Decision::Allow(by),
            Err((_, why)) => Decision::Deny(why),
        }
    }

    fn weigh(&self) -> Result<String, (Refusal, String)> {
        let own = self.own();
        let of_key: Answer<'_> = self.key.map(|key| key.policy.evaluate(&self.question())).unwrap_or_default();
        if let Some(statement) = of_key.deny {
            let why = format!("an explicit deny in the key policy, statement {}", statement.name);
            return Err((Refusal::DeniedByResource, why));
        }
        if let Some(by) = own.deny {
            return Err((Refusal::DeniedByIdentity, format!("an explicit deny in {by}")));
        }
        let Some(key) = self.key else {
            return own
                .allow
                .ok_or_else(|| (Refusal::NotAllowedByIdentity, "no policy of the caller allows it".into()));
        };
        let same_account = key.account == self.identity().account;
        if !same_account && !self.action.crosses_accounts() {
            let why = "the key is of another account, and the action is for callers of its own";
            return Err((Refusal::NotAllowedByResource, why.into()));
        }
        match (of_key.allow, of_key.allow_account, own.allow) {
            (Some(statement), _, _) if same_account => Ok(format!("key policy, statement {}", statement.name)),
            (Some(statement), _, Some(by)) | (None, Some(statement), Some(by)) => {
                Ok(format!("key policy, statement {}, with {by}", statement.name))
            }
            (allow, account, _) => match self.grant() {
                Some(grant) => Ok(format!("grant {}", grant.id)),
                None if allow.or(account).is_some() => Err((
                    Refusal::NotAllowedByIdentity,
                    "the key policy leaves it to the caller's own policies, none of which allows it".into(),
                )),
                None => Err((Refusal::NotAllowedByResource, "neither the key policy nor a grant allows it".into())),
            },
        }
    }

    /// The permit, if the answer is yes.
    pub(crate) fn permit(&self) -> Result<Permit, ApiError> {
        let resource = self.key.map_or(Resource::Keys, KeyEntry::resource);
        self.permit_on(if self.action == KmsAction::GenerateRandom { Resource::Instance } else { resource })
    }

    /// The same on a resource that is still to be made.
    pub(crate) fn permit_on(&self, resource: Resource) -> Result<Permit, ApiError> {
        let intent = Intent { action: self.action.core(), resource };
        holdfast_core::authorize(self, self.identity().principal(), intent).map_err(|denial| {
            let refusal = self.weigh().err().map_or(Refusal::NotAllowedByIdentity, |(refusal, _)| refusal);
            let message = format!(
                "User: {} is not authorized to perform: {} on resource: {} {}",
                self.identity().arn,
                self.action.name(),
                self.resource,
                refusal.told(self.action),
            );
            ApiError::new(Code::AccessDenied, message).because(denial.reason)
        })
    }

    /// Each document and grant that was asked, with its answer, and the decision: for `holdfast kms explain`.
    pub(crate) fn explain(&self) -> (bool, Vec<String>) {
        let mut lines = Vec::new();
        let question = self.question();
        let mut tell = |whose: &str, answer: &Answer<'_>| {
            let named =
                [("denies", answer.deny), ("allows", answer.allow), ("allows the account", answer.allow_account)];
            let mut any = false;
            for (verb, statement) in named {
                if let Some(statement) = statement {
                    lines.push(format!("{whose}: statement {} {verb}", statement.name));
                    any = true;
                }
            }
            if !any {
                lines.push(format!("{whose}: says nothing"));
            }
        };
        if let Some(key) = self.key {
            tell("key policy", &key.policy.evaluate(&question));
        }
        for (name, document) in &self.identity().policies {
            tell(&format!("policy {name} of the caller"), &document.evaluate(&question));
        }
        if let Some(key) = self.key {
            let parties = self.identity().parties();
            let own = self.grants.of_key(&key.key_ref());
            let own = own.into_iter().filter(|grant| parties.contains(&grant.terms.grantee));
            for grant in own.take(EXPLAINED_GRANTS_MAX) {
                let allows = if self.allows(&grant) { "allows" } else { "does not apply" };
                lines.push(format!("grant {}: {allows}", grant.id));
            }
        }
        match self.judge() {
            Decision::Allow(by) => {
                lines.push(format!("allowed by {by}"));
                (true, lines)
            }
            Decision::Deny(why) => {
                lines.push(format!("denied: {why}"));
                (false, lines)
            }
        }
    }
}

impl Policy for Ask<'_> {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        if principal != self.identity().principal() || intent.action != self.action.core() {
            return Decision::Deny("the question is not the one that was put".into());
        }
        self.judge()
    }
}

#[cfg(test)]
mod tests;

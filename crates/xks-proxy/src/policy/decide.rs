//! The decision, and why.

use holdfast_core::ExternalKeyId;

use super::{KeyStore, Mode, Pattern, Policy, Rule};

/// What is asked of a policy: the claims of one request. Empty where the dialect or the request does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'a> {
    /// ARN of the caller, or a service's name, or `AWS Internal`; for Azure the client's subject.
    pub principal: &'a str,
    /// The operation that the caller asked of the provider.
    pub operation: &'a str,
    /// ARN of the provider's key.
    pub kms_key: Option<&'a str>,
    /// The provider's service that acts for the caller.
    pub via_service: Option<&'a str>,
    /// The network the request came from.
    pub source_vpc: Option<&'a str>,
    /// And its endpoint.
    pub source_vpce: Option<&'a str>,
}

/// A decision with its reason.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// Whether the caller may.
    pub allowed: bool,
    /// Which rule decided, in words.
    pub reason: String,
}

impl KeyStore {
    /// Decides. Whether the store offers the key is looked at before.
    #[must_use]
    pub fn decide(&self, key: &ExternalKeyId, question: &Question<'_>) -> Explanation {
        let applies = |rule: &&Rule| rule.applies(key, question);
        if let Some(rule) = self.rules.iter().filter(|rule| rule.denies).find(applies) {
            return Explanation { allowed: false, reason: format!("rule {:?} denies", rule.name) };
        }
        if self.mode == Mode::TrustProvider {
            return Explanation { allowed: true, reason: format!("store {:?} trusts the provider", self.name) };
        }
        match self.rules.iter().filter(|rule| !rule.denies).find(applies) {
            Some(rule) => Explanation { allowed: true, reason: format!("rule {:?}", rule.name) },
            None => Explanation { allowed: false, reason: format!("no rule of store {:?} allows it", self.name) },
        }
    }
}

impl Policy {
    /// Who may do what, and why: for people.
    #[must_use]
    pub fn explain(&self, store: &str, key: &ExternalKeyId, question: &Question<'_>) -> Explanation {
        let denied = |reason: String| Explanation { allowed: false, reason };
        let Some(store) = self.store(store) else { return denied(format!("there is no store {store:?}")) };
        if !store.offers(key) {
            return denied(format!("store {:?} does not offer key {:?}", store.name, key.as_str()));
        }
        let explanation = store.decide(key, question);
        match self.key(key) {
            Some(key) if explanation.allowed => Explanation {
                reason: format!("{}; through HSM user {}", explanation.reason, key.hsms.join(", then ")),
                ..explanation
            },
            _ => explanation,
        }
    }
}

impl Rule {
    fn applies(&self, key: &ExternalKeyId, question: &Question<'_>) -> bool {
        let any = |patterns: &Option<Vec<Pattern>>, value: Option<&str>| match (patterns, value) {
            (None, _) => true,
            (Some(patterns), Some(value)) => patterns.iter().any(|pattern| pattern.matches(value)),
            // What is not told cannot be allowed; and a denial that rests on it does not reach further than it says.
            (Some(_), None) => false,
        };
        // When the provider's key is made, it has no ARN yet, and no service acts through it.
        let made = question.kms_key.is_none() && !self.denies;
        self.keys.as_ref().is_none_or(|keys| keys.contains(key))
            && any(&self.principals, Some(question.principal))
            && any(&self.accounts, account(question.principal))
            && any(&self.operations, Some(question.operation))
            && (made || any(&self.kms_keys, question.kms_key))
            && (made || any(&self.via_services, question.via_service))
            && any(&self.source_vpcs, question.source_vpc)
            && any(&self.source_vpces, question.source_vpce)
    }
}

/// The account in an ARN.
fn account(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(6, ':');
    (parts.next()? == "arn").then(|| parts.nth(3)).flatten().filter(|account| !account.is_empty())
}

//! Which statement decides: for people who write policies. Nothing is used, nothing is changed.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    Kms,
    action::KmsAction,
    authz::Ask,
    context::EncryptionContext,
    facts::RequestFacts,
    keys::KeyRef,
    names::{KeyId, KeyNaming, served},
};

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// ARN of the principal.
    pub principal: String,
    /// `kms:Decrypt`
    pub action: String,
    /// Key id, key ARN, alias or alias ARN; none for actions that are about no key.
    pub key: Option<String>,
    /// The region; the usual one if none is given.
    pub region: Option<String>,
    /// Encryption context.
    pub context: BTreeMap<String, String>,
    /// Address that the request comes from.
    pub source: Option<IpAddr>,
    /// The resource on whose behalf a service asks.
    pub source_arn: Option<String>,
}

/// What decides.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explanation {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Each document and grant with its answer, then the decision.
    pub lines: Vec<String>,
}

impl Kms {
    /// Decides as for a request, and says by what.
    ///
    /// # Errors
    /// What is wrong with the question.
    pub fn explain(&self, question: &Question) -> Result<Explanation, String> {
        let action = KmsAction::parse(&question.action)
            .ok_or_else(|| format!("{:?} is not an action; one is kms:Decrypt", question.action))?;
        let identity = self
            .directory
            .identity(&question.principal)
            .ok_or_else(|| format!("there is no principal {:?}", question.principal))?;
        let region = match &question.region {
            None => self.regions.first().cloned(),
            Some(name) => served(&self.regions, name),
        };
        let region = region.ok_or("this region is not served")?;
        let mut alias = None;
        let key = match &question.key {
            None => None,
            Some(name) => {
                let naming = KeyNaming::parse(name, &region).map_err(|_| format!("{name:?} is no key's name here"))?;
                let id = match naming {
                    KeyNaming::Key { id, .. } => KeyId::parse(id),
                    KeyNaming::Alias { account, name } => {
                        alias = Some(name.to_owned());
                        let account = account.map_or_else(|| identity.account.clone(), Into::into);
                        let name = crate::aliases::AliasName { account, region: region.clone(), name: name.to_owned() };
                        self.aliases.get(&name).map(|alias| alias.target)
                    }
                };
                let key = id.and_then(|id| self.keys.entry(&KeyRef { region: region.clone(), id }));
                Some(key.ok_or_else(|| format!("there is no key {name:?}"))?)
            }
        };
        let context = EncryptionContext(question.context.clone());
        let facts = RequestFacts {
            identity: &identity,
            region: &region,
            source: question.source,
            now: self.ambient.now(),
            key: key.as_deref(),
            aliases: &self.aliases,
            request_alias: alias.as_deref(),
            context: Some(&context),
            request_tags: None,
            attested: None,
            source_arn: question.source_arn.as_deref(),
            more: &[],
        };
        let resource = key.as_ref().map_or("*", |key| &key.arn);
        let ask = Ask { action, resource, key: key.as_deref(), facts: &facts, grants: &self.grants, new_grant: None };
        let (allowed, lines) = ask.explain();
        Ok(Explanation { allowed, lines })
    }
}

//! What an answer rests on: asked once more when nothing is waited for any more, before the answer is handed over.
//!
//! A use waits for threads, for the log, for another company's proxy. What it was allowed by (key, policy, grant, alias, custom key store, hour)
//! may end meanwhile. If nothing was changed since the request was judged, and no hour matters, there is nothing to ask.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use holdfast_core::{Revision, Timestamp};

use crate::{
    Kms,
    action::KmsAction,
    aliases::AliasName,
    authn::Identity,
    authz::Ask,
    call::With,
    context::EncryptionContext,
    error::ApiError,
    facts::{Attested, RequestFacts},
    grants::GrantTerms,
    keys::KeyEntry,
    usable::must_be_enabled,
};

/// Whose request it is, from where, and when.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub identity: &'a Identity,
    pub region: &'a Arc<str>,
    pub source: Option<IpAddr>,
    /// The resource on whose behalf a service asks.
    pub source_arn: Option<&'a str>,
    pub now: Timestamp,
}

/// What a question is about.
pub(crate) enum About {
    /// A key, as it was then.
    Key(Arc<KeyEntry>),
    /// ARN of something else, or `*`.
    Resource(String),
}

/// A question that was answered with yes.
struct Asked {
    action: KmsAction,
    about: About,
    /// Whether the key is used, or told of as if it were, and must be enabled.
    uses: bool,
    alias: Option<String>,
    context: Option<EncryptionContext>,
    tags: Option<BTreeMap<String, String>>,
    attested: Option<Attested>,
    more: Vec<(&'static str, Vec<String>)>,
    new_grant: Option<GrantTerms>,
}

/// All that an answer rests on.
pub(crate) struct Basis {
    /// The newest change that was in memory before anything was looked at.
    seen: Revision,
    asked: Vec<Asked>,
    source: Option<IpAddr>,
    source_arn: Option<String>,
}

/// Asks all documents and grants.
pub(crate) fn ask<T>(
    kms: &Kms,
    asker: Asker<'_>,
    (action, resource, key): (KmsAction, &str, Option<&KeyEntry>),
    with: With<'_>,
    answer: impl FnOnce(&Ask<'_>, &RequestFacts<'_>) -> T,
) -> T {
    let facts = RequestFacts {
        identity: asker.identity,
        region: asker.region,
        source: asker.source,
        now: asker.now,
        key,
        aliases: &kms.aliases,
        request_alias: with.alias,
        context: with.context,
        request_tags: with.tags,
        attested: with.attested,
        source_arn: asker.source_arn,
        more: with.more,
    };
    let ask = Ask { action, resource, key, facts: &facts, grants: &kms.grants, new_grant: with.new_grant };
    answer(&ask, &facts)
}

impl Basis {
    /// Before anything is looked at.
    pub(crate) fn new(kms: &Kms, asker: Asker<'_>) -> Self {
        let source_arn = asker.source_arn.map(str::to_owned);
        Self { seen: kms.store.revision(), asked: Vec::new(), source: asker.source, source_arn }
    }

    /// Keeps what was answered with yes.
    pub(crate) fn rests_on(&mut self, action: KmsAction, about: About, uses: bool, with: With<'_>) {
        self.asked.push(Asked {
            action,
            about,
            uses,
            alias: with.alias.map(str::to_owned),
            context: with.context.cloned(),
            tags: with.tags.cloned(),
            attested: with.attested.cloned(),
            more: with.more.to_vec(),
            new_grant: with.new_grant.cloned(),
        });
    }

    /// Asks once more, unless the answers cannot have changed.
    ///
    /// # Errors
    /// What a request that came now would be told.
    pub(crate) fn confirm(&self, kms: &Kms, identity: &Identity, region: &Arc<str>) -> Result<(), ApiError> {
        let by_time = || {
            let own = identity.policies.iter().any(|(_, policy)| policy.looks_at_time());
            let by_key = |asked: &Asked| matches!(&asked.about, About::Key(key) if key.ends_by_itself());
            own || self.asked.iter().any(by_key)
        };
        if kms.store.revision() == self.seen && !by_time() {
            return Ok(());
        }
        let source_arn = self.source_arn.as_deref();
        let asker = Asker { identity, region, source: self.source, source_arn, now: kms.ambient.now() };
        self.asked.iter().try_for_each(|asked| asked.again(kms, asker))
    }
}

impl Asked {
    fn again(&self, kms: &Kms, asker: Asker<'_>) -> Result<(), ApiError> {
        let with = With {
            alias: self.alias.as_deref(),
            context: self.context.as_ref(),
            tags: self.tags.as_ref(),
            attested: self.attested.as_ref(),
            more: &self.more,
            new_grant: self.new_grant.as_ref(),
        };
        let key = match &self.about {
            About::Resource(resource) => {
                return ask(kms, asker, (self.action, resource, None), with, |ask, _| ask.permit().map(drop));
            }
            About::Key(key) => key,
        };
        let gone = || ApiError::not_found(format!("Key '{}' does not exist", key.arn));
        let key = kms.keys.entry(&key.key_ref()).ok_or_else(gone)?;
        ask(kms, asker, (self.action, &key.arn, Some(&key)), with, |ask, _| ask.permit().map(drop))?;
        if self.uses {
            must_be_enabled(kms, &key, asker.now)?;
        }
        let Some(name) = &self.alias else { return Ok(()) };
        let alias =
            AliasName { account: Arc::clone(&key.account), region: Arc::clone(&key.region), name: name.clone() };
        if kms.aliases.get(&alias).is_some_and(|alias| alias.target == key.id) {
            return Ok(());
        }
        // Asked again it is another key's affair.
        Err(ApiError::internal("the alias was given to another key while the request was at work"))
    }
}

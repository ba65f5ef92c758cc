//! What an operation has at hand: the request, who made it, the key that it names, and the permit for it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use holdfast_core::{Decided, KeyName, Permit, Resource, Spent, Timestamp};
use holdfast_service::Trace;
use http::{StatusCode, request::Parts};
use serde::Deserialize;

use crate::{
    Kms,
    action::KmsAction,
    aliases::AliasName,
    authn::Identity,
    basis::{About, Asker, Basis, ask},
    code::Code,
    context::EncryptionContext,
    error::ApiError,
    facts::Attested,
    grants::{GrantId, GrantTerms},
    keys::{KeyEntry, KeyRef, KeyState},
    names::{BadName, KeyId, KeyNaming, alias_arn, key_arn},
    operation::Operation,
    wire::{self, Violations},
};

/// Characters of a key's or alias's name that an error repeats: no name that is one has more.
const NAME_CHARS_MAX: usize = 512;
/// Grant tokens of one request.
const GRANT_TOKENS_MAX: usize = 10;

/// What an operation learns that the audit log wants.
#[derive(Clone, Default)]
pub(crate) struct Told {
    pub key: Option<String>,
    pub material: Option<String>,
    pub algorithm: Option<String>,
    pub rule: Option<String>,
    pub via_service: Option<String>,
    pub context_sha256: Option<[u8; 32]>,
    pub context: Vec<(&'static str, String)>,
    /// Keys that the request uses, if it succeeds.
    pub used: Vec<KeyRef>,
    /// What a refusal rests on that was met after something was allowed.
    pub refused_on: Option<Arc<Basis>>,
}

/// An authenticated request.
pub(crate) struct Call<'a> {
    pub kms: &'a Kms,
    pub operation: Operation,
    pub parts: &'a Parts,
    pub body: &'a Bytes,
    pub identity: &'a Arc<Identity>,
    pub region: &'a Arc<str>,
    pub source: Option<IpAddr>,
    /// The resource on whose behalf a service asks.
    pub source_arn: Option<&'a str>,
    pub request_id: &'a str,
    pub trace: &'a Trace,
    pub now: Timestamp,
    pub told: &'a mut Told,
    /// What the answer rests on.
    pub basis: Basis,
}

/// A key that a request names, and how.
#[derive(Clone)]
pub(crate) struct Named {
    pub key: Arc<KeyEntry>,
    pub alias: Option<String>,
}

/// The grant tokens of a request, each of a grant that is there. Made by that check alone; permits of operations that take tokens want it.
pub(crate) struct GrantTokens(());

/// What a permit is asked with besides the key.
#[derive(Clone, Copy, Default)]
pub(crate) struct With<'a> {
    pub alias: Option<&'a str>,
    pub context: Option<&'a EncryptionContext>,
    pub tags: Option<&'a BTreeMap<String, String>>,
    /// What the caller's evidence proves.
    pub attested: Option<&'a Attested>,
    pub more: &'a [(&'static str, Vec<String>)],
    pub new_grant: Option<&'a GrantTerms>,
}

impl<'a> Call<'a> {
    /// The event of this request's success, for whoever commits it together with what it changes by leave of `spent`: at the last moment before that,
    /// and only if what was allowed before all waits (for a lock, for the making of a key) is allowed still.
    pub(crate) fn decided(&self, spent: Spent) -> Result<Decided, ApiError> {
        // First the pass, then the look: a change that it does not see waits for it.
        let pass = self.kms.store.gate().enter();
        self.basis.confirm(self.kms, self.identity, self.region)?;
        Ok(Decided::asked(self.trace.event(self.kms.ambient.now(), self.told, StatusCode::OK), spent, pass))
    }

    /// Reads the body. Members of a wrong type come first, then those that are missing, and then whatever else an operation looks at.
    pub(crate) fn parse<T: Deserialize<'a>>(&self) -> Result<T, ApiError> {
        let request = wire::parse(self.body)?;
        wire::check_required(self.body, self.operation.required())?;
        Ok(request)
    }

    pub(crate) fn account(&self) -> &Arc<str> {
        &self.identity.account
    }

    /// The key that a member names, in any of the four ways.
    pub(crate) fn named(&mut self, member: &str, name: Option<&str>) -> Result<Named, ApiError> {
        let mut violations = Violations::default();
        let name = violations.text(name, member, 1, 2048);
        violations.finish()?;
        let naming = KeyNaming::parse(name, self.region).map_err(|bad| match bad {
            BadName::Arn if self.operation.tells_invalid_arns() => {
                ApiError::new(Code::InvalidArn, format!("Invalid arn {}", shown(name)))
            }
            BadName::Arn => invalid_key_id(name),
            BadName::Region(region) => ApiError::not_found(format!("Invalid arn {}", shown(region))),
        })?;
        let (account, id, alias) = match naming {
            KeyNaming::Key { account, id } => {
                (account, Some(KeyId::parse(id).ok_or_else(|| invalid_key_id(id))?), None)
            }
            KeyNaming::Alias { account, name } => {
                let account: Arc<str> = account.map_or_else(|| Arc::clone(self.account()), Into::into);
                let alias =
                    AliasName { account: Arc::clone(&account), region: Arc::clone(self.region), name: name.to_owned() };
                let target = self.kms.aliases.get(&alias).map(|alias| alias.target);
                if target.is_none() {
                    let arn = alias_arn(self.region, &account, &shown(name));
                    return Err(ApiError::not_found(format!("Alias {arn} is not found.")));
                }
                (None, target, Some(name.to_owned()))
            }
        };
        let named = || match naming {
            KeyNaming::Key { account, id } => {
                format!("arn:aws:kms:{}:{}:key/{id}", self.region, account.unwrap_or(self.account()))
            }
            KeyNaming::Alias { name, .. } => name.to_owned(),
        };
        let not_found = || ApiError::not_found(format!("Key '{}' does not exist", named()));
        let key = id.and_then(|id| self.kms.keys.entry(&KeyRef { region: Arc::clone(self.region), id }));
        // A bare id is of the caller's account; an ARN says of which.
        let expected = account.unwrap_or(self.account());
        let key = key.filter(|key| alias.is_some() || *key.account == *expected).ok_or_else(not_found)?;
        self.told.key = Some(key.arn.clone());
        Ok(Named { key, alias })
    }

    /// The same for operations that do not take aliases.
    pub(crate) fn named_without_alias(&mut self, member: &str, name: Option<&str>) -> Result<Arc<KeyEntry>, ApiError> {
        if let Some(name) = name.filter(|name| name.starts_with("alias/") || name.contains(":alias/")) {
            return Err(match self.operation {
                Operation::CreateAlias | Operation::UpdateAlias => {
                    ApiError::validation("Aliases must refer to keys. Not aliases")
                }
                Operation::CreateGrant => {
                    ApiError::new(Code::InvalidArn, "Key Aliases are not supported for this operation.")
                }
                _ => invalid_key_id(name),
            });
        }
        Ok(self.named(member, name)?.key)
    }

    fn asker(&self) -> Asker<'_> {
        let Self { identity, region, source, source_arn, now, .. } = self;
        Asker { identity, region, source: *source, source_arn: *source_arn, now: *now }
    }

    /// A permit for an action on a key, in an operation that takes no grant tokens.
    pub(crate) fn permit(
        &mut self,
        action: KmsAction,
        key: &Arc<KeyEntry>,
        with: With<'_>,
    ) -> Result<Permit, ApiError> {
        if self.operation.takes_grant_tokens() {
            return Err(ApiError::internal("the grant tokens of a request were not looked at"));
        }
        self.permit_shown(&GrantTokens(()), action, key, with)
    }

    /// The same in one that takes some.
    pub(crate) fn permit_shown(
        &mut self,
        _tokens: &GrantTokens,
        action: KmsAction,
        key: &Arc<KeyEntry>,
        with: With<'_>,
    ) -> Result<Permit, ApiError> {
        let about = (action, key.arn.as_str(), Some(&**key));
        let (permit, via) = ask(self.kms, self.asker(), about, with, |ask, facts| (ask.permit(), facts.via_service()));
        self.told.via_service = via;
        self.told.context_sha256 = with.context.filter(|context| !context.is_empty()).map(EncryptionContext::sha256);
        let permit = permit?;
        let uses = self.operation.is_use();
        self.basis.rests_on(
            action,
            About::Key(Arc::clone(key)),
            uses || self.operation == Operation::GetPublicKey,
            with,
        );
        if uses {
            self.told.used.push(key.key_ref());
        }
        self.told.rule = Some(permit.rule().to_owned());
        Ok(permit)
    }

    /// A permit for an action that is about no key; `resource` is an ARN or `*`.
    pub(crate) fn permit_apart(
        &mut self,
        action: KmsAction,
        resource: &str,
        with: With<'_>,
    ) -> Result<Permit, ApiError> {
        let permit = ask(self.kms, self.asker(), (action, resource, None), with, |ask, _| ask.permit())?;
        self.basis.rests_on(action, About::Resource(resource.to_owned()), false, with);
        self.told.rule = Some(permit.rule().to_owned());
        Ok(permit)
    }

    /// The same, used up by an operation that no call to the HSM stands behind.
    pub(crate) fn allowed_apart(
        &mut self,
        action: KmsAction,
        resource: &str,
        with: With<'_>,
    ) -> Result<Spent, ApiError> {
        let permit = self.permit_apart(action, resource, with)?;
        Ok(permit.spend(action.core(), &Resource::Keys)?)
    }

    /// A permit for a key that is not there yet: its policy is not asked.
    pub(crate) fn permit_new(&mut self, action: KmsAction, name: &KeyName, with: With<'_>) -> Result<Permit, ApiError> {
        let resource = Resource::Key(name.clone());
        let permit = ask(self.kms, self.asker(), (action, "*", None), with, |ask, _| ask.permit_on(resource))?;
        self.basis.rests_on(action, About::Resource("*".to_owned()), false, with);
        self.told.rule = Some(permit.rule().to_owned());
        Ok(permit)
    }

    /// Whether the caller may do something more, without a permit for it.
    pub(crate) fn may(&self, action: KmsAction, key: &KeyEntry) -> bool {
        let about = (action, key.arn.as_str(), Some(key));
        ask(self.kms, self.asker(), about, With::default(), |ask, _| ask.permit().is_ok())
    }

    /// A permit used up by an operation that no call to the HSM and no change stands behind.
    pub(crate) fn allowed(
        &mut self,
        action: KmsAction,
        key: &Arc<KeyEntry>,
        with: With<'_>,
    ) -> Result<Spent, ApiError> {
        let permit = self.permit(action, key, with)?;
        Ok(permit.spend(action.core(), &key.resource())?)
    }

    /// The same in one that takes grant tokens.
    pub(crate) fn allowed_shown(
        &mut self,
        tokens: &GrantTokens,
        action: KmsAction,
        key: &Arc<KeyEntry>,
        with: With<'_>,
    ) -> Result<Spent, ApiError> {
        let permit = self.permit_shown(tokens, action, key, with)?;
        Ok(permit.spend(action.core(), &key.resource())?)
    }

    pub(crate) fn state(&self, key: &KeyEntry) -> KeyState {
        let in_use = key.reference.as_ref().is_none_or(|reference| self.kms.stores.is_in_use(&reference.store));
        key.state(self.now, in_use)
    }

    /// Refuses a key in one of `states`.
    pub(crate) fn must_not_be(&self, key: &KeyEntry, states: &[KeyState]) -> Result<(), ApiError> {
        let state = self.state(key);
        if states.contains(&state) { Err(wrong_state(key, state)) } else { Ok(()) }
    }

    /// Checks the tokens of a request. A grant is in force from the moment it is made: a token changes nothing, but must be one.
    pub(crate) fn tokens(&self, tokens: Option<&[String]>) -> Result<GrantTokens, ApiError> {
        let tokens = tokens.unwrap_or_default();
        let mut violations = Violations::default();
        violations.items(tokens.len(), "grantTokens", 0, GRANT_TOKENS_MAX);
        violations.finish()?;
        let known = |token: &String| GrantId::from_token(token).and_then(|id| self.kms.grants.get(id)).is_some();
        if tokens.iter().all(known) {
            return Ok(GrantTokens(()));
        }
        Err(ApiError::new(Code::InvalidGrantToken, "A grant token is not valid"))
    }

    /// The end of a request that was only to be tried.
    pub(crate) fn unless_dry_run(&self, dry_run: Option<bool>) -> Result<(), ApiError> {
        match dry_run {
            Some(true) => Err(ApiError::new(
                Code::DryRunOperation,
                "The request would have succeeded, but the DryRun option is set.",
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn own_key_arn(&self, id: KeyId) -> String {
        key_arn(self.region, self.account(), id)
    }
}

/// A name as an error repeats it.
fn shown(name: &str) -> String {
    holdfast_wire::printable(name, NAME_CHARS_MAX)
}

fn invalid_key_id(name: &str) -> ApiError {
    ApiError::not_found(format!("Invalid keyId '{}'", shown(name)))
}

pub(crate) fn wrong_state(key: &KeyEntry, state: KeyState) -> ApiError {
    let what = match state {
        KeyState::Disabled => "is disabled",
        KeyState::Enabled => "is enabled",
        KeyState::PendingDeletion => "is pending deletion",
        KeyState::PendingImport => "is pending import",
        KeyState::PendingReplicaDeletion => "is pending the deletion of its replicas",
        KeyState::Unavailable => "is unavailable: its custom key store is disconnected",
    };
    ApiError::invalid_state(format!("{} {what}.", key.arn))
}

/// A checked encryption context.
pub(crate) fn checked_context(context: Option<EncryptionContext>) -> Result<EncryptionContext, ApiError> {
    let context = context.unwrap_or_default();
    if context.fits() {
        return Ok(context);
    }
    Err(ApiError::validation("The encryption context is too large: at most 8192 bytes"))
}

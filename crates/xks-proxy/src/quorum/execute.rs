//! Carrying out what a quorum has approved.

use std::time::Duration;

use holdfast_core::{
    Action, Ambient, Decision, ExternalKeyId, Intent, Principal, RecordKey, Resource, TokenObject, Write, authorize,
};
use holdfast_crypto::{ImportedKey, SecretBytes, kdf};

use super::{Act, Approved, Proposal, Status};
use crate::{
    XksProxy,
    authn::{is_access_key_id, is_secret_access_key},
    commit::{Leave, Look},
    error::AdminError,
    policy::Policy,
    state::{
        CallerMeta, CredentialMeta, Governed, OperatorsRecord, PinMeta, PolicyRecord, encode, encode_with_secret, kind,
        put,
    },
    untold::{Change, Untold},
};
use holdfast_wire::hex::hex;

/// An HSM may take its time over a new key.
const KEY_BUDGET: Duration = Duration::from_secs(30);
/// More than two live at once only by neglect (XKS proxy API 1.0.3: at least two).
const CREDENTIALS_PER_STORE_MAX: usize = 5;

/// A secret that belongs to an act, with what blinds the commitment to it.
pub struct BlindedSecret {
    /// 32 random bytes.
    pub blind: Vec<u8>,
    /// The secret.
    pub secret: SecretBytes,
}

impl BlindedSecret {
    /// Blinds a secret.
    #[must_use]
    pub fn new(secret: SecretBytes, ambient: &dyn Ambient) -> Self {
        let blind: [u8; 32] = ambient.random();
        Self { blind: blind.to_vec(), secret }
    }

    /// The commitment to it: tells nothing of the secret, and fits no other.
    #[must_use]
    pub fn commitment(&self) -> String {
        hex(&kdf::sha256(&[&self.blind, self.secret.expose()]))
    }

    fn opens(&self, commitment: &str) -> bool {
        self.blind.len() == 32 && self.commitment() == commitment
    }
}

/// Checks an act against the state, before anybody approves it and again before it is done.
pub(crate) fn check(
    proxy: &XksProxy,
    governed: &Governed,
    act: &Act,
    secret: Option<&BlindedSecret>,
) -> Result<(), AdminError> {
    let invalid = |why: &str| Err(AdminError::Invalid(why.to_owned()));
    match (act.commitment(), secret) {
        (Some(commitment), Some(secret)) if secret.opens(commitment) => {}
        (None, None) => {}
        _ => return invalid("the request and its secret do not belong together"),
    }
    let store = |name: &str| match governed.policy.store(name) {
        Some(store) if store.is_xks() => Ok(()),
        _ => Err(AdminError::Invalid(format!("the policy has no store {name:?} of dialect aws-xks"))),
    };
    let hsm = |name: &str| match proxy.hsms.contains_key(name) {
        true => Ok(()),
        false => Err(AdminError::Invalid(format!("the configuration has no HSM user {name:?}"))),
    };
    match act {
        Act::CallerAdd { access_key_id, principal_arn, .. } => {
            if access_key_id.is_empty() || access_key_id.len() > 128 || !principal_arn.starts_with("arn:") {
                return invalid("a caller has an access key id and an ARN");
            }
            Ok(())
        }
        Act::CallerRemove { access_key_id } => match governed.callers.contains_key(access_key_id) {
            true => Ok(()),
            false => invalid("there is no such caller"),
        },
        Act::CredentialAdd { store: name, access_key_id, .. } => {
            store(name)?;
            let known = governed.credentials_of(name);
            if !is_access_key_id(access_key_id) {
                return invalid("an access key id has 20 to 30 of A-Z and 2-7");
            }
            if !secret.is_some_and(|secret| is_secret_access_key(&secret.secret)) {
                return invalid("a secret access key has 43 to 64 of A-Z a-z 0-9 + / =");
            }
            if known.iter().any(|credential| credential.access_key_id == *access_key_id) {
                return invalid("the store has a credential of this id already");
            }
            if known.len() >= CREDENTIALS_PER_STORE_MAX {
                return invalid("the store has five credentials already: remove old ones");
            }
            Ok(())
        }
        Act::CredentialRemove { store: name, access_key_id } => {
            let known = governed.credentials_of(name);
            match known.iter().any(|credential| credential.access_key_id == *access_key_id) {
                true => Ok(()),
                false => invalid("the store has no such credential"),
            }
        }
        Act::HsmPin { hsm: name, .. } => hsm(name),
        Act::KeyCreate { key, hsm: name, label, .. } | Act::KeyImport { key, hsm: name, label, .. } => {
            hsm(name)?;
            let import = matches!(act, Act::KeyImport { .. });
            if import && secret.is_none_or(|secret| secret.secret.len() != 32) {
                return invalid("an AES-256 key has 32 bytes");
            }
            if label.is_empty() || label.len() > 128 || ExternalKeyId::parse(key).is_err() {
                return invalid("a key has an external id, and a label of up to 128 bytes");
            }
            Ok(())
        }
        Act::Lift { scope } => match governed.kills.contains(scope) {
            true => Ok(()),
            false => invalid("that kill switch is not pulled"),
        },
        Act::Operators(record) => record.check().map(|_| ()),
        Act::Policy { text } => {
            let policy = Policy::parse(text).map_err(|error| AdminError::Invalid(format!("the policy: {error}")))?;
            policy.keys().flat_map(|key| &key.hsms).try_for_each(|name| hsm(name))
        }
    }
}

fn key_of(kind: u8, parts: &[&str]) -> RecordKey {
    // No part holds a zero byte.
    RecordKey::new(kind, parts.join("\0").into_bytes())
}

pub(crate) fn operators_key() -> RecordKey {
    key_of(kind::OPERATORS, &[])
}

pub(crate) fn kill_key(scope: &crate::state::KillScope) -> RecordKey {
    let text = serde_json::to_string(scope).unwrap_or_default();
    RecordKey::new(kind::KILL, text.into_bytes())
}

pub(crate) fn heard_key() -> RecordKey {
    key_of(kind::HEARD, &[])
}

pub(crate) fn proposal_key(id: &str) -> RecordKey {
    key_of(kind::PROPOSAL, &[id])
}

pub(crate) fn secret_key(id: &str) -> RecordKey {
    key_of(kind::PROPOSAL_SECRET, &[id])
}

/// What an act writes. None: it is done in an HSM.
async fn writes(proxy: &XksProxy, act: &Act, secret: Option<&BlindedSecret>) -> Result<Option<Vec<Write>>, AdminError> {
    let store = &proxy.store;
    let none = || AdminError::Record("the secret of the proposal is missing".into());
    let secret = || secret.map(|secret| &secret.secret).ok_or_else(none);
    let now = proxy.ambient.now().unix_secs();
    let write = match act {
        Act::CallerAdd { access_key_id, principal_arn, .. } => {
            let meta = CallerMeta { access_key_id: access_key_id.clone(), principal_arn: principal_arn.clone() };
            let value = encode_with_secret(&meta, secret()?)?;
            put(store, key_of(kind::CALLER, &[access_key_id]), Some(value)).await?
        }
        Act::CallerRemove { access_key_id } => put(store, key_of(kind::CALLER, &[access_key_id]), None).await?,
        Act::CredentialAdd { store: name, access_key_id, .. } => {
            let meta = CredentialMeta { store: name.clone(), access_key_id: access_key_id.clone(), created: now };
            let value = encode_with_secret(&meta, secret()?)?;
            put(store, key_of(kind::CREDENTIAL, &[name, access_key_id]), Some(value)).await?
        }
        Act::CredentialRemove { store: name, access_key_id } => {
            put(store, key_of(kind::CREDENTIAL, &[name, access_key_id]), None).await?
        }
        Act::HsmPin { hsm, .. } => {
            let value = encode_with_secret(&PinMeta { hsm: hsm.clone() }, secret()?)?;
            put(store, key_of(kind::PIN, &[hsm]), Some(value)).await?
        }
        Act::KeyCreate { .. } | Act::KeyImport { .. } => return Ok(None),
        Act::Lift { scope } => put(store, kill_key(scope), None).await?,
        Act::Operators(record) => {
            let record: &OperatorsRecord = record;
            put(store, operators_key(), Some(encode(record)?)).await?
        }
        Act::Policy { text } => {
            let value = encode(&PolicyRecord { text: text.clone() })?;
            put(store, key_of(kind::POLICY, &[]), Some(value)).await?
        }
    };
    Ok(Some(vec![write]))
}

/// Allows what a quorum has approved, and nothing else.
struct ByQuorum<'a>(&'a Approved, Intent);

impl holdfast_core::Policy for ByQuorum<'_> {
    fn decide(&self, _: &Principal, intent: &Intent) -> Decision {
        if *intent == self.1 {
            Decision::Allow(format!("quorum proposal {}", self.0.proposal()))
        } else {
            Decision::Deny("no quorum has approved it".into())
        }
    }
}

impl XksProxy {
    /// Carries an approved proposal out, once: whoever commits the change of its status does it.
    pub(crate) async fn execute(
        &self,
        governed: &Governed,
        approved: Approved,
        mut proposal: Proposal,
        expected_version: u64,
    ) -> Result<(Proposal, Untold), AdminError> {
        let (id, leave) = (proposal.id(), Leave::Approved(&approved));
        let change = proposal.request().change.clone();
        let stored = self.read_secret(&id).await?;
        let key = proposal_key(&id);
        if let Err(error) = check(self, governed, &change, stored.as_ref()) {
            // Approved, but the world has changed since it was proposed.
            proposal.status = Status::Failed;
            proposal.outcome = Some(error.to_string());
            let write = Write { key, expected_version, value: Some(proposal.encode()?) };
            let event = self.result(Change::Execute, &proposal);
            let forget = put(&self.store, secret_key(&id), None).await?;
            self.commit(leave, vec![write, forget], &event).await?;
            return Ok((proposal, event));
        }
        let forget = put(&self.store, secret_key(&id), None).await?;
        match writes(self, &change, stored.as_ref()).await? {
            Some(mut batch) => {
                proposal.status = Status::Executed;
                batch.push(Write { key, expected_version, value: Some(proposal.encode()?) });
                batch.push(forget);
                let event = self.result(Change::Execute, &proposal);
                self.commit(leave, batch, &event).await?;
                Ok((proposal, event))
            }
            None => {
                proposal.status = Status::Executing;
                let write = Write { key: key.clone(), expected_version, value: Some(proposal.encode()?) };
                let event = self.result(Change::Begin, &proposal);
                self.commit(leave, vec![write], &event).await?;
                self.tell(&event).await;
                let made = self.make_key(&change, &approved, stored).await;
                proposal.status = if made.is_ok() { Status::Executed } else { Status::Failed };
                proposal.outcome = made.err().map(|error| error.to_string());
                let write = Write { key, expected_version: expected_version + 1, value: Some(proposal.encode()?) };
                let event = self.result(Change::Execute, &proposal);
                self.commit(leave, vec![write, forget], &event).await?;
                Ok((proposal, event))
            }
        }
    }

    pub(crate) async fn read_secret(&self, id: &str) -> Result<Option<BlindedSecret>, AdminError> {
        let Some(mut record) = self.store.read(&secret_key(id)).await? else { return Ok(None) };
        let secret = record
            .value
            .split_at_checked(32)
            .map(|(blind, secret)| BlindedSecret { blind: blind.to_vec(), secret: SecretBytes::copy_of(secret) });
        holdfast_crypto::secret::erase(&mut record.value);
        Ok(secret)
    }

    async fn make_key(&self, act: &Act, approved: &Approved, secret: Option<BlindedSecret>) -> Result<(), AdminError> {
        let (key, hsm, label, usage, import) = match act {
            Act::KeyCreate { key, hsm, label, usage } => (key, hsm, label, usage, None),
            Act::KeyImport { key, hsm, label, usage, .. } => {
                let secret = secret.ok_or_else(|| AdminError::Record("the key is missing".into()))?.secret;
                (key, hsm, label, usage, Some(ImportedKey::Aes(secret)))
            }
            _ => return Ok(()),
        };
        let key = ExternalKeyId::parse(key).map_err(|error| AdminError::Invalid(error.to_string()))?;
        let hsm = self.hsms.get(hsm).ok_or_else(|| AdminError::Invalid("there is no such HSM user".into()))?;
        let action = if import.is_some() { Action::KeyImport } else { Action::KeyCreate };
        let intent = Intent { action, resource: Resource::ExternalKey(key.clone()) };
        let policy = ByQuorum(approved, intent.clone());
        let permit = authorize(&policy, &Principal::system(), intent)
            .map_err(|denial| AdminError::Denied(denial.to_string()))?;
        let object = TokenObject::labelled(label);
        hsm.create(permit, &key, &object, usage.operations(), import, KEY_BUDGET).await.map_err(AdminError::Hsm)
    }
}

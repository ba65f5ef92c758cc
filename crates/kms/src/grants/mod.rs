//! Grants: one grantee may use one key for some operations, until the grant is retired or revoked.

mod record;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::{
    Action, Change, Changed, Committed, Decided, Projection, RecordKey, Resource, Store, StoreError, Timestamp, Write,
};
use holdfast_wire::hex::{hex, unhex};
use record::StoredGrant;
use tokio::sync::{Mutex, MutexGuard};

use crate::{action::KmsAction, code::Code, context::EncryptionContext, error::ApiError, keys::KeyRef, records};

/// Grants of one key.
const PER_KEY_MAX: usize = 50_000;
const TOKEN_MAGIC: &[u8; 5] = b"HFGT\x01";

/// 32 random bytes; 64 hex digits on the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct GrantId(pub(crate) [u8; 32]);

impl GrantId {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        unhex(text)?.try_into().ok().map(Self)
    }

    /// What a caller shows to use the grant at once. Ours are in force when they are made, so that a token need only name its grant:
    /// it gives nobody anything.
    pub(crate) fn token(&self) -> String {
        STANDARD.encode([TOKEN_MAGIC.as_slice(), &self.0].concat())
    }

    pub(crate) fn from_token(token: &str) -> Option<Self> {
        let bytes = STANDARD.decode(token).ok()?;
        bytes.strip_prefix(TOKEN_MAGIC)?.try_into().ok().map(Self)
    }
}

impl std::fmt::Display for GrantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// What a request's encryption context must be. Names are compared without regard to case, values with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Constraint {
    Equals(EncryptionContext),
    Subset(EncryptionContext),
}

impl Constraint {
    pub(crate) fn pairs(&self) -> &EncryptionContext {
        let (Self::Equals(pairs) | Self::Subset(pairs)) = self;
        pairs
    }

    pub(crate) fn holds(&self, context: &EncryptionContext) -> bool {
        let has = |(name, value): (&String, &String)| {
            context.0.iter().any(|(other, found)| other.eq_ignore_ascii_case(name) && found == value)
        };
        let all = self.pairs().0.iter().all(has);
        match self {
            Self::Equals(pairs) => all && pairs.0.len() == context.0.len(),
            Self::Subset(_) => all,
        }
    }

    /// Whether whatever `self` lets through, `outer` does.
    fn within(&self, outer: &Self) -> bool {
        match (self, outer) {
            (Self::Equals(pairs), _) => outer.holds(pairs),
            (Self::Subset(pairs), Self::Subset(_)) => outer.holds(pairs),
            (Self::Subset(_), Self::Equals(_)) => false,
        }
    }
}

/// Whom a grant names.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Party {
    /// ARN of a user, role or root.
    Principal(String),
    /// `SERVICE.amazonaws.com`: whoever the configuration says is this service.
    Service(String),
}

/// What a grant gives, to whom.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GrantTerms {
    pub key: KeyRef,
    pub grantee: Party,
    pub retiring: Option<Party>,
    pub operations: Vec<KmsAction>,
    pub constraint: Option<Constraint>,
    /// The resource on whose behalf a request must be made.
    pub source_arn: Option<String>,
    pub name: Option<String>,
    /// The principal that made it.
    pub issuer: String,
}

/// A grant.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub id: GrantId,
    pub terms: GrantTerms,
    pub created: Timestamp,
    record_version: u64,
}

/// Operations that a grant may allow.
const OPERATIONS: &[KmsAction] = &[
    KmsAction::CreateGrant,
    KmsAction::Decapsulate,
    KmsAction::Decrypt,
    KmsAction::DeriveSharedSecret,
    KmsAction::DescribeKey,
    KmsAction::Encapsulate,
    KmsAction::Encrypt,
    KmsAction::GenerateDataKey,
    KmsAction::GenerateDataKeyPair,
    KmsAction::GenerateDataKeyPairWithoutPlaintext,
    KmsAction::GenerateDataKeyWithoutPlaintext,
    KmsAction::GenerateMac,
    KmsAction::GetPublicKey,
    KmsAction::ReEncryptFrom,
    KmsAction::ReEncryptTo,
    KmsAction::RetireGrant,
    KmsAction::Sign,
    KmsAction::Verify,
    KmsAction::VerifyMac,
];

/// `kms:` aside.
pub(crate) fn operation_name(action: KmsAction) -> &'static str {
    &action.name()[4..]
}

pub(crate) fn parse_operation(name: &str) -> Option<KmsAction> {
    OPERATIONS.iter().copied().find(|action| operation_name(*action) == name)
}

/// Whether an operation has an encryption context that a constraint can look at.
fn has_context(action: KmsAction) -> bool {
    matches!(
        action,
        KmsAction::Decrypt
            | KmsAction::Encrypt
            | KmsAction::GenerateDataKey
            | KmsAction::GenerateDataKeyPair
            | KmsAction::GenerateDataKeyPairWithoutPlaintext
            | KmsAction::GenerateDataKeyWithoutPlaintext
            | KmsAction::ReEncryptFrom
            | KmsAction::ReEncryptTo
    )
}

impl Grant {
    /// Whether it lets its grantee do this, on behalf of this resource.
    pub(crate) fn allows(
        &self,
        action: KmsAction,
        context: Option<&EncryptionContext>,
        source_arn: Option<&str>,
    ) -> bool {
        let none = EncryptionContext::default();
        self.terms.operations.contains(&action)
            && self.terms.source_arn.as_deref().is_none_or(|wanted| source_arn == Some(wanted))
            && self
                .terms
                .constraint
                .as_ref()
                .is_none_or(|constraint| !has_context(action) || constraint.holds(context.unwrap_or(&none)))
    }

    /// Whether a grant made by this grant's leave gives no more than it.
    pub(crate) fn covers(&self, new: &GrantTerms) -> bool {
        let fits = match (&self.terms.constraint, &new.constraint) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(outer), Some(inner)) => inner.within(outer),
        };
        let fits = fits && (self.terms.source_arn.is_none() || self.terms.source_arn == new.source_arn);
        fits && new.operations.iter().all(|operation| self.terms.operations.contains(operation))
    }
}

#[derive(Default)]
struct Index {
    all: BTreeMap<GrantId, Arc<Grant>>,
    /// By key and then by grantee.
    by_key: HashMap<KeyRef, HashMap<Party, Vec<Arc<Grant>>>>,
}

impl Index {
    fn insert(&mut self, grant: Arc<Grant>) {
        self.all.insert(grant.id, Arc::clone(&grant));
        let of_key = self.by_key.entry(grant.terms.key.clone()).or_default();
        of_key.entry(grant.terms.grantee.clone()).or_default().push(grant);
    }

    fn remove(&mut self, grant: &Grant) {
        self.all.remove(&grant.id);
        let Some(of_key) = self.by_key.get_mut(&grant.terms.key) else { return };
        if let Some(of_grantee) = of_key.get_mut(&grant.terms.grantee) {
            of_grantee.retain(|other| other.id != grant.id);
            if of_grantee.is_empty() {
                of_key.remove(&grant.terms.grantee);
            }
        }
        if of_key.is_empty() {
            self.by_key.remove(&grant.terms.key);
        }
    }
}

/// The grants in memory.
#[derive(Default)]
struct Held(RwLock<Index>);

impl Projection for Held {
    fn apply(&self, changes: &[Changed]) {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for changed in changes.iter().filter(|changed| changed.key.kind == records::GRANT) {
            let old = <[u8; 32]>::try_from(changed.key.id.as_slice()).ok();
            if let Some(old) = old.and_then(|id| index.all.get(&GrantId(id)).cloned()) {
                index.remove(&old);
            }
            let Some(value) = &changed.value else { continue };
            match StoredGrant::read(value, &changed.key.id, changed.version) {
                Some(grant) => index.insert(Arc::new(grant)),
                None => tracing::error!("a grant that was just written cannot be read"),
            }
        }
    }
}

/// All grants.
pub(crate) struct Grants {
    index: Arc<Held>,
    /// Held by whoever changes them.
    changing: Mutex<()>,
    store: Arc<dyn Store>,
}

fn record(id: GrantId) -> RecordKey {
    RecordKey::new(records::GRANT, id.0.as_slice())
}

impl Grants {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut index = Index::default();
        let mut unreadable = false;
        store
            .scan(
                records::GRANT,
                &mut |record| match StoredGrant::read(&record.value, &record.key.id, record.version) {
                    Some(grant) => index.insert(Arc::new(grant)),
                    None => unreadable = true,
                },
            )
            .await?;
        if unreadable {
            return Err(StoreError::Failed("a grant cannot be read".into()));
        }
        let index = Arc::new(Held(RwLock::new(index)));
        let watching = Arc::downgrade(&index);
        store.watch(watching);
        Ok(Self { index, changing: Mutex::default(), store })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: GrantId) -> Option<Arc<Grant>> {
        self.read().all.get(&id).cloned()
    }

    /// The first grant of this grantee on this key that `wanted` accepts.
    pub(crate) fn find(&self, key: &KeyRef, grantee: &Party, wanted: impl Fn(&Grant) -> bool) -> Option<Arc<Grant>> {
        let index = self.read();
        let of_grantee = index.by_key.get(key)?.get(grantee)?;
        of_grantee.iter().find(|grant| wanted(grant)).cloned()
    }

    /// Those on one key, by id.
    pub(crate) fn of_key(&self, key: &KeyRef) -> Vec<Arc<Grant>> {
        let index = self.read();
        let mut found: Vec<_> =
            index.by_key.get(key).into_iter().flat_map(HashMap::values).flatten().cloned().collect();
        drop(index);
        found.sort_unstable_by_key(|grant| grant.id);
        found
    }

    /// Those that this party may retire, by id. There is no index of them: few ask.
    pub(crate) fn of_retiring(&self, party: &Party) -> Vec<Arc<Grant>> {
        let index = self.read();
        let found = index.all.values().filter(|grant| grant.terms.retiring.as_ref() == Some(party));
        found.cloned().collect()
    }

    /// Makes one, or with the same name and content gives the one that is there: then nothing is committed.
    pub(crate) async fn create(
        &self,
        id: GrantId,
        new: GrantTerms,
        now: Timestamp,
        event: impl FnOnce() -> Result<Decided, ApiError>,
    ) -> Result<(GrantId, Option<Committed>), ApiError> {
        let _changing = self.changing.lock().await;
        if let Some(name) = &new.name {
            let same = |grant: &Grant| {
                grant.terms.name.as_ref() == Some(name)
                    && grant.terms.retiring == new.retiring
                    && grant.terms.operations == new.operations
                    && grant.terms.constraint == new.constraint
                    && grant.terms.source_arn == new.source_arn
            };
            if let Some(grant) = self.find(&new.key, &new.grantee, same) {
                return Ok((grant.id, None));
            }
        }
        let count = self.read().by_key.get(&new.key).map_or(0, |of_key| of_key.values().map(Vec::len).sum());
        if count >= PER_KEY_MAX {
            return Err(ApiError::new(Code::LimitExceeded, format!("A key has at most {PER_KEY_MAX} grants")));
        }
        let event = event()?;
        check_leave(&event, &new.key)?;
        let grant = Grant { id, terms: new, created: now, record_version: 1 };
        let value =
            serde_json::to_vec(&StoredGrant::new(&grant)).map_err(|error| ApiError::internal(error.to_string()))?;
        let writes = vec![Write { key: record(id), expected_version: 0, value: Some(value) }];
        let committed = self.store.commit(Change { writes, event }).await?;
        Ok((id, Some(committed)))
    }

    /// Ends one.
    pub(crate) async fn remove(
        &self,
        grant: &Grant,
        event: impl FnOnce() -> Result<Decided, ApiError>,
    ) -> Result<Committed, ApiError> {
        let _changing = self.changing.lock().await;
        let event = event()?;
        check_leave(&event, &grant.terms.key)?;
        Ok(self.store.commit(Change { writes: vec![removal(grant)], event }).await?)
    }

    /// Begins to end those of a key, to go with it.
    pub(crate) async fn ending(&self, key: &KeyRef) -> Ending<'_> {
        let changing = self.changing.lock().await;
        Ending { _changing: changing, grants: self.of_key(key) }
    }
}

/// Grants that are about to end with their key. Nobody else changes grants while it lives.
pub(crate) struct Ending<'a> {
    _changing: MutexGuard<'a, ()>,
    grants: Vec<Arc<Grant>>,
}

impl Ending<'_> {
    /// What removes their records.
    pub(crate) fn writes(&self) -> impl Iterator<Item = Write> {
        self.grants.iter().map(|grant| removal(grant))
    }
}

/// Grants are changed by leave of what was permitted on their key.
fn check_leave(event: &Decided, key: &KeyRef) -> Result<(), ApiError> {
    event.by_leave_of(&[Action::KeyUpdate], &key.resource().unwrap_or(Resource::Keys))?;
    Ok(())
}

fn removal(grant: &Grant) -> Write {
    Write { key: record(grant.id), expected_version: grant.record_version, value: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext(pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
    }

    #[test]
    fn constraints_compare_names_without_case_and_values_with_it() {
        let subset = Constraint::Subset(context(&[("Tenant", "blue")]));
        let equals = Constraint::Equals(context(&[("Tenant", "blue")]));
        assert!(subset.holds(&context(&[("tENANT", "blue"), ("more", "")])));
        assert!(!equals.holds(&context(&[("Tenant", "blue"), ("more", "")])));
        assert!(equals.holds(&context(&[("tenant", "blue")])));
        assert!(!subset.holds(&context(&[("Tenant", "Blue")])) && !subset.holds(&context(&[])));
        assert!(equals.within(&subset) && !subset.within(&equals));
        assert!(Constraint::Subset(context(&[("tenant", "blue"), ("a", "b")])).within(&subset));
        assert!(!Constraint::Subset(context(&[("a", "b")])).within(&subset));
    }

    #[test]
    fn tokens_name_their_grants() {
        let id = GrantId([7; 32]);
        assert_eq!(GrantId::from_token(&id.token()), Some(id));
        assert_eq!(GrantId::parse(&id.to_string()), Some(id));
        for bogus in ["", "x", "SEZHVAE=", &STANDARD.encode([0; 37])] {
            assert_eq!(GrantId::from_token(bogus), None, "{bogus}");
        }
    }
}

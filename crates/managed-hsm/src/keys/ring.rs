//! Index, store and open keys together.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use holdfast_core::{
    Action, Ambient, Change, Changed, Committed, Decided, Hsm, HsmError, KeyName, KeyVersionId, MaskedKey, OpenKey,
    OpenKeyError, OpenKeys, Projection, RecordKey, Resource, Store, StoreError, Timestamp, Write,
};
use holdfast_crypto::PublicKey;
use tokio::sync::{Mutex, MutexGuard};

use super::{Deletion, KeyEntry, StoredKey, VersionEntry};
use crate::{code::Code, error::ApiError, records};

/// Locks that names are spread over. Two names under one lock only wait for each other.
const NAME_LOCKS: usize = 1024;

/// What may change a key.
const CHANGES: [Action; 6] = [
    Action::DeletedKeyRecover,
    Action::KeyCreate,
    Action::KeyDelete,
    Action::KeyImport,
    Action::KeyRotate,
    Action::KeyUpdate,
];

/// Whether a change of this key is by leave of what was permitted.
fn check_leave(event: &Decided, actions: &[Action], name: &KeyName) -> Result<(), ApiError> {
    // Which key a backup holds is not known before it is open.
    let restored = actions == CHANGES && event.by_leave_of(&[Action::KeyRestore], &Resource::Keys).is_ok();
    if !restored {
        event.by_leave_of(actions, &Resource::Key(name.clone()))?;
    }
    Ok(())
}

/// Bounds of the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRingLimits {
    /// Keys, soft-deleted ones included.
    pub keys_max: usize,
    /// Versions of one key.
    pub versions_max: usize,
    /// Keys held open.
    pub open_keys_max: usize,
}

/// A key version found, with its key.
#[derive(Clone)]
pub(crate) struct Located {
    pub entry: Arc<KeyEntry>,
    index: usize,
}

impl Located {
    pub(crate) fn version(&self) -> &VersionEntry {
        &self.entry.versions[self.index]
    }
}

/// The right to change one name; others wait.
pub(crate) struct NameLock<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

/// A change to one key, worked out and not yet durable.
pub(crate) struct Draft {
    /// The key as it will be. Its `record_version` is still that of the record before.
    pub entry: KeyEntry,
    /// Blobs to write: version, the record's version now (0: none yet), content.
    pub blobs: Vec<(KeyVersionId, u64, MaskedKey)>,
}

/// The keys in memory, and those of them that are open.
struct Held {
    index: RwLock<BTreeMap<KeyName, Arc<KeyEntry>>>,
    open: OpenKeys,
}

impl Projection for Held {
    fn apply(&self, changes: &[Changed]) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for changed in changes {
            if let Some(version) = records::blob_of(&changed.key) {
                self.open.forget(version);
            }
            if changed.key.kind != records::KEY {
                continue;
            }
            match &changed.value {
                None => drop(records::name_of(&changed.key).and_then(|name| index.remove(&name))),
                Some(value) => match read_entry(value, changed.version) {
                    Ok(entry) => drop(index.insert(entry.name.clone(), entry)),
                    Err(error) => tracing::error!(error, "a key that was just written cannot be read"),
                },
            }
        }
    }
}

fn read_entry(value: &[u8], version: u64) -> Result<Arc<KeyEntry>, String> {
    let stored = serde_json::from_slice::<StoredKey>(value).map_err(|error| error.to_string())?;
    stored.into_entry(version).map(Arc::new).map_err(|error| error.to_string())
}

/// All keys.
pub(crate) struct KeyRing {
    held: Arc<Held>,
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
    store: Arc<dyn Store>,
    ambient: Arc<dyn Ambient>,
    limits: KeyRingLimits,
}

impl KeyRing {
    /// Reads every key record into the index.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        hsm: Arc<dyn Hsm>,
        ambient: Arc<dyn Ambient>,
        limits: KeyRingLimits,
    ) -> Result<Self, StoreError> {
        let mut index = BTreeMap::new();
        let mut unreadable = None;
        store
            .scan(records::KEY, &mut |record| match read_entry(&record.value, record.version) {
                Ok(entry) => drop(index.insert(entry.name.clone(), entry)),
                Err(error) => unreadable = Some(error),
            })
            .await?;
        if let Some(error) = unreadable {
            return Err(StoreError::Failed(error));
        }
        let open = OpenKeys::new(Arc::clone(&store), hsm, limits.open_keys_max);
        let held = Arc::new(Held { index: RwLock::new(index), open });
        let watching = Arc::downgrade(&held);
        store.watch(watching);
        Ok(Self {
            held,
            locks: (0..NAME_LOCKS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            store,
            ambient,
            limits,
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.ambient.now()
    }

    pub(crate) fn new_version_id(&self) -> KeyVersionId {
        KeyVersionId::from_bytes(self.ambient.random())
    }

    pub(crate) async fn lock(&self, name: &KeyName) -> NameLock<'_> {
        let slot = self.hasher.hash_one(name) as usize % NAME_LOCKS;
        NameLock(self.locks[slot].lock().await)
    }

    /// The key of that name, soft-deleted or not.
    pub(crate) fn entry(&self, name: &KeyName) -> Option<Arc<KeyEntry>> {
        self.held.index.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The key of that name, if it is not deleted.
    pub(crate) fn active(&self, name: &KeyName) -> Result<Arc<KeyEntry>, ApiError> {
        self.entry(name).filter(|entry| entry.deletion.is_none()).ok_or_else(|| key_not_found(&format!("/keys/{name}")))
    }

    /// The key of that name, if it is soft-deleted.
    pub(crate) fn deleted(&self, name: &KeyName) -> Result<(Arc<KeyEntry>, Deletion), ApiError> {
        let found = self.entry(name).and_then(|entry| entry.deletion.map(|deletion| (entry, deletion)));
        found.ok_or_else(|| key_not_found(&format!("/deletedkeys/{name}")))
    }

    /// One version of a key that is not deleted.
    pub(crate) fn locate(&self, name: &KeyName, version: Option<KeyVersionId>) -> Result<Located, ApiError> {
        let entry = self.active(name)?;
        let index = match version {
            None => entry.versions.len().checked_sub(1),
            Some(id) => entry.versions.iter().rposition(|version| version.id == id),
        };
        let index = index.ok_or_else(|| {
            key_not_found(&format!("/keys/{name}/{}", version.map(|id| id.to_string()).unwrap_or_default()))
        })?;
        Ok(Located { entry, index })
    }

    /// Up to `count` keys that `wanted` accepts, after `after` in the order of names; and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<&KeyName>,
        count: usize,
        wanted: impl Fn(&KeyEntry) -> bool,
    ) -> (Vec<Arc<KeyEntry>>, bool) {
        let index = self.held.index.read().unwrap_or_else(PoisonError::into_inner);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found: Vec<_> = index
            .range((start, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .filter(|entry| wanted(entry))
            .take(count + 1)
            .cloned()
            .collect();
        let more = found.len() > count;
        found.truncate(count);
        (found, more)
    }

    /// Names of keys that `due` accepts; for maintenance.
    pub(crate) fn names_where(&self, due: impl Fn(&KeyEntry) -> bool) -> Vec<KeyName> {
        let index = self.held.index.read().unwrap_or_else(PoisonError::into_inner);
        index.values().filter(|entry| due(entry)).map(|entry| entry.name.clone()).collect()
    }

    /// How many keys there are, and how many of them are soft-deleted.
    pub(crate) fn count(&self) -> usize {
        self.held.index.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Refuses a new key, or a new version of `entry`, over the limits.
    pub(crate) fn check_room(&self, entry: Option<&KeyEntry>) -> Result<(), ApiError> {
        match entry {
            None if self.count() >= self.limits.keys_max => {
                Err(ApiError::not_permitted(format!("The HSM already holds {} keys", self.limits.keys_max)))
            }
            Some(entry) if entry.versions.len() >= self.limits.versions_max => {
                let max = self.limits.versions_max;
                Err(ApiError::not_permitted(format!("The key already has {max} versions")))
            }
            _ => Ok(()),
        }
    }

    /// Makes a draft and its event durable, then visible. What was permitted must be a change of this key; the caller holds the name's lock.
    pub(crate) async fn commit(
        &self,
        _lock: &NameLock<'_>,
        draft: Draft,
        event: Decided,
    ) -> Result<(Committed, Arc<KeyEntry>), ApiError> {
        let Draft { mut entry, blobs } = draft;
        check_leave(&event, &CHANGES, &entry.name)?;
        let value =
            serde_json::to_vec(&StoredKey::from_entry(&entry)).map_err(|e| ApiError::internal(e.to_string()))?;
        let key = records::key(&entry.name);
        let mut batch = vec![Write { key, expected_version: entry.record_version, value: Some(value) }];
        for (id, expected_version, masked) in blobs {
            batch.push(Write { key: records::blob(id), expected_version, value: Some(masked.0.to_vec()) });
        }
        let committed = self.store.commit(Change { writes: batch, event }).await?;
        entry.record_version += 1;
        Ok((committed, Arc::new(entry)))
    }

    /// Removes a key and its blobs for good, with `more` in the same batch. The caller holds the name's lock.
    pub(crate) async fn purge(
        &self,
        _lock: &NameLock<'_>,
        entry: &KeyEntry,
        more: Vec<Write>,
        event: Decided,
    ) -> Result<Committed, ApiError> {
        check_leave(&event, &[Action::DeletedKeyPurge], &entry.name)?;
        let remove = |key: RecordKey, expected_version| Write { key, expected_version, value: None };
        let mut batch = vec![remove(records::key(&entry.name), entry.record_version)];
        batch.extend(entry.versions.iter().map(|version| remove(records::blob(version.id), version.blob_version)));
        batch.extend(more);
        Ok(self.store.commit(Change { writes: batch, event }).await?)
    }

    /// The masked blob of a version.
    pub(crate) async fn masked(&self, version: &VersionEntry) -> Result<MaskedKey, ApiError> {
        Ok(self.held.open.masked(&records::blob(version.id), version.blob_version).await?)
    }

    /// The public part of a version.
    pub(crate) async fn public(&self, entry: &KeyEntry, version: &VersionEntry) -> Result<PublicKey, ApiError> {
        let which = || (records::blob(version.id), entry.bound(version));
        Ok(self.held.open.public(version.id, version.blob_version, which).await?)
    }

    /// A version opened for use.
    pub(crate) async fn open_key(&self, located: &Located) -> Result<Arc<dyn OpenKey>, ApiError> {
        let version = located.version();
        let which = || (records::blob(version.id), located.entry.bound(version));
        Ok(self.held.open.open(version.id, version.blob_version, which).await.inspect_err(|error| {
            if *error == OpenKeyError::Hsm(HsmError::Damaged) {
                tracing::error!(key = %located.entry.name, version = %version.id, "a stored key does not open");
            }
        })?)
    }
}

fn key_not_found(what: &str) -> ApiError {
    ApiError::not_found(Code::KeyNotFound, format!("Key not found: {what}"))
}

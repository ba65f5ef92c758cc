//! Index, store and open keys together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use holdfast_core::{
    Action, Ambient, Change, Changed, Committed, Decided, Hsm, KeyVersionId, MaskedKey, OpenKey, OpenKeyError,
    OpenKeys, Projection, RecordKey, Resource, Store, StoreError, Timestamp, Write,
};
use holdfast_crypto::PublicKey;
use tokio::sync::{Mutex, MutexGuard};

use super::{KeyEntry, KeyRef, Material, StoredKey, shared::Shared};
use crate::{code::Code, error::ApiError, names::KeyId, records};

/// Locks that ids are spread over. Two ids under one lock only wait for each other.
const KEY_LOCKS: usize = 1024;

/// What may change a key.
const CHANGES: [Action; 5] =
    [Action::KeyCreate, Action::KeyDelete, Action::KeyImport, Action::KeyRotate, Action::KeyUpdate];

/// Bounds of the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRingLimits {
    /// Keys.
    pub keys_max: usize,
    /// Keys held open.
    pub open_keys_max: usize,
}

/// The right to change the keys of one id, in all regions; others wait.
pub(crate) struct KeyLock<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

/// Changes worked out and not yet durable.
#[derive(Default)]
pub(crate) struct Draft {
    /// Keys as they will be. Their `record_version` is still that of the record before.
    pub entries: Vec<KeyEntry>,
    /// Keys that go.
    pub removed: Vec<Arc<KeyEntry>>,
    /// Blobs to write: version, the record's version now (0: none yet), content; `None` removes.
    pub blobs: Vec<(KeyVersionId, u64, Option<MaskedKey>)>,
    /// What else is to be written with them.
    pub others: Vec<Write>,
}

impl Draft {
    pub(crate) fn of(entry: KeyEntry) -> Self {
        Self { entries: vec![entry], ..Self::default() }
    }
}

#[derive(Default)]
struct Index {
    keys: HashMap<KeyRef, Arc<KeyEntry>>,
    /// Ids of an account in a region: the order of listings.
    order: BTreeMap<(Arc<str>, Arc<str>), BTreeSet<KeyId>>,
    shared: Shared,
}

impl Index {
    /// Takes up a record, as it is stored.
    fn read(&mut self, value: &[u8], version: u64) -> Result<(), String> {
        let stored = serde_json::from_slice::<StoredKey>(value).map_err(|error| error.to_string())?;
        let entry = stored.into_entry(version, &mut self.shared)?;
        let place = (Arc::clone(&entry.account), Arc::clone(&entry.region));
        self.order.entry(place).or_default().insert(entry.id);
        self.keys.insert(entry.key_ref(), Arc::new(entry));
        Ok(())
    }

    fn remove(&mut self, record: &RecordKey) {
        let Some(entry) = records::key_of(record).and_then(|key| self.keys.remove(&key)) else { return };
        let place = (Arc::clone(&entry.account), Arc::clone(&entry.region));
        if let Some(ids) = self.order.get_mut(&place) {
            ids.remove(&entry.id);
            if ids.is_empty() {
                self.order.remove(&place);
            }
        }
        drop(entry);
        self.shared.gone();
    }
}

/// The keys in memory, and those of them that are open.
struct Held {
    index: RwLock<Index>,
    open: OpenKeys,
}

impl Projection for Held {
    fn apply(&self, changes: &[Changed]) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for changed in changes {
            if let Some(version) = records::material_of(&changed.key) {
                self.open.forget(version);
            }
            if changed.key.kind != records::KEY {
                continue;
            }
            match &changed.value {
                None => index.remove(&changed.key),
                Some(value) => {
                    if let Err(error) = index.read(value, changed.version) {
                        tracing::error!(error, "a key that was just written cannot be read");
                    }
                }
            }
        }
    }
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
        let mut index = Index::default();
        let mut unreadable = None;
        store
            .scan(records::KEY, &mut |record| {
                if let Err(error) = index.read(&record.value, record.version) {
                    unreadable = Some(error);
                }
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
            locks: (0..KEY_LOCKS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            store,
            ambient,
            limits,
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.ambient.now()
    }

    pub(crate) async fn lock(&self, id: KeyId) -> KeyLock<'_> {
        let slot = self.hasher.hash_one(id) as usize % KEY_LOCKS;
        KeyLock(self.locks[slot].lock().await)
    }

    pub(crate) fn entry(&self, key: &KeyRef) -> Option<Arc<KeyEntry>> {
        self.held.index.read().unwrap_or_else(PoisonError::into_inner).keys.get(key).cloned()
    }

    pub(crate) fn count(&self) -> usize {
        self.held.index.read().unwrap_or_else(PoisonError::into_inner).keys.len()
    }

    /// Up to `count` ids of an account in a region, after `after`; and whether there are more.
    pub(crate) fn page(&self, account: &str, region: &str, after: Option<KeyId>, count: usize) -> (Vec<KeyId>, bool) {
        let index = self.held.index.read().unwrap_or_else(PoisonError::into_inner);
        let Some(ids) = index.order.get(&(account.into(), region.into())) else { return (Vec::new(), false) };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found: Vec<_> = ids.range((start, Bound::Unbounded)).take(count + 1).copied().collect();
        let more = found.len() > count;
        found.truncate(count);
        (found, more)
    }

    /// Keys that `wanted` accepts; for maintenance and for stores that ask whether they are empty.
    pub(crate) fn find(&self, wanted: impl Fn(&KeyEntry) -> bool) -> Vec<Arc<KeyEntry>> {
        let index = self.held.index.read().unwrap_or_else(PoisonError::into_inner);
        index.keys.values().filter(|entry| wanted(entry)).cloned().collect()
    }

    pub(crate) fn check_room(&self) -> Result<(), ApiError> {
        if self.count() < self.limits.keys_max {
            return Ok(());
        }
        Err(ApiError::new(Code::LimitExceeded, format!("There are {} keys already", self.limits.keys_max)))
    }

    /// Makes a draft durable with its event, then visible. What was permitted must be a change of the one id that all its keys have; the caller holds
    /// the id's lock.
    pub(crate) async fn commit(
        &self,
        _lock: &KeyLock<'_>,
        draft: Draft,
        event: Decided,
    ) -> Result<(Vec<Arc<KeyEntry>>, Committed), ApiError> {
        let Draft { entries, removed, blobs, others: mut batch } = draft;
        let names = entries.iter().map(|entry| &entry.name).chain(removed.iter().map(|entry| &entry.name));
        let mut names = names.collect::<Vec<_>>();
        names.dedup();
        let [name] = names.as_slice() else { return Err(ApiError::internal("a change of several keys at once")) };
        let resource = Resource::Key((*name).clone());
        event.by_leave_of(&CHANGES, &resource)?;
        for entry in &entries {
            let value =
                serde_json::to_vec(&StoredKey::from_entry(entry)).map_err(|e| ApiError::internal(e.to_string()))?;
            let key = records::key(&entry.key_ref());
            batch.push(Write { key, expected_version: entry.record_version, value: Some(value) });
        }
        let remove = |key: RecordKey, expected_version| Write { key, expected_version, value: None };
        batch.extend(removed.iter().map(|entry| remove(records::key(&entry.key_ref()), entry.record_version)));
        for (id, expected_version, masked) in blobs {
            let value = masked.map(|masked| masked.0.to_vec());
            batch.push(Write { key: records::material(id), expected_version, value });
        }
        let committed = self.store.commit(Change { writes: batch, event }).await?;
        let changed = entries.into_iter().map(|mut entry| {
            entry.record_version += 1;
            Arc::new(entry)
        });
        Ok((changed.collect(), committed))
    }

    /// A material opened for use.
    pub(crate) async fn open_key(&self, entry: &KeyEntry, material: &Material) -> Result<Arc<dyn OpenKey>, ApiError> {
        let which = || (records::material(material.id), entry.bound(material.id));
        let open = self.held.open.open(material.id, material.blob_version.unwrap_or_default(), which).await;
        Ok(open.inspect_err(|error| {
            if matches!(error, OpenKeyError::Hsm(_)) {
                tracing::error!(key = %entry.arn, material = %material.id, %error, "a stored key does not open");
            }
        })?)
    }

    /// The public part of a material.
    pub(crate) async fn public(&self, entry: &KeyEntry, material: &Material) -> Result<PublicKey, ApiError> {
        let which = || (records::material(material.id), entry.bound(material.id));
        Ok(self.held.open.public(material.id, material.blob_version.unwrap_or_default(), which).await?)
    }
}

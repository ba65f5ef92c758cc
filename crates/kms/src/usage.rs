//! When each key was last used, by what: kept in memory, written down by maintenance and at the end. A crash loses what came after the
//! last time; the audit log has every use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_core::{RecordKey, Store, StoreError, Timestamp, Write};
use serde::{Deserialize, Serialize};

use crate::{keys::KeyRef, names::KeyId, operation::Operation, records};

const FORMAT: u8 = 1;
/// Parts of the index, each under a lock of its own.
const SHARDS: usize = 16;
/// Rows of one commit.
const BATCH_MAX: usize = 256;

/// The last successful use of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LastUse {
    pub operation: Operation,
    pub at: Timestamp,
    pub request_id: Arc<str>,
}

struct Tracked {
    /// None: the key is gone.
    last: Option<LastUse>,
    record_version: u64,
    dirty: bool,
}

#[derive(Deserialize, Serialize)]
struct StoredUse {
    v: u8,
    region: String,
    key: String,
    operation: String,
    at: i64,
    request_id: String,
}

impl StoredUse {
    fn new(key: &KeyRef, last: &LastUse) -> Self {
        Self {
            v: FORMAT,
            region: key.region.to_string(),
            key: key.id.to_string(),
            operation: last.operation.name().to_owned(),
            at: last.at.unix_millis(),
            request_id: last.request_id.to_string(),
        }
    }

    fn read(self) -> Option<(KeyRef, LastUse)> {
        if self.v != FORMAT {
            return None;
        }
        let key = KeyRef { region: self.region.into(), id: KeyId::parse(&self.key)? };
        let operation = Operation::named(&self.operation)?;
        let at = Timestamp::from_unix_millis(self.at);
        Some((key, LastUse { operation, at, request_id: self.request_id.into() }))
    }
}

type Shard = HashMap<KeyRef, Tracked>;

/// The last use of every key that was used.
pub(crate) struct Usage {
    shards: [Mutex<Shard>; SHARDS],
    store: Arc<dyn Store>,
    flushing: tokio::sync::Mutex<()>,
}

fn record(key: &KeyRef) -> RecordKey {
    RecordKey::new(records::LAST_USE, format!("{}/{}", key.region, key.id))
}

impl Usage {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let usage =
            Self { shards: std::array::from_fn(|_| Mutex::default()), store, flushing: tokio::sync::Mutex::default() };
        let mut unreadable = false;
        usage
            .store
            .scan(records::LAST_USE, &mut |record| {
                let stored = serde_json::from_slice::<StoredUse>(&record.value).ok().and_then(StoredUse::read);
                match stored {
                    Some((key, last)) => {
                        let tracked = Tracked { last: Some(last), record_version: record.version, dirty: false };
                        usage.shard(&key).insert(key, tracked);
                    }
                    None => unreadable = true,
                }
            })
            .await?;
        if unreadable { Err(StoreError::Failed("the last use of a key cannot be read".into())) } else { Ok(usage) }
    }

    fn shard(&self, key: &KeyRef) -> MutexGuard<'_, Shard> {
        let place = usize::from(key.id.shard()) % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, key: &KeyRef) -> Option<LastUse> {
        self.shard(key).get(key).and_then(|tracked| tracked.last.clone())
    }

    pub(crate) fn note(&self, key: KeyRef, last: LastUse) {
        let mut shard = self.shard(&key);
        match shard.get_mut(&key) {
            // Requests end in another order than they began.
            Some(tracked) if tracked.last.as_ref().is_some_and(|known| known.at > last.at) => {}
            Some(tracked) => (tracked.last, tracked.dirty) = (Some(last), true),
            None => drop(shard.insert(key, Tracked { last: Some(last), record_version: 0, dirty: true })),
        }
    }

    /// The key is gone.
    pub(crate) fn forget(&self, key: &KeyRef) {
        let mut shard = self.shard(key);
        if let Some(tracked) = shard.get_mut(key) {
            (tracked.last, tracked.dirty) = (None, true);
        }
    }

    /// Writes down what is new. What cannot be written now stays for the next time.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        let _flushing = self.flushing.lock().await;
        for place in &self.shards {
            let dirty: Vec<(KeyRef, Option<LastUse>, u64)> = {
                let shard = place.lock().unwrap_or_else(PoisonError::into_inner);
                let dirty = shard.iter().filter(|(_, tracked)| tracked.dirty);
                dirty.map(|(key, tracked)| (key.clone(), tracked.last.clone(), tracked.record_version)).collect()
            };
            for batch in dirty.chunks(BATCH_MAX) {
                if let Err(error) = self.store.keep(batch.iter().filter_map(write).collect()).await {
                    self.look_again(place, batch).await?;
                    return Err(error);
                }
                let mut shard = place.lock().unwrap_or_else(PoisonError::into_inner);
                for (key, written, version) in batch {
                    settle(&mut shard, key, written.as_ref(), *version);
                }
            }
        }
        Ok(())
    }
}

impl Usage {
    /// What a failed commit left is looked up: whether it was written may not be known.
    async fn look_again(
        &self,
        place: &Mutex<Shard>,
        batch: &[(KeyRef, Option<LastUse>, u64)],
    ) -> Result<(), StoreError> {
        for (key, ..) in batch {
            let version = self.store.read(&record(key)).await?.map_or(0, |record| record.version);
            if let Some(tracked) = place.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
                tracked.record_version = version;
            }
        }
        Ok(())
    }
}

fn write((key, last, version): &(KeyRef, Option<LastUse>, u64)) -> Option<Write> {
    let value = match last {
        Some(last) => Some(serde_json::to_vec(&StoredUse::new(key, last)).ok()?),
        // Never written, and gone.
        None if *version == 0 => return None,
        None => None,
    };
    Some(Write { key: record(key), expected_version: *version, value })
}

/// After a commit: what was written is known to be; what changed meanwhile stays to be written.
fn settle(shard: &mut Shard, key: &KeyRef, written: Option<&LastUse>, version: u64) {
    let Some(tracked) = shard.get_mut(key) else { return };
    let unchanged = tracked.last.as_ref() == written;
    if written.is_none() && unchanged {
        shard.remove(key);
        return;
    }
    tracked.record_version = if written.is_some() { version + 1 } else { 0 };
    tracked.dirty = !unchanged;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by format 1; must be readable for ever.
    const GOLDEN: &str = r#"{"v":1,"region":"us-east-1","key":"1234abcd-12ab-34cd-56ef-1234567890ab","operation":"ReEncrypt","at":1700000000123,"request_id":"7c5f7d3e-0000-4000-8000-000000000001"}"#;

    #[test]
    fn golden_record() {
        let stored: StoredUse = serde_json::from_str(GOLDEN).unwrap();
        let (key, last) = stored.read().unwrap();
        assert_eq!(last.operation, Operation::ReEncrypt);
        assert_eq!(serde_json::to_string(&StoredUse::new(&key, &last)).unwrap(), GOLDEN);
        let newer: StoredUse = serde_json::from_str(&GOLDEN.replace("\"v\":1", "\"v\":2")).unwrap();
        assert!(newer.read().is_none());
    }

    #[test]
    fn what_changes_while_it_is_written_stays_to_be_written() {
        let stored: StoredUse = serde_json::from_str(GOLDEN).unwrap();
        let (key, first) = stored.read().unwrap();
        let later = LastUse { at: Timestamp::from_unix_millis(1_700_000_000_124), ..first.clone() };
        let mut shard = Shard::new();
        let tracked =
            |last: Option<&LastUse>, record_version| Tracked { last: last.cloned(), record_version, dirty: true };
        shard.insert(key.clone(), tracked(Some(&later), 0));
        settle(&mut shard, &key, Some(&first), 0);
        assert!(shard[&key].dirty && shard[&key].record_version == 1);
        settle(&mut shard, &key, Some(&later), 1);
        assert!(!shard[&key].dirty && shard[&key].record_version == 2);
        // Gone while it was written: removed the next time.
        shard.insert(key.clone(), tracked(None, 2));
        settle(&mut shard, &key, Some(&later), 2);
        assert!(shard[&key].dirty && shard[&key].record_version == 3);
        settle(&mut shard, &key, None, 3);
        assert!(shard.is_empty());
    }
}

//! Stored keys of a partition, some of them held open: for roles that keep masked keys as records.

use std::sync::Arc;

use holdfast_crypto::PublicKey;
use quick_cache::sync::Cache;

use crate::{Hsm, HsmError, KeyVersion, KeyVersionId, MaskedKey, OpenKey, RecordKey, Store, StoreError};

/// Why a stored key is not at hand.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenKeyError {
    /// The HSM does not open it.
    #[error(transparent)]
    Hsm(#[from] HsmError),
    /// Its record is not there, or not the one that was named.
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Hot {
    /// Of the record that the key was opened from: a newer one means that attributes changed.
    record_version: u64,
    key: Arc<dyn OpenKey>,
}

/// Keys in a store, and a bounded number of them open.
pub struct OpenKeys {
    hot: Cache<KeyVersionId, Arc<Hot>>,
    store: Arc<dyn Store>,
    hsm: Arc<dyn Hsm>,
}

impl OpenKeys {
    /// Holds at most `open_max` of them open.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, hsm: Arc<dyn Hsm>, open_max: usize) -> Self {
        Self { hot: Cache::new(open_max), store, hsm }
    }

    /// A masked key.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the record is gone or at another version: a change was committed after the caller looked.
    pub async fn masked(&self, record: &RecordKey, record_version: u64) -> Result<MaskedKey, StoreError> {
        let record = self.store.read(record).await?;
        let record = record.filter(|record| record.version == record_version);
        record.map(|record| MaskedKey(record.value.into())).ok_or(StoreError::Conflict)
    }

    /// A key opened for use. An open one serves only as long as the caller names the very state of the record that it was opened
    /// from: once a change of attributes has been acknowledged, no later call uses the old ones.
    ///
    /// # Errors
    /// [`OpenKeyError`].
    pub async fn open(
        &self,
        id: KeyVersionId,
        record_version: u64,
        which: impl FnOnce() -> (RecordKey, KeyVersion),
    ) -> Result<Arc<dyn OpenKey>, OpenKeyError> {
        if let Some(hot) = self.hot.get(&id)
            && hot.record_version == record_version
        {
            return Ok(Arc::clone(&hot.key));
        }
        let (record, version) = which();
        let masked = self.masked(&record, record_version).await?;
        let key = self.hsm.open(&version, &masked).await?;
        self.hot.insert(id, Arc::new(Hot { record_version, key: Arc::clone(&key) }));
        Ok(key)
    }

    /// The public part of a key: from the open key, or from the blob's header without opening it.
    ///
    /// # Errors
    /// [`OpenKeyError`].
    pub async fn public(
        &self,
        id: KeyVersionId,
        record_version: u64,
        which: impl FnOnce() -> (RecordKey, KeyVersion),
    ) -> Result<PublicKey, OpenKeyError> {
        if let Some(hot) = self.hot.get(&id) {
            return Ok(hot.key.public().clone());
        }
        let (record, version) = which();
        let masked = self.masked(&record, record_version).await?;
        Ok(self.hsm.describe(&version, &masked)?)
    }

    /// Closes a key.
    pub fn forget(&self, id: KeyVersionId) {
        self.hot.remove(&id);
    }
}

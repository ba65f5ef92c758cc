//! The seam behind which state is durable.

use async_trait::async_trait;

/// Names a record: its kind and, within the kind, its id. Neither is visible in the engine's files.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RecordKey {
    /// What sort of record; a stable number, recorded for ever.
    pub kind: u8,
    /// Which one.
    pub id: Vec<u8>,
}

impl RecordKey {
    /// A record key.
    #[must_use]
    pub fn new(kind: u8, id: impl Into<Vec<u8>>) -> Self {
        Self { kind, id: id.into() }
    }
}

/// A stored record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its name.
    pub key: RecordKey,
    /// Its version: 1 when created, one more with each write.
    pub version: u64,
    /// Its content.
    pub value: Vec<u8>,
}

/// One change in a batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// Which record.
    pub key: RecordKey,
    /// The version it must have now; 0 if it must not exist.
    pub expected_version: u64,
    /// Its new content, or `None` to remove it.
    pub value: Option<Vec<u8>>,
}

/// What can go wrong in a store.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// A record is not at the version the batch expected. Nothing was written.
    #[error("the record was changed by somebody else")]
    Conflict,
    /// A record does not open: it was changed, swapped, or belongs to another instance.
    #[error("a stored record does not open: it was changed, swapped or restored from elsewhere")]
    Damaged,
    /// The engine failed; whether the batch was written is not known.
    #[error("the store failed: {0}")]
    Failed(String),
    /// Too many writes are queued. Nothing was written.
    #[error("the store has no capacity left")]
    Busy,
}

/// Durable records. A returned commit is on disk.
#[async_trait]
pub trait Store: Send + Sync {
    /// One record.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`].
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError>;

    /// Every record of a kind, in no order, given to `visit` one by one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`].
    async fn scan(&self, kind: u8, visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError>;

    /// Writes all or nothing, and returns when it is durable.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Busy`], [`StoreError::Failed`].
    async fn commit(&self, batch: Vec<Write>) -> Result<(), StoreError>;
}

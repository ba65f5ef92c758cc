//! The seam behind which bulk bytes lie: immutable, under random names.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::StoreError;

/// Name of a blob: 16 random bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BlobId(pub [u8; 16]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::KeyVersionId::from_bytes(self.0))
    }
}

impl BlobId {
    /// From 32 hex digits.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        crate::KeyVersionId::parse(hex).map(|id| Self(*id.as_bytes()))
    }
}

/// The most bytes that a mark of ownership has.
pub const OWNER_MARK_BYTES_MAX: usize = 256;

/// A blob being written. Dropped without [`BlobWriter::finish`], it never was one; what is left of it goes with [`BlobStore::delete`] or
/// [`BlobStore::drop_unfinished`].
#[async_trait]
pub trait BlobWriter: Send {
    /// Appends.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), StoreError>;

    /// Makes the blob durable.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// Bulk bytes. What a finished writer wrote survives a power loss.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Begins a new blob.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// Up to `len` bytes from `offset`; fewer only at the end. [`StoreError::Damaged`] if there is no such blob.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Damaged`].
    async fn read(&self, id: BlobId, offset: u64, len: usize) -> Result<Bytes, StoreError>;

    /// Removes a blob; one that is gone already is no fault.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn delete(&self, id: BlobId) -> Result<(), StoreError>;

    /// Blobs last changed at least `age_secs` ago.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn list_older(&self, age_secs: u64) -> Result<Vec<BlobId>, StoreError>;

    /// Removes what writers have left that were never finished, and says of how many, as far as that can be seen from here. Only while there are no
    /// writers.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn drop_unfinished(&self) -> Result<usize, StoreError>;

    /// The mark of whose blobs these are, if somebody left one; at most its first [`OWNER_MARK_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn owner_mark(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Leaves a mark, durable when this returns. False: there is one already, perhaps since a moment ago, and it stays.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn leave_owner_mark(&self, mark: &[u8]) -> Result<bool, StoreError>;
}

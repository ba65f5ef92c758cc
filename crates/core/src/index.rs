//! The seam behind which an ordered index is durable: keys in byte order, changes decided inside the commit.

use std::ops::ControlFlow;

use async_trait::async_trait;

use crate::{AuditEvent, Revision, StoreError};

/// One change to the index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexWrite {
    /// Which key.
    pub key: Vec<u8>,
    /// Its new value, or `None` to remove it.
    pub value: Option<Vec<u8>>,
}

impl IndexWrite {
    /// Sets a value.
    #[must_use]
    pub fn put(key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { key, value: Some(value) }
    }

    /// Removes a key, if it is there.
    #[must_use]
    pub fn remove(key: Vec<u8>) -> Self {
        Self { key, value: None }
    }
}

/// What a scan calls with each key and value.
pub type IndexVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A consistent view of the index.
pub trait IndexReader {
    /// The value of a key.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits keys from `from` (included) on, in byte order, until `visit` breaks or the index ends.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn scan(&self, from: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError>;
}

/// What happens as one: these rows are written, and the log tells this event of it. Neither is without the other.
#[derive(Debug, Default)]
pub struct IndexChange {
    /// The rows.
    pub writes: Vec<IndexWrite>,
    /// What the log tells; `None`: nobody's change, such as clearing away what was deleted before.
    pub event: Option<AuditEvent>,
}

/// Decides what to write, having seen the state that the writes will be applied to.
pub type IndexDecision = Box<dyn FnOnce(&dyn IndexReader) -> Result<IndexChange, StoreError> + Send>;

/// An ordered, durable index.
#[async_trait]
pub trait Index: Send + Sync {
    /// A view of the state as it is now.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError>;

    /// Runs `decide` alone, applies what it returns all or nothing, and returns when it is durable, with the revision behind it: a change
    /// with an event is one more. Changes are refused before they are decided while the log cannot be written and too many events wait
    /// for it.
    ///
    /// # Errors
    /// What `decide` returns, [`StoreError::Busy`], [`StoreError::Unrecorded`], [`StoreError::Unavailable`], [`StoreError::Failed`].
    async fn commit(&self, decide: IndexDecision) -> Result<Revision, StoreError>;

    /// The same for what has no event, which is never refused for want of the log.
    ///
    /// # Errors
    /// What `decide` returns, [`StoreError::Busy`], [`StoreError::Unavailable`], [`StoreError::Failed`]; also if there is an event.
    async fn keep(&self, decide: IndexDecision) -> Result<(), StoreError>;
}

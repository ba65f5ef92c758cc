//! What a storage engine must do, in terms of opaque rows.

mod embedded;
mod memory;
mod shared;

use std::collections::BTreeMap;

use async_trait::async_trait;
pub use embedded::EmbeddedEngine;
use holdfast_core::StoreError;
pub use memory::MemoryEngine;
pub use shared::{FileStamp, SharedEngine, StateId};

/// Name of a row: the record's kind, then an HMAC.
pub type RowName = [u8; 33];

/// A row as it lies in the engine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: RowName,
    /// Its version; compare-and-swap is on it.
    pub version: u64,
    /// Ciphertext.
    pub sealed: Vec<u8>,
}

/// One change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RowWrite {
    /// Which row.
    pub name: RowName,
    /// The version it must have; 0: it must not exist.
    pub expected_version: u64,
    /// Its new ciphertext (at `expected_version + 1`), or `None` to remove it.
    pub sealed: Option<Vec<u8>>,
}

/// A storage engine. A returned commit is durable.
#[async_trait]
pub trait Engine: Send + Sync {
    /// One row.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError>;

    /// All rows whose name begins with `kind`.
    ///
    /// # Errors
    /// [`StoreError::Failed`], or what `visit` returns.
    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError>;

    /// Writes all or nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Busy`], [`StoreError::Failed`].
    async fn commit(&self, batch: Vec<RowWrite>) -> Result<(), StoreError>;
}

/// Rows in memory: version and ciphertext by name.
type Rows = BTreeMap<RowName, (u64, Vec<u8>)>;

/// Applies a batch to rows in memory, all or nothing.
fn apply(rows: &mut Rows, batch: Vec<RowWrite>) -> Result<(), StoreError> {
    let current = |name| rows.get(name).map_or(0, |(version, _)| *version);
    if batch.iter().any(|write| current(&write.name) != write.expected_version) {
        return Err(StoreError::Conflict);
    }
    for write in batch {
        match write.sealed {
            Some(sealed) => rows.insert(write.name, (write.expected_version + 1, sealed)),
            None => rows.remove(&write.name),
        };
    }
    Ok(())
}

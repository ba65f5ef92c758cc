//! What a storage engine must do, in terms of opaque rows.

mod embedded;
mod memory;
mod shared;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
pub use embedded::EmbeddedEngine;
use holdfast_core::{Pass, Revision, StoreError};
pub use memory::MemoryEngine;
pub use shared::{FileStamp, SharedEngine, StateId, state_of};

use crate::{
    condition::Condition,
    row_set::{Fold, RowSet},
};

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

/// What happens in one transaction, or not at all.
pub struct Batch {
    /// The rows, each with the version that it must have.
    pub rows: Vec<RowWrite>,
    /// Rows that go if they are there: events that the log has.
    pub dropped: Vec<RowName>,
    /// If this is a change: gives the row of its event, once its revision is known.
    pub event: Option<EventRow>,
    /// The revision behind it is this one at least.
    pub least: Revision,
    /// What is kept of all rows together, if it is kept: changed in the same transaction.
    pub row_set: Option<Arc<RowSet>>,
    /// What whoever wants the change was looked at under: asked in the order of commits, and held until the batch is applied.
    pub leave: Option<Pass>,
    /// Called when the batch is durable: in the order of commits, and before whoever waits for it. Not called if it is refused.
    pub applied: Applied,
}

/// Seals the row of an event, bound to its revision.
pub type EventRow = Box<dyn FnOnce(Revision) -> Result<RowWrite, StoreError> + Send>;
/// Takes in that a batch is durable; with the revision behind it.
pub type Applied = Box<dyn FnOnce(Revision) + Send>;

impl Batch {
    /// A batch of rows and nothing else.
    #[must_use]
    pub fn of(rows: Vec<RowWrite>) -> Self {
        Self {
            rows,
            dropped: Vec::new(),
            event: None,
            least: Revision(0),
            row_set: None,
            leave: None,
            applied: Box::new(|_| ()),
        }
    }

    /// Whether it may still be made, now that its place in the order of commits has come.
    fn may_be_made(&self) -> Result<(), StoreError> {
        if self.leave.as_ref().is_none_or(Pass::commits) { Ok(()) } else { Err(StoreError::Overtaken) }
    }

    /// The revision behind this batch, if `before` is the one before it, and the row of its event.
    fn event_row(&mut self, before: Revision) -> Result<(Revision, Option<RowWrite>), StoreError> {
        let before = before.max(self.least);
        match self.event.take() {
            None => Ok((before, None)),
            Some(seal) => {
                let revision = Revision(before.0 + 1);
                Ok((revision, Some(seal(revision)?)))
            }
        }
    }
}

/// What a scan of everything calls with name, version and ciphertext of each row.
pub type RowVisitor<'a> = dyn FnMut(&RowName, u64, &[u8]) + Send + 'a;

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

    /// Every row of any kind: name, version, ciphertext.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Damaged`].
    async fn scan_all(&self, visit: &mut RowVisitor<'_>) -> Result<(), StoreError>;

    /// What was kept last of all rows together. The outer `None`: this engine keeps nothing of the kind, and proves its rows in a way of its own.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError>;

    /// Writes all or nothing; gives the revision behind it. A batch with an event is a change, and one revision more; one with a `least` leaves numbers out.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Overtaken`], [`StoreError::Busy`], [`StoreError::Unavailable`], [`StoreError::Failed`].
    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError>;

    /// The revision of what is durable now.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Whether it takes changes.
    fn condition(&self) -> Condition {
        Condition::default()
    }
}

/// Rows in memory: version and ciphertext by name.
type Rows = BTreeMap<RowName, (u64, Vec<u8>)>;

/// Applies a batch to rows in memory, all or nothing; gives the revision behind it.
fn apply(
    rows: &mut Rows,
    batch: &mut Batch,
    before: Revision,
    mut fold: Option<&mut Fold>,
) -> Result<Revision, StoreError> {
    let current = |name| rows.get(name).map_or(0, |(version, _)| *version);
    if batch.rows.iter().any(|write| current(&write.name) != write.expected_version) {
        return Err(StoreError::Conflict);
    }
    batch.may_be_made()?;
    let (revision, event) = batch.event_row(before)?;
    let dropped = batch.dropped.drain(..).map(|name| RowWrite { name, expected_version: 0, sealed: None });
    for write in dropped.chain(batch.rows.drain(..)).chain(event) {
        if let (Some(fold), Some(sealed)) = (&mut fold, &write.sealed) {
            fold.add(&write.name, write.expected_version + 1, sealed);
        }
        let old = match write.sealed {
            Some(sealed) => rows.insert(write.name, (write.expected_version + 1, sealed)),
            None => rows.remove(&write.name),
        };
        if let (Some(fold), Some((version, sealed))) = (&mut fold, old) {
            fold.remove(&write.name, version, &sealed);
        }
    }
    Ok(revision)
}

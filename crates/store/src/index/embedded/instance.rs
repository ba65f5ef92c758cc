//! Which instance an index belongs to: written into it once, when it is first opened under an instance.

use std::path::Path;

use async_trait::async_trait;
use holdfast_core::{AuditEvent, Index, IndexDecision, IndexReader, PartitionId, Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable};

use super::{ENTRIES, EVENTS, EventSealer, META, REVISION, Snapshot, database, stored_revision};
use crate::{audit, group::failed};

/// 16 bytes, the id of the instance.
const INSTANCE: &str = "instance";

/// Whose an index is, as a look at its file tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IndexOwner {
    /// There is no file.
    Missing,
    /// Nobody's: it was made before indexes belonged to instances, or never used.
    Nobody,
    /// This instance's.
    Instance(PartitionId),
}

impl IndexOwner {
    /// Looks into the file at `path`, which no other process may have open.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: not to be read, or locked; [`StoreError::Damaged`].
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Ok(Self::Missing);
        }
        let database = database(path)?;
        let transaction = database.begin_read().map_err(failed)?;
        let meta = transaction.open_table(META).map_err(failed)?;
        let Some(value) = meta.get(INSTANCE).map_err(failed)? else { return Ok(Self::Nobody) };
        value.value().try_into().map(|id| Self::Instance(PartitionId::from_bytes(id))).map_err(|_| StoreError::Damaged)
    }
}

/// Makes the index this instance's, or sees that it is.
pub(super) fn claim(
    database: &Database,
    sealer: &EventSealer,
    founding: Option<&AuditEvent>,
) -> Result<(), StoreError> {
    let instance = sealer.instance;
    let transaction = database.begin_write().map_err(failed)?;
    let foreign = {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        let known = meta.get(INSTANCE).map_err(failed)?.map(|value| value.value().to_vec());
        if known.is_none() {
            meta.insert(INSTANCE, instance.as_bytes().as_slice()).map_err(failed)?;
            if let Some(event) = founding {
                let revision = Revision(stored_revision(&meta)?.0 + 1);
                let sealed = sealer.seal(revision, &audit::event_body(event)?)?;
                let mut events = transaction.open_table(EVENTS).map_err(failed)?;
                events.insert(revision.0, sealed.as_slice()).map_err(failed)?;
                meta.insert(REVISION, revision.0.to_be_bytes().as_slice()).map_err(failed)?;
            }
        }
        known.is_some_and(|known| known != instance.as_bytes())
    };
    if foreign {
        return Err(failed("the index belongs to another instance"));
    }
    transaction.commit().map_err(failed)
}

/// An index that is looked at without its instance: for tools, while no service has it open.
pub struct IndexCopy(Database);

impl IndexCopy {
    /// Opens the file at `path`, which must be there.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: not there, not to be read, or locked by another process.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(failed("there is no index"));
        }
        database(path).map(Self)
    }
}

#[async_trait]
impl Index for IndexCopy {
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError> {
        let transaction = self.0.begin_read().map_err(failed)?;
        Ok(Box::new(Snapshot(transaction.open_table(ENTRIES).map_err(failed)?)))
    }

    async fn commit(&self, _: IndexDecision) -> Result<Revision, StoreError> {
        Err(failed("a copy is not changed"))
    }

    async fn keep(&self, _: IndexDecision) -> Result<(), StoreError> {
        Err(failed("a copy is not changed"))
    }
}

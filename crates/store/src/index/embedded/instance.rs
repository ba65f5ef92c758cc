//! Whose an index says it is, and a look at one without its instance.

use std::{ops::ControlFlow, path::Path};

use async_trait::async_trait;
use holdfast_core::{Index, IndexDecision, IndexReader, IndexVisitor, PartitionId, Revision, StoreError};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition, TableError};

use super::{
    super::seals::TAG_BYTES,
    CACHE_BYTES, INSTANCE, META, ROWS, guarded,
    opening::{META_V1, ROWS_V1, TAKEN_OVER, has_rows_of_v1},
};
use crate::{database::open_or_make, group::failed};

/// Whose an index is, as it says itself: to find a mistake early. What proves it is the head, which the instance alone can open.
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
        // It is closed in there, too: redb writes then, and gives up on a damaged page as it does when it reads.
        guarded(|| Self::named_in(&open_or_make(path, CACHE_BYTES, false)?))
    }

    fn named_in(database: &Database) -> Result<Self, StoreError> {
        let transaction = database.begin_read().map_err(failed)?;
        for meta in [META, META_V1] {
            let Some(meta) = table(&transaction, meta)? else { continue };
            let Some(value) = meta.get(INSTANCE).map_err(failed)? else { continue };
            let id = value.value().try_into().map_err(|_| StoreError::Damaged)?;
            return Ok(Self::Instance(PartitionId::from_bytes(id)));
        }
        Ok(Self::Nobody)
    }
}

fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
    transaction: &ReadTransaction,
    definition: TableDefinition<'_, K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, StoreError> {
    match transaction.open_table(definition) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// An index that is looked at without its instance: for tools, while no service has it open. Nothing that it tells is proved.
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
        open_or_make(path, CACHE_BYTES, false).map(Self)
    }
}

/// Rows of any version, as they are.
struct Unproved {
    rows: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    /// Of version 1, without MACs.
    old: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl IndexReader for Unproved {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        for (table, tag) in [(&self.rows, TAG_BYTES), (&self.old, 0)] {
            let Some(table) = table else { continue };
            if let Some(row) = table.get(key).map_err(failed)? {
                return Ok(Some(row.value().get(tag..).unwrap_or_default().to_vec()));
            }
        }
        Ok(None)
    }

    fn scan(&self, from: &[u8], prefix: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        for (table, tag) in [(&self.rows, TAG_BYTES), (&self.old, 0)] {
            let Some(table) = table else { continue };
            for entry in table.range(from..).map_err(failed)? {
                let (key, row) = entry.map_err(failed)?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                if let ControlFlow::Break(()) = visit(key.value(), row.value().get(tag..).unwrap_or_default()) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Index for IndexCopy {
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError> {
        let transaction = self.0.begin_read().map_err(failed)?;
        let rows = table(&transaction, ROWS)?;
        let old = transaction.open_table(ROWS_V1);
        let old = if has_rows_of_v1(&old)? { old.ok() } else { table(&transaction, TAKEN_OVER)? };
        Ok(Box::new(Unproved { rows, old }))
    }

    async fn commit(&self, _: IndexDecision) -> Result<Revision, StoreError> {
        Err(failed("a copy is not changed"))
    }

    async fn keep(&self, _: IndexDecision) -> Result<(), StoreError> {
        Err(failed("a copy is not changed"))
    }
}

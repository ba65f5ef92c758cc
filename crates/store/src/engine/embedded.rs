//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! The writer drains its queue into one transaction and syncs once; all waiters of that transaction are answered
//! after the sync. A batch that loses its compare-and-swap is answered alone and does not disturb the others.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use holdfast_core::StoreError;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Engine, Row, RowName, RowWrite};
use crate::group::{GroupWriter, failed};

/// Row name to `version (8 bytes, big-endian) || ciphertext`.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows v1");

/// redb's page cache in bytes.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// Rows in one file.
pub struct EmbeddedEngine {
    database: Arc<Database>,
    commits: GroupWriter<Vec<RowWrite>>,
}

impl EmbeddedEngine {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: damaged, locked by another process, or not to be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?;
        let create = database.begin_write().map_err(failed)?;
        create.open_table(ROWS).map_err(failed)?;
        create.commit().map_err(failed)?;
        let database = Arc::new(database);
        let writer = Arc::clone(&database);
        let commits = GroupWriter::start("store-writer", move |batches| write_group(&writer, &batches))?;
        Ok(Self { database, commits })
    }
}

/// One transaction. The outer error means that nothing of the group is known to be written.
fn write_group(database: &Database, batches: &[Vec<RowWrite>]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    let results = {
        let mut table = transaction.open_table(ROWS).map_err(failed)?;
        batches.iter().map(|batch| write_batch(&mut table, batch)).collect::<Result<Vec<_>, _>>()?
    };
    transaction.commit().map_err(failed)?;
    Ok(results)
}

/// Checks a whole batch, then applies it. The inner error is a lost compare-and-swap.
fn write_batch(table: &mut Table<'_, &[u8], &[u8]>, batch: &[RowWrite]) -> Result<Result<(), StoreError>, StoreError> {
    for write in batch {
        let current = match table.get(write.name.as_slice()).map_err(failed)? {
            Some(value) => decode(value.value())?.0,
            None => 0,
        };
        if current != write.expected_version {
            return Ok(Err(StoreError::Conflict));
        }
    }
    for write in batch {
        match &write.sealed {
            Some(sealed) => {
                let mut value = (write.expected_version + 1).to_be_bytes().to_vec();
                value.extend_from_slice(sealed);
                table.insert(write.name.as_slice(), value.as_slice()).map_err(failed)?;
            }
            None => {
                table.remove(write.name.as_slice()).map_err(failed)?;
            }
        }
    }
    Ok(Ok(()))
}

fn decode(value: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (version, sealed) = value.split_first_chunk::<8>().ok_or(StoreError::Damaged)?;
    Ok((u64::from_be_bytes(*version), sealed))
}

#[async_trait]
impl Engine for EmbeddedEngine {
    /// Reads on the caller's thread: a page that is not cached costs one `pread`.
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        let Some(value) = table.get(name.as_slice()).map_err(failed)? else { return Ok(None) };
        let (version, sealed) = decode(value.value())?;
        Ok(Some(Row { name: *name, version, sealed: sealed.to_vec() }))
    }

    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        for entry in table.range([kind].as_slice()..).map_err(failed)? {
            let (name, value) = entry.map_err(failed)?;
            if name.value().first() != Some(&kind) {
                break;
            }
            let name: RowName = name.value().try_into().map_err(|_| StoreError::Damaged)?;
            let (version, sealed) = decode(value.value())?;
            visit(Row { name, version, sealed: sealed.to_vec() })?;
        }
        Ok(())
    }

    async fn commit(&self, batch: Vec<RowWrite>) -> Result<(), StoreError> {
        self.commits.write(batch).await
    }
}

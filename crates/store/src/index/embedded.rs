//! One redb file, one writer thread. The writer drains its queue into one transaction: each decision sees the state
//! that the ones before it left, and one sync makes them all durable.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use holdfast_core::{Index, IndexDecision, IndexReader, IndexVisitor, IndexWrite, StoreError};
use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};

use crate::group::{GroupWriter, failed};

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v1");

/// Below so many free bytes of its disk the index takes no commit: one that fails half-way would leave it closed until a restart.
/// On a small disk it is less, see [`has_room`].
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// redb's page cache in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// An index in one file.
pub struct EmbeddedIndex {
    database: Arc<Database>,
    commits: GroupWriter<IndexDecision, ()>,
}

impl EmbeddedIndex {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: damaged, locked by another process, or not to be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(failed)?;
        let create = database.begin_write().map_err(failed)?;
        create.open_table(ENTRIES).map_err(failed)?;
        create.commit().map_err(failed)?;
        let database = Arc::new(database);
        let writer = Arc::clone(&database);
        let disk: PathBuf = path.parent().unwrap_or(path).into();
        let commits = GroupWriter::start("index-writer", move |decisions| {
            if !has_room(&disk) {
                tracing::error!(path = %disk.display(), "the disk is full, and the index takes no commits");
                return Err(StoreError::Busy);
            }
            write_group(&writer, decisions)
        })?;
        Ok(Self { database, commits })
    }
}

/// Whether a commit will fit. A disk that cannot be asked is taken to have room.
fn has_room(directory: &Path) -> bool {
    let Ok(disk) = rustix::fs::statvfs(directory) else { return true };
    let (free, all) = (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize));
    free >= (all / 64).min(ROOM_BYTES_MIN)
}

/// One transaction. The outer error means that nothing of the group is known to be written.
fn write_group(database: &Database, decisions: Vec<IndexDecision>) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    let results = {
        let mut table = transaction.open_table(ENTRIES).map_err(failed)?;
        let mut results = Vec::with_capacity(decisions.len());
        for decide in decisions {
            let decided = decide(&InTransaction(&table));
            results.push(match decided {
                Ok(writes) => {
                    apply(&mut table, writes)?;
                    Ok(())
                }
                Err(error) => Err(error),
            });
        }
        results
    };
    transaction.commit().map_err(failed)?;
    Ok(results)
}

fn apply(table: &mut Table<'_, &[u8], &[u8]>, writes: Vec<IndexWrite>) -> Result<(), StoreError> {
    for IndexWrite { key, value } in writes {
        match value {
            Some(value) => table.insert(key.as_slice(), value.as_slice()).map_err(failed)?,
            None => table.remove(key.as_slice()).map_err(failed)?,
        };
    }
    Ok(())
}

struct InTransaction<'a, 't>(&'a Table<'t, &'static [u8], &'static [u8]>);

impl IndexReader for InTransaction<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(self.0, key)
    }

    fn scan(&self, from: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        scan(self.0, from, visit)
    }
}

struct Snapshot(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl IndexReader for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(&self.0, key)
    }

    fn scan(&self, from: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        scan(&self.0, from, visit)
    }
}

fn get(table: &impl ReadableTable<&'static [u8], &'static [u8]>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(table.get(key).map_err(failed)?.map(|value| value.value().to_vec()))
}

fn scan(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    from: &[u8],
    visit: &mut IndexVisitor<'_>,
) -> Result<(), StoreError> {
    for entry in table.range(from..).map_err(failed)? {
        let (key, value) = entry.map_err(failed)?;
        if let ControlFlow::Break(()) = visit(key.value(), value.value()) {
            break;
        }
    }
    Ok(())
}

#[async_trait]
impl Index for EmbeddedIndex {
    /// Reads on the caller's thread: a page that is not cached costs one `pread`.
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        Ok(Box::new(Snapshot(transaction.open_table(ENTRIES).map_err(failed)?)))
    }

    async fn commit(&self, decide: IndexDecision) -> Result<(), StoreError> {
        self.commits.write(decide).await
    }
}

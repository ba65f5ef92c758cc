//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! The writer drains its queue into one transaction and syncs once; all waiters of that transaction are answered
//! after the sync. A batch that loses its compare-and-swap is answered alone and does not disturb the others.

use std::{path::Path, sync::Arc, thread};

use async_trait::async_trait;
use holdfast_core::StoreError;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::{Engine, Row, RowName, RowWrite};

/// Row name to `version (8 bytes, big-endian) || ciphertext`.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows v1");

/// Commits that may wait. More is refused at once.
const QUEUE_COMMITS: usize = 4096;
/// Commits that share one sync at most.
const GROUP_COMMITS: usize = 512;
/// redb's page cache in bytes.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

struct Commit {
    batch: Vec<RowWrite>,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

/// Rows in one file.
pub struct EmbeddedEngine {
    database: Arc<Database>,
    commits: mpsc::Sender<Commit>,
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
        let (commits, queue) = mpsc::channel(QUEUE_COMMITS);
        let writer = Arc::clone(&database);
        thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_groups(&writer, queue))
            .map_err(failed)?;
        Ok(Self { database, commits })
    }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

fn write_groups(database: &Database, mut queue: mpsc::Receiver<Commit>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_COMMITS
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        let batches: Vec<&[RowWrite]> = group.iter().map(|commit| commit.batch.as_slice()).collect();
        let results = write_group(database, &batches).unwrap_or_else(|error| vec![Err(error); group.len()]);
        for (commit, result) in group.into_iter().zip(results) {
            // A waiter that went away does not change what was written.
            let _ = commit.reply.send(result);
        }
    }
}

/// One transaction. The outer error means that nothing of the group is known to be written.
fn write_group(database: &Database, batches: &[&[RowWrite]]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
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
        let (reply, answer) = oneshot::channel();
        self.commits.try_send(Commit { batch, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Failed("the writer has stopped".into()),
        })?;
        answer.await.map_err(|_| StoreError::Failed("the writer has stopped".into()))?
    }
}

//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! The writer drains its queue into one transaction and syncs once. After the sync it tells of each batch in order
//! ([`Batch::applied`]), and then answers all who wait. A batch that loses its compare-and-swap is answered alone and does not
//! disturb the others.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use holdfast_core::{Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Batch, Engine, Row, RowName, RowVisitor, RowWrite};
use crate::{
    database::{has_room, open_or_make},
    group::{GroupWriter, failed},
    row_set::Fold,
};

/// Row name to `version (8 bytes, big-endian) || ciphertext`.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows v1");
/// What the engine says of itself: `revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta v1");
const REVISION: &str = "revision";
/// What is kept of all rows together.
const HEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("head v1");
const ROW_SET: &str = "rows";

/// redb's page cache in bytes.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// Rows in one file.
pub struct EmbeddedEngine {
    database: Arc<Database>,
    commits: GroupWriter<Batch, Revision>,
}

impl EmbeddedEngine {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: damaged, locked by another process, or not to be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = open_or_make(path, CACHE_BYTES, true)?;
        let create = database.begin_write().map_err(failed)?;
        create.open_table(ROWS).map_err(failed)?;
        create.open_table(META).map_err(failed)?;
        create.open_table(HEAD).map_err(failed)?;
        create.commit().map_err(failed)?;
        let database = Arc::new(database);
        let writer = Arc::clone(&database);
        let disk: PathBuf = path.parent().unwrap_or(path).into();
        let commits = GroupWriter::start("store-writer", move |batches| {
            if !has_room(&disk) {
                tracing::error!(path = %disk.display(), "the disk is full, and the store takes no commits");
                return Err(StoreError::Busy);
            }
            write_group(&writer, batches)
        })?;
        Ok(Self { database, commits })
    }
}

/// One transaction. The outer error means that nothing of the group is known to be written.
fn write_group(database: &Database, batches: Vec<Batch>) -> Result<Vec<Result<Revision, StoreError>>, StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    let mut applied = Vec::with_capacity(batches.len());
    let mut fold = batches.iter().find_map(|batch| batch.row_set.as_ref()).map(|set| set.fold());
    let results = {
        let mut rows = transaction.open_table(ROWS).map_err(failed)?;
        let mut meta = transaction.open_table(META).map_err(failed)?;
        let before = stored_revision(&meta)?;
        let mut revision = before;
        let mut results = Vec::with_capacity(batches.len());
        for mut batch in batches {
            let result = write_batch(&mut rows, &mut batch, revision, fold.as_mut())?;
            if let Ok(after) = result {
                revision = after;
                applied.push((batch.applied, after));
            }
            results.push(result);
        }
        if revision != before {
            meta.insert(REVISION, revision.0).map_err(failed)?;
        }
        if let Some(fold) = &fold {
            let mut head = transaction.open_table(HEAD).map_err(failed)?;
            head.insert(ROW_SET, fold.head(revision)?.as_slice()).map_err(failed)?;
        }
        results
    };
    transaction.commit().map_err(failed)?;
    if let Some(fold) = fold {
        fold.keep();
    }
    for (applied, revision) in applied {
        applied(revision);
    }
    Ok(results)
}

fn stored_revision(meta: &impl ReadableTable<&'static str, u64>) -> Result<Revision, StoreError> {
    Ok(Revision(meta.get(REVISION).map_err(failed)?.map_or(0, |value| value.value())))
}

/// Checks a whole batch, then applies it. The inner error is a lost compare-and-swap.
fn write_batch(
    table: &mut Table<'_, &[u8], &[u8]>,
    batch: &mut Batch,
    before: Revision,
    mut fold: Option<&mut Fold>,
) -> Result<Result<Revision, StoreError>, StoreError> {
    for write in &batch.rows {
        let current = match table.get(write.name.as_slice()).map_err(failed)? {
            Some(value) => decode(value.value())?.0,
            None => 0,
        };
        if current != write.expected_version {
            return Ok(Err(StoreError::Conflict));
        }
    }
    let (revision, event) = match batch.event_row(before) {
        Ok(sealed) => sealed,
        Err(error) => return Ok(Err(error)),
    };
    let dropped = batch.dropped.drain(..).map(|name| RowWrite { name, expected_version: 0, sealed: None });
    for write in dropped.chain(batch.rows.drain(..)).chain(event) {
        let old = match &write.sealed {
            Some(sealed) => {
                let mut value = (write.expected_version + 1).to_be_bytes().to_vec();
                value.extend_from_slice(sealed);
                if let Some(fold) = &mut fold {
                    fold.add(&write.name, write.expected_version + 1, sealed);
                }
                table.insert(write.name.as_slice(), value.as_slice()).map_err(failed)?
            }
            None => table.remove(write.name.as_slice()).map_err(failed)?,
        };
        if let (Some(fold), Some(old)) = (&mut fold, old) {
            let (version, sealed) = decode(old.value())?;
            fold.remove(&write.name, version, sealed);
        }
    }
    Ok(Ok(revision))
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

    async fn scan_all(&self, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        for entry in table.iter().map_err(failed)? {
            let (name, value) = entry.map_err(failed)?;
            let name: &RowName = name.value().try_into().map_err(|_| StoreError::Damaged)?;
            let (version, sealed) = decode(value.value())?;
            visit(name, version, sealed);
        }
        Ok(())
    }

    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(HEAD).map_err(failed)?;
        Ok(Some(table.get(ROW_SET).map_err(failed)?.map(|head| head.value().to_vec())))
    }

    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.commits.write(batch).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        stored_revision(&transaction.open_table(META).map_err(failed)?)
    }
}

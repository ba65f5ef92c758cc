//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! The writer drains its queue into one transaction and syncs once. After the sync it tells of each batch in order
//! ([`Batch::applied`]), and then answers all who wait. A batch that loses its compare-and-swap is answered alone and does not
//! disturb the others.
//!
//! After a failure the file is opened anew. It is taken if its rows are those from before the group that failed, or those behind it, and those
//! who follow the commits are told of it then: nothing else may lie there.

#[cfg(test)]
mod disorder;
#[cfg(test)]
mod failures;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use holdfast_core::{Pass, Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::{Applied, Batch, Engine, Row, RowName, RowVisitor, RowWrite};
use crate::{
    condition::Condition,
    copies::Copies,
    database::{DatabaseFile, open_or_make},
    group::{Fared, GroupWriter, Mended, Target, failed},
    order,
    row_set::{Fold, RowSet},
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
    file: Arc<DatabaseFile>,
    commits: GroupWriter<Batch, Revision>,
    condition: Condition,
}

impl EmbeddedEngine {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: damaged, locked by another process, or not to be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = open_or_make(path, CACHE_BYTES, true)?;
        Self::over(|database| DatabaseFile::new(path, database, CACHE_BYTES), database)
    }

    fn over(file: impl FnOnce(Database) -> DatabaseFile, database: Database) -> Result<Self, StoreError> {
        let create = database.begin_write().map_err(failed)?;
        create.open_table(ROWS).map_err(failed)?;
        create.open_table(META).map_err(failed)?;
        create.open_table(HEAD).map_err(failed)?;
        create.commit().map_err(failed)?;
        let revision = revision_of(&database)?;
        let file = Arc::new(file(database));
        let condition = Condition::default();
        let writer = Writer { file: Arc::clone(&file), revision, row_set: None, unknown: None };
        let commits = GroupWriter::over(writer, condition.clone())?;
        Ok(Self { file, commits, condition })
    }

    /// Takes copies of the rows, for backups.
    #[must_use]
    pub fn copies(&self) -> Copies {
        Copies::of_records(&self.file)
    }

    /// A failure that a reader meets may be the database's: the writer looks.
    fn seen<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(read, Err(StoreError::Failed(_))) {
            self.commits.look();
        }
        read
    }
}

struct Writer {
    file: Arc<DatabaseFile>,
    /// Of what is known to be durable.
    revision: Revision,
    /// What is kept of all rows, as the last commit had it.
    row_set: Option<Arc<RowSet>>,
    /// The group whose commit failed last.
    unknown: Option<Group>,
}

/// What a transaction does, once it is durable.
struct Group {
    results: Vec<Result<Revision, StoreError>>,
    revision: Revision,
    fold: Option<Fold>,
    applied: Vec<(Applied, Revision)>,
    /// Changes that end what others were allowed by wait for these.
    leaves: Vec<Pass>,
}

impl Group {
    /// It is durable.
    fn done(self) -> Vec<Result<Revision, StoreError>> {
        if let Some(fold) = self.fold {
            fold.keep();
        }
        for (applied, revision) in self.applied {
            applied(revision);
        }
        drop(self.leaves);
        self.results
    }
}

impl Target for Writer {
    type Job = Batch;
    type Done = Revision;

    fn name(&self) -> &'static str {
        "store-writer"
    }

    fn write(&mut self, jobs: Vec<Batch>) -> Fared<Revision> {
        if let Some(set) = jobs.iter().find_map(|batch| batch.row_set.as_ref()) {
            self.row_set = Some(Arc::clone(set));
        }
        let transaction = self.file.begin_write()?;
        let group = write_group(&transaction, jobs)?;
        let revision = group.revision;
        if let Err(error) = transaction.commit() {
            // Nobody waits until the disk is mended.
            self.unknown = Some(Group { leaves: Vec::new(), ..group });
            return Err(failed(error));
        }
        self.revision = revision;
        Ok(group.done())
    }

    fn has_room(&self) -> bool {
        self.file.has_room()
    }

    fn look(&self) -> Result<(), StoreError> {
        self.file.look()
    }

    fn mend(&mut self) -> Result<Mended<Revision>, StoreError> {
        let file = Arc::clone(&self.file);
        let happened = file.reopen(|database| {
            let happened = self.judge(database)?;
            // Writes something, and syncs it: or else it is not mended.
            let transaction = database.begin_write().map_err(failed)?;
            {
                let mut meta = transaction.open_table(META).map_err(failed)?;
                let revision = stored_revision(&meta)?;
                meta.insert(REVISION, revision.0).map_err(failed)?;
            }
            transaction.commit().map_err(failed)?;
            Ok(happened)
        })?;
        Ok(match (self.unknown.take(), happened) {
            (Some(group), true) => {
                self.revision = group.revision;
                Mended::Happened(group.done())
            }
            (_, _) => Mended::Nothing,
        })
    }
}

impl Writer {
    /// Whether the group that failed is there. The rows are those from before it, or those behind it: no others are taken.
    fn judge(&self, database: &Database) -> Result<bool, StoreError> {
        let revision = revision_of(database)?;
        let found = match &self.row_set {
            None => None,
            Some(set) => {
                let mut found = set.empty();
                let transaction = database.begin_read().map_err(failed)?;
                let table = transaction.open_table(ROWS).map_err(failed)?;
                visit_all(&table, &mut |name, version, sealed| found.add(name, version, sealed))?;
                Some(found)
            }
        };
        if let Some(Group { revision: then, fold, .. }) = &self.unknown
            && revision == *then
            && match (fold, &found) {
                (Some(fold), Some(found)) => found.same_as(fold),
                // Without it, a group that changes nothing is told from none by nothing.
                _ => revision != self.revision,
            }
        {
            return Ok(true);
        }
        if revision == self.revision && found.as_ref().is_none_or(Fold::is_what_is_kept) {
            return Ok(false);
        }
        Err(failed(
            "ITS ROWS ARE NOT THOSE OF ITS LAST COMMIT: while it could not be written, they were changed, removed or put back. Nothing is changed \
             under them: stop, put the file back in its place, and start; or see what the start says without",
        ))
    }
}

/// Writes the batches into a transaction. The outer error means that nothing of the group can be committed.
fn write_group(transaction: &redb::WriteTransaction, batches: Vec<Batch>) -> Result<Group, StoreError> {
    let (mut applied, mut leaves) = (Vec::with_capacity(batches.len()), Vec::new());
    let mut fold = batches.iter().find_map(|batch| batch.row_set.as_ref()).map(|set| set.fold());
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
            leaves.extend(batch.leave);
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
    Ok(Group { results, revision, fold, applied, leaves })
}

fn revision_of(database: &Database) -> Result<Revision, StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    stored_revision(&transaction.open_table(META).map_err(failed)?)
}

fn visit_all(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    visit: &mut RowVisitor<'_>,
) -> Result<(), StoreError> {
    order::visit_all(table, |name, value| {
        let name: &RowName = name.try_into().map_err(|_| StoreError::Damaged)?;
        let (version, sealed) = decode(value)?;
        visit(name, version, sealed);
        Ok(())
    })
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
    if let Err(overtaken) = batch.may_be_made() {
        return Ok(Err(overtaken));
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

impl EmbeddedEngine {
    /// Reads on the caller's thread: a page that is not cached costs one `pread`.
    fn read_row(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        let transaction = self.file.begin_read()?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        let Some(value) = table.get(name.as_slice()).map_err(failed)? else { return Ok(None) };
        let (version, sealed) = decode(value.value())?;
        Ok(Some(Row { name: *name, version, sealed: sealed.to_vec() }))
    }

    fn scan_kind(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        let transaction = self.file.begin_read()?;
        let table = transaction.open_table(ROWS).map_err(failed)?;
        for entry in order::from(&table, &[kind])? {
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

    fn kept_head(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.file.begin_read()?;
        let table = transaction.open_table(HEAD).map_err(failed)?;
        Ok(table.get(ROW_SET).map_err(failed)?.map(|head| head.value().to_vec()))
    }
}

#[async_trait]
impl Engine for EmbeddedEngine {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        self.seen(self.read_row(name))
    }

    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        self.seen(self.scan_kind(kind, visit))
    }

    async fn scan_all(&self, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        let transaction = self.file.begin_read()?;
        self.seen(visit_all(&transaction.open_table(ROWS).map_err(failed)?, visit))
    }

    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        self.seen(self.kept_head()).map(Some)
    }

    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.commits.write(batch).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        let transaction = self.file.begin_read()?;
        self.seen(stored_revision(&transaction.open_table(META).map_err(failed)?))
    }

    fn condition(&self) -> Condition {
        self.condition.clone()
    }
}

//! One redb file, one writer thread. The writer drains its queue into one transaction: each decision sees the state
//! that the ones before it left, and one sync makes them all durable. The event of a change is a row of the same transaction.

mod instance;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use holdfast_core::{
    Ambient, AuditEvent, Index, IndexChange, IndexDecision, IndexReader, IndexVisitor, IndexWrite, PartitionId,
    Revision, StoreError,
};
use holdfast_crypto::{SealingKey, SecretBytes, kdf};
pub use instance::{IndexCopy, IndexOwner};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};

use crate::{
    audit,
    database::{has_room, open_or_make},
    group::{GroupWriter, failed},
    outbox::{Outbox, Place, StoredEvent},
};

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v1");
/// Revision to the sealed event of that change, until the log has it.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events v1");
/// What the index says of itself: [`REVISION`], [`instance::INSTANCE`].
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta v1");
const REVISION: &str = "revision";

/// redb's page cache in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// An index in one file.
pub struct EmbeddedIndex {
    database: Arc<Database>,
    commits: GroupWriter<Job, Revision>,
    outbox: Arc<Outbox>,
}

/// A decision, and a place for its event if it may have one.
struct Job {
    decide: IndexDecision,
    place: Option<Place>,
}

/// Seals the rows of events: whoever can write to the file can neither read, make nor move one.
struct EventSealer {
    instance: PartitionId,
    key: SealingKey,
    ambient: Arc<dyn Ambient>,
}

impl EventSealer {
    fn bound_to(&self, revision: Revision) -> Vec<u8> {
        [b"holdfast index event v1".as_slice(), self.instance.as_bytes(), &revision.0.to_be_bytes()].concat()
    }

    fn seal(&self, revision: Revision, body: &str) -> Result<Vec<u8>, StoreError> {
        self.key.seal(self.ambient.random(), &self.bound_to(revision), body.as_bytes()).map_err(failed)
    }

    fn open(&self, revision: Revision, sealed: &[u8]) -> Result<StoredEvent, StoreError> {
        let body = self.key.open(&self.bound_to(revision), sealed).map_err(|_| StoreError::Damaged)?;
        let body = std::str::from_utf8(body.expose()).map_err(|_| StoreError::Damaged)?.into();
        Ok(StoredEvent { revision, body })
    }
}

fn database(path: &Path) -> Result<Database, StoreError> {
    let database = open_or_make(path, CACHE_BYTES, false)?;
    let create = database.begin_write().map_err(failed)?;
    create.open_table(ENTRIES).map_err(failed)?;
    create.open_table(EVENTS).map_err(failed)?;
    create.open_table(META).map_err(failed)?;
    create.commit().map_err(failed)?;
    Ok(database)
}

impl EmbeddedIndex {
    /// Opens the file at `path`, or makes it, for the instance that it belongs to; a file that belongs to none yet is its from now on. Takes up
    /// the events that the log may not have. `database_key`: the instance's, 32 bytes; `founding`: what the log tells if the file becomes the
    /// instance's now.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: not to be read, locked by another process, or of another instance; [`StoreError::Damaged`].
    pub fn open(
        path: &Path,
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
        founding: Option<&AuditEvent>,
    ) -> Result<Self, StoreError> {
        let key = kdf::derive_key(database_key, "holdfast index events v1").map_err(failed)?;
        let sealer = EventSealer { instance, key: SealingKey::new(&key).map_err(failed)?, ambient };
        let database = Arc::new(database(path)?);
        instance::claim(&database, &sealer, founding)?;
        let (revision, left) = events_left(&database, &sealer)?;
        let outbox = Arc::new(Outbox::with(left, revision));
        let writer = Writer { database: Arc::clone(&database), sealer, outbox: Arc::clone(&outbox) };
        let disk: PathBuf = path.parent().unwrap_or(path).into();
        let commits = GroupWriter::start("index-writer", move |jobs| {
            if !has_room(&disk) {
                return Err(StoreError::Unavailable("the disk of the index is full".into()));
            }
            writer.write_group(jobs)
        })?;
        Ok(Self { database, commits, outbox })
    }

    /// Events of changes on their way to the log, which takes them from here.
    #[must_use]
    pub fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }
}

/// The newest change, and the events whose rows are still there.
fn events_left(database: &Database, sealer: &EventSealer) -> Result<(Revision, Vec<StoredEvent>), StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let mut left = Vec::new();
    for entry in transaction.open_table(EVENTS).map_err(failed)?.range(0..).map_err(failed)? {
        let (revision, sealed) = entry.map_err(failed)?;
        left.push(sealer.open(Revision(revision.value()), sealed.value())?);
    }
    let revision = stored_revision(&transaction.open_table(META).map_err(failed)?)?;
    Ok((revision, left))
}

fn stored_revision(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Revision, StoreError> {
    let Some(value) = meta.get(REVISION).map_err(failed)? else { return Ok(Revision(0)) };
    value.value().try_into().map(|bytes| Revision(u64::from_be_bytes(bytes))).map_err(|_| StoreError::Damaged)
}

struct Writer {
    database: Arc<Database>,
    sealer: EventSealer,
    outbox: Arc<Outbox>,
}

impl Writer {
    /// One transaction. The outer error means that nothing of the group is known to be written.
    fn write_group(&self, jobs: Vec<Job>) -> Result<Vec<Result<Revision, StoreError>>, StoreError> {
        // The rows of events that the log has go with whatever is committed next.
        let dropped = self.outbox.take_recorded();
        let written = self.try_write_group(jobs, &dropped);
        if written.is_err() {
            self.outbox.still_stored(dropped);
        }
        let (results, told) = written?;
        for (place, event) in told {
            place.fill(event);
        }
        Ok(results)
    }

    #[expect(clippy::type_complexity, reason = "results of jobs, and events with their places")]
    fn try_write_group(
        &self,
        jobs: Vec<Job>,
        dropped: &[Revision],
    ) -> Result<(Vec<Result<Revision, StoreError>>, Vec<(Place, StoredEvent)>), StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        let (mut results, mut told) = (Vec::with_capacity(jobs.len()), Vec::new());
        {
            let mut entries = transaction.open_table(ENTRIES).map_err(failed)?;
            let mut events = transaction.open_table(EVENTS).map_err(failed)?;
            let mut meta = transaction.open_table(META).map_err(failed)?;
            for revision in dropped {
                events.remove(revision.0).map_err(failed)?;
            }
            let before = stored_revision(&meta)?;
            let mut revision = before;
            for Job { decide, place } in jobs {
                let decided = decide(&InTransaction(&entries)).and_then(|change| told_of(change, place));
                results.push(match decided {
                    Ok((writes, event)) => {
                        apply(&mut entries, writes)?;
                        if let Some((body, place)) = event {
                            revision = Revision(revision.0 + 1);
                            events.insert(revision.0, self.sealer.seal(revision, &body)?.as_slice()).map_err(failed)?;
                            told.push((place, StoredEvent { revision, body: body.into() }));
                        }
                        Ok(revision)
                    }
                    Err(error) => Err(error),
                });
            }
            if revision != before {
                meta.insert(REVISION, revision.0.to_be_bytes().as_slice()).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)?;
        Ok((results, told))
    }
}

/// The rows of a change, and its event with the place that was kept for it.
#[expect(clippy::type_complexity, reason = "the two halves of a change")]
fn told_of(
    change: IndexChange,
    place: Option<Place>,
) -> Result<(Vec<IndexWrite>, Option<(String, Place)>), StoreError> {
    let event = match (change.event, place) {
        (None, _) => None,
        (Some(event), Some(place)) => Some((audit::event_body(&event)?, place)),
        (Some(_), None) => return Err(failed("an event came with what has none")),
    };
    Ok((change.writes, event))
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

    async fn commit(&self, decide: IndexDecision) -> Result<Revision, StoreError> {
        let place = Some(self.outbox.reserve()?);
        self.commits.write(Job { decide, place }).await
    }

    async fn keep(&self, decide: IndexDecision) -> Result<(), StoreError> {
        self.commits.write(Job { decide, place: None }).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;
    impl Ambient for Fixed {
        fn now(&self) -> holdfast_core::Timestamp {
            holdfast_core::Timestamp::default()
        }
        fn fill(&self, out: &mut [u8]) {
            out.fill(0x5a);
        }
    }

    #[test]
    fn golden_event() {
        let golden = include_bytes!("../../tests/golden/index-event-v1.bin");
        let key = kdf::derive_key(&SecretBytes::copy_of(&[2; 32]), "holdfast index events v1").unwrap();
        let instance = PartitionId::from_bytes([1; 16]);
        let sealer = EventSealer { instance, key: SealingKey::new(&key).unwrap(), ambient: Arc::new(Fixed) };
        assert_eq!(sealer.seal(Revision(3), r#"{"type":"event""#).unwrap(), golden);
        let event = sealer.open(Revision(3), golden).unwrap();
        assert_eq!((event.revision, event.body.as_ref()), (Revision(3), r#"{"type":"event""#));
        assert_eq!(sealer.open(Revision(4), golden), Err(StoreError::Damaged), "it is bound to its change");
    }
}

//! One redb file, one writer thread. The writer drains its queue into one transaction: each decision sees the state
//! that the ones before it left, and one sync makes them all durable. The event of a change is a row of the same transaction, and so is
//! what is kept of all rows together. Each row has a MAC, which is looked at whenever the row is read. After a failure the file is opened anew.

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod failures;
mod instance;
mod mending;
mod opening;
mod own;
mod sets;
mod writer;

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use holdfast_core::{
    AcceptTold, Ambient, AuditEvent, Index, IndexDecision, IndexReader, IndexSets, IndexVisitor, PartitionId, Revision,
    SetCheck, SetNames, StoreError,
};
use holdfast_crypto::SecretBytes;
pub use instance::{IndexCopy, IndexOwner};
use own::Seen;
pub(crate) use own::{SET_OF_EVENTS, SET_OF_PINS};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use writer::{Job, Work, Writer};

use super::seals::Seals;
use crate::{
    condition::Condition,
    copies::Copies,
    database::{DatabaseFile, open_or_make},
    group::{GroupWriter, failed},
    order,
    outbox::{Outbox, StoredEvent},
};

/// Name to MAC and content.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v2");
/// Name of a set of rows to what is kept of it, sealed.
const SETS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sets v2");
/// What the index says of itself: [`HEAD`], [`INSTANCE`].
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta v2");
/// What the last commit left, sealed.
const HEAD: &str = "head";
/// Whose the index says it is, 16 bytes in clear: for messages, and believed by nobody.
const INSTANCE: &str = "instance";
/// Revision to the sealed event of that change, until the log has it.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events v1");

/// redb's page cache in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// What an index is opened with.
pub struct IndexOpening<'a> {
    /// Whose it is.
    pub instance: PartitionId,
    /// The instance's, 32 bytes.
    pub database_key: &'a SecretBytes,
    /// Entropy.
    pub ambient: Arc<dyn Ambient>,
    /// How the rows fall into sets.
    pub sets: IndexSets,
    /// What the log tells if an index that is nobody's becomes the instance's now.
    pub founding: Option<&'a AuditEvent>,
    /// What the log tells if so many rows of an earlier version are taken over now.
    pub upgraded: &'a dyn Fn(u64) -> AuditEvent,
    /// Whether rows of an earlier version were taken over before: no others are taken any more.
    pub in_force: bool,
    /// Whether what is kept of the index is known to be of its events, too.
    pub counted: bool,
    /// Go on although what is kept of all rows together is not what the last commit left, and say so in the notes.
    pub accept_loss: bool,
}

/// An index in one file.
pub struct EmbeddedIndex {
    file: Arc<DatabaseFile>,
    seals: Arc<Seals>,
    sets: IndexSets,
    commits: GroupWriter<Job, writer::Done>,
    seen: Arc<Seen>,
    outbox: Arc<Outbox>,
    notes: Vec<String>,
    /// Whether something is accepted that is not kept so far.
    accepted: bool,
    /// Whether nobody waits for checks any more.
    checks_stopped: AtomicBool,
}

impl EmbeddedIndex {
    /// Opens the file at `path`, or makes it, for the instance that it belongs to; a file that belongs to none yet is its from now on. Takes
    /// over rows of an earlier version, once, and the events that the log may not have.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: not to be read, locked by another process, of another instance, or put back from before the upgrade;
    /// [`StoreError::Damaged`]; [`StoreError::NotWhole`].
    pub fn open(path: &Path, opening: IndexOpening<'_>) -> Result<Self, StoreError> {
        let database = open_or_make(path, CACHE_BYTES, false)?;
        let file = |database| DatabaseFile::new(path, database, CACHE_BYTES);
        guarded(|| Self::over(file, database, &opening))
    }

    fn over(
        file: impl FnOnce(Database) -> DatabaseFile,
        database: Database,
        opening: &IndexOpening<'_>,
    ) -> Result<Self, StoreError> {
        let seals = Seals::new(opening.instance, opening.database_key, Arc::clone(&opening.ambient))?;
        let (seals, sets) = (Arc::new(seals), opening.sets);
        let opening::Prepared { head, events_lost, mut notes, mut accepted } =
            opening::prepare(&database, &seals, opening)?;
        let (mut left, beyond) = events_left(&database, &seals, head.revision)?;
        if events_lost {
            left.clear();
        }
        if beyond > 0 {
            if !opening.accept_loss {
                return Err(StoreError::NotWhole { revision: head.revision });
            }
            accepted = true;
            notes.push(format!(
                "{beyond} events of changes that the index does not have lay in it; that they are not told was accepted"
            ));
        }
        let outbox = Arc::new(Outbox::with(left, head.revision));
        let (file, seen) = (Arc::new(file(database)), Arc::<Seen>::default());
        let writer = Writer {
            file: Arc::clone(&file),
            seals: Arc::clone(&seals),
            sets,
            outbox: Arc::clone(&outbox),
            head,
            seen: Arc::clone(&seen),
            unknown: None,
        };
        let commits = GroupWriter::over(writer, Condition::default())?;
        Ok(Self { file, seals, sets, commits, seen, outbox, notes, accepted, checks_stopped: AtomicBool::default() })
    }

    /// Keeps what was accepted at opening. To be called once the log has told of it, and before anything is served: until then the file is as it
    /// was, and whoever opens it has to accept it anew.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Unavailable`].
    pub async fn keep_accepted(&self) -> Result<(), StoreError> {
        if !self.accepted {
            return Ok(());
        }
        self.commits.write(Job { work: Work::KeepAccepted, place: None }).await.map(drop)
    }

    /// The next change gets a number above this one: others were given already, to changes that this index does not have.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Unavailable`].
    pub async fn raise(&self, to: Revision) -> Result<(), StoreError> {
        self.commits.write(Job { work: Work::Raise(to), place: None }).await.map(drop)
    }

    /// What is there now; while a file that failed is opened anew, nothing is.
    fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        seen(&self.commits, self.file.begin_read())
    }

    /// Takes copies of the rows, for backups.
    #[must_use]
    pub fn copies(&self) -> Copies {
        Copies::of_index(&self.file, &self.seals)
    }

    /// Whether it takes changes.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.commits.condition()
    }

    /// Events of changes on their way to the log, which takes them from here.
    #[must_use]
    pub fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    /// What was accepted at opening that the log is to tell.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The events whose rows are still there; and how many there are of changes behind the newest one: no commit leaves such, they were put there out of
/// a later or another history of this index.
fn events_left(database: &Database, seals: &Seals, newest: Revision) -> Result<(Vec<StoredEvent>, usize), StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let (mut left, mut beyond) = (Vec::new(), 0);
    for entry in transaction.open_table(EVENTS).map_err(failed)?.range(0..).map_err(failed)? {
        let (revision, sealed) = entry.map_err(failed)?;
        if revision.value() > newest.0 {
            beyond += 1;
            continue;
        }
        left.push(seals.open_event(Revision(revision.value()), sealed.value())?);
    }
    Ok((left, beyond))
}

/// A table that is read with a look at each row's MAC.
struct Checked<'a, T> {
    table: &'a T,
    seals: &'a Seals,
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> IndexReader for Checked<'_, T> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(row) = self.table.get(key).map_err(failed)? else { return Ok(None) };
        self.seals.open_again(key, row.value()).map(|content| Some(content.to_vec()))
    }

    fn scan(&self, from: &[u8], prefix: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        for entry in order::from(self.table, from)? {
            let (key, row) = entry.map_err(failed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let content = self.seals.open(key.value(), row.value())?;
            if let ControlFlow::Break(()) = visit(key.value(), content) {
                break;
            }
        }
        Ok(())
    }
}

/// Reads. A damaged page may make the library panic, which is a failure here.
fn guarded<T>(read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // Nothing is changed by a read that is cut short.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(failed("it is damaged, and redb gave up on it")))
}

/// A failure that a reader meets may be the file's: the writer looks.
fn seen<T>(commits: &GroupWriter<Job, writer::Done>, read: Result<T, StoreError>) -> Result<T, StoreError> {
    if matches!(read, Err(StoreError::Failed(_))) {
        commits.look();
    }
    read
}

/// The same, of what it holds.
struct Snapshot<'a> {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
    seals: &'a Seals,
    commits: &'a GroupWriter<Job, writer::Done>,
}

impl Snapshot<'_> {
    fn checked(&self) -> Checked<'_, ReadOnlyTable<&'static [u8], &'static [u8]>> {
        Checked { table: &self.table, seals: self.seals }
    }
}

impl IndexReader for Snapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        seen(self.commits, guarded(|| self.checked().get(key)))
    }

    fn scan(&self, from: &[u8], prefix: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        seen(self.commits, guarded(|| self.checked().scan(from, prefix, visit)))
    }
}

#[async_trait]
impl Index for EmbeddedIndex {
    /// Reads on the caller's thread: a page that is not cached costs one `pread`.
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError> {
        let transaction = self.begin_read()?;
        let table = seen(&self.commits, guarded(|| transaction.open_table(ROWS).map_err(failed)))?;
        Ok(Box::new(Snapshot { table, seals: &self.seals, commits: &self.commits }))
    }

    async fn commit(&self, decide: IndexDecision) -> Result<Revision, StoreError> {
        let place = Some(self.outbox.reserve()?);
        self.commits.write(Job { work: Work::Decide(decide), place }).await.map(|done| done.revision)
    }

    async fn keep(&self, decide: IndexDecision) -> Result<(), StoreError> {
        self.commits.write(Job { work: Work::Decide(decide), place: None }).await.map(drop)
    }

    fn sets(&self) -> Result<SetNames, StoreError> {
        let transaction = self.begin_read()?;
        seen(&self.commits, guarded(|| sets::names(&transaction, &self.seals, self.sets)))
    }

    fn check_order(&self) -> Result<bool, StoreError> {
        let file = self.seen.file();
        let transaction = self.begin_read()?;
        let checked = || {
            order::visit_all(&transaction.open_table(ROWS).map_err(failed)?, |_, _| {
                if self.checks_stopped.load(Ordering::Relaxed) { Err(sets::was_stopped()) } else { Ok(()) }
            })
        };
        match seen(&self.commits, guarded(checked)) {
            Ok(()) => self.seen.in_order(file),
            Err(StoreError::Disordered) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn check(&self, set: &[u8]) -> Result<SetCheck, StoreError> {
        let file = self.seen.file();
        let transaction = self.begin_read()?;
        let checked = || {
            let (rows, kept) =
                (transaction.open_table(ROWS).map_err(failed)?, transaction.open_table(SETS).map_err(failed)?);
            sets::check_until(&self.checks_stopped, &rows, &kept, &self.seals, self.sets, set)
        };
        let check = seen(&self.commits, guarded(checked))?.check;
        if check.whole {
            self.seen.whole(file, set);
        }
        Ok(check)
    }

    fn stop_checks(&self) {
        self.checks_stopped.store(true, Ordering::Relaxed);
    }

    async fn accept(&self, set: Vec<u8>, told: AcceptTold) -> Result<SetCheck, StoreError> {
        let place = Some(self.outbox.reserve()?);
        let done = self.commits.write(Job { work: Work::Accept(set, told), place }).await?;
        done.accepted.ok_or_else(|| failed("nothing was accepted"))
    }
}

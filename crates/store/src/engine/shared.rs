//! A small engine that several processes of one machine share (`docs/formats/shared-rows.md`).
//!
//! All rows lie in one file, which each commit writes anew and puts in the place of the old one, under a lock. That is slow,
//! and right for hundreds of rows that change a few times a day: policies, credentials, kill switches. The whole file is
//! authenticated: who has no key can bring back a state that once was, and nothing else. What brings one back is found out
//! by what is known here of newer ones: [`SharedEngine::expect`].

mod format;
mod lock;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
pub use format::StateId;
use format::{FileKey, State, Unreadable, decode_v1};
use holdfast_core::{PartitionId, Revision, StoreError};
use holdfast_crypto::{CryptoError, SecretBytes};
use lock::{FoundTaken, RowsLock};

use super::{Batch, Engine, Row, RowName, RowVisitor, Rows, apply};
use crate::{condition::Condition, files::open_regular};

/// Largest file read or written.
const BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest wait for one's turn among the commits of this process: each syncs a file.
const TURN_WAIT_MAX: Duration = Duration::from_secs(30);
/// For people.
const ENGINE: &str = "shared-rows";
/// A row whose version is the revision. No record is of kind 0.
const REVISION: RowName = [0; 33];

fn revision_in(rows: &Rows) -> Revision {
    Revision(rows.get(&REVISION).map_or(0, |(revision, _)| *revision))
}

/// Rows in one file, shared by processes.
#[derive(Clone)]
pub struct SharedEngine(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    key: FileKey,
    holder: String,
    newest: Mutex<Newest>,
    condition: Condition,
    /// Held by the commit of this process whose turn it is.
    turn: Arc<tokio::sync::Mutex<()>>,
    taken: FoundTaken,
    #[cfg(test)]
    faults: Mutex<tests::Faults>,
}

/// The newest state that is known of.
#[derive(Clone)]
struct Newest {
    id: StateId,
    /// Whether the tag is known, too, and not the number alone.
    tag_known: bool,
    /// Who knows of it; for people.
    witness: String,
    /// The next commit's number is above this.
    above: u64,
}

/// Tells one state of a file from another, cheaply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileStamp(u64, u64, i64, i64);

/// Which state the bytes of a file are, if the instance wrote them at that place: for copies.
///
/// # Errors
/// [`StoreError::Damaged`]; [`StoreError::Failed`] on a key of another length.
pub fn state_of(
    bytes: &[u8],
    database_key: &SecretBytes,
    instance: PartitionId,
    place: &str,
) -> Result<StateId, StoreError> {
    let key = FileKey::new(database_key, instance, place).map_err(|error| StoreError::Failed(error.to_string()))?;
    key.decode(bytes).map(|state| state.id).map_err(|_| StoreError::Damaged)
}

impl FileStamp {
    /// Of the file at `path`; `None` if there is none. By the time of the inode's change, which cannot be set by hand.
    ///
    /// # Errors
    /// Whatever else than that it is not there.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(data) => Ok(Some(Self(data.ino(), data.size(), data.ctime(), data.ctime_nsec()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Points in a commit, where tests let it fail or crash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Locked,
    Created,
    Written,
    Synced,
    Renamed,
}

impl SharedEngine {
    /// Uses `directory`, which exists. `place` says which of the instance's files of this kind it is; `holder` is the name
    /// of this process for people.
    ///
    /// # Errors
    /// [`CryptoError`] if the database key is not one.
    pub fn new(
        directory: &Path,
        database_key: &SecretBytes,
        instance: PartitionId,
        place: &str,
        holder: &str,
    ) -> Result<Self, CryptoError> {
        Ok(Self(Arc::new(Inner {
            directory: directory.into(),
            key: FileKey::new(database_key, instance, place)?,
            holder: holder.to_owned(),
            newest: Mutex::new(Newest { id: StateId::default(), tag_known: false, witness: "nobody".into(), above: 0 }),
            condition: Condition::default(),
            turn: Arc::default(),
            taken: FoundTaken::default(),
            #[cfg(test)]
            faults: Mutex::default(),
        })))
    }

    fn file(&self) -> PathBuf {
        self.0.directory.join("rows.shared")
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which state the file is in. Two equal stamps mean that nothing was committed between, or a moment ago.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn stamp(&self) -> Result<Option<FileStamp>, StoreError> {
        FileStamp::of(&self.file()).map_err(|error| failed(&error))
    }

    /// The state that lies there.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if it is older than one that is known of; [`StoreError::Damaged`].
    pub fn state(&self) -> Result<StateId, StoreError> {
        Ok(self.load()?.id)
    }

    /// How many commits there have been.
    ///
    /// # Errors
    /// As [`SharedEngine::state`].
    pub fn generation(&self) -> Result<u64, StoreError> {
        Ok(self.state()?.generation)
    }

    /// What somebody else knows: nothing older is taken any more, here. `tag`, where it is known, tells two states of one
    /// number apart.
    pub fn expect(&self, generation: u64, tag: Option<[u8; 32]>, witness: &str) {
        let mut newest = self.newest();
        if generation > newest.id.generation {
            let id = StateId { generation, tag: tag.unwrap_or_default() };
            *newest = Newest { id, tag_known: tag.is_some(), witness: witness.to_owned(), above: newest.above };
        }
    }

    /// Takes the state that lies there, however old: operators have accepted it. The next commit is newer than all that is
    /// known of.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another state than `accepted` lies there; [`StoreError::Damaged`].
    pub fn accept(&self, accepted: &StateId) -> Result<(), StoreError> {
        if self.read_file()?.id != *accepted {
            return Err(StoreError::Conflict);
        }
        let mut newest = self.newest();
        let above = newest.above.max(newest.id.generation);
        *newest = Newest { id: *accepted, tag_known: true, witness: "this process".into(), above };
        Ok(())
    }

    /// What lies there, without a look at what is known of newer ones: for those who say what is wrong.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`].
    pub fn found(&self) -> Result<StateId, StoreError> {
        Ok(self.read_file()?.id)
    }

    /// Writes a file of version 1 anew, as version 2. True if there was one. Only before version 2 is in force: a file of
    /// version 1 proves nothing.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Damaged`].
    pub fn upgrade(&self) -> Result<bool, StoreError> {
        let _lock = self.lock()?;
        let Some(bytes) = self.read_bytes()? else { return Ok(false) };
        let Some((generation, rows)) = decode_v1(&bytes) else { return Ok(false) };
        let (bytes, id) = self.0.key.encode(generation + 1, &rows);
        self.replace(&bytes)?;
        self.saw(id);
        Ok(true)
    }

    fn lock(&self) -> Result<RowsLock, StoreError> {
        let lock = RowsLock::take(&self.0.directory.join("rows.lock"), &self.0.holder, &self.0.taken)?;
        self.step(Step::Locked).map_err(|error| failed(&error))?;
        Ok(lock)
    }

    fn read_bytes(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match open_regular(OpenOptions::new().read(true), &self.file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| failed(&error))?,
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        Ok(Some(bytes))
    }

    fn read_file(&self) -> Result<State, StoreError> {
        let Some(bytes) = self.read_bytes()? else {
            return Ok(State { id: StateId::default(), rows: Rows::new() });
        };
        self.0.key.decode(&bytes).map_err(|why| match why {
            Unreadable::Damaged => StoreError::Damaged,
            Unreadable::Version1 => StoreError::Failed(format!(
                "{} is of version 1, which nothing protects: it is read once, at the upgrade, and never again",
                self.file().display()
            )),
        })
    }

    fn load(&self) -> Result<State, StoreError> {
        // Before the file is opened: what is known by now was in its place by now.
        let known = self.newest().clone();
        let state = self.read_file()?;
        known.admits(&state.id)?;
        self.saw(state.id);
        Ok(state)
    }

    fn saw(&self, id: StateId) {
        let mut newest = self.newest();
        if id.generation > newest.id.generation || (id.generation == newest.id.generation && !newest.tag_known) {
            let above = newest.above;
            *newest = Newest { id, tag_known: true, witness: "this process".into(), above };
        }
    }

    /// Why it takes no changes, while it takes none.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.0.condition.fault()
    }

    /// After a commit that failed: sees whether one would succeed now, and says so with the condition.
    ///
    /// # Errors
    /// Why it would not.
    pub fn look(&self) -> Result<(), StoreError> {
        self.noted(self.try_out())
    }

    /// Writes what lies there once more, as a commit would: it may fail where the new file takes the place of the old one.
    fn try_out(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let id = self.load()?.id;
        if id.generation > 0 {
            // The same state under another nonce is another one: what is written is what was read, if it is still there.
            let Some(bytes) = self.read_bytes()?.filter(|bytes| self.0.key.decode(bytes).is_ok_and(|now| now.id == id))
            else {
                return Err(StoreError::Unavailable("the file was changed a moment ago".into()));
            };
            return self.replace(&bytes);
        }
        let temporary = self.temporary();
        let written = self.write_new(&temporary, &[]);
        let removed = fs::remove_file(&temporary);
        written.and(removed).map_err(|error| failed(&error))
    }

    /// What became of a commit says whether the file takes changes.
    fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        match &done {
            Ok(_) | Err(StoreError::Conflict | StoreError::Overtaken) => self.0.condition.well(ENGINE),
            Err(StoreError::Failed(why) | StoreError::Unavailable(why)) => self.0.condition.ill(ENGINE, why),
            Err(
                error @ (StoreError::Damaged
                | StoreError::Disordered
                | StoreError::Forged { .. }
                | StoreError::Gone { .. }),
            ) => self.0.condition.ill(ENGINE, &error.to_string()),
            Err(StoreError::Busy | StoreError::NotWhole { .. } | StoreError::Unrecorded { .. }) => {}
        }
        done
    }

    fn store(&self, mut batch: Batch) -> Result<Revision, StoreError> {
        let _lock = self.lock()?;
        let State { id, mut rows } = self.load()?;
        let before = revision_in(&rows);
        let revision = apply(&mut rows, &mut batch, before, None)?;
        if revision != before {
            rows.insert(REVISION, (revision.0, Vec::new()));
        }
        let generation = id.generation.max(self.newest().above).checked_add(1);
        let generation = generation.ok_or_else(|| StoreError::Failed("no generation is left for a commit".into()))?;
        let (bytes, id) = self.0.key.encode(generation, &rows);
        if bytes.len() as u64 > BYTES_MAX {
            return Err(StoreError::Failed("the shared state is full".into()));
        }
        self.replace(&bytes)?;
        self.saw(id);
        (batch.applied)(revision);
        Ok(revision)
    }

    fn temporary(&self) -> PathBuf {
        self.0.directory.join("rows.new")
    }

    /// Up to the change of names nothing has happened; behind it, it is there, though it may not last.
    fn replace(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.temporary();
        let renamed = self.write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, self.file()));
        if let Err(error) = renamed {
            // It takes room that a full disk may need, and is not to be found by anybody.
            let _ = fs::remove_file(&temporary);
            return Err(StoreError::Unavailable(error.to_string()));
        }
        let synced = || File::open(&self.0.directory)?.sync_all();
        self.step(Step::Renamed).and_then(|()| synced()).map_err(|error| failed(&error))
    }

    fn write_new(&self, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
        // Left by a crash: never complete, never in use; we hold the lock.
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        self.step(Step::Created)?;
        file.write_all(bytes)?;
        self.step(Step::Written)?;
        file.sync_all()?;
        self.step(Step::Synced)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests fail here")]
    fn step(&self, _: Step) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self, step: Step) -> io::Result<()> {
        self.0.faults.lock().unwrap_or_else(PoisonError::into_inner).at(step)
    }
}

impl Newest {
    fn admits(&self, found: &StateId) -> Result<(), StoreError> {
        let Self { id: known, witness, .. } = self;
        let older = found.generation < known.generation;
        let other = found.generation == known.generation && self.tag_known && found.tag != known.tag;
        if !older && !other {
            return Ok(());
        }
        let what = if other { "ANOTHER STATE OF THE SAME NUMBER" } else { "AN OLDER STATE" };
        Err(StoreError::Failed(format!(
            "{what} WAS PUT IN THE PLACE OF THE SHARED STATE: rows.shared is at generation {}, and {witness} has seen {}. \
             Nothing is served under it. If it was restored on purpose, operators say so with: holdfast xks accept-restore",
            found.generation, known.generation
        )))
    }
}

fn failed(error: &io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

#[async_trait]
impl Engine for SharedEngine {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        let mut rows = self.load()?.rows;
        Ok(rows.remove(name).map(|(version, sealed)| Row { name: *name, version, sealed }))
    }

    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        let of_kind = self.load()?.rows.into_iter().filter(|(name, _)| name[0] == kind);
        of_kind.map(|(name, (version, sealed))| Row { name, version, sealed }).try_for_each(visit)
    }

    async fn scan_all(&self, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        self.load()?.rows.iter().for_each(|(name, (version, sealed))| visit(name, *version, sealed));
        Ok(())
    }

    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        Ok(None)
    }

    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        // In the order in which they came: of those who look for the file's lock again and again, one might never find it free.
        let turn = tokio::time::timeout(TURN_WAIT_MAX, Arc::clone(&self.0.turn).lock_owned()).await;
        let turn = turn.map_err(|_| StoreError::Busy)?;
        let engine = self.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            engine.noted(engine.store(batch))
        });
        let stored = stored.await;
        stored.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(revision_in(&self.load()?.rows))
    }

    fn condition(&self) -> Condition {
        self.0.condition.clone()
    }
}

//! redb files: made whole or not at all, not written where the disk has no room, and opened anew after a failure.
//!
//! redb takes no commit more, and reads nothing more from the file, once a write, a sync or a read has failed. Whether the commit that failed is
//! there is not known then: the kernel may show what never came to the disk. So the file is synced, what the kernel keeps of it is dropped, and it
//! is opened and read anew.

#[cfg(test)]
pub(crate) mod faulty;

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use holdfast_core::StoreError;
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageBackend, StorageError,
    WriteTransaction, backends::FileBackend,
};
use rustix::fs::Advice;

use crate::{files::open_regular, group::failed};

/// Below so many free bytes of its disk a database takes no commit: one that fails half-way has to be mended.
/// On a small disk it is less, see [`has_room`].
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Opens the file at `path`, or makes it. redb does not open a file whose making a crash cut short: so a new one is made beside its place, and
/// takes it when it is whole. `checked`: with the sums of all its pages; a file that is not, or that was made to have the right ones, may make redb
/// panic, which is an error here, too.
pub(crate) fn open_or_make(path: &Path, cache_bytes: usize, checked: bool) -> Result<Database, StoreError> {
    let open = |path: &Path| {
        opened(path, || {
            open(path, cache_bytes, checked, OpenOptions::new().read(true).write(true).create(true).truncate(false))
        })
    };
    if !path.exists() {
        let new = beside(path);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        drop(open(&new)?);
        fs::rename(&new, path).map_err(failed)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
    }
    open(path)
}

/// What a damaged file often is, and what helps.
const COPIED: &str = "a copy that was made while a service wrote to the file is, too: take a backup instead (`holdfast backup` while the service \
                      runs), and put this one back with `holdfast restore`, or copy the directory again while its service is stopped";

/// Says what happened, in our words where redb's lead astray.
fn not_opened(path: &Path, error: &DatabaseError) -> StoreError {
    let path = path.display();
    failed(match error {
        DatabaseError::DatabaseAlreadyOpen => format!("{path}: another process has it open"),
        DatabaseError::Storage(StorageError::Corrupted(what)) => format!("{path}: it is damaged ({what}); {COPIED}"),
        error => format!("{path}: {error}"),
    })
}

/// Opens a file, or says why it does not open. One that is damaged may make redb panic.
fn opened(path: &Path, open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Database, StoreError> {
    // Nothing but the file is touched by what is cut short: it is closed, and opened anew by nobody.
    panic::catch_unwind(AssertUnwindSafe(open))
        .map_err(|_| failed(format!("{}: it is damaged, and redb gave up on it; {COPIED}", path.display())))?
        .map_err(|error| not_opened(path, &error))
}

/// Opens a file that must be there, and is not made.
pub(crate) fn open_there(path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    opened(path, || not_new(path, cache_bytes, false))
}

fn not_new(path: &Path, cache_bytes: usize, checked: bool) -> Result<Database, DatabaseError> {
    let file = open_regular(OpenOptions::new().read(true).write(true), path)?;
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes).set_check_integrity_on_open(checked);
    builder.create_with_backend(NotNew(FileBackend::new(file)?))
}

pub(crate) fn open(
    path: &Path,
    cache_bytes: usize,
    checked: bool,
    options: &mut OpenOptions,
) -> Result<Database, DatabaseError> {
    let file = open_regular(options, path)?;
    Builder::new()
        .set_cache_size(cache_bytes)
        .set_check_integrity_on_open(checked)
        .create_with_backend(FileBackend::new(file)?)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

/// Whether a commit will fit on the disk of `directory`. A disk that cannot be asked is taken to have room.
pub(crate) fn has_room(directory: &Path) -> bool {
    let Ok(disk) = rustix::fs::statvfs(directory) else { return true };
    let (free, all) = (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize));
    free >= (all / 64).min(ROOM_BYTES_MIN)
}

/// How a file is opened anew; tests open one that fails.
pub(crate) type Opener = Box<dyn Fn(&Path) -> Result<Database, StoreError> + Send + Sync>;

/// An open file, and how to open it anew.
pub(crate) struct DatabaseFile {
    path: PathBuf,
    directory: PathBuf,
    opener: Opener,
    /// `None`: it was closed, and what lies there was not taken.
    database: RwLock<Option<Database>>,
}

impl DatabaseFile {
    pub(crate) fn new(path: &Path, database: Database, cache_bytes: usize) -> Self {
        // One that is not there is not made: it was, a moment ago.
        let opener = move |path: &Path| not_new(path, cache_bytes, true).map_err(failed);
        Self::with(path, database, Box::new(opener))
    }

    pub(crate) fn with(path: &Path, database: Database, opener: Opener) -> Self {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).into();
        Self { path: path.into(), directory, opener, database: RwLock::new(Some(database)) }
    }

    fn opened<T, E: std::fmt::Display>(&self, begin: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| failed("it failed, and could not be opened again yet"))?;
        begin(database).map_err(failed)
    }

    /// A snapshot. It fails if the file is opened anew meanwhile.
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        self.opened(Database::begin_read)
    }

    pub(crate) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        self.opened(Database::begin_write)
    }

    pub(crate) fn has_room(&self) -> bool {
        has_room(&self.directory)
    }

    /// Whether commits are possible, as far as the library knows: it does not forget a failure.
    pub(crate) fn look(&self) -> Result<(), StoreError> {
        self.begin_write()?.abort().map_err(failed)
    }

    /// Closes the file and opens it anew; what lies there is taken if `judge` says so.
    pub(crate) fn reopen<T>(&self, judge: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Before the old one is closed: while this fails, what it has in memory can still be read.
        settle(&self.path).map_err(failed)?;
        self.close();
        let before = inode(&self.path)?;
        let database = (self.opener)(&self.path)?;
        let judged = judge(&database)?;
        // One that lies there no more would be written to in vain.
        if inode(&self.path)? != before {
            return Err(failed("another file was put in its place while it was opened"));
        }
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
        Ok(judged)
    }

    /// redb writes when it closes a file. What it gives up on then is found when the file is opened.
    fn close(&self) {
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        if panic::catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::error!(path = %self.path.display(), "the file could not be closed in order: it is damaged");
        }
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        self.close();
    }
}

/// Which file lies at `path`.
fn inode(path: &Path) -> Result<(u64, u64), StoreError> {
    let data = fs::metadata(path).map_err(failed)?;
    Ok((data.dev(), data.ino()))
}

/// A file that redb does not begin anew if it is empty: somebody may be about to put the right one in its place.
#[derive(Debug)]
struct NotNew<B>(B);

impl<B: StorageBackend> StorageBackend for NotNew<B> {
    fn len(&self) -> io::Result<u64> {
        match self.0.len()? {
            0 => Err(io::Error::other("the file is empty")),
            bytes => Ok(bytes),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// What is read from now on is what the disk has: pages whose write failed are marked clean by some kernels, and shown as if they were there.
fn settle(path: &Path) -> io::Result<()> {
    let file = open_regular(OpenOptions::new().read(true).write(true), path)?;
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_making_that_was_cut_short_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records.redb");
        // What redb leaves if it is killed before its header is there.
        fs::write(beside(&path), vec![0; 4096]).unwrap();
        drop(open_or_make(&path, 1 << 20, true).unwrap());
        assert!(path.exists() && !beside(&path).exists());
        drop(open_or_make(&path, 1 << 20, true).unwrap());
    }

    /// The one that was judged is gone by then: what is written to it would be gone, too.
    #[test]
    fn a_file_that_is_replaced_while_it_is_judged_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records.redb");
        let file = DatabaseFile::new(&path, open_or_make(&path, 1 << 20, true).unwrap(), 1 << 20);
        let replaced = file.reopen(|_| {
            let other = path.with_extension("other");
            fs::copy(&path, &other).unwrap();
            fs::rename(&other, &path).unwrap();
            Ok(())
        });
        assert!(replaced.is_err() && file.begin_read().is_err());
        file.reopen(|_| Ok(())).unwrap();
    }

    /// Whoever puts a file back empties it first: it is not begun anew under him.
    #[test]
    fn a_file_that_was_emptied_is_not_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records.redb");
        let file = DatabaseFile::new(&path, open_or_make(&path, 1 << 20, true).unwrap(), 1 << 20);
        let good = fs::read(&path).unwrap();
        fs::write(&path, b"").unwrap();
        assert!(file.reopen(|_| Ok(())).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::write(&path, good).unwrap();
        file.reopen(|_| Ok(())).unwrap();
    }
}

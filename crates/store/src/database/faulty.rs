//! A disk that fails when a test says so, and forgets what was not synced.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use holdfast_core::StoreError;
use redb::{Builder, Database, StorageBackend};

use super::{DatabaseFile, Opener};
use crate::group::failed;

/// What of the unsynced writes is on the disk when a sync fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    Nothing,
    EverySecond,
    All,
}

#[derive(Debug)]
struct State {
    /// Calls that change something, until one fails.
    changes_left: Option<u64>,
    /// Whether only that one fails.
    once: bool,
    reads_fail: bool,
    broken: bool,
    kept: Kept,
    errno: i32,
    failures: u64,
    /// Syncs that may end; `None`: all.
    syncs_left: Option<u64>,
    /// Whether a sync waits for leave to end.
    sync_waits: bool,
    /// As a lock on the file would say.
    open: bool,
}

/// The switches of a disk.
#[derive(Clone, Debug)]
pub(crate) struct Faults(Arc<(Mutex<State>, Condvar)>);

impl Default for Faults {
    fn default() -> Self {
        let state = State {
            changes_left: None,
            once: false,
            reads_fail: false,
            broken: false,
            kept: Kept::Nothing,
            errno: 5,
            failures: 0,
            syncs_left: None,
            sync_waits: false,
            open: false,
        };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// A slow disk: so many syncs end from now on, and others wait; `None`: all end.
    pub(crate) fn end_syncs(&self, count: Option<u64>) {
        let mut state = self.state();
        // Said here, and not by the sync when it wakes: whoever asks next must not take it for one that waits still.
        (state.syncs_left, state.sync_waits) = (count, state.sync_waits && count == Some(0));
        self.0.1.notify_all();
    }

    /// Whether a sync waits for leave to end.
    pub(crate) fn sync_waits(&self) -> bool {
        self.state().sync_waits
    }

    fn wait_for_leave(&self) {
        let mut state = self.state();
        while state.syncs_left == Some(0) {
            state.sync_waits = true;
            state = self.0.1.wait(state).unwrap();
        }
        state.syncs_left = state.syncs_left.map(|left| left - 1);
    }

    /// The call after so many others that change something fails, and all after it, or it alone.
    pub(crate) fn fail_after(&self, changes: u64, once: bool, kept: Kept) {
        let mut state = self.state();
        (state.changes_left, state.once, state.kept) = (Some(changes), once, kept);
    }

    pub(crate) fn fail_reads(&self) {
        self.state().reads_fail = true;
    }

    pub(crate) fn errno(&self, errno: i32) {
        self.state().errno = errno;
    }

    /// The disk works again; gives how often it failed.
    pub(crate) fn mend(&self) -> u64 {
        let mut state = self.state();
        (state.changes_left, state.reads_fail, state.broken) = (None, false, false);
        std::mem::take(&mut state.failures)
    }

    fn change(&self) -> io::Result<()> {
        let mut state = self.state();
        let due = state.changes_left == Some(0);
        if due {
            state.changes_left = None;
            state.broken = !state.once;
        } else if let Some(left) = &mut state.changes_left {
            *left -= 1;
        }
        if due || state.broken {
            state.failures += 1;
            return Err(io::Error::from_raw_os_error(state.errno));
        }
        Ok(())
    }

    /// Opens files of such a disk; without a cache, so that each read is one.
    pub(crate) fn opener(&self) -> Opener {
        let faults = self.clone();
        Box::new(move |path| {
            if std::mem::replace(&mut faults.state().open, true) {
                return Err(failed("it is open still"));
            }
            let disk = FaultyDisk {
                file: File::options().read(true).write(true).open(path).map_err(failed)?,
                faults: faults.clone(),
                unsynced: Mutex::default(),
            };
            Builder::new().set_cache_size(0).create_with_backend(disk).map_err(failed)
        })
    }

    /// A file of such a disk, which is made.
    pub(crate) fn make(&self, path: &Path) -> Result<(Database, impl FnOnce(Database) -> DatabaseFile), StoreError> {
        if !path.exists() {
            File::create(path).map_err(failed)?;
        }
        let opener = self.opener();
        let database = opener(path)?;
        let path = path.to_owned();
        Ok((database, move |database| DatabaseFile::with(&path, database, opener)))
    }
}

#[derive(Debug)]
enum Unsynced {
    Write(Vec<u8>),
    Length,
}

#[derive(Debug)]
struct FaultyDisk {
    file: File,
    faults: Faults,
    /// What the kernel has, in the order it came, and the disk has not.
    unsynced: Mutex<Vec<(u64, Unsynced)>>,
}

impl FaultyDisk {
    fn write_out(&self, changes: impl Iterator<Item = (u64, Unsynced)>) -> io::Result<()> {
        for (at, change) in changes {
            match change {
                Unsynced::Write(data) => self.file.write_all_at(&data, at)?,
                Unsynced::Length => self.file.set_len(at)?,
            }
        }
        Ok(())
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        let unsynced = self.unsynced.lock().unwrap();
        let mut length = self.file.metadata()?.len();
        for (at, change) in unsynced.iter() {
            match change {
                Unsynced::Write(data) => length = length.max(at + data.len() as u64),
                Unsynced::Length => length = *at,
            }
        }
        Ok(length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.faults.state();
        if state.reads_fail {
            return Err(io::Error::from_raw_os_error(state.errno));
        }
        drop(state);
        let mut read = 0;
        while read < out.len() {
            match self.file.read_at(&mut out[read..], offset + read as u64)? {
                0 => break,
                count => read += count,
            }
        }
        out[read..].fill(0);
        let end = offset + out.len() as u64;
        for (at, change) in self.unsynced.lock().unwrap().iter() {
            let (from, until) = match change {
                Unsynced::Write(data) => (*at, at + data.len() as u64),
                Unsynced::Length => (*at, u64::MAX),
            };
            let (from, until) = (from.max(offset), until.min(end));
            if from < until {
                let place = &mut out[(from - offset) as usize..(until - offset) as usize];
                match change {
                    Unsynced::Write(data) => place.copy_from_slice(&data[(from - at) as usize..(until - at) as usize]),
                    Unsynced::Length => place.fill(0),
                }
            }
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.faults.state().open = false;
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.change()?;
        self.unsynced.lock().unwrap().push((len, Unsynced::Length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.wait_for_leave();
        let synced = self.faults.change();
        let unsynced = std::mem::take(&mut *self.unsynced.lock().unwrap());
        let kept = if synced.is_ok() { Kept::All } else { self.faults.state().kept };
        let reached = unsynced.into_iter().enumerate().filter(|(position, _)| match kept {
            Kept::Nothing => false,
            Kept::EverySecond => position % 2 == 0,
            Kept::All => true,
        });
        self.write_out(reached.map(|(_, change)| change))?;
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.faults.change()?;
        self.unsynced.lock().unwrap().push((offset, Unsynced::Write(data.to_vec())));
        Ok(())
    }
}

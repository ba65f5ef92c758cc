//! The lock that commits take, which nobody waits for without end.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use holdfast_core::StoreError;

use crate::files::open_in_place;

/// Longest wait for another process. A commit takes a few milliseconds; whoever holds the lock longer is stopped, or its disk hangs.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Each waits so long at least: a lock that was taken for long may be changing hands again.
const WAIT_MIN: Duration = Duration::from_millis(250);
/// Two looks within that are of one wait.
const SAME_WAIT: Duration = Duration::from_secs(1);
/// Between two looks.
const WAIT_STEP: Duration = Duration::from_millis(5);
/// The holder's name, padded: always the same bytes of the file, so that no room is needed for it.
const HOLDER_BYTES: usize = 128;

/// Held until it is dropped; by a crash, too, it is let go.
pub(super) struct RowsLock(#[expect(dead_code, reason = "held, not used")] File);

/// Since when the commits of this process have found the lock taken, one after the other, and when one has looked last: they wait for it together
/// as long as one would.
#[derive(Default)]
pub(super) struct FoundTaken(Mutex<Option<(Instant, Instant)>>);

impl FoundTaken {
    fn since(&self) -> Instant {
        let mut found = self.lock();
        let now = Instant::now();
        // Whoever comes later than that finds it taken for the first time.
        let since = found.filter(|(_, last)| now.duration_since(*last) < SAME_WAIT).map_or(now, |(since, _)| since);
        *found = Some((since, now));
        since
    }

    fn over(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RowsLock {
    /// Takes the lock for `holder`.
    pub(super) fn take(path: &Path, holder: &str, taken: &FoundTaken) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = open_in_place(options, path).map_err(failed)?;
        let started = Instant::now();
        let waits = || taken.since().elapsed() < WAIT_MAX || started.elapsed() < WAIT_MIN;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if waits() => thread::sleep(WAIT_STEP),
                Err(TryLockError::WouldBlock) => return Err(held(path, &file)),
            }
        }
        taken.over();
        let mut name = format!("process {:?}, pid {}", holder, std::process::id()).into_bytes();
        name.resize(HOLDER_BYTES, b' ');
        // For people only: a disk that has no room for it must not stop a change.
        let _ = file.write_all_at(&name, 0);
        Ok(Self(file))
    }
}

fn held(path: &Path, file: &File) -> StoreError {
    let mut name = [0; HOLDER_BYTES];
    let read = file.read_at(&mut name, 0).unwrap_or(0);
    let name = String::from_utf8_lossy(&name[..read]);
    let name = if name.trim().is_empty() { "a process that left no name" } else { name.trim() };
    StoreError::Failed(format!(
        "{} has been held for more than {} s by {name}: is it stopped? Let it go on, or end it; nothing was written",
        path.display(),
        WAIT_MAX.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_of_before_is_forgotten_when_nobody_looks_any_more() {
        let long_ago = Instant::now().checked_sub(WAIT_MAX).unwrap();
        let taken = FoundTaken(Mutex::new(Some((long_ago, Instant::now()))));
        assert_eq!(taken.since(), long_ago, "it goes on");
        let taken = FoundTaken(Mutex::new(Some((long_ago, long_ago))));
        assert!(taken.since() > long_ago, "that was another wait");
        taken.over();
        assert!(taken.lock().is_none());
    }
}

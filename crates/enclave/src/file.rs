//! Small secret files: written whole or not at all, readable by their owner only.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, RenameFlags};

/// What is done under a lock takes a moment; whoever holds it longer is stopped.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_WAIT_STEP: Duration = Duration::from_millis(5);

/// Keeps others who lock the same file or directory away until it is dropped. Leaves nothing behind. Whoever may read it may hold up others: it is one
/// that is its owner's alone.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if somebody else has held it for long; what opening it gives.
pub fn lock(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WAIT_MAX => thread::sleep(LOCK_WAIT_STEP),
            Err(TryLockError::WouldBlock) => {
                let why = format!("another process has locked {} for a long time: is it stopped?", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `content` to `path` with mode 0600, durable, if nothing is there: false if something is. Two at once write one.
pub(crate) fn create_private(path: &Path, content: &[u8]) -> io::Result<bool> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_added_extension(format!("new-{}-{number}", std::process::id()));
    write_new(&temporary, content)?;
    // Not every file system has hard links; those without have a way to rename that replaces nothing.
    let made = match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            rustix::fs::renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE).map_err(io::Error::from)
        }
        other => other,
    };
    let _ = fs::remove_file(&temporary);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
        Ok(()) => File::open(directory_of(path))?.sync_all().map(|()| true),
    }
}

/// Writes `content` to `path` with mode 0600, durable, replacing what was there in one step.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_added_extension("new");
    write_new(&temporary, content)?;
    fs::rename(&temporary, path)?;
    File::open(directory_of(path))?.sync_all()
}

/// Writes a file that takes its place later. What a crash has left there was never complete, and is not in use.
fn write_new(temporary: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads a file of at most `bytes_max`, which nobody but its owner may touch. `None` if it does not exist.
pub(crate) fn read_private(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    // A pipe in its place is not waited for.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let why = format!("{} should be a regular file, and is something else: somebody put it there", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    if metadata.mode() & 0o077 != 0 {
        let why = format!("{} is open to group or others; type: chmod 600 {0}", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if metadata.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is too large", path.display())));
    }
    let mut content = Vec::with_capacity(metadata.len() as usize);
    file.take(bytes_max).read_to_end(&mut content)?;
    Ok(Some(content))
}

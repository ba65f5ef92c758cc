//! redb files: made whole or not at all, and not written where the disk has no room.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use holdfast_core::StoreError;
use redb::{Builder, Database, backends::FileBackend};

use crate::{files::open_regular, group::failed};

/// Below so many free bytes of its disk a database takes no commit: one that fails half-way would leave it closed until a restart.
/// On a small disk it is less, see [`has_room`].
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Opens the file at `path`, or makes it. redb does not open a file whose making a crash cut short: so a new one is made beside its place, and
/// takes it when it is whole. `checked`: with the sums of all its pages; a file that is not, or that was made to have the right ones, may make redb
/// panic, which is an error here, too.
pub(crate) fn open_or_make(path: &Path, cache_bytes: usize, checked: bool) -> Result<Database, StoreError> {
    let open = |path: &Path| {
        // Nothing but the file is touched by what is cut short: it is closed, and opened anew by nobody.
        panic::catch_unwind(AssertUnwindSafe(|| open(path, cache_bytes, checked)))
            .map_err(|_| failed(format!("{}: it is damaged, and redb gave up on it", path.display())))?
            .map_err(|error| failed(format!("{}: {error}", path.display())))
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

fn open(path: &Path, cache_bytes: usize, checked: bool) -> Result<Database, redb::DatabaseError> {
    let file = open_regular(OpenOptions::new().read(true).write(true).create(true).truncate(false), path)?;
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
}

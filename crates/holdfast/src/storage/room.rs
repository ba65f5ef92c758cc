//! How much the disks have left.

use std::path::{Path, PathBuf};

use holdfast_storage::{Room, RoomLeft};

/// The reserve, unless somebody says otherwise: this part of the disk...
const RESERVE_PART: u64 = 16;
/// ...and at most so much: 1 GiB.
const RESERVE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The disks that some directories are on.
pub(crate) struct DiskRoom {
    directories: Vec<PathBuf>,
    reserve: Option<u64>,
}

impl DiskRoom {
    /// `reserve`: bytes that new data does not get; by default a sixteenth of the disk, and 1 GiB at most.
    pub(crate) fn new(directories: Vec<PathBuf>, reserve: Option<u64>) -> Self {
        Self { directories, reserve }
    }
}

/// Free and all bytes of the disk that a directory is on.
fn disk(directory: &Path) -> Option<(u64, u64)> {
    // Some file systems do not say.
    let disk = rustix::fs::statvfs(directory).ok().filter(|disk| disk.f_blocks > 0)?;
    Some((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
}

impl Room for DiskRoom {
    /// A disk that cannot be asked is taken to have room: writing will tell.
    fn left(&self) -> RoomLeft {
        let known = self.directories.iter().filter_map(|directory| disk(directory)).map(|(free, all)| RoomLeft {
            free,
            reserve: self.reserve.unwrap_or((all / RESERVE_PART).min(RESERVE_BYTES_MAX)),
        });
        known
            .min_by_key(|left| left.free.saturating_sub(left.reserve))
            .unwrap_or(RoomLeft { free: u64::MAX, reserve: 0 })
    }
}

//! What lies in a data directory is its owner's alone, whatever it was open to when an earlier version made it, or somebody restored it; and so is a
//! file with a secret, or it is not taken.

use std::{
    env,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use holdfast_crypto::SecretBytes;
use rustix::fs::OFlags;

use crate::fault::Fault;

/// Of a proxy: `processes/NAME/audit/SEGMENT`; of `dev` one more.
const DEPTH_MAX: usize = 5;
/// It may hold millions of files: it is closed itself.
const BLOBS: &str = "blobs";
const OTHERS: u32 = 0o077;

/// Takes the rights of group and others from a data directory and from what is in it.
pub(crate) fn close(data_dir: &Path) {
    let mut closed = 0;
    if let Err(error) = close_directory(data_dir, OFlags::empty(), DEPTH_MAX, &mut closed) {
        tracing::warn!(data_dir = %data_dir.display(), %error, "group or others may read in the data directory, and that cannot be changed");
    }
    if closed > 0 {
        tracing::warn!(data_dir = %data_dir.display(), closed, "files and directories were open to group or others, and are not any more");
    }
}

fn close_directory(path: &Path, more: OFlags, depth: usize, closed: &mut u64) -> io::Result<()> {
    let flags = (OFlags::DIRECTORY | more).bits().cast_signed();
    close_opened(&OpenOptions::new().read(true).custom_flags(flags).open(path)?, closed)?;
    let is_blobs = path.file_name().is_some_and(|name| name == BLOBS);
    if depth == 0 || is_blobs {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let (entry, mut done) = (entry?, Ok(()));
        // What is a link leads elsewhere, and what is neither a file nor a directory is nobody's of ours.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            done = close_directory(&entry.path(), OFlags::NOFOLLOW, depth - 1, closed);
        } else if kind.is_file() && entry.metadata().is_ok_and(|data| data.mode() & OTHERS != 0) {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            done = OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(entry.path())
                .and_then(|file| close_opened(&file, closed));
        }
        match done {
            // Somebody else's (`lost+found`), or gone already.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

fn close_opened(file: &File, closed: &mut u64) -> io::Result<()> {
    let mode = file.metadata()?.mode();
    if mode & OTHERS != 0 {
        file.set_permissions(Permissions::from_mode(mode & 0o7777 & !OTHERS))?;
        *closed += 1;
    }
    Ok(())
}

/// More than any secret, or chain of keys, has.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// What is in a file that only its owner may read.
pub(crate) fn read_private(path: &Path) -> Result<SecretBytes, Fault> {
    let failed = |error: io::Error| Fault::file(path, error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let open_to = metadata.mode() & 0o077;
    if metadata.is_file() && open_to != 0 && !is_credential(path, open_to) {
        return Err(Fault::usage(format!("{} is open to group or others; type: chmod 600 {0}", path.display())));
    }
    let mut content = Vec::with_capacity(metadata.len().min(SECRET_FILE_BYTES_MAX) as usize);
    file.take(SECRET_FILE_BYTES_MAX).read_to_end(&mut content).map_err(failed)?;
    Ok(SecretBytes::take(content))
}

/// systemd gives credentials (`LoadCredential=`) to the user of a service by an access list, whose mask stands where the rights of the group do.
fn is_credential(path: &Path, open_to: u32) -> bool {
    let whole = |path: &Path| path.canonicalize().ok();
    let given = env::var_os("CREDENTIALS_DIRECTORY").and_then(|directory| whole(Path::new(&directory)));
    open_to == 0o040 && given.zip(whole(path)).is_some_and(|(given, path)| path.starts_with(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_open_to_others_but_where_links_lead() {
        let place = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (place.path().join("data"), place.path().join("elsewhere"));
        fs::create_dir_all(data.join("audit")).unwrap();
        fs::create_dir_all(data.join("blobs/ab")).unwrap();
        let file = |path: &Path| {
            fs::write(path, b"x").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap();
        };
        for name in ["records.redb", "audit/segment", "blobs/ab/blob"] {
            file(&data.join(name));
        }
        file(&elsewhere);
        std::os::unix::fs::symlink(&elsewhere, data.join("link")).unwrap();
        for name in ["", "audit", "blobs", "blobs/ab"] {
            fs::set_permissions(data.join(name), Permissions::from_mode(0o755)).unwrap();
        }
        close(&data);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        for (name, expected) in [
            ("", 0o700),
            ("audit", 0o700),
            ("audit/segment", 0o600),
            ("records.redb", 0o600),
            ("blobs", 0o700),
            ("blobs/ab/blob", 0o664),
        ] {
            assert_eq!(mode(&data.join(name)), expected, "{name}");
        }
        assert_eq!(mode(&elsewhere), 0o664);
    }
}

//! Files that are their owner's alone: what a service has made in its data directory is closed to group and others, whatever it was open to when an
//! earlier version made it, or somebody restored it. A file with a secret is not taken if others can write to it, and told of if they can read it.

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

/// What a service makes in its directory, besides directories of those names; nothing else is touched: it may be anybody's.
const FILES: [&str; 14] = [
    "admin.sock",
    "admin-socket.path",
    "ca.pem",
    "instance.sealed",
    "index.redb",
    "kills.slots",
    "mark.slots",
    "open.lock",
    "records.redb",
    "restore.note",
    "rows.lock",
    "rows.shared",
    "tls.csr",
    "watermark.slots",
];
const DIRECTORIES: [&str; 3] = ["audit", BLOBS, "processes"];

/// Takes the rights of group and others from a data directory and from what a service has made in it. For one that is the directory of
/// an instance, and no other.
pub(crate) fn close(data_dir: &Path) {
    let (mut closed, mut failed) = (0, Vec::new());
    close_directory(data_dir, OFlags::empty(), Names::Ours, DEPTH_MAX, &mut closed, &mut failed);
    if !failed.is_empty() {
        failed.truncate(NAMED_MAX);
        tracing::warn!(data_dir = %data_dir.display(), ?failed, "group or others may read there, and that cannot be changed");
    }
    if closed > 0 {
        tracing::warn!(
            data_dir = %data_dir.display(), closed,
            "files and directories were open to group or others, and are not any more; whoever reads ca.pem there needs a copy of it elsewhere"
        );
    }
}

/// Failures that the log names.
const NAMED_MAX: usize = 8;

/// Of which names the entries of a directory are closed.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Names {
    All,
    Ours,
}

fn close_directory(path: &Path, more: OFlags, names: Names, depth: usize, closed: &mut u64, failed: &mut Vec<String>) {
    let flags = (OFlags::DIRECTORY | more).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    note(path, opened.and_then(|file| close_opened(&file, closed)), failed);
    let is_blobs = path.file_name().is_some_and(|name| name == BLOBS);
    let Some(entries) = (depth > 0 && !is_blobs).then(|| fs::read_dir(path).ok()).flatten() else { return };
    for entry in entries.flatten() {
        // What is a link leads elsewhere, and what is neither a file nor a directory is nobody's of ours.
        let Ok(kind) = entry.file_type() else { continue };
        let is_ours = |ours: &[&str]| names == Names::All || ours.iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && is_ours(&DIRECTORIES) {
            close_directory(&entry.path(), OFlags::NOFOLLOW, Names::All, depth - 1, closed, failed);
        } else if kind.is_file() && is_ours(&FILES) && entry.metadata().is_ok_and(|data| data.mode() & OTHERS != 0) {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let opened = OpenOptions::new().read(true).custom_flags(flags).open(entry.path());
            note(&entry.path(), opened.and_then(|file| close_opened(&file, closed)), failed);
        }
    }
}

fn note(path: &Path, done: io::Result<()>, failed: &mut Vec<String>) {
    // Gone already is closed enough.
    if let Err(error) = done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
    {
        failed.push(format!("{}: {error}", path.display()));
    }
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

/// What is in a file with a secret. One that others can write to is not taken: it may be theirs. One that others can read is told of.
pub(crate) fn read_private(path: &Path) -> Result<SecretBytes, Fault> {
    let failed = |error: io::Error| Fault::file(path, error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let open_to = metadata.mode() & 0o077;
    if metadata.is_file() && open_to != 0 && !is_credential(path, open_to) && others_reach(path) {
        if open_to & 0o022 != 0 {
            return Err(Fault::usage(format!("group or others can write to {}; type: chmod go-w {0}", path.display())));
        }
        tracing::warn!(path = %path.display(), "group or others can read this secret; type: chmod 600 {}", path.display());
    }
    // With room for one byte more, by which a file that is too long shows: a buffer that grows leaves copies of the secret.
    let mut content = Vec::with_capacity(metadata.len().min(SECRET_FILE_BYTES_MAX) as usize + 1);
    file.take(SECRET_FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    let content = SecretBytes::take(content);
    if content.len() as u64 > SECRET_FILE_BYTES_MAX {
        return Err(failed(io::Error::other("a secret has at most 64 KiB")));
    }
    Ok(content)
}

/// Whether group or others may pass all directories above a file.
fn others_reach(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return true };
    let lets_in = |directory: &Path| fs::metadata(directory).map_or(true, |data| data.mode() & 0o011 != 0);
    path.ancestors().skip(1).all(lets_in)
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
        for name in ["records.redb", "audit/segment", "blobs/ab/blob", "notes.txt"] {
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
            ("notes.txt", 0o664),
        ] {
            assert_eq!(mode(&data.join(name)), expected, "{name}");
        }
        assert_eq!(mode(&elsewhere), 0o664);
    }

    #[test]
    fn a_secret_is_read_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("secret");
        for (more, taken) in [(0, true), (1, false)] {
            fs::write(&file, vec![b'x'; SECRET_FILE_BYTES_MAX as usize + more]).unwrap();
            assert_eq!(read_private(&file).is_ok_and(|secret| secret.len() as u64 == SECRET_FILE_BYTES_MAX), taken);
        }
    }

    #[test]
    fn a_secret_that_others_can_write_is_not_taken_where_they_can_reach_it() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("secret");
        fs::write(&file, b"x").unwrap();
        let (mode, directory) = (
            |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap(),
            |mode| fs::set_permissions(place.path(), Permissions::from_mode(mode)).unwrap(),
        );
        for (of_file, of_directory, taken) in [
            (0o600, 0o755, true),
            (0o644, 0o755, true),
            (0o622, 0o700, true),
            (0o622, 0o755, false),
            (0o660, 0o750, false),
        ] {
            mode(of_file);
            directory(of_directory);
            assert_eq!(read_private(&file).is_ok(), taken, "{of_file:o} in {of_directory:o}");
        }
    }
}

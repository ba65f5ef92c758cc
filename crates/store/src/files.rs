//! Opening of state files: regular files, and nothing else that somebody may have put in their place.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// Opens `path` as `options` say, if it is (or becomes) a regular file. A pipe is not waited for, and a device not written to.
///
/// # Errors
/// As [`OpenOptions::open`]; [`io::ErrorKind::InvalidInput`], which names the file, if it is something else. Do not let `options` cut the file: that
/// happens before it is looked at.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open(options, path, OFlags::empty())
}

/// The same for a file that is cut, or written to in its place: it is in its directory, and no link leads elsewhere. Whoever may write to a directory
/// of ours would have any other file of ours destroyed by one.
///
/// # Errors
/// As [`open_regular`].
pub fn open_in_place(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open(options, path, OFlags::NOFOLLOW)
}

fn open(options: &mut OpenOptions, path: &Path, more: OFlags) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | more).bits().cast_signed();
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => {
            // A pipe without a reader, a socket, a directory, a link: the system's words name none of them.
            let data = if more.contains(OFlags::NOFOLLOW) { path.symlink_metadata() } else { path.metadata() };
            return Err(data.ok().and_then(|data| not_regular(path, &data)).unwrap_or(error));
        }
    };
    match not_regular(path, &file.metadata()?) {
        None => Ok(file),
        Some(error) => Err(error),
    }
}

/// Reads a regular file whole, up to `bytes_max` bytes.
///
/// # Errors
/// As [`open_regular`]; [`io::ErrorKind::FileTooLarge`].
pub fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(OpenOptions::new().read(true), path)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, bytes_max + 1), &mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{} is too large", path.display())));
    }
    Ok(bytes)
}

/// Puts a file with `content` in the place of the regular file at `path`, or makes it. Whatever else has that file under another name keeps what it
/// was.
///
/// # Errors
/// As [`open_regular`].
pub fn write_regular(path: &Path, content: &[u8]) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => {
            if let Some(error) = not_regular(path, &found?) {
                return Err(error);
            }
            // On a full disk, too, what is there already need not be written.
            if read_regular(path, content.len() as u64).is_ok_and(|there| there == content) {
                return Ok(());
            }
        }
    }
    // Of its own: two processes may do this at once.
    let moment = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}-{moment}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    let made = io::Write::write_all(&mut file, content).and_then(|()| std::fs::rename(&new, path));
    if made.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    made
}

fn not_regular(path: &Path, data: &std::fs::Metadata) -> Option<io::Error> {
    let kind = data.file_type();
    if kind.is_file() {
        return None;
    }
    let what = match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    let why = format!("{} is {what}, and should be a regular file: somebody put it there", path.display());
    Some(io::Error::new(io::ErrorKind::InvalidInput, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_named_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let fifo = path("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        for (path, what) in [
            (fifo, "a pipe"),
            (path("socket"), "a socket"),
            (path("directory"), "a directory"),
            ("/dev/null".into(), "a device"),
        ] {
            let told = format!("{} is {what}", path.display());
            let outcomes = [
                open_regular(OpenOptions::new().read(true), &path).map(drop),
                open_regular(OpenOptions::new().write(true).create(true), &path).map(drop),
                open_regular(OpenOptions::new().read(true).write(true), &path).map(drop),
                read_regular(&path, 9).map(drop),
                write_regular(&path, b"x"),
            ];
            for outcome in outcomes {
                assert!(outcome.as_ref().is_err_and(|error| error.to_string().starts_with(&told)), "{outcome:?}");
            }
        }
        std::fs::write(path("victim"), b"precious").unwrap();
        std::os::unix::fs::symlink(path("victim"), path("link")).unwrap();
        let told = format!("{} is a symbolic link", path("link").display());
        for outcome in [
            open_in_place(OpenOptions::new().write(true), &path("link")).map(drop),
            open_in_place(OpenOptions::new().read(true), &path("link")).map(drop),
            write_regular(&path("link"), b"x"),
        ] {
            assert!(outcome.as_ref().is_err_and(|error| error.to_string().starts_with(&told)), "{outcome:?}");
        }
        std::fs::hard_link(path("victim"), path("second")).unwrap();
        write_regular(&path("second"), b"x").unwrap();
        assert_eq!(read_regular(&path("second"), 1).unwrap(), b"x");
        assert_eq!(read_regular(&path("link"), 8).unwrap(), b"precious", "a link may be read through");
        write_regular(&path("file"), b"longer").unwrap();
        write_regular(&path("file"), b"short").unwrap();
        assert_eq!(read_regular(&path("file"), 5).unwrap(), b"short");
        assert_eq!(read_regular(&path("file"), 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_regular(&path("none"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

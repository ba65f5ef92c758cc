//! Opening of state files: regular files, and nothing else that somebody may have put in their place.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// Opens `path` as `options` say, if it is (or becomes) a regular file. A pipe is not waited for, and a device not written to.
///
/// # Errors
/// As [`OpenOptions::open`]; [`io::ErrorKind::InvalidInput`], which names the file, if it is something else. Do not let `options` cut the file: that
/// happens before it is looked at.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits().cast_signed();
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => {
            // A pipe without a reader, a socket, a directory: the system's words name none of them.
            return Err(path.metadata().ok().and_then(|data| not_regular(path, &data)).unwrap_or(error));
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

/// Puts `content` in the place of what the regular file at `path` holds, or makes it.
///
/// # Errors
/// As [`open_regular`].
pub fn write_regular(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = open_regular(OpenOptions::new().write(true).create(true).truncate(false), path)?;
    file.set_len(0)?;
    io::Write::write_all(&mut file, content)
}

fn not_regular(path: &Path, data: &std::fs::Metadata) -> Option<io::Error> {
    let kind = data.file_type();
    if kind.is_file() {
        return None;
    }
    let what = match () {
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
        write_regular(&path("file"), b"longer").unwrap();
        write_regular(&path("file"), b"short").unwrap();
        assert_eq!(read_regular(&path("file"), 5).unwrap(), b"short");
        assert_eq!(read_regular(&path("file"), 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_regular(&path("none"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

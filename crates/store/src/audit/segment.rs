//! Segment files.

use std::{
    fs::OpenOptions,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use super::line::LINE_BYTES_MAX;
use crate::files::open_regular;

/// Segments have twelve digits, and no log comes to the last of them.
const NUMBER_MAX: u64 = 999_999_999_999;

pub(super) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("audit-{number:012}.jsonl"))
}

/// The segments in `directory`, in order.
///
/// # Errors
/// If the directory cannot be read.
pub fn list_segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    list_named(directory, ".jsonl")
}

/// The same of files whose names end with `suffix`.
pub(super) fn list_named(directory: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(suffix))
            .and_then(|digits| digits.parse().ok())
            .filter(|number| *number <= NUMBER_MAX && directory.join(format!("audit-{number:012}{suffix}")) == path);
        if let Some(number) = number {
            segments.push((number, path));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Gives each line of a file to `visit`, without its newline, with the offset behind it and whether it is whole
/// (ends with a newline). Stops early when `visit` returns false.
///
/// # Errors
/// If the file cannot be read.
pub fn read_lines(path: &Path, visit: impl FnMut(&[u8], u64, bool) -> bool) -> io::Result<()> {
    read_lines_of(BufReader::with_capacity(256 * 1024, open_regular(OpenOptions::new().read(true), path)?), visit)
}

pub(super) fn read_lines_of(
    mut reader: impl BufRead,
    mut visit: impl FnMut(&[u8], u64, bool) -> bool,
) -> io::Result<()> {
    let mut offset = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line longer than allowed is cut here and will not parse.
        let read = io::Read::take(&mut reader, LINE_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        offset += read as u64;
        let whole = line.last() == Some(&b'\n');
        let content = if whole { &line[..line.len() - 1] } else { &line[..] };
        if !visit(content, offset, whole) {
            return Ok(());
        }
    }
}

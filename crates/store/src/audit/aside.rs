//! What is not ours of a log, set aside because an operator said so, and told: `*.aside` until the log has the event of it, `*.forged` from then
//! on. So no crash in between loses the telling: whatever is still called `*.aside` is told by the next start.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::files::open_in_place;

const UNTOLD: &str = "aside";
const TOLD: &str = "forged";
/// Names of files that one event tells.
const NAMES_TOLD_MAX: usize = 8;

/// Moves what follows `good_bytes` of the first of these segments, and all after it, out of the log. The last first: what a crash leaves of them is
/// refused as before, and moved at the next start.
pub(super) fn set_aside(segments: &[(u64, PathBuf)], good_bytes: u64) -> io::Result<()> {
    for (position, (_, path)) in segments.iter().enumerate().rev() {
        let aside = free_name(path, UNTOLD);
        if position > 0 || good_bytes == 0 {
            // A segment without its header would be no segment.
            fs::rename(path, &aside)?;
        } else {
            keep_beginning(path, good_bytes, &aside)?;
        }
    }
    if let Some(directory) = segments.first().and_then(|(_, path)| path.parent()) {
        sync(directory)?;
    }
    Ok(())
}

/// Leaves the good bytes in the place of the segment, and the whole of it aside. What is read is what was found good: the rest may be of any length.
fn keep_beginning(path: &Path, good_bytes: u64, aside: &Path) -> io::Result<()> {
    let segment = open_in_place(OpenOptions::new().read(true), path)?;
    let kept = path.with_extension("jsonl.kept");
    match fs::remove_file(&kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut beginning = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kept)?;
    let copied = io::copy(&mut io::Read::take(segment, good_bytes), &mut beginning)?;
    if copied != good_bytes {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment was cut while it was read"));
    }
    beginning.sync_all()?;
    fs::hard_link(path, aside)?;
    // It has its other name for certain before it loses the first.
    sync(path.parent().unwrap_or(Path::new(".")))?;
    fs::rename(&kept, path)
}

/// What a start that was cut short set aside and did not tell, as a note for the log.
pub(super) fn untold(directory: &Path) -> io::Result<Option<String>> {
    let files = files_aside(directory)?;
    if files.is_empty() {
        return Ok(None);
    }
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().escape_debug().to_string());
    let names: Vec<String> = files.iter().filter_map(name).take(NAMES_TOLD_MAX).collect();
    let count = files.len();
    Ok(Some(format!("{count} files were set aside by a start that ended before it told so: {}", names.join(", "))))
}

/// The log has told of all that is aside.
pub(super) fn settle(directory: &Path) -> io::Result<()> {
    let files = files_aside(directory)?;
    for path in &files {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let segment = name.split(".jsonl").next().unwrap_or(&name);
        fs::rename(path, free_name(&directory.join(format!("{segment}.jsonl")), TOLD))?;
    }
    if files.is_empty() { Ok(()) } else { sync(directory) }
}

fn files_aside(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("audit-") && name.ends_with(&format!(".{UNTOLD}")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A name for what is set aside of a segment: nothing that was set aside before is written over, told or not.
fn free_name(path: &Path, ending: &str) -> PathBuf {
    let mut aside = path.with_extension(format!("jsonl.{ending}"));
    let mut count = 1_u32;
    while aside.symlink_metadata().is_ok() {
        count += 1;
        aside = path.with_extension(format!("jsonl.{count}.{ending}"));
    }
    aside
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

//! Where a log on disk ends, and whether that end is ours.

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use holdfast_core::Revision;

use super::{
    AuditLogConfig, AuditOpenError,
    line::{self, Checkpoint, FORMAT, FORMAT_1, GENESIS, LineMac},
    segment::{list_segments, read_lines},
};

/// Where the existing log ends.
pub(super) struct Tail {
    /// Number of the last segment.
    pub segment: u64,
    /// The last line.
    pub end: Checkpoint,
    /// Bytes of a torn last line that were cut.
    pub torn_bytes: u64,
    /// From this line on stood what this log did not write, and what it was. It was set aside, because the operator said so.
    pub aside: Option<(u64, &'static str)>,
    /// Whether the log contains what was expected of it; `None` if nothing was.
    pub expected_found: Option<bool>,
}

/// Why reading stops.
enum Fault {
    /// What stands there is no line of this chain.
    Broken(String),
    /// A line of the chain that has no MAC of ours.
    Forged,
}

impl Tail {
    /// Reads back to the segment that should hold the expected line, checks chain and MACs from there, and cuts a torn last line.
    pub(super) fn read(config: &AuditLogConfig, mac: &LineMac) -> Result<Self, AuditOpenError> {
        let failed = |source| AuditOpenError::File { directory: config.directory.clone(), source };
        let segments = list_segments(&config.directory).map_err(failed)?;
        let revision = config.expected.map_or(Revision(0), |expected| expected.revision);
        let mut tail = Self {
            segment: 0,
            end: Checkpoint { seq: 0, head: GENESIS, revision },
            torn_bytes: 0,
            aside: None,
            expected_found: config.expected.map(|expected| expected.seq == 0),
        };
        let start = first_segment_to_read(&segments, config.expected).map_err(failed)?;
        // Logs that were begun before lines had a MAC have none until this version begins a segment of its own; never after it.
        let mut reader = Reader { config, mac, has_macs: config.expected_has_macs, first: true };
        for (position, (number, path)) in segments.iter().enumerate().skip(start) {
            let (good_bytes, fault) = if position > start && *number != tail.segment + 1 {
                (0, Some(Fault::Broken(format!("segment {} is missing before it", tail.segment + 1))))
            } else {
                let read = reader.segment(path, &mut tail).map_err(failed)?;
                tail.segment = *number;
                let last = position + 1 == segments.len();
                if matches!(read.1, Some(Fault::Broken(_))) && last && is_torn_tail(path, read.0).map_err(failed)? {
                    tail.torn_bytes = cut(path, read.0).map_err(failed)?;
                    continue;
                }
                read
            };
            let Some(fault) = fault else { continue };
            let seq = tail.end.seq + 1;
            let what = match fault {
                Fault::Broken(_) if config.accept_loss => "was damaged",
                Fault::Forged if config.accept_loss => "was written by somebody else",
                Fault::Broken(why) => {
                    return Err(AuditOpenError::Damaged { path: path.clone(), seq: tail.end.seq, why });
                }
                Fault::Forged => return Err(AuditOpenError::Forged { path: path.clone(), seq }),
            };
            set_aside(&segments[position..], good_bytes).map_err(failed)?;
            tail.aside = Some((seq, what));
            // One that begins with it is gone as a whole, and so is its number.
            if good_bytes == 0 && tail.segment == *number {
                tail.segment = number.saturating_sub(1);
            }
            break;
        }
        Ok(tail)
    }
}

struct Reader<'a> {
    config: &'a AuditLogConfig,
    mac: &'a LineMac,
    has_macs: bool,
    first: bool,
}

impl Reader<'_> {
    /// Reads one segment; gives the bytes that are good and what ended them early.
    fn segment(&mut self, path: &Path, tail: &mut Tail) -> io::Result<(u64, Option<Fault>)> {
        let mut good_bytes = 0;
        let mut fault = None;
        read_lines(path, |content, offset, whole| match self.line(content, whole, tail) {
            Ok(()) => {
                good_bytes = offset;
                true
            }
            Err(found) => {
                fault = Some(found);
                false
            }
        })?;
        Ok((good_bytes, fault))
    }

    fn line(&mut self, content: &[u8], whole: bool, tail: &mut Tail) -> Result<(), Fault> {
        if !whole {
            return Err(Fault::Broken("it is torn".into()));
        }
        let parsed = line::parse_line(content).map_err(|error| Fault::Broken(error.0))?;
        let follows = parsed.seq == tail.end.seq + 1 && parsed.prev == line::hex(&tail.end.head);
        if !self.first && !follows {
            return Err(Fault::Broken("the chain is broken".into()));
        }
        if parsed.kind == "segment" {
            match parsed.format.as_deref() {
                Some(FORMAT) => self.has_macs = true,
                Some(FORMAT_1) if !self.has_macs => {}
                _ => return Err(Fault::Forged),
            }
        }
        if self.has_macs && !self.mac.holds(content) {
            return Err(Fault::Forged);
        }
        self.first = false;
        let revision = parsed.revision.map_or(tail.end.revision, Revision);
        tail.end = Checkpoint { seq: parsed.seq, head: line::hash_line(content), revision };
        if let Some(expected) = self.config.expected.filter(|expected| expected.seq == parsed.seq) {
            tail.expected_found = Some(expected.head == tail.end.head);
        }
        Ok(())
    }
}

/// The last segment that begins at or before the expected line; the first of all if nothing is expected, which is so in the first second of a
/// log's life, or if its store is lost.
fn first_segment_to_read(segments: &[(u64, PathBuf)], expected: Option<Checkpoint>) -> io::Result<usize> {
    let Some(expected) = expected else { return Ok(0) };
    let mut position = segments.len().saturating_sub(1);
    while position > 0 {
        let mut first_seq = None;
        read_lines(&segments[position].1, |content, _, _| {
            first_seq = line::parse_line(content).ok().map(|parsed| parsed.seq);
            false
        })?;
        // A segment whose first line was torn tells nothing: begin before it.
        if first_seq.is_some_and(|first| first <= expected.seq) {
            break;
        }
        position -= 1;
    }
    Ok(position)
}

/// A crash can tear only what was being appended: nothing after it may be a whole, readable line.
fn is_torn_tail(path: &Path, good_bytes: u64) -> io::Result<bool> {
    let mut later_line = false;
    read_lines(path, |content, offset, whole| {
        later_line |= offset > good_bytes && whole && line::parse_line(content).is_ok();
        !later_line
    })?;
    Ok(!later_line)
}

fn cut(path: &Path, good_bytes: u64) -> io::Result<u64> {
    let file = OpenOptions::new().write(true).open(path)?;
    let torn = file.metadata()?.len() - good_bytes;
    file.set_len(good_bytes)?;
    file.sync_all()?;
    Ok(torn)
}

/// Moves what stands behind `good_bytes` of the first of these segments, and all after it, into files whose names end in `.forged`. The last
/// first: what a crash leaves of them is refused as before, and moved at the next start.
fn set_aside(segments: &[(u64, PathBuf)], good_bytes: u64) -> io::Result<()> {
    for (position, (_, path)) in segments.iter().enumerate().rev() {
        let aside = free_name(path);
        if position > 0 || good_bytes == 0 {
            // A segment without its header would be no segment.
            std::fs::rename(path, &aside)?;
        } else {
            let content = std::fs::read(path)?;
            std::fs::write(&aside, &content[usize::try_from(good_bytes).map_err(io::Error::other)?..])?;
            std::fs::File::open(&aside)?.sync_all()?;
            cut(path, good_bytes)?;
        }
    }
    Ok(())
}

/// A name for what is set aside of a segment: nothing that was set aside before is written over.
fn free_name(path: &Path) -> PathBuf {
    let mut aside = path.with_extension("jsonl.forged");
    let mut count = 1_u32;
    while aside.exists() {
        count += 1;
        aside = path.with_extension(format!("jsonl.{count}.forged"));
    }
    aside
}

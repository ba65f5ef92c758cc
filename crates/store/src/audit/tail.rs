//! Where a log on disk ends, and whether that end is ours.

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use holdfast_core::Revision;

use super::{
    AuditLogConfig, AuditOpenError, RestoredStore,
    aside::set_aside,
    line::{self, Checkpoint, Format, GENESIS, LineMac},
    segment::{list_segments, read_lines, segment_path},
};
use crate::files::{open_in_place, open_regular};

/// No log comes to a line of such a number: one that says so was not written here.
const SEQ_MAX: u64 = 1 << 56;
/// More than this is never written without a sync (some thousand lines of 64 KiB at most): what is longer was put there, and is not read through.
const TORN_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Where the existing log ends.
pub(super) struct Tail {
    /// Number of the last segment.
    pub segment: u64,
    /// The last line.
    pub end: Checkpoint,
    /// What stands behind the last line was never durable: in which file, behind how many bytes, and how many they are.
    pub torn: Option<(PathBuf, u64, u64)>,
    /// From this line on stood what this log did not write, and what it was. It was set aside, because the operator said so.
    pub aside: Option<(u64, &'static str)>,
    /// Whether the log contains what was expected of it; `None` if nothing was.
    pub expected_found: Option<bool>,
    /// Whether it goes on from where it ended at a restore that was meant, and tells behind that of no use, and of no change that the store does not have.
    pub goes_on_from_restored: bool,
}

/// Why reading stops.
enum Fault {
    /// What stands there is no line of this chain.
    Broken(String),
    /// A line of the chain that has no MAC of ours.
    Forged,
}

impl Tail {
    fn empty(expected: Option<Checkpoint>, restored: Option<RestoredStore>) -> Self {
        let revision = expected.map_or(Revision(0), |expected| expected.revision);
        Self {
            segment: 0,
            end: Checkpoint { seq: 0, head: GENESIS, revision },
            torn: None,
            aside: None,
            expected_found: expected.map(|expected| expected.seq == 0),
            goes_on_from_restored: restored.is_some_and(|restored| restored.log.seq == 0),
        }
    }

    /// Reads back to the segment that should hold the expected line, checks chain and MACs from there, and finds
    /// a torn end. Nothing is cut here: see [`Self::make_durable`].
    pub(super) fn read(config: &AuditLogConfig, mac: &LineMac) -> Result<Self, AuditOpenError> {
        let failed = |source| AuditOpenError::File { directory: config.directory.clone(), source };
        let segments = list_segments(&config.directory).map_err(failed)?;
        let mut tail = Self::empty(config.expected, config.restored);
        let start = first_segment_to_read(&segments, config.expected).map_err(failed)?;
        let mut reader = Reader::new(mac, config.expected, config.expected_has_macs, config.floor);
        reader.restored = config.restored;
        let mut ended = None;
        for (position, (number, path)) in segments.iter().enumerate().skip(start) {
            let (good_bytes, fault) = if position > start && *number != tail.segment + 1 {
                (0, Some(Fault::Broken(format!("segment {} is missing before it", tail.segment + 1))))
            } else {
                let read = reader.segment(position, path, &mut tail).map_err(failed)?;
                tail.segment = *number;
                let last = position + 1 == segments.len();
                let marked = config.expected.map_or(0, |expected| expected.seq);
                if matches!(read.1, Some(Fault::Broken(_)))
                    && last
                    && tail.end.seq >= marked
                    && is_torn(path, read.0, tail.end.seq + 1, (reader.format, mac)).map_err(failed)?
                {
                    let bytes = path.metadata().map_err(failed)?.len() - read.0;
                    tail.torn = Some((path.clone(), read.0, bytes));
                    continue;
                }
                read
            };
            if let Some(fault) = fault {
                ended = Some((position, good_bytes, fault));
                break;
            }
        }
        if let Some(unproven) = reader.unproven {
            // Lines of an earlier format, and nothing behind them that this log alone can have.
            (tail.end, tail.torn) = (unproven.before, None);
            ended = Some((unproven.position, unproven.good_bytes, Fault::Forged));
        }
        if let Some((position, good_bytes, fault)) = ended {
            tail.end_at(&segments[position..], good_bytes, fault, config)?;
        }
        Ok(tail)
    }

    /// Cuts the torn end, and syncs what is left: a process that was killed leaves lines that the next one reads and the disk does not have.
    pub(super) fn make_durable(&self, directory: &Path) -> io::Result<()> {
        if let Some((path, good_bytes, bytes)) = &self.torn {
            tracing::warn!(path = %path.display(), bytes, "the audit log ends with what was never durable; it is cut");
            cut(path, *good_bytes)?;
        }
        let last = segment_path(directory, self.segment);
        match open_regular(OpenOptions::new().read(true), &last) {
            Ok(file) => file.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sets aside what follows the good bytes of the first of these segments, if that is accepted.
    fn end_at(
        &mut self,
        segments: &[(u64, PathBuf)],
        good_bytes: u64,
        fault: Fault,
        config: &AuditLogConfig,
    ) -> Result<(), AuditOpenError> {
        let Some((number, path)) = segments.first() else { return Ok(()) };
        let seq = self.end.seq + 1;
        let what = match fault {
            Fault::Broken(_) if config.accept_loss => "was damaged",
            Fault::Forged if config.accept_loss => "was written by somebody else",
            Fault::Broken(why) => return Err(AuditOpenError::Damaged { path: path.clone(), seq: self.end.seq, why }),
            Fault::Forged => return Err(AuditOpenError::Forged { path: path.clone(), seq }),
        };
        set_aside(segments, good_bytes)
            .map_err(|source| AuditOpenError::File { directory: config.directory.clone(), source })?;
        self.aside = Some((seq, what));
        // One that begins with it is gone as a whole, and so is its number.
        self.segment = if good_bytes == 0 { self.segment.min(number.saturating_sub(1)) } else { *number };
        Ok(())
    }
}

/// Where the log in `directory` ends, if it goes on from `expected` and all its lines from there on are ours; nothing is changed.
///
/// # Errors
/// If the files cannot be read.
pub fn end_of_log(directory: &Path, mac: &LineMac, expected: Option<Checkpoint>) -> io::Result<Option<Checkpoint>> {
    let config = AuditLogConfig {
        directory: directory.into(),
        segment_bytes_max: 0,
        segment_age_max: std::time::Duration::ZERO,
        checkpoint_interval: std::time::Duration::ZERO,
        expected,
        expected_has_macs: true,
        floor: 0,
        accept_loss: false,
        restored: None,
        notes: Vec::new(),
        accepted: Vec::new(),
    };
    match Tail::read(&config, mac) {
        Ok(tail) => Ok(Some(tail.end).filter(|end| end.seq > 0 && tail.expected_found != Some(false))),
        Err(AuditOpenError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(AuditOpenError::File { source, .. }) => Err(source),
        Err(_) => Ok(None),
    }
}

/// Where a log of an earlier format ends, for the upgrade, which marks that end before it asks for another one behind it; and whether its lines have
/// MACs. None: it is of today's format already, or it is not a log that would be taken as it is.
///
/// # Errors
/// If the files cannot be read.
pub fn end_of_earlier_format(
    directory: &Path,
    mac: &LineMac,
    expected: Option<Checkpoint>,
) -> io::Result<Option<(Checkpoint, bool)>> {
    let segments = match list_segments(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut tail = Tail::empty(expected, None);
    let start = first_segment_to_read(&segments, expected)?;
    let mut reader = Reader::new(mac, expected, false, 0);
    for (position, (number, path)) in segments.iter().enumerate().skip(start) {
        let follows = position == start || *number == tail.segment + 1;
        let (good_bytes, fault) = reader.segment(position, path, &mut tail)?;
        tail.segment = *number;
        let torn = matches!(fault, Some(Fault::Broken(_)))
            && position + 1 == segments.len()
            && is_torn(path, good_bytes, tail.end.seq + 1, (reader.format, mac))?;
        if !follows || reader.format == mac.format() || (fault.is_some() && !torn) {
            return Ok(None);
        }
    }
    let end = Some(tail.end).filter(|end| end.seq > 0 && tail.expected_found != Some(false));
    Ok(end.map(|end| (end, reader.format > Format::One)))
}

/// Lines of an earlier format that nothing behind them proves.
struct Unproven {
    /// Which segment the first of them is in, and where.
    position: usize,
    good_bytes: u64,
    /// The line before it.
    before: Checkpoint,
}

struct Reader<'a> {
    mac: &'a LineMac,
    expected: Option<Checkpoint>,
    /// Of the segment that is being read.
    format: Format,
    /// The earliest that is taken without proof.
    floor: u8,
    first: bool,
    restored: Option<RestoredStore>,
    unproven: Option<Unproven>,
}

impl<'a> Reader<'a> {
    /// Logs that were begun by an earlier version are of its format until this one begins a segment of its own; never after it.
    fn new(mac: &'a LineMac, expected: Option<Checkpoint>, has_macs: bool, floor: u8) -> Self {
        let format = if has_macs { Format::Two } else { Format::One };
        Self { mac, expected, format, floor, first: true, restored: None, unproven: None }
    }

    /// Reads one segment; gives the bytes that are good and what ended them early.
    fn segment(&mut self, position: usize, path: &Path, tail: &mut Tail) -> io::Result<(u64, Option<Fault>)> {
        let mut good_bytes = 0;
        let mut fault = None;
        read_lines(path, |content, offset, whole| match self.line((position, good_bytes), content, whole, tail) {
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

    fn line(&mut self, place: (usize, u64), content: &[u8], whole: bool, tail: &mut Tail) -> Result<(), Fault> {
        if !whole {
            return Err(Fault::Broken("it is torn".into()));
        }
        let parsed = line::parse_line(content).map_err(|error| Fault::Broken(error.0))?;
        let follows = parsed.seq == tail.end.seq + 1 && parsed.prev == holdfast_core::hex(&tail.end.head);
        if parsed.seq > SEQ_MAX || (!self.first && !follows) {
            return Err(Fault::Broken("the chain is broken".into()));
        }
        if parsed.kind == "segment" {
            match parsed.format.as_deref().and_then(Format::called) {
                Some(format) if format >= self.format && format <= self.mac.format() => self.format = format,
                Some(_) | None => return Err(Fault::Forged),
            }
        }
        if !self.mac.holds_in(self.format, content) {
            return Err(Fault::Forged);
        }
        if self.format.number() >= self.floor {
            self.unproven = None;
        } else {
            let (position, good_bytes) = place;
            self.unproven.get_or_insert(Unproven { position, good_bytes, before: tail.end });
        }
        self.first = false;
        let told = parsed.revision.filter(|_| self.format > Format::One);
        let revision = told.map_or(tail.end.revision, Revision);
        tail.end = Checkpoint { seq: parsed.seq, head: line::hash_line(content), revision };
        if let Some(expected) = self.expected.filter(|expected| expected.seq == parsed.seq) {
            let found = expected.head == tail.end.head;
            tail.expected_found = Some(found);
            if found {
                self.unproven = None;
            }
        }
        if let Some(RestoredStore { store, log, .. }) = self.restored {
            if parsed.seq == log.seq {
                tail.goes_on_from_restored = tail.end.head == log.head;
            } else if parsed.seq > log.seq && parsed.kind == "event" {
                tail.goes_on_from_restored &= parsed.revision.is_some_and(|revision| revision <= store.0);
            }
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

/// Whether what stands behind the good bytes, where line `next` should begin, may be what a crash left of lines that were never durable: some of
/// their pages, zeros or old bytes in the place of others. It may not, if a line behind it proves that line `next` was durable before: each line
/// says how many before it were not, and a MAC of ours says that it is true. Without MACs, each whole line proves it.
fn is_torn(path: &Path, good_bytes: u64, next: u64, (format, mac): (Format, &LineMac)) -> io::Result<bool> {
    if path.metadata()?.len().saturating_sub(good_bytes) > TORN_BYTES_MAX {
        return Ok(false);
    }
    let mut promised = false;
    read_lines(path, |content, offset, whole| {
        if offset <= good_bytes || !whole {
            return true;
        }
        if let Ok(parsed) = line::parse_line(content) {
            let durable = parsed.seq.saturating_sub(1).saturating_sub(parsed.unsynced);
            promised = format == Format::One || (mac.holds_in(format, content) && durable >= next);
        }
        !promised
    })?;
    Ok(!promised)
}

fn cut(path: &Path, good_bytes: u64) -> io::Result<()> {
    let file = open_in_place(OpenOptions::new().write(true), path)?;
    file.set_len(good_bytes)?;
    file.sync_all()
}

//! The verifier: offline, on the files alone.

use std::{io, path::Path};

use holdfast_core::AuditLine;
use holdfast_crypto::EcPublicKey;

use super::{
    anchor::{ANCHOR_FILE, Anchor},
    archive::{list_archived, read_archived_lines},
    line::{self, Format, GENESIS, LINE_BYTES_MAX, PublicKeyJson},
    parse_line,
    segment::{list_segments, read_lines},
};

/// The first thing found wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// Which file.
    pub file: String,
    /// Number of the line that is bad or missing.
    pub seq: u64,
    /// What is wrong.
    pub what: String,
}

/// What was verified.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// Lines whose place in the chain holds.
    pub lines: u64,
    /// Events among them.
    pub events: u64,
    /// The newest change that the log tells of. Changes are numbered without a gap.
    pub revision: u64,
    /// Starts at which somebody accepted that log and store are not of one moment: number of the line.
    pub accepted: Vec<u64>,
    /// Checkpoints whose signature holds.
    pub checkpoints: u64,
    /// Last line that a checkpoint covers.
    pub signed_seq: u64,
    /// Lines after it: authentic only as far as nobody could write to the file.
    pub unsigned_lines: u64,
    /// Hex SHA-256 of the last line.
    pub head: String,
    /// Instance that the log names.
    pub instance: String,
    /// Fingerprint (hex SHA-256 of the point) of the key that signs.
    pub key_fingerprint: String,
    /// If earlier segments were handed over to an archive: their last line, where they went, and the line that tells of it.
    pub begins_behind: Option<(u64, String, u64)>,
    /// Bytes of a last line without its end: it is being written, or a crash cut it. It was never acknowledged, and is not counted.
    pub torn_bytes: u64,
    /// The first thing wrong, if anything is.
    pub finding: Option<Finding>,
}

/// Verifies all segments in `directory`. With `known`, a line kept from an earlier look, the log must contain it.
/// With `fingerprint`, the key must be that one.
///
/// # Errors
/// If the files cannot be read.
pub fn verify(directory: &Path, known: Option<&[u8]>, fingerprint: Option<&str>) -> io::Result<Report> {
    verify_with(directory, &Verification { known, fingerprint, ..Verification::default() })
}

/// What a log is held against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verification<'a> {
    /// A line that it must contain.
    pub known: Option<&'a [u8]>,
    /// Fingerprint of its key.
    pub fingerprint: Option<&'a str>,
    /// The lines of these numbers must have these hashes, as far as the log goes.
    pub hashes: &'a [AuditLine],
    /// The archive that its earlier segments were handed over to: they are verified, too.
    pub archive: Option<&'a Path>,
}

/// Verifies all segments in `directory`, and those in the archive, if one is given.
///
/// # Errors
/// If the files cannot be read.
pub fn verify_with(directory: &Path, against: &Verification<'_>) -> io::Result<Report> {
    let mut verifier = Verifier::new(against.known.map(<[u8]>::to_vec), against.fingerprint);
    verifier.hashes = against.hashes.to_vec();
    let mut segments = list_segments(directory)?;
    let anchor = Anchor::read(directory)?;
    if let Some(anchor) = &anchor {
        // A removal that was cut short leaves some; the archive has them.
        segments.retain(|(number, _)| *number > anchor.segment);
        match against.archive {
            None => verifier.begin_behind(anchor),
            Some(archive) => verify_archive(&mut verifier, archive, anchor)?,
        }
    }
    let first_number = anchor.as_ref().map_or(1, |anchor| anchor.segment + 1);
    if segments.is_empty() && anchor.is_some() {
        verifier.fail("", format!("segment {first_number} is missing"));
    }
    if verifier.report.finding.is_some() {
        return Ok(verifier.finish());
    }
    for (position, (number, path)) in segments.iter().enumerate() {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let expected_number = segments[0].0 + position as u64;
        if *number != expected_number || (position == 0 && *number != first_number) {
            let missing = if position == 0 { first_number } else { expected_number };
            verifier.fail(&file, format!("segment {missing} is missing"));
            break;
        }
        verifier.at_segment_start = true;
        verifier.in_last_segment = position + 1 == segments.len();
        read_lines(path, |content, _, whole| verifier.line(&file, content, whole))?;
        if verifier.report.finding.is_some() {
            break;
        }
    }
    Ok(verifier.finish())
}

/// Verifies what was handed over, up to the anchor, which must be its end.
fn verify_archive(verifier: &mut Verifier, archive: &Path, anchor: &Anchor) -> io::Result<()> {
    let handed_over = list_archived(archive)?.into_iter().filter(|(number, _)| *number <= anchor.segment);
    for (expected_number, (number, path)) in (1..).zip(handed_over) {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if number != expected_number {
            verifier.fail(&file, format!("segment {expected_number} is missing in the archive"));
            return Ok(());
        }
        verifier.at_segment_start = true;
        read_archived_lines(&path, |content, _, whole| verifier.line(&file, content, whole))?;
        if verifier.report.finding.is_some() {
            return Ok(());
        }
    }
    if (verifier.report.lines, verifier.head) != (anchor.line.seq, anchor.line.hash) {
        verifier.fail(
            ANCHOR_FILE,
            format!("the archive does not end with line {}, behind which the log begins", anchor.line.seq),
        );
    }
    verifier.await_telling(anchor);
    Ok(())
}

pub(super) struct Verifier {
    pub(super) report: Report,
    pub(super) head: [u8; 32],
    pub(super) key: Option<EcPublicKey>,
    pub(super) at_segment_start: bool,
    in_last_segment: bool,
    known: Option<Vec<u8>>,
    hashes: Vec<AuditLine>,
    fingerprint: Option<String>,
    /// What the log begins behind...
    anchor: Option<Anchor>,
    /// ...and whether its signature is still to be checked: the key stands in the first line.
    anchor_unproved: bool,
    /// The line that tells of it.
    told_at: Option<u64>,
}

impl Verifier {
    pub(super) fn new(known: Option<Vec<u8>>, fingerprint: Option<&str>) -> Self {
        Self {
            report: Report::default(),
            head: GENESIS,
            key: None,
            at_segment_start: true,
            in_last_segment: false,
            known,
            hashes: Vec::new(),
            fingerprint: fingerprint.map(str::to_ascii_lowercase),
            anchor: None,
            anchor_unproved: false,
            told_at: None,
        }
    }

    /// What comes before was handed over, and is not looked at.
    pub(super) fn begin_behind(&mut self, anchor: &Anchor) {
        self.head = anchor.line.hash;
        (self.report.lines, self.report.signed_seq) = (anchor.line.seq, anchor.line.seq);
        self.report.revision = anchor.revision.0;
        self.anchor_unproved = true;
        self.await_telling(anchor);
    }

    /// Some line must tell of the hand-over.
    fn await_telling(&mut self, anchor: &Anchor) {
        self.anchor = Some(anchor.clone());
    }

    fn fail(&mut self, file: &str, what: String) {
        let seq = self.report.lines + 1;
        self.report.finding.get_or_insert(Finding { file: file.into(), seq, what });
    }

    /// Takes one line; false after the first fault, and at the end.
    fn line(&mut self, file: &str, content: &[u8], whole: bool) -> bool {
        if !whole && self.in_last_segment && content.len() <= LINE_BYTES_MAX {
            self.report.torn_bytes = content.len() as u64;
            return false;
        }
        if let Err(what) = self.check(content, whole) {
            self.fail(file, what);
            return false;
        }
        if self.known.as_deref() == Some(content) {
            self.known = None;
        }
        self.take(content);
        let (seq, hash) = (self.report.lines, self.head);
        if self.hashes.iter().any(|line| line.seq == seq && line.hash != hash) {
            self.report.lines -= 1;
            self.fail(file, format!("line {seq} is not the one that the instance signed for"));
            return false;
        }
        true
    }

    /// Goes on behind a line that was checked.
    pub(super) fn take(&mut self, content: &[u8]) {
        self.head = line::hash_line(content);
        self.report.lines += 1;
    }

    pub(super) fn check(&mut self, content: &[u8], whole: bool) -> Result<(), String> {
        if !whole {
            return Err("the line is torn".into());
        }
        let parsed = parse_line(content).map_err(|error| error.to_string())?;
        let expected = self.report.lines + 1;
        if parsed.seq > expected {
            return Err(format!("line {expected} is missing; the next one is {}", parsed.seq));
        }
        if parsed.seq < expected {
            return Err(format!("line {} stands where {expected} should", parsed.seq));
        }
        if parsed.prev != holdfast_core::hex(&self.head) {
            return Err(format!("line {} or the one before it was changed", parsed.seq));
        }
        if self.at_segment_start != (parsed.kind == "segment") {
            return Err("a segment begins with its header line, and has no other".into());
        }
        self.at_segment_start = false;
        match parsed.kind.as_str() {
            "segment" => self.header(&parsed)?,
            "checkpoint" => {
                let holds = self.key.as_ref().is_some_and(|key| parsed.signature_holds(&self.report.instance, key));
                if !holds {
                    return Err("the checkpoint's signature does not hold".into());
                }
                self.report.checkpoints += 1;
                self.report.signed_seq = parsed.seq;
            }
            "event" => {
                self.report.events += 1;
                self.change(parsed.revision)?;
                if self.anchor.as_ref().is_some_and(|anchor| anchor.is_told_by(content)) {
                    self.told_at = Some(parsed.seq);
                }
            }
            "start" => {
                if let Some(revision) = parsed.revision.filter(|revision| *revision != self.report.revision) {
                    self.report.accepted.push(parsed.seq);
                    self.report.revision = revision;
                }
            }
            "stop" => {}
            other => return Err(format!("unknown kind of line {other:?}")),
        }
        Ok(())
    }

    /// A change is told once, and none is left out.
    fn change(&mut self, revision: Option<u64>) -> Result<(), String> {
        let Some(revision) = revision else { return Ok(()) };
        let expected = self.report.revision + 1;
        if revision != expected {
            return Err(format!("change {expected} should be told here, and not change {revision}"));
        }
        self.report.revision = revision;
        Ok(())
    }

    fn header(&mut self, parsed: &line::ParsedLine) -> Result<(), String> {
        if parsed.format.as_deref().and_then(Format::called).is_none() {
            return Err("not a format this verifier knows".into());
        }
        let key = parsed.key.clone().and_then(|key| serde_json::from_value::<PublicKeyJson>(key).ok());
        let key = key.and_then(|key| key.parse()).ok_or("the segment names no key")?;
        let instance = parsed.instance.clone().unwrap_or_default();
        if self.key.as_ref().is_some_and(|first| *first != key || self.report.instance != instance) {
            return Err("the segment belongs to another instance or key".into());
        }
        let fingerprint = holdfast_core::hex(&holdfast_crypto::kdf::sha256(&[&key.point]));
        if self.fingerprint.as_ref().is_some_and(|expected| *expected != fingerprint) {
            return Err(format!("the log is signed by another key, {fingerprint}"));
        }
        if let Some(anchor) = self.anchor.as_ref().filter(|_| self.anchor_unproved)
            && !anchor.parsed.signature_holds(&instance, &key)
        {
            return Err("the checkpoint that the log begins behind is not signed by its key".into());
        }
        self.anchor_unproved = false;
        self.report.key_fingerprint = fingerprint;
        self.report.instance = instance;
        self.key = Some(key);
        Ok(())
    }

    fn finish(mut self) -> Report {
        self.report.unsigned_lines = self.report.lines - self.report.signed_seq;
        self.report.head = holdfast_core::hex(&self.head);
        if let Some(anchor) = self.anchor.take() {
            match self.told_at.filter(|told| *told <= self.report.signed_seq) {
                Some(told) => self.report.begins_behind = Some((anchor.line.seq, anchor.archive, told)),
                None if self.report.finding.is_none() => {
                    let what =
                        "segments before it were taken away, and no line that is signed tells of their hand-over";
                    self.report.lines = anchor.line.seq;
                    self.fail(ANCHOR_FILE, what.into());
                }
                None => {}
            }
        }
        if self.known.is_some() && self.report.finding.is_none() {
            self.fail("", "the line kept from an earlier look is not in the log: it was cut or rewritten".into());
        }
        self.report
    }
}

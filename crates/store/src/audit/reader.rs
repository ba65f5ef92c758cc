//! The log as it is given away: from a line on, as far as it is durable, beside the writer and without making it wait.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_core::{
    Ambient, AuditAsk, AuditHead, AuditLine, AuditPlace, AuditPullError, AuditPulled, AuditVerdict, PartitionId,
    Revision,
};
use holdfast_crypto::EcKey;

use super::{
    anchor::Anchor,
    line::{self, GENESIS, LINE_BYTES_MAX},
    segment::{list_segments, read_lines, segment_path},
    writer::Status,
};

/// How far the log is durable.
#[derive(Clone, Copy)]
struct Durable {
    line: AuditLine,
    revision: Revision,
    segment: u64,
    bytes: u64,
}

/// Reads a log that is being written.
pub(super) struct Reader {
    directory: PathBuf,
    instance: PartitionId,
    signing: Arc<EcKey>,
    status: Arc<Mutex<Status>>,
    ambient: Arc<dyn Ambient>,
}

impl Reader {
    pub(super) fn new(
        directory: &Path,
        instance: PartitionId,
        signing: Arc<EcKey>,
        status: &Arc<Mutex<Status>>,
        ambient: &Arc<dyn Ambient>,
    ) -> Self {
        let (status, ambient) = (Arc::clone(status), Arc::clone(ambient));
        Self { directory: directory.into(), instance, signing, status, ambient }
    }

    fn durable(&self) -> Durable {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let line = AuditLine { seq: status.latest.seq, hash: status.latest.head };
        Durable { line, revision: status.latest.revision, segment: status.segment, bytes: status.segment_bytes }
    }

    /// What follows the line that the copy has last.
    pub(super) fn pull(&self, ask: &AuditAsk) -> Result<AuditPulled, AuditPullError> {
        if let Some(anchor) = Anchor::read(&self.directory).map_err(unreadable)?
            && ask.after.line.seq < anchor.line.seq
        {
            return Err(AuditPullError::Archived { up_to: anchor.line.seq, archive: anchor.archive });
        }
        self.read(ask).map_err(unreadable)
    }

    fn read(&self, ask: &AuditAsk) -> io::Result<AuditPulled> {
        // One look: lines up to it, the head and what is signed are of one moment.
        let durable = self.durable();
        let from = self.place_of(ask.after, &durable)?;
        let verdict = match from {
            None => AuditVerdict::Shorter,
            Some(from) if from.line.hash == ask.after.line.hash => AuditVerdict::Continues,
            Some(_) => AuditVerdict::Differs,
        };
        let from = from.filter(|_| verdict == AuditVerdict::Continues);
        let (segment, offset, lines) = match from {
            Some(from) => self.lines_after(from, &durable, ask.bytes_max)?,
            None => (ask.after.segment, ask.after.offset, Vec::new()),
        };
        let head = AuditHead {
            instance: self.instance,
            log: ask.log.clone(),
            nonce: ask.nonce,
            after: ask.after.line,
            verdict,
            head: durable.line,
            revision: ask.revision.max(durable.revision),
            time: line::format_time(self.ambient.now()),
        };
        let signature = self.signing.sign(&line::head_digest(&head)).map_err(io::Error::other)?;
        Ok(AuditPulled { head, signature, segment, offset, lines })
    }

    /// The line of that number, as it stands here, and where; `None` if there is none so far.
    fn place_of(&self, after: AuditPlace, durable: &Durable) -> io::Result<Option<AuditPlace>> {
        if after.line.seq > durable.line.seq {
            return Ok(None);
        }
        if after.line.seq == 0 {
            let line = AuditLine { seq: 0, hash: GENESIS };
            return Ok(Some(AuditPlace { line, segment: 1, offset: 0 }));
        }
        if let Some(anchor) = Anchor::read(&self.directory)?.filter(|anchor| anchor.line.seq == after.line.seq) {
            return Ok(Some(AuditPlace { line: anchor.line, segment: anchor.segment + 1, offset: 0 }));
        }
        if let Some(line) = self.line_before(after.segment, after.offset, durable)?
            && line == after.line
        {
            return Ok(Some(after));
        }
        // Rare: the copy has its lines elsewhere, or other lines.
        self.find(after.line.seq, durable)
    }

    /// The line that ends at an offset, if one does.
    fn line_before(&self, segment: u64, offset: u64, durable: &Durable) -> io::Result<Option<AuditLine>> {
        let Some(file) = self.open(segment)? else { return Ok(None) };
        if offset == 0 || offset > self.bytes_of(&file, segment, durable)? {
            return Ok(None);
        }
        let length = offset.min(LINE_BYTES_MAX as u64 + 2);
        let mut buffer = vec![0; length as usize];
        file.read_exact_at(&mut buffer, offset - length)?;
        if buffer.pop() != Some(b'\n') {
            return Ok(None);
        }
        let begin = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        if begin == 0 && length < offset {
            return Ok(None);
        }
        let content = &buffer[begin..];
        let parsed = line::parse_line(content).ok();
        Ok(parsed.map(|parsed| AuditLine { seq: parsed.seq, hash: line::hash_line(content) }))
    }

    /// Looks for a line by its number. Segments are looked at by their first lines, and one of them is read.
    fn find(&self, seq: u64, durable: &Durable) -> io::Result<Option<AuditPlace>> {
        let mut segments = list_segments(&self.directory)?;
        segments.retain(|(number, _)| *number <= durable.segment);
        let (mut low, mut high) = (0, segments.len());
        while low < high {
            let middle = (low + high) / 2;
            if first_seq(&segments[middle].1)?.is_some_and(|first| first <= seq) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some((number, path)) = low.checked_sub(1).map(|position| &segments[position]) else { return Ok(None) };
        let mut found = None;
        read_lines(path, |content, offset, whole| {
            // Somebody may have made the file as long as he liked; what is no line ends it.
            let Some(parsed) = line::parse_line(content).ok().filter(|_| whole) else { return false };
            if parsed.seq >= seq {
                let line = AuditLine { seq: parsed.seq, hash: line::hash_line(content) };
                found = Some(AuditPlace { line, segment: *number, offset });
            }
            found.is_none()
        })?;
        Ok(found.filter(|place| place.line.seq == seq))
    }

    /// Whole lines behind a place: of its segment, or of the next one if it has no more.
    fn lines_after(&self, from: AuditPlace, durable: &Durable, bytes_max: usize) -> io::Result<(u64, u64, Vec<u8>)> {
        let (mut segment, mut offset) = (from.segment, from.offset);
        loop {
            let missing = || io::Error::new(io::ErrorKind::NotFound, format!("segment {segment} is missing"));
            let file = self.open(segment)?.ok_or_else(missing)?;
            let left = self.bytes_of(&file, segment, durable)?.saturating_sub(offset);
            if left == 0 && segment < durable.segment {
                (segment, offset) = (segment + 1, 0);
                continue;
            }
            let mut lines = vec![0; usize::try_from(left).map_or(bytes_max, |left| left.min(bytes_max))];
            file.read_exact_at(&mut lines, offset)?;
            let whole = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            if whole == 0 && left > 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("segment {segment} has a line without end"),
                ));
            }
            lines.truncate(whole);
            return Ok((segment, offset, lines));
        }
    }

    fn open(&self, segment: u64) -> io::Result<Option<File>> {
        let path = segment_path(&self.directory, segment);
        // A pipe in its place would be waited for.
        match std::fs::metadata(&path).map(|metadata| metadata.is_file()) {
            Ok(true) => File::open(path).map(Some),
            Ok(false) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("segment {segment} is no file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many bytes of a segment are durable.
    fn bytes_of(&self, file: &File, segment: u64, durable: &Durable) -> io::Result<u64> {
        match segment.cmp(&durable.segment) {
            std::cmp::Ordering::Less => Ok(file.metadata()?.len()),
            std::cmp::Ordering::Equal => Ok(durable.bytes),
            std::cmp::Ordering::Greater => Ok(0),
        }
    }
}

fn unreadable(error: io::Error) -> AuditPullError {
    AuditPullError::Unreadable(error.to_string())
}

fn first_seq(path: &Path) -> io::Result<Option<u64>> {
    let mut first = None;
    read_lines(path, |content, _, _| {
        first = line::parse_line(content).ok().map(|parsed| parsed.seq);
        false
    })?;
    Ok(first)
}

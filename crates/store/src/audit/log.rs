//! The writer: group commit, rotation, checkpoints.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use holdfast_core::{Ambient, AuditError, AuditEvent, AuditSink, PartitionId, Timestamp};
use holdfast_crypto::EcKey;
use tokio::sync::oneshot;

use super::{
    line::{self, Checkpoint, GENESIS},
    segment::{list_segments, read_lines, segment_path},
};

/// Events that may wait for the disk. More is refused at once.
const QUEUE_EVENTS: usize = 8192;
/// Events that share one sync at most.
const GROUP_EVENTS: usize = 1024;

/// Where and how to log.
#[derive(Clone, Debug)]
pub struct AuditLogConfig {
    /// Directory of the segments.
    pub directory: PathBuf,
    /// A segment is closed at this size.
    pub segment_bytes_max: u64,
    /// A segment is closed at this age.
    pub segment_age_max: Duration,
    /// With traffic, a checkpoint is signed this often.
    pub checkpoint_interval: Duration,
    /// Last checkpoint known from elsewhere; the log must contain it.
    pub expected: Option<Checkpoint>,
    /// Go on although the log does not contain `expected`. The loss is recorded.
    pub accept_loss: bool,
}

/// Why the log does not open.
#[derive(Debug, thiserror::Error)]
pub enum AuditOpenError {
    /// A file cannot be read or written.
    #[error("the audit log in {directory}: {source}")]
    File {
        /// Its directory.
        directory: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The last segment is damaged before its end.
    #[error("the audit log is damaged at {path}, line {seq}: {why}; run `holdfast audit verify`")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Number of the last good line.
        seq: u64,
        /// What is wrong.
        why: String,
    },
    /// Lines that were durable are missing.
    #[error(
        "the audit log ends at line {found}, but line {expected} had been written: lines were removed or replaced; \
         restore them, or set `accept_loss = true` in [audit] once to go on and record the loss"
    )]
    Truncated {
        /// Last line found.
        found: u64,
        /// Line that should be there.
        expected: u64,
    },
}

struct Pending {
    body: String,
    reply: oneshot::Sender<Result<(), AuditError>>,
}

/// An open audit log.
pub struct AuditLog {
    events: Mutex<Option<SyncSender<Pending>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    latest: Arc<Mutex<Checkpoint>>,
}

impl AuditLog {
    /// Opens the log, repairs a torn last line, and starts the writer.
    ///
    /// # Errors
    /// [`AuditOpenError`].
    pub fn open(
        config: AuditLogConfig,
        instance: PartitionId,
        key: EcKey,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, AuditOpenError> {
        let directory = config.directory.clone();
        let failed = |source| AuditOpenError::File { directory: directory.clone(), source };
        std::fs::create_dir_all(&config.directory).map_err(failed)?;
        let tail = Tail::read(&config)?;
        let mut notes = Vec::new();
        if tail.torn_bytes > 0 {
            notes.push(format!("a torn last line of {} bytes, never acknowledged, was cut", tail.torn_bytes));
        }
        if let Some(expected) = config.expected
            && tail.expected_found != Some(true)
        {
            let (found, expected) = (tail.seq, expected.seq);
            if !config.accept_loss {
                return Err(AuditOpenError::Truncated { found, expected });
            }
            notes.push(format!("line {expected} was expected and is missing or different; the loss was accepted"));
        }
        let latest = Arc::new(Mutex::new(Checkpoint { seq: tail.seq, head: tail.head }));
        let mut writer = Writer {
            segment: Segment::next(&config.directory, tail.segment + 1).map_err(failed)?,
            config,
            instance,
            key,
            ambient,
            seq: tail.seq,
            head: tail.head,
            unsigned: false,
            signed_at: Instant::now(),
            broken: false,
            latest: Arc::clone(&latest),
        };
        let detail = format!(
            "holdfast {}{}",
            env!("CARGO_PKG_VERSION"),
            notes.iter().fold(String::new(), |all, note| all + "; " + note)
        );
        writer.begin_segment().and_then(|()| writer.note("start", &detail)).map_err(failed)?;
        let (events, queue) = sync_channel(QUEUE_EVENTS);
        let writer =
            thread::Builder::new().name("audit-writer".into()).spawn(move || writer.run(&queue)).map_err(failed)?;
        Ok(Self { events: Mutex::new(Some(events)), writer: Mutex::new(Some(writer)), latest })
    }

    /// The newest line that is durable.
    #[must_use]
    pub fn latest(&self) -> Checkpoint {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is queued, signs a last checkpoint, and stops. Later appends fail.
    pub fn close(&self) {
        drop(self.events.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl AuditSink for AuditLog {
    async fn append(&self, event: AuditEvent) -> Result<(), AuditError> {
        let body = line::event_body(&event).map_err(|error| AuditError(error.to_string()))?;
        let (reply, answer) = oneshot::channel();
        {
            let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            let events = events.as_ref().ok_or_else(|| AuditError("the log is closed".into()))?;
            events.try_send(Pending { body, reply }).map_err(|error| match error {
                TrySendError::Full(_) => AuditError("too many events wait for the disk".into()),
                TrySendError::Disconnected(_) => AuditError("the writer has stopped".into()),
            })?;
        }
        answer.await.map_err(|_| AuditError("the writer has stopped".into()))?
    }
}

/// Where the existing log ends.
struct Tail {
    segment: u64,
    seq: u64,
    head: [u8; 32],
    torn_bytes: u64,
    expected_found: Option<bool>,
}

impl Tail {
    /// Reads back to the segment that should hold the expected checkpoint, checks the chain from there, and cuts a
    /// torn last line.
    fn read(config: &AuditLogConfig) -> Result<Self, AuditOpenError> {
        let failed = |source| AuditOpenError::File { directory: config.directory.clone(), source };
        let segments = list_segments(&config.directory).map_err(failed)?;
        let mut tail = Self {
            segment: 0,
            seq: 0,
            head: GENESIS,
            torn_bytes: 0,
            expected_found: config.expected.map(|e| e.seq == 0),
        };
        let start = first_segment_to_read(&segments, config.expected).map_err(failed)?;
        for (position, (number, path)) in segments.iter().enumerate().skip(start) {
            let mut good_bytes = 0;
            let mut fault = None;
            let mut first = position == start;
            read_lines(path, |content, offset, whole| {
                let parsed = if whole { line::parse_line(content) } else { Err(line::LineError("it is torn".into())) };
                match parsed {
                    Ok(parsed) if first || (parsed.seq == tail.seq + 1 && parsed.prev == line::hex(&tail.head)) => {
                        first = false;
                        good_bytes = offset;
                        tail.seq = parsed.seq;
                        tail.head = line::hash_line(content);
                        if let Some(expected) = config.expected.filter(|expected| expected.seq == tail.seq) {
                            tail.expected_found = Some(expected.head == tail.head);
                        }
                        true
                    }
                    Ok(_) => {
                        fault = Some("the chain is broken".to_owned());
                        false
                    }
                    Err(error) => {
                        fault = Some(error.0);
                        false
                    }
                }
            })
            .map_err(failed)?;
            tail.segment = *number;
            let last = position + 1 == segments.len();
            if let Some(why) = fault {
                if !last || !is_torn_tail(path, good_bytes).map_err(failed)? {
                    return Err(AuditOpenError::Damaged { path: path.clone(), seq: tail.seq, why });
                }
                tail.torn_bytes = cut(path, good_bytes).map_err(failed)?;
            }
        }
        Ok(tail)
    }
}

/// The last segment that begins at or before the expected line; without one, the last segment.
fn first_segment_to_read(segments: &[(u64, PathBuf)], expected: Option<Checkpoint>) -> io::Result<usize> {
    let mut position = segments.len().saturating_sub(1);
    while position > 0 {
        let mut first_seq = None;
        read_lines(&segments[position].1, |content, _, _| {
            first_seq = line::parse_line(content).ok().map(|parsed| parsed.seq);
            false
        })?;
        match (first_seq, expected) {
            // A segment whose first line was torn tells nothing: begin before it.
            (None, _) => position -= 1,
            (Some(first), Some(expected)) if first > expected.seq => position -= 1,
            _ => break,
        }
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

struct Segment {
    number: u64,
    file: File,
    bytes: u64,
    opened: Instant,
}

impl Segment {
    /// Makes the segment `number`; its name is durable when this returns.
    fn next(directory: &Path, number: u64) -> io::Result<Self> {
        let path = segment_path(directory, number);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        File::open(directory)?.sync_all()?;
        Ok(Self { number, file, bytes: 0, opened: Instant::now() })
    }
}

struct Writer {
    config: AuditLogConfig,
    instance: PartitionId,
    key: EcKey,
    ambient: Arc<dyn Ambient>,
    segment: Segment,
    seq: u64,
    head: [u8; 32],
    /// Whether lines were written since the last checkpoint.
    unsigned: bool,
    signed_at: Instant,
    /// After a failed write or sync: the file is not written again.
    broken: bool,
    latest: Arc<Mutex<Checkpoint>>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Pending>) {
        loop {
            let wait = self.config.checkpoint_interval.saturating_sub(self.signed_at.elapsed());
            let first = if self.unsigned { queue.recv_timeout(wait) } else { queue.recv().map_err(Into::into) };
            match first {
                Ok(first) => {
                    let mut group = vec![first];
                    while group.len() < GROUP_EVENTS
                        && let Ok(next) = queue.try_recv()
                    {
                        group.push(next);
                    }
                    self.write_group(group);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.unsigned && self.signed_at.elapsed() >= self.config.checkpoint_interval {
                self.checkpoint_or_report();
            }
            if self.segment.bytes >= self.config.segment_bytes_max
                || self.segment.opened.elapsed() >= self.config.segment_age_max
            {
                self.checkpoint_or_report();
                self.rotate_or_report();
            }
        }
        if let Err(error) = self.note("stop", "orderly").and_then(|()| self.checkpoint()) {
            tracing::error!(%error, "the audit log could not be closed in order");
        }
    }

    fn write_group(&mut self, group: Vec<Pending>) {
        let bodies: Vec<&str> = group.iter().map(|pending| pending.body.as_str()).collect();
        let result = self.repair().and_then(|()| self.write_lines(&bodies)).map_err(|error| {
            tracing::error!(%error, "the audit log cannot be written; requests fail until it can");
            AuditError(error.to_string())
        });
        for pending in group {
            // A caller that went away still has its event in the log.
            let _ = pending.reply.send(result.clone());
        }
    }

    /// Appends lines and syncs. Place and head move only when the lines are durable.
    fn write_lines(&mut self, bodies: &[&str]) -> io::Result<()> {
        let (mut seq, mut head) = (self.seq, self.head);
        let mut buffer = Vec::with_capacity(bodies.iter().map(|body| body.len() + 128).sum());
        for body in bodies {
            seq += 1;
            let line = line::complete(body, seq, &head);
            head = line::hash_line(line.as_bytes());
            buffer.extend_from_slice(line.as_bytes());
            buffer.push(b'\n');
        }
        let written = self.segment.file.write_all(&buffer).and_then(|()| self.segment.file.sync_data());
        if let Err(error) = written {
            self.broken = true;
            return Err(error);
        }
        self.segment.bytes += buffer.len() as u64;
        (self.seq, self.head) = (seq, head);
        self.unsigned = true;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Checkpoint { seq, head };
        Ok(())
    }

    fn note(&mut self, kind: &'static str, detail: &str) -> io::Result<()> {
        let body = line::note_body(kind, self.now(), detail)?;
        self.write_lines(&[&body])
    }

    fn now(&self) -> Timestamp {
        self.ambient.now()
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let body = line::segment_body(self.instance, self.segment.number, self.key.public(), self.now())?;
        self.write_lines(&[&body])
    }

    fn checkpoint(&mut self) -> io::Result<()> {
        let body = line::checkpoint_body(self.instance, self.seq + 1, &self.head, self.now(), &self.key)
            .map_err(io::Error::other)?;
        self.write_lines(&[&body])?;
        self.unsigned = false;
        self.signed_at = Instant::now();
        Ok(())
    }

    fn checkpoint_or_report(&mut self) {
        if let Err(error) = self.checkpoint() {
            tracing::error!(%error, "the audit log could not be signed");
            self.signed_at = Instant::now();
        }
    }

    fn rotate_or_report(&mut self) {
        if let Err(error) = self.rotate() {
            tracing::error!(%error, "the audit log could not begin a new segment");
            self.segment.opened = Instant::now();
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.segment = Segment::next(&self.config.directory, self.segment.number + 1)?;
        self.begin_segment()
    }

    /// After a failure: cuts what may be half-written, and goes on in a new segment. A failed sync is never retried
    /// on the same file, since the kernel may have dropped its pages.
    fn repair(&mut self) -> io::Result<()> {
        if !self.broken {
            return Ok(());
        }
        self.segment.file.set_len(self.segment.bytes)?;
        self.segment.file.sync_all()?;
        let number = self.segment.number + 1;
        let path = segment_path(&self.config.directory, number);
        // Left by a repair that failed half-way; nothing in it was acknowledged.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.segment = Segment::next(&self.config.directory, number)?;
        self.broken = false;
        self.begin_segment()?;
        self.note("start", "the log could not be written for a while; requests of that time failed")
    }
}

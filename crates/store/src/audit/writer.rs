//! The writer: group commit, events of changes from the outbox, rotation, checkpoints, repair.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::{Ambient, AuditError, PartitionId, Revision, Timestamp};
use tokio::sync::oneshot;

use super::{
    AuditKeys, AuditLogConfig,
    line::{self, Checkpoint},
    segment::segment_path,
    tail::Tail,
};
use crate::{
    gather::{Taken, Taker},
    outbox::{Outbox, StoredEvent},
};

/// Events that share one sync at most.
const GROUP_EVENTS: usize = 1024;
/// How long events of changes may wait in the outbox: they are durable in the store, and nobody waits for them here.
const OUTBOX_DELAY: Duration = Duration::from_millis(20);
/// After a failure: when to try again if no request comes.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// When to look again if there is nothing to do; a job ends the wait.
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);

/// What the writer is asked.
pub(super) enum Job {
    /// Look into the outbox.
    Look,
    /// Write an event, and say when it is durable.
    Write { body: String, reply: oneshot::Sender<Result<(), AuditError>> },
}

struct Segment {
    number: u64,
    file: File,
    opened: Instant,
}

impl Segment {
    /// Makes the segment `number`; its name is durable when this returns.
    fn next(directory: &Path, number: u64) -> io::Result<Self> {
        let path = segment_path(directory, number);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        File::open(directory)?.sync_all()?;
        Ok(Self { number, file, opened: Instant::now() })
    }
}

/// How far the log has come.
#[derive(Clone, Copy)]
struct Reached {
    end: Checkpoint,
    /// Bytes of the segment.
    bytes: u64,
}

pub(super) struct Writer {
    config: AuditLogConfig,
    instance: PartitionId,
    keys: AuditKeys,
    ambient: Arc<dyn Ambient>,
    segment: Segment,
    /// What is written.
    written: Reached,
    /// What of it is synced.
    durable: Reached,
    /// Whose lines are written and not synced.
    unsynced: Vec<StoredEvent>,
    /// Since when there has been something in the outbox, as far as it was looked at.
    outbox_since: Option<Instant>,
    /// Whether lines were written since the last checkpoint.
    unsigned: bool,
    signed_at: Instant,
    /// After a failed write or sync: the file is not written again.
    broken: bool,
    outbox: Arc<Outbox>,
    status: Arc<Mutex<Status>>,
}

/// What others see of the writer.
pub(super) struct Status {
    /// The newest line that is durable.
    pub latest: Checkpoint,
    /// The segment that it stands in, and how many bytes of that are durable. Segments before it do not change any more.
    pub segment: u64,
    pub segment_bytes: u64,
    /// Why the log cannot be written, while it cannot.
    pub fault: Option<String>,
}

impl Writer {
    /// Begins a segment, and says in it how the log was found. `raised`: what changes are counted from, if it is not what was told last; what waits of
    /// the store's changes is told before that.
    pub(super) fn begin(
        config: AuditLogConfig,
        instance: PartitionId,
        keys: AuditKeys,
        ambient: Arc<dyn Ambient>,
        (tail, raised): (&Tail, Option<Revision>),
        (outbox, status): (Arc<Outbox>, Arc<Mutex<Status>>),
        notes: &[String],
    ) -> io::Result<Self> {
        let reached = Reached { end: tail.end, bytes: 0 };
        let mut writer = Self {
            segment: Segment::next(&config.directory, tail.segment + 1)?,
            config,
            instance,
            keys,
            ambient,
            written: reached,
            durable: reached,
            unsynced: Vec::new(),
            outbox_since: None,
            unsigned: false,
            signed_at: Instant::now(),
            broken: false,
            outbox,
            status,
        };
        let version = format!("holdfast {}", env!("CARGO_PKG_VERSION"));
        let detail = notes.iter().fold(version, |all, note| all + "; " + note);
        writer.begin_segment()?;
        if let Some(raised) = raised {
            if writer.outbox.waiting() > 0 {
                writer.start("events of changes of before follow")?;
                writer.drain()?;
            }
            writer.written.end.revision = raised;
        }
        writer.start(&detail)?;
        writer.sync()?;
        Ok(writer)
    }

    pub(super) fn run(mut self, queue: &Taker<Job>) {
        while let Taken::Jobs(group) = queue.take(GROUP_EVENTS, self.patience()) {
            self.write_group(group);
            if self.unsigned && self.signed_at.elapsed() >= self.config.checkpoint_interval {
                self.checkpoint_or_report();
            }
            if self.written.bytes >= self.config.segment_bytes_max
                || self.segment.opened.elapsed() >= self.config.segment_age_max
            {
                self.checkpoint_or_report();
                self.rotate_or_report();
            }
        }
        let closed = self.repair().and_then(|()| self.drain()).and_then(|()| self.note("stop", "orderly"));
        if let Err(error) = closed.and_then(|()| self.checkpoint()) {
            tracing::error!(%error, "the audit log could not be closed in order");
        }
    }

    /// How long there is nothing to do if no job comes.
    fn patience(&mut self) -> Duration {
        if self.broken {
            // Nothing is signed or synced before it is mended.
            return RETRY_INTERVAL;
        }
        let mut patience = IDLE_INTERVAL;
        if self.unsigned {
            patience = patience.min(self.config.checkpoint_interval.saturating_sub(self.signed_at.elapsed()));
        }
        if self.outbox.waiting() > 0 {
            let since = *self.outbox_since.get_or_insert_with(Instant::now);
            patience = patience.min(OUTBOX_DELAY.saturating_sub(since.elapsed()));
        }
        patience
    }

    /// Writes what the outbox has, and then these events: whatever a use rests on is told before it.
    fn write_group(&mut self, group: Vec<Job>) {
        let events: Vec<(String, oneshot::Sender<_>)> = group
            .into_iter()
            .filter_map(|job| match job {
                Job::Look => None,
                Job::Write { body, reply } => Some((body, reply)),
            })
            .collect();
        let result = self.try_write_group(&events).map_err(|error| {
            let why = error.to_string();
            // Said once, and not with each attempt.
            if self.status().fault.replace(why.clone()).as_ref() != Some(&why) {
                tracing::error!(why, "the audit log cannot be written; requests fail until it can");
            }
            AuditError(why)
        });
        for (_, reply) in events {
            // A caller that went away still has its event in the log.
            let _ = reply.send(result.clone());
        }
    }

    fn try_write_group(&mut self, events: &[(String, oneshot::Sender<Result<(), AuditError>>)]) -> io::Result<()> {
        self.repair()?;
        let due = self.outbox_since.is_some_and(|since| since.elapsed() >= OUTBOX_DELAY);
        if events.is_empty() && !due {
            return Ok(());
        }
        self.drain()?;
        self.append(events.iter().map(|(body, _)| (body.as_str(), None)))?;
        self.sync()
    }

    /// Writes the events of changes that wait.
    fn drain(&mut self) -> io::Result<()> {
        self.outbox_since = None;
        loop {
            let events = self.outbox.take(GROUP_EVENTS);
            if events.is_empty() {
                return Ok(());
            }
            let first = self.unsynced.len();
            self.unsynced.extend(events);
            let lines = self.unsynced[first..].to_vec();
            self.append(lines.iter().map(|event| (event.body.as_ref(), Some(event.revision))))?;
        }
    }

    /// Appends lines. They are durable with the next [`Self::sync`].
    fn append<'a>(&mut self, bodies: impl Iterator<Item = (&'a str, Option<Revision>)>) -> io::Result<()> {
        let mut end = self.written.end;
        let mut buffer = Vec::new();
        for (body, revision) in bodies {
            end.seq += 1;
            end.revision = revision.unwrap_or(end.revision);
            let unsynced = end.seq - 1 - self.durable.end.seq;
            let line = line::complete(body, end.seq, revision, unsynced, &end.head, &self.keys.lines);
            end.head = line::hash_line(line.as_bytes());
            buffer.extend_from_slice(line.as_bytes());
            buffer.push(b'\n');
        }
        if let Err(error) = self.segment.file.write_all(&buffer) {
            self.fail();
            return Err(error);
        }
        self.written = Reached { end, bytes: self.written.bytes + buffer.len() as u64 };
        self.unsigned = true;
        Ok(())
    }

    /// Makes durable what is written, and tells the outbox.
    fn sync(&mut self) -> io::Result<()> {
        if let Err(error) = self.segment.file.sync_data() {
            self.fail();
            return Err(error);
        }
        self.durable = self.written;
        self.outbox.recorded(std::mem::take(&mut self.unsynced));
        let (durable, segment) = (self.durable, self.segment.number);
        let mut status = self.status();
        (status.latest, status.segment, status.segment_bytes) = (durable.end, segment, durable.bytes);
        if status.fault.take().is_some() {
            tracing::info!("the audit log can be written again");
        }
        Ok(())
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is not synced never was written.
    fn fail(&mut self) {
        self.broken = true;
        self.written = self.durable;
        self.outbox.put_back(std::mem::take(&mut self.unsynced));
    }

    fn note(&mut self, kind: &'static str, detail: &str) -> io::Result<()> {
        let body = line::note_body(kind, self.now(), detail)?;
        self.append([(body.as_str(), None)].into_iter())
    }

    /// A `start` line tells which change the log has come to: those that follow are counted from it.
    fn start(&mut self, detail: &str) -> io::Result<()> {
        let body = line::note_body("start", self.now(), detail)?;
        let revision = self.written.end.revision;
        self.append([(body.as_str(), Some(revision))].into_iter())
    }

    fn now(&self) -> Timestamp {
        self.ambient.now()
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let key = self.keys.signing.public();
        let body = line::segment_body(self.keys.lines.format(), self.instance, self.segment.number, key, self.now())?;
        self.append([(body.as_str(), None)].into_iter())
    }

    fn checkpoint(&mut self) -> io::Result<()> {
        let Checkpoint { seq, head, .. } = self.written.end;
        let body = line::checkpoint_body(self.instance, seq + 1, &head, self.now(), &self.keys.signing)
            .map_err(io::Error::other)?;
        self.append([(body.as_str(), None)].into_iter())?;
        self.sync()?;
        self.unsigned = false;
        self.signed_at = Instant::now();
        Ok(())
    }

    fn checkpoint_or_report(&mut self) {
        if self.broken {
            return;
        }
        if let Err(error) = self.checkpoint() {
            tracing::error!(%error, "the audit log could not be signed");
            self.signed_at = Instant::now();
        }
    }

    fn rotate_or_report(&mut self) {
        if self.broken {
            return;
        }
        if let Err(error) = self.rotate() {
            tracing::error!(%error, "the audit log could not begin a new segment");
            self.segment.opened = Instant::now();
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        // What is written to a segment is synced with it: a sync of the next one would not reach it.
        self.sync()?;
        self.segment = self.fresh_segment(self.segment.number + 1)?;
        (self.written.bytes, self.durable.bytes) = (0, 0);
        self.begin_segment()?;
        self.sync()
    }

    /// Begins a segment in which nothing was acknowledged so far; what an attempt that failed half-way has left of it goes.
    fn fresh_segment(&self, number: u64) -> io::Result<Segment> {
        match std::fs::remove_file(segment_path(&self.config.directory, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Segment::next(&self.config.directory, number),
        }
    }

    /// After a failure: cuts what may be half-written, and goes on in a new segment. A failed sync is never retried
    /// on the same file, since the kernel may have dropped its pages.
    fn repair(&mut self) -> io::Result<()> {
        if !self.broken {
            return Ok(());
        }
        self.segment.file.set_len(self.durable.bytes)?;
        self.segment.file.sync_all()?;
        // A segment in which nothing is durable is begun anew: on a full disk there would be one more with each attempt.
        let number = self.segment.number + u64::from(self.durable.bytes > 0);
        self.segment = self.fresh_segment(number)?;
        (self.written.bytes, self.durable.bytes) = (0, 0);
        self.broken = false;
        self.begin_segment()?;
        self.start("the log could not be written for a while; requests of that time failed")?;
        self.sync()
    }
}

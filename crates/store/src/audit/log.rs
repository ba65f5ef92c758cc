//! The log, opened: what it is given, and what it gives back.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::{
    Ambient, AuditAsk, AuditError, AuditEvent, AuditLine, AuditPullError, AuditPulled, AuditSink, AuditSource,
    PartitionId, Revision,
};
use holdfast_crypto::{EcKey, SecretBytes};

use super::{
    archive, aside,
    line::{self, Checkpoint, LineMac},
    reader::Reader,
    tail::Tail,
    writer::{Job, Status, Writer},
};
use crate::{
    gather::{Gather, Refused},
    outbox::Outbox,
};

/// Events that may wait for the disk. More is refused at once.
const QUEUE_EVENTS: usize = 8192;

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
    /// Last line known from elsewhere; the log must contain it.
    pub expected: Option<Checkpoint>,
    /// Whether that line was written by a version whose lines have MACs.
    pub expected_has_macs: bool,
    /// Lines of an earlier format than this one are of the past: they are taken only if the expected line, or one of this format, stands behind them
    /// in the chain and so proves them.
    pub floor: u8,
    /// Go on although the log is not what it was: it does not contain `expected`, ends with lines of somebody else, or is of another moment than
    /// the store. What was accepted is recorded.
    pub accept_loss: bool,
    /// A restore that was meant: the store may be behind the log by just this.
    pub restored: Option<RestoredStore>,
    /// What else the first line is to tell: what was found when the store was opened.
    pub notes: Vec<String>,
    /// What was accepted then; the first line tells that, too.
    pub accepted: Vec<String>,
}

/// A store that was put back beside its log, by somebody who had the instance's silicon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RestoredStore {
    /// The newest change in it.
    pub store: Revision,
    /// Where the log ended then: it is of this end alone.
    pub log: Checkpoint,
    /// The newest change that was known of then, be it undone: numbers of changes go on above it.
    pub newest: Revision,
}

/// How far a log that is being written is durable, in files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogExtent {
    /// The last segment that has something durable. Those before it do not change any more.
    pub segment: u64,
    /// How many bytes of it are durable.
    pub bytes: u64,
}

/// Keys of a log, born in its instance.
pub struct AuditKeys {
    /// Signs checkpoints, and heads for those who keep copies.
    pub signing: Arc<EcKey>,
    /// Marks each line as ours.
    pub lines: LineMac,
}

impl AuditKeys {
    /// Both, from the instance's audit key (P-384).
    ///
    /// # Errors
    /// [`CryptoError`](holdfast_crypto::CryptoError) if it is none.
    pub fn new(secret: &SecretBytes) -> Result<Self, holdfast_crypto::CryptoError> {
        let signing = Arc::new(EcKey::load(holdfast_crypto::Curve::P384, secret)?);
        Ok(Self { signing, lines: LineMac::derive(secret)? })
    }

    /// The same for one of several logs that an instance has.
    ///
    /// # Errors
    /// [`CryptoError`](holdfast_crypto::CryptoError) if it is none.
    pub fn of_log(secret: &SecretBytes, name: &str) -> Result<Self, holdfast_crypto::CryptoError> {
        Ok(Self { lines: LineMac::of_log(secret, name)?, ..Self::new(secret)? })
    }
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
    /// A segment is damaged before its end, or missing before the last.
    #[error(
        "the audit log is damaged at {path}, after line {seq}: {why}; run `holdfast audit verify`; restore it, or set `accept_loss = true` in \
         [audit] once to set the rest aside and record that"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Number of the last good line.
        seq: u64,
        /// What is wrong.
        why: String,
    },
    /// Somebody without the key wrote to the log.
    #[error(
        "the audit log was written to by somebody else: {path}, line {seq} and what follows has no MAC of this instance; remove it, or set \
         `accept_loss = true` in [audit] once to set it aside and record that"
    )]
    Forged {
        /// Which file.
        path: PathBuf,
        /// Number of the first such line.
        seq: u64,
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
    /// The store was put back, or belongs to an earlier moment than the log.
    #[error(
        "the store is older than its audit log: it ends with change {store}, but the log tells of change {log}; restore the store of that \
         moment, or set `accept_loss = true` in [audit] once to go on with the older one and record that"
    )]
    StoreOlder {
        /// The newest change in the store.
        store: Revision,
        /// The newest change in the log.
        log: Revision,
    },
    /// The log was put back, or belongs to an earlier moment than the store.
    #[error(
        "the audit log is older than its store: it ends with change {log}, but the store has come to change {store}, and what happened \
         between is not told; restore the log of that moment, or set `accept_loss = true` in [audit] once to go on and record the gap"
    )]
    LogOlder {
        /// The newest change in the store.
        store: Revision,
        /// The newest change in the log.
        log: Revision,
    },
}

/// An open audit log.
pub struct AuditLog {
    jobs: Arc<Gather<Job>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    status: Arc<Mutex<Status>>,
    outbox: Arc<Outbox>,
    reader: Arc<Reader>,
    accepted: Vec<String>,
    raised: Option<Revision>,
    directory: PathBuf,
}

impl AuditLog {
    /// Opens the log, repairs a torn last line, checks that it and the store are of one moment, and starts the writer, which takes the events of
    /// changes out of `outbox`. Then [`Self::raised`] says whether the store has to follow before it takes changes.
    ///
    /// # Errors
    /// [`AuditOpenError`].
    pub fn open(
        config: AuditLogConfig,
        instance: PartitionId,
        keys: AuditKeys,
        ambient: Arc<dyn Ambient>,
        outbox: Arc<Outbox>,
    ) -> Result<Self, AuditOpenError> {
        let directory = config.directory.clone();
        let failed = |source| AuditOpenError::File { directory: directory.clone(), source };
        std::fs::create_dir_all(&config.directory).map_err(failed)?;
        let untold = aside::untold(&config.directory).map_err(failed)?;
        let mut tail = Tail::read(&config, &keys.lines)?;
        let (mut notes, mut accepted) = (config.notes.clone(), config.accepted.clone());
        accepted.extend(untold);
        if let Some((_, _, bytes)) = tail.torn {
            notes.push(format!("a torn end of {bytes} bytes, never acknowledged, was cut"));
        }
        if let Some((seq, what)) = tail.aside {
            accepted.push(format!("line {seq} and what followed {what}; it was set aside"));
        }
        if let Some(expected) = config.expected
            && tail.expected_found != Some(true)
        {
            let (found, expected) = (tail.end.seq, expected.seq);
            if !config.accept_loss {
                return Err(AuditOpenError::Truncated { found, expected });
            }
            accepted.push(format!("line {expected} was expected and is missing or different; the loss was accepted"));
        }
        let raised = match restored(&tail, &outbox, config.restored) {
            Some((note, above)) => {
                notes.push(note);
                Some(above)
            }
            None => {
                let lost = config.expected.filter(|_| tail.expected_found != Some(true));
                let (found, raised) = reconcile(&mut tail, &outbox, config.accept_loss, lost)?;
                accepted.extend(found);
                raised
            }
        };
        notes.extend(accepted.iter().cloned());
        // Only now: what is refused is left as it was found.
        tail.make_durable(&config.directory).map_err(failed)?;
        let found = Status { latest: tail.end, segment: tail.segment, segment_bytes: 0, fault: None };
        let status = Arc::new(Mutex::new(found));
        let reader = Reader::new(&config.directory, instance, Arc::clone(&keys.signing), &status, &ambient);
        let (jobs, queue) = Gather::start(QUEUE_EVENTS);
        let told = (Arc::clone(&outbox), Arc::clone(&status));
        let writer = Writer::begin(config, instance, keys, ambient, (&tail, raised), told, &notes).map_err(failed)?;
        let writer =
            thread::Builder::new().name("audit-writer".into()).spawn(move || writer.run(&queue)).map_err(failed)?;
        let woken = Arc::downgrade(&jobs);
        outbox.wake_with(move || {
            if let Some(jobs) = woken.upgrade() {
                // A full queue needs no waking: before it waits, the writer looks.
                let _ = jobs.push(Job::Look);
            }
        });
        let reader = Arc::new(reader);
        Ok(Self { jobs, writer: Mutex::new(Some(writer)), status, outbox, accepted, raised, reader, directory })
    }

    /// What was accepted is in the log, with its event. Files that were set aside have their last names from now on: until then, each start tells of
    /// them.
    ///
    /// # Errors
    /// If they cannot be renamed.
    pub fn accepted_is_told(&self) -> io::Result<()> {
        aside::settle(&self.directory)
    }

    /// What was accepted at opening although log and store are not as they were left.
    #[must_use]
    pub fn accepted(&self) -> &[String] {
        &self.accepted
    }

    /// The log tells of changes up to this one, some of which the store does not have any more: no number is given twice, so those of the store go on
    /// above it. The store is to be raised to it before it takes changes; until then, the next start finds what this one found.
    #[must_use]
    pub fn raised(&self) -> Option<Revision> {
        self.raised
    }

    /// The newest line that is durable.
    #[must_use]
    pub fn latest(&self) -> Checkpoint {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).latest
    }

    /// How far it is durable, in files: for copies.
    #[must_use]
    pub fn extent(&self) -> LogExtent {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        LogExtent { segment: status.segment, bytes: status.segment_bytes }
    }

    /// Whether a segment may be handed over that ends with this line: it is closed, and ends so.
    ///
    /// # Errors
    /// Why it may not, or that it cannot be read.
    pub fn may_hand_over(&self, segment: u64, end: AuditLine) -> io::Result<()> {
        let no = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("segment {segment} {why}")));
        if segment >= self.extent().segment {
            return no("is not closed");
        }
        match archive::last_line(&self.directory, segment)? {
            Some(last) if last == end => Ok(()),
            _ => no("does not end with that line"),
        }
    }

    /// Why the log cannot be written, while it cannot. It tries again by itself.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).fault.clone()
    }

    /// How many events of changes are in the store and not yet in the log.
    #[must_use]
    pub fn outbox_waiting(&self) -> usize {
        self.outbox.waiting()
    }

    /// Writes what is queued, signs a last checkpoint, and stops. Later appends fail.
    pub fn close(&self) {
        self.jobs.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

/// Takes the very store that was restored, beside the very log that it was restored beside, or what a start that broke off has written behind that. Gives
/// the number that those of changes go on above; none, if that is the store's own.
fn restored(tail: &Tail, outbox: &Outbox, restored: Option<RestoredStore>) -> Option<(String, Revision)> {
    let RestoredStore { store, log, newest } = restored?;
    let above = newest.max(log.revision);
    if outbox.stored() != store || !tail.goes_on_from_restored || above <= store {
        return None;
    }
    let told = tail.end.revision;
    if outbox.missing_after(told) != told {
        return None;
    }
    outbox.told_up_to(told);
    let raised = next(above);
    let found = format!("it ends with change {store}, the log with {}", log.revision);
    Some((format!("the store was restored from a backup: {found}; changes are numbered from {raised} on"), raised))
}

fn next(revision: Revision) -> Revision {
    Revision(revision.0.saturating_add(1))
}

/// Compares the log's end with the store: log and outbox together tell of every change of the store, and of none that it does not have. Gives what
/// was accepted, if anything had to be, and the number that those of changes go on above, if some that were told are lost. `lost`: a line that should
/// be there.
fn reconcile(
    tail: &mut Tail,
    outbox: &Outbox,
    accept: bool,
    lost: Option<Checkpoint>,
) -> Result<(Option<String>, Option<Revision>), AuditOpenError> {
    let (store, log) = (outbox.stored(), tail.end.revision);
    let newest = log.max(lost.map_or(Revision(0), |lost| lost.revision));
    let raised = (newest > store).then(|| next(newest));
    if log > store {
        if !accept {
            return Err(AuditOpenError::StoreOlder { store, log });
        }
        outbox.told_up_to(store);
        let found = format!("the store ends with change {store}, the log with {log}; the older store was accepted");
        return Ok((Some(found), raised));
    }
    outbox.told_up_to(log);
    let missing = outbox.missing_after(log);
    if missing == log {
        return Ok((None, raised));
    }
    if !accept {
        return Err(AuditOpenError::LogOlder { store, log });
    }
    tail.end.revision = missing;
    let found = format!("the log ends with change {log}; that changes up to {missing} are not told was accepted");
    Ok((Some(found), raised))
}

#[async_trait]
impl AuditSource for AuditLog {
    async fn pull(&self, ask: AuditAsk) -> Result<AuditPulled, AuditPullError> {
        let reader = Arc::clone(&self.reader);
        let read = tokio::task::spawn_blocking(move || reader.pull(&ask)).await;
        read.map_err(|error| AuditPullError::Unreadable(error.to_string()))?
    }
}

#[async_trait]
impl AuditSink for AuditLog {
    async fn append(&self, event: AuditEvent) -> Result<(), AuditError> {
        let body = line::event_body(&event).map_err(|error| AuditError(error.to_string()))?;
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.jobs.push(Job::Write { body, reply }).map_err(|refused| match refused {
            Refused::Full => AuditError("too many events wait for the disk".into()),
            Refused::Closed => AuditError("the log is closed".into()),
        })?;
        answer.await.map_err(|_| AuditError("the writer has stopped".into()))?
    }
}

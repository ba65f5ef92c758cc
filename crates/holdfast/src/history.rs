//! What an instance knows of its own past, checked when it opens: floors under its formats, the row set of its store, the mark of its log.
//!
//! The floors lie in `instance.sealed`. They are set when an instance is founded, or once the upgrade of an older one has been told; from then on
//! what an earlier version would have left is no excuse for what is missing.

mod watermark;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use holdfast_core::{Ambient, AuditEvent, AuditSink, Principal, RecordKey, Revision, Store, Write};
use holdfast_store::{
    Condition, Copies, EmbeddedEngine, EmbeddedIndex, Outbox, SealedStore,
    audit::{AuditKeys, AuditLog, AuditLogConfig, Checkpoint, RestoredStore},
};

use crate::{
    backup::note::{self, Note},
    config::Audit,
    fault::Fault,
    founding::{self, LOG, SEALED},
    instance::{AuditMarks, Opened},
};
pub(crate) use watermark::{FILE as WATERMARK, Watermark};

/// Formats that have a floor (`docs/formats/instance-state.md`): shared rows...
pub(crate) const SHARED_ROWS: u8 = 1;
pub(crate) const SHARED_ROWS_VERSION: u8 = 2;
/// ...lines of the audit log, which have a MAC since version 2, and since version 3 one of their log where an instance has several...
pub(crate) const AUDIT_LINES: u8 = 2;
pub(crate) const AUDIT_LINES_VERSION: u8 = 2;
pub(crate) const AUDIT_LINES_OF_PROCESSES: u8 = 3;
/// ...and what `records.redb` keeps of itself: row set, number of changes, mark of the log; since version 2 there is a watermark beside it.
pub(crate) const KEPT_ROWS: u8 = 3;
const KEPT_ROWS_VERSION: u8 = 1;
const WATERMARK_VERSION: u8 = 2;
/// Beside these: 4, the storage's index, whose rows have MACs since version 2, and which keeps something of its events since version 3.
pub(crate) const STORAGE_INDEX: u8 = 4;
pub(crate) const STORAGE_INDEX_ROWS: u8 = 2;
pub(crate) const STORAGE_INDEX_VERSION: u8 = 3;

/// Rows of every role but the proxy.
const RECORDS: &str = "records.redb";
/// Record that remembers how far the audit log had come.
const AUDIT_MARK: u8 = 64;
/// Record that remembers which floors are in force: an older `instance.sealed` shows by it.
const FLOORS: u8 = 66;
const ACCEPT: &str =
    "restore what is missing, or set `accept_loss = true` in [audit] once to go on without it and record that";

pub(crate) type Floors = BTreeMap<u8, u8>;

/// The floors of an instance that is founded now: it never had lines without a MAC.
pub(crate) fn floors_of_birth() -> Floors {
    Floors::from([(AUDIT_LINES, AUDIT_LINES_VERSION)])
}

/// Whether `floors` has one for this format, at this version or above.
pub(crate) fn in_force(floors: &Floors, format: u8, version: u8) -> bool {
    floors.get(&format).is_some_and(|floor| *floor >= version)
}

/// Where the mark of the log is.
pub(crate) fn mark_key() -> RecordKey {
    RecordKey::new(AUDIT_MARK, Vec::new())
}

/// Line, its hash, the newest change told by then. Marks of the first version have no change, and lines of their time no MAC.
const MARK_BYTES: usize = 8 + 32 + 8;
const MARK_1_BYTES: usize = 8 + 32;

/// The write that puts a mark in the place of the one that has `version`.
pub(crate) fn mark(reached: &Checkpoint, version: u64) -> Write {
    Write { key: mark_key(), expected_version: version, value: Some(encode_mark(reached)) }
}

fn encode_mark(reached: &Checkpoint) -> Vec<u8> {
    [reached.seq.to_be_bytes().as_slice(), &reached.head, &reached.revision.0.to_be_bytes()].concat()
}

/// The same, at the end of a log whose lines have no MAC yet.
pub(crate) fn mark_without_macs(reached: &Checkpoint, version: u64) -> Write {
    let mut write = mark(reached, version);
    write.value.iter_mut().for_each(|value| value.truncate(MARK_1_BYTES));
    write
}

pub(crate) fn decode_mark(value: &[u8]) -> Option<Checkpoint> {
    let (seq, rest) = value.split_first_chunk::<8>()?;
    let (head, revision) = rest.split_first_chunk::<32>()?;
    let revision = match revision {
        [] => 0,
        revision => u64::from_be_bytes(revision.try_into().ok()?),
    };
    Some(Checkpoint { seq: u64::from_be_bytes(*seq), head: *head, revision: Revision(revision) })
}

/// The mark of a log, as a store has it.
pub(crate) struct Mark {
    pub version: u64,
    pub reached: Option<Checkpoint>,
    pub has_macs: bool,
}

impl Mark {
    pub(crate) async fn read(store: &dyn Store) -> Result<Self, Fault> {
        let record = store.read(&mark_key()).await.map_err(Fault::new)?;
        Ok(Self {
            version: record.as_ref().map_or(0, |record| record.version),
            reached: record.as_ref().and_then(|record| decode_mark(&record.value)),
            has_macs: record.is_some_and(|record| record.value.len() == MARK_BYTES),
        })
    }
}

/// What an audit log is opened with.
pub(crate) struct LogPlace<'a> {
    pub config: &'a Audit,
    /// Which of the instance's logs it is, if there are several.
    pub process: Option<&'a str>,
    pub directory: PathBuf,
    /// Has the mark.
    pub store: Arc<dyn Store>,
    /// Whether it is known to have one.
    pub marked: bool,
    /// The same, apart from it.
    pub watermark: Watermark,
    /// Whether it is known to say something.
    pub watermarked: bool,
    /// Events of changes on their way to the log.
    pub outbox: Arc<Outbox>,
    /// What was found when the store was opened.
    pub notes: Vec<String>,
    /// What was accepted then.
    pub accepted: Vec<String>,
    /// A restore that may be found.
    pub restored: Option<RestoredStore>,
}

/// `records.redb`, opened.
pub(crate) struct Records {
    store: Arc<dyn Store>,
    condition: Condition,
    kept: bool,
    outbox: Arc<Outbox>,
    notes: Vec<String>,
    accepted: Vec<String>,
    copies: Copies,
}

/// What a role has in a file of its own, which says by itself that it was upgraded.
pub(crate) struct OwnRows {
    /// Where its changes are.
    pub index: Arc<EmbeddedIndex>,
    /// What was accepted when it was opened.
    pub accepted: Vec<String>,
    /// The format of the file, and the version that it is of from now on.
    pub floor: (u8, u8),
}

/// Store and log of a role that keeps its records in a file of its own.
pub(crate) struct History {
    pub store: Arc<dyn Store>,
    /// Whether it takes changes.
    pub condition: Condition,
    /// Takes copies of its records.
    pub copies: Copies,
    pub audit: Arc<AuditLog>,
    pub marks: AuditMarks,
}

impl Opened {
    /// Opens the audit log, and marks how far it has come.
    pub(crate) async fn open_log(&self, place: LogPlace<'_>) -> Result<(Arc<AuditLog>, AuditMarks), Fault> {
        let LogPlace {
            config,
            process,
            directory,
            store,
            marked,
            watermark,
            watermarked,
            outbox,
            notes,
            mut accepted,
            restored,
        } = place;
        if config.accept_loss {
            tracing::warn!(
                "accept_loss is set: whatever was put back or removed is accepted at each start; take it out of [audit] again"
            );
        }
        let Mark { version, mut reached, mut has_macs } = Mark::read(store.as_ref()).await?;
        for (known, found, what) in [
            (marked, reached.is_some(), "the mark of the audit log is gone from the store, which had one"),
            (
                watermarked,
                watermark.reached.is_some(),
                "the watermark of the audit log (watermark.slots) is gone, and was there",
            ),
        ] {
            if known && !found && !config.accept_loss {
                return Err(Fault::new(format!("{what}: something was removed or replaced")).hint(ACCEPT));
            }
            if known && !found {
                accepted.push(format!("{what}; this was accepted"));
            }
        }
        // The later of the two: whoever puts the store back, and the log with it, has not put back the other.
        if let Some(mark) = watermark.reached.filter(|mark| reached.is_none_or(|reached| reached.seq < mark.seq)) {
            (reached, has_macs) = (Some(mark), true);
        }
        for note in notes.iter().chain(&accepted) {
            tracing::warn!("{note}");
        }
        let log = AuditLogConfig {
            directory,
            segment_bytes_max: config.segment_bytes_max,
            segment_age_max: config.segment_age_max,
            checkpoint_interval: std::time::Duration::from_secs(1),
            expected: reached,
            expected_has_macs: has_macs,
            floor: self.secrets.floors.get(&AUDIT_LINES).copied().unwrap_or_default(),
            accept_loss: config.accept_loss,
            restored,
            notes,
            accepted,
        };
        let keys = match process {
            None => AuditKeys::new(&self.secrets.audit_key),
            Some(process) => AuditKeys::of_log(&self.secrets.audit_key, process),
        };
        let keys = keys.map_err(Fault::new)?;
        let log = AuditLog::open(log, self.instance, keys, Arc::clone(&self.ambient), outbox).map_err(Fault::new)?;
        let log = Arc::new(log);
        if !log.accepted().is_empty() {
            let event = event(self.ambient.as_ref(), "AcceptLoss", None, log.accepted().join("; "), Vec::new());
            log.append(event).await.map_err(Fault::new)?;
            log.accepted_is_told().map_err(Fault::new)?;
        }
        Ok((Arc::clone(&log), AuditMarks::new(store, log, version, watermark)))
    }

    /// Refuses to begin a file anew that the instance had: `known`, or because what is written `after` it lies there.
    pub(crate) fn judge_missing(
        &self,
        file: &str,
        after: &[&'static str],
        known: bool,
        config: &Audit,
    ) -> Result<(), Fault> {
        let path = self.data_dir.join(file);
        let evidence = match founding::evidence_of(&self.data_dir, file, after)? {
            None if known && !path.exists() => format!("{SEALED} knows of it"),
            None => return Ok(()),
            Some(evidence) => evidence,
        };
        if config.accept_loss {
            tracing::warn!("{} is missing, but {evidence}; this is accepted, and it is begun anew", path.display());
            return Ok(());
        }
        Err(founding::missing(&path, &evidence))
    }

    /// Opens `records.redb`, and sees that the instance's secrets are not older than it.
    pub(crate) async fn open_records(&self, config: &Audit) -> Result<Records, Fault> {
        let kept = in_force(&self.secrets.floors, KEPT_ROWS, KEPT_ROWS_VERSION);
        self.judge_missing(RECORDS, &[WATERMARK, LOG], kept, config)?;
        let engine = EmbeddedEngine::open(&self.data_dir.join(RECORDS))
            .map_err(|error| Fault::new(format!("{}: {error}", self.data_dir.display())))?;
        let copies = engine.copies();
        let (instance, key, ambient) = (self.instance, &self.secrets.database_key, Arc::clone(&self.ambient));
        let store = if kept {
            SealedStore::open_kept(engine, instance, key, ambient, config.accept_loss).await
        } else {
            SealedStore::open(engine, instance, key, ambient, config.accept_loss).await
        };
        let store = store.map_err(|error| Fault::new(format!("{}: {error}", self.data_dir.display())))?;
        let (notes, mut accepted) = (store.notes().to_vec(), store.accepted().to_vec());
        let outbox = store.outbox();
        let condition = store.condition();
        let store: Arc<dyn Store> = Arc::new(store);
        accepted.extend(self.judge_floors(store.as_ref(), config.accept_loss).await?);
        Ok(Records { store, condition, kept, outbox, notes, accepted, copies })
    }

    /// Opens the log, and puts the floors in force. `own`: of a role whose changes are not in these records.
    pub(crate) async fn open_history(
        &mut self,
        config: &Audit,
        records: Records,
        own: Option<OwnRows>,
    ) -> Result<History, Fault> {
        let Records { store, condition, kept, outbox, notes, mut accepted, copies } = records;
        let floor = own.as_ref().map(|own| own.floor);
        let (outbox, index) = match own {
            None => (outbox, None),
            Some(own) => {
                accepted.extend(own.accepted);
                (own.index.outbox(), Some(own.index))
            }
        };
        let (instance, key) = (self.instance, &self.secrets.database_key);
        let restored = note::read(&self.data_dir, instance, key)?;
        let place = LogPlace {
            config,
            process: None,
            directory: self.data_dir.join("audit"),
            store: Arc::clone(&store),
            marked: kept,
            watermark: Watermark::open(&self.data_dir, instance, key, "records", &self.ambient).map_err(Fault::new)?,
            watermarked: in_force(&self.secrets.floors, KEPT_ROWS, WATERMARK_VERSION),
            outbox,
            notes,
            accepted,
            restored: restored.as_ref().and_then(Note::store),
        };
        let (audit, mut marks) = self.open_log(place).await?;
        if let Some(raised) = audit.raised() {
            // Only now: whatever is accepted with it is told.
            let done = match &index {
                None => store.raise(raised).await,
                Some(index) => index.raise(raised).await,
            };
            done.map_err(Fault::new)?;
        }
        if let Some(note) = restored {
            self.tell_restore(&note, audit.as_ref()).await?;
        }
        self.raise_floors(store.as_ref(), audit.as_ref(), &mut marks, floor).await?;
        Ok(History { store, condition, copies, audit, marks })
    }

    /// Tells the log of a restore of shared rows that was found: the first process that starts does. Several at once may tell it each.
    pub(crate) async fn tell_restore_of_shared(&self, audit: &AuditLog) -> Result<(), Fault> {
        match note::read(&self.data_dir, self.instance, &self.secrets.database_key)? {
            None => Ok(()),
            Some(note) => self.tell_restore(&note, audit).await,
        }
    }

    /// Tells the log of a restore that was found. After a crash in between it is told again.
    async fn tell_restore(&self, note: &Note, audit: &AuditLog) -> Result<(), Fault> {
        let what = "the state was restored from a backup".to_owned();
        tracing::warn!(backup = note.backup, revision = note.revision, "{what}");
        let told = event(self.ambient.as_ref(), "RestoreBackup", None, what, note.context());
        audit.append(told).await.map_err(Fault::new)?;
        note::forget(&self.data_dir)
    }

    /// Refuses an `instance.sealed` from before the floors that its store knows of. Gives what was accepted.
    async fn judge_floors(&self, store: &dyn Store, accept: bool) -> Result<Option<String>, Fault> {
        let Some(record) = store.read(&floors_key()).await.map_err(Fault::new)? else { return Ok(None) };
        let (known, _) = record.value.as_chunks::<2>();
        if known.iter().all(|[format, version]| in_force(&self.secrets.floors, *format, *version)) {
            return Ok(None);
        }
        let what = "instance.sealed is older than the store, which knows of formats that it does not ask for yet: it was put back";
        if accept {
            return Ok(Some(format!("{what}; this was accepted")));
        }
        Err(Fault::new(format!("{}: {what}", self.data_dir.display())).hint(ACCEPT))
    }

    /// Puts the floors in force, if they are not: an upgrade is told; row set and mark are there; then the floors; then the store knows of them. A
    /// crash in between leaves what the next start goes on with.
    async fn raise_floors(
        &mut self,
        store: &dyn Store,
        audit: &AuditLog,
        marks: &mut AuditMarks,
        own: Option<(u8, u8)>,
    ) -> Result<(), Fault> {
        if !in_force(&self.secrets.floors, AUDIT_LINES, AUDIT_LINES_VERSION) {
            let what = "the installation was upgraded: lines of the audit log without a MAC, and a store that keeps nothing of its rows, are not \
                        taken any more";
            tracing::warn!("{what}");
            audit
                .append(event(self.ambient.as_ref(), "StateUpgrade", None, what.to_owned(), Vec::new()))
                .await
                .map_err(Fault::new)?;
        }
        let (marked, watermarked) = (marks.write().await, marks.write_watermark());
        if !marked && !in_force(&self.secrets.floors, KEPT_ROWS, KEPT_ROWS_VERSION) {
            // Served without this floor, it would be taken with a store that was robbed at the next start.
            return Err(Fault::unavailable(
                "how far the audit log has come could not be remembered, as it must be once",
            )
            .hint("is the disk full, or the store not to be written?"));
        }
        let mut floors = self.secrets.floors.clone();
        floors.insert(AUDIT_LINES, AUDIT_LINES_VERSION);
        floors.extend(own);
        if marked {
            let version = if watermarked { WATERMARK_VERSION } else { KEPT_ROWS_VERSION };
            let floor = floors.entry(KEPT_ROWS).or_default();
            *floor = (*floor).max(version);
        }
        self.seal_floors(floors)?;
        let record = store.read(&floors_key()).await.map_err(Fault::new)?;
        let value: Vec<u8> = self.secrets.floors.iter().flat_map(|(format, version)| [*format, *version]).collect();
        if record.as_ref().is_none_or(|record| record.value != value) {
            let expected_version = record.map_or(0, |record| record.version);
            let write = Write { key: floors_key(), expected_version, value: Some(value) };
            if let Err(error) = store.keep(vec![write]).await {
                tracing::warn!(%error, "which floors are in force could not be remembered");
            }
        }
        Ok(())
    }

    /// Seals these floors, if they are others than those that are in force.
    pub(crate) fn seal_floors(&mut self, floors: Floors) -> Result<(), Fault> {
        if self.secrets.floors == floors {
            return Ok(());
        }
        self.secrets.floors = floors;
        let path = self.data_dir.join(SEALED);
        self.secrets.seal(&path, &self.silicon, self.ambient.as_ref()).map_err(Fault::new)
    }
}

fn floors_key() -> RecordKey {
    RecordKey::new(FLOORS, Vec::new())
}

/// An event that no request caused.
pub(crate) fn event(
    ambient: &dyn Ambient,
    operation: &'static str,
    principal: Option<Principal>,
    reason: String,
    context: Vec<(&'static str, String)>,
) -> AuditEvent {
    let id: [u8; 16] = ambient.random();
    AuditEvent {
        principal: Some(principal.unwrap_or_else(Principal::system)),
        reason: Some(reason),
        context,
        ..AuditEvent::allowed(ambient.now(), operation, holdfast_wire::hex::hex(&id))
    }
}

#[cfg(test)]
pub(crate) mod flips;
#[cfg(test)]
mod tests;

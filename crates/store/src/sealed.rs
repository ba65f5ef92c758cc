//! Records encrypted under the database key (`docs/formats/record.md`), and what a commit is: rows and event as one, then memory.

use std::sync::{
    Arc, PoisonError, RwLock, Weak,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use holdfast_core::{
    Ambient, CLEAR_WAIT_MAX, Changed, Decided, Gate, PartitionId, Pass, Projection, Record, RecordKey, Revision, Store,
    StoreError, Write,
};
use holdfast_crypto::{HashAlgorithm, SealingKey, SecretBytes, kdf, kdf::MacKey};
use metrics::counter;

use crate::{
    audit,
    condition::Condition,
    engine::{Batch, Engine, Row, RowName, RowWrite},
    outbox::{Outbox, Place, StoredEvent},
    row_set::RowSet,
};

const FORMAT: u8 = 1;
/// Kind of the rows that keep events until the log has them. Id: revision, 8 bytes.
const EVENT: u8 = 65;

/// The [`Store`] seam over any engine.
pub struct SealedStore<E> {
    engine: E,
    rows: Arc<RowSealer>,
    /// What is kept of all rows together; `None` if the engine has a way of its own.
    row_set: Option<Arc<RowSet>>,
    memory: Arc<Memory>,
    gate: Arc<Gate>,
    outbox: Arc<Outbox>,
    notes: Vec<String>,
    accepted: Vec<String>,
}

/// Turns records to rows and back.
pub(crate) struct RowSealer {
    instance: PartitionId,
    names: MacKey,
    records: SealingKey,
    ambient: Arc<dyn Ambient>,
}

/// What follows the commits of this process.
struct Memory {
    projections: RwLock<Vec<Weak<dyn Projection>>>,
    revision: AtomicU64,
}

impl Memory {
    fn apply(&self, revision: Revision, changes: &[Changed]) {
        for projection in self.projections.read().unwrap_or_else(PoisonError::into_inner).iter() {
            // One that is gone was part of a role that has stopped.
            if let Some(projection) = projection.upgrade() {
                projection.apply(changes);
            }
        }
        self.revision.fetch_max(revision.0, Ordering::Release);
    }
}

impl<E: Engine> SealedStore<E> {
    /// Lays the seam over `engine`, with the instance's database key (32 bytes), checks that its rows are those of its last commit, and takes up
    /// the events that the log may not have. With `accept_loss` it goes on with whatever rows there are, and says so in its notes.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`]; [`StoreError::Failed`], also on a key of another length; [`StoreError::Damaged`].
    pub async fn open(
        engine: E,
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
        accept_loss: bool,
    ) -> Result<Self, StoreError> {
        Self::open_as(engine, instance, database_key, ambient, Taken { kept: false, accept_loss }).await
    }

    /// As [`Self::open`], of a store that is known to keep something of all its rows: one that does not is not of an earlier version, but was
    /// robbed of it.
    ///
    /// # Errors
    /// [`StoreError::Gone`], and as [`Self::open`].
    pub async fn open_kept(
        engine: E,
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
        accept_loss: bool,
    ) -> Result<Self, StoreError> {
        Self::open_as(engine, instance, database_key, ambient, Taken { kept: true, accept_loss }).await
    }

    async fn open_as(
        engine: E,
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
        taken: Taken,
    ) -> Result<Self, StoreError> {
        let unusable = |error: holdfast_crypto::CryptoError| StoreError::Failed(error.to_string());
        let rows = Arc::new(RowSealer::new(instance, database_key, Arc::clone(&ambient)).map_err(unusable)?);
        let row_set = Arc::new(RowSet::new(instance, database_key, ambient).map_err(unusable)?);
        let (mut notes, mut accepted) = (Vec::new(), Vec::new());
        let keeps = check_rows(&engine, &row_set, taken, &mut notes, &mut accepted).await?;
        let row_set = keeps.then_some(row_set);
        let mut left = Vec::new();
        engine
            .scan(EVENT, &mut |row| {
                left.push(read_event(&rows.open(&row)?).ok_or(StoreError::Damaged)?);
                Ok(())
            })
            .await?;
        let revision = engine.revision().await?;
        let memory = Arc::new(Memory { projections: RwLock::default(), revision: AtomicU64::new(revision.0) });
        Ok(Self {
            engine,
            rows,
            row_set,
            memory,
            gate: Gate::new(),
            notes,
            accepted,
            outbox: Arc::new(Outbox::with(left, revision)),
        })
    }

    /// What was found at opening that the log is to tell.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was accepted at opening although the store is not as it was left.
    #[must_use]
    pub fn accepted(&self) -> &[String] {
        &self.accepted
    }

    /// Whether the engine takes changes.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.engine.condition()
    }

    /// Events of changes on their way to the log, which takes them from here.
    #[must_use]
    pub fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    /// A batch that writes these, drops the rows of events that the log has, and tells memory when it is done.
    fn batch(
        &self,
        writes: Vec<Write>,
        event: Option<(String, Place, Option<Pass>)>,
        dropped: &[Revision],
    ) -> Result<Batch, StoreError> {
        let mut rows = Vec::with_capacity(writes.len());
        let mut changes = Vec::with_capacity(writes.len());
        for Write { key, expected_version, value } in writes {
            let name = self.rows.name(&key);
            let version = expected_version + 1;
            let sealed = value.as_ref().map(|value| self.rows.seal(&name, version, &key, value)).transpose()?;
            rows.push(RowWrite { name, expected_version, sealed });
            let version = if value.is_some() { version } else { 0 };
            changes.push(Changed { key, version, value });
        }
        let dropped = dropped.iter().map(|revision| self.rows.name(&event_key(*revision))).collect();
        let (memory, row_set) = (Arc::clone(&self.memory), self.row_set.clone());
        let Some((body, place, leave)) = event else {
            let applied = Box::new(move |revision| memory.apply(revision, &changes));
            return Ok(Batch { rows, dropped, row_set, applied, ..Batch::of(Vec::new()) });
        };
        let sealer = Arc::clone(&self.rows);
        let body: Arc<str> = body.into();
        let told = Arc::clone(&body);
        let event = Box::new(move |revision| sealer.event(revision, &body));
        let applied = Box::new(move |revision| {
            memory.apply(revision, &changes);
            place.fill(StoredEvent { revision, body: told });
        });
        Ok(Batch { rows, dropped, event: Some(event), row_set, leave, applied, ..Batch::of(Vec::new()) })
    }
}

/// How a store is taken that is not as it was left.
#[derive(Clone, Copy)]
struct Taken {
    /// It is known that something was kept of its rows.
    kept: bool,
    accept_loss: bool,
}

/// Compares the rows with what the last commit kept of them. False: the engine keeps nothing of the kind.
async fn check_rows<E: Engine>(
    engine: &E,
    set: &Arc<RowSet>,
    Taken { kept, accept_loss }: Taken,
    notes: &mut Vec<String>,
    accepted: &mut Vec<String>,
) -> Result<bool, StoreError> {
    let Some(head) = engine.head().await? else { return Ok(false) };
    let revision = engine.revision().await?;
    let (mut found, mut count) = (set.fold(), 0_u64);
    engine
        .scan_all(&mut |name, version, sealed| {
            count += 1;
            found.add(name, version, sealed);
        })
        .await?;
    if head.is_none() && kept {
        let what = if count == 0 { "all that the store held" } else { "the row set of the store" };
        if !accept_loss {
            return Err(StoreError::Gone { what });
        }
        accepted.push(format!("{what} is gone; the store was accepted with {count} rows, at change {revision}"));
        found.keep();
        return Ok(true);
    }
    let whole = match &head {
        Some(head) => found.is_of(head, revision),
        // A new store, or one of a version that kept nothing: it made no numbered change either.
        None => revision == Revision(0),
    };
    if !whole && !accept_loss {
        return Err(StoreError::NotWhole { revision });
    }
    if !whole {
        accepted.push(format!(
            "the rows of the store are not those of its last commit, change {revision}; this was accepted"
        ));
    } else if head.is_none() && count > 0 {
        notes.push(format!("the store is of an earlier version; its {count} rows are watched from now on"));
    }
    // The first commit keeps it. That one comes once the log has told of what was accepted: nothing is accepted without a line.
    found.keep();
    Ok(true)
}

impl RowSealer {
    pub(crate) fn new(
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, holdfast_crypto::CryptoError> {
        let names = kdf::derive_key(database_key, "holdfast record names v1")?;
        let records = kdf::derive_key(database_key, "holdfast records v1")?;
        let names = MacKey::new(HashAlgorithm::Sha256, names.expose());
        Ok(Self { instance, names, records: SealingKey::new(&records)?, ambient })
    }

    pub(crate) fn name(&self, key: &RecordKey) -> RowName {
        let mut name = [0; 33];
        name[0] = key.kind;
        name[1..].copy_from_slice(&self.names.sign(&[&[key.kind], &key.id]));
        name
    }

    /// What a record is bound to: format, instance, kind and name, version.
    fn aad(&self, name: &RowName, version: u64) -> Vec<u8> {
        [&[FORMAT], self.instance.as_bytes().as_slice(), name, &version.to_be_bytes()].concat()
    }

    fn seal(&self, name: &RowName, version: u64, key: &RecordKey, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let id_len = u16::try_from(key.id.len()).map_err(|_| StoreError::Failed("a record id is too long".into()))?;
        let plaintext = [&id_len.to_be_bytes(), key.id.as_slice(), value].concat();
        let sealed = self
            .records
            .seal(self.ambient.random(), &self.aad(name, version), &plaintext)
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok([&[FORMAT], sealed.as_slice()].concat())
    }

    pub(crate) fn open(&self, row: &Row) -> Result<Record, StoreError> {
        let sealed = row.sealed.strip_prefix(&[FORMAT]).ok_or(StoreError::Damaged)?;
        let plaintext =
            self.records.open(&self.aad(&row.name, row.version), sealed).map_err(|_| StoreError::Damaged)?;
        let (id_len, rest) = plaintext.expose().split_first_chunk::<2>().ok_or(StoreError::Damaged)?;
        let (id, value) = rest.split_at_checked(u16::from_be_bytes(*id_len).into()).ok_or(StoreError::Damaged)?;
        Ok(Record { key: RecordKey::new(row.name[0], id), version: row.version, value: value.to_vec() })
    }

    /// The row of an event. Its name follows from its revision, so that it can stand for no other change.
    fn event(&self, revision: Revision, body: &str) -> Result<RowWrite, StoreError> {
        let key = event_key(revision);
        let name = self.name(&key);
        let sealed = self.seal(&name, 1, &key, body.as_bytes())?;
        Ok(RowWrite { name, expected_version: 0, sealed: Some(sealed) })
    }
}

fn event_key(revision: Revision) -> RecordKey {
    RecordKey::new(EVENT, revision.0.to_be_bytes())
}

fn read_event(record: &Record) -> Option<StoredEvent> {
    let revision = Revision(u64::from_be_bytes(record.key.id.as_slice().try_into().ok()?));
    Some(StoredEvent { revision, body: std::str::from_utf8(&record.value).ok()?.into() })
}

#[async_trait]
impl<E: Engine> Store for SealedStore<E> {
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let row = self.engine.read(&self.rows.name(key)).await?;
        row.map(|row| self.rows.open(&row)).transpose()
    }

    async fn scan(&self, kind: u8, visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        self.engine
            .scan(kind, &mut |row| {
                visit(self.rows.open(&row)?);
                Ok(())
            })
            .await
    }

    async fn scan_at_once(&self, kinds: &[u8], visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        let mut result = Ok(());
        self.engine
            .scan_all(&mut |name, version, sealed| {
                if result.is_ok() && kinds.contains(&name[0]) {
                    result = self.rows.open(&Row { name: *name, version, sealed: sealed.to_vec() }).map(&mut *visit);
                }
            })
            .await?;
        result
    }

    async fn write(&self, writes: Vec<Write>, event: Option<Decided>) -> Result<Revision, StoreError> {
        // The rows of events go with what is nobody's change: there is such a commit each second, and no change waits for more than its own rows.
        let dropped = if event.is_none() { self.outbox.take_recorded() } else { Vec::new() };
        let is_change = event.is_some();
        let event = match event {
            None => None,
            Some(decided) => {
                let (event, leave) = decided.into_parts();
                if leave.as_ref().is_some_and(|pass| !pass.is_of(&self.gate)) {
                    return Err(StoreError::Failed(
                        "a change under a pass of another gate; nothing was written".into(),
                    ));
                }
                Some((audit::event_body(&event)?, self.outbox.reserve()?, leave))
            }
        };
        let result = match self.batch(writes, event, &dropped) {
            Ok(batch) => self.engine.commit(batch).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.outbox.still_stored(dropped);
        }
        if is_change {
            // A commit that failed may be on disk and in memory all the same.
            if self.gate.clear(tokio::time::sleep(CLEAR_WAIT_MAX)).await {
                counter!("holdfast_changes_kept_waiting_total").increment(1);
            }
        }
        result
    }

    async fn raise(&self, to: Revision) -> Result<(), StoreError> {
        let (memory, row_set) = (Arc::clone(&self.memory), self.row_set.clone());
        let applied = Box::new(move |revision| memory.apply(revision, &[]));
        self.engine.commit(Batch { least: to, row_set, applied, ..Batch::of(Vec::new()) }).await.map(drop)
    }

    fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    fn revision(&self) -> Revision {
        Revision(self.memory.revision.load(Ordering::Acquire))
    }

    fn watch(&self, projection: Weak<dyn Projection>) {
        self.memory.projections.write().unwrap_or_else(PoisonError::into_inner).push(projection);
    }
}

//! What each process of a proxy knows of the shared state, sealed beside it, and the kills that it wrote down. A process writes
//! its own files only, and reads everybody's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_core::{Ambient, PartitionId, Store, StoreError};
use holdfast_crypto::{CryptoError, SecretBytes};
use holdfast_enclave::InstanceSecrets;
use holdfast_store::{
    FileStamp, SealedStore, SharedEngine, SlotFile, SlotLayout, StateId,
    audit::{LineMac, end_of_earlier_format},
};
use holdfast_wire::hex::{hex, unhex};
use holdfast_xks_proxy::{
    Beside, Heard, PulledKill,
    state::{KillScope, KillSwitch, OperatorsRecord},
};
use serde::{Deserialize, Serialize};

use super::{logged, process_dir, watch_state};
use crate::{
    fault::Fault,
    history::{self, Watermark},
};

/// Two, written in turn: a crash tears one of them at most.
const MARKS: SlotLayout = SlotLayout { purpose: "holdfast state marks v1", slots: 2, slot_bytes: 32 * 1024 };
/// Kills of one process that the state has not taken in. It takes them in each second, unless its lock or its disk is out of order.
const KILLS: SlotLayout = SlotLayout { purpose: "holdfast kill slots v1", slots: 64, slot_bytes: 4096 };
const KILLS_FILE: &str = "kills.slots";
const MARK_VERSION: u32 = 1;

/// Where the files of an instance lie, and what opens them.
pub(crate) struct Places {
    state_dir: PathBuf,
    instance: PartitionId,
    database_key: SecretBytes,
    audit_key: SecretBytes,
    ambient: Arc<dyn Ambient>,
}

/// What a process has seen.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Mark {
    v: u32,
    generation: u64,
    /// Of the shared file at that generation; hex.
    tag: String,
    /// The newest kill of each process.
    kills: Heard,
    /// Up to which of its own kills the events are in its log.
    told: u64,
    /// Who governed at that generation: they accept a restore.
    operators: Option<OperatorsRecord>,
}

/// The newest that anybody has seen.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub generation: u64,
    pub tag: Option<[u8; 32]>,
    pub witness: String,
    pub kills: Heard,
    pub operators: Option<OperatorsRecord>,
}

fn crypto(error: CryptoError) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl Places {
    pub(super) fn new(
        state_dir: &Path,
        instance: PartitionId,
        secrets: &InstanceSecrets,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            state_dir: state_dir.into(),
            instance,
            database_key: SecretBytes::copy_of(secrets.database_key.expose()),
            audit_key: SecretBytes::copy_of(secrets.audit_key.expose()),
            ambient,
        })
    }

    /// The shared rows, for `holder`.
    pub(super) fn rows(&self, holder: &str) -> Result<SharedEngine, StoreError> {
        SharedEngine::new(&self.state_dir, &self.database_key, self.instance, "state", holder).map_err(crypto)
    }

    /// Rows of a process's own.
    pub(super) fn process_rows(&self, process: &str) -> Result<SharedEngine, StoreError> {
        let (directory, place) = (process_dir(&self.state_dir, process), format!("process {process}"));
        SharedEngine::new(&directory, &self.database_key, self.instance, &place, process).map_err(crypto)
    }

    fn slots(&self, process: &str, file: &str, layout: SlotLayout) -> Result<SlotFile, StoreError> {
        let path = process_dir(&self.state_dir, process).join(file);
        SlotFile::new(&path, layout, &self.database_key, self.instance, process, Arc::clone(&self.ambient))
            .map_err(crypto)
    }

    fn marks(&self, process: &str) -> Result<SlotFile, StoreError> {
        self.slots(process, "mark.slots", MARKS)
    }

    fn kills(&self, process: &str) -> Result<SlotFile, StoreError> {
        self.slots(process, KILLS_FILE, KILLS)
    }

    /// Names of all processes that there ever were.
    pub(super) fn processes(&self) -> Result<Vec<String>, StoreError> {
        let path = self.state_dir.join("processes");
        let failed = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.path().is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether a process's mark lies there.
    pub(super) fn has_mark(&self, process: &str) -> Result<bool, StoreError> {
        Ok(self.mark(process)?.is_some())
    }

    /// What a process keeps of how far its log has come, apart from the mark.
    pub(super) fn watermark(&self, process: &str) -> Result<Watermark, StoreError> {
        let directory = process_dir(&self.state_dir, process);
        Watermark::open(&directory, self.instance, &self.database_key, process, &self.ambient)
    }

    async fn log_marks(&self, process: &str) -> Result<SealedStore<SharedEngine>, StoreError> {
        let (rows, ambient) = (self.process_rows(process)?, Arc::clone(&self.ambient));
        SealedStore::open(rows, self.instance, &self.database_key, ambient, false).await
    }

    /// Whether the mark of a process's log lies there.
    pub(super) async fn log_is_marked(&self, process: &str) -> Result<bool, StoreError> {
        let mark = history::Mark::read(&self.log_marks(process).await?).await;
        Ok(mark.map_err(|error| StoreError::Failed(error.to_string()))?.reached.is_some())
    }

    /// The MACs of a process's log.
    fn lines(&self, process: &str) -> Result<LineMac, StoreError> {
        LineMac::of_log(&self.audit_key, process).map_err(crypto)
    }

    /// Marks the end of a process's log of an earlier format: what is found behind it later was not there at the upgrade.
    pub(super) async fn mark_log_of_before(&self, process: &str) -> Result<(), Fault> {
        let audit = process_dir(&self.state_dir, process).join("audit");
        let store = self.log_marks(process).await.map_err(Fault::new)?;
        let mark = history::Mark::read(&store).await?;
        let lines = self.lines(process).map_err(Fault::new)?;
        let end = end_of_earlier_format(&audit, &lines, mark.reached).map_err(|error| Fault::file(&audit, error))?;
        let Some((end, has_macs)) = end.filter(|(end, _)| mark.reached.is_none_or(|reached| reached.seq < end.seq))
        else {
            return Ok(());
        };
        let write =
            if has_macs { history::mark(&end, mark.version) } else { history::mark_without_macs(&end, mark.version) };
        store.keep(vec![write]).await.map_err(Fault::new)
    }

    fn mark(&self, process: &str) -> Result<Option<(u64, Mark)>, StoreError> {
        let Some(record) = self.marks(process)?.read()?.pop() else { return Ok(None) };
        let mark: Mark = serde_json::from_slice(&record.value).map_err(|_| StoreError::Damaged)?;
        if mark.v != MARK_VERSION {
            return Err(StoreError::Failed(format!("the mark of process {process} is of version {}", mark.v)));
        }
        Ok(Some((record.number, mark)))
    }

    /// What the marks and logs of all processes say.
    pub(super) fn known(&self) -> Result<Known, StoreError> {
        let mut known = Known::default();
        for process in self.processes()? {
            if let Some((_, mark)) = self.mark(&process)? {
                for (of, number) in mark.kills {
                    let newest = known.kills.entry(of).or_default();
                    *newest = (*newest).max(number);
                }
                if mark.generation > known.generation {
                    known.generation = mark.generation;
                    known.tag = unhex(&mark.tag).and_then(|tag| tag.try_into().ok());
                    known.witness = format!("the mark of process {process}");
                    known.operators = mark.operators;
                }
            }
            let audit = process_dir(&self.state_dir, &process).join("audit");
            let logged = logged::generation(&audit, &self.lines(&process)?)
                .map_err(|error| StoreError::Failed(error.to_string()))?;
            if logged > known.generation {
                known.generation = logged;
                known.tag = None;
                known.witness = format!("the audit log of process {process}");
            }
        }
        Ok(known)
    }

    /// Kills that `heard` has not, and those of `newest` that are gone.
    pub(super) fn pulled(&self, heard: &Heard, newest: &Heard) -> Result<(Vec<PulledKill>, Heard), StoreError> {
        let mut processes = self.processes()?;
        processes.extend(newest.keys().cloned());
        processes.sort();
        processes.dedup();
        let (mut pulled, mut lost) = (Vec::new(), Heard::new());
        for process in processes {
            let from = heard.get(&process).copied().unwrap_or(0);
            let mut next = from + 1;
            for record in self.kills(&process)?.read()?.into_iter().filter(|record| record.number > from) {
                let kill = KillSwitch::decode(&record.value).map_err(|error| StoreError::Failed(error.to_string()))?;
                if record.number != next {
                    lost.insert(process.clone(), record.number);
                }
                next = record.number + 1;
                pulled.push(PulledKill { process: process.clone(), number: record.number, kill });
            }
            let known = newest.get(&process).copied().unwrap_or(0);
            if known >= next {
                lost.insert(process, known);
            }
        }
        Ok((pulled, lost))
    }

    /// What tells that a kill was written down by anybody.
    pub(super) fn kill_stamps(&self) -> Vec<(String, Option<FileStamp>)> {
        let stamp = |process: String| {
            let path = process_dir(&self.state_dir, &process).join(KILLS_FILE);
            (process, FileStamp::of(&path).ok().flatten())
        };
        self.processes().unwrap_or_default().into_iter().map(stamp).collect()
    }
}

/// The witness of one process.
pub(crate) struct Witness {
    places: Arc<Places>,
    process: String,
    engine: SharedEngine,
    /// Its own mark, and the number of the record.
    mark: Mutex<(u64, Mark)>,
    /// The newest kill that is known of, of each process.
    newest: Mutex<Heard>,
}

impl Witness {
    /// Takes the room of `process`'s own files, and of those that a command needs on a full disk.
    pub(super) fn open(
        places: &Arc<Places>,
        process: &str,
        engine: SharedEngine,
        known: Heard,
    ) -> Result<Self, StoreError> {
        for name in [process, super::COMMAND] {
            let directory = process_dir(&places.state_dir, name);
            let made =
                crate::instance::create_private_dir(&directory).map_err(|error| StoreError::Failed(error.to_string()));
            for slots in [places.marks(name)?, places.kills(name)?] {
                if let Err(error) = made.clone().and_then(|()| slots.prepare()) {
                    tracing::error!(%error, "no room could be taken for what is written on a full disk: kills may fail there");
                }
            }
        }
        let mark = places.mark(process)?.unwrap_or((0, Mark { v: MARK_VERSION, ..Mark::default() }));
        let (places, process) = (Arc::clone(places), process.to_owned());
        Ok(Self { places, process, engine, mark: Mutex::new(mark), newest: Mutex::new(known) })
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Mark)> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newest(&self) -> MutexGuard<'_, Heard> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, held: &mut (u64, Mark), mut mark: Mark) -> Result<(), StoreError> {
        let file = self.places.marks(&self.process)?;
        let encode = |mark: &Mark| serde_json::to_vec(mark).map_err(|error| StoreError::Failed(error.to_string()));
        let mut value = encode(&mark)?;
        if value.len() > file.capacity() {
            // Very long names: then those of the restored state accept a restore.
            mark.operators = None;
            value = encode(&mark)?;
        }
        let number = held.0 + 1;
        if file.write(number, &value).is_err() {
            // Somebody took it away.
            file.prepare()?;
            file.write(number, &value)?;
        }
        *held = (number, mark);
        Ok(())
    }
}

impl Beside for Witness {
    fn generation(&self) -> Result<u64, StoreError> {
        self.engine.generation()
    }

    fn saw(&self, generation: u64, operators: &OperatorsRecord) -> Result<(), StoreError> {
        // The state is durable before anybody says that it was seen: a crash may undo a renaming that is only a moment old.
        let synced = fs::File::open(&self.places.state_dir).and_then(|directory| directory.sync_all());
        synced.map_err(|error| StoreError::Failed(error.to_string()))?;
        let StateId { generation: now, tag } = self.engine.state()?;
        let mut held = self.lock();
        // A newer one may be there by now: it is seen in its own turn.
        let tag = if now == generation { hex(&tag) } else { String::new() };
        let mark = Mark {
            generation,
            tag,
            operators: Some(operators.clone()),
            kills: self.newest().clone(),
            ..held.1.clone()
        };
        self.write(&mut held, mark)
    }

    fn process(&self) -> &str {
        &self.process
    }

    fn pull(&self, heard: u64, kill: &KillSwitch) -> Result<u64, StoreError> {
        let mut held = self.lock();
        let file = self.places.kills(&self.process)?;
        let written = file.read()?.last().map_or(0, |record| record.number);
        let known = self.newest().get(&self.process).copied().unwrap_or(0);
        let last = written.max(known).max(heard);
        let waiting = last - heard;
        let room = KILLS.slots as u64 - u64::from(kill.scope != KillScope::All);
        if waiting >= room {
            tracing::error!(
                waiting,
                "kills wait to be taken into the state; there is room for one of everything: --all"
            );
            return Err(StoreError::Busy);
        }
        let number = last + 1;
        let value = kill.encode().map_err(|error| StoreError::Failed(error.to_string()))?;
        if file.write(number, &value).is_err() {
            file.prepare()?;
            file.write(number, &value)?;
        }
        self.newest().insert(self.process.clone(), number);
        let mark = Mark { kills: self.newest().clone(), ..held.1.clone() };
        if let Err(error) = self.write(&mut held, mark) {
            tracing::error!(%error, "a kill is written down, and could not be remembered a second time");
        }
        Ok(number)
    }

    fn pulled(&self, heard: &Heard) -> Result<Vec<PulledKill>, StoreError> {
        let known = self.newest().clone();
        let (pulled, lost) = self.places.pulled(heard, &known)?;
        if !lost.is_empty() {
            return Err(lost_kills(&lost));
        }
        let mut newest = self.newest();
        for PulledKill { process, number, .. } in &pulled {
            let known = newest.entry(process.clone()).or_default();
            *known = (*known).max(*number);
        }
        Ok(pulled)
    }

    fn is_ours(&self, process: &str) -> bool {
        process == self.process || !watch_state::lives(&process_dir(&self.places.state_dir, process))
    }

    fn told_up_to(&self, process: &str) -> u64 {
        if process == self.process {
            return self.lock().1.told;
        }
        self.places.mark(process).ok().flatten().map_or(0, |(_, mark)| mark.told)
    }

    fn told(&self, number: u64) -> Result<(), StoreError> {
        let mut held = self.lock();
        let mark = Mark { told: held.1.told.max(number), ..held.1.clone() };
        self.write(&mut held, mark)
    }
}

/// Kills that are known of and are not there.
pub(super) fn lost_kills(lost: &BTreeMap<String, u64>) -> StoreError {
    let which: Vec<String> =
        lost.iter().map(|(process, number)| format!("number {number} of process {process}")).collect();
    StoreError::Failed(format!(
        "KILLS WERE TAKEN AWAY: {} was written down, and is not there any more. Nothing is served. If it was done on purpose, \
         operators say so with: holdfast xks accept-restore",
        which.join(", ")
    ))
}

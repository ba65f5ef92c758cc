//! Backups of an external key store proxy: rows that its processes share, and what each of them keeps beside.
//!
//! All these files are replaced whole or written in slots, so nobody has to be asked: everything is read between two looks at the shared rows that find
//! the same. What the processes have seen by then is not newer than the rows. Logs are read afterwards, up to where they ended in between.
//!
//! A restore into an empty directory lays all of it down. Over a state that is there it replaces the shared rows alone: what the processes have seen stays, and
//! is newer, so that the state is refused until the operators accept it (`holdfast xks accept-restore`), as an older state ever is.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{Ambient, Revision};
use holdfast_crypto::SecretBytes;
use holdfast_enclave::InstanceSecrets;
use holdfast_store::{
    audit::{ANCHOR_FILE, Anchor, ChainChecker, Checkpoint, list_segments},
    backup::{End, Head, Part, Reader, Writer},
    read_regular, state_of,
};
use holdfast_wire::hex::hex;

use super::{
    Believed, Examined, LOG, Place, SEALED, Sink, WATERMARK, believe, is_segment, moment,
    note::{self, LogEnd, Note},
    open_silicon, refuse_another,
    restore::{Files, Wish, owner_of},
    swap::{self, Swap},
    take_lines, there_of,
};
use crate::{ambient::OsAmbient, fault::Fault, xks::alive};

pub(super) const ROWS: &str = "rows.shared";
pub(super) const PROCESSES: &str = "processes";
/// What a process has beside its log. The mark before the kills: it never tells of one that the slots do not have.
const OWN: &[&str] = &["mark.slots", "kills.slots", WATERMARK, ROWS];
/// A policy, its proposals, and keys of a software HSM.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The shared rows change by a quorum or a kill, and so seldom.
const ATTEMPTS: usize = 100;
/// Bytes of a log that are read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// A segment, as far as it had come.
struct Extent {
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// A snapshot, and which logs to read.
pub(crate) struct Taken {
    head: Head,
    state: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
    logs: Vec<Extent>,
    database_key: SecretBytes,
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Fault> {
    match read_regular(path, FILE_BYTES_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::file(path, error)),
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, Fault> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Fault::file(directory, error))?,
    };
    let entries = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Up to the last whole line, or the whole of a segment that is closed.
fn extent(name: String, path: PathBuf) -> Result<Extent, Fault> {
    let measure = || {
        let mut file = File::open(&path)?;
        let (mut bytes, mut whole, mut chunk) = (0, 0, vec![0; CHUNK_BYTES]);
        loop {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                return Ok(whole);
            }
            if let Some(newline) = chunk[..read].iter().rposition(|byte| *byte == b'\n') {
                whole = bytes + newline as u64 + 1;
            }
            bytes += read as u64;
        }
    };
    let bytes = measure().map_err(|error: io::Error| Fault::file(&path, error))?;
    Ok(Extent { name, path, bytes })
}

impl Taken {
    /// Takes the snapshot of a state directory, whoever runs on it.
    pub(crate) fn take(place: &Place) -> Result<Self, Fault> {
        let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
        let sealed = place.data_dir.join(SEALED);
        let state = read(&sealed)?
            .ok_or_else(|| Fault::new(format!("there is no instance in {}", place.data_dir.display())))?;
        let silicon = open_silicon(place, &format!("in {}", place.data_dir.display()), &ambient)?;
        let secrets = InstanceSecrets::open_content(&sealed, &state, &silicon).map_err(Fault::new)?;
        for _ in 0..ATTEMPTS {
            if let Some((files, logs, generation)) = attempt(&place.data_dir, &secrets)? {
                let id: [u8; 16] = ambient.random();
                let head = Head {
                    id: hex(&id),
                    instance: secrets.instance.to_string(),
                    role: place.role.into(),
                    program: env!("CARGO_PKG_VERSION").into(),
                    time: ambient.now().unix_millis(),
                    revision: generation,
                };
                return Ok(Self { head, state, files, logs, database_key: secrets.database_key });
            }
        }
        Err(Fault::unavailable("the shared state changes without a pause: try again"))
    }

    /// Writes it as a stream.
    pub(crate) fn write(&self, out: impl Write) -> Result<End, Fault> {
        let mut writer = Writer::begin(out, &self.database_key, &self.head, &self.state).map_err(Fault::new)?;
        for (name, bytes) in &self.files {
            writer.file(name).and_then(|()| writer.bytes(bytes)).map_err(Fault::new)?;
        }
        for Extent { name, path, bytes } in &self.logs {
            writer.file(name).map_err(Fault::new)?;
            let file = File::open(path).map_err(|error| Fault::file(path, error))?;
            let (mut left, mut chunk) = (file.take(*bytes), vec![0; CHUNK_BYTES]);
            loop {
                let read = left.read(&mut chunk).map_err(|error| Fault::file(path, error))?;
                if read == 0 {
                    break;
                }
                writer.bytes(&chunk[..read]).map_err(Fault::new)?;
            }
        }
        Ok(writer.end(0, String::new()).map_err(Fault::new)?.1)
    }
}

type Attempted = (Vec<(String, Vec<u8>)>, Vec<Extent>, u64);

/// Everything between two looks; `None` if they differ.
fn attempt(state_dir: &Path, secrets: &InstanceSecrets) -> Result<Option<Attempted>, Fault> {
    let path = state_dir.join(ROWS);
    let look = || read(&path)?.ok_or_else(|| Fault::file(&path, "it is missing"));
    let rows = look()?;
    let generation = generation_of(&rows, secrets, "state").ok_or_else(|| Fault::file(&path, "it is damaged"))?;
    let (mut files, mut logs) = (Vec::new(), Vec::new());
    for process in names_in(&state_dir.join(PROCESSES))? {
        let directory = state_dir.join(PROCESSES).join(&process);
        for name in OWN {
            if let Some(bytes) = read(&directory.join(name))? {
                files.push((format!("{PROCESSES}/{process}/{name}"), bytes));
            }
        }
        let log = directory.join(LOG);
        let segments = match list_segments(&log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| Fault::file(&log, error))?,
        };
        if let Some(bytes) = read(&log.join(ANCHOR_FILE))? {
            files.push((format!("{PROCESSES}/{process}/{LOG}/{ANCHOR_FILE}"), bytes));
        }
        let handed_over =
            Anchor::read(&log).map_err(|error| Fault::file(&log, error))?.map_or(0, |anchor| anchor.segment);
        for (number, path) in segments.into_iter().filter(|(number, _)| *number > handed_over) {
            logs.push(extent(format!("{PROCESSES}/{process}/{LOG}/audit-{number:012}.jsonl"), path)?);
        }
    }
    if look()? != rows {
        return Ok(None);
    }
    files.insert(0, (ROWS.into(), rows));
    Ok(Some((files, logs, generation)))
}

fn generation_of(bytes: &[u8], secrets: &InstanceSecrets, place: &str) -> Option<u64> {
    state_of(bytes, &secrets.database_key, secrets.instance, place).ok().map(|state| state.generation)
}

/// What a file of a backup is.
enum Named<'a> {
    Shared,
    /// Of a process.
    Rows(&'a str),
    Slots,
    Anchor(&'a str),
    Segment(&'a str),
}

fn named(name: &str) -> Option<Named<'_>> {
    if name == ROWS {
        return Some(Named::Shared);
    }
    let (process, file) = name.strip_prefix(PROCESSES)?.strip_prefix('/')?.split_once('/')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if process.is_empty() || !process.chars().all(is_name) {
        return None;
    }
    if file == ROWS {
        return Some(Named::Rows(process));
    }
    if OWN.contains(&file) {
        return Some(Named::Slots);
    }
    let file = file.strip_prefix(LOG)?.strip_prefix('/')?;
    if file == ANCHOR_FILE {
        return Some(Named::Anchor(process));
    }
    is_segment(file).then_some(Named::Segment(process))
}

struct Looking<'a> {
    secrets: &'a InstanceSecrets,
    name: String,
    /// Of the file that is read, or of its last line.
    bytes: Vec<u8>,
    chains: BTreeMap<String, ChainChecker>,
    generation: Option<u64>,
}

/// Reads a backup to its end, and refuses it if anything does not hold.
pub(crate) fn examine<R: Read>(
    mut reader: Reader<R>,
    secrets: &InstanceSecrets,
    sink: &mut dyn Sink,
) -> Result<Examined, Fault> {
    let (name, bytes, chains) = (String::new(), Vec::new(), BTreeMap::new());
    let mut looking = Looking { secrets, name, bytes, chains, generation: None };
    let end = loop {
        match reader.next().map_err(Fault::new)? {
            Part::File(name) => {
                looking.begin(&name)?;
                sink.file(&name)?;
            }
            Part::Bytes(bytes) => {
                looking.take(&bytes)?;
                sink.bytes(&bytes)?;
            }
            Part::Rows(..) => return Err(looking.wrong("it has rows of a table")),
            Part::End(end) => break end,
        }
    };
    looking.close()?;
    if looking.generation != Some(reader.head.revision) {
        return Err(Fault::new("the backup is not whole: its shared rows are missing, or of another moment"));
    }
    let log = Checkpoint { seq: 0, head: [0; 32], revision: Revision(reader.head.revision) };
    Ok(Examined { head: reader.head.clone(), end, log, bytes: reader.bytes() })
}

impl Looking<'_> {
    fn wrong(&self, what: &str) -> Fault {
        Fault::new(format!("{:?}, in the backup: {what}", self.name))
    }

    fn begin(&mut self, name: &str) -> Result<(), Fault> {
        self.close()?;
        name.clone_into(&mut self.name);
        match named(name) {
            None => Err(self.wrong("this version knows no such file")),
            Some(Named::Segment(process)) => {
                let chain = self.chains.entry(process.to_owned()).or_insert_with(ChainChecker::begin);
                chain.begin_segment();
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.bytes.extend_from_slice(bytes);
        if let Some(Named::Segment(process)) = named(&self.name) {
            let (chain, name) = (self.chains.entry(process.to_owned()).or_insert_with(ChainChecker::begin), &self.name);
            take_lines(&mut self.bytes, |line| {
                chain.line(line).map(drop).map_err(|what| Fault::new(format!("{name:?}, in the backup: {what}")))
            })?;
        }
        if self.bytes.len() as u64 > FILE_BYTES_MAX { Err(self.wrong("it is too long")) } else { Ok(()) }
    }

    /// The file that was read is whole.
    fn close(&mut self) -> Result<(), Fault> {
        let bytes = std::mem::take(&mut self.bytes);
        let damaged = || self.wrong("it is not what the instance wrote");
        match named(&self.name) {
            Some(Named::Shared) => {
                self.generation = Some(generation_of(&bytes, self.secrets, "state").ok_or_else(damaged)?);
            }
            Some(Named::Rows(process)) => {
                generation_of(&bytes, self.secrets, &format!("process {process}")).ok_or_else(damaged)?;
            }
            Some(Named::Anchor(process)) => {
                let anchor = Anchor::parse(&bytes).map_err(|_| damaged())?;
                let (process, chain) = (process.to_owned(), ChainChecker::begin_behind(&anchor));
                self.chains.insert(process, chain);
            }
            Some(Named::Segment(_)) if !bytes.is_empty() => return Err(self.wrong("its last line is torn")),
            Some(Named::Segment(_) | Named::Slots) | None => {}
        }
        Ok(())
    }
}

/// A backup that is unpacked and whole, beside what is there.
pub(crate) struct Unpacked {
    swap: Swap,
    pub examined: Examined,
    /// Something is there, whose processes go on knowing what they have seen.
    pub over: bool,
    /// What is restored, and what that makes older, line by line.
    pub told: Vec<String>,
    old: Vec<String>,
    secrets: InstanceSecrets,
}

/// Unpacks a backup, and sees what it would make older.
pub(crate) fn unpack(place: &Place, wish: &Wish<'_>) -> Result<Unpacked, Fault> {
    let Believed { reader, secrets, state, ambient } = believe(place, wish.from)?;
    let data_dir = &place.data_dir;
    let there = there_of(data_dir, &[SEALED, ROWS, PROCESSES]);
    let running = alive(&data_dir.join(PROCESSES));
    if !running.is_empty() {
        return Err(
            Fault::unavailable(format!("{}: processes run on it", data_dir.display())).hint("stop them all first")
        );
    }
    if !there.is_empty() && !wish.over {
        let why = format!("{} is not empty: {} there. Nothing was changed", data_dir.display(), there.join(", "));
        return Err(Fault::usage(why)
            .hint("restore into an empty directory; or say --over to put the backup's shared rows in the place of those that are there"));
    }
    refuse_another(data_dir, secrets.instance)?;
    let (swap, over) = (Swap::of(data_dir), !there.is_empty());
    let staging = swap.prepare(!over, owner_of(&secrets, ambient.as_ref()))?;
    let unpacked = Files::begin(&staging, &state).and_then(|mut sink| {
        let examined = examine(reader, &secrets, &mut sink)?;
        sink.close()?;
        Ok(examined)
    });
    let examined = unpacked.inspect_err(|_| swap.abandon(!over))?;
    let head = &examined.head;
    let mut told = vec![format!(
        "the backup {} of {} instance {} was taken at {}: generation {} of the shared state",
        head.id,
        head.role,
        head.instance,
        moment(head.time),
        head.revision
    )];
    if over {
        let now = read(&data_dir.join(ROWS)).ok().flatten().and_then(|rows| generation_of(&rows, &secrets, "state"));
        told.push(match now {
            Some(now) => format!(
                "what is there: generation {now}; {} are undone, kill switches among them",
                now.saturating_sub(head.revision)
            ),
            None => "what is there cannot be believed".into(),
        });
        told.push(
            "what its processes have seen, and their logs, stay: the operators have to accept the older state".into(),
        );
    }
    let old = if over { there.into_iter().filter(|name| name != PROCESSES).collect() } else { Vec::new() };
    Ok(Unpacked { swap, examined, over, told, old, secrets })
}

impl Unpacked {
    /// Nothing is restored.
    pub(crate) fn abandon(self) {
        self.swap.abandon(!self.over);
    }

    /// Puts it in its place. Gives where what was there is kept.
    pub(crate) fn commit(self, ambient: &dyn Ambient) -> Result<Option<PathBuf>, Fault> {
        let (now, staging, head) = (ambient.now().unix_millis(), self.swap.staging(), &self.examined.head);
        if self.over {
            let path = staging.join(PROCESSES);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Fault::file(&path, error)),
                Ok(()) | Err(_) => {}
            }
        } else {
            let note = Note {
                backup: head.id.clone(),
                taken: head.time,
                restored: now,
                uid: rustix::process::getuid().as_raw(),
                revision: head.revision,
                log: LogEnd { line: 0, hash: String::new(), revision: 0 },
                kept: None,
                newest: None,
                set_aside: None,
            };
            note::write(&staging, &note, owner_of(&self.secrets, ambient))?;
        }
        let aside = format!("{}{now}", swap::ASIDE);
        self.swap.commit(&head.id, aside, self.old, owner_of(&self.secrets, ambient))
    }
}

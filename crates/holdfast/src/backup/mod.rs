//! Backups of an instance, taken while its service runs or not, and what becomes of them (`docs/formats/backup.md`, `docs/operating.md`).
//!
//! A backup is of one moment: the store at one revision, and the log up to what that revision tells. The silicon's root is never in it.

mod check;
pub(crate) mod live;
pub(crate) mod note;
pub(crate) mod proxy;
pub(crate) mod restore;
mod source;
mod swap;

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use check::{Examined, Nowhere, Sink, examine};
use holdfast_core::{Ambient, PartitionId};
use holdfast_enclave::{InstanceError, InstanceSecrets, SiliconError, SoftwareSilicon};
use holdfast_store::{
    CopyKeys,
    backup::{BackupError, Begun, Reader},
    read_regular,
};
pub(crate) use source::{Source, Taken};
pub(crate) use swap::refuse_unfinished;

use crate::{
    ambient::OsAmbient,
    fault::Fault,
    founding::{LOG, SEALED},
};

const RECORDS: &str = "records.redb";
const INDEX: &str = "index.redb";
const WATERMARK: &str = "watermark.slots";
/// Of the sealed state: far more than it has.
const SEALED_BYTES_MAX: u64 = 64 * 1024;

/// A service that a backup is of, or for: as its configuration says.
pub(crate) struct Place {
    /// As backups call it.
    pub role: &'static str,
    pub data_dir: PathBuf,
    pub silicon_root: PathBuf,
    pub kind: Kind,
}

/// Where a role has its changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// In its records.
    Records,
    /// In an index; its records hold but the mark of the log.
    Index,
    /// In rows that its processes share.
    Shared,
}

impl Place {
    pub(crate) fn has_index(&self) -> bool {
        self.kind == Kind::Index
    }
}

/// A backup whose instance was opened, and whose head is believed.
pub(crate) struct Believed {
    pub reader: Reader<BufReader<File>>,
    pub secrets: InstanceSecrets,
    pub state: Vec<u8>,
    pub ambient: Arc<dyn Ambient>,
}

/// What its parts are looked at with.
pub(crate) fn keys<'a>(secrets: &'a InstanceSecrets, ambient: &Arc<dyn Ambient>) -> CopyKeys<'a> {
    CopyKeys {
        instance: secrets.instance,
        database_key: &secrets.database_key,
        ambient: Arc::clone(ambient),
        sets: holdfast_storage::SETS,
    }
}

/// Which backup a file says that it is.
pub(crate) fn id_of(path: &Path) -> Result<String, Fault> {
    let file = File::open(path).map_err(|error| Fault::file(path, error))?;
    Ok(Begun::read(BufReader::new(file)).map_err(|error| Fault::file(path, error))?.head.id)
}

/// Opens a backup with this machine's silicon.
pub(crate) fn believe(place: &Place, path: &Path) -> Result<Believed, Fault> {
    let not_taken = |error: BackupError| Fault::file(path, error);
    let begun = File::open(path).map_err(|error| Fault::file(path, error))?;
    let begun = Begun::read(BufReader::with_capacity(1 << 20, begun)).map_err(not_taken)?;
    if begun.head.role != place.role {
        return Err(Fault::usage(format!(
            "{} is a backup of role {}, and the configuration is of role {}",
            path.display(),
            begun.head.role,
            place.role
        )));
    }
    let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
    let silicon = open_silicon(place, &begun.head.instance, &ambient)?;
    let state = begun.state.clone();
    let secrets = InstanceSecrets::open_content(path, &state, &silicon).map_err(|error| {
        let fault = Fault::new(&error);
        match error {
            InstanceError::Sealed { .. } => fault.hint(format!(
                "the backup is of instance {}, which was sealed to another silicon than the one at {}, or it was changed; without its silicon nobody opens it",
                begun.head.instance,
                place.silicon_root.display()
            )),
            _ => fault,
        }
    })?;
    if PartitionId::parse(&begun.head.instance) != Some(secrets.instance) {
        return Err(Fault::file(path, "it was changed: head and sealed state name two instances"));
    }
    let reader = begun.believe(&secrets.database_key).map_err(not_taken)?;
    Ok(Believed { reader, secrets, state, ambient })
}

/// Refuses a directory of another instance than this one: whose it is stands in clear in its sealed state.
fn refuse_another(data_dir: &Path, instance: PartitionId) -> Result<(), Fault> {
    let sealed = read_regular(&data_dir.join(SEALED), SEALED_BYTES_MAX).ok();
    let id = sealed.and_then(|bytes| bytes.get(5..21)?.try_into().ok()).map(PartitionId::from_bytes);
    match id.filter(|id| *id != instance) {
        None => Ok(()),
        Some(id) => Err(Fault::usage(format!(
            "{} is of instance {id}, and the backup is of instance {instance}: nothing was changed",
            data_dir.display()
        ))
        .hint("restore into a directory of its own")),
    }
}

/// Which of these files and directories are there; an empty directory holds nothing.
fn there_of(data_dir: &Path, names: &[&str]) -> Vec<String> {
    let is_there = |name: &&&str| {
        let path = data_dir.join(name);
        fs::read_dir(&path).map_or_else(|_| path.symlink_metadata().is_ok(), |mut entries| entries.next().is_some())
    };
    names.iter().filter(is_there).map(|name| (*name).to_owned()).collect()
}

/// Whether a file of a log is one of its segments, by its name.
fn is_segment(name: &str) -> bool {
    let number = name.strip_prefix("audit-").and_then(|name| name.strip_suffix(".jsonl"));
    number.is_some_and(|number| number.len() == 12 && number.bytes().all(|c| c.is_ascii_digit()))
}

/// Takes the whole lines out of what was read of a log, without their ends. What is left is the beginning of the next one.
fn take_lines(read: &mut Vec<u8>, mut line: impl FnMut(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
    let whole = read.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    for each in read[..whole].split_inclusive(|byte| *byte == b'\n') {
        line(&each[..each.len() - 1])?;
    }
    read.drain(..whole);
    Ok(())
}

/// It is never made here: what is sealed needs the one that it was sealed to.
fn open_silicon(place: &Place, instance: &str, ambient: &Arc<dyn Ambient>) -> Result<SoftwareSilicon, Fault> {
    SoftwareSilicon::open(&place.silicon_root, Arc::clone(ambient)).map_err(|error| match error {
        SiliconError::Missing(_) => Fault::new(format!(
            "instance {instance} was sealed to silicon whose root is not on this machine: {error}"
        ))
        .hint("bring back the silicon first (of software silicon: its root file, kept apart from backups); without it nobody opens this"),
        other => Fault::new(other),
    })
}

/// A moment, for people.
pub(crate) fn moment(unix_millis: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_millis).map(|time| format!("{time:.0}")).unwrap_or_else(|_| "unknown".into())
}

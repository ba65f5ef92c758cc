//! What a restore leaves for the next start (`docs/formats/backup.md`): that it was meant, and of what. It opens with the instance's key alone, which the
//! silicon gave to whoever restored, and it lets pass one store beside one end of one log. The start tells the log of it, and then it goes.

use std::{fs, io, path::Path};

use holdfast_core::{Ambient, PartitionId, Revision};
use holdfast_crypto::{SealingKey, SecretBytes, kdf};
use holdfast_store::{
    audit::{Checkpoint, RestoredStore},
    read_regular, write_regular,
};
use holdfast_wire::hex::{hex, unhex};
use serde::{Deserialize, Serialize};

use super::moment;
use crate::fault::Fault;

pub(super) const FILE: &str = "restore.note";
const MAGIC: &[u8; 5] = b"HFRN\x01";
/// Far more than it has.
const BYTES_MAX: u64 = 64 * 1024;

/// A place in a log.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LogEnd {
    pub line: u64,
    pub hash: String,
    pub revision: u64,
}

impl From<Checkpoint> for LogEnd {
    fn from(end: Checkpoint) -> Self {
        Self { line: end.seq, hash: hex(&end.head), revision: end.revision.0 }
    }
}

/// One restore.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Note {
    /// Of the backup.
    pub backup: String,
    /// When that was taken, and when it was put back: Unix milliseconds.
    pub taken: i64,
    pub restored: i64,
    /// The user who restored.
    pub uid: u32,
    /// The newest change in the store from now on.
    pub revision: u64,
    /// Where the backup's log ends.
    pub log: LogEnd,
    /// The log that was there and goes on, if it was kept: it is longer than the backup's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<LogEnd>,
}

impl Note {
    /// What may be found, and nothing else: a store that is behind the log that was kept.
    pub(crate) fn store(&self) -> Option<RestoredStore> {
        let kept = self.kept.as_ref()?;
        let head = unhex(&kept.hash).and_then(|hash| hash.try_into().ok())?;
        let log = Checkpoint { seq: kept.line, head, revision: Revision(kept.revision) };
        Some(RestoredStore { store: Revision(self.revision), log })
    }

    /// For the event.
    pub(crate) fn context(&self) -> Vec<(&'static str, String)> {
        let mut context = vec![
            ("backup", self.backup.clone()),
            ("taken", moment(self.taken)),
            ("restored", moment(self.restored)),
            ("uid", self.uid.to_string()),
            ("revision", self.revision.to_string()),
            ("line", self.log.line.to_string()),
        ];
        if let Some(kept) = &self.kept {
            context.push(("undone", kept.revision.saturating_sub(self.revision).to_string()));
        }
        context
    }
}

fn key(database_key: &SecretBytes) -> Result<SealingKey, Fault> {
    kdf::derive_key(database_key, "holdfast restore note v1").and_then(|key| SealingKey::new(&key)).map_err(Fault::new)
}

fn aad(instance: PartitionId) -> Vec<u8> {
    [MAGIC.as_slice(), instance.as_bytes()].concat()
}

/// Leaves it in `directory`.
pub(super) fn write(
    directory: &Path,
    note: &Note,
    (instance, database_key): (PartitionId, &SecretBytes),
    ambient: &dyn Ambient,
) -> Result<(), Fault> {
    let text = serde_json::to_vec(note).map_err(Fault::new)?;
    let sealed = key(database_key)?.seal(ambient.random(), &aad(instance), &text).map_err(Fault::new)?;
    let path = directory.join(FILE);
    let written = write_regular(&path, &[MAGIC.as_slice(), &sealed].concat());
    written.and_then(|()| fs::File::open(&path)?.sync_all()).map_err(|error| Fault::file(&path, error))
}

/// What a restore has left in `data_dir`, if it is of this instance.
pub(crate) fn read(data_dir: &Path, instance: PartitionId, database_key: &SecretBytes) -> Result<Option<Note>, Fault> {
    let path = data_dir.join(FILE);
    let bytes = match read_regular(&path, BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Fault::file(&path, error))?,
    };
    let opened =
        bytes.strip_prefix(MAGIC).map(|sealed| Ok::<_, Fault>(key(database_key)?.open(&aad(instance), sealed).ok()));
    let opened = opened.transpose()?.flatten();
    let note = opened.and_then(|text| serde_json::from_slice(text.expose()).ok());
    let not_ours = || {
        Fault::new(format!("{}: no restore of this instance left that there, or it was changed", path.display()))
            .hint("restore again; or, if nothing was restored here, remove the file")
    };
    note.ok_or_else(not_ours).map(Some)
}

/// The log has told of it.
pub(crate) fn forget(data_dir: &Path) -> Result<(), Fault> {
    let path = data_dir.join(FILE);
    let removed = match fs::remove_file(&path) {
        // Another process of a proxy has told of it, too.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    removed.and_then(|()| fs::File::open(data_dir)?.sync_all()).map_err(|error| Fault::file(&path, error))
}

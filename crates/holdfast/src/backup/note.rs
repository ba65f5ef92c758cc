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
    /// The newest change that anything knew of that was there, if it is none of the backup's: numbers of changes go on above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<u64>,
    /// The last line that is known of a log that was there and was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<LogEnd>,
}

impl Note {
    /// What may be found, and nothing else: this store beside this log.
    pub(crate) fn store(&self) -> Option<RestoredStore> {
        let end = self.kept.as_ref().unwrap_or(&self.log);
        let head = unhex(&end.hash).and_then(|hash| hash.try_into().ok())?;
        let log = Checkpoint { seq: end.line, head, revision: Revision(end.revision) };
        let newest = Revision(self.newest.unwrap_or_default());
        Some(RestoredStore { store: Revision(self.revision), log, newest })
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
        let newest = self.kept.as_ref().map_or(0, |kept| kept.revision).max(self.newest.unwrap_or_default());
        if newest > self.revision || self.kept.is_some() {
            context.push(("undone", newest.saturating_sub(self.revision).to_string()));
        }
        if let Some(line) = &self.set_aside {
            context
                .push(("log_set_aside", format!("its last known line is {}, of change {}", line.line, line.revision)));
        }
        context
    }
}

/// Whose notes: what is sealed opens for whoever has the instance's key, and nobody else makes it.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub instance: PartitionId,
    pub database_key: &'a SecretBytes,
    pub ambient: &'a dyn Ambient,
}

/// A kind of such files: what they begin with, and what their key is derived for.
pub(super) struct Kind {
    pub magic: &'static [u8; 5],
    pub purpose: &'static str,
}

const NOTE: Kind = Kind { magic: MAGIC, purpose: "holdfast restore note v1" };

impl Kind {
    fn key(&self, database_key: &SecretBytes) -> Result<SealingKey, Fault> {
        kdf::derive_key(database_key, self.purpose).and_then(|key| SealingKey::new(&key)).map_err(Fault::new)
    }

    fn aad(&self, instance: PartitionId) -> Vec<u8> {
        [self.magic.as_slice(), instance.as_bytes()].concat()
    }

    /// A file with this content, for its owner.
    pub(super) fn seal(&self, owner: Owner<'_>, content: &impl Serialize) -> Result<Vec<u8>, Fault> {
        let text = serde_json::to_vec(content).map_err(Fault::new)?;
        let key = self.key(owner.database_key)?;
        let sealed = key.seal(owner.ambient.random(), &self.aad(owner.instance), &text).map_err(Fault::new)?;
        Ok([self.magic.as_slice(), &sealed].concat())
    }

    /// The content of a file of this owner; none, if it is not.
    pub(super) fn open<T: for<'de> Deserialize<'de>>(
        &self,
        (instance, database_key): (PartitionId, &SecretBytes),
        bytes: &[u8],
    ) -> Result<Option<T>, Fault> {
        let Some(sealed) = bytes.strip_prefix(self.magic) else { return Ok(None) };
        let opened = self.key(database_key)?.open(&self.aad(instance), sealed).ok();
        Ok(opened.and_then(|text| serde_json::from_slice(text.expose()).ok()))
    }
}

/// Leaves it in `directory`.
pub(super) fn write(directory: &Path, note: &Note, owner: Owner<'_>) -> Result<(), Fault> {
    let path = directory.join(FILE);
    let written = write_regular(&path, &NOTE.seal(owner, note)?);
    written.and_then(|()| fs::File::open(&path)?.sync_all()).map_err(|error| Fault::file(&path, error))
}

/// What a restore has left in `data_dir`, if it is of this instance.
pub(crate) fn read(data_dir: &Path, instance: PartitionId, database_key: &SecretBytes) -> Result<Option<Note>, Fault> {
    let path = data_dir.join(FILE);
    let bytes = match read_regular(&path, BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Fault::file(&path, error))?,
    };
    let note = NOTE.open((instance, database_key), &bytes)?;
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

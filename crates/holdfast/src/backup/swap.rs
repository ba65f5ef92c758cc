//! How what was unpacked takes the place of what was there: by renames, each of which a crash leaves done or not, so that whoever comes next goes on.
//!
//! A marker stands in the directory from before the first of them until after the last. As long as it is there, no service starts. It opens with the
//! instance's key alone: nobody else says what is moved.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use holdfast_core::PartitionId;
use holdfast_crypto::SecretBytes;
use holdfast_store::{read_regular, write_regular};
use serde::{Deserialize, Serialize};

use super::{
    INDEX, LOG, RECORDS, SEALED, WATERMARK,
    note::{self, Kind, Owner},
    proxy::{PROCESSES, ROWS},
};
use crate::fault::Fault;

/// Where a restore unpacks to.
const STAGING: &str = "restoring";
const MARKER: &str = "restore.unfinished";
/// Far more than it has.
const MARKER_BYTES_MAX: u64 = 64 * 1024;

const MARKERS: Kind = Kind { magic: b"HFRU\x01", purpose: "holdfast restore unfinished v1" };
/// What makes up a state, of any role: nothing else is moved.
const STATE: &[&str] = &[SEALED, RECORDS, INDEX, WATERMARK, LOG, note::FILE, ROWS, PROCESSES];
/// What was there is kept in a directory of this name, with a number behind it.
pub(super) const ASIDE: &str = "before-restore-";

/// How far a restore has come.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
enum Phase {
    /// It unpacks into a directory in which nothing was.
    Unpack,
    /// All is unpacked and found whole; these are moved aside, then those take their places.
    Swap { backup: String, aside: String, old: Vec<String>, new: Vec<String> },
}

impl Phase {
    /// Whether nothing is moved but what makes up a state, from its place and to its place.
    fn stays_here(&self) -> bool {
        let Self::Swap { aside, old, new, .. } = self else { return true };
        let number = aside.strip_prefix(ASIDE).unwrap_or_default();
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && old.iter().chain(new).all(|name| STATE.contains(&name.as_str()))
    }
}

/// Refuses a directory in which a restore did not end.
pub(crate) fn refuse_unfinished(data_dir: &Path) -> Result<(), Fault> {
    if data_dir.join(MARKER).symlink_metadata().is_err() {
        return Ok(());
    }
    Err(Fault::new(format!("{}: a restore was begun here and did not end", data_dir.display()))
        .hint("run `holdfast restore` again: it goes on, or begins anew"))
}

pub(super) fn sync(directory: &Path) -> Result<(), Fault> {
    fs::File::open(directory).and_then(|file| file.sync_all()).map_err(|error| Fault::file(directory, error))
}

/// Whether a restore that did not end may have left something here.
pub(super) fn is_marked(data_dir: &Path) -> bool {
    data_dir.join(MARKER).symlink_metadata().is_ok()
}

/// One directory that is restored into.
pub(super) struct Swap {
    data_dir: PathBuf,
}

impl Swap {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.into() }
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.data_dir.join(STAGING)
    }

    fn mark(&self, phase: &Phase, owner: Owner<'_>) -> Result<(), Fault> {
        let path = self.data_dir.join(MARKER);
        write_regular(&path, &MARKERS.seal(owner, phase)?)
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .map_err(|error| Fault::file(&path, error))?;
        sync(&self.data_dir)
    }

    fn unmark(&self) -> Result<(), Fault> {
        match fs::remove_file(self.data_dir.join(MARKER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Fault::file(&self.data_dir, error)),
            Ok(()) | Err(_) => {}
        }
        sync(&self.data_dir)
    }

    /// Ends what another restore began, as far as it had unpacked all; gives the backup that it was of.
    pub(super) fn go_on(&self, owner: (PartitionId, &SecretBytes)) -> Result<Option<String>, Fault> {
        let path = self.data_dir.join(MARKER);
        let text = match read_regular(&path, MARKER_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| Fault::file(&path, error))?,
        };
        let phase = MARKERS.open(owner, &text)?.filter(Phase::stays_here);
        let phase = phase.ok_or_else(|| {
            Fault::new(format!("{}: no restore of this instance left that there, or it was changed", path.display()))
                .hint("nothing was moved; see what is there, remove the file, and restore again")
        })?;
        match &phase {
            Phase::Unpack => Ok(None),
            Phase::Swap { backup, .. } => {
                self.exchange(&phase)?;
                Ok(Some(backup.clone()))
            }
        }
    }

    /// Makes the place to unpack to, empty. `fresh`: nothing else is in the directory, and a service would begin anew there.
    pub(super) fn prepare(&self, fresh: bool, owner: Owner<'_>) -> Result<PathBuf, Fault> {
        crate::instance::create_private_dir(&self.data_dir).map_err(|error| Fault::file(&self.data_dir, error))?;
        if fresh {
            self.mark(&Phase::Unpack, owner)?;
        }
        let staging = self.staging();
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Fault::file(&staging, error)),
            Ok(()) | Err(_) => {}
        }
        crate::instance::create_private_dir(&staging).map_err(|error| Fault::file(&staging, error))?;
        Ok(staging)
    }

    /// Gives up what was unpacked.
    pub(super) fn abandon(&self, fresh: bool) {
        // Whatever is left is removed by the next one, and tells its beginning again.
        if fs::remove_dir_all(self.staging()).is_ok() && fresh {
            let _ = self.unmark();
        }
    }

    /// Puts all that was unpacked in the place of `old`, which is kept in the directory that is named. Gives where that is, if anything was there.
    pub(super) fn commit(
        &self,
        backup: &str,
        aside: String,
        old: Vec<String>,
        owner: Owner<'_>,
    ) -> Result<Option<PathBuf>, Fault> {
        let staging = self.staging();
        let mut new = Vec::new();
        for entry in fs::read_dir(&staging).map_err(|error| Fault::file(&staging, error))? {
            let name = entry.map_err(|error| Fault::file(&staging, error))?.file_name();
            new.push(name.to_string_lossy().into_owned());
        }
        sync(&staging)?;
        let kept = (!old.is_empty()).then(|| self.data_dir.join(&aside));
        let phase = Phase::Swap { backup: backup.into(), aside, old, new };
        self.mark(&phase, owner)?;
        self.exchange(&phase)?;
        Ok(kept)
    }

    /// May be done again and again.
    fn exchange(&self, phase: &Phase) -> Result<(), Fault> {
        let Phase::Swap { aside, old, new, .. } = phase else { return Ok(()) };
        let (aside, staging) = (self.data_dir.join(aside), self.staging());
        for directory in [&aside, &staging] {
            if directory.symlink_metadata().is_ok_and(|data| !data.is_dir()) {
                return Err(Fault::file(
                    directory,
                    "it is no directory: somebody put it there, and nothing is moved through it",
                ));
            }
        }
        let moved = |from: &Path, to: &Path| fs::rename(from, to).map_err(|error| Fault::file(from, error));
        if !old.is_empty() {
            crate::instance::create_private_dir(&aside).map_err(|error| Fault::file(&aside, error))?;
        }
        for name in old {
            let (here, there) = (self.data_dir.join(name), aside.join(name));
            if there.symlink_metadata().is_err() {
                moved(&here, &there)?;
            }
        }
        if !old.is_empty() {
            sync(&aside)?;
        }
        sync(&self.data_dir)?;
        for name in new {
            let unpacked = staging.join(name);
            if unpacked.symlink_metadata().is_ok() {
                moved(&unpacked, &self.data_dir.join(name))?;
            }
        }
        sync(&self.data_dir)?;
        let _ = fs::remove_dir(&staging);
        self.unmark()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay(directory: &Path, names: &[&str], content: &str) {
        fs::create_dir_all(directory).unwrap();
        for name in names {
            fs::write(directory.join(name), content).unwrap();
        }
    }

    const INSTANCE: PartitionId = PartitionId::from_bytes([1; 16]);

    fn owner(database_key: &SecretBytes) -> Owner<'_> {
        Owner { instance: INSTANCE, database_key, ambient: &crate::ambient::OsAmbient }
    }

    /// Of a marker that somebody else left, or that was changed, or that leads elsewhere, nothing is moved.
    #[test]
    fn what_is_moved_is_what_a_restore_of_this_instance_said() {
        let directory = tempfile::tempdir().unwrap();
        let swap = Swap::of(directory.path());
        let (key, other) = (SecretBytes::copy_of(&[2; 32]), SecretBytes::copy_of(&[3; 32]));
        let phase = |aside: &str, old: &str| Phase::Swap {
            backup: "id".into(),
            aside: aside.into(),
            old: vec![old.into()],
            new: Vec::new(),
        };
        let good = phase("before-restore-7", "records.redb");
        let refused = || {
            fs::write(directory.path().join("records.redb"), "here").unwrap();
            let refused = swap.go_on((INSTANCE, &key)).unwrap_err().to_string();
            assert_eq!(fs::read_to_string(directory.path().join("records.redb")).unwrap(), "here", "{refused}");
        };
        fs::write(directory.path().join(MARKER), serde_json::to_vec(&good).unwrap()).unwrap();
        refused();
        swap.mark(&good, owner(&other)).unwrap();
        refused();
        for (aside, old) in [
            ("../x", "records.redb"),
            ("before-restore-", "records.redb"),
            ("before-restore-7", "../records.redb"),
            ("/tmp", "audit"),
        ] {
            swap.mark(&phase(aside, old), owner(&key)).unwrap();
            refused();
        }
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("before-restore-7")).unwrap();
        swap.mark(&good, owner(&key)).unwrap();
        refused();
        fs::remove_file(directory.path().join("before-restore-7")).unwrap();
        assert_eq!(swap.go_on((INSTANCE, &key)).unwrap().as_deref(), Some("id"), "control");
    }

    /// At each step of the exchange: whoever comes next ends it, and the old files are aside.
    #[test]
    fn a_crash_at_any_rename_is_gone_on_with() {
        let (old, new) = (["records.redb", "audit"], ["records.redb", "audit", "restore.note"]);
        let key = SecretBytes::copy_of(&[2; 32]);
        for renames in 0..=old.len() + new.len() {
            let directory = tempfile::tempdir().unwrap();
            let swap = Swap::of(directory.path());
            lay(directory.path(), &old, "old");
            lay(&swap.staging(), &new, "new");
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let aside = directory.path().join("before-restore-7");
            let phase = Phase::Swap {
                backup: "id".into(),
                aside: "before-restore-7".into(),
                old: names(&old),
                new: names(&new),
            };
            swap.mark(&phase, owner(&key)).unwrap();
            fs::create_dir(&aside).unwrap();
            for name in old.iter().take(renames) {
                fs::rename(directory.path().join(name), aside.join(name)).unwrap();
            }
            for name in new.iter().take(renames.saturating_sub(old.len())) {
                fs::rename(swap.staging().join(name), directory.path().join(name)).unwrap();
            }
            assert!(refuse_unfinished(directory.path()).is_err());
            assert_eq!(swap.go_on((INSTANCE, &key)).unwrap().as_deref(), Some("id"));
            assert!(refuse_unfinished(directory.path()).is_ok());
            assert_eq!(swap.go_on((INSTANCE, &key)).unwrap(), None);
            for name in new {
                assert_eq!(fs::read_to_string(directory.path().join(name)).unwrap(), "new", "after {renames}");
            }
            for name in old {
                assert_eq!(fs::read_to_string(aside.join(name)).unwrap(), "old");
            }
            assert!(!swap.staging().exists());
        }
    }
}

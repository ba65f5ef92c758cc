//! How what was unpacked takes the place of what was there: by renames, each of which a crash leaves done or not, so that whoever comes next goes on.
//!
//! A marker stands in the directory from before the first of them until after the last. As long as it is there, no service starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use holdfast_store::{read_regular, write_regular};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// Where a restore unpacks to.
const STAGING: &str = "restoring";
const MARKER: &str = "restore.unfinished";
/// Far more than it has.
const MARKER_BYTES_MAX: u64 = 64 * 1024;

/// How far a restore has come.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
enum Phase {
    /// It unpacks into a directory in which nothing was.
    Unpack,
    /// All is unpacked and found whole; these are moved aside, then those take their places.
    Swap { backup: String, aside: String, old: Vec<String>, new: Vec<String> },
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

    fn mark(&self, phase: &Phase) -> Result<(), Fault> {
        let path = self.data_dir.join(MARKER);
        let text = serde_json::to_vec(phase).map_err(Fault::new)?;
        write_regular(&path, &text)
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
    pub(super) fn go_on(&self) -> Result<Option<String>, Fault> {
        let path = self.data_dir.join(MARKER);
        let text = match read_regular(&path, MARKER_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| Fault::file(&path, error))?,
        };
        let phase = serde_json::from_slice(&text).map_err(|error| Fault::file(&path, error))?;
        match &phase {
            Phase::Unpack => Ok(None),
            Phase::Swap { backup, .. } => {
                self.exchange(&phase)?;
                Ok(Some(backup.clone()))
            }
        }
    }

    /// Makes the place to unpack to, empty. `fresh`: nothing else is in the directory, and a service would begin anew there.
    pub(super) fn prepare(&self, fresh: bool) -> Result<PathBuf, Fault> {
        crate::instance::create_private_dir(&self.data_dir).map_err(|error| Fault::file(&self.data_dir, error))?;
        if fresh {
            self.mark(&Phase::Unpack)?;
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
    pub(super) fn commit(&self, backup: &str, aside: String, old: Vec<String>) -> Result<Option<PathBuf>, Fault> {
        let staging = self.staging();
        let mut new = Vec::new();
        for entry in fs::read_dir(&staging).map_err(|error| Fault::file(&staging, error))? {
            let name = entry.map_err(|error| Fault::file(&staging, error))?.file_name();
            new.push(name.to_string_lossy().into_owned());
        }
        sync(&staging)?;
        let kept = (!old.is_empty()).then(|| self.data_dir.join(&aside));
        let phase = Phase::Swap { backup: backup.into(), aside, old, new };
        self.mark(&phase)?;
        self.exchange(&phase)?;
        Ok(kept)
    }

    /// May be done again and again.
    fn exchange(&self, phase: &Phase) -> Result<(), Fault> {
        let Phase::Swap { aside, old, new, .. } = phase else { return Ok(()) };
        let (aside, staging) = (self.data_dir.join(aside), self.staging());
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

    /// At each step of the exchange: whoever comes next ends it, and the old files are aside.
    #[test]
    fn a_crash_at_any_rename_is_gone_on_with() {
        let (old, new) = (["a", "b"], ["a", "b", "c"]);
        for renames in 0..=old.len() + new.len() {
            let directory = tempfile::tempdir().unwrap();
            let swap = Swap::of(directory.path());
            lay(directory.path(), &old, "old");
            lay(&swap.staging(), &new, "new");
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let phase = Phase::Swap { backup: "id".into(), aside: "aside".into(), old: names(&old), new: names(&new) };
            swap.mark(&phase).unwrap();
            fs::create_dir(directory.path().join("aside")).unwrap();
            for name in old.iter().take(renames) {
                fs::rename(directory.path().join(name), directory.path().join("aside").join(name)).unwrap();
            }
            for name in new.iter().take(renames.saturating_sub(old.len())) {
                fs::rename(swap.staging().join(name), directory.path().join(name)).unwrap();
            }
            assert!(refuse_unfinished(directory.path()).is_err());
            assert_eq!(swap.go_on().unwrap().as_deref(), Some("id"));
            assert!(refuse_unfinished(directory.path()).is_ok());
            assert_eq!(swap.go_on().unwrap(), None);
            for name in new {
                assert_eq!(fs::read_to_string(directory.path().join(name)).unwrap(), "new", "after {renames}");
            }
            for name in old {
                assert_eq!(fs::read_to_string(directory.path().join("aside").join(name)).unwrap(), "old");
            }
            assert!(!swap.staging().exists());
        }
    }
}

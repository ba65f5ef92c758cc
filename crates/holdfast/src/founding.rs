//! Where an instance may begin: in a directory in which nothing of one lies, and which this machine's silicon does not know as one that has an
//! instance. What is there by half, and what should be there and is not, is refused by name: somebody lost something, or forgot to mount it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use holdfast_core::{Ambient, PartitionId};
use holdfast_enclave::{Founded, FoundedError, FoundedList, SoftwareSilicon};
use holdfast_store::audit::list_segments;

use crate::fault::Fault;

/// What whoever opens a directory does if no instance is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MayFound {
    /// Founds one, where the directory is new to the silicon.
    WhereNew,
    /// Founds one, though it is not: `--found`.
    Asked,
    /// Founds none: a command works on what is there.
    Never,
    /// Founds one, and the silicon neither knows nor learns of it: `dev`.
    Untold,
}

/// Of `serve` commands.
#[derive(clap::Args)]
pub(crate) struct FoundArg {
    /// Found a new instance in an empty directory where this machine's silicon knows of an earlier one, which is given up
    #[arg(long)]
    found: bool,
}

impl From<FoundArg> for MayFound {
    fn from(arg: FoundArg) -> Self {
        if arg.found { Self::Asked } else { Self::WhereNew }
    }
}

/// The sealed secrets of an instance.
pub(crate) const SEALED: &str = "instance.sealed";
/// Segments of a log.
pub(crate) const LOG: &str = "audit";
/// What any role leaves in its directory beside them.
const FILES: &[&str] = &["records.redb", "index.redb", "rows.shared", "watermark.slots"];
const RESTORE: &str = "restore the whole data directory from one backup (docs/hosts.md, \"Where an instance begins\")";

/// What lies in `data_dir` of an instance, but for its secrets.
fn pieces(data_dir: &Path) -> io::Result<Vec<&'static str>> {
    let mut found: Vec<_> = FILES.iter().copied().filter(|name| lies(&data_dir.join(name))).collect();
    if has_log(&data_dir.join(LOG))? {
        found.push(LOG);
    }
    for name in ["processes", "blobs"] {
        match fs::read_dir(data_dir.join(name)) {
            // A new volume of ext4 has that.
            Ok(mut entries) => {
                if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found")) {
                    found.push(name);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn lies(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether there are segments of a log.
pub(crate) fn has_log(directory: &Path) -> io::Result<bool> {
    match list_segments(directory) {
        Ok(segments) => Ok(!segments.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file that the instance had, and that is not there.
pub(crate) fn missing(path: &Path, evidence: &str) -> Fault {
    Fault::new(format!(
        "{} is missing, but {evidence}: this is no new instance, and none is begun in its place",
        path.display()
    ))
    .hint(RESTORE)
}

/// Whether `file` of a data directory is missing, though what an instance writes `after` it lies there. Gives what.
pub(crate) fn evidence_of(data_dir: &Path, file: &str, after: &[&'static str]) -> Result<Option<String>, Fault> {
    if lies(&data_dir.join(file)) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for name in after {
        let path = data_dir.join(name);
        let is_there =
            if *name == LOG { has_log(&path).map_err(|error| Fault::file(&path, error))? } else { lies(&path) };
        found.extend(is_there.then_some(*name));
    }
    Ok((!found.is_empty()).then(|| there(&found)))
}

fn there(found: &[&str]) -> String {
    let verb = if found.len() == 1 { "is" } else { "are" };
    format!("{} {verb} there", found.join(", "))
}

/// A directory that is about to be opened.
pub(crate) struct Ground<'a> {
    data_dir: &'a Path,
    /// The same without symbolic links.
    whole: PathBuf,
    list: FoundedList,
    founding: MayFound,
}

impl<'a> Ground<'a> {
    /// `data_dir` is there.
    pub(crate) fn new(data_dir: &'a Path, silicon_root: &Path, founding: MayFound) -> Result<Self, Fault> {
        let whole = data_dir.canonicalize().map_err(|error| Fault::file(data_dir, error))?;
        Ok(Self { data_dir, whole, list: FoundedList::beside(silicon_root), founding })
    }

    /// Refuses a directory without secrets in which something of an instance lies, but for `excused`.
    pub(crate) fn judge_pieces(&self, excused: &[&str]) -> Result<(), Fault> {
        let mut found = pieces(self.data_dir).map_err(|error| Fault::file(self.data_dir, error))?;
        found.retain(|name| !excused.contains(name));
        if found.is_empty() { Ok(()) } else { Err(missing(&self.data_dir.join(SEALED), &there(&found))) }
    }

    /// Refuses to found an instance where nobody asked for it and the silicon knows of one.
    pub(crate) fn judge_founding(&self, silicon: &SoftwareSilicon) -> Result<(), Fault> {
        let data_dir = self.data_dir.display();
        let known = match (self.founding, self.list.read(silicon)) {
            (MayFound::Never | MayFound::Untold, _) | (MayFound::Asked, Err(_)) => return Ok(()),
            (MayFound::WhereNew, Err(error)) => {
                let why = format!("{data_dir} is empty, and whether it had an instance is not known: {error}");
                return Err(Fault::new(why).hint("if it is to have a new one, start once with --found"));
            }
            (_, Ok(known)) => known,
        };
        let Some(Founded { instance, since, .. }) = known.into_iter().find(|entry| entry.directory == self.whole)
        else {
            return Ok(());
        };
        if self.founding == MayFound::Asked {
            tracing::warn!(%data_dir, given_up = %instance, "an instance is founded in the place of another one, as was asked");
            return Ok(());
        }
        let since = jiff::Timestamp::from_millisecond(since.unix_millis())
            .map(|time| time.strftime("%Y-%m-%d").to_string())
            .unwrap_or_default();
        let why = format!(
            "{data_dir} is empty, but this machine's silicon knows it as the place of instance {instance} (since {since})"
        );
        Err(Fault::new(why).hint(
            "is its volume mounted? If that instance is given up, and a new one is to be founded here, start once with --found",
        ))
    }

    /// Refuses the word where it has no meaning: whoever leaves it in a unit file founds whenever a volume is not mounted.
    pub(crate) fn judge_word(&self) -> Result<(), Fault> {
        if self.founding != MayFound::Asked {
            return Ok(());
        }
        let why = format!("--found: there is an instance in {} already", self.data_dir.display());
        Err(Fault::usage(why).hint("start without --found"))
    }

    /// Has the silicon know of the instance that is there now. A silicon that cannot learn it stops nobody.
    pub(crate) fn remember(&self, instance: PartitionId, silicon: &SoftwareSilicon, ambient: &dyn Ambient) {
        if self.founding == MayFound::Untold {
            return;
        }
        let is_known = |entry: &Founded| entry.directory == self.whole && entry.instance == instance;
        if self.list.read(silicon).is_ok_and(|known| known.iter().any(is_known)) {
            return;
        }
        let founded = Founded { directory: self.whole.clone(), instance, since: ambient.now() };
        let list = self.list.path().display();
        match self.list.remember(founded, silicon, ambient) {
            Ok(None) => {}
            Ok(Some(aside)) => tracing::error!(
                %list, aside = %aside.display(),
                "the list of founded directories was damaged and is set aside: other directories are known again once their services have started"
            ),
            Err(error @ (FoundedError::File { .. } | FoundedError::Damaged(_) | FoundedError::Sealed { .. })) => {
                tracing::warn!(
                    %error,
                    "the silicon cannot remember this data directory: if it is empty one day, because a volume is not mounted, a new instance is founded there"
                )
            }
        }
    }
}

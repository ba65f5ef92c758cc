//! Putting a backup back: into an empty directory, or, at an explicit word, over an older or newer state of the same instance.
//!
//! It is unpacked beside what is there and read to its end before anything is moved. What was there is set aside, not deleted. A log that goes on
//! from the backup's is kept: it tells what the restore undoes. Whatever is older afterwards than something that is known is told by the
//! `restore.note`, and by the event of the next start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use holdfast_core::Revision;
use holdfast_enclave::InstanceSecrets;
use holdfast_store::{
    Copies, CopyOf, CopyWriter,
    audit::{AuditKeys, Checkpoint, end_of_log, list_segments, parse_line, read_lines},
};

use super::{
    Believed, Examined, INDEX, LOG, Place, RECORDS, SEALED, Sink, WATERMARK, believe, examine, moment,
    note::{self, LogEnd, Note, Owner},
    refuse_another,
    swap::{self, Swap},
    there_of,
};
use crate::{
    fault::Fault,
    history::{Watermark, decode_mark, mark_key},
};

/// What makes up an instance's state, as far as a restore replaces it.
const STATE: &[&str] = &[SEALED, RECORDS, INDEX, WATERMARK, LOG, note::FILE];

/// What was asked for.
pub(crate) struct Wish<'a> {
    pub from: &'a Path,
    /// The word: what is there may be replaced.
    pub over: bool,
}

/// A backup that is unpacked and whole, beside what is there.
pub(crate) struct Unpacked {
    swap: Swap,
    pub examined: Examined,
    pub there: Option<There>,
    secrets: InstanceSecrets,
    /// The log that is there goes on from the backup's, and ends here.
    pub kept: Option<Checkpoint>,
    _alone: Vec<File>,
}

/// What is in the directory.
#[derive(Default)]
pub(crate) struct There {
    files: Vec<String>,
    /// The newest change, as its store says, if that can be read.
    pub store: Option<Revision>,
    /// The log's end, if it is ours, and when that was.
    pub log: Option<Checkpoint>,
    pub log_time: Option<String>,
    /// How far the log had come, as the watermark says; and the store.
    pub watermark: Option<Checkpoint>,
    mark: Option<Checkpoint>,
}

/// What became of an earlier restore that had not ended.
pub(crate) struct Ended {
    /// The backup that it was of.
    pub backup: String,
    /// What it was to put there is there, and no service has started on it yet.
    pub is_there: bool,
}

/// Ends what an earlier restore had begun, if it had come so far. It has to be of the instance of the backup that is to be restored now.
pub(crate) fn go_on(place: &Place, from: &Path) -> Result<Option<Ended>, Fault> {
    if !swap::is_marked(&place.data_dir) {
        return Ok(None);
    }
    let Believed { secrets, .. } = believe(place, from)?;
    let owner = (secrets.instance, &secrets.database_key);
    let Some(backup) = Swap::of(&place.data_dir).go_on(owner)? else { return Ok(None) };
    let note = note::read(&place.data_dir, owner.0, owner.1)?;
    let is_there = note.is_some_and(|note| note.backup == backup);
    Ok(Some(Ended { backup, is_there }))
}

pub(super) fn owner_of<'a>(secrets: &'a InstanceSecrets, ambient: &'a dyn holdfast_core::Ambient) -> Owner<'a> {
    Owner { instance: secrets.instance, database_key: &secrets.database_key, ambient }
}

/// Unpacks a backup, and sees what it would make older.
pub(crate) fn unpack(place: &Place, wish: &Wish<'_>) -> Result<Unpacked, Fault> {
    let Believed { reader, secrets, state, ambient } = believe(place, wish.from)?;
    let keys = super::keys(&secrets, &ambient);
    let files = there_of(&place.data_dir, STATE);
    let fresh = files.is_empty();
    drop(alone(&place.data_dir)?);
    if !fresh && !wish.over {
        let fault = Fault::usage(format!(
            "{} is not empty: {} {} there. Nothing was changed",
            place.data_dir.display(),
            files.join(", "),
            if files.len() == 1 { "is" } else { "are" }
        ));
        return Err(fault
            .hint("restore into an empty directory; or say --over to put the backup in the place of what is there"));
    }
    let mut there = if fresh { None } else { Some(There::look(place, &secrets, files, &keys)?) };
    let alone = alone(&place.data_dir)?;
    let swap = Swap::of(&place.data_dir);
    let staging = swap.prepare(fresh, owner_of(&secrets, ambient.as_ref()))?;
    let unpacked = Files::begin(&staging, &state).and_then(|mut sink| {
        let examined = examine(reader, &keys, place, &mut sink)?;
        sink.close()?;
        Ok(examined)
    });
    let examined = unpacked.inspect_err(|_| swap.abandon(fresh))?;
    let kept = match &mut there {
        None => None,
        Some(there) => there.log_from(&place.data_dir, &secrets, examined.log)?,
    };
    Ok(Unpacked { swap, examined, there, secrets, kept, _alone: alone })
}

/// Of a directory that somebody serves nothing is replaced.
fn alone(data_dir: &Path) -> Result<Vec<File>, Fault> {
    let mut held = Vec::new();
    for name in [RECORDS, INDEX] {
        let path = data_dir.join(name);
        let Ok(file) = holdfast_store::open_regular(OpenOptions::new().read(true).write(true), &path) else { continue };
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(
                Fault::unavailable(format!("{}: a service runs on it", data_dir.display())).hint("stop it first")
            );
        }
        held.push(file);
    }
    Ok(held)
}

impl There {
    fn look(
        place: &Place,
        secrets: &InstanceSecrets,
        files: Vec<String>,
        keys: &holdfast_store::CopyKeys<'_>,
    ) -> Result<Self, Fault> {
        refuse_another(&place.data_dir, secrets.instance)?;
        // What cannot be read is what a restore is for.
        let copy =
            |name: &str, of| Copies::open(&place.data_dir.join(name), of, keys).and_then(|copies| copies.begin()).ok();
        let records = copy(RECORDS, CopyOf::Records);
        let mark = records.as_ref().and_then(|copy| copy.record(&mark_key(), keys).ok()?);
        let mark = mark.and_then(|mark| decode_mark(&mark));
        let changes = if place.has_index() { copy(INDEX, CopyOf::Index) } else { records };
        let store = changes.map(|copy| copy.revision());
        let watermark =
            Watermark::open(&place.data_dir, secrets.instance, &secrets.database_key, "records", &keys.ambient);
        let watermark = watermark.ok().and_then(|watermark| watermark.reached);
        Ok(Self { files, store, log: None, log_time: None, watermark, mark })
    }

    /// Sees where the log ends, and whether it goes on from the backup's.
    fn log_from(
        &mut self,
        data_dir: &Path,
        secrets: &InstanceSecrets,
        backup: Checkpoint,
    ) -> Result<Option<Checkpoint>, Fault> {
        let directory = data_dir.join(LOG);
        let keys = AuditKeys::new(&secrets.audit_key).map_err(Fault::new)?;
        let end =
            |expected| end_of_log(&directory, &keys.lines, expected).map_err(|error| Fault::file(&directory, error));
        let mut goes_on = end(Some(backup))?;
        // Each line that is known from elsewhere has to be in it: a log whose end was cut, or replaced, tells less than there was to tell.
        for known in [self.mark, self.watermark].into_iter().flatten().filter(|known| known.seq > 0) {
            if goes_on.is_some() && end(Some(known))?.is_none() {
                goes_on = None;
            }
        }
        self.log = match goes_on {
            Some(_) => goes_on,
            None => end(None)?,
        };
        self.log_time = last_time(&directory);
        Ok(goes_on)
    }

    /// The last line that anything here knows of.
    fn last_line(&self) -> Option<Checkpoint> {
        [self.log, self.mark, self.watermark].into_iter().flatten().max_by_key(|line| line.seq)
    }

    /// The newest change that anything here knows of.
    pub(crate) fn newest(&self) -> Revision {
        let of = |end: &Option<Checkpoint>| end.map_or(Revision(0), |end| end.revision);
        self.store.unwrap_or(Revision(0)).max(of(&self.log)).max(of(&self.watermark)).max(of(&self.mark))
    }

    /// No change had a greater number than this. A store that cannot be read may have some that the log does not have yet.
    fn newest_at_most(&self) -> Revision {
        let untold = if self.store.is_none() { holdfast_store::EVENTS_WAITING_MAX as u64 } else { 0 };
        Revision(self.newest().0.saturating_add(untold))
    }
}

fn last_time(directory: &Path) -> Option<String> {
    let (_, path) = list_segments(directory).ok()?.pop()?;
    let mut time = None;
    read_lines(&path, |line, _, whole| {
        time = parse_line(line).ok().filter(|_| whole).map(|parsed| parsed.time).or(time.take());
        true
    })
    .ok()?;
    time
}

impl Unpacked {
    /// What is restored, and what that makes older, line by line.
    pub(crate) fn told(&self) -> Vec<String> {
        let (head, end) = (&self.examined.head, &self.examined.end);
        let mut lines = vec![format!(
            "the backup {} of {} instance {} was taken at {}: change {}, line {} of the log",
            head.id,
            head.role,
            head.instance,
            moment(head.time),
            head.revision,
            end.line
        )];
        let Some(there) = &self.there else { return lines };
        let known = |end: &Option<Checkpoint>| {
            end.map_or_else(
                || "nothing that can be believed".into(),
                |end| format!("change {}, line {}", end.revision, end.seq),
            )
        };
        lines.push(format!(
            "what is there: the store says {}, and its mark of the log {}; the log {} ({}); the watermark {}",
            there.store.map_or_else(|| "nothing that can be read".into(), |revision| format!("change {revision}")),
            known(&there.mark),
            known(&there.log),
            there.log_time.as_deref().unwrap_or("no time"),
            known(&there.watermark)
        ));
        let undone = there.newest().0.saturating_sub(head.revision);
        lines.push(match undone {
            0 => "no change is undone".into(),
            1 => "1 change is undone: what was deleted, disabled or revoked by it is back".into(),
            undone => format!("{undone} changes are undone: what was deleted, disabled or revoked by them is back"),
        });
        lines.push(match self.kept {
            Some(end) => format!("the log that is there goes on; it ends at line {}", end.seq),
            None => {
                let line = there.last_line().map_or_else(String::new, |line| format!(", or lacks lines up to {} that are known", line.seq));
                format!(
                    "the log that is there does not go on from the backup's{line}; it is set aside, and the backup's takes its place"
                )
            }
        });
        lines
    }

    /// Nothing is restored.
    pub(crate) fn abandon(self) {
        self.swap.abandon(self.there.is_none());
    }

    /// Puts it in its place. Gives where what was there is kept.
    pub(crate) fn commit(self, ambient: &dyn holdfast_core::Ambient) -> Result<Option<PathBuf>, Fault> {
        let now = ambient.now().unix_millis();
        let staging = self.swap.staging();
        let last_line = self.there.as_ref().filter(|_| self.kept.is_none()).and_then(There::last_line);
        let newest = self.there.as_ref().map(|there| there.newest_at_most().0);
        let mut old = self.there.map(|there| there.files).unwrap_or_default();
        if self.kept.is_some() {
            old.retain(|name| name != LOG && name != WATERMARK);
            for name in [LOG, WATERMARK] {
                let path = staging.join(name);
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                match removed {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Fault::file(&path, error)),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        let head = &self.examined.head;
        let note = Note {
            backup: head.id.clone(),
            taken: head.time,
            restored: now,
            uid: rustix::process::getuid().as_raw(),
            revision: head.revision,
            log: self.examined.log.into(),
            kept: self.kept.map(Into::into),
            newest: newest.filter(|newest| *newest > head.revision),
            set_aside: last_line.map(LogEnd::from),
        };
        let owner = owner_of(&self.secrets, ambient);
        note::write(&staging, &note, owner)?;
        let aside = format!("{}{now}", swap::ASIDE);
        self.swap.commit(&head.id, aside, old, owner)
    }
}

/// Where the parts of a backup are written to.
pub(super) struct Files {
    directory: PathBuf,
    file: Option<(PathBuf, File)>,
    table: Option<CopyWriter>,
}

impl Files {
    /// Begins with the sealed state.
    pub(super) fn begin(directory: &Path, state: &[u8]) -> Result<Self, Fault> {
        let mut files = Self { directory: directory.into(), file: None, table: None };
        files.begin_file(SEALED)?;
        files.bytes(state)?;
        files.close()?;
        Ok(files)
    }

    fn begin_file(&mut self, name: &str) -> Result<(), Fault> {
        let path = self.directory.join(name);
        if let Some(parent) = path.parent() {
            crate::instance::create_private_dir(parent).map_err(|error| Fault::file(parent, error))?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        self.file = Some((path.clone(), file.map_err(|error| Fault::file(&path, error))?));
        Ok(())
    }

    /// The file that was written is durable.
    pub(super) fn close(&mut self) -> Result<(), Fault> {
        if let Some((path, file)) = self.file.take() {
            file.sync_all().map_err(|error| Fault::file(&path, error))?;
            path.parent().map_or(Ok(()), swap::sync)?;
        }
        self.table.take().map_or(Ok(()), CopyWriter::finish).map_err(Fault::new)
    }
}

impl Sink for Files {
    fn file(&mut self, name: &str) -> Result<(), Fault> {
        self.close()?;
        let of = match name {
            RECORDS => CopyOf::Records,
            INDEX => CopyOf::Index,
            name => return self.begin_file(name),
        };
        self.table = Some(CopyWriter::create(&self.directory.join(name), of).map_err(Fault::new)?);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match &mut self.file {
            Some((path, file)) => file.write_all(bytes).map_err(|error| Fault::file(path, error)),
            None => Ok(()),
        }
    }

    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        self.table.as_mut().map_or(Ok(()), |writer| writer.add(table, key, value)).map_err(Fault::new)
    }
}

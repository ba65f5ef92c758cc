//! A copy of a log, in a directory of its own: the log's segments byte by byte under their own names, and beside them what is known of the log.
//!
//! Lines are appended and synced first, and what is known is written after them, in one step: a copy that was left at any moment goes on. A line
//! counts as proved once a signed checkpoint or a signed head stands behind it; what is not proved is set aside if the log does not go on from it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use holdfast_core::{AuditLine, AuditPlace, Revision};
use holdfast_store::{
    audit::{ChainChecker, LogKey, line_hash, list_segments, parse_line, read_lines},
    read_regular,
};
use holdfast_wire::audit_pull::{HeadJson, PlaceJson};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// Name of the format of [`STATE`].
const FORMAT: &str = "holdfast-audit-copy-1";
/// What is known of the log.
pub(super) const STATE: &str = "copy.json";
const LOCK: &str = "copy.lock";
/// How much may come without a signed checkpoint, of which a log has one a second: what somebody who is not the instance can fill the disk with.
const UNPROVED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How many findings are kept; they are of 2 KiB each.
const FINDINGS_MAX: u32 = 1000;
/// Longest state read.
const STATE_BYTES_MAX: u64 = 64 * 1024;

/// What is known of the log, as it lies in the directory.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub format: String,
    /// Name of the log at its instance.
    pub log: String,
    pub instance: String,
    /// Fingerprint of the key that signs the log, as it was seen first or given.
    pub key: String,
    /// The last line that is proved; number 0 before there is one.
    pub proved: PlaceJson,
    /// The newest change that a line up to there tells of.
    pub told: u64,
    /// The newest change of the store that the instance has signed for.
    pub revision: u64,
    /// The newest head that the instance has signed.
    pub signed: HeadJson,
}

impl State {
    /// Reads it; `None` if there is none.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, Fault> {
        let path = directory.join(STATE);
        // Beside a log that others write, it may be anything.
        let text = match read_regular(&path, STATE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Fault::file(&path, error)),
        };
        let state: Self = serde_json::from_slice(&text).map_err(|error| Fault::file(&path, error))?;
        if state.format != FORMAT {
            return Err(Fault::file(&path, format!("its format is not {FORMAT}")));
        }
        Ok(Some(state))
    }
}

/// A copy that is open, by this process alone.
pub(super) struct LogCopy {
    directory: PathBuf,
    state: Option<State>,
    key: Option<LogKey>,
    /// Where the last line is proved.
    proved: AuditPlace,
    told: Revision,
    /// Where the files end.
    end: AuditPlace,
    checker: ChainChecker,
    /// Bytes behind the last proved line.
    unproved_bytes: u64,
    /// Starts at which somebody accepted that log and store are not of one moment, among the lines that came since it was opened.
    accepted: Vec<u64>,
    _lock: File,
}

/// Why lines are not taken.
pub(super) enum NotTaken {
    /// They are not what follows.
    Lines(String),
    /// They cannot be written down.
    File(Fault),
}

impl From<String> for NotTaken {
    fn from(why: String) -> Self {
        Self::Lines(why)
    }
}

impl LogCopy {
    /// Opens the copy in `directory`, or begins one. Whole lines of the chain that a crash left behind what is known are taken up, and what
    /// is torn behind them is cut.
    pub(super) fn open(directory: &Path) -> Result<Self, Fault> {
        let failed = |error| Fault::file(directory, error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK));
        let lock = lock.map_err(failed)?;
        lock.try_lock()
            .map_err(|_| Fault::unavailable(format!("{}: another pull is at work here", directory.display())))?;
        let state = State::read(directory)?;
        let damaged = |why: &str| Fault::new(format!("{}: the copy is damaged: {why}", directory.display()));
        let segments = list_segments(directory).map_err(failed)?;
        let key = match segments.first() {
            Some((_, path)) => {
                first_line(path).map_err(|error| Fault::file(path, error))?.and_then(|line| LogKey::in_line(&line))
            }
            None => None,
        };
        if let (Some(state), Some(key)) = (&state, &key)
            && (state.key != key.fingerprint() || state.instance != key.instance.to_string())
        {
            return Err(damaged("its first segment is of another instance or key than its state"));
        }
        if let (Some(state), Some(key)) = (&state, &key) {
            let signed = state.signed.read();
            if !signed.is_some_and(|(head, signature)| key.signed(&head, &signature)) {
                return Err(damaged("what the instance had signed is not signed by it"));
            }
        }
        let proved = match &state {
            Some(state) => state.proved.read().ok_or_else(|| damaged("its state cannot be read"))?,
            None => AuditPlace::default(),
        };
        let told = state.as_ref().map_or(Revision(0), |state| Revision(state.told));
        let checker = match &key {
            _ if proved.line.seq == 0 => ChainChecker::begin(),
            Some(key) => ChainChecker::resume(proved.line, told, key),
            None => return Err(damaged("its first segment is missing")),
        };
        let mut copy = Self {
            directory: directory.into(),
            state,
            key,
            proved,
            told,
            end: proved,
            checker,
            unproved_bytes: 0,
            accepted: Vec::new(),
            _lock: lock,
        };
        copy.check_proved_line().map_err(|why| damaged(&why))?;
        copy.take_up(&segments).map_err(|why| damaged(&why))?;
        copy.accepted = copy.checker.accepted().to_vec();
        let signed = copy.state.as_ref().and_then(|state| state.signed.read());
        if signed.is_some_and(|(head, _)| head.head == copy.end.line) {
            copy.prove();
        }
        Ok(copy)
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.directory.join(format!("audit-{number:012}.jsonl"))
    }

    /// The line that is known as the last proved one still stands where it stood.
    fn check_proved_line(&self) -> Result<(), String> {
        if self.proved.line.seq == 0 {
            return Ok(());
        }
        let path = self.segment(self.proved.segment);
        let mut found = None;
        // One segment is read; its lines have no other index.
        read_lines(&path, |content, offset, whole| {
            if offset == self.proved.offset && whole {
                let parsed = parse_line(content).ok();
                found = parsed.map(|parsed| AuditLine { seq: parsed.seq, hash: line_hash(content) });
            }
            offset < self.proved.offset
        })
        .map_err(|error| format!("{}: {error}", path.display()))?;
        if found == Some(self.proved.line) {
            return Ok(());
        }
        Err(format!("line {} is not where its state says", self.proved.line.seq))
    }

    /// Takes up what stands behind the last proved line.
    fn take_up(&mut self, segments: &[(u64, PathBuf)]) -> Result<(), String> {
        let behind: Vec<_> = segments.iter().filter(|(number, _)| *number >= self.proved.segment.max(1)).collect();
        let last = behind.len().saturating_sub(1);
        for (position, (number, path)) in behind.into_iter().enumerate() {
            let begin = if *number == self.proved.segment { self.proved.offset } else { 0 };
            let torn = self.take_up_segment(*number, path, begin)?;
            if let Some(good) = torn {
                if position != last {
                    return Err(format!("{} ends within a line", path.display()));
                }
                let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
                    file.set_len(good)?;
                    file.sync_all()
                });
                cut.map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Gives where a torn last line begins, if there is one.
    fn take_up_segment(&mut self, number: u64, path: &Path, begin: u64) -> Result<Option<u64>, String> {
        let mut failed = None;
        let mut torn = None;
        let mut good = begin;
        if begin == 0 && (number > self.end.segment + 1) {
            return Err(format!("segment {} is missing", self.end.segment + 1));
        }
        if begin == 0 {
            self.checker.begin_segment();
        }
        read_lines(path, |content, offset, whole| {
            if offset <= begin {
                return true;
            }
            if !whole {
                torn = Some(good);
                return false;
            }
            if begin == 0 && good == 0 && self.key.is_none() {
                self.key = LogKey::in_line(content);
            }
            match self.checker.line(content) {
                Ok(proves) => {
                    good = offset;
                    self.end = AuditPlace { line: self.checker.at(), segment: number, offset };
                    if proves {
                        self.prove();
                    }
                    true
                }
                Err(why) => {
                    failed = Some(format!("{}: {why}", path.display()));
                    false
                }
            }
        })
        .map_err(|error| format!("{}: {error}", path.display()))?;
        failed.map_or(Ok(torn), Err)
    }

    fn prove(&mut self) {
        (self.proved, self.told) = (self.end, self.checker.revision());
        self.unproved_bytes = 0;
    }

    pub(super) fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    pub(super) fn key(&self) -> Option<&LogKey> {
        self.key.as_ref()
    }

    /// Where the files end.
    pub(super) fn end(&self) -> AuditPlace {
        self.end
    }

    /// Where the last line is proved.
    pub(super) fn proved(&self) -> AuditPlace {
        self.proved
    }

    pub(super) fn accepted(&self) -> &[u64] {
        &self.accepted
    }

    /// Takes lines that follow the end, and makes them durable. `is_known` is asked of each whether it is the line that was signed for; nothing
    /// is written if one does not follow, or is another.
    pub(super) fn append(
        &mut self,
        (segment, offset): (u64, u64),
        lines: &[u8],
        key: &LogKey,
        mut is_known: impl FnMut(AuditLine) -> bool,
    ) -> Result<(), NotTaken> {
        let follows = segment == self.end.segment && offset == self.end.offset && offset > 0;
        let begins = segment == self.end.segment + 1 && offset == 0;
        if !follows && !begins {
            return Err(format!("segment {segment}, byte {offset} is not where the copy ends").into());
        }
        // On a copy of what was checked so far: what does not hold leaves nothing behind.
        let mut checker = match self.end.line.seq {
            0 => ChainChecker::begin(),
            _ => ChainChecker::resume(self.end.line, self.checker.revision(), key),
        };
        if begins {
            checker.begin_segment();
        }
        let mut proved = None;
        let mut at = offset;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let content = line.strip_suffix(b"\n").ok_or_else(|| "the last line has no end".to_owned())?;
            let proves = checker.line(content)?;
            at += line.len() as u64;
            if !is_known(checker.at()) {
                return Err(format!("line {} is not the one that was signed for", checker.at().seq).into());
            }
            if proves {
                proved = Some((AuditPlace { line: checker.at(), segment, offset: at }, checker.revision()));
            }
        }
        let behind =
            proved.map_or(self.unproved_bytes + lines.len() as u64, |(place, _): (AuditPlace, _)| at - place.offset);
        if behind > UNPROVED_BYTES_MAX {
            return Err(format!("{behind} bytes came without a signed checkpoint").into());
        }
        let failed = |error| NotTaken::File(Fault::file(&self.segment(segment), error));
        self.write(segment, offset, lines).map_err(failed)?;
        self.end = AuditPlace { line: checker.at(), segment, offset: at };
        self.accepted.extend(checker.accepted());
        self.checker = checker;
        self.unproved_bytes = behind;
        self.key.get_or_insert_with(|| key.clone());
        if let Some((place, told)) = proved {
            (self.proved, self.told) = (place, told);
        }
        Ok(())
    }

    /// A signed head is the last line here: it and all before it are proved.
    pub(super) fn prove_end(&mut self) {
        self.prove();
    }

    fn write(&self, segment: u64, offset: u64, lines: &[u8]) -> io::Result<()> {
        let path = self.segment(segment);
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        if file.metadata()?.len() != offset {
            return Err(io::Error::other("somebody else wrote to it"));
        }
        file.seek(SeekFrom::End(0))?;
        file.write_all(lines)?;
        file.sync_all()?;
        if offset == 0 {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Writes down what is known now.
    pub(super) fn remember(&mut self, signed: HeadJson, revision: Revision) -> Result<(), Fault> {
        let Some(key) = &self.key else { return Ok(()) };
        let state = State {
            format: FORMAT.to_owned(),
            log: signed.log.clone(),
            instance: key.instance.to_string(),
            key: key.fingerprint(),
            proved: self.proved.into(),
            told: self.told.0,
            revision: revision.0,
            signed,
        };
        self.put(STATE, &state)?;
        self.state = Some(state);
        Ok(())
    }

    /// Keeps what shows that something is wrong, as long as there is room for it. Gives the file's name.
    pub(super) fn keep_evidence(&self, evidence: &impl Serialize) -> Result<String, Fault> {
        let mut count = 1_u32;
        loop {
            let name = format!("finding-{count:04}.json");
            if !self.directory.join(&name).exists() {
                self.put(&name, evidence)?;
                return Ok(name);
            }
            if count >= FINDINGS_MAX {
                // Found again and again: the first ones say it.
                return Ok(name);
            }
            count += 1;
        }
    }

    /// A name for lines that are set aside: nothing that was set aside before is written over.
    fn name_aside(&self) -> String {
        let of_lines = format!("unproved-{}-{}", self.proved.line.seq + 1, self.end.line.seq);
        let mut name = format!("{of_lines}.jsonl");
        let mut count = 1_u32;
        while self.directory.join(&name).exists() {
            count += 1;
            name = format!("{of_lines}-{count}.jsonl");
        }
        name
    }

    fn put(&self, name: &str, value: &impl Serialize) -> Result<(), Fault> {
        let (path, new) = (self.directory.join(name), self.directory.join(format!("{name}.new")));
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(value)?;
            text.push(b'\n');
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| Fault::file(&path, error))
    }

    /// Moves the lines that are not proved into a file of their own, and ends the copy before them. Gives the file's name.
    pub(super) fn set_unproved_aside(mut self) -> Result<(Self, String), Fault> {
        let directory = self.directory.clone();
        let failed = |error| Fault::file(&directory, error);
        let name = self.name_aside();
        let segments = list_segments(&self.directory).map_err(failed)?;
        let behind: Vec<_> = segments.into_iter().filter(|(number, _)| *number >= self.proved.segment.max(1)).collect();
        let proved = self.proved;
        let begin = |number: u64| if number == proved.segment { proved.offset } else { 0 };
        let aside = || -> io::Result<()> {
            let path = self.directory.join(&name);
            let mut aside = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            for (number, path) in &behind {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(begin(*number)))?;
                io::copy(&mut file, &mut aside)?;
            }
            aside.sync_all()
        };
        aside().map_err(failed)?;
        // The last first: what a crash leaves is a copy that ends earlier.
        for (number, path) in behind.iter().rev() {
            let cut = begin(*number);
            if cut == 0 {
                fs::remove_file(path).map_err(failed)?;
            } else {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                file.set_len(cut).and_then(|()| file.sync_all()).map_err(failed)?;
            }
        }
        (self.end, self.unproved_bytes) = (self.proved, 0);
        self.checker = match &self.key {
            Some(key) if self.proved.line.seq > 0 => ChainChecker::resume(self.proved.line, self.told, key),
            _ => ChainChecker::begin(),
        };
        if self.proved.line.seq == 0 && self.state.is_none() {
            self.key = None;
        }
        Ok((self, name))
    }
}

fn first_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut first = None;
    read_lines(path, |content, _, whole| {
        first = whole.then(|| content.to_vec());
        false
    })?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state as it was written for the first time. It must be read for ever.
    const GOLDEN: &str = include_str!("../../../tests/golden/audit-copy-1.json");

    #[test]
    fn golden_state() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(STATE), GOLDEN).unwrap();
        let state = State::read(directory.path()).unwrap().unwrap();
        assert_eq!((state.log.as_str(), state.told, state.revision), ("xks-proxy/a", 4, 5));
        let place = state.proved.read().unwrap();
        assert_eq!((place.line.seq, place.line.hash, place.segment, place.offset), (3, [3; 32], 1, 600));
        assert_eq!(state.signed.read().unwrap().0.head.seq, 3);
        assert_eq!(serde_json::to_string_pretty(&state).unwrap(), GOLDEN.trim_end());
    }

    #[test]
    fn a_state_of_another_format_or_with_more_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        for (from, to) in [("audit-copy-1", "audit-copy-2"), ("\"told\"", "\"tolt\""), ("{", "[")] {
            fs::write(directory.path().join(STATE), GOLDEN.replacen(from, to, 1)).unwrap();
            assert!(State::read(directory.path()).is_err(), "{to}");
        }
    }
}

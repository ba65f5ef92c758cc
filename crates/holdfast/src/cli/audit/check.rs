//! `holdfast audit verify`: a log or a copy of one, by itself and against another.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use holdfast_core::AuditLine;
use holdfast_store::audit::{Anchor, LogKey, Report, Verification, list_segments, parse_line, read_lines, verify_with};

use super::{copy::State, segments};
use crate::fault::{Fault, shown};

/// Longest line compared: longer than any that is one.
const LINE_BYTES_MAX: u64 = 256 * 1024;

/// What a log is held against beside itself.
pub(super) struct Others<'a> {
    /// A copy of it.
    pub against: Option<&'a Path>,
    /// Its earlier segments.
    pub archive: Option<&'a Path>,
}

/// How a log stands to another one.
struct Compared {
    /// Lines that both have.
    same: u64,
    /// Which one has more.
    longer: Option<Longer>,
}

enum Longer {
    Log,
    Other,
}

#[expect(clippy::print_stdout, reason = "the command's data")]
pub(super) fn run(
    directory: &Path,
    known_line: Option<&Path>,
    key: Option<&str>,
    others: Others<'_>,
    json: bool,
) -> Result<(), Fault> {
    let Others { against, archive } = others;
    let all = segments(directory)?;
    let known = match known_line {
        Some(path) => Some(std::fs::read(path).map_err(|error| Fault::file(path, error))?.trim_ascii().to_vec()),
        None => None,
    };
    let state = State::read(directory)?;
    let (key, lines) = match &state {
        Some(state) => signed_for(directory, state, &all[0].1, key)?,
        None => (key.map(str::to_owned), Vec::new()),
    };
    let held_against = Verification { known: known.as_deref(), fingerprint: key.as_deref(), hashes: &lines, archive };
    let report = verify_with(directory, &held_against).map_err(|error| Fault::file(directory, error))?;
    let compared = against.map(|other| compare(directory, other)).transpose()?;
    if json {
        println!("{}", as_json(&report, state.as_ref(), compared.as_ref()));
    } else {
        print(&report, state.as_ref(), compared.as_ref());
    }
    if let Some(finding) = report.finding {
        return Err(Fault::new(format!("line {}: {} ({})", finding.seq, finding.what, finding.file)));
    }
    // The last proved line comes first.
    if let Some(proved) = lines.first().filter(|line| line.seq > report.lines) {
        return Err(Fault::history(format!(
            "the copy ends at line {}, and line {} was in it",
            report.lines, proved.seq
        )));
    }
    match (compared, against) {
        (Some(Compared { same, longer: Some(Longer::Other) }), Some(other)) => Err(Fault::history(format!(
            "log put back or cut: it ends at line {same}, and {} goes on from there",
            other.display()
        ))),
        _ => Ok(()),
    }
}

/// The key, and the lines that the instance has signed for, by what is known of a copy.
fn signed_for(
    directory: &Path,
    state: &State,
    first: &Path,
    key: Option<&str>,
) -> Result<(Option<String>, Vec<AuditLine>), Fault> {
    let wrong = |why: &str| Fault::history(format!("{}: {why}", directory.display()));
    let mut begins = None;
    read_lines(first, |content, _, _| {
        begins = LogKey::in_line(content);
        false
    })
    .map_err(|error| Fault::file(first, error))?;
    let of_log = begins.ok_or_else(|| wrong("the first line names no key"))?;
    let (head, signature) = state.signed.read().ok_or_else(|| wrong("what was signed cannot be read"))?;
    if state.key != of_log.fingerprint() {
        return Err(wrong("the log is signed by another key than the one that was met first"));
    }
    if !of_log.signed(&head, &signature) {
        return Err(wrong("the head that was signed is not signed by the log's key"));
    }
    let proved = state.proved.read().ok_or_else(|| wrong("its state cannot be read"))?;
    Ok((Some(key.map_or_else(|| state.key.clone(), str::to_owned)), vec![proved.line, head.head]))
}

fn as_json(report: &Report, state: Option<&State>, compared: Option<&Compared>) -> serde_json::Value {
    let finding = report.finding.as_ref().map(|f| serde_json::json!({"file": f.file, "line": f.seq, "what": f.what}));
    let mut json = serde_json::json!({
        "ok": report.finding.is_none(), "instance": report.instance, "lines": report.lines,
        "events": report.events, "changes": report.revision, "accepted": report.accepted,
        "checkpoints": report.checkpoints, "signed_up_to": report.signed_seq,
        "head": report.head, "torn_bytes": report.torn_bytes, "key": report.key_fingerprint, "finding": finding,
    });
    if let Some((line, archive, told)) = &report.begins_behind {
        json["begins_behind"] = serde_json::json!({"line": line, "archive": archive, "told_by_line": told});
    }
    if let Some(state) = state {
        json["copy"] = serde_json::json!({
            "log": state.log, "proved": state.proved.seq, "signed_line": state.signed.head.seq,
            "signed_change": state.signed.revision, "signed_at": state.signed.time,
        });
    }
    if let Some(Compared { same, longer }) = compared {
        let longer = longer.as_ref().map(|longer| match longer {
            Longer::Log => "log",
            Longer::Other => "other",
        });
        json["against"] = serde_json::json!({"same_lines": same, "longer": longer});
    }
    json
}

#[expect(clippy::print_stdout, reason = "the command's data")]
fn print(report: &Report, state: Option<&State>, compared: Option<&Compared>) {
    println!("instance     {}", shown(&report.instance));
    println!("lines        {} ({} events)", report.lines, report.events);
    if let Some((line, archive, told)) = &report.begins_behind {
        println!("handed over  up to line {line}, to {}; line {told} tells of it", shown(archive));
    }
    println!("changes      {}, without a gap", report.revision);
    for line in &report.accepted {
        println!("accepted     line {line}: log and store were not of one moment, and somebody accepted that");
    }
    println!("checkpoints  {}, the last covers line {}", report.checkpoints, report.signed_seq);
    println!("unsigned     {} lines after it", report.unsigned_lines);
    if report.torn_bytes > 0 {
        println!(
            "torn         {} bytes after them: being written, or cut by a crash; never acknowledged",
            report.torn_bytes
        );
    }
    println!("head         {}", report.head);
    println!("key          {}", report.key_fingerprint);
    if let Some(state) = state {
        let (line, time) = (state.signed.head.seq, &state.signed.time);
        println!("copy of      {}; the instance signed for line {line} at {}", shown(&state.log), shown(time));
        if line > report.lines {
            println!("missing      {} lines of those, which a pull will bring", line - report.lines);
        }
    }
    if let Some(Compared { same, longer }) = compared {
        let than = match longer {
            None => "and neither has more",
            Some(Longer::Log) => "and the log goes on",
            Some(Longer::Other) => "and the other goes on",
        };
        println!("against      {same} lines are the same, {than}");
    }
}

/// The lines of a log, over all its segments; a last one without its end is none.
struct Lines {
    segments: std::vec::IntoIter<(u64, PathBuf)>,
    reader: Option<BufReader<File>>,
    /// Read, and not given yet.
    waiting: Option<Vec<u8>>,
}

impl Lines {
    fn of(directory: &Path) -> Result<Self, Fault> {
        let segments = list_segments(directory).map_err(|error| Fault::file(directory, error))?;
        if segments.is_empty() {
            return Err(Fault::new(format!("{}: no audit segments here", directory.display())));
        }
        Ok(Self { segments: segments.into_iter(), reader: None, waiting: None })
    }

    /// Passes over the lines up to this number.
    fn skip_to(&mut self, seq: u64) -> io::Result<()> {
        while self.waiting.is_none() {
            let Some(line) = self.next()? else { break };
            if parse_line(line.trim_ascii_end()).map_or(true, |parsed| parsed.seq > seq) {
                self.waiting = Some(line);
            }
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.waiting.take() {
            return Ok(Some(line));
        }
        loop {
            if let Some(reader) = &mut self.reader {
                let mut line = Vec::new();
                reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
                if line.last() == Some(&b'\n') {
                    return Ok(Some(line));
                }
                self.reader = None;
            }
            let Some((_, path)) = self.segments.next() else { return Ok(None) };
            if !std::fs::metadata(&path)?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no file", path.display())));
            }
            self.reader = Some(BufReader::with_capacity(256 * 1024, File::open(path)?));
        }
    }
}

fn compare(directory: &Path, other: &Path) -> Result<Compared, Fault> {
    let (mut ours, mut theirs) = (Lines::of(directory)?, Lines::of(other)?);
    // What was handed over has to be compared in the archive.
    let behind = |directory: &Path| {
        let anchor = Anchor::read(directory).map_err(|error| Fault::file(directory, error))?;
        Ok::<_, Fault>(anchor.map_or(0, |anchor| anchor.line.seq))
    };
    let from = behind(directory)?.max(behind(other)?);
    ours.skip_to(from).map_err(|error| Fault::file(directory, error))?;
    theirs.skip_to(from).map_err(|error| Fault::file(other, error))?;
    let mut same = from;
    loop {
        let ours = ours.next().map_err(|error| Fault::file(directory, error))?;
        let theirs = theirs.next().map_err(|error| Fault::file(other, error))?;
        let longer = match (&ours, &theirs) {
            (Some(ours), Some(theirs)) if ours == theirs => {
                same = parse_line(ours.trim_ascii_end()).map_or(same + 1, |parsed| parsed.seq);
                continue;
            }
            (Some(_), Some(_)) => {
                let what = format!("log replaced: line {} is another one in {}", same + 1, other.display());
                return Err(Fault::history(what));
            }
            (Some(_), None) => Some(Longer::Log),
            (None, Some(_)) => Some(Longer::Other),
            (None, None) => None,
        };
        return Ok(Compared { same, longer });
    }
}

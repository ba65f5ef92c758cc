//! Where a log begins whose earlier segments were handed over to an archive: the last line of those, which is a signed checkpoint, and so proves
//! all of them. That nobody took them away by himself is proved by a later line, which tells of the hand-over (`docs/formats/audit-log.md`).

use std::{fs::File, io, path::Path};

use holdfast_core::{AuditLine, Revision};
use serde::{Deserialize, Serialize};

use super::line::{self, LINE_BYTES_MAX, ParsedLine};
use crate::files::{read_regular, write_regular};

/// Name of its file, in the directory of the log.
pub const ANCHOR_FILE: &str = "audit.anchor";
/// The event that tells of a hand-over.
pub const HAND_OVER: &str = "HandOverAuditLog";
const FORMAT: &str = "holdfast-audit-anchor-1";
/// A line, and little more.
const BYTES_MAX: u64 = LINE_BYTES_MAX as u64 * 2;

#[derive(Deserialize, Serialize)]
struct Written {
    format: String,
    segment: u64,
    revision: u64,
    archive: String,
    checkpoint: String,
}

/// The end of what was handed over.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// Number of the last segment that was.
    pub segment: u64,
    /// Its last line.
    pub line: AuditLine,
    /// The newest change that it or a line before it told.
    pub revision: Revision,
    /// Where they went.
    pub archive: String,
    pub(super) checkpoint: Vec<u8>,
    pub(super) parsed: ParsedLine,
}

impl Anchor {
    /// Of a segment whose last line this is. `None` if that is no checkpoint.
    #[must_use]
    pub fn new(segment: u64, content: &[u8], revision: Revision, archive: String) -> Option<Self> {
        let parsed = line::parse_line(content).ok().filter(|parsed| parsed.kind == "checkpoint")?;
        let line = AuditLine { seq: parsed.seq, hash: line::hash_line(content) };
        Some(Self { segment, line, revision, archive, checkpoint: content.to_vec(), parsed })
    }

    /// Reads what a file of it says. Nothing of that is proved.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`].
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{ANCHOR_FILE} cannot be read"));
        let written: Written = serde_json::from_slice(bytes).map_err(|_| bad())?;
        let Written { format, segment, revision, archive, checkpoint } = written;
        let anchor = Self::new(segment, checkpoint.as_bytes(), Revision(revision), archive);
        anchor.filter(|_| format == FORMAT).ok_or_else(bad)
    }

    /// Of the log in `directory`; `None` if it begins at its first segment.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match read_regular(&directory.join(ANCHOR_FILE), BYTES_MAX) {
            Ok(bytes) => Self::parse(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a file of it says.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let written = Written {
            format: FORMAT.into(),
            segment: self.segment,
            revision: self.revision.0,
            archive: self.archive.clone(),
            checkpoint: String::from_utf8_lossy(&self.checkpoint).into_owned(),
        };
        Ok(serde_json::to_vec(&written)?)
    }

    /// Puts it into the directory of the log, durable.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(ANCHOR_FILE);
        write_regular(&path, &self.to_bytes()?)?;
        File::open(&path)?.sync_all()?;
        File::open(directory)?.sync_all()
    }

    /// Whether a line tells of this hand-over.
    pub(super) fn is_told_by(&self, content: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Event {
            operation: Option<String>,
            #[serde(default)]
            context: Context,
        }
        #[derive(Default, Deserialize)]
        struct Context {
            line: Option<String>,
            hash: Option<String>,
        }
        let Ok(Event { operation, context }) = serde_json::from_slice::<Event>(content) else { return false };
        operation.as_deref() == Some(HAND_OVER)
            && context.line == Some(self.line.seq.to_string())
            && context.hash == Some(holdfast_core::hex(&self.line.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An anchor of the first version; it must be readable for ever.
    #[test]
    fn golden_file() {
        let golden = include_bytes!("../../tests/golden/audit-anchor-1.json");
        let anchor = Anchor::parse(golden).unwrap();
        assert_eq!((anchor.segment, anchor.line.seq, anchor.revision), (3, 7, Revision(5)));
        assert_eq!(anchor.archive, "/archive/kms");
        assert_eq!(anchor.to_bytes().unwrap(), golden.trim_ascii_end());
        let text = std::str::from_utf8(golden).unwrap();
        for (from, to) in [("anchor-1", "anchor-2"), ("checkpoint\\\"", "event\\\""), (":3", ":\"3\"")] {
            assert!(text.contains(from), "{from}");
            assert!(Anchor::parse(text.replace(from, to).as_bytes()).is_err(), "{to}");
        }
        let told = |line: &str| anchor.is_told_by(line.as_bytes());
        let hash = holdfast_core::hex(&anchor.line.hash);
        let event = format!(r#"{{"operation":"HandOverAuditLog","context":{{"line":"7","hash":"{hash}"}}}}"#);
        assert!(told(&event));
        for (from, to) in [("HandOver", "Handover"), ("\"7\"", "\"8\""), (&hash[..8], "00000000")] {
            assert!(!told(&event.replace(from, to)), "{to}");
        }
        assert!(!told("{}") && !told(""));
    }
}

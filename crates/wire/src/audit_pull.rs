//! The audit log over the wire: what a copy asks, and what it hears (`docs/formats/audit-pull.md`).

use holdfast_core::{AuditHead, AuditLine, AuditPlace, AuditVerdict, PartitionId, Revision};
use serde::{Deserialize, Serialize};

use crate::{
    hex::{hex, unhex},
    sigv4::Scope,
};

/// Where every role answers. No bucket, no store and no key has such a name.
pub const PATH: &str = "/_holdfast/audit";
/// Name of the format, in requests and answers.
pub const FORMAT: &str = "holdfast-audit-pull-1";
/// What roles whose callers sign want it signed for: a signature for this is good for nothing else, and none for anything else is good here.
pub const SCOPE: Scope<'static> = Scope { region: "local", service: "holdfast-audit" };
/// Lines of one answer, bytes: what a pull holds in memory.
pub const LINES_BYTES_MAX: usize = 1024 * 1024;
/// The least that may be asked for: more than the longest line.
pub const LINES_BYTES_MIN: usize = 128 * 1024;
/// What stands before the lines in an answer, and a whole refusal.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Longest name of a log.
const LOG_NAME_MAX: usize = 100;

/// A request.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// [`FORMAT`].
    pub format: String,
    /// Which log is expected, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// 32 bytes in hex.
    pub nonce: String,
    /// The last line that the copy has; none: from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<PlaceJson>,
    /// Most bytes of lines; [`LINES_BYTES_MAX`] without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<usize>,
}

/// An [`AuditLine`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LineJson {
    /// Its number.
    pub seq: u64,
    /// Hex.
    pub hash: String,
}

/// An [`AuditPlace`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceJson {
    /// Number of the line.
    pub seq: u64,
    /// Hex.
    pub hash: String,
    /// Number of its segment.
    pub segment: u64,
    /// Bytes of the segment up to its end.
    pub offset: u64,
}

/// An [`AuditHead`], signed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeadJson {
    /// Hex.
    pub instance: String,
    /// Name of the log.
    pub log: String,
    /// Hex.
    pub nonce: String,
    /// The line asked about.
    pub after: LineJson,
    /// `continues`, `shorter`, `differs`.
    pub verdict: String,
    /// The newest line.
    pub head: LineJson,
    /// The newest change of the store.
    pub revision: u64,
    /// RFC 3339.
    pub time: String,
    /// Hex.
    pub signature: String,
}

/// What stands before the lines: one line of JSON. `bytes` bytes of lines follow its newline.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PullAnswer {
    /// [`FORMAT`].
    pub format: String,
    /// Number of the segment that the lines are of.
    pub segment: u64,
    /// Where in it they begin.
    pub offset: u64,
    /// How long they are.
    pub bytes: usize,
    /// How far the log has come.
    pub head: HeadJson,
}

/// A refusal.
#[derive(Debug, Deserialize, Serialize)]
pub struct PullRefusal {
    /// What for.
    pub error: PullErrorJson,
    /// Of a log that is of another history than the copy: how far it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadJson>,
}

/// Why a request is refused.
#[derive(Debug, Deserialize, Serialize)]
pub struct PullErrorJson {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Reads the head of an answer, and says where the lines begin, which are as long as it says. Nothing of it is proved.
///
/// # Errors
/// What is wrong with it.
pub fn read_answer(body: &[u8]) -> Result<(PullAnswer, usize), String> {
    let newline = body.iter().take(HEAD_BYTES_MAX).position(|byte| *byte == b'\n').ok_or("it has no head")?;
    let answer: PullAnswer = serde_json::from_slice(&body[..newline]).map_err(|error| error.to_string())?;
    if answer.format != FORMAT {
        return Err("its format is another".into());
    }
    if body.len() - newline - 1 != answer.bytes {
        return Err("it is not as long as it says".into());
    }
    Ok((answer, newline + 1))
}

/// 32 bytes.
fn digest(text: &str) -> Option<[u8; 32]> {
    unhex(text)?.try_into().ok()
}

/// Whether a name can be one of a log. It is signed between newlines.
#[must_use]
pub fn is_log_name(name: &str) -> bool {
    (1..=LOG_NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/'))
}

/// A nonce.
#[must_use]
pub fn nonce(text: &str) -> Option<[u8; 32]> {
    digest(text)
}

impl From<AuditLine> for LineJson {
    fn from(line: AuditLine) -> Self {
        Self { seq: line.seq, hash: hex(&line.hash) }
    }
}

impl LineJson {
    /// Reads it.
    #[must_use]
    pub fn read(&self) -> Option<AuditLine> {
        Some(AuditLine { seq: self.seq, hash: digest(&self.hash)? })
    }
}

impl From<AuditPlace> for PlaceJson {
    fn from(place: AuditPlace) -> Self {
        let AuditPlace { line, segment, offset } = place;
        Self { seq: line.seq, hash: hex(&line.hash), segment, offset }
    }
}

impl PlaceJson {
    /// Reads it.
    #[must_use]
    pub fn read(&self) -> Option<AuditPlace> {
        let line = AuditLine { seq: self.seq, hash: digest(&self.hash)? };
        Some(AuditPlace { line, segment: self.segment, offset: self.offset })
    }
}

impl HeadJson {
    /// Writes a head and its signature.
    #[must_use]
    pub fn new(head: &AuditHead, signature: &[u8]) -> Self {
        Self {
            instance: head.instance.to_string(),
            log: head.log.clone(),
            nonce: hex(&head.nonce),
            after: head.after.into(),
            verdict: head.verdict.as_str().to_owned(),
            head: head.head.into(),
            revision: head.revision.0,
            time: head.time.clone(),
            signature: hex(signature),
        }
    }

    /// Reads it: what is signed, and the signature, which is still to be verified.
    #[must_use]
    pub fn read(&self) -> Option<(AuditHead, Vec<u8>)> {
        let is_time = self.time.len() <= 40 && self.time.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_log_name(&self.log) || !is_time {
            return None;
        }
        let head = AuditHead {
            instance: PartitionId::parse(&self.instance)?,
            log: self.log.clone(),
            nonce: digest(&self.nonce)?,
            after: self.after.read()?,
            verdict: AuditVerdict::parse(&self.verdict)?,
            head: self.head.read()?,
            revision: Revision(self.revision),
            time: self.time.clone(),
        };
        Some((head, unhex(&self.signature)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer's first line, as it was written for the first time. It must be read for ever.
    const GOLDEN: &str = include_str!("../tests/golden/audit-pull-1.json");

    fn head() -> AuditHead {
        AuditHead {
            instance: PartitionId::from_bytes([7; 16]),
            log: "xks-proxy/a".into(),
            nonce: [1; 32],
            after: AuditLine { seq: 2, hash: [2; 32] },
            verdict: AuditVerdict::Continues,
            head: AuditLine { seq: 3, hash: [3; 32] },
            revision: Revision(4),
            time: "2026-11-27T02:00:00.000Z".into(),
        }
    }

    #[test]
    fn golden_answer() {
        let answer = PullAnswer {
            format: FORMAT.into(),
            segment: 5,
            offset: 6,
            bytes: 7,
            head: HeadJson::new(&head(), &[8; 96]),
        };
        assert_eq!(serde_json::to_string(&answer).unwrap(), GOLDEN.trim_end());
        let read: PullAnswer = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(read.head.read().unwrap(), (head(), vec![8; 96]));
    }

    #[test]
    fn what_cannot_be_signed_between_newlines_is_not_read() {
        let bad = |change: &dyn Fn(&mut HeadJson)| {
            let mut json = HeadJson::new(&head(), &[8; 96]);
            change(&mut json);
            json.read().is_none()
        };
        assert!(!bad(&|_| ()));
        assert!(bad(&|json| json.log = "a\n1".into()));
        assert!(bad(&|json| json.log = String::new()));
        assert!(bad(&|json| json.time.push('\n')));
        assert!(bad(&|json| json.verdict = "fine".into()));
        assert!(bad(&|json| json.head.hash = "00".into()));
        assert!(bad(&|json| json.instance = "07".into()));
    }
}

//! The log, given away: what somebody who keeps a copy of it asks, and what the instance signs in its answer.

use async_trait::async_trait;

use crate::{PartitionId, Revision, hex};

/// A line of a log: its number and its hash. Number 0, and zeros, stand for the beginning.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AuditLine {
    /// Its number.
    pub seq: u64,
    /// SHA-256 of it: what the next line names.
    pub hash: [u8; 32],
}

/// A line, and where in the files of the log it ends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AuditPlace {
    /// Which line.
    pub line: AuditLine,
    /// Number of the segment.
    pub segment: u64,
    /// Bytes of the segment up to and with the line's newline.
    pub offset: u64,
}

/// What a copy asks of a log.
#[derive(Clone, Debug)]
pub struct AuditAsk {
    /// Name of the log, as the signed head has it: one instance may have several.
    pub log: String,
    /// 32 bytes that were never sent before: the signed head has them, so that it cannot be one of earlier.
    pub nonce: [u8; 32],
    /// The last line that the copy has.
    pub after: AuditPlace,
    /// Most bytes of lines that are wanted.
    pub bytes_max: usize,
    /// The newest change of the store, by those who know it; the log may know a later one.
    pub revision: Revision,
}

/// Whether the copy and the log are of one history.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuditVerdict {
    /// The line that the copy has last stands in the log.
    Continues,
    /// The log ends before it.
    Shorter,
    /// Another line has its number.
    Differs,
}

impl AuditVerdict {
    /// The word for it in the signed text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continues => "continues",
            Self::Shorter => "shorter",
            Self::Differs => "differs",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Continues, Self::Shorter, Self::Differs].into_iter().find(|verdict| verdict.as_str() == word)
    }
}

/// How far a log has come, in answer to one question. The instance knows the head from its own memory, not from the files; that makes the
/// signature worth something when somebody else writes to the files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditHead {
    /// Which instance.
    pub instance: PartitionId,
    /// Which of its logs.
    pub log: String,
    /// The asker's.
    pub nonce: [u8; 32],
    /// The line that was asked about.
    pub after: AuditLine,
    /// What the files say of it.
    pub verdict: AuditVerdict,
    /// The newest durable line.
    pub head: AuditLine,
    /// The newest change of the store.
    pub revision: Revision,
    /// RFC 3339, by the instance's clock.
    pub time: String,
}

impl AuditHead {
    /// What is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "holdfast audit head v1\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n",
            self.instance,
            self.log,
            hex(&self.nonce),
            self.after.seq,
            hex(&self.after.hash),
            self.verdict.as_str(),
            self.head.seq,
            hex(&self.head.hash),
            self.revision,
            self.time,
        )
    }
}

/// A head with its signature, and lines that follow the one asked about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditPulled {
    /// What is signed.
    pub head: AuditHead,
    /// ES384 over its text, raw `r || s`, by the key that signs the log's checkpoints.
    pub signature: Vec<u8>,
    /// The segment that the lines stand in.
    pub segment: u64,
    /// Where in it they begin.
    pub offset: u64,
    /// Whole lines as they stand there, each with its newline; none if the copy has all, or is of another history.
    pub lines: Vec<u8>,
}

/// Why a log is not given.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuditPullError {
    /// A defect, or the disk's.
    #[error("the audit log could not be read: {0}")]
    Unreadable(String),
    /// What is asked for was handed over.
    #[error("the lines up to {up_to} of the log were handed over to the archive {archive}")]
    Archived {
        /// The last of them.
        up_to: u64,
        /// Where they went.
        archive: String,
    },
}

/// A log that can be given away.
#[async_trait]
pub trait AuditSource: Send + Sync {
    /// Gives what follows a line, as far as it is durable. Whoever writes to the log is not kept waiting.
    ///
    /// # Errors
    /// [`AuditPullError`].
    async fn pull(&self, ask: AuditAsk) -> Result<AuditPulled, AuditPullError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It must hold for ever: copies elsewhere keep signatures over it.
    #[test]
    fn golden_text() {
        let head = AuditHead {
            instance: PartitionId::from_bytes([7; 16]),
            log: "xks-proxy/a".into(),
            nonce: [1; 32],
            after: AuditLine { seq: 2, hash: [2; 32] },
            verdict: AuditVerdict::Continues,
            head: AuditLine { seq: 3, hash: [3; 32] },
            revision: Revision(4),
            time: "2026-11-27T02:00:00.000Z".into(),
        };
        let text = format!(
            "holdfast audit head v1\n{}\nxks-proxy/a\n{}\n2\n{}\ncontinues\n3\n{}\n4\n2026-11-27T02:00:00.000Z\n",
            head.instance,
            "01".repeat(32),
            "02".repeat(32),
            "03".repeat(32)
        );
        assert_eq!(head.text(), text);
        for verdict in [AuditVerdict::Continues, AuditVerdict::Shorter, AuditVerdict::Differs] {
            assert_eq!(AuditVerdict::parse(verdict.as_str()), Some(verdict));
        }
        assert_eq!(AuditVerdict::parse("Continues"), None);
    }
}

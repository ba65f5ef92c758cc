//! The chain, line by line, from any place in it: for those who keep a copy of a log.

use holdfast_core::{AuditHead, AuditLine, PartitionId, Revision};
use holdfast_crypto::{EcPublicKey, kdf};

use super::{
    anchor::Anchor,
    line::{self, PublicKeyJson},
    verify::Verifier,
};

/// The key that signs a log, and the instance that it was born in, as the first line of a segment names them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogKey {
    /// The instance.
    pub instance: PartitionId,
    key: EcPublicKey,
}

impl LogKey {
    /// Reads the first line of a segment. Nothing of what it says is proved.
    #[must_use]
    pub fn in_line(content: &[u8]) -> Option<Self> {
        let parsed = line::parse_line(content).ok().filter(|parsed| parsed.kind == "segment")?;
        let key = serde_json::from_value::<PublicKeyJson>(parsed.key?).ok()?.parse()?;
        Some(Self { instance: PartitionId::parse(&parsed.instance?)?, key })
    }

    /// Hex SHA-256 of its point.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        holdfast_core::hex(&kdf::sha256(&[&self.key.point]))
    }

    /// Whether a head was signed by it, for its instance.
    #[must_use]
    pub fn signed(&self, head: &AuditHead, signature: &[u8]) -> bool {
        head.instance == self.instance && self.key.verify(&line::head_digest(head), signature).unwrap_or(false)
    }
}

/// The hash of a line, without its newline: what the next line names.
#[must_use]
pub fn line_hash(content: &[u8]) -> [u8; 32] {
    line::hash_line(content)
}

/// Checks lines as they come, each against the one before it, and the checkpoints' signatures.
pub struct ChainChecker(Verifier);

impl ChainChecker {
    /// At the beginning of a log.
    #[must_use]
    pub fn begin() -> Self {
        Self(Verifier::new(None, None))
    }

    /// Behind what was handed over to an archive. That its last line is signed shows with the key, in the next one.
    #[must_use]
    pub fn begin_behind(anchor: &Anchor) -> Self {
        let mut verifier = Verifier::new(None, None);
        verifier.begin_behind(anchor);
        Self(verifier)
    }

    /// Behind a line that was checked before, in the middle of a segment.
    #[must_use]
    pub fn resume(after: AuditLine, revision: Revision, key: &LogKey) -> Self {
        let mut verifier = Verifier::new(None, None);
        (verifier.head, verifier.at_segment_start) = (after.hash, false);
        verifier.key = Some(key.key.clone());
        (verifier.report.lines, verifier.report.signed_seq) = (after.seq, after.seq);
        (verifier.report.revision, verifier.report.instance) = (revision.0, key.instance.to_string());
        Self(verifier)
    }

    /// What follows begins a segment.
    pub fn begin_segment(&mut self) {
        self.0.at_segment_start = true;
    }

    /// Takes the next line, without its newline. True if it is a checkpoint, which proves it and all before it.
    ///
    /// # Errors
    /// What is wrong with it; it was not taken.
    pub fn line(&mut self, content: &[u8]) -> Result<bool, String> {
        let before = self.0.report.checkpoints;
        self.0.check(content, true)?;
        self.0.take(content);
        Ok(self.0.report.checkpoints > before)
    }

    /// The last line taken.
    #[must_use]
    pub fn at(&self) -> AuditLine {
        AuditLine { seq: self.0.report.lines, hash: self.0.head }
    }

    /// The newest change that a line told of.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.0.report.revision)
    }

    /// Starts among the lines at which somebody accepted that log and store are not of one moment: their numbers.
    #[must_use]
    pub fn accepted(&self) -> &[u64] {
        &self.0.report.accepted
    }
}

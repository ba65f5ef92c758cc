//! The seam behind which evidence of attested callers is verified (RFC 9334: evidence in, claims out; the verdict is policy's).

use std::collections::BTreeMap;

use crate::Timestamp;

/// Facts about an attester that its evidence proves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EvidenceClaims {
    /// What kind of environment it is: `nitro`, `nitrotpm`.
    pub kind: &'static str,
    /// Which one, in its own words.
    pub module: String,
    /// Measurements by the number of their register, those left out that say nothing.
    pub measurements: BTreeMap<u32, Vec<u8>>,
    /// The key that it wants to be answered under: SubjectPublicKeyInfo.
    pub public_key: Option<Vec<u8>>,
}

/// Why evidence is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EvidenceError {
    /// It cannot be read.
    #[error("the evidence cannot be read: {0}")]
    Malformed(&'static str),
    /// It is not fresh.
    #[error("the evidence is not of this moment")]
    Stale,
    /// Its chain does not end at a trusted root, or its signature does not hold.
    #[error("the evidence is not to be trusted: {0}")]
    Untrusted(String),
}

/// Verifies evidence. A pure function of the bytes and the time.
pub trait EvidenceVerifier: Send + Sync {
    /// Verifies it.
    ///
    /// # Errors
    /// [`EvidenceError`].
    fn verify(&self, evidence: &[u8], now: Timestamp) -> Result<EvidenceClaims, EvidenceError>;
}

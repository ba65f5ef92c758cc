//! The seam to the silicon: sealing to one machine.

use holdfast_crypto::SecretBytes;

/// Why a sealed secret did not open.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SealError {
    /// It was sealed by other silicon.
    #[error("it was sealed by silicon {sealed_by}, and this is silicon {this}")]
    OtherSilicon {
        /// Id of the silicon that sealed it.
        sealed_by: String,
        /// Id of this silicon.
        this: String,
    },
    /// It was changed, or sealed for another purpose.
    #[error("the sealed secret was changed, or was sealed for another purpose")]
    Damaged,
    /// The silicon failed.
    #[error("the silicon failed: {0}")]
    Failed(String),
}

/// Seals a root secret to this machine, so that it opens nowhere else.
pub trait Sealer: Send + Sync {
    /// Seals `secret` (at most 64 bytes) for `purpose`.
    ///
    /// # Errors
    /// [`SealError::Failed`].
    fn seal(&self, purpose: &[u8], secret: &SecretBytes) -> Result<Vec<u8>, SealError>;

    /// Unseals.
    ///
    /// # Errors
    /// [`SealError`].
    fn unseal(&self, purpose: &[u8], sealed: &[u8]) -> Result<SecretBytes, SealError>;

    /// What kind of silicon, for people: `software silicon`, `TPM 2.0`, ...
    fn kind(&self) -> &'static str;

    /// Whether it keeps root on this host out of the process's memory.
    fn memory_isolated(&self) -> bool;
}

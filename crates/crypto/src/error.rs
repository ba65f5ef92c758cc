//! What can go wrong in a cryptographic call.

/// A cryptographic failure. It never says more than the caller may know: a failed decryption has one variant,
/// whatever failed inside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// The key cannot be read, or its parts contradict each other.
    #[error("the key is not valid: {0}")]
    InvalidKey(&'static str),
    /// An input has a length or form the algorithm does not take.
    #[error("{0}")]
    InvalidInput(&'static str),
    /// The algorithm does not fit the key.
    #[error("the algorithm does not fit the key")]
    Mismatch,
    /// Decryption, unwrapping or authentication failed. Deliberately without a reason.
    #[error("the ciphertext could not be decrypted")]
    Rejected,
    /// The library failed where it should not have.
    #[error("the cryptographic library reported a failure in {0}")]
    Library(&'static str),
}

//! The seam behind which key-encryption keys wrap data-encryption keys, whoever holds them.

use async_trait::async_trait;
use holdfast_crypto::SecretBytes;

/// How a KEK wraps a DEK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DekWrapAlgorithm {
    /// AES key wrap with a 256-bit KEK (RFC 3394).
    A256Kw,
    /// A ciphertext of AWS KMS: opaque, names its key itself.
    AwsKms,
    /// RSA-OAEP with SHA-256.
    RsaOaep256,
}

impl DekWrapAlgorithm {
    /// The algorithm's name in JWA (but for [`Self::AwsKms`]) and in envelopes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A256Kw => "A256KW",
            Self::AwsKms => "AWS-KMS",
            Self::RsaOaep256 => "RSA-OAEP-256",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::A256Kw, Self::AwsKms, Self::RsaOaep256].into_iter().find(|algorithm| algorithm.as_str() == text)
    }
}

/// A DEK under one version of a KEK.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrappedDek {
    /// URL of the KEK with its version.
    pub kek_url: String,
    /// How it was wrapped.
    pub algorithm: DekWrapAlgorithm,
    /// The wrapped bytes.
    pub wrapped: Vec<u8>,
}

/// Why a KEK did not do its work. The first six are final until somebody acts; the last two may pass by themselves.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KekError {
    /// The service that asks may not use the KEK.
    #[error("the use of the KEK is denied: {0}")]
    Denied(String),
    /// The KEK or its version is disabled, or outside its validity.
    #[error("the KEK is disabled: {0}")]
    Disabled(String),
    /// There is no such KEK, or it is deleted.
    #[error("there is no such KEK: {0}")]
    NotFound(String),
    /// The KEK is of a kind or usage that cannot do this.
    #[error("the KEK cannot be used so: {0}")]
    InvalidUsage(String),
    /// What was to be unwrapped was not wrapped by this KEK.
    #[error("the wrapped key does not open under the KEK")]
    Rejected,
    /// The key service did not do it, and what it answered is not known to be an outage.
    #[error("the key service gave no clear answer: {0}")]
    Unclear(String),
    /// Too many requests.
    #[error("the key service is busy")]
    Throttled,
    /// The key service cannot be reached, or failed.
    #[error("the key service is not available: {0}")]
    Unavailable(String),
}

impl KekError {
    /// Whether somebody decided so, or nobody knows that it is an outage: what was cached under the KEK must be dropped, and no grace applies.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Denied(_)
            | Self::Disabled(_)
            | Self::NotFound(_)
            | Self::InvalidUsage(_)
            | Self::Rejected
            | Self::Unclear(_) => true,
            Self::Throttled | Self::Unavailable(_) => false,
        }
    }
}

/// Holds KEKs, which never leave it.
#[async_trait]
pub trait KekService: Send + Sync {
    /// Wraps `dek` under the KEK at `kek_url`; without a version in the URL, under its newest. The answer names it.
    ///
    /// # Errors
    /// [`KekError`].
    async fn wrap(&self, kek_url: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError>;

    /// Unwraps.
    ///
    /// # Errors
    /// [`KekError`].
    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError>;

    /// URL with version of the newest version of the KEK at `kek_url`.
    ///
    /// # Errors
    /// [`KekError`].
    async fn newest_version(&self, kek_url: &str) -> Result<String, KekError>;

    /// Whether `kek_url` is of a form that this service knows. Nothing is asked.
    fn knows(&self, kek_url: &str) -> bool;

    /// `kek_url` without its version.
    fn without_version(&self, kek_url: &str) -> String;
}

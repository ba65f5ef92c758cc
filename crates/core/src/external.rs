//! The seam to HSMs that keep their keys themselves, each named by an object of a token.
//!
//! [`crate::Hsm`] opens masked keys that a role stores; an [`ExternalHsm`] has keys of its own, made by its owner, and is
//! asked about them and to use them. A key that a role calls by one [`ExternalKeyId`] may lie in several such HSMs.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_crypto::{EncryptionPadding, ImportedKey, RsaPublicKey, SecretBytes, WrapPadding};

use crate::{HsmError, KeyOperation, KeyOperations, Permit};

/// The id by which callers name a key behind a proxy: 1 to 128 of `A-Z a-z 0-9 - . _`. Case counts.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ExternalKeyId(Arc<str>);

/// Not an external key id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an external key id has 1 to 128 letters, digits, '-', '.' and '_'")]
pub struct InvalidExternalKeyId;

impl ExternalKeyId {
    /// Longest id in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks an id.
    ///
    /// # Errors
    /// [`InvalidExternalKeyId`].
    pub fn parse(id: &str) -> Result<Self, InvalidExternalKeyId> {
        let fits = (1..=Self::BYTES_MAX).contains(&id.len());
        if fits && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
            Ok(Self(id.into()))
        } else {
            Err(InvalidExternalKeyId)
        }
    }

    /// The id itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExternalKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object of a token: by its label (CKA_LABEL), its id (CKA_ID), or both. Together they must name one key.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TokenObject {
    /// CKA_LABEL.
    pub label: Option<String>,
    /// CKA_ID.
    pub id: Option<Vec<u8>>,
}

impl TokenObject {
    /// The object with this label.
    #[must_use]
    pub fn labelled(label: &str) -> Self {
        Self { label: Some(label.to_owned()), id: None }
    }
}

impl fmt::Display for TokenObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(label) = &self.label {
            write!(f, "label {label:?}")?;
        }
        if let Some(id) = &self.id {
            f.write_str(if self.label.is_some() { ", id " } else { "id " })?;
            id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

/// What kind of key it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExternalKeySpec {
    /// AES; bits.
    Aes(u32),
    /// Something that no dialect here uses, in the token's own words.
    Other(String),
    /// RSA, with its public half.
    Rsa(RsaPublicKey),
}

/// What a token says of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExternalKey {
    /// Kind and size.
    pub spec: ExternalKeySpec,
    /// What the token lets it be used for.
    pub usage: KeyOperations,
    /// Whether it may leave the token under another key (CKA_EXTRACTABLE).
    pub extractable: bool,
    /// Whether its value may never be read in clear (CKA_SENSITIVE).
    pub sensitive: bool,
    /// Whether it could leave at any time since it was made; `None` where the token does not tell
    /// (the opposite of CKA_NEVER_EXTRACTABLE).
    pub was_extractable: Option<bool>,
}

impl ExternalKey {
    /// What is wrong with how the token holds the key, if it is meant for `purpose` only. Nothing is good.
    #[must_use]
    pub fn findings(&self, purpose: KeyOperations) -> Vec<KeyFinding> {
        let mut findings = Vec::new();
        if self.extractable {
            findings.push(KeyFinding::Extractable);
        }
        if !self.sensitive {
            findings.push(KeyFinding::NotSensitive);
        }
        if self.was_extractable == Some(true) && !self.extractable {
            findings.push(KeyFinding::WasExtractable);
        }
        if self.usage.iter().any(|operation| !purpose.contains(operation)) {
            findings.push(KeyFinding::OtherUsage);
        }
        findings
    }
}

/// A fault in how a token holds a key.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum KeyFinding {
    /// It may leave the token wrapped.
    Extractable,
    /// Its value may be read in clear.
    NotSensitive,
    /// It may be used for more than its purpose.
    OtherUsage,
    /// It could leave the token at some time, imported keys among them.
    WasExtractable,
}

impl KeyFinding {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Extractable, Self::NotSensitive, Self::OtherUsage, Self::WasExtractable];

    /// Its name in policies and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Extractable => "extractable",
            Self::NotSensitive => "not-sensitive",
            Self::OtherUsage => "other-usage",
            Self::WasExtractable => "was-extractable",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|finding| finding.as_str() == text)
    }
}

/// How a key is wrapped by an external HSM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExternalWrap {
    /// RFC 3394, RFC 5649.
    Aes(WrapPadding),
    /// RSA-OAEP.
    Rsa(EncryptionPadding),
}

/// One use of a key that lies in an external HSM.
pub enum ExternalOperation {
    /// AES-GCM decryption.
    GcmDecrypt {
        /// 12 or 16 bytes.
        iv: Vec<u8>,
        /// Additional authenticated data.
        aad: Vec<u8>,
        /// As long as the plaintext.
        ciphertext: Vec<u8>,
        /// 16 bytes.
        tag: Vec<u8>,
    },
    /// AES-GCM encryption under an IV that the HSM, or else the operating system, draws.
    GcmEncrypt {
        /// What.
        plaintext: SecretBytes,
        /// Additional authenticated data.
        aad: Vec<u8>,
        /// With it: SHA-256 of these bytes, IV, ciphertext and tag is made where they come out of the HSM, and then the
        /// ciphertext is decrypted again and compared, before anything is answered.
        integrity: Option<Vec<u8>>,
    },
    /// Unwraps a key.
    Unwrap {
        /// How.
        wrap: ExternalWrap,
        /// What.
        wrapped: Vec<u8>,
    },
    /// Wraps a key.
    Wrap {
        /// How.
        wrap: ExternalWrap,
        /// What.
        key: SecretBytes,
    },
}

impl ExternalOperation {
    /// The action a permit must be for.
    #[must_use]
    pub fn action(&self) -> crate::Action {
        match self {
            Self::GcmDecrypt { .. } => crate::Action::KeyDecrypt,
            Self::GcmEncrypt { .. } => crate::Action::KeyEncrypt,
            Self::Unwrap { .. } => crate::Action::KeyUnwrap,
            Self::Wrap { .. } => crate::Action::KeyWrap,
        }
    }

    /// What the key must be allowed, the check of an integrity value included.
    #[must_use]
    pub fn needs(&self) -> KeyOperations {
        match self {
            Self::GcmDecrypt { .. } => [KeyOperation::Decrypt].into_iter().collect(),
            Self::GcmEncrypt { integrity: Some(_), .. } => {
                [KeyOperation::Decrypt, KeyOperation::Encrypt].into_iter().collect()
            }
            Self::GcmEncrypt { integrity: None, .. } => [KeyOperation::Encrypt].into_iter().collect(),
            Self::Unwrap { .. } => [KeyOperation::UnwrapKey].into_iter().collect(),
            Self::Wrap { .. } => [KeyOperation::WrapKey].into_iter().collect(),
        }
    }
}

/// What an [`ExternalOperation`] gives.
pub enum ExternalOutcome {
    /// A ciphertext with what must travel beside it.
    Ciphertext {
        /// 12 bytes.
        iv: Vec<u8>,
        /// As long as the plaintext.
        ciphertext: Vec<u8>,
        /// 16 bytes.
        tag: Vec<u8>,
        /// The integrity value, if it was asked for.
        integrity: Option<[u8; 32]>,
    },
    /// Decrypted data or an unwrapped key.
    Plaintext(SecretBytes),
    /// A wrapped key.
    Wrapped(Vec<u8>),
}

/// How an HSM is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum HsmState {
    /// It works.
    Active,
    /// It works, but something is wrong.
    Degraded,
    /// It does not work.
    Unavailable,
}

impl HsmState {
    /// Its name in the protocols.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Degraded => "DEGRADED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// How an HSM is, as far as was last seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HsmHealth {
    /// The verdict.
    pub state: HsmState,
    /// Maker and model, in its own words.
    pub model: String,
    /// Why, in words, if it is not [`HsmState::Active`].
    pub detail: String,
}

/// An HSM, seen by one of its users, that keeps its keys itself.
#[async_trait]
pub trait ExternalHsm: Send + Sync {
    /// What the token says of a key, as it was within the configured time; it may wait for the HSM if nothing is known.
    ///
    /// # Errors
    /// [`HsmError::NotFound`], [`HsmError::InvalidInput`] if several keys answer to the name, [`HsmError::Unavailable`],
    /// [`HsmError::TimedOut`], [`HsmError::Busy`].
    async fn describe(&self, object: &TokenObject, budget: Duration) -> Result<Arc<ExternalKey>, HsmError>;

    /// Uses a key once, within `budget`. The permit is for `key`, whatever object that is here.
    ///
    /// # Errors
    /// [`HsmError`]. After [`HsmError::TimedOut`] it is not known whether the HSM did the work.
    async fn perform(
        &self,
        permit: Permit,
        key: &ExternalKeyId,
        object: &TokenObject,
        operation: ExternalOperation,
        budget: Duration,
    ) -> Result<ExternalOutcome, HsmError>;

    /// Every secret and private key that this user sees, as it was within the configured time.
    ///
    /// # Errors
    /// As [`Self::describe`].
    async fn list(&self, budget: Duration) -> Result<Vec<(TokenObject, ExternalKey)>, HsmError>;

    /// Makes an AES-256 key for `usage` only, never to leave the token; with `import`, takes one in.
    ///
    /// # Errors
    /// [`HsmError::InvalidInput`] if the name is taken, and as [`Self::perform`].
    async fn create(
        &self,
        permit: Permit,
        key: &ExternalKeyId,
        object: &TokenObject,
        usage: KeyOperations,
        import: Option<ImportedKey>,
        budget: Duration,
    ) -> Result<(), HsmError>;

    /// How it is, as far as was last seen. Never waits.
    fn health(&self) -> HsmHealth;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert!(ExternalKeyId::parse("a-B.9_").is_ok());
        assert_ne!(ExternalKeyId::parse("a").unwrap(), ExternalKeyId::parse("A").unwrap());
        for bad in ["", "a/b", "a b", "ä", &"a".repeat(129)] {
            assert!(ExternalKeyId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn findings() {
        let purpose: KeyOperations = [KeyOperation::Encrypt, KeyOperation::Decrypt].into_iter().collect();
        let good = ExternalKey {
            spec: ExternalKeySpec::Aes(256),
            usage: purpose,
            extractable: false,
            sensitive: true,
            was_extractable: None,
        };
        assert_eq!(good.findings(purpose), []);
        let bad = ExternalKey {
            usage: KeyOperation::ALL.into_iter().collect(),
            extractable: true,
            sensitive: false,
            was_extractable: Some(true),
            ..good.clone()
        };
        assert_eq!(bad.findings(purpose), [KeyFinding::Extractable, KeyFinding::NotSensitive, KeyFinding::OtherUsage]);
        let imported = ExternalKey { was_extractable: Some(true), ..good };
        assert_eq!(imported.findings(purpose), [KeyFinding::WasExtractable]);
        for finding in KeyFinding::ALL {
            assert_eq!(KeyFinding::parse(finding.as_str()), Some(finding));
        }
    }
}

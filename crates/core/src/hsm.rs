//! The seam behind which keys live.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_crypto::{
    EncryptionPadding, ImportedKey, KeySpec, PublicKey, SecretBytes, SignatureScheme, WrapPadding, transfer::Transfer,
};

use crate::{Action, KeyAttributes, KeyOperation, KeyVersion, Pass, Permit, PermitMismatch, Timestamp};

/// A key as it lies outside its partition: encrypted under the masking key and bound to its identity and attributes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MaskedKey(pub Arc<[u8]>);

/// A key version that has just come to be, and is not stored yet.
pub struct NewKey {
    /// What to store.
    pub masked: MaskedKey,
    /// Its actual spec (an imported key tells its own).
    pub spec: KeySpec,
    /// Its public part.
    pub public: PublicKey,
    /// Tells whether another key of the same name has the same material, and nothing of the material.
    pub check: [u8; 32],
}

/// How data is encrypted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EncryptionScheme {
    /// AES-CBC; `padded` by PKCS #7, else filled with zeros.
    AesCbc {
        /// Whether PKCS #7 padding is used.
        padded: bool,
    },
    /// AES-GCM, nonce from the HSM.
    AesGcm,
    /// AES-256-GCM under a key of this message alone, derived in the HSM: what comes out (`crypto::SealingKey`) holds all that it
    /// takes to decrypt it but the key, and no number of messages is too many.
    AesGcmPerMessage,
    /// RSA.
    Rsa(EncryptionPadding),
}

/// How a key is wrapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WrapScheme {
    /// AES key wrap.
    AesKeyWrap(WrapPadding),
    /// RSA.
    Rsa(EncryptionPadding),
}

/// What travels beside a ciphertext.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CiphertextParts {
    /// Initialization vector or nonce.
    pub iv: Option<Vec<u8>>,
    /// GCM tag.
    pub tag: Option<Vec<u8>>,
    /// Additional authenticated data.
    pub aad: Option<Vec<u8>>,
}

/// One use of a key.
pub enum Operation {
    /// Decrypt data.
    Decrypt {
        /// How.
        scheme: EncryptionScheme,
        /// What.
        ciphertext: Vec<u8>,
        /// IV, tag, AAD.
        parts: CiphertextParts,
    },
    /// Give the shared secret of a key encapsulation.
    Decapsulate {
        /// As the other side sent it.
        ciphertext: Vec<u8>,
    },
    /// Agree on a secret.
    Derive {
        /// The other side's public key, SubjectPublicKeyInfo.
        peer: Vec<u8>,
    },
    /// Make a shared secret for the holder of the key.
    Encapsulate,
    /// Encrypt data.
    Encrypt {
        /// How.
        scheme: EncryptionScheme,
        /// What.
        plaintext: SecretBytes,
        /// IV (CBC only) and AAD (GCM only).
        parts: CiphertextParts,
    },
    /// Sign a digest (HMAC, Ed25519, ML-DSA: a message).
    Sign {
        /// How.
        scheme: SignatureScheme,
        /// What.
        digest: Vec<u8>,
    },
    /// Unwrap a key.
    Unwrap {
        /// How.
        scheme: WrapScheme,
        /// What.
        wrapped: Vec<u8>,
    },
    /// Verify a signature.
    Verify {
        /// How.
        scheme: SignatureScheme,
        /// Of what.
        digest: Vec<u8>,
        /// The signature.
        signature: Vec<u8>,
    },
    /// Wrap a key.
    Wrap {
        /// How.
        scheme: WrapScheme,
        /// What.
        key: SecretBytes,
    },
}

impl Operation {
    /// The action a permit must be for.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Decapsulate { .. } => Action::KeyUnwrap,
            Self::Decrypt { .. } => Action::KeyDecrypt,
            Self::Derive { .. } => Action::KeyDerive,
            Self::Encapsulate => Action::KeyWrap,
            Self::Encrypt { .. } => Action::KeyEncrypt,
            Self::Sign { .. } => Action::KeySign,
            Self::Unwrap { .. } => Action::KeyUnwrap,
            Self::Verify { .. } => Action::KeyVerify,
            Self::Wrap { .. } => Action::KeyWrap,
        }
    }
}

/// What a key must allow for an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Need {
    operation: KeyOperation,
    /// Whether something new is protected by it.
    protects: bool,
}

impl Operation {
    /// What the key must allow.
    #[must_use]
    pub fn need(&self) -> Need {
        let (operation, protects) = match self {
            Self::Decapsulate { .. } | Self::Unwrap { .. } => (KeyOperation::UnwrapKey, false),
            Self::Decrypt { .. } => (KeyOperation::Decrypt, false),
            Self::Derive { .. } => (KeyOperation::Derive, true),
            Self::Encrypt { .. } => (KeyOperation::Encrypt, true),
            Self::Sign { .. } => (KeyOperation::Sign, true),
            Self::Verify { .. } => (KeyOperation::Verify, false),
            Self::Encapsulate | Self::Wrap { .. } => (KeyOperation::WrapKey, true),
        };
        Need { operation, protects }
    }
}

impl KeyAttributes {
    /// Whether they let a key be used so at `now`. Outside its validity a key protects nothing new, but still gives back what it protected
    /// before.
    ///
    /// # Errors
    /// [`HsmError::Disabled`], [`HsmError::NotYetValid`], [`HsmError::Expired`], [`HsmError::OperationNotAllowed`], in this order.
    pub fn allow(&self, now: Timestamp, need: Need) -> Result<(), HsmError> {
        let Need { operation, protects } = need;
        if !self.enabled {
            return Err(HsmError::Disabled);
        }
        if protects && self.not_before.is_some_and(|from| now < from) {
            return Err(HsmError::NotYetValid);
        }
        if protects && self.expires.is_some_and(|end| now >= end) {
            return Err(HsmError::Expired);
        }
        if !self.operations.contains(operation) {
            return Err(HsmError::OperationNotAllowed);
        }
        Ok(())
    }
}

/// What an [`Operation`] gives.
pub enum Outcome {
    /// Ciphertext, with what must travel beside it.
    Ciphertext(Vec<u8>, CiphertextParts),
    /// A shared secret, and what gives it to the holder of the key.
    Encapsulated(Vec<u8>, SecretBytes),
    /// Decrypted data, an unwrapped key or a shared secret.
    Plaintext(SecretBytes),
    /// A signature.
    Signature(Vec<u8>),
    /// Whether a signature holds.
    Verified(bool),
    /// A wrapped key.
    Wrapped(Vec<u8>),
}

/// Why an HSM refused or failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HsmError {
    /// Too much work is queued. Nothing was done; try later.
    #[error("the HSM has no capacity left")]
    Busy,
    /// A masked blob does not open: it was changed, moved, or belongs to another partition or other attributes.
    #[error("the stored key does not open: it was changed, or is not of this partition")]
    Damaged,
    /// The key version is disabled.
    #[error("the key is disabled")]
    Disabled,
    /// The key's validity is over.
    #[error("the key has expired")]
    Expired,
    /// The HSM or its library failed.
    #[error("the HSM failed: {0}")]
    Failed(&'static str),
    /// The input does not fit the algorithm or the key.
    #[error("{0}")]
    InvalidInput(&'static str),
    /// There is no such key in the HSM.
    #[error("there is no such key in the HSM")]
    NotFound,
    /// The key's validity has not begun.
    #[error("the key is not yet valid")]
    NotYetValid,
    /// The key's attributes do not allow the operation.
    #[error("the key does not allow this operation")]
    OperationNotAllowed,
    /// A permit was presented for something else.
    #[error(transparent)]
    Permit(#[from] PermitMismatch),
    /// The ciphertext does not decrypt.
    #[error("the ciphertext could not be decrypted")]
    Rejected,
    /// The HSM did not answer in the time given. Whether it did the work is not known.
    #[error("the HSM did not answer in time")]
    TimedOut,
    /// The HSM cannot be reached. Nothing was done.
    #[error("the HSM is not available: {0}")]
    Unavailable(String),
}

/// What a role has to say of a key version whenever it is asked. A blob is bound to the attributes that it was masked with, and what a role
/// keeps beside it (state, say) a partition cannot see.
pub trait AtThisMoment: Send + Sync {
    /// The key version as it is now, and the pass under which that was looked at: held until the key is put down.
    ///
    /// # Errors
    /// [`HsmError::NotFound`] if it is gone.
    fn look(&self) -> Result<(Pass, KeyVersion), HsmError>;
}

/// A key version opened for use.
#[async_trait]
pub trait OpenKey: Send + Sync {
    /// Uses the key once. `key` is asked at the moment of the use, after the last wait for a thread: what both the blob and it allow is allowed.
    ///
    /// # Errors
    /// [`HsmError`], attributes first (disabled, validity, operation), then input, then the operation itself. [`HsmError::Damaged`] if
    /// `key` is another key version than this one.
    async fn perform(
        &self,
        permit: Permit,
        key: Arc<dyn AtThisMoment>,
        operation: Operation,
    ) -> Result<Outcome, HsmError>;

    /// The public part.
    fn public(&self) -> &PublicKey;
}

/// Where keys live.
#[async_trait]
pub trait Hsm: Send + Sync {
    /// Opens a stored key for use. The result is worth keeping: opening parses and checks the key.
    ///
    /// # Errors
    /// [`HsmError::Damaged`] if the blob is not exactly the one made for `version` with these attributes,
    /// [`HsmError::Busy`].
    async fn open(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<Arc<dyn OpenKey>, HsmError>;

    /// The public part of a stored key, without opening the key. What it says is as authentic as the record the blob
    /// was read from.
    ///
    /// # Errors
    /// [`HsmError::Damaged`] if the blob does not name `version` with these attributes.
    fn describe(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<PublicKey, HsmError>;

    /// `count` random bytes from the HSM.
    ///
    /// # Errors
    /// [`HsmError::Permit`], [`HsmError::Failed`].
    async fn random(&self, permit: Permit, count: usize) -> Result<SecretBytes, HsmError>;
}

/// Birth and death of keys.
#[async_trait]
pub trait HsmAdmin: Send + Sync {
    /// Makes a key version of `version.attributes.spec`. The permit is for creation or rotation of this key.
    ///
    /// # Errors
    /// [`HsmError::Busy`], [`HsmError::InvalidInput`], [`HsmError::Permit`].
    async fn generate(&self, permit: Permit, version: &KeyVersion) -> Result<NewKey, HsmError>;

    /// Takes a key in. The spec in `version` is replaced by the key's own.
    ///
    /// # Errors
    /// As [`Self::generate`].
    async fn import(&self, permit: Permit, version: &KeyVersion, key: ImportedKey) -> Result<NewKey, HsmError>;

    /// Takes in a key that was wrapped under an exchange key of this partition, which is asked for at the moment of its use, as in
    /// [`OpenKey::perform`].
    ///
    /// # Errors
    /// As [`Self::generate`]; [`HsmError::Disabled`], [`HsmError::OperationNotAllowed`] of the exchange key; [`HsmError::Rejected`] if it does not
    /// unwrap.
    async fn import_wrapped(
        &self,
        permit: Permit,
        version: &KeyVersion,
        exchange: (Arc<dyn AtThisMoment>, &KeyVersion, &MaskedKey),
        transfer: Transfer,
        wrapped: &[u8],
    ) -> Result<NewKey, HsmError>;

    /// Makes a key pair that leaves at once, in clear: PKCS #8 and the public half. It is no key of the partition's, and takes no
    /// permit.
    ///
    /// # Errors
    /// [`HsmError::Busy`], [`HsmError::InvalidInput`] for a kind that is not given out so.
    async fn data_key_pair(&self, spec: KeySpec) -> Result<(SecretBytes, PublicKey), HsmError>;

    /// Binds a stored key to changed attributes or (on restore) opens it under those it was backed up with.
    ///
    /// # Errors
    /// [`HsmError::Damaged`] if the blob is not the one made for `from`.
    async fn remask(
        &self,
        permit: Permit,
        from: &KeyVersion,
        masked: &MaskedKey,
        to: &KeyVersion,
    ) -> Result<MaskedKey, HsmError>;

    /// Encrypts a description of one key, masked blobs included, under the partition's backup key.
    ///
    /// # Errors
    /// [`HsmError::Permit`], [`HsmError::Failed`].
    async fn seal_backup(&self, permit: Permit, name: &crate::KeyName, content: &[u8]) -> Result<Vec<u8>, HsmError>;

    /// Opens what [`Self::seal_backup`] made, in this partition or one with the same masking key.
    ///
    /// # Errors
    /// [`HsmError::Damaged`] if it does not open here.
    fn open_backup(&self, sealed: &[u8]) -> Result<SecretBytes, HsmError>;
}

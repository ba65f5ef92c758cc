//! Using a key: attributes decide first, its own and those that the role tells, then the algorithm must fit, then the work is done.

use holdfast_core::{
    CiphertextParts, EncryptionScheme, HsmError, KeyOperation, KeyVersion, Operation, Outcome, Timestamp, WrapScheme,
};
use holdfast_crypto::{
    AesKey, CbcPadding, CryptoError, Curve, EncryptionPadding, LoadedKey, MlKemKey, PublicKey, Rsa1_5Policy, RsaKey,
    SecretBytes, SignatureScheme, aead,
};

use crate::partition::PartitionPolicy;

/// Longest data one call encrypts or decrypts, in bytes; what a request body can carry anyway.
const DATA_BYTES_MAX: usize = 1024 * 1024;

/// The randomness that one use of a key takes.
pub type PerformRandom = [u8; aead::SEAL_RANDOM_BYTES];

/// How dear an operation is: decides which thread does it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// Well under 100 microseconds: AES, public-key operations, ECDSA on P-256.
    Light,
    /// Private-key operations of RSA and of the other curves: 100 microseconds to several milliseconds.
    PrivateKey,
}

/// A key opened for use, with the attributes it was opened under.
pub struct Keyed {
    version: KeyVersion,
    public: PublicKey,
    key: LoadedKey,
    policy: PartitionPolicy,
}

impl Keyed {
    pub(crate) fn new(version: KeyVersion, public: PublicKey, key: LoadedKey, policy: PartitionPolicy) -> Self {
        Self { version, public, key, policy }
    }

    pub(crate) fn key(&self) -> &LoadedKey {
        &self.key
    }

    /// The key version that it is, with the attributes it was opened under.
    #[must_use]
    pub fn version(&self) -> &KeyVersion {
        &self.version
    }

    /// The public part.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// How dear `operation` is with this key.
    #[must_use]
    pub fn work(&self, operation: &Operation) -> Work {
        let private = matches!(
            operation,
            Operation::Decrypt { .. } | Operation::Derive { .. } | Operation::Sign { .. } | Operation::Unwrap { .. }
        );
        match &self.key {
            LoadedKey::Rsa(_) if private => Work::PrivateKey,
            // Without assembly for these curves, verification costs more than a P-256 signature too.
            LoadedKey::Ec(key) if key.public().curve != Curve::P256 => Work::PrivateKey,
            LoadedKey::Ec(_) if matches!(operation, Operation::Derive { .. }) => Work::PrivateKey,
            LoadedKey::MlDsa(_) => Work::PrivateKey,
            LoadedKey::Aes(_)
            | LoadedKey::Ec(_)
            | LoadedKey::Ed25519(_)
            | LoadedKey::Hmac(_)
            | LoadedKey::MlKem(_)
            | LoadedKey::Rsa(_) => Work::Light,
        }
    }

    /// Uses the key at `now`; `random` becomes salt, nonce or IV where one is needed. `as_told`: the key version as the role has it at
    /// this moment.
    ///
    /// # Errors
    /// [`HsmError`], in the order: disabled, validity, operation, input, the operation itself; before all, [`HsmError::Damaged`] if
    /// `as_told` is another key version.
    pub fn perform(
        &self,
        now: Timestamp,
        as_told: &KeyVersion,
        random: PerformRandom,
        operation: Operation,
    ) -> Result<Outcome, HsmError> {
        self.check(now, as_told, &operation)?;
        match operation {
            Operation::Encrypt { scheme, plaintext, parts } => self.encrypt(scheme, &plaintext, parts, random),
            Operation::Decrypt { scheme, ciphertext, parts } => self.decrypt(scheme, &ciphertext, &parts),
            Operation::Wrap { scheme, key } => match scheme {
                WrapScheme::AesKeyWrap(padding) => {
                    Ok(Outcome::Wrapped(self.aes()?.wrap(padding, key.expose()).map_err(refuse)?))
                }
                WrapScheme::Rsa(padding) => {
                    Ok(Outcome::Wrapped(self.rsa(padding)?.encrypt(padding, key.expose()).map_err(refuse)?))
                }
            },
            Operation::Unwrap { scheme, wrapped } => match scheme {
                WrapScheme::AesKeyWrap(padding) => {
                    Ok(Outcome::Plaintext(self.aes()?.unwrap(padding, &wrapped).map_err(refuse)?))
                }
                WrapScheme::Rsa(padding) => {
                    Ok(Outcome::Plaintext(self.rsa(padding)?.decrypt(padding, &wrapped).map_err(refuse)?))
                }
            },
            Operation::Encapsulate => {
                let (ciphertext, secret) = self.kem()?.encapsulate().map_err(refuse)?;
                Ok(Outcome::Encapsulated(ciphertext, secret))
            }
            Operation::Decapsulate { ciphertext } => {
                Ok(Outcome::Plaintext(self.kem()?.decapsulate(&ciphertext).map_err(refuse)?))
            }
            Operation::Derive { peer } => match &self.key {
                LoadedKey::Ec(key) => Ok(Outcome::Plaintext(key.agree(&peer).map_err(refuse)?)),
                _ => Err(refuse(CryptoError::Mismatch)),
            },
            Operation::Sign { scheme, digest } => self.sign(scheme, &digest),
            Operation::Verify { scheme, digest, signature } => self.verify(scheme, &digest, &signature),
        }
    }

    /// Two lines: what the blob is bound to, and what the role says of the key now. Neither makes up for the other.
    fn check(&self, now: Timestamp, as_told: &KeyVersion, operation: &Operation) -> Result<(), HsmError> {
        self.is_the_one(as_told)?;
        self.version.attributes.allow(now, operation.need())?;
        as_told.attributes.allow(now, operation.need())
    }

    /// The same for taking in what was wrapped for it. Its validity does not count: whoever wrapped for it may have done so before.
    pub(crate) fn check_import(&self, as_told: &KeyVersion) -> Result<(), HsmError> {
        self.is_the_one(as_told)?;
        for attributes in [&self.version.attributes, &as_told.attributes] {
            if !attributes.enabled {
                return Err(HsmError::Disabled);
            }
            if !attributes.operations.contains(KeyOperation::Import) {
                return Err(HsmError::OperationNotAllowed);
            }
        }
        Ok(())
    }

    fn is_the_one(&self, as_told: &KeyVersion) -> Result<(), HsmError> {
        let own = &self.version;
        if own.id != as_told.id || own.name != as_told.name || own.attributes.spec != as_told.attributes.spec {
            return Err(HsmError::Damaged);
        }
        Ok(())
    }

    fn aes(&self) -> Result<&AesKey, HsmError> {
        match &self.key {
            LoadedKey::Aes(key) => Ok(key),
            _ => Err(refuse(CryptoError::Mismatch)),
        }
    }

    fn kem(&self) -> Result<&MlKemKey, HsmError> {
        match &self.key {
            LoadedKey::MlKem(key) => Ok(key),
            _ => Err(refuse(CryptoError::Mismatch)),
        }
    }

    fn rsa(&self, padding: EncryptionPadding) -> Result<&RsaKey, HsmError> {
        let LoadedKey::Rsa(key) = &self.key else { return Err(refuse(CryptoError::Mismatch)) };
        if padding == EncryptionPadding::Pkcs1 && self.policy.rsa1_5 == Rsa1_5Policy::Refuse {
            return Err(HsmError::InvalidInput("RSA1_5 is turned off here; use RSA-OAEP-256"));
        }
        Ok(key)
    }

    fn encrypt(
        &self,
        scheme: EncryptionScheme,
        plaintext: &SecretBytes,
        parts: CiphertextParts,
        random: PerformRandom,
    ) -> Result<Outcome, HsmError> {
        if plaintext.len() > DATA_BYTES_MAX {
            return Err(HsmError::InvalidInput("the plaintext is too long"));
        }
        let (ciphertext, parts) = match scheme {
            EncryptionScheme::Rsa(padding) => {
                let ciphertext = self.rsa(padding)?.encrypt(padding, plaintext.expose()).map_err(refuse)?;
                (ciphertext, CiphertextParts::default())
            }
            EncryptionScheme::AesGcm => {
                let key = self.aes()?;
                if parts.iv.is_some() {
                    return Err(HsmError::InvalidInput("the iv of AES-GCM is made by the HSM and cannot be given"));
                }
                let mut nonce = [0; 12];
                nonce.copy_from_slice(&random[..12]);
                let aad = parts.aad.as_deref().unwrap_or_default();
                let out = key.gcm_encrypt(nonce, aad, plaintext.expose()).map_err(refuse)?;
                let iv = Some(out.nonce.to_vec());
                (out.ciphertext, CiphertextParts { iv, tag: Some(out.tag.to_vec()), aad: parts.aad })
            }
            EncryptionScheme::AesGcmPerMessage => {
                let aad = parts.aad.as_deref().unwrap_or_default();
                let key = self.aes()?.sealing().map_err(refuse)?;
                (key.seal(random, aad, plaintext.expose()).map_err(refuse)?, parts)
            }
            EncryptionScheme::AesCbc { padded } => {
                let key = self.aes()?;
                let iv = parts.iv.as_deref().map_or_else(|| block(&random[..16]), block)?;
                let ciphertext = key.cbc_encrypt(cbc_padding(padded), iv, plaintext.expose()).map_err(refuse)?;
                (ciphertext, CiphertextParts { iv: Some(iv.to_vec()), tag: None, aad: None })
            }
        };
        Ok(Outcome::Ciphertext(ciphertext, parts))
    }

    fn decrypt(
        &self,
        scheme: EncryptionScheme,
        ciphertext: &[u8],
        parts: &CiphertextParts,
    ) -> Result<Outcome, HsmError> {
        let iv = || parts.iv.as_deref().ok_or(HsmError::InvalidInput("this algorithm needs an iv"));
        let plaintext = match scheme {
            EncryptionScheme::Rsa(padding) => self.rsa(padding)?.decrypt(padding, ciphertext),
            EncryptionScheme::AesGcm => {
                let key = self.aes()?;
                let tag = parts.tag.as_deref().ok_or(HsmError::InvalidInput("AES-GCM needs an authentication tag"))?;
                let aad = parts.aad.as_deref().unwrap_or_default();
                match <&[u8; 16]>::try_from(iv()?) {
                    Ok(iv) => key.gcm_decrypt_iv16(iv, aad, ciphertext, tag),
                    Err(_) => key.gcm_decrypt(iv()?, aad, ciphertext, tag),
                }
            }
            EncryptionScheme::AesGcmPerMessage => {
                let aad = parts.aad.as_deref().unwrap_or_default();
                self.aes()?.sealing().map_err(refuse)?.open(aad, ciphertext)
            }
            EncryptionScheme::AesCbc { padded } => {
                self.aes()?.cbc_decrypt(cbc_padding(padded), block(iv()?)?, ciphertext)
            }
        };
        plaintext.map(Outcome::Plaintext).map_err(refuse)
    }

    fn sign(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Outcome, HsmError> {
        let signature = match (&self.key, scheme) {
            (LoadedKey::Aes(key), SignatureScheme::Hmac(hash)) => Ok(key.mac(hash).sign(&[digest])),
            (LoadedKey::Ec(key), SignatureScheme::Ecdsa(curve)) if key.public().curve == curve => key.sign(digest),
            (LoadedKey::Ed25519(key), SignatureScheme::Ed25519) => Ok(key.sign(digest)),
            (LoadedKey::Hmac(key), SignatureScheme::Mac(hash)) if key.hash() == hash => Ok(key.sign(digest)),
            (LoadedKey::MlDsa(key), SignatureScheme::MlDsa(size)) if key.size() == size => key.sign(digest),
            (LoadedKey::Rsa(key), SignatureScheme::RsaPkcs1(_) | SignatureScheme::RsaPss(_)) => {
                key.sign(scheme, digest)
            }
            _ => Err(CryptoError::Mismatch),
        };
        signature.map(Outcome::Signature).map_err(refuse)
    }

    fn verify(&self, scheme: SignatureScheme, digest: &[u8], signature: &[u8]) -> Result<Outcome, HsmError> {
        let verified = match (&self.key, scheme) {
            (LoadedKey::Aes(key), SignatureScheme::Hmac(hash)) => Ok(key.mac(hash).verify(digest, signature)),
            (LoadedKey::Ec(key), SignatureScheme::Ecdsa(curve)) if key.public().curve == curve => {
                key.verify(digest, signature)
            }
            (LoadedKey::Ed25519(key), SignatureScheme::Ed25519) => Ok(key.verify(digest, signature)),
            (LoadedKey::Hmac(key), SignatureScheme::Mac(hash)) if key.hash() == hash => {
                Ok(key.verify(digest, signature))
            }
            (LoadedKey::MlDsa(key), SignatureScheme::MlDsa(size)) if key.size() == size => {
                Ok(key.verify(digest, signature))
            }
            (LoadedKey::Rsa(key), SignatureScheme::RsaPkcs1(_) | SignatureScheme::RsaPss(_)) => {
                key.verify(scheme, digest, signature)
            }
            _ => Err(CryptoError::Mismatch),
        };
        verified.map(Outcome::Verified).map_err(refuse)
    }
}

fn cbc_padding(padded: bool) -> CbcPadding {
    if padded { CbcPadding::Pkcs7 } else { CbcPadding::Zero }
}

fn block(iv: &[u8]) -> Result<[u8; 16], HsmError> {
    iv.try_into().map_err(|_| HsmError::InvalidInput("the iv of AES-CBC has 16 bytes"))
}

pub(crate) fn refuse(error: CryptoError) -> HsmError {
    match error {
        CryptoError::InvalidInput(why) | CryptoError::InvalidKey(why) => HsmError::InvalidInput(why),
        CryptoError::Mismatch => HsmError::InvalidInput("the algorithm does not fit the key's type or size"),
        CryptoError::Rejected => HsmError::Rejected,
        CryptoError::Library(what) => HsmError::Failed(what),
        _ => HsmError::Failed("an unknown cryptographic failure"),
    }
}

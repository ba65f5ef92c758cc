//! Authenticated encryption of Holdfast's own records: AES-256-GCM with a key per message.
//!
//! A random 96-bit nonce limits one AES-GCM key to 2^32 messages (SP 800-38D, section 8.3). Here each message has its
//! own key, `HMAC-SHA-256(key, "holdfast aead v1" || salt)`, and its own nonce; salt and nonce are 28 random bytes, so
//! no limit is reached in practice.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

use crate::{HashAlgorithm, SecretBytes, error::CryptoError, kdf::MacKey};

const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Random bytes that one sealing consumes.
pub const SEAL_RANDOM_BYTES: usize = SALT_BYTES + NONCE_BYTES;
/// How much longer a sealed message is than its plaintext: salt, nonce, tag.
pub const SEAL_OVERHEAD_BYTES: usize = SEAL_RANDOM_BYTES + TAG_BYTES;

/// A key that seals records and blobs.
pub struct SealingKey(MacKey);

impl SealingKey {
    /// From 32 uniformly random bytes.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] on another length.
    pub fn new(key: &SecretBytes) -> Result<Self, CryptoError> {
        if key.len() != 32 {
            return Err(CryptoError::InvalidKey("a sealing key has 32 bytes"));
        }
        Ok(Self(MacKey::new(HashAlgorithm::Sha256, key.expose())))
    }

    fn message_key(&self, salt: &[u8]) -> Result<LessSafeKey, CryptoError> {
        let mut key = self.0.sign(&[b"holdfast aead v1", salt]);
        let unbound = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| CryptoError::Library("AES-256-GCM"));
        key.zeroize();
        Ok(LessSafeKey::new(unbound?))
    }

    /// Encrypts: `random || ciphertext || tag`.
    ///
    /// # Errors
    /// [`CryptoError::Library`] only.
    pub fn seal(&self, random: [u8; SEAL_RANDOM_BYTES], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let (salt, nonce) = random.split_at(SALT_BYTES);
        let key = self.message_key(salt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CryptoError::Library("AES-256-GCM"))?;
        let mut out = Vec::with_capacity(plaintext.len() + SEAL_OVERHEAD_BYTES);
        out.extend_from_slice(&random);
        out.extend_from_slice(plaintext);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(aad), &mut out[SEAL_RANDOM_BYTES..])
            .map_err(|_| CryptoError::Library("AES-256-GCM"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Decrypts what [`Self::seal`] made.
    ///
    /// # Errors
    /// [`CryptoError::Rejected`] if anything differs: the key, the AAD, a bit, the length.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<SecretBytes, CryptoError> {
        if sealed.len() < SEAL_OVERHEAD_BYTES {
            return Err(CryptoError::Rejected);
        }
        let (random, body) = sealed.split_at(SEAL_RANDOM_BYTES);
        let (salt, nonce) = random.split_at(SALT_BYTES);
        let key = self.message_key(salt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CryptoError::Rejected)?;
        let (ciphertext, tag) = body.split_at(body.len() - TAG_BYTES);
        SecretBytes::try_fill(ciphertext.len(), |out| {
            key.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, out).map_err(|_| CryptoError::Rejected)
        })
    }
}

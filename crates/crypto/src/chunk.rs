//! Chunked authenticated encryption: AES-256-GCM over the chunks of one stream, under a key of the stream's own.
//!
//! The nonce of a chunk is `000000 || index (8 bytes) || final (1 byte)`: order, repetition and the end of the stream
//! are part of what is authenticated. It is safe only because no two streams share a key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::{SecretBytes, error::CryptoError};

/// How much longer an encrypted chunk is.
pub const CHUNK_TAG_BYTES: usize = 16;

/// The key of one stream.
pub struct ChunkKey {
    key: LessSafeKey,
    aad: [u8; 32],
}

impl ChunkKey {
    /// From 32 bytes that belong to one stream only; `aad` (a hash of the stream's header) is bound to each chunk.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] on another length.
    pub fn new(key: &SecretBytes, aad: [u8; 32]) -> Result<Self, CryptoError> {
        let key = UnboundKey::new(&AES_256_GCM, key.expose())
            .map_err(|_| CryptoError::InvalidKey("a stream's key has 32 bytes"))?;
        Ok(Self { key: LessSafeKey::new(key), aad })
    }

    /// Encrypts `chunk[start..]` in place and appends its tag.
    ///
    /// # Errors
    /// [`CryptoError::Library`] only.
    pub fn seal(&self, index: u64, last: bool, buffer: &mut Vec<u8>, start: usize) -> Result<(), CryptoError> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(index, last), Aad::from(&self.aad), &mut buffer[start..])
            .map_err(|_| CryptoError::Library("AES-256-GCM"))?;
        buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Decrypts a chunk with its tag into `out`, which is as long as the plaintext.
    ///
    /// # Errors
    /// [`CryptoError::Rejected`] if a bit, the place or the stream is another.
    pub fn open(&self, index: u64, last: bool, sealed: &[u8], out: &mut [u8]) -> Result<(), CryptoError> {
        let split = sealed.len().checked_sub(CHUNK_TAG_BYTES).filter(|len| *len == out.len());
        let (ciphertext, tag) = sealed.split_at(split.ok_or(CryptoError::Rejected)?);
        self.key
            .open_separate_gather(nonce(index, last), Aad::from(&self.aad), ciphertext, tag, out)
            .map_err(|_| CryptoError::Rejected)
    }
}

fn nonce(index: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[3..11].copy_from_slice(&index.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

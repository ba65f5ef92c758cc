//! AES as an HSM offers it: GCM, CBC with and without padding, key wrap.

use std::sync::OnceLock;

use aes_gcm::{
    AesGcm,
    aead::{AeadInOut, consts::U16},
    aes::{Aes128, Aes192, Aes256},
};
use aes_kw::{KeyInit, KwAes128, KwAes192, KwAes256, KwpAes128, KwpAes192, KwpAes256};
use aws_lc_rs::{
    aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    cipher::{
        AES_128, AES_192, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
        PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
    },
    iv::FixedLength,
};
use zeroize::Zeroizing;

use crate::{AesSize, HashAlgorithm, SealingKey, SecretBytes, error::CryptoError, kdf::MacKey};

const BLOCK_BYTES: usize = 16;
/// GCM tag and nonce lengths: the only ones offered.
const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
/// Longest key that one wrap takes, in bytes. RFC 5649 allows 2^32; nothing near it is a key.
const WRAP_BYTES_MAX: usize = 64 * 1024;

type GcmIv16<A> = AesGcm<A, U16>;

/// Whether CBC pads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CbcPadding {
    /// PKCS #7 (RFC 5652, section 6.3).
    Pkcs7,
    /// Zero bytes up to a whole block; they come back on decryption, as Key Vault's `A*CBC` does.
    Zero,
}

/// Which key wrap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WrapPadding {
    /// RFC 3394: whole 8-byte blocks, at least two.
    None,
    /// RFC 5649: any length from 1 byte.
    Padded,
}

/// The result of a GCM encryption.
pub struct GcmCiphertext {
    /// As long as the plaintext.
    pub ciphertext: Vec<u8>,
    /// The nonce that was used.
    pub nonce: [u8; NONCE_BYTES],
    /// The tag.
    pub tag: [u8; TAG_BYTES],
}

enum KeyWrap {
    Bits128(Box<(KwAes128, KwpAes128)>),
    Bits192(Box<(KwAes192, KwpAes192)>),
    Bits256(Box<(KwAes256, KwpAes256)>),
}

/// An AES key with every schedule ready.
pub struct AesKey {
    size: AesSize,
    gcm: LessSafeKey,
    cbc_encrypt: EncryptingKey,
    cbc_decrypt: DecryptingKey,
    cbc_pad_encrypt: PaddedBlockEncryptingKey,
    cbc_pad_decrypt: PaddedBlockDecryptingKey,
    wrap: KeyWrap,
    /// For HMAC signatures under this key; keyed on use, since few keys are used so.
    raw: SecretBytes,
    /// For messages that each have a key of their own; made on first use.
    sealing: OnceLock<SealingKey>,
}

impl AesKey {
    /// Builds all schedules.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] unless `key` has 16, 24 or 32 bytes.
    pub fn new(key: SecretBytes) -> Result<Self, CryptoError> {
        let bits = u32::try_from(key.len() * 8).unwrap_or(0);
        let size = AesSize::from_bits(bits).ok_or(CryptoError::InvalidKey("an AES key has 16, 24 or 32 bytes"))?;
        let (aead, cipher) = match size {
            AesSize::Bits128 => (&AES_128_GCM, &AES_128),
            AesSize::Bits192 => (&AES_192_GCM, &AES_192),
            AesSize::Bits256 => (&AES_256_GCM, &AES_256),
        };
        let failed = |_| CryptoError::Library("AES key schedule");
        let cbc = || UnboundCipherKey::new(cipher, key.expose()).map_err(failed);
        let wrap = key_wrap(size, key.expose())?;
        Ok(Self {
            size,
            gcm: LessSafeKey::new(UnboundKey::new(aead, key.expose()).map_err(failed)?),
            cbc_encrypt: EncryptingKey::cbc(cbc()?).map_err(failed)?,
            cbc_decrypt: DecryptingKey::cbc(cbc()?).map_err(failed)?,
            cbc_pad_encrypt: PaddedBlockEncryptingKey::cbc_pkcs7(cbc()?).map_err(failed)?,
            cbc_pad_decrypt: PaddedBlockDecryptingKey::cbc_pkcs7(cbc()?).map_err(failed)?,
            wrap,
            raw: key,
            sealing: OnceLock::new(),
        })
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> AesSize {
        self.size
    }

    /// AES-GCM (SP 800-38D) with a fresh random `nonce`.
    ///
    /// One key may encrypt 2^32 messages so (section 8.3); rotate long before.
    ///
    /// # Errors
    /// [`CryptoError::Library`] only.
    pub fn gcm_encrypt(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<GcmCiphertext, CryptoError> {
        let mut ciphertext = plaintext.to_vec();
        let tag = self
            .gcm
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut ciphertext)
            .map_err(|_| CryptoError::Library("AES-GCM"))?;
        let mut out = GcmCiphertext { ciphertext, nonce, tag: [0; TAG_BYTES] };
        out.tag.copy_from_slice(tag.as_ref());
        Ok(out)
    }

    /// AES-GCM decryption.
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] on a nonce or tag of another length, [`CryptoError::Rejected`] if it does not
    /// authenticate.
    pub fn gcm_decrypt(
        &self,
        nonce: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
    ) -> Result<SecretBytes, CryptoError> {
        let nonce = Nonce::try_assume_unique_for_key(nonce)
            .map_err(|_| CryptoError::InvalidInput("the iv of AES-GCM has 12 bytes"))?;
        if tag.len() != TAG_BYTES {
            return Err(CryptoError::InvalidInput("the authentication tag of AES-GCM has 16 bytes"));
        }
        SecretBytes::try_fill(ciphertext.len(), |out| {
            self.gcm
                .open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, out)
                .map_err(|_| CryptoError::Rejected)
        })
    }

    /// AES-GCM decryption under a 16-byte IV (SP 800-38D, section 7.1, for IVs that are not 96 bits long): for ciphertext
    /// that was made elsewhere.
    ///
    /// # Errors
    /// As [`Self::gcm_decrypt`].
    pub fn gcm_decrypt_iv16(
        &self,
        iv: &[u8; 16],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
    ) -> Result<SecretBytes, CryptoError> {
        let tag: [u8; TAG_BYTES] =
            tag.try_into().map_err(|_| CryptoError::InvalidInput("the authentication tag of AES-GCM has 16 bytes"))?;
        let (iv, tag) = (iv.into(), tag.into());
        SecretBytes::try_fill(ciphertext.len(), |out| {
            out.copy_from_slice(ciphertext);
            let raw = self.raw.expose();
            let failed = |_| CryptoError::Library("AES key schedule");
            let opened = match self.size {
                AesSize::Bits128 => GcmIv16::<Aes128>::new_from_slice(raw).map_err(failed)?.decrypt_inout_detached(
                    iv,
                    aad,
                    out.into(),
                    &tag,
                ),
                AesSize::Bits192 => GcmIv16::<Aes192>::new_from_slice(raw).map_err(failed)?.decrypt_inout_detached(
                    iv,
                    aad,
                    out.into(),
                    &tag,
                ),
                AesSize::Bits256 => GcmIv16::<Aes256>::new_from_slice(raw).map_err(failed)?.decrypt_inout_detached(
                    iv,
                    aad,
                    out.into(),
                    &tag,
                ),
            };
            opened.map_err(|_| CryptoError::Rejected)
        })
    }

    /// AES-CBC (SP 800-38A).
    ///
    /// # Errors
    /// [`CryptoError::Library`] only.
    pub fn cbc_encrypt(
        &self,
        padding: CbcPadding,
        iv: [u8; BLOCK_BYTES],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        let mut buffer = plaintext.to_vec();
        let done = match padding {
            CbcPadding::Pkcs7 => self.cbc_pad_encrypt.less_safe_encrypt(&mut buffer, context),
            CbcPadding::Zero => {
                buffer.resize(plaintext.len().next_multiple_of(BLOCK_BYTES), 0);
                if buffer.is_empty() {
                    return Ok(buffer);
                }
                self.cbc_encrypt.less_safe_encrypt(&mut buffer, context)
            }
        };
        done.map_err(|_| CryptoError::Library("AES-CBC"))?;
        Ok(buffer)
    }

    /// AES-CBC decryption. CBC does not authenticate: a wrong padding is the only thing that can be noticed.
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] unless the ciphertext is whole blocks, [`CryptoError::Rejected`] on bad padding.
    pub fn cbc_decrypt(
        &self,
        padding: CbcPadding,
        iv: [u8; BLOCK_BYTES],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, CryptoError> {
        if !ciphertext.len().is_multiple_of(BLOCK_BYTES) {
            return Err(CryptoError::InvalidInput("a CBC ciphertext is a multiple of 16 bytes long"));
        }
        if ciphertext.is_empty() {
            return match padding {
                CbcPadding::Zero => Ok(SecretBytes::zeroed(0)),
                CbcPadding::Pkcs7 => Err(CryptoError::Rejected),
            };
        }
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let plaintext = match padding {
            CbcPadding::Pkcs7 => self.cbc_pad_decrypt.decrypt(&mut buffer, context),
            CbcPadding::Zero => self.cbc_decrypt.decrypt(&mut buffer, context),
        };
        plaintext.map(|bytes| SecretBytes::copy_of(bytes)).map_err(|_| CryptoError::Rejected)
    }

    /// Wraps a key under this key (RFC 3394, RFC 5649).
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] on a length the scheme does not take.
    pub fn wrap(&self, padding: WrapPadding, key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        if key.is_empty() || key.len() > WRAP_BYTES_MAX {
            return Err(CryptoError::InvalidInput("a key to wrap has 1 to 65536 bytes"));
        }
        let mut out = vec![0; key.len().next_multiple_of(8) + 8];
        match padding {
            WrapPadding::None => {
                if key.len() < 16 || !key.len().is_multiple_of(8) {
                    return Err(CryptoError::InvalidInput(
                        "AES key wrap takes a key of at least 16 bytes, a multiple of 8",
                    ));
                }
                match &self.wrap {
                    KeyWrap::Bits128(k) => k.0.wrap_key(key, &mut out),
                    KeyWrap::Bits192(k) => k.0.wrap_key(key, &mut out),
                    KeyWrap::Bits256(k) => k.0.wrap_key(key, &mut out),
                }
            }
            WrapPadding::Padded => match &self.wrap {
                KeyWrap::Bits128(k) => k.1.wrap_key(key, &mut out),
                KeyWrap::Bits192(k) => k.1.wrap_key(key, &mut out),
                KeyWrap::Bits256(k) => k.1.wrap_key(key, &mut out),
            },
        }
        .map_err(|_| CryptoError::Library("AES key wrap"))?;
        Ok(out)
    }

    /// Unwraps what [`Self::wrap`] made.
    ///
    /// # Errors
    /// [`CryptoError::Rejected`] if the integrity check fails or the length is impossible.
    pub fn unwrap(&self, padding: WrapPadding, wrapped: &[u8]) -> Result<SecretBytes, CryptoError> {
        let shortest = if padding == WrapPadding::None { 24 } else { 16 };
        if wrapped.len() < shortest || !wrapped.len().is_multiple_of(8) || wrapped.len() > WRAP_BYTES_MAX + 16 {
            return Err(CryptoError::Rejected);
        }
        let mut out = Zeroizing::new(vec![0; wrapped.len() - 8]);
        let key = match (&self.wrap, padding) {
            (KeyWrap::Bits128(k), WrapPadding::None) => k.0.unwrap_key(wrapped, &mut out),
            (KeyWrap::Bits192(k), WrapPadding::None) => k.0.unwrap_key(wrapped, &mut out),
            (KeyWrap::Bits256(k), WrapPadding::None) => k.0.unwrap_key(wrapped, &mut out),
            (KeyWrap::Bits128(k), WrapPadding::Padded) => k.1.unwrap_key(wrapped, &mut out),
            (KeyWrap::Bits192(k), WrapPadding::Padded) => k.1.unwrap_key(wrapped, &mut out),
            (KeyWrap::Bits256(k), WrapPadding::Padded) => k.1.unwrap_key(wrapped, &mut out),
        };
        key.map(SecretBytes::copy_of).map_err(|_| CryptoError::Rejected)
    }

    /// This 256-bit key as one that gives each message a key of its own, so that no number of messages is too many.
    ///
    /// # Errors
    /// [`CryptoError::Mismatch`] on another size.
    pub fn sealing(&self) -> Result<&SealingKey, CryptoError> {
        if let Some(key) = self.sealing.get() {
            return Ok(key);
        }
        let key = SealingKey::new(&self.raw).map_err(|_| CryptoError::Mismatch)?;
        Ok(self.sealing.get_or_init(|| key))
    }

    /// The HMAC key made of this key's bytes.
    #[must_use]
    pub fn mac(&self, hash: HashAlgorithm) -> MacKey {
        MacKey::new(hash, self.raw.expose())
    }
}

fn key_wrap(size: AesSize, key: &[u8]) -> Result<KeyWrap, CryptoError> {
    let failed = |_| CryptoError::Library("AES key schedule");
    Ok(match size {
        AesSize::Bits128 => KeyWrap::Bits128(Box::new((
            KwAes128::new_from_slice(key).map_err(failed)?,
            KwpAes128::new_from_slice(key).map_err(failed)?,
        ))),
        AesSize::Bits192 => KeyWrap::Bits192(Box::new((
            KwAes192::new_from_slice(key).map_err(failed)?,
            KwpAes192::new_from_slice(key).map_err(failed)?,
        ))),
        AesSize::Bits256 => KeyWrap::Bits256(Box::new((
            KwAes256::new_from_slice(key).map_err(failed)?,
            KwpAes256::new_from_slice(key).map_err(failed)?,
        ))),
    })
}

//! How a key travels into an HSM: under an RSA key of the HSM's, or under an AES key under that
//! (CKM_RSA_AES_KEY_WRAP, PKCS #11 v3.0, section 2.1.21).
//!
//! `RSA-OAEP(AES-256 key) || RFC5649(AES-256 key, target key)`; the target is PKCS #8 for asymmetric keys and the bare bytes
//! for symmetric ones.

use crate::{AesKey, AesSize, EncryptionPadding, RsaKey, SecretBytes, WrapPadding, error::CryptoError};

/// How it is wrapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transfer {
    /// CKM_RSA_AES_KEY_WRAP; the hash of OAEP as given.
    AesKeyWrap(EncryptionPadding),
    /// RSA-OAEP of the key itself.
    Direct(EncryptionPadding),
}

/// Unwraps a transfer blob with the RSA key exchange key.
///
/// # Errors
/// [`CryptoError::Rejected`] whatever is wrong with it.
pub fn unwrap(exchange_key: &RsaKey, transfer: Transfer, blob: &[u8]) -> Result<SecretBytes, CryptoError> {
    let padding = match transfer {
        Transfer::Direct(padding) => return exchange_key.decrypt(padding, blob).map_err(|_| CryptoError::Rejected),
        Transfer::AesKeyWrap(padding) => padding,
    };
    let (ephemeral, target) = blob.split_at_checked(exchange_key.size().bytes()).ok_or(CryptoError::Rejected)?;
    let ephemeral = exchange_key.decrypt(padding, ephemeral).map_err(|_| CryptoError::Rejected)?;
    if ephemeral.len() != AesSize::Bits256.bytes() {
        return Err(CryptoError::Rejected);
    }
    AesKey::new(ephemeral)?.unwrap(WrapPadding::Padded, target)
}

/// Wraps `target` for `exchange_key` under the ephemeral AES-256 key given, by OAEP with SHA-1.
///
/// # Errors
/// [`CryptoError::InvalidInput`] if the target is empty or too long.
pub fn wrap(exchange_key: &RsaKey, ephemeral: SecretBytes, target: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let mut out = exchange_key.encrypt(EncryptionPadding::OaepSha1, ephemeral.expose())?;
    out.extend(AesKey::new(ephemeral)?.wrap(WrapPadding::Padded, target)?);
    Ok(out)
}

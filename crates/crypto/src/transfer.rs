//! CKM_RSA_AES_KEY_WRAP (PKCS #11 v3.0, section 2.1.21): how a key travels into an HSM.
//!
//! `RSA-OAEP(SHA-1, AES-256 key) || RFC5649(AES-256 key, target key)`; the target is PKCS #8 for asymmetric keys and
//! the bare bytes for AES.

use crate::{AesKey, AesSize, EncryptionPadding, RsaKey, SecretBytes, WrapPadding, error::CryptoError};

/// Unwraps a transfer blob with the RSA key exchange key.
///
/// # Errors
/// [`CryptoError::Rejected`] whatever is wrong with it.
pub fn unwrap(exchange_key: &RsaKey, blob: &[u8]) -> Result<SecretBytes, CryptoError> {
    let (ephemeral, target) = blob.split_at_checked(exchange_key.size().bytes()).ok_or(CryptoError::Rejected)?;
    let ephemeral = exchange_key.decrypt(EncryptionPadding::OaepSha1, ephemeral).map_err(|_| CryptoError::Rejected)?;
    if ephemeral.len() != AesSize::Bits256.bytes() {
        return Err(CryptoError::Rejected);
    }
    AesKey::new(ephemeral)?.unwrap(WrapPadding::Padded, target)
}

/// Wraps `target` for `exchange_key` under the ephemeral AES-256 key given.
///
/// # Errors
/// [`CryptoError::InvalidInput`] if the target is empty or too long.
pub fn wrap(exchange_key: &RsaKey, ephemeral: SecretBytes, target: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let mut out = exchange_key.encrypt(EncryptionPadding::OaepSha1, ephemeral.expose())?;
    out.extend(AesKey::new(ephemeral)?.wrap(WrapPadding::Padded, target)?);
    Ok(out)
}

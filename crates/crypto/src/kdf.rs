//! HKDF (RFC 5869), HMAC (RFC 2104) and SHA-256.

use aws_lc_rs::{hkdf, hmac};

use crate::{HashAlgorithm, MacHash, SecretBytes, error::CryptoError};

struct OutputLength(usize);

impl hkdf::KeyType for OutputLength {
    fn len(&self) -> usize {
        self.0
    }
}

fn hkdf_algorithm(hash: HashAlgorithm) -> hkdf::Algorithm {
    match hash {
        HashAlgorithm::Sha256 => hkdf::HKDF_SHA256,
        HashAlgorithm::Sha384 => hkdf::HKDF_SHA384,
        HashAlgorithm::Sha512 => hkdf::HKDF_SHA512,
    }
}

/// HKDF with salt, input key and info; `len` bytes out.
///
/// # Errors
/// [`CryptoError::InvalidInput`] if `len` is over 255 hash lengths (RFC 5869, section 2.3).
pub fn hkdf(
    hash: HashAlgorithm,
    salt: &[u8],
    input: &[u8],
    info: &[u8],
    len: usize,
) -> Result<SecretBytes, CryptoError> {
    const TOO_LONG: CryptoError = CryptoError::InvalidInput("the derived key is too long");
    let prk = hkdf::Salt::new(hkdf_algorithm(hash), salt).extract(input);
    let info = [info];
    let okm = prk.expand(&info, OutputLength(len)).map_err(|_| TOO_LONG)?;
    SecretBytes::try_fill(len, |out| okm.fill(out).map_err(|_| TOO_LONG))
}

/// Derives the 32-byte key for `purpose` from a uniformly random secret (HKDF-SHA-256 without salt).
///
/// # Errors
/// None in practice; the type keeps a panic out.
pub fn derive_key(secret: &SecretBytes, purpose: &str) -> Result<SecretBytes, CryptoError> {
    hkdf(HashAlgorithm::Sha256, &[], secret.expose(), purpose.as_bytes(), 32)
}

/// An HMAC key, its schedule held ready.
pub struct MacKey(hmac::Key);

impl MacKey {
    /// HMAC with `hash` under `key`.
    #[must_use]
    pub fn new(hash: HashAlgorithm, key: &[u8]) -> Self {
        let algorithm = match hash {
            HashAlgorithm::Sha256 => hmac::HMAC_SHA256,
            HashAlgorithm::Sha384 => hmac::HMAC_SHA384,
            HashAlgorithm::Sha512 => hmac::HMAC_SHA512,
        };
        Self(hmac::Key::new(algorithm, key))
    }

    /// HMAC-SHA-1, for signatures of protocols that have no other.
    #[must_use]
    pub fn of_old(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key))
    }

    pub(crate) fn with_mac_hash(hash: MacHash, key: &[u8]) -> Self {
        let algorithm = match hash {
            MacHash::Sha224 => hmac::HMAC_SHA224,
            MacHash::Sha256 => hmac::HMAC_SHA256,
            MacHash::Sha384 => hmac::HMAC_SHA384,
            MacHash::Sha512 => hmac::HMAC_SHA512,
        };
        Self(hmac::Key::new(algorithm, key))
    }

    /// The tag of the concatenation of `parts`.
    #[must_use]
    pub fn sign(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }

    /// Whether `tag` is the full tag of `message`, in constant time.
    #[must_use]
    pub fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.0, message, tag).is_ok()
    }
}

/// SHA-256 of the concatenation of `parts`.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

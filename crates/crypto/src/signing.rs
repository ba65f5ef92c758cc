//! Signatures of people: Ed25519 (RFC 8032) and ECDSA P-256 with SHA-256 (FIPS 186-5), over whole messages.

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::AsDer,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        ParsedPublicKey,
    },
};

use crate::{SecretBytes, error::CryptoError};

/// SubjectPublicKeyInfo of an Ed25519 key up to the key (RFC 8410, section 4).
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The same of an uncompressed P-256 point (RFC 5480, section 2).
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A person's public key.
pub struct VerifyingKey {
    key: ParsedPublicKey,
    spki: Vec<u8>,
}

impl VerifyingKey {
    /// From SubjectPublicKeyInfo (RFC 5280), DER.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] unless it is an Ed25519 or uncompressed P-256 key.
    pub fn from_spki(der: &[u8]) -> Result<Self, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not an Ed25519 or P-256 public key");
        let key = if let Some(key) = der.strip_prefix(ED25519_PREFIX) {
            ParsedPublicKey::new(&ED25519, key)
        } else if let Some(point) = der.strip_prefix(P256_PREFIX) {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        } else {
            return Err(INVALID);
        };
        Ok(Self { key: key.map_err(|_| INVALID)?, spki: der.to_vec() })
    }

    /// The key as it came.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Whether `signature` is one of `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

/// A person's private key.
pub enum PersonalKey {
    /// Ed25519.
    Ed25519(Box<Ed25519KeyPair>),
    /// ECDSA P-256.
    P256(Box<EcdsaKeyPair>),
}

impl PersonalKey {
    /// From PKCS #8 (RFC 5958), DER.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`].
    pub fn from_pkcs8(der: &SecretBytes) -> Result<Self, CryptoError> {
        let der = der.expose();
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self::Ed25519(Box::new(pair)));
        }
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map(|pair| Self::P256(Box::new(pair)))
            .map_err(|_| CryptoError::InvalidKey("not an Ed25519 or P-256 private key"))
    }

    /// Makes an Ed25519 key; gives it as PKCS #8.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn generate_ed25519() -> Result<SecretBytes, CryptoError> {
        const FAILED: CryptoError = CryptoError::Library("Ed25519 key generation");
        let pair = Ed25519KeyPair::generate().map_err(|_| FAILED)?;
        pair.to_pkcs8v1().map(|pkcs8| SecretBytes::copy_of(pkcs8.as_ref())).map_err(|_| FAILED)
    }

    /// The public half, SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn spki(&self) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::Ed25519(pair) => Ok([ED25519_PREFIX, pair.public_key().as_ref()].concat()),
            Self::P256(pair) => {
                let der = pair.public_key().as_der();
                der.map(|der: aws_lc_rs::encoding::PublicKeyX509Der<'_>| der.as_ref().to_vec())
                    .map_err(|_| CryptoError::Library("public key encoding"))
            }
        }
    }

    /// Signs.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Self::P256(pair) => pair
                .sign_digest(&digest(&SHA256, message))
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| CryptoError::Library("ECDSA")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_of_both_kinds() {
        let ed25519 = PersonalKey::from_pkcs8(&PersonalKey::generate_ed25519().unwrap()).unwrap();
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let p256 = SecretBytes::copy_of(p256.to_pkcs8v1().unwrap().as_ref());
        for key in [ed25519, PersonalKey::from_pkcs8(&p256).unwrap()] {
            let public = VerifyingKey::from_spki(&key.spki().unwrap()).unwrap();
            let signature = key.sign(b"message").unwrap();
            assert!(public.verify(b"message", &signature));
            assert!(!public.verify(b"massage", &signature));
            assert!(!public.verify(b"message", &signature[1..]));
        }
        assert!(VerifyingKey::from_spki(b"").is_err());
        assert!(VerifyingKey::from_spki(&[ED25519_PREFIX, &[0; 31]].concat()).is_err());
    }

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn known_answer() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let key = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = hex("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00");
        let public = VerifyingKey::from_spki(&[ED25519_PREFIX, &key].concat()).unwrap();
        assert!(public.verify(&[0x72], &signature));
        assert!(!public.verify(&[0x73], &signature));
    }
}

//! RSA (RFC 8017) on aws-lc-rs.

mod exponent;
mod rejection;

use std::sync::OnceLock;

use aws_lc_rs::{
    digest::Digest,
    encoding::AsDer,
    rsa::{
        KeyPair, KeyPairComponents, KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
        OaepPublicEncryptingKey, Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey,
        PublicEncryptingKey, PublicKeyComponents,
    },
    signature::{self, KeyPair as _, ParsedPublicKey, RsaParameters, RsaSignatureEncoding},
};
use rejection::ImplicitRejection;

use crate::{EncryptionPadding, HashAlgorithm, RsaSize, SecretBytes, SignatureScheme, error::CryptoError};

/// The usual public exponent, F4.
pub(crate) const EXPONENT_F4: u32 = 65537;

/// The parts of an RSA private key, big-endian, as a JWK carries them (RFC 7518, section 6.3). Leading zeros are
/// allowed.
pub struct RsaPrivateComponents {
    /// Modulus.
    pub n: Vec<u8>,
    /// Public exponent.
    pub e: Vec<u8>,
    /// Private exponent.
    pub d: SecretBytes,
    /// First prime.
    pub p: SecretBytes,
    /// Second prime.
    pub q: SecretBytes,
    /// `d mod (p-1)`.
    pub dp: SecretBytes,
    /// `d mod (q-1)`.
    pub dq: SecretBytes,
    /// `q^-1 mod p`.
    pub qi: SecretBytes,
}

/// Whether RSAES-PKCS1-v1_5 decryption is offered at all.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Rsa1_5Policy {
    /// Offered, with implicit rejection.
    #[default]
    Allow,
    /// Refused, encryption and decryption alike.
    Refuse,
}

/// An RSA public key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RsaPublicKey {
    /// Modulus, big-endian without leading zeros.
    pub n: Vec<u8>,
    /// Public exponent, big-endian without leading zeros.
    pub e: Vec<u8>,
}

impl RsaPublicKey {
    /// Size and exponent, if they are ones we take.
    #[must_use]
    pub fn parameters(&self) -> Option<(RsaSize, u32)> {
        let first = self.n.first()?;
        let bits = u32::try_from(self.n.len() * 8).ok()? - first.leading_zeros();
        if self.e.len() > 4 {
            return None;
        }
        let exponent = self.e.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
        Some((RsaSize::from_bits(bits)?, exponent))
    }

    /// From RSAPublicKey (RFC 8017, A.1.1) or SubjectPublicKeyInfo (RFC 5280), DER.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`].
    pub fn from_der(der: &[u8]) -> Result<Self, CryptoError> {
        let key = aws_lc_rs::rsa::PublicKey::from_der(der)
            .map_err(|_| CryptoError::InvalidKey("not an RSA public key in DER"))?;
        Ok(Self::from_library(&key))
    }

    fn from_library(key: &aws_lc_rs::rsa::PublicKey) -> Self {
        Self {
            n: key.modulus().big_endian_without_leading_zero().to_vec(),
            e: key.exponent().big_endian_without_leading_zero().to_vec(),
        }
    }

    /// Whether `signature` is one of `digest`: for tools that hold no private half.
    ///
    /// # Errors
    /// [`CryptoError::Mismatch`] if `scheme` is not RSA, [`CryptoError::InvalidInput`] on a digest of another length.
    pub fn verify(&self, scheme: SignatureScheme, digest: &[u8], signature: &[u8]) -> Result<bool, CryptoError> {
        let (slot, _, hash) = parameters(scheme).ok_or(CryptoError::Mismatch)?;
        let digest = import_digest(hash, digest)?;
        Ok(self.verifier(slot)?.verify_digest_sig(&digest, signature).is_ok())
    }

    /// Encrypts to the key: for those who hold no private half. Keys of 2048 bits and more.
    ///
    /// # Errors
    /// [`CryptoError::Mismatch`] unless `padding` is OAEP, [`CryptoError::InvalidInput`] if `plaintext` is too long.
    pub fn encrypt(&self, padding: EncryptionPadding, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let algorithm = match padding {
            EncryptionPadding::OaepSha1 => &OAEP_SHA1_MGF1SHA1,
            EncryptionPadding::OaepSha256 => &OAEP_SHA256_MGF1SHA256,
            EncryptionPadding::Pkcs1 => return Err(CryptoError::Mismatch),
        };
        const LIBRARY: CryptoError = CryptoError::Library("RSA public key");
        let key: aws_lc_rs::rsa::PublicEncryptingKey = self.components().try_into().map_err(|_| LIBRARY)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_| LIBRARY)?;
        if plaintext.len() > key.max_plaintext_size(algorithm) {
            return Err(CryptoError::InvalidInput("the plaintext is too long for the key"));
        }
        let mut out = vec![0; key.ciphertext_size()];
        let written = key.encrypt(algorithm, plaintext, &mut out, None).map_err(|_| LIBRARY)?.len();
        out.truncate(written);
        Ok(out)
    }

    fn verifier(&self, slot: usize) -> Result<ParsedPublicKey, CryptoError> {
        self.components().to_parsed_public_key(VERIFIERS[slot]).map_err(|_| CryptoError::Library("RSA public key"))
    }

    fn components(&self) -> PublicKeyComponents<&[u8]> {
        PublicKeyComponents { n: &self.n, e: &self.e }
    }
}

/// Makes an RSA private key and returns it as PKCS #8.
///
/// # Errors
/// [`CryptoError::InvalidInput`] on an even or too small exponent.
pub(crate) fn generate(size: RsaSize, exponent: u32) -> Result<SecretBytes, CryptoError> {
    if exponent < 3 || exponent.is_multiple_of(2) {
        return Err(CryptoError::InvalidInput("an RSA public exponent is odd and at least 3"));
    }
    let key_size = match size {
        RsaSize::Bits2048 => KeySize::Rsa2048,
        RsaSize::Bits3072 => KeySize::Rsa3072,
        RsaSize::Bits4096 => KeySize::Rsa4096,
    };
    let fresh = || KeyPair::generate(key_size).map_err(|_| CryptoError::Library("RSA key generation"));
    if exponent == EXPONENT_F4 {
        return to_pkcs8(&fresh()?);
    }
    exponent::with_exponent(exponent, || to_pkcs8(&fresh()?))
}

/// Checks imported components against each other and returns PKCS #8.
pub(crate) fn from_components(parts: &RsaPrivateComponents) -> Result<SecretBytes, CryptoError> {
    let pair = KeyPair::from_components(&KeyPairComponents {
        public_key: PublicKeyComponents { n: strip_zeros(&parts.n), e: strip_zeros(&parts.e) },
        d: parts.d.expose(),
        p: parts.p.expose(),
        q: parts.q.expose(),
        dP: parts.dp.expose(),
        dQ: parts.dq.expose(),
        qInv: parts.qi.expose(),
    })
    .map_err(|_| CryptoError::InvalidKey("the RSA components do not form a private key"))?;
    to_pkcs8(&pair)
}

/// Checks a foreign PKCS #8 key and returns it in the library's own encoding.
pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<SecretBytes, CryptoError> {
    let pair = KeyPair::from_pkcs8(pkcs8).map_err(|_| CryptoError::InvalidKey("not an RSA private key in PKCS #8"))?;
    to_pkcs8(&pair)
}

fn to_pkcs8(pair: &KeyPair) -> Result<SecretBytes, CryptoError> {
    let der = pair.as_der().map_err(|_| CryptoError::Library("RSA encoding"))?;
    Ok(SecretBytes::copy_of(der.as_ref()))
}

/// The RSAPrivateKey inside PKCS #8.
pub(crate) fn pkcs1_of(pkcs8: &[u8]) -> Option<&[u8]> {
    use pkcs8::der::Decode;
    pkcs8::PrivateKeyInfoRef::from_der(pkcs8).ok().map(|info| info.private_key.as_bytes())
}

/// Drops leading zero bytes of a big-endian number.
pub(crate) fn strip_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[start..]
}

/// An RSA key with every parsed form ready.
pub struct RsaKey {
    signer: KeyPair,
    oaep_decrypt: OaepPrivateDecryptingKey,
    pkcs1_decrypt: Pkcs1PrivateDecryptingKey,
    oaep_encrypt: OaepPublicEncryptingKey,
    pkcs1_encrypt: Pkcs1PublicEncryptingKey,
    verifiers: [OnceLock<ParsedPublicKey>; 6],
    rejection: ImplicitRejection,
    public: RsaPublicKey,
    size: RsaSize,
}

impl RsaKey {
    /// Parses and checks PKCS #8 once, for all later uses.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] if it is not an RSA key of a size we take.
    pub fn load(pkcs8: &SecretBytes) -> Result<Self, CryptoError> {
        let invalid = |_| CryptoError::InvalidKey("not an RSA private key in PKCS #8");
        let signer = KeyPair::from_pkcs8(pkcs8.expose()).map_err(invalid)?;
        let private = || PrivateDecryptingKey::from_pkcs8(pkcs8.expose()).map_err(invalid);
        let public = RsaPublicKey::from_library(signer.public_key());
        let (size, _) = public.parameters().ok_or(CryptoError::InvalidKey("RSA keys have 2048, 3072 or 4096 bits"))?;
        let encrypt = || -> Result<PublicEncryptingKey, CryptoError> {
            public.components().try_into().map_err(|_| CryptoError::Library("RSA public key"))
        };
        let library = |_| CryptoError::Library("RSA key set-up");
        Ok(Self {
            oaep_decrypt: OaepPrivateDecryptingKey::new(private()?).map_err(library)?,
            pkcs1_decrypt: Pkcs1PrivateDecryptingKey::new(private()?).map_err(library)?,
            oaep_encrypt: OaepPublicEncryptingKey::new(encrypt()?).map_err(library)?,
            pkcs1_encrypt: Pkcs1PublicEncryptingKey::new(encrypt()?).map_err(library)?,
            rejection: ImplicitRejection::new(pkcs8)?,
            verifiers: Default::default(),
            signer,
            public,
            size,
        })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &RsaPublicKey {
        &self.public
    }

    /// Modulus size.
    #[must_use]
    pub fn size(&self) -> RsaSize {
        self.size
    }

    /// Encrypts under the public half.
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] if the plaintext is too long for the padding.
    pub fn encrypt(&self, padding: EncryptionPadding, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let overhead = match padding {
            EncryptionPadding::OaepSha1 => 2 * 20 + 2,
            EncryptionPadding::OaepSha256 => 2 * 32 + 2,
            EncryptionPadding::Pkcs1 => rejection::PADDING_BYTES,
        };
        if plaintext.len() > self.size.bytes() - overhead {
            return Err(CryptoError::InvalidInput("the plaintext is too long for this key and algorithm"));
        }
        let mut out = vec![0; self.size.bytes()];
        let written = match padding {
            EncryptionPadding::OaepSha1 => self.oaep_encrypt.encrypt(&OAEP_SHA1_MGF1SHA1, plaintext, &mut out, None),
            EncryptionPadding::OaepSha256 => {
                self.oaep_encrypt.encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut out, None)
            }
            EncryptionPadding::Pkcs1 => self.pkcs1_encrypt.encrypt(plaintext, &mut out),
        }
        .map_err(|_| CryptoError::Library("RSA encryption"))?
        .len();
        out.truncate(written);
        Ok(out)
    }

    /// Decrypts with the private half.
    ///
    /// OAEP answers [`CryptoError::Rejected`] to anything that does not decrypt. RSAES-PKCS1-v1_5 never does: a
    /// ciphertext of the right length with bad padding yields a pseudo-random message which depends on key and
    /// ciphertext alone (implicit rejection, draft-irtf-cfrg-rsa-guidance), so that no answer of this function
    /// is an oracle for Bleichenbacher's attack. The synthetic message is computed on every call. One branch
    /// inside the library (its constant-time padding check reports success or failure) cannot be removed from
    /// outside; what an attacker could time is that branch alone.
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] if the ciphertext is not as long as the modulus.
    pub fn decrypt(&self, padding: EncryptionPadding, ciphertext: &[u8]) -> Result<SecretBytes, CryptoError> {
        let modulus_bytes = self.size.bytes();
        if ciphertext.len() != modulus_bytes {
            return Err(CryptoError::InvalidInput("an RSA ciphertext is as long as the modulus"));
        }
        let mut buffer = SecretBytes::zeroed(modulus_bytes);
        let oaep = match padding {
            EncryptionPadding::OaepSha1 => &OAEP_SHA1_MGF1SHA1,
            EncryptionPadding::OaepSha256 => &OAEP_SHA256_MGF1SHA256,
            EncryptionPadding::Pkcs1 => {
                let synthetic = self.rejection.synthetic(ciphertext)?;
                let message = self.pkcs1_decrypt.decrypt(ciphertext, buffer.expose_mut());
                return Ok(message.map_or(synthetic, |bytes| SecretBytes::copy_of(bytes)));
            }
        };
        let message = self
            .oaep_decrypt
            .decrypt(oaep, ciphertext, buffer.expose_mut(), None)
            .map_err(|_| CryptoError::Rejected)?;
        Ok(SecretBytes::copy_of(message))
    }

    /// Signs a digest.
    ///
    /// # Errors
    /// [`CryptoError::Mismatch`] if `scheme` is not RSA, [`CryptoError::InvalidInput`] on a digest of another length.
    pub fn sign(&self, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let (_, encoding, hash) = parameters(scheme).ok_or(CryptoError::Mismatch)?;
        let digest = import_digest(hash, digest)?;
        let mut signature = vec![0; self.size.bytes()];
        self.signer
            .sign_digest(encoding, &digest, &mut signature)
            .map_err(|_| CryptoError::Library("RSA signature"))?;
        Ok(signature)
    }

    /// Whether `signature` is one of `digest`.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn verify(&self, scheme: SignatureScheme, digest: &[u8], signature: &[u8]) -> Result<bool, CryptoError> {
        let (slot, _, hash) = parameters(scheme).ok_or(CryptoError::Mismatch)?;
        let digest = import_digest(hash, digest)?;
        let verifier = match self.verifiers[slot].get() {
            Some(verifier) => verifier,
            None => {
                let parsed = self.public.verifier(slot)?;
                self.verifiers[slot].get_or_init(|| parsed)
            }
        };
        Ok(verifier.verify_digest_sig(&digest, signature).is_ok())
    }
}

static VERIFIERS: [&RsaParameters; 6] = [
    &signature::RSA_PKCS1_2048_8192_SHA256,
    &signature::RSA_PKCS1_2048_8192_SHA384,
    &signature::RSA_PKCS1_2048_8192_SHA512,
    &signature::RSA_PSS_2048_8192_SHA256,
    &signature::RSA_PSS_2048_8192_SHA384,
    &signature::RSA_PSS_2048_8192_SHA512,
];

static SIGNERS: [&RsaSignatureEncoding; 6] = [
    &signature::RSA_PKCS1_SHA256,
    &signature::RSA_PKCS1_SHA384,
    &signature::RSA_PKCS1_SHA512,
    &signature::RSA_PSS_SHA256,
    &signature::RSA_PSS_SHA384,
    &signature::RSA_PSS_SHA512,
];

/// Slot in [`VERIFIERS`], the encoding that signs, and the hash.
fn parameters(scheme: SignatureScheme) -> Option<(usize, &'static RsaSignatureEncoding, HashAlgorithm)> {
    let (base, hash) = match scheme {
        SignatureScheme::RsaPkcs1(hash) => (0, hash),
        SignatureScheme::RsaPss(hash) => (3, hash),
        SignatureScheme::Ecdsa(_)
        | SignatureScheme::Ed25519
        | SignatureScheme::Hmac(_)
        | SignatureScheme::Mac(_)
        | SignatureScheme::MlDsa(_) => return None,
    };
    let slot = base
        + match hash {
            HashAlgorithm::Sha256 => 0,
            HashAlgorithm::Sha384 => 1,
            HashAlgorithm::Sha512 => 2,
        };
    Some((slot, SIGNERS[slot], hash))
}

pub(crate) fn import_digest(hash: HashAlgorithm, digest: &[u8]) -> Result<Digest, CryptoError> {
    Digest::import_less_safe(digest, hash.digest_algorithm())
        .map_err(|_| CryptoError::InvalidInput("the digest's length does not fit the algorithm"))
}

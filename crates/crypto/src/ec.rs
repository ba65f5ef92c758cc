//! ECDSA (FIPS 186-5) over digests, with fixed-length signatures.

use aws_lc_rs::{
    agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521},
    encoding::{AsBigEndian, EcPrivateKeyBin},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P256K1_SHA256_FIXED,
        ECDSA_P256K1_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        EcdsaVerificationAlgorithm, KeyPair as _, ParsedPublicKey,
    },
};

use crate::{Curve, SecretBytes, error::CryptoError, rsa::import_digest};

fn signing(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
        Curve::P256K => &ECDSA_P256K1_SHA256_FIXED_SIGNING,
        Curve::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        Curve::P521 => &ECDSA_P521_SHA512_FIXED_SIGNING,
    }
}

fn verification(curve: Curve) -> &'static EcdsaVerificationAlgorithm {
    match curve {
        Curve::P256 => &ECDSA_P256_SHA256_FIXED,
        Curve::P256K => &ECDSA_P256K1_SHA256_FIXED,
        Curve::P384 => &ECDSA_P384_SHA384_FIXED,
        Curve::P521 => &ECDSA_P521_SHA512_FIXED,
    }
}

/// An EC public key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EcPublicKey {
    /// Its curve.
    pub curve: Curve,
    /// Uncompressed point: `04 || x || y` (SEC 1, section 2.3.3).
    pub point: Vec<u8>,
}

impl EcPublicKey {
    /// From coordinates, with leading zeros as they come.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] if a coordinate is too long. Whether the point lies on the curve is checked when the
    /// key is loaded.
    pub fn from_coordinates(curve: Curve, x: &[u8], y: &[u8]) -> Result<Self, CryptoError> {
        let mut point = vec![4];
        for coordinate in [x, y] {
            point.extend_from_slice(&pad_left(coordinate, curve.field_bytes())?);
        }
        Ok(Self { curve, point })
    }

    /// The coordinates `x` and `y`, each as long as a field element.
    #[must_use]
    pub fn coordinates(&self) -> (&[u8], &[u8]) {
        self.point[1..].split_at(self.curve.field_bytes())
    }
}

/// Brings a big-endian number to exactly `len` bytes.
fn pad_left(number: &[u8], len: usize) -> Result<Vec<u8>, CryptoError> {
    let digits = crate::rsa::strip_zeros(number);
    let zeros = len.checked_sub(digits.len()).ok_or(CryptoError::InvalidKey("a number is too long for the curve"))?;
    let mut out = vec![0; zeros];
    out.extend_from_slice(digits);
    Ok(out)
}

/// Makes a key pair; returns the material encoding `scalar || point`.
pub(crate) fn generate(curve: Curve) -> Result<SecretBytes, CryptoError> {
    let pair = EcdsaKeyPair::generate(signing(curve)).map_err(|_| CryptoError::Library("EC key generation"))?;
    to_material(&pair, curve)
}

/// Checks that scalar and point belong together; returns the material encoding.
pub(crate) fn from_scalar(public: &EcPublicKey, scalar: &SecretBytes) -> Result<SecretBytes, CryptoError> {
    let scalar = SecretBytes::take(pad_left(scalar.expose(), public.curve.field_bytes())?);
    let pair = EcdsaKeyPair::from_private_key_and_public_key(signing(public.curve), scalar.expose(), &public.point)
        .map_err(|_| CryptoError::InvalidKey("the EC private and public parts do not belong together"))?;
    to_material(&pair, public.curve)
}

/// From PKCS #8 (RFC 5958) or an RFC 5915 private key.
pub(crate) fn from_pkcs8(curve: Curve, der: &[u8]) -> Result<SecretBytes, CryptoError> {
    let pair = EcdsaKeyPair::from_private_key_der(signing(curve), der)
        .map_err(|_| CryptoError::InvalidKey("not an EC private key of this curve"))?;
    to_material(&pair, curve)
}

fn to_material(pair: &EcdsaKeyPair, curve: Curve) -> Result<SecretBytes, CryptoError> {
    let scalar: EcPrivateKeyBin = pair.private_key().as_be_bytes().map_err(|_| CryptoError::Library("EC encoding"))?;
    let padded = SecretBytes::take(pad_left(scalar.as_ref(), curve.field_bytes())?);
    let point = pair.public_key().as_ref();
    let mut out = SecretBytes::zeroed(padded.len() + point.len());
    let (head, tail) = out.expose_mut().split_at_mut(padded.len());
    head.copy_from_slice(padded.expose());
    tail.copy_from_slice(point);
    Ok(out)
}

/// An EC key, parsed for signing and verifying.
pub struct EcKey {
    pair: EcdsaKeyPair,
    verifier: ParsedPublicKey,
    public: EcPublicKey,
    /// The same key for agreement; the library has none on secp256k1.
    agreement: Option<agreement::PrivateKey>,
}

fn agreement_algorithm(curve: Curve) -> Option<&'static agreement::Algorithm> {
    match curve {
        Curve::P256 => Some(&ECDH_P256),
        Curve::P256K => None,
        Curve::P384 => Some(&ECDH_P384),
        Curve::P521 => Some(&ECDH_P521),
    }
}

impl EcKey {
    /// Parses the material encoding `scalar || point`.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] on anything else.
    pub fn load(curve: Curve, material: &SecretBytes) -> Result<Self, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not EC key material");
        let (scalar, point) = material.expose().split_at_checked(curve.field_bytes()).ok_or(INVALID)?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(signing(curve), scalar, point).map_err(|_| INVALID)?;
        let verifier = ParsedPublicKey::new(verification(curve), point).map_err(|_| INVALID)?;
        let agreement = match agreement_algorithm(curve) {
            Some(algorithm) => Some(agreement::PrivateKey::from_private_key(algorithm, scalar).map_err(|_| INVALID)?),
            None => None,
        };
        Ok(Self { pair, verifier, public: EcPublicKey { curve, point: point.to_vec() }, agreement })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &EcPublicKey {
        &self.public
    }

    /// The shared secret with `peer`, a SubjectPublicKeyInfo of the same curve: the x coordinate (SP 800-56A, section 5.7.1.2).
    ///
    /// # Errors
    /// [`CryptoError::Mismatch`] on secp256k1, [`CryptoError::InvalidInput`] if `peer` is not a point of the curve.
    pub fn agree(&self, peer: &[u8]) -> Result<SecretBytes, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidInput("not a public key on the curve of this key");
        let (key, algorithm) =
            self.agreement.as_ref().zip(agreement_algorithm(self.public.curve)).ok_or(CryptoError::Mismatch)?;
        // Of the forms that the library reads, only this one says which curve it is on.
        if peer.first() != Some(&0x30) {
            return Err(INVALID);
        }
        let peer = agreement::UnparsedPublicKey::new(algorithm, peer);
        let peer = agreement::ParsedPublicKey::try_from(peer).map_err(|_| INVALID)?;
        agreement::agree(key, peer, INVALID, |secret| Ok(SecretBytes::copy_of(secret)))
    }

    pub(crate) fn pkcs8(&self) -> Result<SecretBytes, CryptoError> {
        let der = self.pair.to_pkcs8v1().map_err(|_| CryptoError::Library("EC encoding"))?;
        Ok(SecretBytes::copy_of(der.as_ref()))
    }

    /// Signs a digest of the curve's own hash; the answer is `r || s`.
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] on a digest of another length.
    pub fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let digest = import_digest(self.public.curve.hash(), digest)?;
        let signature = self.pair.sign_digest(&digest).map_err(|_| CryptoError::Library("ECDSA"))?;
        Ok(signature.as_ref().to_vec())
    }

    /// Whether `signature` (`r || s`) is one of `digest`.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn verify(&self, digest: &[u8], signature: &[u8]) -> Result<bool, CryptoError> {
        let digest = import_digest(self.public.curve.hash(), digest)?;
        Ok(self.verifier.verify_digest_sig(&digest, signature).is_ok())
    }
}

impl EcPublicKey {
    /// Whether `signature` (`r || s`) is one of `digest`: for tools that hold no private half.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] if the point is not on the curve, [`CryptoError::InvalidInput`] on a digest of another
    /// length.
    pub fn verify(&self, digest: &[u8], signature: &[u8]) -> Result<bool, CryptoError> {
        let digest = import_digest(self.curve.hash(), digest)?;
        let verifier = ParsedPublicKey::new(verification(self.curve), &self.point)
            .map_err(|_| CryptoError::InvalidKey("the point is not on the curve"))?;
        Ok(verifier.verify_digest_sig(&digest, signature).is_ok())
    }
}

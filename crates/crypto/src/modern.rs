//! Key kinds that one dialect or another brings besides AES, EC and RSA: HMAC, Ed25519, ML-DSA, ML-KEM.

use aws_lc_rs::{
    encoding::{AsBigEndian, Curve25519SeedBin},
    kem::{self, Ciphertext, DecapsulationKey, EncapsulationKey},
    signature::{
        ED25519, Ed25519KeyPair, KeyPair as _, ML_DSA_44, ML_DSA_44_SIGNING, ML_DSA_65, ML_DSA_65_SIGNING, ML_DSA_87,
        ML_DSA_87_SIGNING, ParsedPublicKey, PqdsaKeyPair, PqdsaSigningAlgorithm, PqdsaVerificationAlgorithm,
    },
};
use pkcs8::der::Decode as _;

use crate::{MacHash, MlDsaSize, MlKemSize, SecretBytes, error::CryptoError, kdf::MacKey};

/// An HMAC key (RFC 2104), as long as its hash.
pub struct HmacKey {
    hash: MacHash,
    key: MacKey,
}

impl HmacKey {
    /// Takes the key's bytes.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] unless it is as long as the hash.
    pub fn new(hash: MacHash, key: &SecretBytes) -> Result<Self, CryptoError> {
        if key.len() != hash.bytes() {
            return Err(CryptoError::InvalidKey("an HMAC key is as long as its hash"));
        }
        Ok(Self { hash, key: MacKey::with_mac_hash(hash, key.expose()) })
    }

    /// Its hash.
    #[must_use]
    pub fn hash(&self) -> MacHash {
        self.hash
    }

    /// The full tag of `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.key.sign(&[message])
    }

    /// Whether `tag` is the full tag of `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.key.verify(message, tag)
    }
}

/// An Ed25519 key (RFC 8032). Material: seed || public key.
pub struct Ed25519Key {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl Ed25519Key {
    /// Takes the seed; gives the material.
    pub(crate) fn material_from_seed(seed: &SecretBytes) -> Result<SecretBytes, CryptoError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose())
            .map_err(|_| CryptoError::InvalidKey("an Ed25519 seed has 32 bytes"))?;
        let mut material = SecretBytes::zeroed(64);
        material.expose_mut()[..32].copy_from_slice(seed.expose());
        material.expose_mut()[32..].copy_from_slice(pair.public_key().as_ref());
        Ok(material)
    }

    /// From PKCS #8 (RFC 8410); gives the material.
    pub(crate) fn material_from_pkcs8(der: &[u8]) -> Result<SecretBytes, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not an Ed25519 private key in PKCS #8");
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| INVALID)?;
        let seed = pair.seed().map_err(|_| INVALID)?;
        let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| INVALID)?;
        Self::material_from_seed(&SecretBytes::copy_of(seed.as_ref()))
    }

    /// Parses the material.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`].
    pub fn load(material: &SecretBytes) -> Result<Self, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not Ed25519 key material");
        let (seed, public) = material.expose().split_at_checked(32).ok_or(INVALID)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| INVALID)?;
        Ok(Self { pair, public: public.try_into().map_err(|_| INVALID)? })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    /// Whether `signature` is one of `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        ParsedPublicKey::new(&ED25519, self.public).is_ok_and(|key| key.verify_sig(message, signature).is_ok())
    }

    pub(crate) fn pkcs8(&self) -> Result<SecretBytes, CryptoError> {
        let der = self.pair.to_pkcs8v1().map_err(|_| CryptoError::Library("Ed25519 encoding"))?;
        Ok(SecretBytes::copy_of(der.as_ref()))
    }
}

/// Length of an ML-DSA seed (FIPS 204, section 5.1).
const ML_DSA_SEED_BYTES: usize = 32;

/// An ML-DSA key (FIPS 204). Material: the seed.
pub struct MlDsaKey {
    size: MlDsaSize,
    pair: PqdsaKeyPair,
    verifier: ParsedPublicKey,
}

fn ml_dsa(size: MlDsaSize) -> (&'static PqdsaSigningAlgorithm, &'static PqdsaVerificationAlgorithm) {
    match size {
        MlDsaSize::Dsa44 => (&ML_DSA_44_SIGNING, &ML_DSA_44),
        MlDsaSize::Dsa65 => (&ML_DSA_65_SIGNING, &ML_DSA_65),
        MlDsaSize::Dsa87 => (&ML_DSA_87_SIGNING, &ML_DSA_87),
    }
}

impl MlDsaKey {
    /// From PKCS #8 with a seed; gives the material.
    pub(crate) fn material_from_pkcs8(size: MlDsaSize, der: &[u8]) -> Result<SecretBytes, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not an ML-DSA private key of this size in PKCS #8");
        const NO_SEED: CryptoError = CryptoError::InvalidKey("an ML-DSA private key must be given by its seed");
        let pair = PqdsaKeyPair::from_pkcs8(ml_dsa(size).0, der).map_err(|_| INVALID)?;
        let der = pair.to_pkcs8v1().map_err(|_| NO_SEED)?;
        let info = pkcs8::PrivateKeyInfoRef::from_der(der.as_ref()).map_err(|_| NO_SEED)?;
        // seed [0] IMPLICIT OCTET STRING (RFC 9881, section 6).
        let seed = info.private_key.as_bytes().strip_prefix(&[0x80, ML_DSA_SEED_BYTES as u8]).ok_or(NO_SEED)?;
        if seed.len() != ML_DSA_SEED_BYTES {
            return Err(NO_SEED);
        }
        Ok(SecretBytes::copy_of(seed))
    }

    /// Expands the seed.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] unless it has 32 bytes.
    pub fn load(size: MlDsaSize, seed: &SecretBytes) -> Result<Self, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not ML-DSA key material");
        let (signing, verification) = ml_dsa(size);
        let pair = PqdsaKeyPair::from_seed(signing, seed.expose()).map_err(|_| INVALID)?;
        let verifier = ParsedPublicKey::new(verification, pair.public_key().as_ref()).map_err(|_| INVALID)?;
        Ok(Self { size, pair, verifier })
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> MlDsaSize {
        self.size
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs a message, with an empty context.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut signature = vec![0; self.pair.algorithm().signature_len()];
        let written = self.pair.sign(message, &mut signature).map_err(|_| CryptoError::Library("ML-DSA"))?;
        signature.truncate(written);
        Ok(signature)
    }

    /// Whether `signature` is one of `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verifier.verify_sig(message, signature).is_ok()
    }
}

/// An ML-KEM key (FIPS 203). Material: the decapsulation key, which holds the encapsulation key.
pub struct MlKemKey {
    size: MlKemSize,
    decapsulation: DecapsulationKey,
    encapsulation: EncapsulationKey,
    public: Vec<u8>,
}

fn ml_kem(size: MlKemSize) -> &'static kem::Algorithm {
    match size {
        MlKemSize::Kem512 => &kem::ML_KEM_512,
        MlKemSize::Kem768 => &kem::ML_KEM_768,
        MlKemSize::Kem1024 => &kem::ML_KEM_1024,
    }
}

impl MlKemKey {
    /// Makes a key; gives the material.
    pub(crate) fn generate(size: MlKemSize) -> Result<SecretBytes, CryptoError> {
        const FAILED: CryptoError = CryptoError::Library("ML-KEM key generation");
        let key = DecapsulationKey::generate(ml_kem(size)).map_err(|_| FAILED)?;
        let bytes = key.key_bytes().map_err(|_| FAILED)?;
        Ok(SecretBytes::copy_of(bytes.as_ref()))
    }

    /// Parses the material.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`].
    pub fn load(size: MlKemSize, material: &SecretBytes) -> Result<Self, CryptoError> {
        const INVALID: CryptoError = CryptoError::InvalidKey("not ML-KEM key material");
        // dk = dk_PKE || ek || H(ek) || z; dk_PKE has 384 k bytes, ek 384 k + 32 (FIPS 203, section 7.1).
        let vector = 384 * size.rank();
        let public = material.expose().get(vector..2 * vector + 32).ok_or(INVALID)?.to_vec();
        let decapsulation = DecapsulationKey::new(ml_kem(size), material.expose()).map_err(|_| INVALID)?;
        let encapsulation = EncapsulationKey::new(ml_kem(size), &public).map_err(|_| INVALID)?;
        Ok(Self { size, decapsulation, encapsulation, public })
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> MlKemSize {
        self.size
    }

    /// The encapsulation key.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// A fresh shared secret, and the ciphertext that gives it to the holder of this key.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn encapsulate(&self) -> Result<(Vec<u8>, SecretBytes), CryptoError> {
        let (ciphertext, secret) = self.encapsulation.encapsulate().map_err(|_| CryptoError::Library("ML-KEM"))?;
        Ok((ciphertext.as_ref().to_vec(), SecretBytes::copy_of(secret.as_ref())))
    }

    /// The shared secret. A ciphertext of the right length that was not made for this key gives a secret that nobody has.
    ///
    /// # Errors
    /// [`CryptoError::Rejected`] on another length.
    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<SecretBytes, CryptoError> {
        if ciphertext.len() != self.size.ciphertext_bytes() {
            return Err(CryptoError::Rejected);
        }
        let secret = self.decapsulation.decapsulate(Ciphertext::from(ciphertext)).map_err(|_| CryptoError::Rejected)?;
        Ok(SecretBytes::copy_of(secret.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_kind_load_and_work() {
        let mac = HmacKey::new(MacHash::Sha224, &SecretBytes::copy_of(&[7; 28])).unwrap();
        assert!(mac.verify(b"m", &mac.sign(b"m")) && !mac.verify(b"n", &mac.sign(b"m")));
        assert!(HmacKey::new(MacHash::Sha224, &SecretBytes::copy_of(&[7; 32])).is_err());
        let material = Ed25519Key::material_from_seed(&SecretBytes::copy_of(&[9; 32])).unwrap();
        let key = Ed25519Key::load(&material).unwrap();
        assert!(key.verify(b"m", &key.sign(b"m")) && !key.verify(b"n", &key.sign(b"m")));
        let again = Ed25519Key::material_from_pkcs8(key.pkcs8().unwrap().expose()).unwrap();
        assert!(again.ct_eq(material.expose()));
        for size in [MlDsaSize::Dsa44, MlDsaSize::Dsa65, MlDsaSize::Dsa87] {
            let key = MlDsaKey::load(size, &SecretBytes::copy_of(&[3; 32])).unwrap();
            let signature = key.sign(b"m").unwrap();
            assert!(key.verify(b"m", &signature) && !key.verify(b"n", &signature));
            let pkcs8 = key.pair.to_pkcs8v1().unwrap();
            assert!(MlDsaKey::material_from_pkcs8(size, pkcs8.as_ref()).unwrap().ct_eq(&[3; 32]));
        }
        for size in [MlKemSize::Kem512, MlKemSize::Kem768, MlKemSize::Kem1024] {
            let key = MlKemKey::load(size, &MlKemKey::generate(size).unwrap()).unwrap();
            let (ciphertext, secret) = key.encapsulate().unwrap();
            assert!(key.decapsulate(&ciphertext).unwrap().ct_eq(secret.expose()));
            let mut other = ciphertext.clone();
            other[0] ^= 1;
            assert!(!key.decapsulate(&other).unwrap().ct_eq(secret.expose()), "implicit rejection");
            assert_eq!(key.decapsulate(&ciphertext[1..]).err(), Some(CryptoError::Rejected));
        }
    }
}

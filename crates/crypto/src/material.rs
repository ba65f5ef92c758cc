//! Key material: made, imported, and loaded for use.

use crate::{
    AesKey, EcKey, EcPublicKey, Ed25519Key, HmacKey, KeySpec, MacHash, MlDsaKey, MlDsaSize, MlKemKey, MlKemSize,
    RsaKey, RsaPrivateComponents, RsaPublicKey, SecretBytes, ec, error::CryptoError, rsa,
};

/// The secret part of one key version, in its one canonical encoding:
/// AES and HMAC: the key; EC: scalar || uncompressed point; Ed25519: seed || public key; ML-DSA: the seed;
/// ML-KEM: the decapsulation key; RSA: PKCS #8.
pub struct KeyMaterial {
    spec: KeySpec,
    secret: SecretBytes,
}

/// A private or secret key as a client sends it for import.
pub enum ImportedKey {
    /// AES key bytes.
    Aes(SecretBytes),
    /// EC public point and private scalar.
    Ec(EcPublicKey, SecretBytes),
    /// HMAC key bytes.
    Hmac(MacHash, SecretBytes),
    /// PKCS #8 (or RFC 5915) of the kind that the spec names.
    Pkcs8(KeySpec, SecretBytes),
    /// RSA components.
    Rsa(Box<RsaPrivateComponents>),
}

/// The part of a key version that everybody may see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublicKey {
    /// An AES key has none.
    Aes,
    /// EC.
    Ec(EcPublicKey),
    /// Ed25519.
    Ed25519([u8; 32]),
    /// An HMAC key has none.
    Hmac,
    /// ML-DSA.
    MlDsa(MlDsaSize, Vec<u8>),
    /// ML-KEM.
    MlKem(MlKemSize, Vec<u8>),
    /// RSA.
    Rsa(RsaPublicKey),
}

/// A key ready for use: parsed, checked, every schedule expanded.
pub enum LoadedKey {
    /// AES.
    Aes(Box<AesKey>),
    /// EC.
    Ec(Box<EcKey>),
    /// Ed25519.
    Ed25519(Box<Ed25519Key>),
    /// HMAC.
    Hmac(Box<HmacKey>),
    /// ML-DSA.
    MlDsa(Box<MlDsaKey>),
    /// ML-KEM.
    MlKem(Box<MlKemKey>),
    /// RSA.
    Rsa(Box<RsaKey>),
}

impl KeyMaterial {
    /// Makes a key. RSA, EC and ML-KEM keys are drawn by the library; others are made of the bytes that `fill` gives.
    ///
    /// # Errors
    /// [`CryptoError::InvalidInput`] on an impossible RSA exponent.
    pub fn generate(spec: KeySpec, fill: impl FnOnce(&mut [u8])) -> Result<Self, CryptoError> {
        let secret = match spec {
            KeySpec::Aes(size) => {
                let mut key = SecretBytes::zeroed(size.bytes());
                fill(key.expose_mut());
                key
            }
            KeySpec::Ec(curve) => ec::generate(curve)?,
            KeySpec::Ed25519 => {
                let mut seed = SecretBytes::zeroed(32);
                fill(seed.expose_mut());
                Ed25519Key::material_from_seed(&seed)?
            }
            KeySpec::Hmac(hash) => {
                let mut key = SecretBytes::zeroed(hash.bytes());
                fill(key.expose_mut());
                key
            }
            KeySpec::MlDsa(_) => {
                let mut seed = SecretBytes::zeroed(32);
                fill(seed.expose_mut());
                seed
            }
            KeySpec::MlKem(size) => MlKemKey::generate(size)?,
            KeySpec::Rsa { size, exponent } => rsa::generate(size, exponent)?,
        };
        Ok(Self { spec, secret })
    }

    /// Checks an imported key and brings it to the canonical encoding.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] if its parts contradict each other, or its kind or size is not offered.
    pub fn import(key: ImportedKey) -> Result<Self, CryptoError> {
        match key {
            ImportedKey::Aes(key) => {
                let size = AesKey::new(SecretBytes::copy_of(key.expose()))?.size();
                Ok(Self { spec: KeySpec::Aes(size), secret: key })
            }
            ImportedKey::Ec(public, scalar) => {
                Ok(Self { spec: KeySpec::Ec(public.curve), secret: ec::from_scalar(&public, &scalar)? })
            }
            ImportedKey::Rsa(parts) => Self::rsa(rsa::from_components(&parts)?),
            ImportedKey::Pkcs8(KeySpec::Rsa { .. }, der) => Self::rsa(rsa::from_pkcs8(der.expose())?),
            ImportedKey::Pkcs8(KeySpec::Ec(curve), der) => {
                Ok(Self { spec: KeySpec::Ec(curve), secret: ec::from_pkcs8(curve, der.expose())? })
            }
            ImportedKey::Hmac(hash, key) => {
                HmacKey::new(hash, &key)?;
                Ok(Self { spec: KeySpec::Hmac(hash), secret: key })
            }
            ImportedKey::Pkcs8(KeySpec::Ed25519, der) => {
                Ok(Self { spec: KeySpec::Ed25519, secret: Ed25519Key::material_from_pkcs8(der.expose())? })
            }
            ImportedKey::Pkcs8(spec @ KeySpec::MlDsa(size), der) => {
                Ok(Self { spec, secret: MlDsaKey::material_from_pkcs8(size, der.expose())? })
            }
            ImportedKey::Pkcs8(KeySpec::MlKem(_), _) => Err(CryptoError::InvalidKey("ML-KEM keys cannot be imported")),
            ImportedKey::Pkcs8(KeySpec::Aes(_) | KeySpec::Hmac(_), _) => {
                Err(CryptoError::InvalidKey("a symmetric key has no PKCS #8 form"))
            }
        }
    }

    fn rsa(pkcs8: SecretBytes) -> Result<Self, CryptoError> {
        let key = RsaKey::load(&pkcs8)?;
        let (size, exponent) =
            key.public().parameters().ok_or(CryptoError::InvalidKey("the RSA exponent is too large"))?;
        Ok(Self { spec: KeySpec::Rsa { size, exponent }, secret: pkcs8 })
    }

    /// Takes material back from its canonical encoding. Contradictions show when it is loaded.
    #[must_use]
    pub fn from_canonical(spec: KeySpec, secret: SecretBytes) -> Self {
        Self { spec, secret }
    }

    /// What kind of key it is.
    #[must_use]
    pub fn spec(&self) -> KeySpec {
        self.spec
    }

    /// The canonical encoding; to be masked, never to be sent.
    #[must_use]
    pub fn expose_canonical(&self) -> &[u8] {
        self.secret.expose()
    }

    /// PKCS #8 (RFC 5958) of a private key, for data key pairs, which leave at once; `None` for kinds that are not given out so.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn expose_pkcs8(self) -> Result<Option<SecretBytes>, CryptoError> {
        match self.spec {
            KeySpec::Rsa { .. } => Ok(Some(self.secret)),
            KeySpec::Ec(curve) => EcKey::load(curve, &self.secret)?.pkcs8().map(Some),
            KeySpec::Ed25519 => Ed25519Key::load(&self.secret)?.pkcs8().map(Some),
            KeySpec::Aes(_) | KeySpec::Hmac(_) | KeySpec::MlDsa(_) | KeySpec::MlKem(_) => Ok(None),
        }
    }

    /// The RSAPrivateKey (RFC 8017, A.1.2) inside an RSA key's PKCS #8; `None` for other keys.
    #[must_use]
    pub fn expose_rsa_pkcs1(&self) -> Option<&[u8]> {
        let KeySpec::Rsa { .. } = self.spec else { return None };
        rsa::pkcs1_of(self.secret.expose())
    }

    /// Parses and checks the key once, for all later uses.
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] if the material does not fit its spec.
    pub fn load(self) -> Result<LoadedKey, CryptoError> {
        let loaded = match self.spec {
            KeySpec::Aes(_) => LoadedKey::Aes(Box::new(AesKey::new(self.secret)?)),
            KeySpec::Ec(curve) => LoadedKey::Ec(Box::new(EcKey::load(curve, &self.secret)?)),
            KeySpec::Ed25519 => LoadedKey::Ed25519(Box::new(Ed25519Key::load(&self.secret)?)),
            KeySpec::Hmac(hash) => LoadedKey::Hmac(Box::new(HmacKey::new(hash, &self.secret)?)),
            KeySpec::MlDsa(size) => LoadedKey::MlDsa(Box::new(MlDsaKey::load(size, &self.secret)?)),
            KeySpec::MlKem(size) => LoadedKey::MlKem(Box::new(MlKemKey::load(size, &self.secret)?)),
            KeySpec::Rsa { .. } => LoadedKey::Rsa(Box::new(RsaKey::load(&self.secret)?)),
        };
        if loaded.spec() != Some(self.spec) {
            return Err(CryptoError::InvalidKey("the material is not of the kind it claims"));
        }
        Ok(loaded)
    }
}

impl LoadedKey {
    fn spec(&self) -> Option<KeySpec> {
        match self {
            Self::Aes(key) => Some(KeySpec::Aes(key.size())),
            Self::Ec(key) => Some(KeySpec::Ec(key.public().curve)),
            Self::Ed25519(_) => Some(KeySpec::Ed25519),
            Self::Hmac(key) => Some(KeySpec::Hmac(key.hash())),
            Self::MlDsa(key) => Some(KeySpec::MlDsa(key.size())),
            Self::MlKem(key) => Some(KeySpec::MlKem(key.size())),
            Self::Rsa(key) => key.public().parameters().map(|(size, exponent)| KeySpec::Rsa { size, exponent }),
        }
    }

    /// The public part.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Aes(_) => PublicKey::Aes,
            Self::Ec(key) => PublicKey::Ec(key.public().clone()),
            Self::Ed25519(key) => PublicKey::Ed25519(*key.public()),
            Self::Hmac(_) => PublicKey::Hmac,
            Self::MlDsa(key) => PublicKey::MlDsa(key.size(), key.public().to_vec()),
            Self::MlKem(key) => PublicKey::MlKem(key.size(), key.public().to_vec()),
            Self::Rsa(key) => PublicKey::Rsa(key.public().clone()),
        }
    }
}

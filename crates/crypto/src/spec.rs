//! Which keys and algorithms exist. Sizes are in bits.

/// An RSA modulus size.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RsaSize {
    /// 2048 bits.
    Bits2048,
    /// 3072 bits.
    Bits3072,
    /// 4096 bits.
    Bits4096,
}

impl RsaSize {
    /// The size of `bits` bits, if it is one we make.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            2048 => Some(Self::Bits2048),
            3072 => Some(Self::Bits3072),
            4096 => Some(Self::Bits4096),
            _ => None,
        }
    }

    /// Modulus length in bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits2048 => 2048,
            Self::Bits3072 => 3072,
            Self::Bits4096 => 4096,
        }
    }

    /// Modulus length in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.bits() as usize / 8
    }
}

/// An elliptic curve (SEC 2, FIPS 186-5).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// secp256k1; "P-256K" in Key Vault.
    P256K,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl Curve {
    /// All curves.
    pub const ALL: [Self; 4] = [Self::P256, Self::P256K, Self::P384, Self::P521];

    /// Length of a field element and of a scalar in bytes.
    #[must_use]
    pub fn field_bytes(self) -> usize {
        match self {
            Self::P256 | Self::P256K => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The one hash that signs on this curve (RFC 7518, section 3.4; RFC 8812 for secp256k1).
    #[must_use]
    pub fn hash(self) -> HashAlgorithm {
        match self {
            Self::P256 | Self::P256K => HashAlgorithm::Sha256,
            Self::P384 => HashAlgorithm::Sha384,
            Self::P521 => HashAlgorithm::Sha512,
        }
    }
}

/// An AES key size.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum AesSize {
    /// 128 bits.
    Bits128,
    /// 192 bits.
    Bits192,
    /// 256 bits.
    Bits256,
}

impl AesSize {
    /// The size of `bits` bits.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            128 => Some(Self::Bits128),
            192 => Some(Self::Bits192),
            256 => Some(Self::Bits256),
            _ => None,
        }
    }

    /// Key length in bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits128 => 128,
            Self::Bits192 => 192,
            Self::Bits256 => 256,
        }
    }

    /// Key length in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.bits() as usize / 8
    }
}

/// The hash of an HMAC key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MacHash {
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl MacHash {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// Length of the hash, of a key and of a tag in bits.
    #[must_use]
    pub fn bits(self) -> u16 {
        match self {
            Self::Sha224 => 224,
            Self::Sha256 => 256,
            Self::Sha384 => 384,
            Self::Sha512 => 512,
        }
    }

    /// The same in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::from(self.bits() / 8)
    }
}

/// A parameter set of ML-DSA (FIPS 204, section 4).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MlDsaSize {
    /// ML-DSA-44.
    Dsa44,
    /// ML-DSA-65.
    Dsa65,
    /// ML-DSA-87.
    Dsa87,
}

impl MlDsaSize {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Dsa44, Self::Dsa65, Self::Dsa87];

    /// The number in its name.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Dsa44 => 44,
            Self::Dsa65 => 65,
            Self::Dsa87 => 87,
        }
    }

    /// Length of the public key in bytes (table 2).
    #[must_use]
    pub fn public_bytes(self) -> usize {
        match self {
            Self::Dsa44 => 1312,
            Self::Dsa65 => 1952,
            Self::Dsa87 => 2592,
        }
    }
}

/// A parameter set of ML-KEM (FIPS 203, section 8).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MlKemSize {
    /// ML-KEM-512.
    Kem512,
    /// ML-KEM-768.
    Kem768,
    /// ML-KEM-1024.
    Kem1024,
}

impl MlKemSize {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kem512, Self::Kem768, Self::Kem1024];

    /// The number in its name.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Kem512 => 512,
            Self::Kem768 => 768,
            Self::Kem1024 => 1024,
        }
    }

    /// The parameter k.
    #[must_use]
    pub fn rank(self) -> usize {
        usize::from(self.number() / 256)
    }

    /// Length of the encapsulation key in bytes (table 3).
    #[must_use]
    pub fn public_bytes(self) -> usize {
        384 * self.rank() + 32
    }

    /// Length of a ciphertext in bytes (table 3).
    #[must_use]
    pub fn ciphertext_bytes(self) -> usize {
        match self {
            Self::Kem512 => 768,
            Self::Kem768 => 1088,
            Self::Kem1024 => 1568,
        }
    }
}

/// What kind of key: its type and size.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeySpec {
    /// A symmetric AES key.
    Aes(AesSize),
    /// An elliptic-curve key pair.
    Ec(Curve),
    /// An Ed25519 key pair (RFC 8032).
    Ed25519,
    /// An HMAC key, as long as its hash.
    Hmac(MacHash),
    /// An ML-DSA key pair (FIPS 204).
    MlDsa(MlDsaSize),
    /// An ML-KEM key pair (FIPS 203).
    MlKem(MlKemSize),
    /// An RSA key pair.
    Rsa {
        /// Modulus size.
        size: RsaSize,
        /// Public exponent; odd, at least 3.
        exponent: u32,
    },
}

/// A SHA-2 hash.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// Output length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a hash is never empty")]
    pub fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn digest_algorithm(self) -> &'static aws_lc_rs::digest::Algorithm {
        match self {
            Self::Sha256 => &aws_lc_rs::digest::SHA256,
            Self::Sha384 => &aws_lc_rs::digest::SHA384,
            Self::Sha512 => &aws_lc_rs::digest::SHA512,
        }
    }

    /// Hashes `data`.
    #[must_use]
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        aws_lc_rs::digest::digest(self.digest_algorithm(), data).as_ref().to_vec()
    }
}

/// How a signature is made.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SignatureScheme {
    /// ECDSA with the curve's own hash; fixed-length `r||s` (RFC 7518, section 3.4).
    Ecdsa(Curve),
    /// Ed25519 over the message itself (RFC 8032, section 5.1).
    Ed25519,
    /// HMAC (RFC 2104) over the message itself, under an AES key.
    Hmac(HashAlgorithm),
    /// HMAC over the message itself, under an HMAC key.
    Mac(MacHash),
    /// ML-DSA over the message itself, with an empty context (FIPS 204, section 5.2).
    MlDsa(MlDsaSize),
    /// RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2).
    RsaPkcs1(HashAlgorithm),
    /// RSASSA-PSS, MGF1 with the same hash, salt as long as the hash (RFC 8017, section 8.1).
    RsaPss(HashAlgorithm),
}

/// How RSA encrypts (RFC 8017, section 7).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EncryptionPadding {
    /// RSAES-OAEP with SHA-1 and MGF1-SHA-1.
    OaepSha1,
    /// RSAES-OAEP with SHA-256 and MGF1-SHA-256.
    OaepSha256,
    /// RSAES-PKCS1-v1_5. Decryption uses implicit rejection: see [`crate::RsaKey::decrypt`].
    Pkcs1,
}

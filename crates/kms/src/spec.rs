//! Names of key specs, usages and algorithms, and what they are inside.

use holdfast_core::{KeyOperation, KeyOperations};
use holdfast_crypto::{
    AesSize, Curve, EncryptionPadding, HashAlgorithm, KeySpec, MacHash, MlDsaSize, MlKemSize, RsaSize, SignatureScheme,
};

/// What a key is for; fixed for its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyUsage {
    EncapsulateDecapsulate,
    EncryptDecrypt,
    GenerateVerifyMac,
    KeyAgreement,
    SignVerify,
}

impl KeyUsage {
    pub(crate) const ALL: [Self; 5] = [
        Self::SignVerify,
        Self::EncryptDecrypt,
        Self::GenerateVerifyMac,
        Self::KeyAgreement,
        Self::EncapsulateDecapsulate,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EncapsulateDecapsulate => "ENCAPSULATE_DECAPSULATE",
            Self::EncryptDecrypt => "ENCRYPT_DECRYPT",
            Self::GenerateVerifyMac => "GENERATE_VERIFY_MAC",
            Self::KeyAgreement => "KEY_AGREEMENT",
            Self::SignVerify => "SIGN_VERIFY",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|usage| usage.name() == name)
    }

    /// What the partition lets a key of this usage do.
    pub(crate) fn operations(self) -> KeyOperations {
        let operations: &[KeyOperation] = match self {
            Self::EncapsulateDecapsulate => &[KeyOperation::WrapKey, KeyOperation::UnwrapKey],
            Self::EncryptDecrypt => &[KeyOperation::Encrypt, KeyOperation::Decrypt],
            Self::GenerateVerifyMac | Self::SignVerify => &[KeyOperation::Sign, KeyOperation::Verify],
            Self::KeyAgreement => &[KeyOperation::Derive],
        };
        operations.iter().copied().collect()
    }
}

const F4: u32 = 65537;

const fn rsa(size: RsaSize) -> KeySpec {
    KeySpec::Rsa { size, exponent: F4 }
}

/// Every spec that is made here, by its name.
pub(crate) const SPECS: &[(&str, KeySpec)] = &[
    ("SYMMETRIC_DEFAULT", KeySpec::Aes(AesSize::Bits256)),
    ("RSA_2048", rsa(RsaSize::Bits2048)),
    ("RSA_3072", rsa(RsaSize::Bits3072)),
    ("RSA_4096", rsa(RsaSize::Bits4096)),
    ("ECC_NIST_P256", KeySpec::Ec(Curve::P256)),
    ("ECC_NIST_P384", KeySpec::Ec(Curve::P384)),
    ("ECC_NIST_P521", KeySpec::Ec(Curve::P521)),
    ("ECC_SECG_P256K1", KeySpec::Ec(Curve::P256K)),
    ("ECC_NIST_EDWARDS25519", KeySpec::Ed25519),
    ("HMAC_224", KeySpec::Hmac(MacHash::Sha224)),
    ("HMAC_256", KeySpec::Hmac(MacHash::Sha256)),
    ("HMAC_384", KeySpec::Hmac(MacHash::Sha384)),
    ("HMAC_512", KeySpec::Hmac(MacHash::Sha512)),
    ("ML_DSA_44", KeySpec::MlDsa(MlDsaSize::Dsa44)),
    ("ML_DSA_65", KeySpec::MlDsa(MlDsaSize::Dsa65)),
    ("ML_DSA_87", KeySpec::MlDsa(MlDsaSize::Dsa87)),
    ("ML_KEM_512", KeySpec::MlKem(MlKemSize::Kem512)),
    ("ML_KEM_768", KeySpec::MlKem(MlKemSize::Kem768)),
    ("ML_KEM_1024", KeySpec::MlKem(MlKemSize::Kem1024)),
];

pub(crate) const SYMMETRIC_DEFAULT: KeySpec = KeySpec::Aes(AesSize::Bits256);

pub(crate) fn parse_spec(name: &str) -> Option<KeySpec> {
    SPECS.iter().find(|(known, _)| *known == name).map(|(_, spec)| *spec)
}

pub(crate) fn spec_name(spec: KeySpec) -> &'static str {
    SPECS.iter().find(|(_, known)| *known == spec).map_or("UNKNOWN", |(name, _)| name)
}

/// Specs that `CustomerMasterKeySpec`, the old double of `KeySpec`, knows.
pub(crate) fn has_old_name(spec: KeySpec) -> bool {
    match spec {
        KeySpec::Aes(_) | KeySpec::Ec(_) | KeySpec::Hmac(_) | KeySpec::Rsa { .. } => true,
        KeySpec::Ed25519 | KeySpec::MlDsa(_) | KeySpec::MlKem(_) => false,
    }
}

/// What a key of this spec may be for.
pub(crate) fn usages(spec: KeySpec) -> &'static [KeyUsage] {
    match spec {
        KeySpec::Aes(_) => &[KeyUsage::EncryptDecrypt],
        KeySpec::Ec(Curve::P256K) | KeySpec::Ed25519 | KeySpec::MlDsa(_) => &[KeyUsage::SignVerify],
        KeySpec::Ec(_) => &[KeyUsage::SignVerify, KeyUsage::KeyAgreement],
        KeySpec::Hmac(_) => &[KeyUsage::GenerateVerifyMac],
        KeySpec::MlKem(_) => &[KeyUsage::EncapsulateDecapsulate],
        KeySpec::Rsa { .. } => &[KeyUsage::EncryptDecrypt, KeyUsage::SignVerify],
    }
}

/// The member of the metadata that lists algorithms, and what it lists.
pub(crate) fn algorithms(spec: KeySpec, usage: KeyUsage) -> (&'static str, &'static [&'static str]) {
    match usage {
        KeyUsage::EncapsulateDecapsulate => ("EncapsulationAlgorithms", &["ML_KEM"]),
        KeyUsage::EncryptDecrypt => match spec {
            KeySpec::Rsa { .. } => ("EncryptionAlgorithms", &["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]),
            _ => ("EncryptionAlgorithms", &["SYMMETRIC_DEFAULT"]),
        },
        KeyUsage::GenerateVerifyMac => {
            let names: &[&str] = match spec {
                KeySpec::Hmac(MacHash::Sha224) => &["HMAC_SHA_224"],
                KeySpec::Hmac(MacHash::Sha256) => &["HMAC_SHA_256"],
                KeySpec::Hmac(MacHash::Sha384) => &["HMAC_SHA_384"],
                _ => &["HMAC_SHA_512"],
            };
            ("MacAlgorithms", names)
        }
        KeyUsage::KeyAgreement => ("KeyAgreementAlgorithms", &["ECDH"]),
        KeyUsage::SignVerify => {
            let names: &[&str] = match spec {
                KeySpec::Rsa { .. } => &[
                    "RSASSA_PSS_SHA_256",
                    "RSASSA_PSS_SHA_384",
                    "RSASSA_PSS_SHA_512",
                    "RSASSA_PKCS1_V1_5_SHA_256",
                    "RSASSA_PKCS1_V1_5_SHA_384",
                    "RSASSA_PKCS1_V1_5_SHA_512",
                ],
                KeySpec::Ec(Curve::P384) => &["ECDSA_SHA_384"],
                KeySpec::Ec(Curve::P521) => &["ECDSA_SHA_512"],
                KeySpec::Ec(_) => &["ECDSA_SHA_256"],
                KeySpec::Ed25519 => &["ED25519_SHA_512"],
                _ => &["ML_DSA_SHAKE_256"],
            };
            ("SigningAlgorithms", names)
        }
    }
}

/// How a signing algorithm signs, and what hashes a raw message first.
pub(crate) fn signature_scheme(name: &str, spec: KeySpec) -> Option<(SignatureScheme, Option<HashAlgorithm>)> {
    use HashAlgorithm::{Sha256, Sha384, Sha512};
    let (scheme, hash) = match (name, spec) {
        ("RSASSA_PSS_SHA_256", KeySpec::Rsa { .. }) => (SignatureScheme::RsaPss(Sha256), Some(Sha256)),
        ("RSASSA_PSS_SHA_384", KeySpec::Rsa { .. }) => (SignatureScheme::RsaPss(Sha384), Some(Sha384)),
        ("RSASSA_PSS_SHA_512", KeySpec::Rsa { .. }) => (SignatureScheme::RsaPss(Sha512), Some(Sha512)),
        ("RSASSA_PKCS1_V1_5_SHA_256", KeySpec::Rsa { .. }) => (SignatureScheme::RsaPkcs1(Sha256), Some(Sha256)),
        ("RSASSA_PKCS1_V1_5_SHA_384", KeySpec::Rsa { .. }) => (SignatureScheme::RsaPkcs1(Sha384), Some(Sha384)),
        ("RSASSA_PKCS1_V1_5_SHA_512", KeySpec::Rsa { .. }) => (SignatureScheme::RsaPkcs1(Sha512), Some(Sha512)),
        ("ECDSA_SHA_256", KeySpec::Ec(curve @ (Curve::P256 | Curve::P256K)))
        | ("ECDSA_SHA_384", KeySpec::Ec(curve @ Curve::P384))
        | ("ECDSA_SHA_512", KeySpec::Ec(curve @ Curve::P521)) => (SignatureScheme::Ecdsa(curve), Some(curve.hash())),
        ("ED25519_SHA_512", KeySpec::Ed25519) => (SignatureScheme::Ed25519, None),
        ("ML_DSA_SHAKE_256", KeySpec::MlDsa(size)) => (SignatureScheme::MlDsa(size), None),
        _ => return None,
    };
    Some((scheme, hash))
}

/// Names of signing algorithms of the API, those that are not offered among them.
pub(crate) const SIGNING_ALGORITHMS: &[&str] = &[
    "RSASSA_PSS_SHA_256",
    "RSASSA_PSS_SHA_384",
    "RSASSA_PSS_SHA_512",
    "RSASSA_PKCS1_V1_5_SHA_256",
    "RSASSA_PKCS1_V1_5_SHA_384",
    "RSASSA_PKCS1_V1_5_SHA_512",
    "ECDSA_SHA_256",
    "ECDSA_SHA_384",
    "ECDSA_SHA_512",
    "SM2DSA",
    "ML_DSA_SHAKE_256",
    "ED25519_SHA_512",
    "ED25519_PH_SHA_512",
];

pub(crate) const ENCRYPTION_ALGORITHMS: &[&str] =
    &["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"];

pub(crate) const MAC_ALGORITHMS: &[&str] = &["HMAC_SHA_224", "HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512"];

pub(crate) fn rsa_padding(name: &str) -> Option<EncryptionPadding> {
    match name {
        "RSAES_OAEP_SHA_1" => Some(EncryptionPadding::OaepSha1),
        "RSAES_OAEP_SHA_256" => Some(EncryptionPadding::OaepSha256),
        _ => None,
    }
}

/// Longest message that RSA encrypts, in bytes (RFC 8017, section 7.1.1).
pub(crate) fn rsa_plaintext_max(size: RsaSize, padding: EncryptionPadding) -> usize {
    let hash = if padding == EncryptionPadding::OaepSha1 { 20 } else { 32 };
    size.bytes() - 2 * hash - 2
}

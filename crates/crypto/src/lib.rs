//! Cryptography for Holdfast, on aws-lc-rs.
//!
//! This is the only crate that names a cryptographic library. It is pure: no clock, no file, no environment, and no
//! entropy source of its own. Randomness that a format records (nonces, identifiers, symmetric keys) comes in as
//! bytes; the randomness *inside* an algorithm (RSA and EC key generation, OAEP seeds, PSS salts, ECDSA nonces) is drawn
//! by aws-lc-rs from its own DRBG and never leaves it.
//!
//! Keys are parsed and checked once, when they are loaded ([`KeyMaterial::load`]); a [`LoadedKey`] holds every
//! schedule and parsed form ready for use.

pub mod aead;
mod aes;
pub mod chunk;
pub mod der;
mod ec;
mod error;
pub mod kdf;
mod material;
pub mod md5;
mod modern;
mod rsa;
pub mod secret;
pub mod selftest;
mod signing;
mod spec;
pub mod transfer;

pub use aead::SealingKey;
pub use aes::{AesKey, CbcPadding, GcmCiphertext, WrapPadding};
pub use ec::{EcKey, EcPublicKey};
pub use error::CryptoError;
pub use material::{ImportedKey, KeyMaterial, LoadedKey, PublicKey};
pub use modern::{Ed25519Key, HmacKey, MlDsaKey, MlKemKey};
pub use rsa::{Rsa1_5Policy, RsaKey, RsaPrivateComponents, RsaPublicKey};
pub use secret::SecretBytes;
pub use signing::{PersonalKey, VerifyingKey};
pub use spec::{
    AesSize, Curve, EncryptionPadding, HashAlgorithm, KeySpec, MacHash, MlDsaSize, MlKemSize, RsaSize, SignatureScheme,
};

//! Keys, their versions and attributes.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use holdfast_crypto::KeySpec;

use crate::Timestamp;

/// The name of a key: 1 to 127 of `0-9 A-Z a-z -`. Kept as written, compared without regard to case.
#[derive(Clone, Debug)]
pub struct KeyName(Arc<str>);

/// Not a key name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key name has 1 to 127 letters, digits and hyphens")]
pub struct InvalidName;

impl KeyName {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 127;

    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        let fits = (1..=Self::BYTES_MAX).contains(&name.len());
        if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            Ok(Self(name.into()))
        } else {
            Err(InvalidName)
        }
    }

    /// As written when the key was made.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In lower case: the form that identifies.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    fn folded_bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.bytes().map(|b| b.to_ascii_lowercase())
    }
}

impl PartialEq for KeyName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for KeyName {}

impl Hash for KeyName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded_bytes().for_each(|byte| state.write_u8(byte));
    }
}

impl Ord for KeyName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded_bytes().cmp(other.folded_bytes())
    }
}

impl PartialOrd for KeyName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// From 32 hex digits of either case.
            #[must_use]
            pub fn parse(hex: &str) -> Option<Self> {
                let digits = hex.as_bytes();
                if digits.len() != 32 {
                    return None;
                }
                let mut bytes = [0; 16];
                for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
                    let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
                    *byte = (high? << 4 | low?) as u8;
                }
                Some(Self(bytes))
            }

            /// Its bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut hex = [0; 32];
                for (pair, byte) in hex.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
                    *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
                }
                f.write_str(std::str::from_utf8(&hex).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

hex_id! {
    /// One version of a key; 32 hex digits on the wire. Random, so unique in the world.
    KeyVersionId
}

hex_id! {
    /// A customer's isolated set of keys with its masking key.
    PartitionId
}

/// One thing a key may be used for.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u16)]
pub enum KeyOperation {
    /// Decrypt data.
    Decrypt = 1,
    /// Derive a key.
    Derive = 1 << 1,
    /// Encrypt data.
    Encrypt = 1 << 2,
    /// Leave the partition, by secure key release only.
    Export = 1 << 3,
    /// Unwrap keys sent for import.
    Import = 1 << 4,
    /// Sign.
    Sign = 1 << 5,
    /// Unwrap keys.
    UnwrapKey = 1 << 6,
    /// Verify.
    Verify = 1 << 7,
    /// Wrap keys.
    WrapKey = 1 << 8,
}

impl KeyOperation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Decrypt,
        Self::Derive,
        Self::Encrypt,
        Self::Export,
        Self::Import,
        Self::Sign,
        Self::UnwrapKey,
        Self::Verify,
        Self::WrapKey,
    ];
}

/// A set of [`KeyOperation`]s.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct KeyOperations(u16);

impl KeyOperations {
    /// The set with these bits, if all are known.
    #[must_use]
    pub fn from_bits(bits: u16) -> Option<Self> {
        let known = KeyOperation::ALL.iter().fold(0, |all, operation| all | *operation as u16);
        (bits & !known == 0).then_some(Self(bits))
    }

    /// The bits, as formats record them.
    #[must_use]
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Whether `operation` is in the set.
    #[must_use]
    pub fn contains(self, operation: KeyOperation) -> bool {
        self.0 & operation as u16 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members.
    pub fn iter(self) -> impl Iterator<Item = KeyOperation> {
        KeyOperation::ALL.into_iter().filter(move |operation| self.contains(*operation))
    }
}

impl FromIterator<KeyOperation> for KeyOperations {
    fn from_iter<I: IntoIterator<Item = KeyOperation>>(operations: I) -> Self {
        Self(operations.into_iter().fold(0, |bits, operation| bits | operation as u16))
    }
}

/// The attributes that decide how a key version may be used. The masked blob is bound to them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyAttributes {
    /// Type and size.
    pub spec: KeySpec,
    /// What it may be used for.
    pub operations: KeyOperations,
    /// Whether it may be used at all.
    pub enabled: bool,
    /// Whether it may leave the partition by secure key release.
    pub exportable: bool,
    /// It protects nothing new before this moment.
    pub not_before: Option<Timestamp>,
    /// It protects nothing new from this moment on.
    pub expires: Option<Timestamp>,
    /// SHA-256 of the release policy, if there is one.
    pub release_policy_sha256: Option<[u8; 32]>,
}

/// One version of one key, with its attributes: what a masked blob is bound to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyVersion {
    /// The key's name.
    pub name: KeyName,
    /// The version.
    pub id: KeyVersionId,
    /// Its attributes.
    pub attributes: KeyAttributes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(KeyName::parse("a-B9").is_ok());
        assert_eq!(KeyName::parse("Kek").unwrap(), KeyName::parse("kEK").unwrap());
        for bad in ["", "a_b", "a/b", "ä", &"a".repeat(128)] {
            assert!(KeyName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_round_trip() {
        let hex = "00112233445566778899aabbccddeeff";
        assert_eq!(KeyVersionId::parse(hex).unwrap().to_string(), hex);
        assert!(KeyVersionId::parse("0011").is_none());
        assert!(KeyVersionId::parse(&"g".repeat(32)).is_none());
    }
}

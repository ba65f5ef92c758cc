//! The encryption context: what a ciphertext is bound to.

use std::{collections::BTreeMap, fmt};

use holdfast_crypto::kdf;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

/// Longest canonical form, in bytes: what every external key store proxy takes as additional authenticated data.
pub(crate) const CONTEXT_BYTES_MAX: usize = 8192;

/// Names and values. Order does not matter; case does; an empty one is none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct EncryptionContext(pub(crate) BTreeMap<String, String>);

impl EncryptionContext {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One form for each context (`docs/formats/kms-ciphertext.md`): the number of pairs, then each pair, sorted by the bytes of its
    /// name, every text behind its length. An empty context is no bytes at all.
    pub(crate) fn canonical(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&(self.0.len() as u16).to_be_bytes());
        for (name, value) in &self.0 {
            for text in [name, value] {
                out.extend_from_slice(&(text.len() as u16).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }

    /// Whether its canonical form is one: no text and no number of pairs is too long for its length.
    pub(crate) fn fits(&self) -> bool {
        let bytes: usize = self.0.iter().map(|(name, value)| 4 + name.len() + value.len()).sum();
        bytes + 2 <= CONTEXT_BYTES_MAX
    }

    /// For the audit log, which must not repeat what may be personal.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        kdf::sha256(&[&self.canonical()])
    }
}

impl<'de> Deserialize<'de> for EncryptionContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = EncryptionContext;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    // Readers differ in which of two they take; so none is taken.
                    if pairs.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name is there twice"));
                    }
                }
                Ok(EncryptionContext(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext(pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect())
    }

    #[test]
    fn golden_form() {
        let bytes = context(&[("b", "2"), ("a", "")]).canonical();
        assert_eq!(bytes, b"\x00\x02\x00\x01a\x00\x00\x00\x01b\x00\x012");
        assert!(context(&[]).canonical().is_empty());
        assert_ne!(context(&[("a", "bc")]).canonical(), context(&[("ab", "c")]).canonical());
    }

    #[test]
    fn doubles_are_refused() {
        assert!(serde_json::from_str::<EncryptionContext>(r#"{"a":"1","b":"1"}"#).is_ok());
        assert!(serde_json::from_str::<EncryptionContext>(r#"{"a":"1","a":"1"}"#).is_err());
        assert!(serde_json::from_str::<EncryptionContext>(r#"{"a":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_two_contexts_have_one_form(a: BTreeMap<String, String>, b: BTreeMap<String, String>) {
            let (a, b) = (EncryptionContext(a), EncryptionContext(b));
            prop_assert_eq!(a == b, a.canonical() == b.canonical());
        }
    }
}

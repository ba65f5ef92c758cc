//! Ciphertext blobs of symmetric keys (`docs/formats/kms-ciphertext.md`).
//!
//! The header says which key and which of its materials; it is part of what the ciphertext is bound to, and so is the encryption
//! context, and the external key if there is one.

use holdfast_core::KeyVersionId;
use holdfast_crypto::aead::SEAL_OVERHEAD_BYTES;

use crate::{context::EncryptionContext, names::KeyId};

const MAGIC: &[u8; 3] = b"HFC";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 38;
/// Longest blob (the API's limit).
pub(crate) const BLOB_BYTES_MAX: usize = 6144;

/// Where the outermost layer was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layers {
    /// One: the key's own material.
    Hosted,
    /// Two: the key's own material, then an external key store.
    Reference,
}

/// A blob taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Blob<'a> {
    pub layers: Layers,
    pub key: KeyId,
    pub material: KeyVersionId,
    /// What the outermost layer gave.
    pub content: &'a [u8],
}

/// It is not a blob of a version that this reader knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Unreadable;

impl<'a> Blob<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let (header, content) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Unreadable)?;
        let known = header[..3] == *MAGIC && header[3] == VERSION;
        if !known || bytes.len() > BLOB_BYTES_MAX || content.len() < SEAL_OVERHEAD_BYTES {
            return Err(Unreadable);
        }
        let layers = match header[4] {
            0 => Layers::Hosted,
            1 => Layers::Reference,
            _ => return Err(Unreadable),
        };
        let multi_region = match header[5] {
            0 => false,
            1 => true,
            _ => return Err(Unreadable),
        };
        let array = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).map_err(|_| Unreadable);
        let key = KeyId::from_parts(array(6)?, multi_region);
        Ok(Self { layers, key, material: KeyVersionId::from_bytes(array(22)?), content })
    }
}

/// The header.
pub(crate) fn header(layers: Layers, key: KeyId, material: KeyVersionId) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(MAGIC);
    out.push(VERSION);
    out.push(match layers {
        Layers::Hosted => 0,
        Layers::Reference => 1,
    });
    out.push(u8::from(key.is_multi_region()));
    out.extend_from_slice(key.bytes());
    out.extend_from_slice(material.as_bytes());
    out
}

/// What the layer made by the key's own material is bound to. `external`: store and external key of a reference key.
pub(crate) fn binding(header: &[u8], external: Option<(&str, &str)>, context: &EncryptionContext) -> Vec<u8> {
    let mut out = b"holdfast kms v1".to_vec();
    out.extend_from_slice(header);
    for text in external.into_iter().flat_map(|(store, key)| [store, key]) {
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&context.canonical());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (KeyId, KeyVersionId) {
        (KeyId::parse("1234abcd-12ab-34cd-56ef-1234567890ab").unwrap(), KeyVersionId::from_bytes([7; 16]))
    }

    #[test]
    fn golden_header() {
        let (key, material) = parts();
        let header = header(Layers::Reference, key, material);
        let hex: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "48464301010 01234abcd12ab34cd56ef1234567890ab07070707070707070707070707070707".replace(' ', "")
        );
        let bytes = [header.as_slice(), &[9; SEAL_OVERHEAD_BYTES]].concat();
        let blob = Blob::read(&bytes).unwrap();
        assert_eq!((blob.layers, blob.key, blob.material), (Layers::Reference, key, material));
        assert_eq!(blob.content, [9; SEAL_OVERHEAD_BYTES]);
    }

    #[test]
    fn other_blobs_are_refused() {
        let (key, material) = parts();
        let good = [header(Layers::Hosted, key, material), vec![0; SEAL_OVERHEAD_BYTES]].concat();
        assert!(Blob::read(&good).is_ok());
        assert!(Blob::read(&good[..good.len() - 1]).is_err());
        for (at, value) in [(0, b'h'), (3, 2), (4, 2), (5, 2)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Blob::read(&bad).is_err(), "byte {at}");
        }
        assert!(Blob::read(&[good, vec![0; BLOB_BYTES_MAX]].concat()).is_err());
    }

    #[test]
    fn bindings_differ() {
        let context = |name: &str| EncryptionContext([(name.to_owned(), String::new())].into());
        let all = [
            binding(b"h", None, &context("a")),
            binding(b"h", None, &EncryptionContext::default()),
            binding(b"h", Some(("s", "k")), &EncryptionContext::default()),
            binding(b"h", Some(("sk", "")), &EncryptionContext::default()),
            binding(b"g", None, &context("a")),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| other != one));
        }
    }
}

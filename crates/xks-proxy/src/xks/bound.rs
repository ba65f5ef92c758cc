//! What a ciphertext is bound to: the additional authenticated data that the HSM sees, and the metadata that travels with it.

use holdfast_crypto::kdf;

use crate::policy::AadForm;

/// First byte of our ciphertext metadata: its format. It tells this rule from a later one.
const METADATA_FORMAT: u8 = 1;

/// Our ciphertext metadata: format, then the version of the key (4 bytes).
pub(super) fn metadata(key_version: u32) -> Vec<u8> {
    [&[METADATA_FORMAT], key_version.to_be_bytes().as_slice()].concat()
}

/// The version that our metadata names; `None` if it is not ours.
pub(super) fn key_version(metadata: &[u8]) -> Option<u32> {
    let rest = metadata.strip_prefix(&[METADATA_FORMAT])?;
    rest.try_into().ok().map(u32::from_be_bytes)
}

/// `u16(len A) || A || u8(len M) || M` (XKS proxy API 1.0.3). In the form of AWS's sample proxy SHA-256(A) stands in A's place,
/// with A's own length before it, and nothing if A is absent. `aad` has at most 65,535 bytes, `metadata` at most 20.
pub(super) fn full_aad(form: AadForm, aad: Option<&[u8]>, metadata: &[u8]) -> Vec<u8> {
    let plain = aad.unwrap_or_default();
    let digest;
    let shown = match form {
        AadForm::Specification => plain,
        AadForm::Sha256 if aad.is_none() => &[],
        AadForm::Sha256 => {
            digest = kdf::sha256(&[plain]);
            &digest
        }
    };
    let mut out = Vec::with_capacity(3 + shown.len() + metadata.len());
    out.extend_from_slice(&(plain.len() as u16).to_be_bytes());
    out.extend_from_slice(shown);
    out.push(metadata.len() as u8);
    out.extend_from_slice(metadata);
    out
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use holdfast_crypto::{AesKey, SecretBytes};

    use super::*;

    /// Vectors under a known key, reckoned apart from this program.
    #[test]
    fn vectors() {
        let key = AesKey::new(SecretBytes::copy_of(&(0..32).collect::<Vec<u8>>())).unwrap();
        let iv: [u8; 12] = std::array::from_fn(|at| 0xa0 + at as u8);
        let (aad, metadata): (&[u8], &[u8]) = (b"team=blue,env=prod", &[1, 0, 2]);
        let full = full_aad(AadForm::Specification, Some(aad), metadata);
        assert_eq!(full, [&[0, 0x12], aad, &[3, 1, 0, 2]].concat());
        let out = key.gcm_encrypt(iv, &full, b"Hello World!").unwrap();
        assert_eq!(STANDARD.encode(&out.ciphertext), "rn0QQSrrVdAQCePy");
        assert_eq!(STANDARD.encode(out.tag), "y8Gr5DjqJBN8+er8x4CwBg==");
        let cdiv = kdf::sha256(&[aad, metadata, &iv, &out.ciphertext, &out.tag]);
        assert_eq!(STANDARD.encode(cdiv), "eRS5bOl7wa5Q8M2UJr7OOlOkooI+AG4DFbSW3leyKGY=");

        assert_eq!(full_aad(AadForm::Specification, None, &[]), [0, 0, 0]);
        assert_eq!(full_aad(AadForm::Specification, Some(&[]), &[]), [0, 0, 0]);
        let out = key.gcm_encrypt(iv, &[0, 0, 0], b"Hello World!").unwrap();
        assert_eq!(STANDARD.encode(out.tag), "poy+Gi04m2JKwC7JnEnnBg==");
        let cdiv = kdf::sha256(&[&iv, &out.ciphertext, &out.tag]);
        assert_eq!(STANDARD.encode(cdiv), "a88KLHeQgc5qFUz6OTan5Zt+WBQ2XFW2yr5JwjNfSHA=");

        let hashed = full_aad(AadForm::Sha256, Some(aad), metadata);
        let out = key.gcm_encrypt(iv, &hashed, b"Hello World!").unwrap();
        assert_eq!(STANDARD.encode(out.tag), "CZX7Agr/ILxfyVZZ6qPdTw==");
        assert_eq!(full_aad(AadForm::Sha256, None, &[]), [0, 0, 0], "absent and empty differ in this form");
        assert_eq!(full_aad(AadForm::Sha256, Some(&[]), &[]).len(), 35);

        let iv16: [u8; 16] = std::array::from_fn(|at| 0xa0 + at as u8);
        let (ciphertext, tag) = (STANDARD.decode("YsZP0Hftmhmx8nuQ"), STANDARD.decode("W3lVVqB61IMWae/HBkvJNg=="));
        let plaintext = key.gcm_decrypt_iv16(&iv16, &full, &ciphertext.unwrap(), &tag.unwrap()).unwrap();
        assert!(plaintext.ct_eq(b"Hello World!"));
    }

    /// The example of AWS's specification.
    #[test]
    fn integrity_value_of_the_specification() {
        let (aad, metadata) = (b"project=nile,department=marketing", b"key_version=1");
        let tag = STANDARD.decode("vBxN2ncH1oEkR8WVXpmyYQ==").unwrap();
        let (iv, ciphertext) =
            (STANDARD.decode("HMrlRw85cAJUd5Ax").unwrap(), STANDARD.decode("ghxkK1txeDNn3q8Y").unwrap());
        let cdiv = kdf::sha256(&[aad, metadata, &iv, &ciphertext, &tag]);
        assert_eq!(STANDARD.encode(cdiv), "qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc=");
    }

    #[test]
    fn metadata_is_ours_or_not() {
        assert_eq!(metadata(7), [1, 0, 0, 0, 7]);
        assert_eq!(key_version(&metadata(u32::MAX)), Some(u32::MAX));
        for foreign in [&[][..], &[1], &[2, 0, 0, 0, 7], &[1, 0, 0, 0, 7, 0]] {
            assert_eq!(key_version(foreign), None);
        }
    }
}

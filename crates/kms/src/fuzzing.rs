//! Entry points for fuzz targets: readers of bytes from outside.

use crate::{
    blob::Blob,
    context::EncryptionContext,
    policy::{PolicyDocument, PolicyKind},
};

/// A ciphertext blob.
pub fn blob(bytes: &[u8]) {
    if let Ok(blob) = Blob::read(bytes) {
        let header = crate::blob::header(blob.layers, blob.key, blob.material);
        assert_eq!([header.as_slice(), blob.content].concat(), bytes);
    }
}

/// A policy document; one that is read must be read again from its own text.
pub fn policy(text: &str) {
    for kind in [PolicyKind::Identity, PolicyKind::Key] {
        if let Ok(policy) = PolicyDocument::parse(kind, text) {
            assert!(PolicyDocument::parse(kind, policy.text()).is_ok());
        }
    }
}

/// An encryption context; its canonical form ends where it says.
pub fn context(json: &[u8]) {
    if let Ok(context) = serde_json::from_slice::<EncryptionContext>(json)
        && context.fits()
    {
        assert!(context.canonical().len() <= crate::context::CONTEXT_BYTES_MAX);
    }
}

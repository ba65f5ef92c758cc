//! Entry points for fuzz targets: readers of bytes from outside.

use crate::{
    Kms,
    basis::{Asker, Basis},
    blob::Blob,
    call::{Call, Told},
    context::EncryptionContext,
    operation::Operation,
    ops,
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

/// Id of some key.
pub fn a_key(kms: &Kms) -> String {
    kms.keys.find(|_| true).first().map(|key| key.id.to_string()).unwrap_or_default()
}

/// The same as [`request`], by name.
pub async fn named_request(kms: &Kms, operation: &str, body: &[u8]) {
    if let Some(at) = Operation::ALL.iter().position(|known| known.name() == operation) {
        request(kms, at as u8, body).await;
    }
}

/// A request that was authenticated, whatever its body holds. No answer may be a fault of the service's own.
pub async fn request(kms: &Kms, operation: u8, body: &[u8]) {
    let operation = Operation::ALL[usize::from(operation) % Operation::ALL.len()];
    let Some((identity, region)) = kms.directory.anybody().zip(kms.regions.first()) else { return };
    let (parts, ()) = http::Request::new(()).into_parts();
    let body = bytes::Bytes::copy_from_slice(body);
    let mut told = Told::default();
    let trace = holdfast_service::Trace::automatic("fuzz".into(), operation.name(), "/");
    let now = kms.ambient.now();
    let asker = Asker { identity: &identity, region, source: None, source_arn: None, now };
    let mut call = Call {
        kms,
        operation,
        parts: &parts,
        body: &body,
        identity: &identity,
        region,
        source: None,
        source_arn: None,
        request_id: trace.request_id(),
        trace: &trace,
        now,
        told: &mut told,
        basis: Basis::new(kms, asker),
    };
    if let Err(error) = ops::dispatch(&mut call).await {
        assert!(!error.status().is_server_error(), "{operation:?}: {error:?}");
    }
}

#![allow(dead_code, clippy::unwrap_used, reason = "each test takes what it needs, and fails by panicking")]
//! What tests of this crate share.

use std::sync::OnceLock;

use holdfast_core::{Ambient, AuditEvent, Timestamp};
use holdfast_crypto::{Curve, KeyMaterial, KeySpec, SecretBytes};
use holdfast_store::audit::AuditKeys;

/// Same time, same bytes.
pub(crate) struct Fixed;
impl Ambient for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(1_800_000_000_123)
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill(1);
    }
}

/// An event of a success that says little more than its request's id.
pub(crate) fn event(operation: &'static str, request_id: &str) -> AuditEvent {
    AuditEvent { path: "/".into(), ..AuditEvent::allowed(Fixed.now(), operation, request_id) }
}

/// The same keys for all logs of a test.
pub(crate) fn keys() -> AuditKeys {
    AuditKeys::new(material()).unwrap()
}

/// Those of one log of several.
pub(crate) fn keys_of(name: &str) -> AuditKeys {
    AuditKeys::of_log(material(), name).unwrap()
}

fn material() -> &'static SecretBytes {
    static MATERIAL: OnceLock<SecretBytes> = OnceLock::new();
    MATERIAL.get_or_init(|| {
        let material = KeyMaterial::generate(KeySpec::Ec(Curve::P384), |_| ()).unwrap();
        SecretBytes::copy_of(material.expose_canonical())
    })
}

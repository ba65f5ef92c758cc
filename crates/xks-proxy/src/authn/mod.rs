//! Who asks: a provider's key service by SigV4 or by client certificate, and the caller behind it by proof.

mod certificate;
mod proof;
mod proved;

use std::sync::Arc;

pub use certificate::ClientCertificate;
pub(crate) use certificate::authenticate_certificate;
use holdfast_core::{Principal, PrincipalKind, Timestamp};
use holdfast_crypto::SecretBytes;
use holdfast_wire::sigv4::{self, Scope, SigningSecret};
use http::request::Parts;
pub(crate) use proof::CallerProofStatement;
pub use proof::{EnrolledCaller, ProofReplays};
use proof::{ProofClaims, verify_proof};
pub(crate) use proved::Proved;

/// A credential by which a key service signs its requests to one store.
pub struct Credential {
    /// Name of the store.
    pub store: String,
    /// Not secret.
    pub access_key_id: String,
    /// When it was added.
    pub created: Timestamp,
    secret: Arc<SigningSecret>,
}

impl Credential {
    pub(crate) fn new(store: &str, access_key_id: &str, created: Timestamp, secret: SecretBytes) -> Self {
        let secret = Arc::new(SigningSecret::new(secret));
        Self { store: store.to_owned(), access_key_id: access_key_id.to_owned(), created, secret }
    }

    pub(crate) fn is_the_same_as(&self, other: &Self) -> bool {
        self.store == other.store
            && self.access_key_id == other.access_key_id
            && self.created == other.created
            && self.secret.is_the_same_as(&other.secret)
    }
}

/// Access key ids: 20 to 30 of `A-Z 2-7` (XKS proxy API 1.0.3).
#[must_use]
pub fn is_access_key_id(text: &str) -> bool {
    (20..=30).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
}

/// Secrets: 43 to 64 of `A-Z a-z 0-9 + / =`.
#[must_use]
pub fn is_secret_access_key(secret: &SecretBytes) -> bool {
    (43..=64).contains(&secret.len())
        && secret.expose().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

/// Why nobody was recognized. For the audit log; the caller is told no more than that.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Rejection(pub(crate) &'static str);

impl From<sigv4::Rejection> for Rejection {
    fn from(rejection: sigv4::Rejection) -> Self {
        match rejection {
            sigv4::Rejection::Date(why) | sigv4::Rejection::Incomplete(why) | sigv4::Rejection::Scope(why) => Self(why),
            sigv4::Rejection::Expired { .. } | sigv4::Rejection::NotYetCurrent { .. } => {
                Self("the X-Amz-Date header is more than five minutes off")
            }
            sigv4::Rejection::Mismatch => Self("the signature does not match"),
            sigv4::Rejection::Missing => Self("it is not signed"),
            sigv4::Rejection::UnknownKey => Self("the access key id is unknown in this store"),
        }
    }
}

/// Verifies a request to a store of `region`, with one of the store's `credentials`.
///
/// # Errors
/// [`Rejection`].
pub(crate) fn authenticate_sigv4(
    parts: &Parts,
    body: &[u8],
    region: &str,
    credentials: &[Arc<Credential>],
    now: Timestamp,
) -> Result<Principal, Rejection> {
    let mut found = None;
    let find = |id: &str| {
        found = credentials.iter().find(|credential| credential.access_key_id == id);
        found.map(|credential| Arc::clone(&credential.secret))
    };
    let scope = Scope { region, service: "kms-xks-proxy" };
    sigv4::verify(parts, body, scope, find, now)?;
    // A signature was verified, so there is a credential.
    found
        .map(|credential| key_service(&credential.store, &credential.access_key_id))
        .ok_or(Rejection("it is not signed"))
}

/// A key service that has proved itself for a store.
fn key_service(store: &str, name: &str) -> Principal {
    Principal::verified_exactly(PrincipalKind::Service, store, name)
}

/// Somebody whom the configuration names as a reader of the audit log.
pub(crate) fn audit_reader(name: &str) -> Principal {
    Principal::verified_exactly(PrincipalKind::Service, "audit", name)
}

/// A person whose signature holds, or whom the operating system vouches for.
pub(crate) fn person(authority: &'static str, name: &str) -> Principal {
    Principal::verified_exactly(PrincipalKind::User, authority, name)
}

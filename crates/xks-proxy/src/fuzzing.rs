//! Doors for the fuzz targets: everything here reads bytes from outside.

use holdfast_core::Timestamp;
use http::request::Parts;

use crate::{authn, ekm, policy::Policy, quorum::Proposal, xks};

/// Paths and bodies of both dialects.
pub fn request(path: &str, body: &[u8]) {
    let _ = (xks::route(path), ekm::route(path));
    let _ = xks::parse::<xks::EncryptRequest<'_>>(body).is_ok();
    let _ = xks::parse::<xks::DecryptRequest<'_>>(body).is_ok();
    let _ = (xks::claims_of(body), ekm::context_of(body));
}

/// A signed request.
pub fn signature(parts: &Parts, body: &[u8]) {
    let _ = authn::authenticate_sigv4(parts, body, "us-east-1", &[], Timestamp::from_unix_secs(1_440_938_160)).is_ok();
}

/// A policy, and the request of a quorum.
pub fn documents(text: &str) {
    let _ = Policy::parse(text).is_ok();
    let _ = Proposal::new(text.to_owned(), "", Timestamp::default()).is_ok();
}

//! Markers: where the next page of a listing begins. A marker says after what it goes on, not at which item, so that it survives
//! whatever happens to the items. It is good for the listing that gave it and for no other.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_crypto::kdf;

use crate::{call::Call, code::Code, error::ApiError, wire::Violations};

const MAGIC: &[u8; 4] = b"HFM\x01";
const CHECK_BYTES: usize = 16;
/// Longest marker of the API, in characters.
const MARKER_CHARS_MAX: usize = 1024;

/// A listing: operation, account, region, and what of the request chooses the items.
pub(super) struct Listing(Vec<u8>);

impl Listing {
    /// `chosen`: the members that choose what is listed, in an order of the operation's own; not the size of pages.
    pub(super) fn of(call: &Call<'_>, chosen: &[&str]) -> Self {
        let mut scope = Vec::new();
        for part in [call.operation.name(), &**call.account(), &**call.region].iter().chain(chosen) {
            scope.extend_from_slice(&(part.len() as u64).to_be_bytes());
            scope.extend_from_slice(part.as_bytes());
        }
        Self(scope)
    }

    /// What tells markers of this listing from others. It keeps nobody from making one: a marker gives nobody anything.
    fn check(&self, position: &[u8]) -> [u8; CHECK_BYTES] {
        let digest = kdf::sha256(&[&self.0, position]);
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&digest[..CHECK_BYTES]);
        check
    }

    /// The marker of the page after `position`.
    pub(super) fn next(&self, position: &[u8]) -> String {
        STANDARD.encode([MAGIC.as_slice(), &self.check(position), position].concat())
    }

    /// After what the page begins that a request asks for.
    pub(super) fn after(&self, marker: Option<&str>) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(marker) = marker else { return Ok(None) };
        let mut violations = Violations::default();
        violations.length(marker, "marker", 1, MARKER_CHARS_MAX);
        violations.finish()?;
        let bytes = STANDARD.decode(marker).unwrap_or_default();
        let rest = bytes.strip_prefix(MAGIC).and_then(<[u8]>::split_first_chunk::<CHECK_BYTES>);
        match rest {
            Some((check, position)) if *check == self.check(position) => Ok(Some(position.to_vec())),
            _ => Err(bad_marker()),
        }
    }

    /// The same where the position is a text.
    pub(super) fn after_text(&self, marker: Option<&str>) -> Result<Option<String>, ApiError> {
        let position = self.after(marker)?;
        position.map(|bytes| String::from_utf8(bytes).map_err(|_| bad_marker())).transpose()
    }
}

pub(super) fn bad_marker() -> ApiError {
    ApiError::new(Code::InvalidMarker, "The marker is not one that this listing gave")
}

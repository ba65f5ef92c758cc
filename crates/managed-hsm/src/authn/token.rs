//! Reading and verifying one JWT (RFC 7519, RFC 8725).
//!
//! The signature is the library's work. Which key, which algorithm and which claims count is decided here: the key's own
//! algorithm and no other; `jku`, `x5u`, `x5c` and `jwk` in the header are never looked at; times must be integers.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_core::{Principal, PrincipalKind, Timestamp};
use jsonwebtoken::Validation;
use serde::Deserialize;

use super::{Rejection, bad, issuer::IssuerKey};

/// Clock difference between issuer and us that is forgiven.
const CLOCK_SKEW_SECS: i64 = 300;
/// Groups of one token that are looked at; Entra sends at most 200.
const GROUPS_MAX: usize = 1000;

/// What must be known to find the key. Not to be believed before the signature is checked.
pub(super) struct Unverified {
    pub key_id: String,
    pub issuer: String,
}

/// Claims of a token whose signature holds.
pub(super) struct Claims {
    pub issuer: String,
    pub audiences: Vec<String>,
    pub tenant: Option<String>,
    pub not_before: Timestamp,
    pub expires: Timestamp,
    object_id: Option<String>,
    application_id: Option<String>,
    name: Option<String>,
    groups: Vec<String>,
    is_user: bool,
}

#[derive(Deserialize)]
struct Header {
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct RawClaims {
    iss: String,
    aud: Option<OneOrMany>,
    exp: Option<i64>,
    nbf: Option<i64>,
    tid: Option<String>,
    oid: Option<String>,
    appid: Option<String>,
    azp: Option<String>,
    idtyp: Option<String>,
    scp: Option<String>,
    upn: Option<String>,
    unique_name: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
}

fn segment(token: &str, index: usize) -> Result<&str, Rejection> {
    let mut parts = token.split('.');
    let part = parts.clone().nth(index);
    if parts.by_ref().count() != 3 {
        return Err(bad("the token does not have three parts"));
    }
    part.ok_or_else(|| bad("the token does not have three parts"))
}

fn decode<T: for<'a> Deserialize<'a>>(part: &str, what: &str) -> Result<T, Rejection> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| bad(format!("the token's {what} is not base64url")))?;
    // Struct members that come twice are an error; so are numbers of other types.
    serde_json::from_slice(&json).map_err(|_| bad(format!("the token's {what} is malformed")))
}

pub(super) fn read_unverified(token: &str) -> Result<Unverified, Rejection> {
    let header: Header = decode(segment(token, 0)?, "header")?;
    if header.crit.is_some() {
        return Err(bad("the token has critical header parameters"));
    }
    let claims: RawClaims = decode(segment(token, 1)?, "payload")?;
    let key_id = header.kid.ok_or_else(|| bad("the token names no key"))?;
    Ok(Unverified { key_id, issuer: claims.iss })
}

/// Checks the signature with the key's own algorithm, then reads the claims.
pub(super) fn verify(token: &str, key: &IssuerKey) -> Result<Claims, Rejection> {
    let mut validation = Validation::new(key.algorithm);
    // Claims are checked by our own, stricter rules.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let verified = jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &key.key, &validation);
    verified.map_err(|_| bad("the token's signature does not hold"))?;
    let raw: RawClaims = decode(segment(token, 1)?, "payload")?;
    let expires = raw.exp.ok_or_else(|| bad("the token never expires"))?;
    if raw.groups.len() > GROUPS_MAX {
        return Err(bad("the token names too many groups"));
    }
    Ok(Claims {
        issuer: raw.iss,
        audiences: match raw.aud {
            Some(OneOrMany::One(audience)) => vec![audience],
            Some(OneOrMany::Many(audiences)) => audiences,
            None => Vec::new(),
        },
        tenant: raw.tid,
        not_before: Timestamp::from_unix_secs(raw.nbf.unwrap_or(0)),
        expires: Timestamp::from_unix_secs(expires),
        object_id: raw.oid,
        application_id: raw.appid.or(raw.azp),
        // Delegated tokens carry scopes; application tokens say so (`idtyp`).
        is_user: raw.idtyp.as_deref() == Some("user") || (raw.idtyp.is_none() && raw.scp.is_some()),
        name: raw.upn.or(raw.unique_name),
        groups: raw.groups,
    })
}

pub(super) fn check_times(not_before: Timestamp, expires: Timestamp, now: Timestamp) -> Result<(), Rejection> {
    if now.unix_secs() >= expires.unix_secs().saturating_add(CLOCK_SKEW_SECS) {
        return Err(bad("the token has expired"));
    }
    if now.unix_secs() < not_before.unix_secs().saturating_sub(CLOCK_SKEW_SECS) {
        return Err(bad("the token is not valid yet"));
    }
    Ok(())
}

impl Claims {
    pub(super) fn principal(&self, tenant: &str) -> Result<Principal, Rejection> {
        let object_id = self.object_id.as_deref().filter(|oid| !oid.is_empty());
        let object_id = object_id.ok_or_else(|| bad("the token names no object id"))?;
        let kind = if self.is_user { PrincipalKind::User } else { PrincipalKind::Service };
        let (application, name) = (self.application_id.as_deref(), self.name.as_deref());
        Ok(Principal::verified(kind, tenant, object_id, application, name, &self.groups))
    }
}

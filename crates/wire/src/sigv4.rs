//! AWS Signature Version 4: verifying it over the bytes as they came, and signing.
//!
//! The signature covers method, path, the headers that it names and the body, but no nonce: within the five minutes that a
//! date may be off, a request can be sent again (`SECURITY.md`).

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use holdfast_core::Timestamp;
use holdfast_crypto::{HashAlgorithm, SecretBytes, kdf, kdf::MacKey, secret::ct_eq};
use http::{HeaderMap, HeaderValue, header, request::Parts};

use crate::hex::{hex, unhex};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const SKEW_MINUTES_MAX: i64 = 5;
/// More headers than any client signs.
const SIGNED_HEADERS_MAX: usize = 32;

/// Why a request is not taken for one of its caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// Its date is none, or not of its credential's day.
    #[error("{0}")]
    Date(&'static str),
    /// Its date is too long ago. The words are those by which AWS's clients tell that their clock is slow.
    #[error(
        "Signature expired: {} is now earlier than {} ({} - {SKEW_MINUTES_MAX} min.)",
        format_date(*.signed), format_date(minutes(*.now, -SKEW_MINUTES_MAX)), format_date(*.now)
    )]
    Expired {
        /// When it was signed.
        signed: Timestamp,
        /// When it came.
        now: Timestamp,
    },
    /// What the signature rests on is malformed or missing.
    #[error("{0}")]
    Incomplete(&'static str),
    /// The signature is another.
    #[error("the signature does not match")]
    Mismatch,
    /// There is no signature.
    #[error("it is not signed")]
    Missing,
    /// Its date is yet to come. The words are those by which AWS's clients tell that their clock is fast.
    #[error(
        "Signature not yet current: {} is still later than {} ({} + {SKEW_MINUTES_MAX} min.)",
        format_date(*.signed), format_date(minutes(*.now, SKEW_MINUTES_MAX)), format_date(*.now)
    )]
    NotYetCurrent {
        /// When it was signed.
        signed: Timestamp,
        /// When it came.
        now: Timestamp,
    },
    /// It is signed for something else.
    #[error("{0}")]
    Scope(&'static str),
    /// Nobody has this access key id.
    #[error("the access key id is unknown")]
    UnknownKey,
}

/// An `Authorization` header, taken apart.
pub struct Authorization<'a> {
    /// Whose.
    pub access_key_id: &'a str,
    /// Its day, `YYYYMMDD`.
    pub day: &'a str,
    /// Its region.
    pub region: &'a str,
    /// Its service.
    pub service: &'a str,
    /// Names of the signed headers, in lower case, in their order.
    pub signed_headers: Vec<&'a str>,
    /// The signature.
    pub signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    /// Takes it apart.
    ///
    /// # Errors
    /// [`Rejection`].
    pub fn parse(value: &'a str) -> Result<Self, Rejection> {
        const MALFORMED: Rejection = Rejection::Incomplete("the Authorization header is malformed");
        let rest =
            value.strip_prefix(ALGORITHM).ok_or(Rejection::Incomplete("it is not signed by AWS4-HMAC-SHA256"))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or(MALFORMED)?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(MALFORMED),
            };
            if slot.replace(value).is_some() {
                return Err(MALFORMED);
            }
        }
        let (credential, signed) = (credential.ok_or(MALFORMED)?, signed_headers.ok_or(MALFORMED)?);
        let mut scope = credential.split('/');
        let mut next = || scope.next().filter(|part| !part.is_empty()).ok_or(MALFORMED);
        let (access_key_id, day, region, service, terminator) = (next()?, next()?, next()?, next()?, next()?);
        if terminator != "aws4_request" || scope.next().is_some() {
            return Err(MALFORMED);
        }
        let signed_headers: Vec<&str> = signed.split(';').collect();
        if signed_headers.len() > SIGNED_HEADERS_MAX {
            return Err(MALFORMED);
        }
        let signature = signature.and_then(unhex).and_then(|bytes| bytes.try_into().ok()).ok_or(MALFORMED)?;
        Ok(Self { access_key_id, day, region, service, signed_headers, signature })
    }

    /// `host` and `x-amz-date` must be under the signature.
    ///
    /// # Errors
    /// [`Rejection`].
    pub fn covers_enough(&self) -> Result<(), Rejection> {
        if ["host", "x-amz-date"].iter().all(|needed| self.signed_headers.contains(needed)) {
            return Ok(());
        }
        Err(Rejection::Incomplete("host and x-amz-date must be among the signed headers"))
    }

    /// The date must be of the credential's day, and now.
    ///
    /// # Errors
    /// [`Rejection`].
    pub fn check_date(&self, date: &str, now: Timestamp) -> Result<(), Rejection> {
        let moment = parse_date(date).ok_or(Rejection::Date("the X-Amz-Date header is malformed"))?;
        if !date.starts_with(self.day) || self.day.len() != 8 {
            return Err(Rejection::Date("the X-Amz-Date header is not of the credential's day"));
        }
        if moment < minutes(now, -SKEW_MINUTES_MAX) {
            return Err(Rejection::Expired { signed: moment, now });
        }
        if moment > minutes(now, SKEW_MINUTES_MAX) {
            return Err(Rejection::NotYetCurrent { signed: moment, now });
        }
        Ok(())
    }
}

/// So many minutes after a moment.
fn minutes(moment: Timestamp, count: i64) -> Timestamp {
    Timestamp::from_unix_millis(moment.unix_millis().saturating_add(count * 60_000))
}

/// `YYYYMMDD'T'HHMMSS'Z'`.
fn parse_date(text: &str) -> Option<Timestamp> {
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten()
    };
    if text.len() != 16 || text.get(8..9)? != "T" || text.get(15..)? != "Z" {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let date = jiff::civil::Date::new(year as i16, month as i8, day as i8).ok()?;
    let moment = date.at(hour as i8, minute as i8, second as i8, 0);
    jiff::tz::Offset::UTC.to_timestamp(moment).ok().map(|moment| Timestamp::from_unix_secs(moment.as_second()))
}

/// `YYYYMMDD'T'HHMMSS'Z'`.
fn format_date(moment: Timestamp) -> String {
    let moment = jiff::Timestamp::from_second(moment.unix_secs()).unwrap_or_default();
    let civil = jiff::tz::Offset::UTC.to_datetime(moment);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    )
}

/// The key of one day, region and service.
#[must_use]
pub fn day_key(secret: &SecretBytes, day: &str, region: &str, service: &str) -> MacKey {
    let mut first = SecretBytes::zeroed(4 + secret.len());
    first.expose_mut()[..4].copy_from_slice(b"AWS4");
    first.expose_mut()[4..].copy_from_slice(secret.expose());
    let mut key = MacKey::new(HashAlgorithm::Sha256, first.expose());
    for part in [day, region, service, "aws4_request"] {
        let next = SecretBytes::take(key.sign(&[part.as_bytes()]));
        key = MacKey::new(HashAlgorithm::Sha256, next.expose());
    }
    key
}

/// What is signed: hash of the canonical request, with its scope.
#[must_use]
pub fn string_to_sign(
    authorization: &Authorization<'_>,
    date: &str,
    method: &str,
    path: &str,
    canonical_headers: &str,
    payload_hash: &str,
) -> String {
    let signed = authorization.signed_headers.join(";");
    let request = [method, "\n", path, "\n\n", canonical_headers, "\n", &signed, "\n", payload_hash];
    let request = hex(&kdf::sha256(&request.map(str::as_bytes)));
    let Authorization { day, region, service, .. } = authorization;
    format!("{ALGORITHM}\n{date}\n{day}/{region}/{service}/aws4_request\n{request}")
}

/// Adds a header's line in canonical form: trimmed, runs of spaces as one.
pub fn push_canonical(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push(':');
    let mut first = true;
    for word in value.split(' ').filter(|word| !word.is_empty()) {
        if !std::mem::replace(&mut first, false) {
            out.push(' ');
        }
        out.push_str(word);
    }
    out.push('\n');
}

fn canonical_headers(headers: &HeaderMap, signed: &[&str]) -> Result<String, Rejection> {
    let mut out = String::with_capacity(128);
    for name in signed {
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Rejection::Incomplete("SignedHeaders is malformed"));
        }
        let mut values = headers.get_all(*name).iter().map(|value| value.to_str());
        let first = values.next().ok_or(Rejection::Incomplete("a signed header is missing"))?;
        let mut joined = first.map_err(|_| Rejection::Incomplete("a signed header is not text"))?.trim().to_owned();
        for value in values {
            joined.push(',');
            joined.push_str(value.map_err(|_| Rejection::Incomplete("a signed header is not text"))?.trim());
        }
        push_canonical(&mut out, name, &joined);
    }
    Ok(out)
}

fn single<'a>(headers: &'a HeaderMap, name: &str, missing: Rejection) -> Result<&'a str, Rejection> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(http::HeaderValue::to_str), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        (None, _) => Err(missing),
        _ => Err(Rejection::Incomplete("a header that the signature rests on is there twice, or is not text")),
    }
}

/// A secret access key, and with it the key of one day, region and service, kept: deriving it takes four HMACs.
pub struct SigningSecret {
    secret: SecretBytes,
    kept: ArcSwapOption<KeptKey>,
}

struct KeptKey {
    day: String,
    region: String,
    service: String,
    key: MacKey,
}

impl SigningSecret {
    /// Whether it is the same secret, in constant time.
    #[must_use]
    pub fn is_the_same_as(&self, other: &Self) -> bool {
        self.secret.ct_eq(other.secret.expose())
    }

    /// Takes a secret access key.
    #[must_use]
    pub fn new(secret: SecretBytes) -> Self {
        Self { secret, kept: ArcSwapOption::empty() }
    }

    fn tag(&self, day: &str, scope: Scope<'_>, to_sign: &str) -> Vec<u8> {
        if let Some(kept) = self.kept.load().as_deref()
            && (kept.day.as_str(), kept.region.as_str(), kept.service.as_str()) == (day, scope.region, scope.service)
        {
            return kept.key.sign(&[to_sign.as_bytes()]);
        }
        let key = day_key(&self.secret, day, scope.region, scope.service);
        let tag = key.sign(&[to_sign.as_bytes()]);
        let (day, region, service) = (day.to_owned(), scope.region.to_owned(), scope.service.to_owned());
        self.kept.store(Some(Arc::new(KeptKey { day, region, service, key })));
        tag
    }
}

/// What a signature must be for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scope<'a> {
    /// The region.
    pub region: &'a str,
    /// The service.
    pub service: &'a str,
}

/// Verifies a request without query parameters; `find` gives the secret of an access key id. An unknown one takes the time of a
/// known one. Gives the access key id.
///
/// # Errors
/// [`Rejection`].
pub fn verify<'a>(
    parts: &'a Parts,
    body: &[u8],
    scope: Scope<'_>,
    find: impl FnOnce(&str) -> Option<Arc<SigningSecret>>,
    now: Timestamp,
) -> Result<&'a str, Rejection> {
    let value = single(&parts.headers, header::AUTHORIZATION.as_str(), Rejection::Missing)?;
    let authorization = Authorization::parse(value)?;
    authorization.covers_enough()?;
    let date = single(&parts.headers, DATE, Rejection::Incomplete("the X-Amz-Date header is missing"))?;
    authorization.check_date(date, now)?;
    if authorization.service != scope.service {
        return Err(Rejection::Scope("Credential should be scoped to correct service."));
    }
    if authorization.region != scope.region {
        return Err(Rejection::Scope("Credential should be scoped to a valid region."));
    }
    if parts.uri.query().is_some() {
        return Err(Rejection::Incomplete("there are query parameters, which are not signed"));
    }
    let headers = canonical_headers(&parts.headers, &authorization.signed_headers)?;
    let payload_hash = hex(&kdf::sha256(&[body]));
    let path = parts.uri.path();
    let to_sign = string_to_sign(&authorization, date, parts.method.as_str(), path, &headers, &payload_hash);
    let Some(secret) = find(authorization.access_key_id) else {
        // As much work as for a known one.
        static NOBODY: LazyLock<MacKey> = LazyLock::new(|| MacKey::new(HashAlgorithm::Sha256, &[0; 32]));
        let _ = ct_eq(&NOBODY.sign(&[to_sign.as_bytes()]), &authorization.signature);
        return Err(Rejection::UnknownKey);
    };
    if ct_eq(&secret.tag(authorization.day, scope, &to_sign), &authorization.signature) {
        Ok(authorization.access_key_id)
    } else {
        Err(Rejection::Mismatch)
    }
}

/// Signs a request that has `host` and whatever else is to be signed among its headers: all of them are.
///
/// The same lines as verification, from the other side; a library for it would bring a dozen crates and derive the day's key anew
/// for each request.
///
/// # Errors
/// [`Rejection`] if a header is not text.
pub fn sign(
    parts: &mut Parts,
    body: &[u8],
    scope: Scope<'_>,
    access_key_id: &str,
    secret: &SigningSecret,
    now: Timestamp,
) -> Result<(), Rejection> {
    const NOT_TEXT: Rejection = Rejection::Incomplete("a header to be signed is not text");
    let date = format_date(now);
    parts.headers.insert(DATE, HeaderValue::try_from(&date).map_err(|_| NOT_TEXT)?);
    let mut names: Vec<&str> = parts.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let headers = canonical_headers(&parts.headers, &names)?;
    let Scope { region, service } = scope;
    let authorization =
        Authorization { access_key_id, day: &date[..8], region, service, signed_headers: names, signature: [0; 32] };
    let payload_hash = hex(&kdf::sha256(&[body]));
    let to_sign =
        string_to_sign(&authorization, &date, parts.method.as_str(), parts.uri.path(), &headers, &payload_hash);
    let signature = hex(&secret.tag(authorization.day, scope, &to_sign));
    let value = format!(
        "{ALGORITHM} Credential={access_key_id}/{}/{region}/{service}/aws4_request, SignedHeaders={}, Signature={signature}",
        authorization.day,
        authorization.signed_headers.join(";"),
    );
    parts.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(value).map_err(|_| NOT_TEXT)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(parse_date("20150830T123600Z").unwrap().unix_secs(), 1_440_938_160);
        assert_eq!(parse_date("20240229T000000Z").unwrap().unix_secs(), 1_709_164_800);
        for bad in
            ["20150830T123600", "20150230T123600Z", "20150830t123600Z", "2015083 T123600Z", "20150830T243600Z", ""]
        {
            assert!(parse_date(bad).is_none(), "{bad}");
        }
    }

    /// The example of AWS's documentation ("Deriving the signing key", Signature Version 4).
    #[test]
    fn known_signing_key() {
        let secret = SecretBytes::copy_of(b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let key = day_key(&secret, "20150830", "us-east-1", "iam");
        // The string to sign of the same example.
        let to_sign = "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
                       f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59";
        let signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        assert_eq!(hex(&key.sign(&[to_sign.as_bytes()])), signature);
    }

    #[test]
    fn what_is_signed_is_verified_and_what_is_changed_is_not() {
        let now = Timestamp::from_unix_secs(1_440_938_160);
        let scope = Scope { region: "us-east-1", service: "kms" };
        let secret = Arc::new(SigningSecret::new(SecretBytes::copy_of(b"secret")));
        let request = http::Request::post("/").header("host", "kms.example").header("x-amz-target", "A  b").body(());
        let (mut parts, ()) = request.unwrap().into_parts();
        sign(&mut parts, b"body", scope, "AKID", &secret, now).unwrap();
        let check = |parts: &Parts, body: &[u8], scope, now| {
            let find = |id: &str| (id == "AKID").then(|| Arc::clone(&secret));
            verify(parts, body, scope, find, now).map(str::to_owned)
        };
        assert_eq!(check(&parts, b"body", scope, now).unwrap(), "AKID");
        assert_eq!(check(&parts, b"bodi", scope, now), Err(Rejection::Mismatch));
        for (offset, words) in [
            (
                301,
                "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T124101Z - 5 min.)",
            ),
            (
                -301,
                "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T123059Z + 5 min.)",
            ),
        ] {
            let then = Timestamp::from_unix_secs(1_440_938_160 + offset);
            assert_eq!(check(&parts, b"body", scope, then).unwrap_err().to_string(), words);
            let within = Timestamp::from_unix_secs(1_440_938_160 + offset - offset.signum());
            assert!(check(&parts, b"body", scope, within).is_ok());
        }
        let elsewhere = Scope { region: "eu-west-1", ..scope };
        assert!(matches!(check(&parts, b"body", elsewhere, now), Err(Rejection::Scope(_))));
        parts.headers.insert("x-amz-target", HeaderValue::from_static("A c"));
        assert_eq!(check(&parts, b"body", scope, now), Err(Rejection::Mismatch));
        parts.headers.remove("authorization");
        assert_eq!(check(&parts, b"body", scope, now), Err(Rejection::Missing));
    }

    #[test]
    fn headers_are_taken_apart_strictly() {
        let good = format!(
            "AWS4-HMAC-SHA256 Credential=A/20150830/r/kms-xks-proxy/aws4_request, SignedHeaders=host;x-amz-date, Signature={}",
            "0".repeat(64)
        );
        let parsed = Authorization::parse(&good).unwrap();
        assert!(parsed.covers_enough().is_ok());
        for (from, to) in [
            ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
            ("aws4_request", "aws4_request/x"),
            ("A/2015", "/2015"),
            ("Signature=0", "Signature=g"),
            ("Signature=00", "Signature=0"),
            ("SignedHeaders=host;x-amz-date, ", ""),
            ("Credential=", "Credential=x,Credential="),
        ] {
            assert!(Authorization::parse(&good.replacen(from, to, 1)).is_err(), "{to}");
        }
        let uncovered = good.replace("host;x-amz-date", "host");
        assert!(Authorization::parse(&uncovered).unwrap().covers_enough().is_err());
    }
}

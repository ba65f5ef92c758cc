//! Verifying AWS Signature Version 4 over the bytes as they came.
//!
//! The signature covers method, path, the headers that it names and the body, but no nonce: within the five minutes that a
//! date may be off, a request can be sent again (`SECURITY.md`).

use std::sync::{Arc, LazyLock};

use holdfast_core::{Principal, Timestamp};
use holdfast_crypto::{HashAlgorithm, SecretBytes, kdf, kdf::MacKey, secret::ct_eq};
use http::{HeaderMap, header, request::Parts};

use super::{Credential, Rejection, key_service};
use crate::hex::{hex, unhex};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
pub(super) const SERVICE: &str = "kms-xks-proxy";
const SKEW_MILLIS_MAX: i64 = 5 * 60 * 1000;
/// More headers than any client signs.
const SIGNED_HEADERS_MAX: usize = 32;

/// An `Authorization` header, taken apart.
pub(super) struct Authorization<'a> {
    pub access_key_id: &'a str,
    pub day: &'a str,
    pub region: &'a str,
    pub service: &'a str,
    pub signed_headers: Vec<&'a str>,
    pub signature: [u8; 32],
}

impl<'a> Authorization<'a> {
    pub(super) fn parse(value: &'a str) -> Result<Self, Rejection> {
        const MALFORMED: Rejection = Rejection("the Authorization header is malformed");
        let rest = value.strip_prefix(ALGORITHM).ok_or(Rejection("it is not signed by AWS4-HMAC-SHA256"))?;
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
    pub(super) fn covers_enough(&self) -> Result<(), Rejection> {
        if ["host", "x-amz-date"].iter().all(|needed| self.signed_headers.contains(needed)) {
            return Ok(());
        }
        Err(Rejection("host and x-amz-date must be among the signed headers"))
    }

    /// The date must be of the credential's day, and now.
    pub(super) fn check_date(&self, date: &str, now: Timestamp) -> Result<(), Rejection> {
        let moment = parse_date(date).ok_or(Rejection("the X-Amz-Date header is malformed"))?;
        if !date.starts_with(self.day) || self.day.len() != 8 {
            return Err(Rejection("the X-Amz-Date header is not of the credential's day"));
        }
        if (now.unix_millis() - moment.unix_millis()).abs() > SKEW_MILLIS_MAX {
            return Err(Rejection("the X-Amz-Date header is more than five minutes off"));
        }
        Ok(())
    }
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

/// The key of one day, region and service.
pub(super) fn day_key(secret: &SecretBytes, day: &str, region: &str, service: &str) -> MacKey {
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
pub(super) fn string_to_sign(
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
pub(super) fn push_canonical(out: &mut String, name: &str, value: &str) {
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
            return Err(Rejection("SignedHeaders is malformed"));
        }
        let mut values = headers.get_all(*name).iter().map(|value| value.to_str());
        let first = values.next().ok_or(Rejection("a signed header is missing"))?;
        let mut joined = first.map_err(|_| Rejection("a signed header is not text"))?.trim().to_owned();
        for value in values {
            joined.push(',');
            joined.push_str(value.map_err(|_| Rejection("a signed header is not text"))?.trim());
        }
        push_canonical(&mut out, name, &joined);
    }
    Ok(out)
}

fn single<'a>(headers: &'a HeaderMap, name: &str, missing: &'static str) -> Result<&'a str, Rejection> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(http::HeaderValue::to_str), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        (None, _) => Err(Rejection(missing)),
        _ => Err(Rejection("a header that the signature rests on is there twice, or is not text")),
    }
}

/// Verifies a request to a store of `region`, with one of the store's `credentials`. An unknown access key id takes the time of a
/// known one, and looks the same from outside.
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
    let value = single(&parts.headers, header::AUTHORIZATION.as_str(), "it is not signed")?;
    let authorization = Authorization::parse(value)?;
    authorization.covers_enough()?;
    let date = single(&parts.headers, "x-amz-date", "the X-Amz-Date header is missing")?;
    authorization.check_date(date, now)?;
    if authorization.service != SERVICE {
        return Err(Rejection("it is signed for another service"));
    }
    if authorization.region != region {
        return Err(Rejection("it is signed in another region"));
    }
    if parts.uri.query().is_some() {
        return Err(Rejection("there are query parameters, which are not signed"));
    }
    let headers = canonical_headers(&parts.headers, &authorization.signed_headers)?;
    let payload_hash = hex(&kdf::sha256(&[body]));
    let path = parts.uri.path();
    let to_sign = string_to_sign(&authorization, date, parts.method.as_str(), path, &headers, &payload_hash);
    let known = credentials.iter().find(|credential| credential.access_key_id == authorization.access_key_id);
    let Some(credential) = known else {
        // As much work as for a known one.
        static NOBODY: LazyLock<MacKey> = LazyLock::new(|| MacKey::new(HashAlgorithm::Sha256, &[0; 32]));
        let _ = ct_eq(&NOBODY.sign(&[to_sign.as_bytes()]), &authorization.signature);
        return Err(Rejection("the access key id is unknown in this store"));
    };
    let kept = credential.day_key.load();
    let tag = match kept.as_deref() {
        Some((day, key)) if day == authorization.day => key.sign(&[to_sign.as_bytes()]),
        _ => {
            let key = day_key(&credential.secret, authorization.day, region, SERVICE);
            let tag = key.sign(&[to_sign.as_bytes()]);
            credential.day_key.store(Some(Arc::new((authorization.day.to_owned(), key))));
            tag
        }
    };
    if ct_eq(&tag, &authorization.signature) {
        Ok(key_service(&credential.store, &credential.access_key_id))
    } else {
        Err(Rejection("the signature does not match"))
    }
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

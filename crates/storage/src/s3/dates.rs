//! When a request was signed, and until when: forms that S3 takes and s3s does not, and codes that s3s has otherwise.

use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use s3s::{Body, dto};

use crate::error::{Error, Result};

/// How far a request's date may be from now.
const SKEW_SECS_MAX: i64 = 15 * 60;
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");

/// A request whose date s3s can read.
///
/// # Errors
/// `AccessDenied`: a date that cannot be read, a presigned URL of signature version 2 that has expired.
pub(super) fn prepared(mut request: Request<Body>, now_secs: i64) -> Result<Request<Body>> {
    let invalid = || Error::DeniedBecause("AWS authentication requires a valid Date or x-amz-date header".into());
    let headers = request.headers();
    if is_signed_v2(headers) {
        // s3s does not look at the date of this one.
        let date = headers.get(&AMZ_DATE).or_else(|| headers.get(header::DATE));
        let at = date.and_then(|date| secs(date.to_str().ok()?)).ok_or_else(invalid)?;
        if (now_secs - at).abs() > SKEW_SECS_MAX {
            return Err(Error::RequestTimeTooSkewed);
        }
        return Ok(request);
    }
    match headers.get(&AMZ_DATE) {
        Some(date) if !is_basic(date.as_bytes()) => return Err(invalid()),
        None if is_signed_v4(headers) => {
            // SigV4 may be over the header Date in its place.
            let date = headers.get(header::DATE).and_then(|date| basic(date.to_str().ok()?)).ok_or_else(invalid)?;
            request.headers_mut().insert(AMZ_DATE, date);
        }
        _ => {}
    }
    if expired(request.uri().query().unwrap_or_default(), now_secs) {
        return Err(Error::DeniedBecause("Request has expired".into()));
    }
    Ok(request)
}

fn is_signed_v2(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"AWS "))
}

/// The moment of a date in either form, in seconds since 1970.
fn secs(date: &str) -> Option<i64> {
    let http = |date: &str| dto::Timestamp::parse(dto::TimestampFormat::HttpDate, date).ok();
    let moment = match is_basic(date.as_bytes()) {
        true => {
            let part = |range: std::ops::Range<usize>| date.get(range).unwrap_or_default();
            let (day, time) =
                (format!("{}-{}-{}", part(0..4), part(4..6), part(6..8)), (part(9..11), part(11..13), part(13..15)));
            dto::Timestamp::parse(dto::TimestampFormat::DateTime, &format!("{day}T{}:{}:{}Z", time.0, time.1, time.2))
                .ok()
        }
        // Obsolete forms of the zone: mail clients wrote them, and some tools still do.
        false => http(date).or_else(|| http(&date.replace("+0000", "GMT"))),
    }?;
    let mut text = Vec::new();
    moment.format(dto::TimestampFormat::EpochSeconds, &mut text).ok()?;
    std::str::from_utf8(&text).ok()?.split('.').next()?.parse().ok()
}

fn is_signed_v4(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"AWS4-HMAC-SHA256"))
}

/// `20261126T180000Z`.
fn is_basic(date: &[u8]) -> bool {
    let digits = date.iter().enumerate().all(|(at, byte)| matches!(at, 8 | 15) || byte.is_ascii_digit());
    date.len() == 16 && date[8] == b'T' && date[15] == b'Z' && digits
}

/// The moment of a header `Date`, in either form, in the form of `x-amz-date`.
fn basic(date: &str) -> Option<HeaderValue> {
    if is_basic(date.as_bytes()) {
        return HeaderValue::from_str(date).ok();
    }
    let moment = dto::Timestamp::parse(dto::TimestampFormat::HttpDate, date).ok()?;
    let mut text = Vec::new();
    moment.format(dto::TimestampFormat::DateTime, &mut text).ok()?;
    // 2026-11-26T18:00:00.000Z
    let seconds = text.split(|byte| *byte == b'.').next()?;
    let kept = seconds.iter().copied().filter(|byte| !matches!(byte, b'-' | b':' | b'Z'));
    HeaderValue::from_bytes(&kept.chain(*b"Z").collect::<Vec<_>>()).ok()
}

/// Whether a URL presigned by signature version 2 is over.
fn expired(query: &str, now_secs: i64) -> bool {
    if !query.contains("Signature=") {
        return false;
    }
    let value = |wanted: &str| {
        form_urlencoded::parse(query.as_bytes()).find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
    };
    let at = value("Signature").and_then(|_| value("Expires")?.parse::<i64>().ok());
    at.is_some_and(|at| at < now_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_date() {
        for (date, expected) in [
            ("Thu, 26 Nov 2026 18:00:05 GMT", Some("20261126T180005Z")),
            ("20261126T180005Z", Some("20261126T180005Z")),
            ("2026-11-26", None),
            ("", None),
        ] {
            assert_eq!(basic(date).as_ref().map(|date| date.to_str().unwrap()), expected, "{date}");
        }
    }

    #[test]
    fn a_moment_in_seconds() {
        for date in ["Thu, 26 Nov 2026 18:00:05 GMT", "20261126T180005Z", "Thu, 26 Nov 2026 18:00:05 +0000"] {
            assert_eq!(secs(date), Some(1_795_716_005), "{date}");
        }
        assert_eq!(secs("garbage"), None);
    }

    #[test]
    fn a_url_of_version_2_is_over_at_its_moment() {
        assert!(expired("AWSAccessKeyId=a&Signature=s&Expires=99", 100));
        assert!(!expired("AWSAccessKeyId=a&Signature=s&Expires=100", 100));
        assert!(!expired("X-Amz-Signature=s&Expires=1", 100));
        assert!(!expired("Expires=1", 100));
    }
}

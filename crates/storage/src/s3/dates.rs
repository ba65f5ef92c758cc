//! When a request was signed, and until when: forms that S3 takes and s3s does not, and codes that s3s has otherwise.

use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use s3s::{Body, S3ErrorCode, S3Result, dto};

use crate::error::error;

const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");

/// A request whose date s3s can read.
///
/// # Errors
/// `AccessDenied`: a date that cannot be read, a presigned URL of signature version 2 that has expired.
pub(super) fn prepared(mut request: Request<Body>, now_secs: i64) -> S3Result<Request<Body>> {
    let invalid = || error(S3ErrorCode::AccessDenied, "AWS authentication requires a valid Date or x-amz-date header");
    let headers = request.headers();
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
        return Err(error(S3ErrorCode::AccessDenied, "Request has expired"));
    }
    Ok(request)
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
    fn a_url_of_version_2_is_over_at_its_moment() {
        assert!(expired("AWSAccessKeyId=a&Signature=s&Expires=99", 100));
        assert!(!expired("AWSAccessKeyId=a&Signature=s&Expires=100", 100));
        assert!(!expired("X-Amz-Signature=s&Expires=1", 100));
        assert!(!expired("Expires=1", 100));
    }
}

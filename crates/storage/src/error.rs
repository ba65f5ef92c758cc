//! The exhaustive maps into S3's errors. Revoked is 4xx, which SDKs do not retry; unavailable is 503, which they do.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_core::{KekError, StoreError};
use http::{HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use s3s::{Body, S3Error, S3ErrorCode};

pub(crate) fn error(code: S3ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

pub(crate) fn invalid_argument(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    error(S3ErrorCode::InvalidArgument, message)
}

pub(crate) fn invalid_request(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    error(S3ErrorCode::InvalidRequest, message)
}

pub(crate) fn not_implemented(message: &'static str) -> S3Error {
    error(S3ErrorCode::NotImplemented, message)
}

/// A code that s3s does not know, with its status.
pub(crate) fn custom(code: &'static str, status: StatusCode, message: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

/// Carries members of an error's body from where it is made to [`finished`]: s3s has a place for code and message only.
const MEMBERS: HeaderName = HeaderName::from_static("x-holdfast-error-members");

/// Adds members to the body of an error, such as `Condition`.
pub(crate) fn with_members(mut error: S3Error, members: &[(&str, &str)]) -> S3Error {
    let encoded = BASE64.encode(serde_json::to_vec(members).unwrap_or_default());
    let mut headers = error.headers().cloned().unwrap_or_default();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(MEMBERS, HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static("")));
    error.set_headers(headers);
    error
}

/// An answer as it goes out, with its request's id: in the body of an error stand the members that it was given, and the id.
#[must_use]
pub(crate) fn finished(mut response: Response<Body>, request_id: &str) -> Response<Body> {
    if let Ok(id) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert("x-amz-request-id", id);
    }
    let encoded = response.headers_mut().remove(MEMBERS);
    // The bodies of successes are objects, too.
    if response.status().is_success() {
        return response;
    }
    let members = encoded.and_then(|encoded| BASE64.decode(encoded.as_bytes()).ok());
    let mut members: Vec<(String, String)> =
        members.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    members.push(("RequestId".to_owned(), request_id.to_owned()));
    let body = response.body().bytes().and_then(|body| String::from_utf8(body.to_vec()).ok());
    if let Some((head, tail)) = body.as_deref().and_then(|body| body.rsplit_once("</Error>")) {
        let mut whole = head.to_owned();
        for (name, value) in members {
            whole.push_str(&format!("<{name}>{}</{name}>", xml_escaped(&value)));
        }
        *response.body_mut() = Body::from(format!("{whole}</Error>{tail}"));
    }
    response
}

/// Text as XML has it; what XML 1.0 cannot carry at all becomes a replacement character.
fn xml_escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(char))),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            char => out.push(char),
        }
        out
    })
}

/// What was stored is not what comes back. The cause stays in the log.
pub(crate) fn damaged(what: &str, name: &str) -> S3Error {
    tracing::error!(what, name, "stored data is damaged or was tampered with");
    error(S3ErrorCode::InternalError, "The stored data failed its integrity check")
}

pub(crate) fn from_kek(error_: KekError) -> S3Error {
    match error_ {
        KekError::Denied(_) => error(S3ErrorCode::AccessDenied, "The storage service may not use the KMS key"),
        KekError::Disabled(_) => {
            custom("KMS.DisabledException", StatusCode::BAD_REQUEST, "The KMS key is disabled".into())
        }
        KekError::NotFound(kek) => {
            custom("KMS.NotFoundException", StatusCode::BAD_REQUEST, format!("The KMS key {kek} does not exist"))
        }
        KekError::InvalidUsage(why) => custom("KMS.KMSInvalidKeyUsageException", StatusCode::BAD_REQUEST, why),
        KekError::Rejected => damaged("a wrapped DEK", "the KEK does not open it"),
        KekError::Throttled => error(S3ErrorCode::SlowDown, "The key service is busy; reduce your request rate"),
        KekError::Unavailable(why) => {
            tracing::warn!(why, "the key service is not available");
            error(S3ErrorCode::ServiceUnavailable, "The key service is not available; try again")
        }
    }
}

pub(crate) fn from_store(error_: StoreError) -> S3Error {
    match error_ {
        StoreError::Busy => error(S3ErrorCode::SlowDown, "Reduce your request rate"),
        StoreError::Conflict => error(S3ErrorCode::OperationAborted, "A conflicting operation is in progress"),
        StoreError::Damaged => damaged("a blob", "missing"),
        StoreError::Failed(why) => {
            tracing::error!(why, "the store failed");
            error(S3ErrorCode::ServiceUnavailable, "The store is not available; try again")
        }
    }
}

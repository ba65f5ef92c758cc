//! Refusals in the protocol's words.

use bytes::Bytes;
use holdfast_wire::Cause;
use http::StatusCode;
use serde::Serialize;

use crate::error::Refusal;

/// Longest `errorMessage` (XKS proxy API 1.0.3: under 512).
const MESSAGE_CHARS_MAX: usize = 511;

/// Status and name of a refusal.
pub(super) fn name(refusal: &Refusal) -> (StatusCode, &'static str) {
    match refusal {
        Refusal::InvalidInput(_) => (StatusCode::BAD_REQUEST, "ValidationException"),
        Refusal::Blocked(_) => (StatusCode::BAD_REQUEST, "InvalidStateException"),
        Refusal::InvalidCiphertext => (StatusCode::BAD_REQUEST, "InvalidCiphertextException"),
        Refusal::KeyUsage => (StatusCode::BAD_REQUEST, "InvalidKeyUsageException"),
        Refusal::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "AuthenticationFailedException"),
        Refusal::Denied(_) => (StatusCode::FORBIDDEN, "AccessDeniedException"),
        Refusal::KeyNotFound => (StatusCode::NOT_FOUND, "KeyNotFoundException"),
        Refusal::UnknownPath => (StatusCode::NOT_FOUND, "InvalidUriPathException"),
        Refusal::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "UnsupportedOperationException"),
        Refusal::Throttled(_) => (StatusCode::TOO_MANY_REQUESTS, "ThrottlingException"),
        Refusal::Failed(_) | Refusal::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalException"),
        Refusal::Unsupported(_) => (StatusCode::NOT_IMPLEMENTED, "UnsupportedOperationException"),
        Refusal::Dependency(_) | Refusal::TimedOut(_) | Refusal::Unserved => {
            (StatusCode::SERVICE_UNAVAILABLE, "DependencyTimeoutException")
        }
    }
}

/// What the caller is told. The account's owner reads it in CloudWatch: which rule denied is for our own log.
fn message(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unauthenticated(_) => "the request is not signed by a credential of this store, or not now".into(),
        Refusal::Denied(_) => "the policy of the external key store denies it".into(),
        Refusal::Failed(_) | Refusal::Internal(_) => "the proxy failed; its log says why".into(),
        other => other.to_string(),
    }
}

/// Status, name and body of a refusal.
pub(crate) fn error_body(refusal: &Refusal) -> (StatusCode, &'static str, Bytes) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        error_name: &'a str,
        error_message: String,
        holdfast_cause: Cause,
    }
    let (status, name) = name(refusal);
    let printable = |letter: char| if matches!(letter, ' '..='~') { letter } else { '?' };
    let error_message: String = message(refusal).chars().take(MESSAGE_CHARS_MAX).map(printable).collect();
    let body = serde_json::to_vec(&Body { error_name: name, error_message, holdfast_cause: refusal.cause() })
        .unwrap_or_default();
    (status, name, body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_printable() {
        let (_, _, body) = error_body(&Refusal::Unsupported("ä\n".repeat(600)));
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let message = body["errorMessage"].as_str().unwrap();
        assert!(message.len() == 511 && message.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
        let (_, _, body) = error_body(&Refusal::Denied("rule \"secret\" denies".into()));
        assert!(!String::from_utf8(body.to_vec()).unwrap().contains("secret"));
    }
}

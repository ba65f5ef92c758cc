//! The exhaustive maps into S3's errors. Revoked is 4xx, which SDKs do not retry; unavailable is 503, which they do.

use holdfast_core::{KekError, StoreError};
use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};

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

//! One error type for the wire, and the exhaustive maps into it.
//!
//! `message` is for the caller, `reason` for the audit log. A caller learns what to mend; why a policy refused
//! stays inside.

use bytes::Bytes;
use holdfast_core::{AuditError, AuditOutcome, Denial, HsmError, OpenKeyError, PermitMismatch, StoreError};
use holdfast_wire::Cause;
use http::StatusCode;
use serde::Serialize;

use crate::code::{Code, InnerCode};

/// An error as Key Vault tells it.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// `error.code`.
    pub code: Code,
    /// `error.innererror.code`.
    pub inner_code: Option<InnerCode>,
    /// `error.message`, without the activity id that every message ends with.
    pub message: String,
    /// For the audit log alone.
    pub reason: Option<String>,
    /// Seconds, for `Retry-After`.
    pub retry_after_secs: Option<u32>,
    /// What another service of ours is told, as a code.
    cause: Cause,
    /// What it rests on was changed by another request meanwhile: it is to be decided anew.
    stale: bool,
}

impl ApiError {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            inner_code: None,
            message: message.into(),
            reason: None,
            retry_after_secs: None,
            cause: Cause::Refusal,
            stale: false,
        }
    }

    /// 400: the request is wrong in itself.
    pub fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(Code::BadParameter, message)
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..Self::new(Code::Unauthorized, message) }
    }

    /// 403 by the key's attributes.
    fn forbidden(inner: InnerCode, message: impl Into<String>) -> Self {
        Self { inner_code: Some(inner), ..Self::new(Code::Forbidden, message) }
    }

    /// 403 by a rule of the service itself.
    pub fn not_permitted(message: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    /// 403 by local RBAC.
    pub fn access_denied(data_action: &str, denial: &Denial) -> Self {
        let message = format!("Not authorized to access {data_action} on {}", denial.intent.resource);
        Self { reason: Some(denial.reason.clone()), ..Self::new(Code::AccessDenied, message) }
    }

    /// 404 with a code that says what is missing.
    pub fn not_found(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, message)
    }

    /// 405.
    pub fn method_not_allowed(method: &http::Method) -> Self {
        let message = format!("Method {method} is not allowed on this resource");
        Self::new(Code::MethodNotAllowed, message)
    }

    /// 408: the client is too slow.
    pub fn request_timeout() -> Self {
        Self::new(Code::RequestTimeout, "The request body did not arrive in time")
    }

    /// 409.
    pub fn conflict(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, message)
    }

    /// 409: a soft-deleted key holds the name. The sentence and the inner code are the service's own: clients match on both.
    pub fn deleted_but_recoverable(name: &holdfast_core::KeyName) -> Self {
        let message = format!(
            "Key {name} is currently in a deleted but recoverable state, and its name cannot be reused; in this state, \
             the key can only be recovered or purged."
        );
        Self { inner_code: Some(InnerCode::ObjectIsDeletedButRecoverable), ..Self::conflict(Code::Conflict, message) }
    }

    /// 413.
    pub fn too_large(bytes_max: usize) -> Self {
        let message = format!("The request body is larger than {bytes_max} bytes");
        Self::new(Code::RequestTooLarge, message)
    }

    /// 429: no capacity now.
    pub fn throttled() -> Self {
        let message = "Request was not processed because too many requests were received";
        let error = Self::new(Code::Throttled, message);
        Self { retry_after_secs: Some(1), ..error.caused_by(Cause::Busy) }
    }

    /// 501: a door that exists and is closed.
    pub fn closed(what: &str) -> Self {
        let message = format!("{what} is not available on this server yet");
        Self::new(Code::NotSupported, message)
    }

    /// 500, with the cause kept inside.
    pub fn internal(reason: impl Into<String>) -> Self {
        let error = Self::new(Code::InternalError, "The service met an unexpected fault");
        Self { reason: Some(reason.into()), ..error }
    }

    /// 503, with the cause kept inside.
    pub fn unavailable(code: Code, message: &str, reason: impl Into<String>) -> Self {
        let error = Self::new(code, message);
        Self { reason: Some(reason.into()), retry_after_secs: Some(1), ..error.caused_by(Cause::Outage) }
    }

    /// Nothing is an outage unless it is known to be one.
    fn caused_by(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// 409: nothing was done, since somebody else was sooner. Told to callers only if that goes on and on.
    fn stale(message: &str) -> Self {
        Self { stale: true, ..Self::conflict(Code::Conflict, message).caused_by(Cause::Busy) }
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// How the audit log classes it.
    pub(crate) fn outcome(&self) -> AuditOutcome {
        self.code.outcome()
    }

    /// The body, which names the request so that it can be found in the audit log.
    pub(crate) fn body(&self, request_id: &str) -> Bytes {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            code: &'a str,
            message: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            innererror: Option<InnerBody<'a>>,
            #[serde(rename = "holdfastCause")]
            cause: Cause,
        }
        #[derive(Serialize)]
        struct InnerBody<'a> {
            code: &'a str,
        }
        let message = format!("{} (Activity ID: {request_id})", self.message);
        let innererror = self.inner_code.map(|code| InnerBody { code: code.name() });
        let body = Body { error: Inner { code: self.code.name(), message, innererror, cause: self.cause } };
        // Strings always serialize.
        serde_json::to_vec(&body).map(Bytes::from).unwrap_or_default()
    }
}

impl From<HsmError> for ApiError {
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::Busy => Self::throttled(),
            HsmError::Damaged | HsmError::Permit(_) => Self::internal(error.to_string()),
            HsmError::Disabled => Self::forbidden(InnerCode::KeyDisabled, "Operation is not allowed on a disabled key"),
            HsmError::Expired => Self::forbidden(InnerCode::KeyExpired, "Operation is not allowed on an expired key"),
            HsmError::Failed(what) => Self::internal(what).caused_by(Cause::Outage),
            // Of HSMs that keep their keys themselves; ours does not.
            HsmError::NotFound => Self::internal(error.to_string()),
            HsmError::TimedOut | HsmError::Unavailable(_) => Self::internal(error.to_string()).caused_by(Cause::Outage),
            HsmError::InvalidInput(why) => Self::bad_parameter(capitalized(why)),
            HsmError::NotYetValid => {
                Self::forbidden(InnerCode::KeyNotYetValid, "Operation is not allowed on a key that is not yet valid")
            }
            HsmError::OperationNotAllowed => {
                Self::forbidden(InnerCode::KeyOperationForbidden, "Operation is not permitted on this key")
            }
            HsmError::Rejected => {
                Self::bad_parameter("The parameter is incorrect: the value does not decrypt under this key")
            }
        }
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy => Self::throttled(),
            StoreError::Conflict => Self::stale("The object was changed by another request; try again"),
            StoreError::Overtaken => Self::stale("What the request rests on was changed by another request; try again"),
            StoreError::Damaged
            | StoreError::Disordered
            | StoreError::Forged { .. }
            | StoreError::Gone { .. }
            | StoreError::NotWhole { .. } => Self::internal(error.to_string()),
            StoreError::Unrecorded { .. } => {
                let message = "The audit log cannot be written; nothing is changed without it";
                Self::unavailable(Code::AuditUnavailable, message, error.to_string())
            }
            StoreError::Failed(_) | StoreError::Unavailable(_) => {
                Self::unavailable(Code::StoreUnavailable, "The service cannot store the change now", error.to_string())
            }
        }
    }
}

impl From<OpenKeyError> for ApiError {
    fn from(error: OpenKeyError) -> Self {
        match error {
            OpenKeyError::Hsm(error) => error.into(),
            OpenKeyError::Store(error) => error.into(),
        }
    }
}

impl From<AuditError> for ApiError {
    fn from(error: AuditError) -> Self {
        let message = "The audit log cannot be written; no request is answered without it";
        Self::unavailable(Code::AuditUnavailable, message, error.to_string())
    }
}

impl From<PermitMismatch> for ApiError {
    fn from(error: PermitMismatch) -> Self {
        Self::internal(error.to_string())
    }
}

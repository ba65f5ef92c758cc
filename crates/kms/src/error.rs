//! One error type for the wire, and the exhaustive maps into it.
//!
//! `message` is for the caller, `reason` for the audit log.

use bytes::Bytes;
use holdfast_core::{AuditError, AuditOutcome, HsmError, OpenKeyError, PermitMismatch, StoreError};
use holdfast_wire::{CAUSE_MEMBER, Cause, body::BodyFault, sigv4::Rejection};
use http::StatusCode;

use crate::{code::Code, policy::MalformedPolicy};

/// An error as the service tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiError {
    /// `__type`.
    pub code: Code,
    /// `message`.
    pub message: String,
    /// For the audit log alone.
    pub reason: Option<String>,
    /// What another service of ours is told, as a code.
    cause: Cause,
    /// What it rests on was changed by another request meanwhile: it is to be decided anew.
    stale: bool,
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), reason: None, cause: Cause::Refusal, stale: false }
    }

    /// Nothing is an outage unless it is known to be one.
    pub(crate) fn caused_by(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    pub(crate) fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new(Code::Validation, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Code::UnsupportedOperation, message)
    }

    pub(crate) fn invalid_state(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidState, message)
    }

    /// One for all that may be wrong with a ciphertext.
    pub(crate) fn invalid_ciphertext() -> Self {
        Self::new(Code::InvalidCiphertext, "The ciphertext is not valid for this key and encryption context")
    }

    /// 500, with the cause kept inside.
    pub(crate) fn internal(reason: impl Into<String>) -> Self {
        Self::new(Code::KmsInternal, "The service met an unexpected fault; try again").because(reason)
    }

    /// Nothing was done, since somebody else was sooner. Told to callers only if that goes on and on.
    pub(crate) fn stale(reason: impl Into<String>) -> Self {
        Self { stale: true, ..Self::internal(reason).caused_by(Cause::Busy) }
    }

    /// Whether it tells what only those may know who may use the key: what is valid under it, or that a use would have succeeded.
    pub(crate) fn tells_of_a_use(&self) -> bool {
        self.code.tells_of_a_use()
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn throttled(message: &str) -> Self {
        Self::new(Code::Throttling, message).caused_by(Cause::Busy)
    }

    /// The status on the wire.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    pub(crate) fn outcome(&self) -> AuditOutcome {
        self.code.outcome()
    }

    pub(crate) fn body(&self) -> Bytes {
        let body = serde_json::json!({"__type": self.code.name(), "message": self.message, CAUSE_MEMBER: self.cause});
        Bytes::from(body.to_string())
    }
}

impl From<HsmError> for ApiError {
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::Busy => Self::throttled("Rate exceeded"),
            HsmError::Failed(_) | HsmError::TimedOut | HsmError::Unavailable(_) => {
                Self::internal(error.to_string()).caused_by(Cause::Outage)
            }
            // The role looks at state, usage and validity itself: it was changed since, and the next look says so in the dialect's words.
            HsmError::Disabled | HsmError::Expired | HsmError::NotYetValid | HsmError::OperationNotAllowed => {
                Self::stale(format!("the partition refuses: {error}")).caused_by(Cause::Refusal)
            }
            HsmError::Damaged | HsmError::NotFound | HsmError::Permit(_) => Self::internal(error.to_string()),
            HsmError::InvalidInput(why) => Self::validation(format!("The request is not valid for this key: {why}")),
            HsmError::Rejected => Self::invalid_ciphertext(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy => Self::throttled("Rate exceeded"),
            StoreError::Conflict | StoreError::Overtaken => Self::stale(error.to_string()),
            StoreError::Damaged
            | StoreError::Disordered
            | StoreError::Forged { .. }
            | StoreError::Gone { .. }
            | StoreError::NotWhole { .. } => Self::internal(error.to_string()),
            StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::Unrecorded { .. } => {
                Self::internal(error.to_string()).caused_by(Cause::Outage)
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
        Self::internal(error.to_string()).caused_by(Cause::Outage)
    }
}

impl From<PermitMismatch> for ApiError {
    fn from(error: PermitMismatch) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<MalformedPolicy> for ApiError {
    fn from(error: MalformedPolicy) -> Self {
        Self::new(Code::MalformedPolicyDocument, format!("The policy document is not valid: {error}"))
    }
}

impl From<BodyFault> for ApiError {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::TooLarge => Self::new(Code::RequestEntityTooLarge, "The request body is too large"),
            BodyFault::Broken | BodyFault::TooSlow => Self::new(Code::Serialization, fault.to_string()),
        }
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let why = rejection.to_string();
        match rejection {
            Rejection::Missing => {
                Self::new(Code::MissingAuthenticationToken, "Request is missing Authentication Token")
            }
            Rejection::Incomplete(why) => Self::new(Code::IncompleteSignature, why),
            // The words by which clients tell that their clock is wrong.
            Rejection::Date(_) | Rejection::Expired { .. } | Rejection::NotYetCurrent { .. } | Rejection::Scope(_) => {
                Self::new(Code::InvalidSignature, why.clone())
            }
            Rejection::UnknownKey => {
                Self::new(Code::UnrecognizedClient, "The security token included in the request is invalid.")
            }
            Rejection::Mismatch => Self::new(
                Code::InvalidSignature,
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
                 Access Key and signing method. Consult the service documentation for details.",
            ),
        }
        .because(why)
    }
}

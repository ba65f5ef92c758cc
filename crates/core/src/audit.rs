//! What is told of every request.

use async_trait::async_trait;

use crate::{Principal, Timestamp};

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuditOutcome {
    /// Carried out.
    Allowed,
    /// Refused: the caller is unknown or may not.
    Denied,
    /// Permitted or public, but not carried out: bad input, no such thing, a fault.
    Failed,
    /// Carried out and told to the log, and then not told to the caller: what allowed it had ended meanwhile.
    Withheld,
}

impl AuditOutcome {
    /// The word in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Withheld => "withheld",
        }
    }
}

/// One request or automatic act. Holds no secret.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    /// When it ended.
    pub time: Timestamp,
    /// The operation, in the dialect's own word (`WrapKey`, `KeyCreate`).
    pub operation: &'static str,
    /// The caller, if one was verified.
    pub principal: Option<Principal>,
    /// The key it was about.
    pub key: Option<String>,
    /// And its version.
    pub key_version: Option<String>,
    /// The algorithm, where one was named.
    pub algorithm: Option<String>,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// HTTP status.
    pub status: u16,
    /// Error code in the dialect, if it did not succeed.
    pub error_code: Option<&'static str>,
    /// The rule that allowed it, or the reason of a denial or failure.
    pub reason: Option<String>,
    /// Our id of the request.
    pub request_id: String,
    /// The client's id of the request.
    pub client_request_id: Option<String>,
    /// Where it came from: address and port.
    pub source: Option<String>,
    /// The client's software, as it says itself.
    pub user_agent: Option<String>,
    /// What else the dialect tells of the request, by name: claims of the caller, the HSM that served it.
    pub context: Vec<(&'static str, String)>,
    /// Path of the request, without query.
    pub path: String,
    /// Time spent, microseconds.
    pub duration_us: u64,
}

impl AuditEvent {
    /// An event of a success that says nothing more: of nobody, about no key, at no path.
    #[must_use]
    pub fn allowed(time: Timestamp, operation: &'static str, request_id: impl Into<String>) -> Self {
        Self {
            time,
            operation,
            principal: None,
            key: None,
            key_version: None,
            algorithm: None,
            outcome: AuditOutcome::Allowed,
            status: 200,
            error_code: None,
            reason: None,
            request_id: request_id.into(),
            client_request_id: None,
            source: None,
            user_agent: None,
            context: Vec::new(),
            path: String::new(),
            duration_us: 0,
        }
    }
}

/// The log could not be written. The request must fail.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the audit log could not be written: {0}")]
pub struct AuditError(pub String);

/// Where events go. A returned append is durable.
#[async_trait]
pub trait AuditSink: Send + Sync {
    /// Appends one event.
    ///
    /// # Errors
    /// [`AuditError`]: the request must not be answered with success.
    async fn append(&self, event: AuditEvent) -> Result<(), AuditError>;
}

//! Why a request is refused, whatever its dialect. Each dialect has its own exhaustive map of these.

use holdfast_core::{AuditError, AuditOutcome, HsmError, StoreError};
use holdfast_wire::Cause;

use crate::authn::Rejection;

/// Why a request is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nobody known asks.
    #[error("{0}")]
    Unauthenticated(#[from] Rejection),
    /// The policy, or a missing proof, says no; the rule goes to the log.
    #[error("{0}")]
    Denied(String),
    /// The key may not be used: a kill switch, or how the HSM holds it.
    #[error("{0}")]
    Blocked(String),
    /// The ciphertext is not what this key made with this additional data.
    #[error("the ciphertext, its metadata or its additional authenticated data are not what was encrypted")]
    InvalidCiphertext,
    /// A parameter is missing or malformed.
    #[error("{0}")]
    InvalidInput(String),
    /// The HSM does not let the key do this.
    #[error("the key is not allowed to do this")]
    KeyUsage,
    /// No such key, or not in this store.
    #[error("the key does not exist in this store")]
    KeyNotFound,
    /// Another method than POST.
    #[error("only POST is known here")]
    MethodNotAllowed,
    /// No store and no operation has this path.
    #[error("nothing is at this path")]
    UnknownPath,
    /// Beyond the quota or what can be done at once.
    #[error("{0}")]
    Throttled(&'static str),
    /// The HSM, or what else is needed, cannot be reached.
    #[error("{0}")]
    Dependency(String),
    /// No HSM that is configured here has the key.
    #[error("no HSM that has the key is configured here")]
    Unserved,
    /// The HSM, or what else is needed, failed.
    #[error("{0}")]
    Failed(String),
    /// The HSM, or what else is needed, did not answer in time.
    #[error("{0} did not answer in time")]
    TimedOut(&'static str),
    /// Well-formed, but beyond what is offered.
    #[error("{0}")]
    Unsupported(String),
    /// A fault here.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::InvalidInput(why.into())
    }

    /// How the audit log counts it.
    pub(crate) fn outcome(&self) -> AuditOutcome {
        match self {
            Self::Unauthenticated(_) | Self::Denied(_) | Self::Blocked(_) => AuditOutcome::Denied,
            Self::Dependency(_)
            | Self::Failed(_)
            | Self::Internal(_)
            | Self::InvalidCiphertext
            | Self::InvalidInput(_)
            | Self::KeyNotFound
            | Self::KeyUsage
            | Self::MethodNotAllowed
            | Self::Throttled(_)
            | Self::TimedOut(_)
            | Self::UnknownPath
            | Self::Unserved
            | Self::Unsupported(_) => AuditOutcome::Failed,
        }
    }

    /// What a key service of ours is told: nothing is an outage unless it is known to be one.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Dependency(_) | Self::Failed(_) | Self::TimedOut(_) => Cause::Outage,
            Self::Throttled(_) => Cause::Busy,
            Self::Blocked(_)
            | Self::Denied(_)
            | Self::Internal(_)
            | Self::InvalidCiphertext
            | Self::InvalidInput(_)
            | Self::KeyNotFound
            | Self::KeyUsage
            | Self::MethodNotAllowed
            | Self::Unauthenticated(_)
            | Self::UnknownPath
            | Self::Unserved
            | Self::Unsupported(_) => Cause::Refusal,
        }
    }
}

impl From<HsmError> for Refusal {
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::Busy => Self::Throttled("the HSM has no capacity left"),
            HsmError::Damaged | HsmError::Permit(_) => Self::Internal(error.to_string()),
            HsmError::Failed(_) => Self::Failed(error.to_string()),
            HsmError::Disabled | HsmError::Expired | HsmError::NotYetValid => Self::Blocked(error.to_string()),
            HsmError::InvalidInput(why) => Self::Unsupported(why.to_owned()),
            HsmError::NotFound => Self::KeyNotFound,
            HsmError::OperationNotAllowed => Self::KeyUsage,
            HsmError::Rejected => Self::InvalidCiphertext,
            HsmError::TimedOut => Self::TimedOut("the HSM"),
            HsmError::Unavailable(_) => Self::Dependency(error.to_string()),
        }
    }
}

impl From<AuditError> for Refusal {
    fn from(error: AuditError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Why an administrator's request was not carried out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AdminError {
    /// The request is malformed, or contradicts the state.
    #[error("{0}")]
    Invalid(String),
    /// A signature does not hold, or is nobody's who may sign.
    #[error("{0}")]
    Denied(String),
    /// The HSM refused or failed.
    #[error("the HSM: {0}")]
    Hsm(HsmError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log could not be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A stored record cannot be read.
    #[error("a stored record cannot be read: {0}")]
    Record(String),
}

//! What can go wrong with the other side of a store, and what each operation makes of it (the table of the service's guide).
//!
//! The other side is not trusted: what it says in words goes to the audit log, never to the caller, and nothing is decided by it.

use holdfast_wire::{Cause, ExchangeError};

use crate::code::Code;
use crate::error::ApiError;

/// Why the other side did not do its work.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LinkFault {
    /// The connection ended before the answer was there.
    #[error("the connection to the proxy ended: {0}")]
    Broken(String),
    /// Too many exchanges are under way.
    #[error("too many requests to the store are under way")]
    Busy,
    /// It may not be used by this caller, for this key or operation.
    #[error("the proxy denies access: {0}")]
    Denied(String),
    /// It, or what stands before it, says that it failed.
    #[error("the proxy failed: {0}")]
    Failed(String),
    /// All its key managers are unavailable.
    #[error("all key managers behind the proxy are unavailable")]
    ManagersUnavailable,
    /// What came back is not what the protocol says.
    #[error("the proxy's answer is not valid: {0}")]
    InvalidResponse(String),
    /// The ciphertext was not made by this key, or was changed.
    #[error("the proxy rejects the ciphertext")]
    InvalidCiphertext,
    /// The key is disabled, or not of the kind or usage needed.
    #[error("the external key cannot be used so: {0}")]
    KeyUnusable(String),
    /// There is no such key.
    #[error("the proxy does not know the external key")]
    KeyNotFound,
    /// The configuration does not let the service ask it.
    #[error("it is not asked: {0}")]
    NotAsked(String),
    /// Our credential is not accepted.
    #[error("the proxy does not accept the credential")]
    NotAuthenticated,
    /// The path is wrong.
    #[error("the proxy knows no such path")]
    NoSuchPath,
    /// It asks for fewer requests.
    #[error("the proxy throttles")]
    Throttled,
    /// No answer within the budget.
    #[error("the proxy did not answer in time")]
    TimedOut,
    /// No trust.
    #[error("TLS with the proxy failed: {0}")]
    Tls(String),
    /// It is not there.
    #[error("the proxy cannot be reached: {0}")]
    Unreachable(String),
}

impl From<ExchangeError> for LinkFault {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::TimedOut => Self::TimedOut,
            ExchangeError::Tls(why) => Self::Tls(why),
            ExchangeError::Unreachable(why) => Self::Unreachable(why),
            ExchangeError::Invalid(why) => Self::NotAsked(why),
            ExchangeError::Broken(why) => Self::Broken(why),
            ExchangeError::NotHttp(why) => Self::InvalidResponse(why),
        }
    }
}

const TIMED_OUT: &str = "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry \
     the request. If you see this error repeatedly, report it to your external key store proxy administrator";
const UNREACHABLE: &str = "AWS KMS cannot communicate with the external key store proxy. This might be a transient network \
     issue. If you see this error repeatedly, verify that the external key store proxy is active and that its endpoint URI is \
     correct in your custom key store";

impl LinkFault {
    /// For metrics and the audit log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Broken(_) => "broken",
            Self::Busy => "busy",
            Self::Denied(_) => "access-denied",
            Self::Failed(_) => "failed",
            Self::ManagersUnavailable => "managers-unavailable",
            Self::InvalidResponse(_) => "invalid-response",
            Self::InvalidCiphertext => "invalid-ciphertext",
            Self::KeyUnusable(_) => "key-unusable",
            Self::KeyNotFound => "key-not-found",
            Self::NotAsked(_) => "not-asked",
            Self::NotAuthenticated => "not-authenticated",
            Self::NoSuchPath => "no-such-path",
            Self::Throttled => "throttled",
            Self::TimedOut => "timed-out",
            Self::Tls(_) => "tls",
            Self::Unreachable(_) => "unreachable",
        }
    }

    /// What it means for whoever needs the key: a failure that is not known to be an outage counts as somebody's decision.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Busy | Self::Throttled => Cause::Busy,
            Self::Broken(_) | Self::Failed(_) | Self::ManagersUnavailable | Self::TimedOut | Self::Unreachable(_) => {
                Cause::Outage
            }
            Self::Denied(_)
            | Self::InvalidCiphertext
            | Self::InvalidResponse(_)
            | Self::KeyNotFound
            | Self::KeyUnusable(_)
            | Self::NoSuchPath
            | Self::NotAsked(_)
            | Self::NotAuthenticated
            | Self::Tls(_) => Cause::Refusal,
        }
    }

    /// Whether the other side, as a whole, seems to be away: for the breaker.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Tls(_) | Self::Unreachable(_))
    }

    /// What the caller is told. Clients sort failures by these texts.
    fn message(&self, store: &str) -> String {
        let text = match self {
            Self::Busy | Self::Throttled => {
                "AWS KMS rejected the request due to a very high request rate to the external key store proxy"
            }
            Self::Denied(_) => "The external key store proxy denied access to the operation",
            Self::ManagersUnavailable => {
                "The external key store proxy reports that all of its key managers are unavailable"
            }
            Self::Broken(_) | Self::Failed(_) | Self::InvalidResponse(_) => {
                "AWS KMS cannot interpret the response from the external key store proxy. If you see this error repeatedly, \
                 report it to your external key store proxy administrator"
            }
            Self::InvalidCiphertext => "The external key store proxy rejects the ciphertext",
            Self::KeyUnusable(_) => {
                "The external key is disabled, or is not of the kind or usage that the operation needs"
            }
            Self::KeyNotFound => "The external key store proxy does not find the external key",
            Self::NotAuthenticated => {
                "The external key store proxy does not accept the proxy authentication credential"
            }
            Self::NoSuchPath => "The external key store proxy rejects the URI path of the custom key store",
            Self::TimedOut => TIMED_OUT,
            Self::Tls(_) => {
                "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify its TLS configuration, \
                 including its certificate"
            }
            Self::NotAsked(_) | Self::Unreachable(_) => UNREACHABLE,
        };
        format!("{text}. (custom key store {store})")
    }

    fn error(&self, code: Code, store: &str) -> ApiError {
        ApiError::new(code, self.message(store)).because(self.to_string()).caused_by(self.cause())
    }

    /// In a cryptographic operation.
    pub(crate) fn for_crypto(&self, store: &str) -> ApiError {
        match self {
            Self::InvalidCiphertext => ApiError::invalid_ciphertext().because(self.to_string()),
            Self::Busy => ApiError::throttled("Rate exceeded").because(self.to_string()),
            _ => self.error(Code::InvalidState, store),
        }
    }

    /// In CreateKey.
    pub(crate) fn for_create_key(&self, store: &str) -> ApiError {
        let code = match self {
            Self::Denied(_) => Code::InvalidState,
            Self::KeyNotFound => Code::XksKeyNotFound,
            Self::KeyUnusable(_) | Self::InvalidCiphertext => Code::XksKeyInvalidConfiguration,
            _ => Code::CustomKeyStoreInvalidState,
        };
        self.error(code, store)
    }

    /// In CreateCustomKeyStore and UpdateCustomKeyStore.
    pub(crate) fn for_store(&self, store: &str) -> ApiError {
        let code = match self {
            Self::NotAuthenticated | Self::Denied(_) => Code::XksProxyIncorrectAuthenticationCredential,
            Self::NoSuchPath => Code::XksProxyInvalidConfiguration,
            Self::Broken(_)
            | Self::Failed(_)
            | Self::InvalidCiphertext
            | Self::InvalidResponse(_)
            | Self::KeyNotFound
            | Self::KeyUnusable(_) => Code::XksProxyInvalidResponse,
            Self::Busy
            | Self::ManagersUnavailable
            | Self::NotAsked(_)
            | Self::Throttled
            | Self::TimedOut
            | Self::Tls(_)
            | Self::Unreachable(_) => Code::XksProxyUriUnreachable,
        };
        self.error(code, store)
    }
}

/// `ConnectionErrorCode` after a ConnectCustomKeyStore that failed.
pub(crate) fn connection_error_code(fault: &LinkFault) -> &'static str {
    match fault {
        LinkFault::Denied(_) => "XKS_PROXY_ACCESS_DENIED",
        LinkFault::Broken(_)
        | LinkFault::Failed(_)
        | LinkFault::InvalidCiphertext
        | LinkFault::InvalidResponse(_)
        | LinkFault::KeyNotFound
        | LinkFault::KeyUnusable(_) => "XKS_PROXY_INVALID_RESPONSE",
        LinkFault::NoSuchPath => "XKS_PROXY_INVALID_CONFIGURATION",
        LinkFault::NotAuthenticated => "INVALID_CREDENTIALS",
        LinkFault::TimedOut => "XKS_PROXY_TIMED_OUT",
        LinkFault::Tls(_) => "XKS_PROXY_INVALID_TLS_CONFIGURATION",
        LinkFault::Busy
        | LinkFault::ManagersUnavailable
        | LinkFault::NotAsked(_)
        | LinkFault::Throttled
        | LinkFault::Unreachable(_) => "XKS_PROXY_NOT_REACHABLE",
    }
}

/// The codes that a stored state may name.
pub(super) const CONNECTION_ERROR_CODES: [&str; 7] = [
    "INVALID_CREDENTIALS",
    "XKS_PROXY_ACCESS_DENIED",
    "XKS_PROXY_INVALID_CONFIGURATION",
    "XKS_PROXY_INVALID_RESPONSE",
    "XKS_PROXY_INVALID_TLS_CONFIGURATION",
    "XKS_PROXY_NOT_REACHABLE",
    "XKS_PROXY_TIMED_OUT",
];

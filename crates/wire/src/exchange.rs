//! The seam by which a role sends requests of its own.

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::KekError;
use http::{Request, Response};

/// Why there is no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ExchangeError {
    /// The connection ended. Whether the request was carried out is not known.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// The request cannot be sent as it is.
    #[error("the request cannot be sent: {0}")]
    Invalid(String),
    /// What came over the connection is not an answer. Whether the request was carried out is not known.
    #[error("what came is no answer: {0}")]
    NotHttp(String),
    /// The answer did not come in time. Whether the request was carried out is not known.
    #[error("there was no answer in time")]
    TimedOut,
    /// No trust: certificate, name or protocol version.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// Nobody is there: no such name, or the connection was refused.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
}

/// Only what is known to be an outage counts as one: who is not trusted, or does not speak the protocol, may be anybody.
impl From<ExchangeError> for KekError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Broken(_) | ExchangeError::TimedOut | ExchangeError::Unreachable(_) => {
                Self::Unavailable(error.to_string())
            }
            ExchangeError::Invalid(_) | ExchangeError::NotHttp(_) | ExchangeError::Tls(_) => {
                Self::Unclear(error.to_string())
            }
        }
    }
}

/// Sends requests over TLS. The binary gives it connections, trust and a time limit of its own; a caller may give up sooner.
#[async_trait]
pub trait Exchange: Send + Sync {
    /// Sends one request. What is sent must bear being sent twice: a kept connection may turn out to be closed.
    ///
    /// # Errors
    /// [`ExchangeError`].
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError>;
}

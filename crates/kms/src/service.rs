//! What the service answers, and what it tells of what it did by itself.

use std::net::SocketAddr;

use bytes::Bytes;
use holdfast_core::AuditOutcome;
use holdfast_service::Trace;
use http::{Response, StatusCode, request::Parts};
use http_body::Body;
use http_body_util::Full;

use crate::{Kms, call::Told, dialect::AwsKms, error::ApiError};

impl Kms {
    /// Serves one request. The future is to be polled to its end, whoever hangs up.
    pub async fn handle<B>(&self, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&AwsKms(self), parts, body, source).await
    }

    /// Writes down what was only counted so far: for the end of the service, before its log is closed.
    pub async fn finish(&self) {
        self.write_usage().await;
        self.spine.finish().await;
    }

    /// A random UUID (RFC 9562, version 4).
    pub(crate) fn new_uuid(&self) -> String {
        crate::names::KeyId::new(self.ambient.random(), false).to_string()
    }

    /// Writes down what the service did by itself.
    pub(crate) async fn record_by_itself(&self, operation: &'static str, key: &str, result: Result<String, ApiError>) {
        let (outcome, status, error_code, reason) = match result {
            Ok(rule) => (AuditOutcome::Allowed, StatusCode::OK, None, rule),
            Err(error) => (AuditOutcome::Failed, StatusCode::INTERNAL_SERVER_ERROR, Some(error.code), error.message),
        };
        let told = Told { key: Some(key.to_owned()), rule: Some(reason), ..Told::default() };
        let mut event = Trace::automatic(self.new_uuid(), operation, "/").event(self.ambient.now(), &told, status);
        event.outcome = outcome;
        event.error_code = error_code;
        if let Err(error) = self.audit.append(event).await {
            tracing::error!(operation, %error, "an automatic act is missing from the audit log");
        }
    }
}

//! What the service answers, and what it tells of what it did by itself.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use holdfast_core::{AuditEvent, AuditOutcome};
use holdfast_service::{AuditDoor, Handed, SigningReaders, Trace};
use http::{Response, StatusCode, request::Parts};
use http_body::Body;

use crate::{Kms, call::Told, dialect::AwsKms, error::ApiError};

impl Kms {
    /// Serves one request. The future is to be polled to its end, whoever hangs up.
    pub async fn handle<B>(&self, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Handed>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&AwsKms(self), parts, body, source).await
    }

    /// Serves one request for a copy of the audit log, behind `door`: for `readers`, whom the configuration names. The log tells of all accounts, so
    /// no policy of one of them gives it away, and no `kms:*` that was written before there was such a door.
    pub async fn handle_audit<B>(
        &self,
        door: &AuditDoor,
        readers: &SigningReaders,
        parts: Parts,
        body: B,
        source: Option<SocketAddr>,
    ) -> Response<Handed>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&door.through(readers), parts, body, source).await
    }

    /// Those of `readers` who may take a copy of the log, by their ARNs, among everybody who has a credential.
    #[must_use]
    pub fn audit_readers(&self, readers: &[String]) -> SigningReaders {
        SigningReaders::new(self.directory.signers(), readers.iter().cloned(), Arc::clone(&self.ambient))
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

    /// The event of what the service does by itself.
    pub(crate) fn event_by_itself(&self, operation: &'static str, key: &str, rule: &str) -> AuditEvent {
        let told = Told { key: Some(key.to_owned()), rule: Some(rule.to_owned()), ..Told::default() };
        Trace::automatic(self.new_uuid(), operation, "/").event(self.ambient.now(), &told, StatusCode::OK)
    }

    /// Writes down what the service could not do by itself. False: the log does not take it.
    #[must_use]
    pub(crate) async fn record_failure(&self, operation: &'static str, key: &str, error: ApiError) -> bool {
        let event = AuditEvent {
            outcome: AuditOutcome::Failed,
            status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            error_code: Some(error.code.name()),
            ..self.event_by_itself(operation, key, &error.message)
        };
        let appended = self.audit.append(event).await;
        if let Err(error) = &appended {
            tracing::error!(operation, %error, "an automatic act is missing from the audit log");
        }
        appended.is_ok()
    }
}

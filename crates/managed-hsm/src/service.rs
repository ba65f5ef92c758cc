//! What the service answers, and what it does by itself.

use std::net::SocketAddr;

use bytes::Bytes;
use holdfast_core::{
    Action, AuditOutcome, Decision, Intent, KeyName, Permit, Principal, PrincipalKind, Resource, authorize,
};
use holdfast_service::Trace;
use http::{Response, StatusCode, request::Parts};
use http_body::Body;
use http_body_util::Full;

use crate::{
    ManagedHsm,
    dialect::KeyVault,
    error::ApiError,
    ops::{self, Facts},
};

impl ManagedHsm {
    /// Serves one request. The future is to be polled to its end, whoever hangs up.
    pub async fn handle<B>(&self, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&KeyVault(self), parts, body, source).await
    }

    /// Tells the log what was only counted so far: for the end of the service, before its log is closed.
    pub async fn finish(&self) {
        self.spine.finish().await;
    }

    /// A random UUID (RFC 9562, version 4).
    pub(crate) fn new_guid(&self) -> String {
        crate::guid(self.ambient.random())
    }

    /// Automatic acts: rotation by policy, purge after retention. Each is an event of its own.
    pub async fn maintain(&self) {
        let now = self.keys.now();
        for name in self.keys.names_where(|entry| crate::rotation::is_due(entry, now)) {
            let result = match self.system_permit(Action::KeyRotate, &name) {
                Ok(permit) => ops::rotate_by_itself(self, permit, &name).await,
                Err(error) => Err(error),
            };
            if !matches!(result, Ok(None)) {
                let facts = Facts { version: result.as_ref().ok().copied().flatten(), ..system_facts(&name) };
                self.record_system("KeyRotateAutomatic", facts, result.map(|_| ())).await;
            }
        }
        for name in self.keys.names_where(|entry| entry.deletion.is_some_and(|deletion| deletion.purge <= now)) {
            let lock = self.keys.lock(&name).await;
            let Ok((entry, deletion)) = self.keys.deleted(&name) else { continue };
            if deletion.purge <= now {
                let result = ops::purge_for_good(self, &lock, &entry).await;
                self.record_system("KeyPurgeAutomatic", system_facts(&name), result).await;
            }
        }
    }

    fn system_permit(&self, action: Action, name: &KeyName) -> Result<Permit, ApiError> {
        let intent = Intent { action, resource: Resource::Key(name.clone()) };
        authorize(&SystemPolicy, &Principal::system(), intent).map_err(|denial| ApiError::internal(denial.to_string()))
    }

    async fn record_system(&self, operation: &'static str, facts: Facts, result: Result<(), ApiError>) {
        let trace = Trace::automatic(self.new_guid(), operation, "/");
        let mut event = trace.event(self.ambient.now(), &facts, StatusCode::OK);
        if let Err(error) = result {
            tracing::error!(
                operation,
                reason = error.reason.as_deref(),
                message = error.message,
                "an automatic act failed"
            );
            event.outcome = AuditOutcome::Failed;
            event.status = error.status.as_u16();
            event.error_code = Some(error.code);
            event.reason = Some(error.reason.unwrap_or(error.message));
        }
        if let Err(error) = self.audit.append(event).await {
            tracing::error!(operation, %error, "an automatic act is missing from the audit log");
        }
    }
}

fn system_facts(name: &KeyName) -> Facts {
    Facts { key: Some(name.to_string()), rule: Some("the key's own policy".into()), ..Facts::default() }
}

/// What the service does by itself: rotate keys, as their policies say.
struct SystemPolicy;

impl holdfast_core::Policy for SystemPolicy {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        if principal.kind() == PrincipalKind::System && intent.action == Action::KeyRotate {
            Decision::Allow("the key's own policy".into())
        } else {
            Decision::Deny("the service does nothing else by itself".into())
        }
    }
}

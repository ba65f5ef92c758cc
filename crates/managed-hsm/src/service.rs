//! What the service answers, and what it does by itself.

use std::net::SocketAddr;

use bytes::Bytes;
use holdfast_core::{
    Action, AuditOutcome, Decided, Decision, Intent, Itself, KeyName, Permit, Principal, PrincipalKind, Resource,
    Spent, authorize,
};
use holdfast_service::{AuditDoor, Handed, Trace};
use http::{Response, StatusCode, request::Parts};
use http_body::Body;

use crate::{
    ManagedHsm,
    audit_readers::RoleReaders,
    dialect::KeyVault,
    error::ApiError,
    ops::{self, Facts},
};

impl ManagedHsm {
    /// Serves one request. The future is to be polled to its end, whoever hangs up.
    pub async fn handle<B>(&self, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Handed>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&KeyVault(self), parts, body, source).await
    }

    /// Serves one request for a copy of the audit log, behind `door`: for those who have the role of an audit reader.
    pub async fn handle_audit<B>(
        &self,
        door: &AuditDoor,
        parts: Parts,
        body: B,
        source: Option<SocketAddr>,
    ) -> Response<Handed>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&door.through(&RoleReaders(self)), parts, body, source).await
    }

    /// Tells the log what was only counted so far: for the end of the service, before its log is closed.
    pub async fn finish(&self) {
        self.spine.finish().await;
    }

    /// A random UUID (RFC 9562, version 4).
    pub(crate) fn new_guid(&self) -> String {
        crate::guid(self.ambient.random())
    }

    /// Automatic acts: rotation by policy, purge after retention. Each is an event of its own; one that fails is tried again, and its failure is told
    /// once.
    pub async fn maintain(&self) {
        self.troubles.round();
        let now = self.keys.now();
        for name in self.keys.names_where(|entry| crate::rotation::is_due(entry, now)) {
            let trace = Trace::automatic(self.new_guid(), "KeyRotateAutomatic", "/");
            let event = |version| {
                let facts = Facts { version: Some(version), ..system_facts(&name) };
                let event = trace.event(self.ambient.now(), &facts, StatusCode::OK);
                Ok(Decided::by_itself(event, Itself::Due(self.due(Action::KeyRotate, &name)?)))
            };
            let result = match self.system_permit(Action::KeyRotate, &name) {
                Ok(permit) => ops::rotate_by_itself(self, permit, &name, event).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                self.record_failure(&trace, &name, error).await;
            }
        }
        for name in self.keys.names_where(|entry| entry.deletion.is_some_and(|deletion| deletion.purge <= now)) {
            let lock = self.keys.lock(&name).await;
            let Ok((entry, deletion)) = self.keys.deleted(&name) else { continue };
            if deletion.purge <= now {
                let trace = Trace::automatic(self.new_guid(), "KeyPurgeAutomatic", "/");
                let event = || {
                    let event = trace.event(self.ambient.now(), &system_facts(&name), StatusCode::OK);
                    Ok(Decided::by_itself(event, Itself::Due(self.due(Action::DeletedKeyPurge, &name)?)))
                };
                if let Err(error) = ops::purge_for_good(self, &lock, &entry, event).await {
                    self.record_failure(&trace, &name, error).await;
                }
            }
        }
    }

    fn system_permit(&self, action: Action, name: &KeyName) -> Result<Permit, ApiError> {
        let intent = Intent { action, resource: Resource::Key(name.clone()) };
        authorize(&SystemPolicy, &Principal::system(), intent).map_err(|denial| ApiError::internal(denial.to_string()))
    }

    /// Leave for what is due.
    fn due(&self, action: Action, name: &KeyName) -> Result<Spent, ApiError> {
        Ok(self.system_permit(action, name)?.spend(action, &Resource::Key(name.clone()))?)
    }

    /// Tells the log of an automatic act that failed; one that was done has its event in its commit.
    async fn record_failure(&self, trace: &Trace, name: &KeyName, error: ApiError) {
        let operation = trace.operation();
        let act = format!("{operation} {name}");
        if !self.troubles.begins(&act) {
            return;
        }
        let (reason, message) = (error.reason.as_deref(), error.message.as_str());
        tracing::error!(operation, reason, message, "an automatic act failed");
        let mut event = trace.event(self.ambient.now(), &system_facts(name), error.status());
        event.outcome = AuditOutcome::Failed;
        event.error_code = Some(error.code.name());
        event.reason = Some(error.reason.unwrap_or(error.message));
        if let Err(error) = self.audit.append(event).await {
            tracing::error!(operation, %error, "an automatic act is missing from the audit log");
            self.troubles.untold(&act);
        }
    }
}

fn system_facts(name: &KeyName) -> Facts {
    Facts { key: Some(name.to_string()), rule: Some("the key's own policy".into()), ..Facts::default() }
}

/// What the service does by itself: rotate keys, as their policies say, and purge them when their retention is over.
struct SystemPolicy;

impl holdfast_core::Policy for SystemPolicy {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        let own = matches!(intent.action, Action::KeyRotate | Action::DeletedKeyPurge);
        if principal.kind() == PrincipalKind::System && own {
            Decision::Allow("the key's own policy".into())
        } else {
            Decision::Deny("the service does nothing else by itself".into())
        }
    }
}

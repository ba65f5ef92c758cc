//! What orchestrators and Prometheus ask of every role.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_store::{Condition, audit::AuditLog};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    instance::{not_found, plain},
    server::{self, ConnectionLimits},
};

/// A role, as far as its state is told.
pub(crate) trait Told: Send + Sync + 'static {
    /// The answer to `/readyz`.
    fn ready(&self) -> Value;

    /// Sets what is measured only when somebody looks.
    fn set_gauges(&self) {}
}

/// What every role stands on, as far as its health is told: its log, and the stores that its changes go to.
pub(crate) struct Ground {
    audit: Arc<AuditLog>,
    stores: Vec<Condition>,
}

impl Ground {
    pub(crate) fn new(audit: &Arc<AuditLog>, stores: impl Into<Vec<Condition>>) -> Self {
        Self { audit: Arc::clone(audit), stores: stores.into() }
    }

    fn store_fault(&self) -> Option<String> {
        self.stores.iter().find_map(Condition::fault)
    }

    /// Adds `audit_lines`, `audit_waiting` (events of changes that are in the store only), `audit_fault` while the log cannot be written, and
    /// `store_fault` while a store takes no changes; with either of them the status is "degraded".
    pub(crate) fn tell(&self, mut ready: Value) -> Value {
        ready["audit_lines"] = self.audit.latest().seq.into();
        ready["audit_waiting"] = self.audit.outbox_waiting().into();
        if let Some(fault) = self.audit.fault() {
            ready["status"] = "degraded".into();
            ready["audit_fault"] = fault.into();
        }
        if let Some(fault) = self.store_fault() {
            ready["status"] = "degraded".into();
            ready["store_fault"] = format!("the store takes no changes: {fault}").into();
        }
        ready
    }

    pub(crate) fn set_gauges(&self) {
        let number = |is: bool| if is { 1.0 } else { 0.0 };
        gauge!("holdfast_audit_faulty").set(number(self.audit.fault().is_some()));
        gauge!("holdfast_audit_waiting").set(self.audit.outbox_waiting() as f64);
        gauge!("holdfast_store_faulty").set(number(self.store_fault().is_some()));
    }
}

/// Answers for one role.
#[derive(Clone)]
pub(crate) struct Health {
    role: Arc<dyn Told>,
    metrics: PrometheusHandle,
}

impl Health {
    pub(crate) fn new(role: impl Told, metrics: PrometheusHandle) -> Self {
        Self { role: Arc::new(role), metrics }
    }

    /// The answer, if the path is one of these.
    pub(crate) fn answer(&self, path: &str) -> Option<Response<Full<Bytes>>> {
        match path {
            "/healthz" => Some(plain(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")),
            "/readyz" => Some(plain(StatusCode::OK, "application/json", format!("{}\n", self.role.ready()))),
            "/metrics" => {
                self.role.set_gauges();
                Some(plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render()))
            }
            _ => None,
        }
    }

    /// Answers in clear, on a socket of their own.
    pub(crate) fn serve(
        &self,
        socket: TcpListener,
        limits: &ConnectionLimits,
        stopped: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let health = self.clone();
        let handler = server::handler(move |request: Request<Incoming>, _| {
            let answer = health.answer(request.uri().path()).unwrap_or_else(not_found);
            async move { answer }
        });
        tokio::spawn(server::serve("metrics", socket, None::<server::Tls>, limits.behind_nobody(), handler, stopped))
    }
}

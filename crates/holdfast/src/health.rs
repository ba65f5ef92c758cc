//! What orchestrators and Prometheus ask of every role.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
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
        limits: ConnectionLimits,
        stopped: watch::Receiver<bool>,
    ) -> JoinHandle<()> {
        let health = self.clone();
        let handler = server::handler(move |request: Request<Incoming>, _| {
            let answer = health.answer(request.uri().path()).unwrap_or_else(not_found);
            async move { answer }
        });
        tokio::spawn(server::serve("metrics", socket, None::<server::Tls>, limits, handler, stopped))
    }
}

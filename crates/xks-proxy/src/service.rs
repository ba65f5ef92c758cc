//! The life of a request: path, method, room, body, signature, quota, kill switch, then the dialect; and what the log is told.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_core::{AuditEvent, AuditOutcome, Principal};
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::Full;
use metrics::{counter, histogram};

use crate::{
    XksProxy,
    authn::{ClientCertificate, authenticate_certificate, authenticate_sigv4},
    call::Call,
    ekm,
    error::Refusal,
    policy::{Dialect, KeyStore},
    state::Governed,
    using::Told,
    xks,
};
use holdfast_wire::{
    body::{self, BodyFault, BodyLimits},
    hex::hex,
};

/// A body holds a plaintext of 16 KiB and additional data of 64 KiB, in Base64, and what is around it.
const BODY_BYTES_MAX: usize = 160 * 1024;
/// Longest text out of a request that the log repeats; ARNs have up to 2048 characters.
const LOGGED_CHARS_MAX: usize = 2048;
/// Time that is left for the answer when the log has not taken the event yet.
const AUDIT_GRACE: Duration = Duration::from_millis(30);

/// Which dialect a listener speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door {
    /// AWS.
    AwsXks,
    /// Azure.
    AzureEkm,
}

/// Who is at the other end of the connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Where from.
    pub address: Option<SocketAddr>,
    /// Who, if the TLS handshake verified one.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// What is known of a request while it is served.
#[derive(Default)]
struct Trace {
    operation: &'static str,
    store: Option<String>,
    principal: Option<Principal>,
    key: Option<String>,
    client_request_id: Option<String>,
    told: Told,
    context: Vec<(&'static str, String)>,
}

impl XksProxy {
    /// Serves one request.
    pub async fn handle<B>(&self, door: Door, parts: Parts, body: B, peer: &Peer) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
    {
        let started = Instant::now();
        let mut trace = Trace { operation: "Unknown", ..Trace::default() };
        // Held to the end: a change of state waits for those who were judged by the old one.
        let mut judged_by = None;
        let result = self.serve(door, &parts, body, peer, started, &mut trace, &mut judged_by).await;
        // What the use was judged by: a state that is put back is found out by it.
        trace.context.extend(judged_by.as_ref().map(|governed| ("generation", governed.generation.to_string())));
        let labels = [
            ("store", trace.store.clone().unwrap_or_else(|| "none".into())),
            ("operation", trace.operation.to_owned()),
        ];
        let throttled = matches!(result, Err(Refusal::Throttled(_)));
        let result = if throttled {
            // Counted, and told to the log once a second: to write each down would be work without bound.
            if let Some(store) = &trace.store {
                self.quotas.refused(store);
            }
            counter!("holdfast_external_key_store_throttle_total", &labels).increment(1);
            result
        } else {
            self.audited(door, &parts, peer, started, trace, result).await
        };
        let (status, error, body) = match result {
            Ok(body) => (StatusCode::OK, None, body),
            Err(refusal) => {
                let (status, name, body) = match door {
                    Door::AwsXks => xks::error_body(&refusal),
                    Door::AzureEkm => ekm::error_body(&refusal),
                };
                (status, Some(name), body)
            }
        };
        if let Some(error) = error {
            let [(_, store), (_, operation)] = labels.clone();
            let labels = [("store", store), ("operation", operation), ("error", error.to_owned())];
            counter!("holdfast_xks_proxy_errors_total", &labels).increment(1);
        }
        histogram!("holdfast_xks_proxy_latency_seconds", &labels).record(started.elapsed().as_secs_f64());
        respond(status, body)
    }

    #[expect(clippy::too_many_arguments, reason = "one step of one function, which would be long")]
    async fn serve<B>(
        &self,
        door: Door,
        parts: &Parts,
        body: B,
        peer: &Peer,
        started: Instant,
        trace: &mut Trace,
        judged_by: &mut Option<Arc<Governed>>,
    ) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Send,
    {
        let path = parts.uri.path();
        let (prefix, operation, key) = match door {
            Door::AwsXks => {
                let target = xks::route(path).ok_or(Refusal::UnknownPath)?;
                (target.prefix, Operation::Xks(target.operation), target.key)
            }
            Door::AzureEkm => {
                let target = ekm::route(path).ok_or(Refusal::UnknownPath)?;
                (target.prefix, Operation::Ekm(target.operation), target.key)
            }
        };
        let store = store_at(&self.governed(), prefix, door)?;
        trace.operation = operation.name();
        trace.store = Some(store.name.clone());
        trace.key = key.as_ref().map(ToString::to_string);
        if parts.method != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        let body = self.read_body(body).await?;
        // Not before the body is there: who sends slowly would keep others out.
        let place = self.in_flight.try_acquire();
        let _place = place.map_err(|_| Refusal::Throttled("the proxy has no capacity left"))?;
        // A body may take its time; what counts is the state now.
        let governed: &Governed = judged_by.insert(self.governed());
        let store = &store_at(governed, prefix, door)?;
        let principal = match &store.dialect {
            Dialect::AwsXks { region, .. } => {
                let credentials = governed.credentials_of(&store.name);
                authenticate_sigv4(parts, &body, region, credentials, self.ambient.now())?
            }
            Dialect::AzureEkm { .. } => authenticate_certificate(peer.certificate.as_deref(), store)?,
        };
        trace.principal = Some(principal.clone());
        // Before anything is refused: the provider's id of the request joins its log with ours.
        trace.client_request_id = tell_claims(door, &body, &mut trace.context);
        if !self.quotas.admit(&store.name, store.requests_per_sec, started) {
            return Err(Refusal::Throttled("the quota of the external key store is used up"));
        }
        if self.untrusted.load().is_some() {
            return Err(Refusal::Internal("the state on disk is not to be trusted".into()));
        }
        if let Some(kill) = governed.kills.of_store(&store.name) {
            return Err(Refusal::Blocked(format!("{} was stopped by {}", kill.scope, kill.by)));
        }
        let mut call = Call {
            proxy: self,
            governed,
            store,
            body: &body,
            key,
            principal,
            deadline: started + self.limits.hsm_budget,
            told: &mut trace.told,
            context: &mut trace.context,
        };
        match operation {
            Operation::Xks(operation) => xks::answer(&mut call, operation).await,
            Operation::Ekm(operation) => ekm::answer(&mut call, operation, parts.uri.query()).await,
        }
    }

    async fn read_body<B>(&self, body: B) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Send,
    {
        let limits = BodyLimits { bytes_max: BODY_BYTES_MAX, timeout: self.limits.body_timeout };
        body::read(body, limits).await.map_err(|fault| match fault {
            BodyFault::TooLarge => Refusal::Unsupported(format!("a request has at most {BODY_BYTES_MAX} bytes here")),
            BodyFault::Broken => Refusal::invalid("the request body could not be read"),
            BodyFault::TooSlow => Refusal::invalid("the request body did not arrive in time"),
        })
    }

    /// Writes the event down; the answer waits until it is on disk, but not longer than the caller would wait for the answer.
    async fn audited(
        &self,
        door: Door,
        parts: &Parts,
        peer: &Peer,
        started: Instant,
        trace: Trace,
        result: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        let operation = trace.operation;
        let refused = result.as_ref().err().map(|refusal| match door {
            Door::AwsXks => (xks::error_body(refusal), refusal),
            Door::AzureEkm => (ekm::error_body(refusal), refusal),
        });
        let (status, outcome, error_code, reason) = match &refused {
            None => (StatusCode::OK, AuditOutcome::Allowed, None, trace.told.rule),
            Some(((status, name, _), refusal)) => (*status, refusal.outcome(), Some(*name), Some(refusal.to_string())),
        };
        if let Some(reason) = reason.as_ref().filter(|_| outcome == AuditOutcome::Denied) {
            tracing::warn!(operation, store = trace.store, key = trace.key, reason, "denied");
        } else if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
            tracing::error!(operation, store = trace.store, key = trace.key, reason, "a request failed");
        }
        let mut context = trace.context;
        context.extend(trace.store.map(|store| ("store", store)));
        context.extend(trace.told.hsm.map(|hsm| ("hsm", hsm)));
        let event = AuditEvent {
            time: self.ambient.now(),
            operation,
            principal: trace.principal,
            key: trace.key,
            key_version: trace.told.version.map(|version| version.to_string()),
            algorithm: None,
            outcome,
            status: status.as_u16(),
            error_code,
            reason,
            request_id: self.request_id(),
            client_request_id: trace.client_request_id,
            source: peer.address.map(|address| address.to_string()),
            user_agent: None,
            context,
            path: printable(parts.uri.path()),
            duration_us: started.elapsed().as_micros() as u64,
        };
        let left = (self.limits.answer_budget + AUDIT_GRACE).saturating_sub(started.elapsed());
        match tokio::time::timeout(left, self.audit.append(event)).await {
            Ok(Ok(())) => result,
            Ok(Err(error)) => {
                tracing::error!(%error, "the audit log could not be written");
                Err(error.into())
            }
            // What is logged as done is then told as not done: the other way round must never be.
            Err(_) => Err(Refusal::TimedOut("the audit log")),
        }
    }

    pub(crate) fn request_id(&self) -> String {
        let bytes: [u8; 16] = self.ambient.random();
        hex(&bytes)
    }

    /// Tells the log how many requests were throttled since the last time.
    pub async fn report_throttled(&self) {
        for (store, count) in self.quotas.take_refused() {
            let context = vec![("count", count.to_string()), ("store", store)];
            if let Err(error) = self.note("Throttled", None, AuditOutcome::Failed, None, context).await {
                tracing::error!(%error, "the audit log could not be written");
            }
        }
    }
}

/// The store at a prefix, if it speaks this dialect.
fn store_at(governed: &Governed, prefix: &str, door: Door) -> Result<Arc<KeyStore>, Refusal> {
    let store = governed.policy.store_at(prefix).filter(|store| store.is_xks() == (door == Door::AwsXks));
    store.cloned().ok_or(Refusal::UnknownPath)
}

enum Operation {
    Ekm(ekm::Operation),
    Xks(xks::Operation),
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::Ekm(operation) => operation.name(),
            Self::Xks(operation) => operation.name(),
        }
    }
}

/// Puts what the request says of itself into the log's context; gives the provider's own id of the request.
fn tell_claims(door: Door, body: &[u8], context: &mut Vec<(&'static str, String)>) -> Option<String> {
    let mut tell = |name, value: Option<String>| context.extend(value.map(|value| (name, printable(&value))));
    match door {
        Door::AwsXks => {
            let claims = xks::claims_of(body);
            tell("awsPrincipalArn", claims.aws_principal_arn);
            tell("kmsKeyArn", claims.kms_key_arn);
            tell("kmsOperation", claims.kms_operation);
            tell("kmsViaService", claims.kms_via_service);
            tell("awsSourceVpc", claims.aws_source_vpc);
            tell("awsSourceVpce", claims.aws_source_vpce);
            claims.kms_request_id.map(|id| printable(&id))
        }
        Door::AzureEkm => {
            let context = ekm::context_of(body);
            tell("poolName", context.pool_name);
            tell("requestId", context.request_id);
            context.correlation_id.map(|id| printable(&id))
        }
    }
}

fn printable(text: &str) -> String {
    holdfast_wire::printable(text, LOGGED_CHARS_MAX)
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        StatusCode::TOO_MANY_REQUESTS => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

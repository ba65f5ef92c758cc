//! The life of a request: authenticate, route, authorize, read, act, audit, answer.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;
use holdfast_core::{Action, AuditEvent, AuditOutcome, Principal, authorize};
use holdfast_wire::body::{self, BodyFault, BodyLimits};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::Full;
use metrics::{counter, histogram};

use crate::{
    ManagedHsm,
    authn::Rejection,
    error::ApiError,
    ops::{self, Call, Facts, Reply},
    query::Query,
    rbac::data_action_name,
    route::{Route, printable},
};

/// Longest header value that is repeated in the audit log or the answer.
const ECHOED_CHARS_MAX: usize = 128;

/// What is known of a request while it is served.
struct Trace {
    request_id: String,
    operation: &'static str,
    principal: Option<Principal>,
    key: Option<String>,
    facts: Facts,
    rule: Option<String>,
}

impl ManagedHsm {
    /// Serves one request. The body is not read before the caller is authenticated and authorized.
    pub async fn handle<B>(&self, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
    {
        let started = Instant::now();
        let mut trace = Trace {
            request_id: self.request_id(),
            operation: "Unknown",
            principal: None,
            key: None,
            facts: Facts::default(),
            rule: None,
        };
        let result = self.serve(&parts, body, &mut trace).await;
        let elapsed = started.elapsed();
        let operation = trace.operation;
        let request_id = trace.request_id.clone();
        let event = event(&parts, source, trace, &result, self.ambient.now(), elapsed.as_micros() as u64);
        let (status, outcome) = (event.status, event.outcome.as_str());
        let result = match self.audit.append(event).await {
            Ok(()) => result,
            Err(error) => Err(ApiError::from(error)),
        };
        counter!("holdfast_hsm_requests_total", "operation" => operation, "outcome" => outcome).increment(1);
        histogram!("holdfast_hsm_request_duration_seconds", "operation" => operation)
            .record(started.elapsed().as_secs_f64());
        if let Err(error) = &result
            && error.status.is_server_error()
            && error.status != StatusCode::NOT_IMPLEMENTED
        {
            let reason = error.reason.as_deref().unwrap_or_default();
            tracing::error!(%request_id, operation, status, reason, "request failed");
        }
        self.respond(&parts.headers, &request_id, result)
    }

    fn request_id(&self) -> String {
        crate::guid(self.ambient.random())
    }

    async fn serve<B>(&self, parts: &Parts, body: B, trace: &mut Trace) -> Result<Reply, ApiError>
    where
        B: Body<Data = Bytes> + Send,
    {
        let path = parts.uri.path();
        let route = Route::parse(&parts.method, path);
        // Named before the caller is known, so that refused attempts are told apart in the log.
        if let Ok(route) = &route {
            trace.operation = route.operation();
            let (name, version) = route.key();
            trace.key = name.map(ToString::to_string);
            trace.facts.version = version;
        }
        let principal = self.authenticate(&parts.headers).await?;
        trace.principal = Some(principal.clone());
        let route = route?;
        let query = Query::parse(parts.uri.query());
        query.check_api_version(path)?;
        let intent = route.intent();
        let permit = authorize(&**self.rbac.state(), &principal, intent)
            .map_err(|denial| ApiError::access_denied(&data_action_name(denial.intent.action), &denial))?;
        trace.rule = Some(permit.rule().to_owned());
        let body = self.read_body(body).await?;
        let base_url = self.hosts.base_url(host(&parts.headers));
        let mut call = Call { hsm: self, body: &body, query: &query, base_url: &base_url, facts: &mut trace.facts };
        ops::dispatch(&route, permit, &mut call).await
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, ApiError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next();
        let principal = if values.next().is_some() {
            Err(Rejection::BadToken("more than one Authorization header".into()))
        } else {
            self.authenticator.authenticate(value).await
        };
        principal.map_err(|rejection| match &rejection {
            Rejection::IssuerUnavailable(why) => {
                ApiError::unavailable("IdentityProviderUnavailable", &rejection.message(), why.clone())
            }
            Rejection::NoToken | Rejection::BadToken(_) | Rejection::WrongAudience { .. } => {
                ApiError::unauthorized(rejection.message(), rejection.to_string())
            }
        })
    }

    /// Reads the body, within its bounds of size and time.
    async fn read_body<B>(&self, body: B) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes> + Send,
    {
        let limits = BodyLimits { bytes_max: self.limits.body_bytes_max, timeout: self.limits.body_timeout };
        body::read(body, limits).await.map_err(|fault| match fault {
            BodyFault::Broken => ApiError::bad_parameter("The request body could not be read"),
            BodyFault::TooLarge => ApiError::too_large(limits.bytes_max),
            BodyFault::TooSlow => ApiError::request_timeout(),
        })
    }

    fn respond(&self, request: &HeaderMap, request_id: &str, result: Result<Reply, ApiError>) -> Response<Full<Bytes>> {
        let (status, body, error) = match result {
            Ok(reply) => (reply.status, reply.body, None),
            Err(error) => (error.status, error.body(request_id), Some(error)),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let fixed = HeaderValue::from_static;
        if status != StatusCode::NO_CONTENT {
            headers.insert(header::CONTENT_TYPE, fixed("application/json; charset=utf-8"));
        }
        headers.insert(header::CACHE_CONTROL, fixed("no-cache"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
        headers.insert(header::STRICT_TRANSPORT_SECURITY, fixed("max-age=31536000;includeSubDomains"));
        if let Ok(value) = HeaderValue::try_from(request_id) {
            headers.insert("x-ms-request-id", value);
        }
        if let Some(value) = request.get("x-ms-client-request-id").filter(|value| value.len() <= ECHOED_CHARS_MAX) {
            headers.insert("x-ms-client-request-id", value.clone());
        }
        if let Some(error) = error {
            if matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
                // The rest of the body is not waited for.
                headers.insert(header::CONNECTION, fixed("close"));
            }
            if let Some(secs) = error.retry_after_secs {
                headers.insert(header::RETRY_AFTER, secs.into());
            }
            if status == StatusCode::UNAUTHORIZED
                && let Some(challenge) = self.hosts.challenge(host(request))
            {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        response
    }

    /// Automatic acts: rotation by policy, purge after retention. Each is an event of its own.
    pub async fn maintain(&self) {
        let now = self.keys.now();
        for name in self.keys.names_where(|entry| crate::rotation::is_due(entry, now)) {
            let mut trace = self.system_trace("KeyRotateAutomatic", name.to_string());
            let result = match self.system_permit(Action::KeyRotate, &name) {
                Ok(permit) => ops::rotate_by_itself(self, permit, &name).await,
                Err(error) => Err(error),
            };
            if let Ok(version) = &result {
                trace.facts.version = *version;
            }
            if !matches!(result, Ok(None)) {
                self.record_system(trace, result.map(|_| ())).await;
            }
        }
        for name in self.keys.names_where(|entry| entry.deletion.is_some_and(|deletion| deletion.purge <= now)) {
            let trace = self.system_trace("KeyPurgeAutomatic", name.to_string());
            let lock = self.keys.lock(&name).await;
            let Ok((entry, deletion)) = self.keys.deleted(&name) else { continue };
            if deletion.purge <= now {
                let result = ops::purge_for_good(self, &lock, &entry).await;
                self.record_system(trace, result).await;
            }
        }
    }

    fn system_permit(&self, action: Action, name: &holdfast_core::KeyName) -> Result<holdfast_core::Permit, ApiError> {
        let intent = holdfast_core::Intent { action, resource: holdfast_core::Resource::Key(name.clone()) };
        authorize(&SystemPolicy, &Principal::system(), intent).map_err(|denial| ApiError::internal(denial.to_string()))
    }

    fn system_trace(&self, operation: &'static str, key: String) -> Trace {
        Trace {
            request_id: self.request_id(),
            operation,
            principal: Some(Principal::system()),
            key: Some(key),
            facts: Facts::default(),
            rule: Some("the key's own policy".into()),
        }
    }

    async fn record_system(&self, trace: Trace, result: Result<(), ApiError>) {
        let operation = trace.operation;
        let result = result.map(|()| Reply { status: StatusCode::OK, body: Bytes::new() });
        let (parts, ()) = http::Request::new(()).into_parts();
        let event = event(&parts, None, trace, &result, self.ambient.now(), 0);
        if let Err(error) = &result {
            tracing::error!(
                operation,
                reason = error.reason.as_deref(),
                message = error.message,
                "an automatic act failed"
            );
        }
        if let Err(error) = self.audit.append(event).await {
            tracing::error!(operation, %error, "an automatic act is missing from the audit log");
        }
    }
}

/// What the service does by itself: rotate keys, as their policies say.
struct SystemPolicy;

impl holdfast_core::Policy for SystemPolicy {
    fn decide(&self, principal: &Principal, intent: &holdfast_core::Intent) -> holdfast_core::Decision {
        use holdfast_core::{Decision, PrincipalKind};
        if principal.kind() == PrincipalKind::System && intent.action == Action::KeyRotate {
            Decision::Allow("the key's own policy".into())
        } else {
            Decision::Deny("the service does nothing else by itself".into())
        }
    }
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST).and_then(|value| value.to_str().ok())
}

/// A client's header, shortened and made printable.
fn echoed(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<String> {
    let text = String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned();
    Some(text.chars().take(ECHOED_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect())
}

fn event(
    parts: &Parts,
    source: Option<SocketAddr>,
    trace: Trace,
    result: &Result<Reply, ApiError>,
    now: holdfast_core::Timestamp,
    duration_us: u64,
) -> AuditEvent {
    let (status, outcome, error_code, reason) = match result {
        Ok(reply) => (reply.status, AuditOutcome::Allowed, None, trace.rule),
        Err(error) => {
            let reason = error.reason.clone().unwrap_or_else(|| error.message.clone());
            (error.status, error.outcome(), Some(error.code), Some(reason))
        }
    };
    AuditEvent {
        time: now,
        operation: trace.operation,
        principal: trace.principal,
        key: trace.key,
        key_version: trace.facts.version.map(|version| version.to_string()),
        algorithm: trace.facts.algorithm,
        outcome,
        status: status.as_u16(),
        error_code,
        reason,
        request_id: trace.request_id,
        client_request_id: echoed(&parts.headers, "x-ms-client-request-id"),
        source: source.map(|address| address.to_string()),
        user_agent: echoed(&parts.headers, header::USER_AGENT),
        context: Vec::new(),
        path: printable_path(parts.uri.path()),
        duration_us,
    }
}

/// Long enough for every real path.
fn printable_path(path: &str) -> String {
    if path.len() <= 512 && path.bytes().all(|byte| byte.is_ascii_graphic()) {
        path.to_owned()
    } else {
        printable(path)
    }
}

//! The life of a request: take apart, read, authenticate, act, audit, answer.

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;
use holdfast_core::{AuditEvent, AuditOutcome, Principal};
use holdfast_wire::{
    body::{self, BodyLimits},
    hex::hex,
    printable,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::Full;
use metrics::{counter, histogram};

use crate::{
    Kms, authn,
    call::{Call, Told},
    error::ApiError,
    keys::KeyRef,
    operation::Operation,
    ops,
    usage::LastUse,
};

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// How often a request is decided anew because another one changed what it rests on. Each of them has done its own work.
const ATTEMPTS_MAX: usize = 16;
/// Longest header value that the log repeats.
const ECHOED_CHARS_MAX: usize = 128;

/// What is known of a request while it is served.
struct Trace {
    request_id: String,
    /// None: no such operation.
    operation: Option<Operation>,
    principal: Option<Principal>,
    told: Told,
}

impl Kms {
    /// Serves one request.
    pub async fn handle<B>(&self, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
    {
        let started = Instant::now();
        let mut trace = Trace { request_id: self.new_uuid(), operation: None, principal: None, told: Told::default() };
        let result = self.serve(&parts, body, source, &mut trace).await;
        let (asked, request_id) = (trace.operation, trace.request_id.clone());
        let operation = asked.map_or("Unknown", Operation::name);
        let used = trace.told.used.split_off(0);
        let event = self.event(&parts, source, trace, &result, started.elapsed().as_micros() as u64);
        let outcome = event.outcome.as_str();
        let result = match self.audit.append(event).await {
            Ok(()) => result,
            Err(error) => Err(ApiError::from(error)),
        };
        if let (Ok(_), Some(asked)) = (&result, asked) {
            self.note_use(asked, used, &request_id);
        }
        counter!("holdfast_kms_requests_total", "operation" => operation, "outcome" => outcome).increment(1);
        histogram!("holdfast_kms_request_duration_seconds", "operation" => operation)
            .record(started.elapsed().as_secs_f64());
        if let Err(error) = &result
            && error.status().is_server_error()
        {
            let reason = error.reason.as_deref().unwrap_or(&error.message);
            tracing::error!(%request_id, operation, reason, "request failed");
        }
        respond(&request_id, result)
    }

    fn note_use(&self, operation: Operation, used: Vec<KeyRef>, request_id: &str) {
        let at = self.ambient.now();
        for key in used.into_iter().filter(|key| self.keys.entry(key).is_some()) {
            self.usage.note(key, LastUse { operation, at, request_id: request_id.into() });
        }
    }

    /// A random UUID (RFC 9562, version 4).
    pub(crate) fn new_uuid(&self) -> String {
        crate::names::KeyId::new(self.ambient.random(), false).to_string()
    }

    async fn serve<B>(
        &self,
        parts: &Parts,
        body: B,
        source: Option<SocketAddr>,
        trace: &mut Trace,
    ) -> Result<Bytes, ApiError>
    where
        B: Body<Data = Bytes> + Send,
    {
        let target = header_text(&parts.headers, "x-amz-target");
        trace.operation = target.and_then(Operation::parse);
        let limits = BodyLimits { bytes_max: self.limits.body_bytes_max, timeout: self.limits.body_timeout };
        let body = body::read(body, limits).await?;
        // Not before the body is there: who sends slowly would keep others out.
        let place = self.in_flight.try_acquire();
        let _place = place.map_err(|_| ApiError::throttled("Rate exceeded"))?;
        let now = self.ambient.now();
        let (identity, region) = self.directory.authenticate(parts, &body, &self.regions, now)?;
        trace.principal = Some(identity.principal().clone());
        let source_arn = authn::source_arn(parts, &identity)?;
        let told = || Told {
            context: source_arn.map(|arn| ("source-arn", arn.to_owned())).into_iter().collect(),
            ..Told::default()
        };
        trace.told = told();
        let is_call = parts.method == Method::POST && parts.uri.path() == "/";
        let Some(operation) = trace.operation.filter(|_| is_call) else {
            return Err(ApiError::new("UnknownOperationException", "There is no such operation"));
        };
        let mut call = Call {
            kms: self,
            operation,
            parts,
            body: &body,
            identity: &identity,
            region: &region,
            source: source.map(|source| source.ip()),
            source_arn,
            request_id: &trace.request_id,
            now,
            told: &mut trace.told,
        };
        // Conflicts are ours to settle: the caller is told what holds on the state as it is now.
        for _ in 1..ATTEMPTS_MAX {
            let result = ops::dispatch(&mut call).await;
            if !result.as_ref().is_err_and(ApiError::is_stale) {
                return result;
            }
            *call.told = told();
        }
        ops::dispatch(&mut call).await
    }

    fn event(
        &self,
        parts: &Parts,
        source: Option<SocketAddr>,
        trace: Trace,
        result: &Result<Bytes, ApiError>,
        duration_us: u64,
    ) -> AuditEvent {
        let Trace { request_id, operation, principal, told } = trace;
        let (status, outcome, error_code, reason) = match result {
            Ok(_) => (StatusCode::OK, AuditOutcome::Allowed, None, told.rule),
            Err(error) => {
                let reason = error.reason.clone().or_else(|| Some(error.message.clone()));
                (error.status(), error.outcome(), Some(error.code), reason)
            }
        };
        let mut context = told.context;
        context.extend(told.via_service.map(|service| ("via-service", service)));
        context.extend(told.context_sha256.map(|digest| ("encryption-context-sha256", hex(&digest))));
        AuditEvent {
            time: self.ambient.now(),
            operation: operation.map_or("Unknown", Operation::name),
            principal,
            key: told.key,
            key_version: told.material,
            algorithm: told.algorithm,
            outcome,
            status: status.as_u16(),
            error_code,
            reason,
            request_id,
            client_request_id: header_text(&parts.headers, "amz-sdk-invocation-id").map(echoed),
            source: source.map(|address| address.to_string()),
            user_agent: header_text(&parts.headers, header::USER_AGENT.as_str()).map(echoed),
            context,
            path: printable(parts.uri.path(), ECHOED_CHARS_MAX),
            duration_us,
        }
    }

    /// Writes down what the service did by itself.
    pub(crate) async fn record_by_itself(&self, operation: &'static str, key: &str, result: Result<String, ApiError>) {
        let (outcome, error_code, reason) = match &result {
            Ok(rule) => (AuditOutcome::Allowed, None, rule.clone()),
            Err(error) => (AuditOutcome::Failed, Some(error.code), error.message.clone()),
        };
        let event = AuditEvent {
            time: self.ambient.now(),
            operation,
            principal: Some(Principal::system()),
            key: Some(key.to_owned()),
            key_version: None,
            algorithm: None,
            outcome,
            status: if result.is_ok() { 200 } else { 500 },
            error_code,
            reason: Some(reason),
            request_id: self.new_uuid(),
            client_request_id: None,
            source: None,
            user_agent: None,
            context: Vec::new(),
            path: "/".into(),
            duration_us: 0,
        };
        if let Err(error) = self.audit.append(event).await {
            tracing::error!(operation, %error, "an automatic act is missing from the audit log");
        }
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn echoed(text: &str) -> String {
    printable(text, ECHOED_CHARS_MAX)
}

fn respond(request_id: &str, result: Result<Bytes, ApiError>) -> Response<Full<Bytes>> {
    let (status, body) = match result {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (error.status(), error.body()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate, private"));
    if let Ok(value) = HeaderValue::try_from(request_id) {
        headers.insert("x-amzn-requestid", value);
    }
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

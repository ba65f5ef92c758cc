//! The dialect of AWS KMS, stage by stage: what a request names, who signed it, what is done, what is told.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{AuditEvent, Principal, Timestamp};
use holdfast_service::{
    Client, Confirmed, Dialect, Done, Ended, Failure, Fault, Head, Request, Told as Tells, Trace, Written,
    measure_requests,
};
use holdfast_wire::{body::BodyLimits, hex::hex, printable};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;

use crate::{
    Kms,
    authn::{self, Identity},
    basis::{Asker, Basis},
    call::{Call, Told},
    code::Code,
    error::ApiError,
    keys::KeyRef,
    operation::Operation,
    ops,
    usage::LastUse,
};

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// Longest header value that the log repeats.
const ECHOED_CHARS_MAX: usize = 128;

/// The dialect at the door of one service.
pub(crate) struct AwsKms<'a>(pub &'a Kms);

/// Who signed a request, in which region, and when that was checked.
pub(crate) struct Caller {
    identity: Arc<Identity>,
    region: Arc<str>,
    now: Timestamp,
}

/// What a success has to say, what that rests on, and the keys that it used.
pub(crate) struct Reply {
    body: Bytes,
    basis: Basis,
    operation: Operation,
    used: Vec<KeyRef>,
}

impl Tells for Told {
    fn tell(&mut self, event: &mut AuditEvent) {
        event.key = self.key.take();
        event.key_version = self.material.take();
        event.algorithm = self.algorithm.take();
        event.reason = self.rule.take();
        event.context = std::mem::take(&mut self.context);
        event.context.extend(self.via_service.take().map(|service| ("via-service", service)));
        event.context.extend(self.context_sha256.map(|digest| ("encryption-context-sha256", hex(&digest))));
    }
}

impl Dialect for AwsKms<'_> {
    type Told = Told;
    /// None: no such operation, which only those hear who are known.
    type Route = Option<Operation>;
    type Early = ();
    type Caller = Caller;
    type Act = Operation;
    /// The body names the keys, so each operation asks for its permits itself, of [`Call::permit`].
    type Leave = ();
    type Reply = Reply;
    type Error = ApiError;

    fn request_id(&self) -> String {
        self.0.new_uuid()
    }

    fn client(&self, head: &Head) -> Client {
        Client {
            request_id: head.header("amz-sdk-invocation-id").map(echoed),
            user_agent: head.header(header::USER_AGENT.as_str()).map(echoed),
            path: echoed(head.path()),
        }
    }

    fn route(&self, head: &Head, _: &mut Told) -> Result<Option<Operation>, ApiError> {
        Ok(head.header("x-amz-target").and_then(Operation::parse))
    }

    fn operation(route: &Option<Operation>) -> &'static str {
        route.map_or("Unknown", Operation::name)
    }

    /// The signature is over the body, too: nothing is known before it is there.
    async fn early(&self, _: &Head, _: &Option<Operation>, _: &mut Trace) -> Result<(), ApiError> {
        Ok(())
    }

    fn body_limits(&self) -> BodyLimits {
        BodyLimits { bytes_max: self.0.limits.body_bytes_max, timeout: self.0.limits.body_timeout }
    }

    async fn caller(
        &self,
        request: &Request<'_>,
        _: &Option<Operation>,
        (): (),
        _: &mut Told,
    ) -> Result<Caller, ApiError> {
        let now = self.0.ambient.now();
        let parts = request.head().parts();
        let (identity, region) = self.0.directory.authenticate(parts, request.body(), &self.0.regions, now)?;
        Ok(Caller { identity, region, now })
    }

    fn principal(caller: &Caller) -> &Principal {
        caller.identity.principal()
    }

    fn act(
        &self,
        request: &Request<'_>,
        route: Option<Operation>,
        caller: &Caller,
        told: &mut Told,
        _: &mut Client,
    ) -> Result<Operation, ApiError> {
        let parts = request.head().parts();
        *told = Told::on_behalf_of(authn::source_arn(parts, &caller.identity)?);
        let is_call = parts.method == Method::POST && parts.uri.path() == "/";
        route.filter(|_| is_call).ok_or_else(|| ApiError::new(Code::UnknownOperation, "There is no such operation"))
    }

    fn judge(&self, _: &Request<'_>, _: &Caller, _: &Operation, _: &mut Told) -> Result<(), ApiError> {
        Ok(())
    }

    async fn perform(
        &self,
        request: &Request<'_>,
        caller: &Caller,
        operation: &Operation,
        (): (),
        trace: &Trace,
        told: &mut Told,
    ) -> Result<Done<Reply>, ApiError> {
        let operation = *operation;
        let parts = request.head().parts();
        let source_arn = authn::source_arn(parts, &caller.identity)?;
        let source = request.head().source().map(|source| source.ip());
        let (identity, region, now) = (&caller.identity, &caller.region, caller.now);
        let basis = Basis::new(self.0, Asker { identity, region, source, source_arn, now });
        let mut call = Call {
            kms: self.0,
            operation,
            parts,
            body: request.body(),
            identity,
            region,
            source,
            source_arn,
            request_id: trace.request_id(),
            trace,
            now,
            told,
            basis,
        };
        let done = ops::dispatch(&mut call).await;
        let Call { told, basis, .. } = call;
        match done {
            Ok(done) => {
                let used = std::mem::take(&mut told.used);
                Ok(done.map(|body| Reply { body, basis, operation, used }))
            }
            Err(error) => {
                told.refused_on = error.tells_of_a_use().then(|| Arc::new(basis));
                Err(error)
            }
        }
    }

    fn is_stale(&self, error: &ApiError) -> bool {
        error.is_stale()
    }

    fn confirm(&self, caller: &Caller, _: &Operation, reply: &Reply) -> Result<(), ApiError> {
        reply.basis.confirm(self.0, &caller.identity, &caller.region)
    }

    fn confirm_refusal(
        &self,
        caller: &Caller,
        _: &Operation,
        told: &Told,
        _: &ApiError,
    ) -> Option<Result<(), ApiError>> {
        let basis = told.refused_on.as_ref()?;
        Some(basis.confirm(self.0, &caller.identity, &caller.region))
    }

    fn status(_: &Reply) -> StatusCode {
        StatusCode::OK
    }

    fn failure(&self, error: &ApiError) -> Failure {
        Failure {
            status: error.status(),
            code: error.code.name(),
            outcome: error.outcome(),
            reason: error.reason.as_ref().unwrap_or(&error.message).clone(),
            written: Written::Each,
        }
    }

    fn fault(&self, fault: Fault) -> ApiError {
        match fault {
            Fault::Body(fault) => fault.into(),
            Fault::NoPlace => ApiError::throttled("Rate exceeded"),
            Fault::Unrecorded(error) => error.into(),
            Fault::RecordedTooLate => {
                ApiError::internal("the audit log did not answer in time").caused_by(holdfast_wire::Cause::Outage)
            }
        }
    }

    fn measure(&self, ended: &Ended<'_, Told>) {
        measure_requests("holdfast_kms_requests_total", "holdfast_kms_request_duration_seconds", ended);
        ended.log_fault();
    }

    fn answer(&self, _: &Head, trace: &Trace, outcome: Confirmed<Result<Reply, ApiError>>) -> Response<Full<Bytes>> {
        let (status, body) = match outcome.into_inner() {
            Ok(Reply { body, operation, used, .. }) => {
                self.0.note_use(operation, used, trace.request_id());
                (StatusCode::OK, body)
            }
            Err(error) => (error.status(), error.body()),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate, private"));
        if let Ok(value) = HeaderValue::try_from(trace.request_id()) {
            headers.insert("x-amzn-requestid", value);
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Kms {
    fn note_use(&self, operation: Operation, used: Vec<KeyRef>, request_id: &str) {
        let at = self.ambient.now();
        for key in used.into_iter().filter(|key| self.keys.entry(key).is_some()) {
            self.usage.note(key, LastUse { operation, at, request_id: request_id.into() });
        }
    }
}

impl Told {
    /// At the beginning of a request: the resource that a service asks for.
    fn on_behalf_of(source_arn: Option<&str>) -> Self {
        Self { context: source_arn.map(|arn| ("source-arn", arn.to_owned())).into_iter().collect(), ..Self::default() }
    }
}

fn echoed(text: &str) -> String {
    printable(text, ECHOED_CHARS_MAX)
}

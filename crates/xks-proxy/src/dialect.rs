//! Both dialects, stage by stage. What differs between them is a [`Protocol`].

use std::{marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_core::{AuditEvent, AuditOutcome, ExternalKeyId, Principal};
use holdfast_service::{
    Client, Confirmed, Dialect, Done, Ended, Failure, Fault, Head, Request, Told as Tells, Trace, Written,
};
use holdfast_wire::{
    body::{BodyFault, BodyLimits},
    hex::hex,
};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use metrics::{counter, histogram};

use crate::{
    XksProxy,
    authn::{Rejection, authenticate_certificate, authenticate_sigv4},
    call::Call,
    ekm,
    error::Refusal,
    policy::{Dialect as Speech, KeyStore},
    service::Peer,
    state::Governed,
    using::Told,
    xks,
};

/// A body holds a plaintext of 16 KiB and additional data of 64 KiB, in Base64, and what is around it.
const BODY_BYTES_MAX: usize = 160 * 1024;
/// Longest text out of a request that the log repeats; ARNs have up to 2048 characters.
const LOGGED_CHARS_MAX: usize = 2048;
/// Time that is left for the answer when the log has not taken the event yet.
const AUDIT_GRACE: Duration = Duration::from_millis(30);

/// What one provider's key service says otherwise than another's.
pub(crate) trait Protocol: Send + Sync + 'static {
    type Operation: Copy + Send + Sync;

    /// Prefix of the store, operation and key that a path names.
    fn route(path: &str) -> Option<(&str, Self::Operation, Option<ExternalKeyId>)>;

    fn name(operation: Self::Operation) -> &'static str;

    /// Whether a store is of this dialect.
    fn speaks(store: &KeyStore) -> bool;

    /// Who asks a store.
    fn authenticate(
        proxy: &XksProxy,
        request: &Request<'_>,
        peer: &Peer,
        governed: &Governed,
        store: &KeyStore,
    ) -> Result<Principal, Rejection>;

    /// What the request says of itself, for the log: the provider's own id of it, and more by name.
    fn claims(body: &[u8]) -> (Option<String>, Vec<(&'static str, Option<String>)>);

    /// Does what an authenticated request asks.
    fn answer(
        call: &mut Call<'_>,
        operation: Self::Operation,
        query: Option<&str>,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// Status, name and body of a refusal.
    fn refusal(refusal: &Refusal) -> (StatusCode, &'static str, Bytes);
}

/// AWS's protocol.
pub(crate) struct AwsXks;

impl Protocol for AwsXks {
    type Operation = xks::Operation;

    fn route(path: &str) -> Option<(&str, Self::Operation, Option<ExternalKeyId>)> {
        xks::route(path).map(|target| (target.prefix, target.operation, target.key))
    }

    fn name(operation: Self::Operation) -> &'static str {
        operation.name()
    }

    fn speaks(store: &KeyStore) -> bool {
        store.is_xks()
    }

    fn authenticate(
        proxy: &XksProxy,
        request: &Request<'_>,
        _: &Peer,
        governed: &Governed,
        store: &KeyStore,
    ) -> Result<Principal, Rejection> {
        let Speech::AwsXks { region, .. } = &store.dialect else {
            return Err(Rejection("the store does not know signatures"));
        };
        let credentials = governed.credentials_of(&store.name);
        authenticate_sigv4(request.head().parts(), request.body(), region, credentials, proxy.ambient.now())
    }

    fn claims(body: &[u8]) -> (Option<String>, Vec<(&'static str, Option<String>)>) {
        let claims = xks::claims_of(body);
        let named = vec![
            ("awsPrincipalArn", claims.aws_principal_arn),
            ("kmsKeyArn", claims.kms_key_arn),
            ("kmsOperation", claims.kms_operation),
            ("kmsViaService", claims.kms_via_service),
            ("awsSourceVpc", claims.aws_source_vpc),
            ("awsSourceVpce", claims.aws_source_vpce),
        ];
        (claims.kms_request_id, named)
    }

    async fn answer(call: &mut Call<'_>, operation: Self::Operation, _: Option<&str>) -> Result<Bytes, Refusal> {
        xks::answer(call, operation).await
    }

    fn refusal(refusal: &Refusal) -> (StatusCode, &'static str, Bytes) {
        xks::error_body(refusal)
    }
}

/// Azure's protocol.
pub(crate) struct AzureEkm;

impl Protocol for AzureEkm {
    type Operation = ekm::Operation;

    fn route(path: &str) -> Option<(&str, Self::Operation, Option<ExternalKeyId>)> {
        ekm::route(path).map(|target| (target.prefix, target.operation, target.key))
    }

    fn name(operation: Self::Operation) -> &'static str {
        operation.name()
    }

    fn speaks(store: &KeyStore) -> bool {
        !store.is_xks()
    }

    fn authenticate(
        _: &XksProxy,
        _: &Request<'_>,
        peer: &Peer,
        _: &Governed,
        store: &KeyStore,
    ) -> Result<Principal, Rejection> {
        authenticate_certificate(peer.certificate.as_deref(), store)
    }

    fn claims(body: &[u8]) -> (Option<String>, Vec<(&'static str, Option<String>)>) {
        let context = ekm::context_of(body);
        (context.correlation_id, vec![("poolName", context.pool_name), ("requestId", context.request_id)])
    }

    async fn answer(call: &mut Call<'_>, operation: Self::Operation, query: Option<&str>) -> Result<Bytes, Refusal> {
        ekm::answer(call, operation, query).await
    }

    fn refusal(refusal: &Refusal) -> (StatusCode, &'static str, Bytes) {
        ekm::error_body(refusal)
    }
}

/// One dialect at its door, and who is at the other end of the connection.
pub(crate) struct ProxyDoor<'a, P> {
    proxy: &'a XksProxy,
    peer: &'a Peer,
    protocol: PhantomData<P>,
}

impl<'a, P> ProxyDoor<'a, P> {
    pub(crate) fn new(proxy: &'a XksProxy, peer: &'a Peer) -> Self {
        Self { proxy, peer, protocol: PhantomData }
    }

    fn must_be_trusted(&self) -> Result<(), Refusal> {
        if self.proxy.untrusted.load().is_some() {
            return Err(Refusal::Internal("the state on disk is not to be trusted".into()));
        }
        Ok(())
    }
}

/// What a path names. Which store that is, is looked at again when the body is there.
pub(crate) struct Target<O> {
    prefix: String,
    operation: O,
    key: Option<ExternalKeyId>,
}

/// A key service that has proved itself to a store, and the state that it was judged by.
pub(crate) struct Caller {
    governed: Arc<Governed>,
    store: Arc<KeyStore>,
    principal: Principal,
}

/// What the log is told.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    store: Option<String>,
    key: Option<String>,
    told: Told,
    context: Vec<(&'static str, String)>,
}

impl Tells for Facts {
    fn tell(&mut self, event: &mut AuditEvent) {
        event.key = self.key.clone();
        event.key_version = self.told.version.map(|version| version.to_string());
        event.reason = self.told.rule.take();
        event.context = std::mem::take(&mut self.context);
        event.context.extend(self.store.clone().map(|store| ("store", store)));
        event.context.extend(self.told.hsm.take().map(|hsm| ("hsm", hsm)));
    }
}

/// The store at a prefix, if it speaks this dialect.
fn store_at<P: Protocol>(governed: &Governed, prefix: &str) -> Result<Arc<KeyStore>, Refusal> {
    let store = governed.policy.store_at(prefix).filter(|store| P::speaks(store));
    store.cloned().ok_or(Refusal::UnknownPath)
}

fn printable(text: &str) -> String {
    holdfast_wire::printable(text, LOGGED_CHARS_MAX)
}

impl<P: Protocol> Dialect for ProxyDoor<'_, P> {
    type Told = Facts;
    type Route = Target<P::Operation>;
    type Early = ();
    type Caller = Caller;
    type Act = Target<P::Operation>;
    /// The policy is asked when it is known how an HSM holds the key: see `using`.
    type Leave = ();
    type Reply = Bytes;
    type Error = Refusal;

    fn request_id(&self) -> String {
        self.proxy.request_id()
    }

    fn client(&self, head: &Head) -> Client {
        Client { path: printable(head.path()), ..Client::default() }
    }

    fn route(&self, head: &Head, told: &mut Facts) -> Result<Target<P::Operation>, Refusal> {
        let (prefix, operation, key) = P::route(head.path()).ok_or(Refusal::UnknownPath)?;
        let store = store_at::<P>(&self.proxy.governed(), prefix)?;
        told.store = Some(store.name.clone());
        told.key = key.as_ref().map(ToString::to_string);
        Ok(Target { prefix: prefix.to_owned(), operation, key })
    }

    fn operation(route: &Target<P::Operation>) -> &'static str {
        P::name(route.operation)
    }

    async fn early(&self, head: &Head, _: &Target<P::Operation>, _: &mut Trace) -> Result<(), Refusal> {
        if head.parts().method == Method::POST { Ok(()) } else { Err(Refusal::MethodNotAllowed) }
    }

    fn body_limits(&self) -> BodyLimits {
        BodyLimits { bytes_max: BODY_BYTES_MAX, timeout: self.proxy.limits.body_timeout }
    }

    async fn caller(
        &self,
        request: &Request<'_>,
        route: &Target<P::Operation>,
        (): (),
        told: &mut Facts,
    ) -> Result<Caller, Refusal> {
        // A body may take its time; what counts is the state now.
        let governed = self.proxy.governed();
        // What the use is judged by: a state that is put back is found out by it.
        told.context.push(("generation", governed.generation.to_string()));
        let store = store_at::<P>(&governed, &route.prefix)?;
        let principal = P::authenticate(self.proxy, request, self.peer, &governed, &store)?;
        Ok(Caller { governed, store, principal })
    }

    fn principal(caller: &Caller) -> &Principal {
        &caller.principal
    }

    fn act(
        &self,
        request: &Request<'_>,
        route: Target<P::Operation>,
        _: &Caller,
        told: &mut Facts,
        client: &mut Client,
    ) -> Result<Target<P::Operation>, Refusal> {
        // Before anything is refused: the provider's id of the request joins its log with ours.
        let (id, named) = P::claims(request.body());
        client.request_id = id.map(|id| printable(&id));
        let named = named.into_iter().filter_map(|(name, value)| Some((name, printable(&value?))));
        told.context.extend(named);
        Ok(route)
    }

    fn judge(
        &self,
        request: &Request<'_>,
        caller: &Caller,
        _: &Target<P::Operation>,
        _: &mut Facts,
    ) -> Result<(), Refusal> {
        let Caller { governed, store, .. } = caller;
        if !self.proxy.quotas.admit(&store.name, store.requests_per_sec, request.head().started()) {
            return Err(Refusal::Throttled("the quota of the external key store is used up"));
        }
        self.must_be_trusted()?;
        match governed.kills.of_store(&store.name) {
            Some(kill) => Err(Refusal::Blocked(format!("{} was stopped by {}", kill.scope, kill.by))),
            None => Ok(()),
        }
    }

    async fn perform(
        &self,
        request: &Request<'_>,
        caller: &Caller,
        act: &Target<P::Operation>,
        (): (),
        _: &Trace,
        told: &mut Facts,
    ) -> Result<Done<Bytes>, Refusal> {
        let mut call = Call {
            proxy: self.proxy,
            governed: &caller.governed,
            store: &caller.store,
            body: request.body(),
            key: act.key.clone(),
            principal: caller.principal.clone(),
            deadline: request.head().started() + self.proxy.limits.hsm_budget,
            told: &mut told.told,
            context: &mut told.context,
        };
        P::answer(&mut call, act.operation, request.head().parts().uri.query()).await.map(Done::Told)
    }

    fn confirm(&self, caller: &Caller, act: &Target<P::Operation>, _: &Bytes) -> Result<(), Refusal> {
        self.must_be_trusted()?;
        let (now, before) = (self.proxy.governed(), &caller.governed);
        if Arc::ptr_eq(&now, before) {
            return Ok(());
        }
        let of_key = act.key.as_ref().and_then(|key| now.kills.of_key(key.as_str()));
        if let Some(kill) = now.kills.of_store(&caller.store.name).or(of_key) {
            return Err(Refusal::Blocked(format!("{} was stopped by {}", kill.scope, kill.by)));
        }
        if now.allows_no_less_than(before, &caller.store.name) {
            return Ok(());
        }
        // Whether the new state allows it is for a new request to find out.
        Err(Refusal::Internal("what it was judged by was changed while it was at work".into()))
    }

    fn confirm_refusal(
        &self,
        caller: &Caller,
        act: &Target<P::Operation>,
        _: &Facts,
        error: &Refusal,
    ) -> Option<Result<(), Refusal>> {
        matches!(error, Refusal::InvalidCiphertext).then(|| self.confirm(caller, act, &Bytes::new()))
    }

    fn status(_: &Bytes) -> StatusCode {
        StatusCode::OK
    }

    fn failure(&self, error: &Refusal) -> Failure {
        let (status, code, _) = P::refusal(error);
        // Throttled requests are counted, and told to the log once a second.
        let written = if matches!(error, Refusal::Throttled(_)) { Written::Counted } else { Written::Each };
        Failure { status, code, outcome: error.outcome(), reason: error.to_string(), written }
    }

    fn fault(&self, fault: Fault) -> Refusal {
        match fault {
            Fault::Body(BodyFault::TooLarge) => {
                Refusal::Unsupported(format!("a request has at most {BODY_BYTES_MAX} bytes here"))
            }
            Fault::Body(BodyFault::Broken) => Refusal::invalid("the request body could not be read"),
            Fault::Body(BodyFault::TooSlow) => Refusal::invalid("the request body did not arrive in time"),
            Fault::NoPlace => Refusal::Throttled("the proxy has no capacity left"),
            Fault::Unrecorded(error) => error.into(),
            Fault::RecordedTooLate => Refusal::TimedOut("the audit log"),
        }
    }

    /// Not longer than the caller would wait for the answer.
    fn patience(&self, trace: &Trace) -> Option<Duration> {
        Some((self.proxy.limits.answer_budget + AUDIT_GRACE).saturating_sub(trace.started().elapsed()))
    }

    fn measure(&self, ended: &Ended<'_, Facts>) {
        let Facts { store, key, .. } = ended.told;
        let operation = ended.operation;
        let labels = [("store", store.clone().unwrap_or_else(|| "none".into())), ("operation", operation.to_owned())];
        if ended.status == StatusCode::TOO_MANY_REQUESTS {
            if let Some(store) = store {
                self.proxy.quotas.refused(store);
            }
            counter!("holdfast_external_key_store_throttle_total", &labels).increment(1);
        } else if ended.outcome == AuditOutcome::Denied && !ended.counted {
            tracing::warn!(operation, store, key, reason = ended.reason, "denied");
        } else if ended.is_fault() {
            tracing::error!(operation, store, key, reason = ended.reason, "a request failed");
        }
        if let Some(error) = ended.error {
            let [(_, store), (_, operation)] = labels.clone();
            let labels = [("store", store), ("operation", operation), ("error", error.to_owned())];
            counter!("holdfast_xks_proxy_errors_total", &labels).increment(1);
        }
        histogram!("holdfast_xks_proxy_latency_seconds", &labels).record(ended.elapsed.as_secs_f64());
    }

    fn answer(&self, _: &Head, _: &Trace, outcome: Confirmed<Result<Bytes, Refusal>>) -> Response<Full<Bytes>> {
        let (status, body) = match outcome.into_inner() {
            Ok(body) => (StatusCode::OK, body),
            Err(refusal) => {
                let (status, _, body) = P::refusal(&refusal);
                (status, body)
            }
        };
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
}

impl XksProxy {
    pub(crate) fn request_id(&self) -> String {
        let bytes: [u8; 16] = self.ambient.random();
        hex(&bytes)
    }
}

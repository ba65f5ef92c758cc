//! Key Vault's dialect, stage by stage: what a request names, who asks, whether he may, what is done, what is told.

use bytes::Bytes;
use holdfast_core::{Permit, Principal, Revision, Spent, authorize};
use holdfast_service::{
    Client, Confirmed, Dialect, Done, Ended, Failure, Fault, Head, Request, Trace, Written, measure_requests,
};
use holdfast_wire::body::{BodyFault, BodyLimits};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use crate::{
    ManagedHsm,
    authn::{Presented, Rejection},
    code::Code,
    error::ApiError,
    ops::{self, Call, Facts, Reply},
    query::Query,
    rbac::data_action_name,
    route::{Route, printable},
};

/// Longest header value that is repeated in the audit log or the answer.
const ECHOED_CHARS_MAX: usize = 128;

/// What a request asks for.
pub(crate) struct Act {
    route: Route,
    query: Query,
}

/// Somebody whose token holds.
pub(crate) struct Caller {
    token: Presented,
    /// The newest change that was in memory when he was recognized: what was looked at later rests on it, or on a newer one.
    seen: Revision,
}

/// Who asks, and for what.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    caller: &'a Caller,
    route: &'a Route,
}

/// The dialect at the door of one instance.
pub(crate) struct KeyVault<'a>(pub &'a ManagedHsm);

impl Dialect for KeyVault<'_> {
    type Told = Facts;
    /// An unknown path is told of only to those who are known.
    type Route = Result<Act, ApiError>;
    type Early = Presented;
    type Caller = Caller;
    type Act = Act;
    type Leave = Permit;
    type Reply = Reply;
    type Error = ApiError;

    fn request_id(&self) -> String {
        self.0.new_guid()
    }

    fn client(&self, head: &Head) -> Client {
        Client {
            request_id: echoed(head.headers(), "x-ms-client-request-id"),
            user_agent: echoed(head.headers(), header::USER_AGENT),
            path: printable_path(head.path()),
        }
    }

    fn route(&self, head: &Head, told: &mut Facts) -> Result<Result<Act, ApiError>, ApiError> {
        let route = Route::parse(&head.parts().method, head.path());
        if let Ok(route) = &route {
            let (name, version) = route.key();
            told.key = name.map(ToString::to_string);
            told.version = version;
        }
        Ok(route.map(|route| Act { route, query: Query::parse(head.parts().uri.query()) }))
    }

    fn operation(route: &Result<Act, ApiError>) -> &'static str {
        route.as_ref().map_or("Unknown", |act| act.route.operation())
    }

    async fn early(
        &self,
        head: &Head,
        route: &Result<Act, ApiError>,
        trace: &mut Trace,
    ) -> Result<Presented, ApiError> {
        let mut values = head.headers().get_all(header::AUTHORIZATION).iter();
        let value = values.next();
        let presented = if values.next().is_some() {
            Err(Rejection::BadToken("more than one Authorization header".into()))
        } else {
            self.0.authenticator.authenticate(value).await
        };
        let presented = presented.map_err(rejected)?;
        trace.recognize(presented.principal());
        let act = route.as_ref().map_err(Clone::clone)?;
        act.query.check_api_version(head.path())?;
        // Nobody sends a body for nothing; what counts is judged when it is there.
        self.0.permit(presented.principal(), &act.route).map(drop)?;
        Ok(presented)
    }

    fn body_limits(&self) -> BodyLimits {
        BodyLimits { bytes_max: self.0.limits.body_bytes_max, timeout: self.0.limits.body_timeout }
    }

    async fn caller(
        &self,
        request: &Request<'_>,
        _: &Result<Act, ApiError>,
        early: Presented,
        _: &mut Facts,
    ) -> Result<Caller, ApiError> {
        let header = request.head().headers().get(header::AUTHORIZATION);
        let token = self.0.authenticator.confirm(early, header).await.map_err(rejected)?;
        Ok(Caller { token, seen: self.0.store.revision() })
    }

    fn principal(caller: &Caller) -> &Principal {
        caller.token.principal()
    }

    fn act(
        &self,
        _: &Request<'_>,
        route: Result<Act, ApiError>,
        _: &Caller,
        _: &mut Facts,
        _: &mut Client,
    ) -> Result<Act, ApiError> {
        route
    }

    fn judge(&self, _: &Request<'_>, caller: &Caller, act: &Act, told: &mut Facts) -> Result<Permit, ApiError> {
        let permit = self.0.permit(caller.token.principal(), &act.route)?;
        told.rule = Some(permit.rule().to_owned());
        Ok(permit)
    }

    async fn perform(
        &self,
        request: &Request<'_>,
        caller: &Caller,
        act: &Act,
        leave: Permit,
        trace: &Trace,
        told: &mut Facts,
    ) -> Result<Done<Reply>, ApiError> {
        let base_url = self.0.hosts.base_url(host(request.head().headers()));
        let Act { route, query } = act;
        let (body, base_url) = (request.body(), base_url.as_str());
        let asked = Asked { caller, route };
        let mut call = Call { hsm: self.0, body, query, base_url, trace, asked, facts: told };
        ops::dispatch(route, leave, &mut call).await
    }

    fn is_stale(&self, error: &ApiError) -> bool {
        error.is_stale()
    }

    fn confirm(&self, caller: &Caller, act: &Act, reply: &Reply) -> Result<(), ApiError> {
        self.0.still_allowed(Asked { caller, route: &act.route })?;
        // A key's validity ends without a change, too.
        reply.used.as_ref().map_or(Ok(()), |used| used.still_usable(self.0))
    }

    fn confirm_refusal(&self, caller: &Caller, act: &Act, told: &Facts, _: &ApiError) -> Option<Result<(), ApiError>> {
        let used = told.rests_on.as_ref()?;
        let allowed = self.0.still_allowed(Asked { caller, route: &act.route });
        Some(allowed.and_then(|()| used.still_usable(self.0)))
    }

    fn status(reply: &Reply) -> StatusCode {
        reply.status
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
            Fault::Body(BodyFault::Broken) => ApiError::bad_parameter("The request body could not be read"),
            Fault::Body(BodyFault::TooLarge) => ApiError::too_large(self.0.limits.body_bytes_max),
            Fault::Body(BodyFault::TooSlow) => ApiError::request_timeout(),
            Fault::NoPlace | Fault::RecordedTooLate => ApiError::throttled(),
            Fault::Unrecorded(error) => error.into(),
        }
    }

    fn measure(&self, ended: &Ended<'_, Facts>) {
        measure_requests("holdfast_hsm_requests_total", "holdfast_hsm_request_duration_seconds", ended);
        ended.log_fault();
    }

    fn answer(&self, head: &Head, trace: &Trace, outcome: Confirmed<Result<Reply, ApiError>>) -> Response<Full<Bytes>> {
        let (status, body, error) = match outcome.into_inner() {
            Ok(reply) => (reply.status, reply.body, None),
            Err(error) => (error.status(), error.body(trace.request_id()), Some(error)),
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
        if let Ok(value) = HeaderValue::try_from(trace.request_id()) {
            headers.insert("x-ms-request-id", value);
        }
        let theirs = head.headers().get("x-ms-client-request-id");
        if let Some(value) = theirs.filter(|value| value.len() <= ECHOED_CHARS_MAX) {
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
                && let Some(challenge) = self.0.hosts.challenge(host(head.headers()))
            {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        response
    }
}

impl ManagedHsm {
    /// Looks once more: at the token's time, and at the roles if anything was changed since.
    pub(crate) fn still_allowed(&self, asked: Asked<'_>) -> Result<(), ApiError> {
        let Asked { caller, route } = asked;
        self.authenticator.still_valid(&caller.token).map_err(rejected)?;
        if self.store.revision() == caller.seen {
            return Ok(());
        }
        self.permit(caller.token.principal(), route).map(drop)
    }

    /// Leave for a change, at this moment: the token's time and the roles are looked at, whatever was changed since.
    pub(crate) fn allowed_now(&self, asked: Asked<'_>) -> Result<Spent, ApiError> {
        let Asked { caller, route } = asked;
        self.authenticator.still_valid(&caller.token).map_err(rejected)?;
        let intent = route.intent();
        Ok(self.permit(caller.token.principal(), route)?.spend(intent.action, &intent.resource)?)
    }

    /// The permit for what a route asks, by the roles in force now.
    fn permit(&self, principal: &Principal, route: &Route) -> Result<Permit, ApiError> {
        authorize(&**self.rbac.state(), principal, route.intent())
            .map_err(|denial| ApiError::access_denied(&data_action_name(denial.intent.action), &denial))
    }
}

fn rejected(rejection: Rejection) -> ApiError {
    match &rejection {
        Rejection::IssuerUnavailable(why) => {
            ApiError::unavailable(Code::IdentityProviderUnavailable, &rejection.message(), why.clone())
        }
        Rejection::NoToken | Rejection::BadToken(_) | Rejection::WrongAudience { .. } => {
            ApiError::unauthorized(rejection.message(), rejection.to_string())
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

/// Long enough for every real path.
fn printable_path(path: &str) -> String {
    if path.len() <= 512 && path.bytes().all(|byte| byte.is_ascii_graphic()) {
        path.to_owned()
    } else {
        printable(path)
    }
}

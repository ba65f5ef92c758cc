//! The door through which somebody takes a copy of a role's audit log: a dialect of its own, the same in every role. Who may come through it
//! is each role's to say: its [`Readers`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::{
    Action, Ambient, AuditAsk, AuditEvent, AuditOutcome, AuditPlace, AuditPullError, AuditPulled, AuditSource,
    AuditVerdict, Decision, Denial, Holds, Intent, Permit, Policy, Principal, Resource, Revision, authorize,
};
use holdfast_wire::{
    audit_pull::{
        FORMAT, HeadJson, LINES_BYTES_MAX, LINES_BYTES_MIN, PATH, PullAnswer, PullErrorJson, PullRefusal, PullRequest,
        SCOPE, is_log_name, nonce,
    },
    body::{BodyFault, BodyLimits},
    hex::hex,
    printable,
    sigv4::{self, SigningSecret},
};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use tokio::sync::Semaphore;

use crate::{
    dialect::{Dialect, Failure, Fault, Written},
    measure::{Ended, measure_requests},
    stages::{Confirmed, Done, Head, Request},
    trace::{Client, Told, Trace},
};

/// Pulls at work at once, each with its lines in memory.
const PULLS_MAX: usize = 2;
/// A request is a few numbers.
const BODY_LIMITS: BodyLimits = BodyLimits { bytes_max: 4096, timeout: Duration::from_secs(5) };
/// Longest header value or path that the log repeats.
const ECHOED_CHARS_MAX: usize = 128;
/// What is asked again later, if all places are taken; seconds.
const RETRY_AFTER_SECS: u64 = 1;

/// Why nobody was recognized. The text is for the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stranger {
    /// He has not proved who he is.
    Unproved(String),
    /// Whoever could prove it cannot be asked.
    Unverifiable(String),
}

/// Who may come through the door of a role.
pub trait Readers: Sync {
    /// What was learnt from the head alone. It allows nothing.
    type Early: Send;
    /// Somebody who has proved who he is, with what may end of the proof.
    type Caller: Send + Sync;

    /// A first look, before the body is waited for. Whoever is recognized here is told to the trace.
    ///
    /// # Errors
    /// [`Stranger`].
    fn early(&self, head: &Head, trace: &mut Trace) -> impl Future<Output = Result<Self::Early, Stranger>> + Send;

    /// Recognizes the caller, as he is known now.
    ///
    /// # Errors
    /// [`Stranger`].
    fn caller(
        &self,
        request: &Request<'_>,
        early: Self::Early,
    ) -> impl Future<Output = Result<Self::Caller, Stranger>> + Send;

    /// Who he is.
    fn principal(caller: &Self::Caller) -> &Principal;

    /// Whether what he proved it with is still good at this moment.
    ///
    /// # Errors
    /// [`Stranger`].
    fn still_known(&self, _caller: &Self::Caller) -> Result<(), Stranger> {
        Ok(())
    }

    /// The same, to be asked again while an answer is written. `None`: it does not end by itself.
    fn holds(&self, _caller: &Self::Caller) -> Option<Holds> {
        None
    }

    /// The permit to take a copy of the log ([`Action::AuditLogPull`] on [`Resource::Instance`]), by the rules in force now.
    ///
    /// # Errors
    /// The [`Denial`].
    fn permit(&self, caller: &Principal) -> Result<Permit, Denial>;

    /// How callers prove who they are, for the header `WWW-Authenticate`.
    fn challenge(&self, _: &Head) -> Option<HeaderValue> {
        None
    }
}

/// The intent of each pull.
#[must_use]
pub fn pull_intent() -> Intent {
    Intent { action: Action::AuditLogPull, resource: Resource::Instance }
}

/// Callers who sign, of whom the configuration names those who may read the log.
pub struct SigningReaders {
    credentials: HashMap<String, (Arc<SigningSecret>, Principal)>,
    readers: BTreeSet<String>,
    ambient: Arc<dyn Ambient>,
}

impl SigningReaders {
    /// `credentials`: access key id, secret and whose it is, of everybody who is known; `readers`: the names of those who may.
    #[must_use]
    pub fn new(
        credentials: impl IntoIterator<Item = (String, Arc<SigningSecret>, Principal)>,
        readers: impl IntoIterator<Item = String>,
        ambient: Arc<dyn Ambient>,
    ) -> Self {
        let credentials = credentials.into_iter().map(|(id, secret, principal)| (id, (secret, principal)));
        Self { credentials: credentials.collect(), readers: readers.into_iter().collect(), ambient }
    }

    /// A reader whom nobody has a credential for.
    #[must_use]
    pub fn nobody(&self) -> Option<&str> {
        let known = |name: &&String| self.credentials.values().any(|(_, known)| known.object_id() == name.as_str());
        self.readers.iter().find(|name| !known(name)).map(String::as_str)
    }
}

impl Policy for SigningReaders {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        if *intent == pull_intent() && self.readers.contains(principal.object_id()) {
            return Decision::Allow("reader of the audit log, by the configuration".into());
        }
        Decision::Deny(format!("the configuration does not name {principal} as a reader of the audit log"))
    }
}

impl Readers for SigningReaders {
    type Early = ();
    type Caller = Principal;

    /// The signature is over the body, too: nothing is known before it is there.
    async fn early(&self, _: &Head, _: &mut Trace) -> Result<(), Stranger> {
        Ok(())
    }

    async fn caller(&self, request: &Request<'_>, (): ()) -> Result<Principal, Stranger> {
        let parts = request.head().parts();
        // Nobody here has session credentials: a token with it would be passed over in silence.
        if parts.headers.contains_key("x-amz-security-token") {
            return Err(Stranger::Unproved("session credentials are not known here".into()));
        }
        let mut found = None;
        let find = |id: &str| {
            found = self.credentials.get(id);
            found.map(|(secret, _)| Arc::clone(secret))
        };
        let verified = sigv4::verify(parts, request.body(), SCOPE, find, self.ambient.now());
        verified.map_err(|rejection| Stranger::Unproved(rejection.to_string()))?;
        // A signature was verified, so there is a credential.
        let found = found.ok_or_else(|| Stranger::Unproved("it is not signed".into()))?;
        Ok(found.1.clone())
    }

    fn principal(caller: &Principal) -> &Principal {
        caller
    }

    fn permit(&self, caller: &Principal) -> Result<Permit, Denial> {
        authorize(self, caller, pull_intent())
    }
}

/// The log behind the door.
pub struct AuditDoor {
    source: Arc<dyn AuditSource>,
    log: String,
    revision: Box<dyn Fn() -> Revision + Send + Sync>,
    ambient: Arc<dyn Ambient>,
    places: Semaphore,
}

impl AuditDoor {
    /// `log`: its name, for one instance may have several; `revision`: the newest change of the store.
    #[must_use]
    pub fn new(
        source: Arc<dyn AuditSource>,
        log: impl Into<String>,
        revision: impl Fn() -> Revision + Send + Sync + 'static,
        ambient: Arc<dyn Ambient>,
    ) -> Self {
        Self { source, log: log.into(), revision: Box::new(revision), ambient, places: Semaphore::new(PULLS_MAX) }
    }

    /// Whether a request's path leads here.
    #[must_use]
    pub fn is_at(path: &str) -> bool {
        path == PATH
    }

    /// The dialect, for `readers`.
    pub fn through<'a, R: Readers>(&'a self, readers: &'a R) -> impl Dialect + 'a {
        Pull { door: self, readers }
    }
}

struct Pull<'a, R> {
    door: &'a AuditDoor,
    readers: &'a R,
}

/// What is asked, read.
struct Asked {
    nonce: [u8; 32],
    after: AuditPlace,
    bytes_max: usize,
}

/// Why a pull fails.
enum PullError {
    Stranger(Stranger),
    Denied(Denial),
    Malformed(String),
    Method,
    Body(BodyFault),
    Busy,
    OtherLog,
    /// The log is of another history than the copy.
    Parted(Box<AuditPulled>),
    Unreadable(String),
    /// What is asked for lies in an archive.
    Archived(String),
    Unrecorded(String),
}

impl PullError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Stranger(Stranger::Unproved(_)) => StatusCode::UNAUTHORIZED,
            Self::Stranger(Stranger::Unverifiable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Malformed(_) | Self::Body(BodyFault::Broken) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body(BodyFault::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyFault::TooSlow) => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::OtherLog | Self::Parted(_) => StatusCode::CONFLICT,
            Self::Archived(_) => StatusCode::GONE,
            Self::Unreadable(_) | Self::Unrecorded(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Stranger(Stranger::Unproved(_)) => "Unauthenticated",
            Self::Stranger(Stranger::Unverifiable(_)) => "IdentityProviderUnavailable",
            Self::Denied(_) => "AccessDenied",
            Self::Malformed(_) | Self::Body(BodyFault::Broken) => "InvalidRequest",
            Self::Method => "MethodNotAllowed",
            Self::Body(BodyFault::TooLarge) => "RequestTooLarge",
            Self::Body(BodyFault::TooSlow) => "RequestTimeout",
            Self::Busy => "Busy",
            Self::OtherLog => "OtherLog",
            Self::Parted(pulled) => match pulled.head.verdict {
                AuditVerdict::Shorter => "LogShorter",
                AuditVerdict::Differs | AuditVerdict::Continues => "LogDiffers",
            },
            Self::Archived(_) => "LogArchived",
            Self::Unreadable(_) | Self::Unrecorded(_) => "InternalError",
        }
    }

    /// What the caller is told. Strangers hear no more than that they are.
    fn message(&self, log: &str) -> String {
        match self {
            Self::Stranger(Stranger::Unproved(_)) => "The request does not prove who makes it".into(),
            Self::Stranger(Stranger::Unverifiable(_)) => {
                "The identity provider cannot be reached to verify the token".into()
            }
            Self::Denied(_) => "The caller may not read the audit log".into(),
            Self::Malformed(why) => why.clone(),
            Self::Method => "The audit log is pulled by POST".into(),
            Self::Body(fault) => fault.to_string(),
            Self::Busy => format!("{PULLS_MAX} pulls are at work"),
            Self::OtherLog => format!("This is the log {log}"),
            Self::Parted(pulled) => {
                let (asked, head) = (pulled.head.after.seq, pulled.head.head.seq);
                match pulled.head.verdict {
                    AuditVerdict::Shorter => format!("The log ends at line {head}, and has no line {asked}"),
                    AuditVerdict::Differs | AuditVerdict::Continues => {
                        format!("Line {asked} of this log is another one")
                    }
                }
            }
            Self::Archived(why) => why.clone(),
            Self::Unreadable(_) => "The audit log could not be read".into(),
            Self::Unrecorded(_) => "The audit log could not be written".into(),
        }
    }

    fn reason(&self, log: &str) -> String {
        match self {
            Self::Stranger(Stranger::Unproved(why) | Stranger::Unverifiable(why))
            | Self::Unreadable(why)
            | Self::Archived(why)
            | Self::Unrecorded(why) => why.clone(),
            Self::Denied(denial) => denial.reason.clone(),
            Self::Malformed(_) | Self::Method | Self::Body(_) | Self::Busy | Self::OtherLog | Self::Parted(_) => {
                self.message(log)
            }
        }
    }

    fn outcome(&self) -> AuditOutcome {
        match self {
            Self::Stranger(Stranger::Unproved(_)) | Self::Denied(_) => AuditOutcome::Denied,
            Self::Stranger(Stranger::Unverifiable(_))
            | Self::Malformed(_)
            | Self::Method
            | Self::Body(_)
            | Self::Busy
            | Self::OtherLog
            | Self::Parted(_)
            | Self::Unreadable(_)
            | Self::Archived(_)
            | Self::Unrecorded(_) => AuditOutcome::Failed,
        }
    }
}

/// What the log is told of a pull.
#[derive(Clone, Default)]
struct Facts {
    rule: Option<String>,
    /// The line asked about, how many bytes followed, and the head that was signed.
    context: Vec<(&'static str, String)>,
}

impl Told for Facts {
    fn tell(&mut self, event: &mut AuditEvent) {
        event.reason = self.rule.take();
        event.context = std::mem::take(&mut self.context);
    }
}

impl Asked {
    fn read(body: &[u8], log: &str) -> Result<Self, PullError> {
        let malformed = |why: &str| PullError::Malformed(why.to_owned());
        let request: PullRequest = serde_json::from_slice(body).map_err(|error| {
            PullError::Malformed(format!("The request cannot be read, at column {}", error.column()))
        })?;
        if request.format != FORMAT {
            return Err(PullError::Malformed(format!("format must be {FORMAT}")));
        }
        if request.log.as_deref().is_some_and(|name| !is_log_name(name)) {
            return Err(malformed("log is not the name of a log"));
        }
        if request.log.as_deref().is_some_and(|name| name != log) {
            return Err(PullError::OtherLog);
        }
        let bytes_max = request.max_bytes.unwrap_or(LINES_BYTES_MAX);
        if !(LINES_BYTES_MIN..=LINES_BYTES_MAX).contains(&bytes_max) {
            return Err(PullError::Malformed(format!("max_bytes must be {LINES_BYTES_MIN} to {LINES_BYTES_MAX}")));
        }
        let after = match &request.after {
            None => AuditPlace::default(),
            Some(place) => place.read().ok_or_else(|| malformed("after.hash must be 64 hex digits"))?,
        };
        if after.line.seq == 0 && after != AuditPlace::default() {
            return Err(malformed("after.seq is 1 or more; without after the log is given from its beginning"));
        }
        let nonce = nonce(&request.nonce).ok_or_else(|| malformed("nonce must be 64 hex digits"))?;
        Ok(Self { nonce, after, bytes_max })
    }
}

impl<R: Readers> Dialect for Pull<'_, R> {
    type Told = Facts;
    type Route = ();
    type Early = R::Early;
    type Caller = R::Caller;
    type Act = Asked;
    type Leave = Permit;
    type Reply = Box<AuditPulled>;
    type Error = PullError;

    fn request_id(&self) -> String {
        hex(&self.door.ambient.random::<16>())
    }

    fn client(&self, head: &Head) -> Client {
        let echoed = |text: &str| printable(text, ECHOED_CHARS_MAX);
        Client {
            request_id: None,
            user_agent: head.header(header::USER_AGENT.as_str()).map(echoed),
            path: echoed(head.path()),
        }
    }

    fn route(&self, head: &Head, _: &mut Facts) -> Result<(), PullError> {
        if head.parts().uri.query().is_some() {
            return Err(PullError::Malformed("There are no query parameters".into()));
        }
        Ok(())
    }

    fn operation((): &()) -> &'static str {
        "AuditLogPull"
    }

    async fn early(&self, head: &Head, (): &(), trace: &mut Trace) -> Result<R::Early, PullError> {
        if head.parts().method != Method::POST {
            return Err(PullError::Method);
        }
        self.readers.early(head, trace).await.map_err(PullError::Stranger)
    }

    fn body_limits(&self) -> BodyLimits {
        BODY_LIMITS
    }

    async fn caller(
        &self,
        request: &Request<'_>,
        (): &(),
        early: R::Early,
        _: &mut Facts,
    ) -> Result<R::Caller, PullError> {
        self.readers.caller(request, early).await.map_err(PullError::Stranger)
    }

    fn principal(caller: &R::Caller) -> &Principal {
        R::principal(caller)
    }

    fn act(
        &self,
        request: &Request<'_>,
        (): (),
        caller: &R::Caller,
        _: &mut Facts,
        _: &mut Client,
    ) -> Result<Asked, PullError> {
        // Who may not read it does not hear which log this is.
        self.permit(caller).map(drop)?;
        Asked::read(request.body(), &self.door.log)
    }

    fn judge(&self, _: &Request<'_>, caller: &R::Caller, _: &Asked, told: &mut Facts) -> Result<Permit, PullError> {
        let permit = self.permit(caller)?;
        told.rule = Some(permit.rule().to_owned());
        Ok(permit)
    }

    async fn perform(
        &self,
        _: &Request<'_>,
        caller: &R::Caller,
        act: &Asked,
        leave: Permit,
        _: &Trace,
        told: &mut Facts,
    ) -> Result<Done<Box<AuditPulled>>, PullError> {
        let Asked { nonce, after, bytes_max } = *act;
        let _place = self.door.places.try_acquire().map_err(|_| PullError::Busy)?;
        let _spent = leave
            .spend(Action::AuditLogPull, &Resource::Instance)
            .map_err(|mismatch| PullError::Unreadable(mismatch.to_string()))?;
        let revision = (self.door.revision)();
        let ask = AuditAsk { log: self.door.log.clone(), nonce, after, bytes_max, revision };
        told.context.push(("after", after.line.seq.to_string()));
        let pulled = self.door.source.pull(ask).await.map_err(|error| match error {
            AuditPullError::Archived { .. } => PullError::Archived(error.to_string()),
            AuditPullError::Unreadable(_) => PullError::Unreadable(error.to_string()),
        })?;
        told.context.push(("head", pulled.head.head.seq.to_string()));
        // Reading takes its time, and he may have lost the right meanwhile.
        self.permit(caller).map(drop)?;
        if pulled.head.verdict != AuditVerdict::Continues {
            return Err(PullError::Parted(Box::new(pulled)));
        }
        told.context.push(("bytes", pulled.lines.len().to_string()));
        Ok(Done::Told(Box::new(pulled)))
    }

    fn confirm(&self, caller: &R::Caller, _: &Asked, _: &Box<AuditPulled>) -> Result<(), PullError> {
        self.permit(caller).map(drop)
    }

    fn holds(&self, caller: &R::Caller) -> Option<Holds> {
        self.readers.holds(caller)
    }

    fn status(_: &Box<AuditPulled>) -> StatusCode {
        StatusCode::OK
    }

    fn failure(&self, error: &PullError) -> Failure {
        Failure {
            status: error.status(),
            code: error.code(),
            outcome: error.outcome(),
            reason: error.reason(&self.door.log),
            written: Written::Each,
        }
    }

    fn fault(&self, fault: Fault) -> PullError {
        match fault {
            Fault::Body(fault) => PullError::Body(fault),
            Fault::NoPlace => PullError::Busy,
            Fault::Unrecorded(error) => PullError::Unrecorded(error.to_string()),
            Fault::RecordedTooLate => PullError::Unrecorded("the audit log did not answer in time".into()),
        }
    }

    fn measure(&self, ended: &Ended<'_, Facts>) {
        measure_requests("holdfast_audit_pulls_total", "holdfast_audit_pull_duration_seconds", ended);
        ended.log_fault();
    }

    fn answer(
        &self,
        head: &Head,
        trace: &Trace,
        outcome: Confirmed<Result<Box<AuditPulled>, PullError>>,
    ) -> Response<Full<Bytes>> {
        let (mut response, status) = match outcome.into_inner() {
            Ok(pulled) => (Response::new(Full::new(answer_of(*pulled))), StatusCode::OK),
            Err(error) => self.refusal(head, &error),
        };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Ok(value) = HeaderValue::try_from(trace.request_id()) {
            headers.insert("x-holdfast-request-id", value);
        }
        response
    }
}

impl<R: Readers> Pull<'_, R> {
    /// By who he is and what he may at this moment, each time that it is asked.
    fn permit(&self, caller: &R::Caller) -> Result<Permit, PullError> {
        self.readers.still_known(caller).map_err(PullError::Stranger)?;
        self.readers.permit(R::principal(caller)).map_err(PullError::Denied)
    }

    fn refusal(&self, head: &Head, error: &PullError) -> (Response<Full<Bytes>>, StatusCode) {
        let signed = match error {
            PullError::Parted(pulled) => Some(HeadJson::new(&pulled.head, &pulled.signature)),
            _ => None,
        };
        let told = PullErrorJson { code: error.code().to_owned(), message: error.message(&self.door.log) };
        let body = serde_json::to_vec(&PullRefusal { error: told, head: signed }).unwrap_or_default();
        let (mut response, status) = (Response::new(Full::new(Bytes::from(body))), error.status());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.extend(self.readers.challenge(head).map(|challenge| (header::WWW_AUTHENTICATE, challenge)));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECS.into());
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        (response, status)
    }
}

/// One line of JSON, and the lines of the log.
fn answer_of(pulled: AuditPulled) -> Bytes {
    let AuditPulled { head, signature, segment, offset, lines } = pulled;
    let head = HeadJson::new(&head, &signature);
    let answer = PullAnswer { format: FORMAT.to_owned(), segment, offset, bytes: lines.len(), head };
    let mut body = serde_json::to_vec(&answer).unwrap_or_default();
    body.reserve_exact(1 + lines.len());
    body.push(b'\n');
    body.extend_from_slice(&lines);
    body.into()
}

#[cfg(test)]
mod tests;

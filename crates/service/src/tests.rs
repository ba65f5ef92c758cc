//! A dialect of one operation, and what must hold for every dialect.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::{
    Ambient, AuditError, AuditEvent, AuditOutcome, AuditSink, Change, Decided, Gate, Itself, Principal, PrincipalKind,
    Projection, Record, RecordKey, Revision, Store, StoreError, Timestamp, Write,
};
use holdfast_wire::body::BodyLimits;
use http::{Request as HttpRequest, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Client, Confirmed, Dialect, Done, Ended, Failure, Fault, Handed, Head, Request, Spine, Told, Trace, Written,
};

struct Clock;

impl Ambient for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn fill(&self, out: &mut [u8]) {
        out.fill(7);
    }
}

/// A store that remembers the events of changes.
#[derive(Default)]
struct Rows(Mutex<Vec<AuditEvent>>, Arc<Gate>);

#[async_trait::async_trait]
impl Store for Rows {
    async fn read(&self, _: &RecordKey) -> Result<Option<Record>, StoreError> {
        Ok(None)
    }

    async fn scan(&self, _: u8, _: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        Ok(())
    }

    async fn scan_at_once(&self, _: &[u8], _: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        Ok(())
    }

    async fn write(&self, _: Vec<Write>, event: Option<Decided>) -> Result<Revision, StoreError> {
        self.0.lock().unwrap().extend(event.map(|decided| decided.event().clone()));
        Ok(Revision(1))
    }

    fn gate(&self) -> &Arc<Gate> {
        &self.1
    }

    fn revision(&self) -> Revision {
        Revision(1)
    }

    fn watch(&self, _: Weak<dyn Projection>) {}
}

/// A log that can be out of order, and that can be waited for.
struct Log {
    events: Mutex<Vec<AuditEvent>>,
    broken: AtomicBool,
    open: Semaphore,
}

impl Default for Log {
    fn default() -> Self {
        Self { events: Mutex::default(), broken: AtomicBool::new(false), open: Semaphore::new(Semaphore::MAX_PERMITS) }
    }
}

#[async_trait::async_trait]
impl AuditSink for Log {
    async fn append(&self, event: AuditEvent) -> Result<(), AuditError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(AuditError("it is broken".into()));
        }
        let _durable = self.open.acquire().await;
        self.events.lock().unwrap().push(event);
        Ok(())
    }
}

impl Log {
    /// Outcome, code, and how many each stands for.
    fn told(&self) -> Vec<(AuditOutcome, Option<&'static str>, u64)> {
        let count =
            |event: &AuditEvent| event.context.iter().find(|(name, _)| *name == "count").map(|(_, n)| n.clone());
        let events = self.events.lock().unwrap();
        events.iter().map(|e| (e.outcome, e.error_code, count(e).map_or(1, |n| n.parse().unwrap()))).collect()
    }
}

#[derive(Clone, Default)]
struct Facts(Option<String>);

impl Told for Facts {
    fn tell(&mut self, event: &mut AuditEvent) {
        event.key = self.0.take();
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Error {
    Body,
    Busy,
    Denied,
    Log,
    No,
    Stale,
    Unknown,
}

struct Toy {
    stages: Mutex<Vec<&'static str>>,
    allowed: AtomicBool,
    /// The weakened build: what was judged before the body counts.
    judges_early: bool,
    /// The weakened build: nobody looks again when the event is durable.
    confirms: bool,
    /// What is done says no: that something is not valid, which is an answer, too.
    says_no: bool,
    gate: Arc<Gate>,
    places: Option<usize>,
    /// So often somebody else is sooner.
    overtaken: AtomicUsize,
    /// Where a change goes, if it is one.
    rows: Option<Rows>,
    log: Arc<Log>,
}

impl Toy {
    fn new() -> Self {
        let log = Arc::default();
        Self {
            stages: Mutex::default(),
            allowed: AtomicBool::new(true),
            judges_early: false,
            confirms: true,
            says_no: false,
            gate: Gate::new(),
            places: None,
            overtaken: AtomicUsize::new(0),
            rows: None,
            log,
        }
    }

    fn spine(&self) -> Spine {
        Spine::new(Arc::clone(&self.log) as _, Arc::new(Clock), Arc::clone(&self.gate), self.places)
    }

    fn at(&self, stage: &'static str) {
        self.stages.lock().unwrap().push(stage);
    }

    fn may(&self) -> Result<(), Error> {
        if self.allowed.load(Ordering::SeqCst) { Ok(()) } else { Err(Error::Denied) }
    }

    async fn ask(&self, spine: &Spine, path: &str, body: impl Body<Data = Bytes> + Send) -> StatusCode {
        let (parts, ()) = HttpRequest::get(path).body(()).unwrap().into_parts();
        spine.handle(self, parts, body, Some(SocketAddr::from(([127, 0, 0, 1], 9)))).await.status()
    }

    async fn ask_plainly(&self, path: &str) -> StatusCode {
        self.ask(&self.spine(), path, Full::new(Bytes::from_static(b"x")).map_err(|never| match never {})).await
    }
}

impl Dialect for Toy {
    type Told = Facts;
    type Route = bool;
    type Early = ();
    type Caller = Principal;
    type Act = ();
    type Leave = ();
    type Reply = ();
    type Error = Error;

    fn request_id(&self) -> String {
        "id".into()
    }

    fn client(&self, head: &Head) -> Client {
        Client { path: head.path().to_owned(), ..Client::default() }
    }

    fn route(&self, head: &Head, told: &mut Facts) -> Result<bool, Error> {
        self.at("route");
        told.0 = Some("key".into());
        Ok(head.path() != "/stranger")
    }

    fn operation(_: &bool) -> &'static str {
        "Do"
    }

    async fn early(&self, head: &Head, known: &bool, trace: &mut Trace) -> Result<(), Error> {
        self.at("early");
        if !known {
            return Err(Error::Unknown);
        }
        trace.recognize(&caller());
        if head.path() == "/forbidden" { Err(Error::Denied) } else { self.may() }
    }

    fn body_limits(&self) -> BodyLimits {
        BodyLimits { bytes_max: 16, timeout: Duration::from_secs(30) }
    }

    async fn caller(&self, _: &Request<'_>, _: &bool, (): (), _: &mut Facts) -> Result<Principal, Error> {
        self.at("caller");
        Ok(caller())
    }

    fn principal(caller: &Principal) -> &Principal {
        caller
    }

    fn act(&self, _: &Request<'_>, _: bool, _: &Principal, _: &mut Facts, _: &mut Client) -> Result<(), Error> {
        self.at("act");
        Ok(())
    }

    fn judge(&self, _: &Request<'_>, _: &Principal, (): &(), _: &mut Facts) -> Result<(), Error> {
        self.at("judge");
        if self.judges_early { Ok(()) } else { self.may() }
    }

    async fn perform(
        &self,
        _: &Request<'_>,
        _: &Principal,
        (): &(),
        (): (),
        trace: &Trace,
        told: &mut Facts,
    ) -> Result<Done<()>, Error> {
        self.at("perform");
        if self.says_no {
            return Err(Error::No);
        }
        let fewer = |left: usize| left.checked_sub(1);
        if self.overtaken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok() {
            told.0 = Some("what was found in vain".into());
            return Err(Error::Stale);
        }
        let Some(rows) = &self.rows else { return Ok(Done::Told(())) };
        let event = trace.event(Clock.now(), told, StatusCode::OK);
        let event = Decided::by_itself(event, Itself::Configured);
        let committed = rows.commit(Change { writes: Vec::new(), event }).await.map_err(|_| Error::Log)?;
        Ok(Done::Changed(committed, ()))
    }

    fn is_stale(&self, error: &Error) -> bool {
        *error == Error::Stale
    }

    fn confirm(&self, _: &Principal, (): &(), (): &()) -> Result<(), Error> {
        self.at("confirm");
        if self.confirms { self.may() } else { Ok(()) }
    }

    fn confirm_refusal(&self, _: &Principal, (): &(), _: &Facts, error: &Error) -> Option<Result<(), Error>> {
        (*error == Error::No && self.confirms).then(|| self.may())
    }

    fn status((): &()) -> StatusCode {
        StatusCode::OK
    }

    fn failure(&self, error: &Error) -> Failure {
        let (status, code, outcome) = match error {
            Error::Body => (StatusCode::BAD_REQUEST, "Body", AuditOutcome::Failed),
            Error::Busy => (StatusCode::TOO_MANY_REQUESTS, "Busy", AuditOutcome::Failed),
            Error::Denied => (StatusCode::FORBIDDEN, "Denied", AuditOutcome::Denied),
            Error::No => (StatusCode::CONFLICT, "No", AuditOutcome::Failed),
            Error::Stale => (StatusCode::CONFLICT, "Stale", AuditOutcome::Failed),
            Error::Log => (StatusCode::SERVICE_UNAVAILABLE, "Log", AuditOutcome::Failed),
            Error::Unknown => (StatusCode::UNAUTHORIZED, "Unknown", AuditOutcome::Denied),
        };
        let written = if *error == Error::Busy { Written::Counted } else { Written::Each };
        Failure { status, code, outcome, reason: String::new(), written }
    }

    fn fault(&self, fault: Fault) -> Error {
        match fault {
            Fault::Body(_) => Error::Body,
            Fault::NoPlace => Error::Busy,
            Fault::Unrecorded(_) | Fault::RecordedTooLate => Error::Log,
        }
    }

    fn measure(&self, ended: &Ended<'_, Facts>) {
        self.at(if ended.counted { "counted" } else { "recorded" });
    }

    fn answer(&self, _: &Head, _: &Trace, outcome: Confirmed<Result<(), Error>>) -> Response<Full<Bytes>> {
        self.at("answer");
        let status = outcome.into_inner().map_or_else(|error| self.failure(&error).status, |()| StatusCode::OK);
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    }
}

fn caller() -> Principal {
    Principal::verified_exactly(PrincipalKind::User, "test", "somebody")
}

/// A body that comes when it is let, or breaks.
struct Slow(oneshot::Receiver<Bytes>, bool);

impl Body for Slow {
    type Data = Bytes;
    type Error = oneshot::error::RecvError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.1 {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.0).poll(context);
        self.1 = polled.is_ready();
        polled.map(|bytes| Some(bytes.map(Frame::data)))
    }
}

#[tokio::test]
async fn every_stage_in_its_order() {
    let toy = Toy::new();
    assert_eq!(toy.ask_plainly("/").await, StatusCode::OK);
    let stages = ["route", "early", "caller", "act", "judge", "perform", "confirm", "recorded", "answer"];
    assert_eq!(*toy.stages.lock().unwrap(), stages);
    let events = toy.log.events.lock().unwrap();
    let [event] = events.as_slice() else { panic!("one event") };
    assert_eq!((event.operation, event.key.as_deref(), event.status), ("Do", Some("key"), 200));
    assert_eq!(event.principal, Some(caller()));
}

#[tokio::test]
async fn what_was_overtaken_is_judged_and_done_anew() {
    for (overtaken, attempts, status) in [(15, 16, StatusCode::OK), (16, 16, StatusCode::CONFLICT)] {
        let toy = Toy { overtaken: AtomicUsize::new(overtaken), ..Toy::new() };
        assert_eq!(toy.ask_plainly("/").await, status);
        let count = |stage| toy.stages.lock().unwrap().iter().filter(|at| **at == stage).count();
        assert_eq!((count("judge"), count("perform")), (attempts, attempts));
        let events = toy.log.events.lock().unwrap();
        let [event] = events.as_slice() else { panic!("one event, however often it was tried") };
        if status == StatusCode::OK {
            assert_eq!(event.key.as_deref(), Some("key"), "of the attempt that counts");
        }
    }
}

#[tokio::test]
async fn who_is_refused_early_need_not_send_his_body() {
    let toy = Toy::new();
    let (_never, body) = oneshot::channel();
    assert_eq!(toy.ask(&toy.spine(), "/forbidden", Slow(body, false)).await, StatusCode::FORBIDDEN);
    assert_eq!(*toy.stages.lock().unwrap(), ["route", "early", "recorded", "answer"]);
}

/// What was allowed when the head came is taken away while the body waits.
async fn revoked_meanwhile(judges_early: bool) -> (StatusCode, bool) {
    let toy = Toy { judges_early, confirms: !judges_early, ..Toy::new() };
    let (send, body) = oneshot::channel();
    let spine = toy.spine();
    let asked = toy.ask(&spine, "/", Slow(body, false));
    let revoked = async {
        while !toy.stages.lock().unwrap().contains(&"early") {
            tokio::task::yield_now().await;
        }
        toy.allowed.store(false, Ordering::SeqCst);
        send.send(Bytes::from_static(b"x")).unwrap();
    };
    let (status, ()) = tokio::join!(asked, revoked);
    let performed = toy.stages.lock().unwrap().contains(&"perform");
    (status, performed)
}

#[tokio::test]
async fn what_counts_is_judged_when_the_body_is_there() {
    assert_eq!(revoked_meanwhile(false).await, (StatusCode::FORBIDDEN, false));
    assert_eq!(revoked_meanwhile(true).await, (StatusCode::OK, true), "the attack works where it may");
}

/// What was allowed is taken away while the log is written: its event is told, its answer is not, and that is told, too.
async fn revoked_while_recorded(confirms: bool, says_no: bool) -> (StatusCode, Vec<AuditOutcome>) {
    let toy = Toy { confirms, says_no, ..Toy::new() };
    toy.log.open.forget_permits(Semaphore::MAX_PERMITS);
    let revoked = async {
        while !toy.stages.lock().unwrap().contains(&"perform") {
            tokio::task::yield_now().await;
        }
        toy.allowed.store(false, Ordering::SeqCst);
        toy.log.open.add_permits(9);
    };
    let (status, ()) = tokio::join!(toy.ask_plainly("/"), revoked);
    (status, toy.log.told().into_iter().map(|(outcome, ..)| outcome).collect())
}

#[tokio::test]
async fn what_ended_before_the_answer_is_withheld() {
    for (says_no, first, outcome) in
        [(false, StatusCode::OK, AuditOutcome::Allowed), (true, StatusCode::CONFLICT, AuditOutcome::Failed)]
    {
        let (status, told) = revoked_while_recorded(true, says_no).await;
        assert_eq!((status, told), (StatusCode::FORBIDDEN, vec![outcome, AuditOutcome::Withheld]));
        let (status, told) = revoked_while_recorded(false, says_no).await;
        assert_eq!((status, told), (first, vec![outcome]), "the attack works where it may");
    }
}

#[tokio::test]
async fn a_change_waits_for_the_answers_that_are_on_their_way() {
    let toy = Toy::new();
    let spine = toy.spine();
    let (parts, ()) = HttpRequest::get("/").body(()).unwrap().into_parts();
    let body = Full::new(Bytes::from_static(b"x"));
    let answer: Response<Handed> = spine.handle(&toy, parts, body, None).await;
    let mut settling = Box::pin(spine.settle());
    let waits = tokio::time::timeout(Duration::from_millis(1), settling.as_mut()).await;
    assert!(waits.is_err());
    drop(answer);
    settling.await;
}

#[tokio::test]
async fn a_body_that_breaks_is_an_error_of_the_request() {
    let toy = Toy::new();
    let (send, body) = oneshot::channel();
    drop(send);
    assert_eq!(toy.ask(&toy.spine(), "/", Slow(body, false)).await, StatusCode::BAD_REQUEST);
    assert_eq!(toy.log.told(), [(AuditOutcome::Failed, Some("Body"), 1)]);
}

#[tokio::test]
async fn nothing_is_told_without_its_event() {
    let toy = Toy::new();
    toy.log.broken.store(true, Ordering::SeqCst);
    assert_eq!(toy.ask_plainly("/").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(toy.ask_plainly("/stranger").await, StatusCode::SERVICE_UNAVAILABLE);
    let slow = Toy::new();
    slow.log.open.forget_permits(Semaphore::MAX_PERMITS);
    let waits = tokio::time::timeout(Duration::from_millis(20), slow.ask_plainly("/")).await;
    assert!(waits.is_err() && !slow.stages.lock().unwrap().contains(&"answer"));
}

#[tokio::test]
async fn a_change_has_the_one_event_that_was_committed_with_it() {
    let toy = Toy { rows: Some(Rows::default()), ..Toy::new() };
    toy.log.broken.store(true, Ordering::SeqCst);
    assert_eq!(toy.ask_plainly("/").await, StatusCode::OK, "its event is durable already");
    assert_eq!(toy.log.told(), []);
    let events = toy.rows.as_ref().unwrap().0.lock().unwrap();
    let [event] = events.as_slice() else { panic!("one event") };
    assert_eq!(
        (event.operation, event.key.as_deref(), event.path.as_str(), event.status),
        ("Do", Some("key"), "/", 200)
    );
    assert_eq!(event.principal, Some(caller()));
}

#[tokio::test]
async fn an_answer_before_the_body_ends_the_connection() {
    let toy = Toy::new();
    let ask = async |path: &str, body: &'static [u8]| {
        let (parts, ()) = HttpRequest::get(path).body(()).unwrap().into_parts();
        let answer = toy.spine().handle(&toy, parts, Full::new(Bytes::from_static(body)), None).await;
        (answer.status().is_success(), answer.headers().contains_key("connection"))
    };
    assert_eq!(ask("/", b"x").await, (true, false));
    assert_eq!(ask("/forbidden", b"x").await, (false, true));
    assert_eq!(ask("/forbidden", b"").await, (false, false));
}

#[tokio::test]
async fn whoever_finds_no_place_is_refused_and_counted() {
    let toy = Toy { places: Some(0), ..Toy::new() };
    assert_eq!(toy.ask_plainly("/").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(*toy.stages.lock().unwrap(), ["route", "early", "counted", "answer"]);
    assert_eq!(toy.log.told(), []);
}

#[tokio::test]
async fn strangers_do_not_fill_the_log_and_each_is_counted() {
    let toy = Toy::new();
    let spine = toy.spine();
    for _ in 0..1000 {
        let body = Full::new(Bytes::new()).map_err(|never| match never {});
        assert_eq!(toy.ask(&spine, "/stranger", body).await, StatusCode::UNAUTHORIZED);
    }
    assert!(!toy.log.told().is_empty(), "the first is written at once");
    spine.finish().await;
    let told = toy.log.told();
    assert_eq!(told.iter().map(|(_, _, count)| count).sum::<u64>(), 1000);
    // Two a second, however slow this machine is.
    assert!(told.len() < 100, "{}", told.len());
    let known = Toy::new();
    for _ in 0..100 {
        assert_eq!(known.ask_plainly("/forbidden").await, StatusCode::FORBIDDEN);
    }
    assert_eq!(
        known.log.told(),
        vec![(AuditOutcome::Denied, Some("Denied"), 1); 100],
        "whoever is known is told of each time"
    );
}

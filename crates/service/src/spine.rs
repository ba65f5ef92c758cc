//! The stages in their order.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use holdfast_core::{Ambient, AuditEvent, AuditOutcome, AuditSink, CLEAR_WAIT_MAX, Gate, Pass};
use holdfast_wire::body;
use http::{HeaderValue, Response, header, request::Parts};
use http_body::Body;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    dialect::{Dialect, Failure, Fault, Written},
    measure::Ended,
    stages::{Confirmed, Done, Handed, Head, Recorded, Request},
    strangers::Strangers,
    trace::Trace,
};

/// How often a request is decided anew because another one changed what it rests on. Each of them has done its own work.
const ATTEMPTS_MAX: usize = 16;

/// What all requests of a role have in common.
pub struct Spine {
    audit: Arc<dyn AuditSink>,
    ambient: Arc<dyn Ambient>,
    /// What answers are handed over under.
    gate: Arc<Gate>,
    strangers: Arc<Strangers>,
    places: Option<Semaphore>,
}

/// Who is at work on what, as far as it has come.
struct AtWork<D: Dialect> {
    caller: Option<D::Caller>,
    act: Option<D::Act>,
}

/// How a request ended, for the log and for metrics.
struct End {
    outcome: AuditOutcome,
    failure: Option<Failure>,
    counted: bool,
}

/// What became of a request's event.
enum Event {
    Durable,
    Counted,
    Missing(Fault),
}

impl Spine {
    /// Answers are handed over under `gate`, which is that of the store whose changes they rest on. At most `in_flight_max` requests are at work at
    /// once; without it as many as there are connections.
    #[must_use]
    pub fn new(
        audit: Arc<dyn AuditSink>,
        ambient: Arc<dyn Ambient>,
        gate: Arc<Gate>,
        in_flight_max: Option<usize>,
    ) -> Self {
        let strangers = Strangers::new(Arc::clone(&audit));
        Self { audit, ambient, gate, strangers, places: in_flight_max.map(Semaphore::new) }
    }

    /// For a second door of a role whose requests go another way: strangers at both are counted together. Nothing clears its gate: who may come in
    /// there is configuration.
    #[must_use]
    pub fn beside(audit: Arc<dyn AuditSink>, ambient: Arc<dyn Ambient>, strangers: Arc<Strangers>) -> Self {
        Self { audit, ambient, gate: Gate::new(), strangers, places: None }
    }

    /// Serves one request, from its head to its answer.
    pub async fn handle<D, B>(&self, dialect: &D, parts: Parts, body: B, source: Option<SocketAddr>) -> Response<Handed>
    where
        D: Dialect,
        B: Body<Data = Bytes> + Send,
    {
        let head = Head::new(parts, source);
        let mut trace = Trace::of(&head, dialect.request_id(), dialect.client(&head));
        let mut told = D::Told::default();
        trace.body_waits(!body.is_end_stream());
        // Held to the end: whoever changes what a caller was judged by may wait for those who still are.
        let mut at_work = AtWork { caller: None, act: None };
        let result = self.serve(dialect, &head, body, &mut trace, &mut told, &mut at_work).await;
        let (recorded, mut end) = self.record(dialect, &mut trace, &mut told, result).await;
        let (outcome, pass) = self.confirm(dialect, &trace, &at_work, &told, recorded, &mut end).await;
        let success = outcome.as_ref().ok().map(D::status).unwrap_or_default();
        dialect.measure(&Ended {
            request_id: trace.request_id(),
            operation: trace.operation(),
            outcome: end.outcome,
            status: end.failure.as_ref().map_or(success, |failure| failure.status),
            error: end.failure.as_ref().map(|failure| failure.code),
            reason: end.failure.as_ref().map(|failure| failure.reason.as_str()),
            counted: end.counted,
            told: &told,
            elapsed: trace.started().elapsed(),
        });
        let mut answer = dialect.answer(&head, &trace, Confirmed::new(outcome));
        if trace.leaves_body() {
            // What is left of the body is in the way of the next request: the client must not send one there.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer.map(|bytes| Handed::new(bytes, pass))
    }

    async fn serve<D, B>(
        &self,
        dialect: &D,
        head: &Head,
        body: B,
        trace: &mut Trace,
        told: &mut D::Told,
        at_work: &mut AtWork<D>,
    ) -> Result<Done<D::Reply>, D::Error>
    where
        D: Dialect,
        B: Body<Data = Bytes> + Send,
    {
        let route = dialect.route(head, told)?;
        trace.operation_is(D::operation(&route));
        let early = dialect.early(head, &route, trace).await?;
        let body = body::read(body, dialect.body_limits()).await;
        let request = Request::new(head, body.map_err(|fault| dialect.fault(Fault::Body(fault)))?);
        trace.body_waits(false);
        // Not before the body is there: who sends slowly would keep others out.
        let place = self.places.as_ref().map(Semaphore::try_acquire).transpose();
        let _place = place.map_err(|_| dialect.fault(Fault::NoPlace))?;
        let AtWork { caller, act } = at_work;
        let caller: &D::Caller = caller.insert(dialect.caller(&request, &route, early, told).await?);
        trace.recognize(D::principal(caller));
        let act: &D::Act = act.insert(dialect.act(&request, route, caller, told, trace.client_mut())?);
        let learnt = told.clone();
        let mut attempts = 1;
        // Conflicts are ours to settle: the caller is told what holds on the state as it is now.
        loop {
            let leave = dialect.judge(&request, caller, act, told)?;
            let result = dialect.perform(&request, caller, act, leave, trace, told).await;
            if attempts == ATTEMPTS_MAX || !result.as_ref().is_err_and(|error| dialect.is_stale(error)) {
                return result;
            }
            attempts += 1;
            told.clone_from(&learnt);
        }
    }

    /// Tells the log, and only then lets anything be told to the client.
    async fn record<D: Dialect>(
        &self,
        dialect: &D,
        trace: &mut Trace,
        told: &mut D::Told,
        result: Result<Done<D::Reply>, D::Error>,
    ) -> (Recorded<D::Reply, D::Error>, End) {
        let now = self.ambient.now();
        let mut failure = result.as_ref().err().map(|error| dialect.failure(error));
        let outcome = failure.as_ref().map_or(AuditOutcome::Allowed, |failure| failure.outcome);
        let event = match (&result, &failure) {
            (Ok(Done::Changed(..)), _) => Event::Durable,
            (Ok(done), _) => {
                let status = D::status(done.reply());
                let event = trace.last_event(now, told, status, outcome);
                self.append(dialect, trace, event).await
            }
            (Err(_), Some(failure)) if failure.written == Written::Each => {
                let mut event = trace.last_event(now, told, failure.status, outcome);
                event.error_code = Some(failure.code);
                event.reason = Some(failure.reason.clone());
                let unknown = trace.principal().is_none();
                let event = if unknown { self.strangers.note(event, trace.source()) } else { Some(event) };
                match event {
                    Some(event) => self.append(dialect, trace, event).await,
                    None => Event::Counted,
                }
            }
            (Err(_), _) => Event::Counted,
        };
        let counted = matches!(event, Event::Counted);
        let result = match event {
            Event::Durable | Event::Counted => result,
            Event::Missing(fault) => {
                let error = dialect.fault(fault);
                failure = Some(dialect.failure(&error));
                Err(error)
            }
        };
        (Recorded(result), End { outcome, failure, counted })
    }

    /// Looks once more, now that nothing is waited for any more. What may no longer be told is withheld, and the log is told of that, too.
    async fn confirm<D: Dialect>(
        &self,
        dialect: &D,
        trace: &Trace,
        at_work: &AtWork<D>,
        told: &D::Told,
        recorded: Recorded<D::Reply, D::Error>,
        end: &mut End,
    ) -> (Result<D::Reply, D::Error>, Option<Pass>) {
        let result = match recorded.0 {
            Err(error) => Err(error),
            Ok(Done::Changed(_, reply)) => return (Ok(reply), None),
            Ok(Done::Told(reply)) => Ok(reply),
        };
        // First the pass, then the look: a change that it does not see waits for it.
        let pass = self.gate.enter();
        let AtWork { caller: Some(caller), act: Some(act) } = at_work else { return (result, None) };
        let confirmed = match &result {
            Ok(reply) => dialect.confirm(caller, act, reply),
            Err(error) => match dialect.confirm_refusal(caller, act, told, error) {
                Some(confirmed) => confirmed,
                // Nobody waits for an answer that anybody may have.
                None => return (result, None),
            },
        };
        let Err(error) = confirmed else { return (result, Some(pass.as_long_as(dialect.holds(caller)))) };
        drop(pass);
        let failure = dialect.failure(&error);
        let event = trace.withheld(self.ambient.now(), &failure);
        let error = match self.append(dialect, trace, event).await {
            Event::Missing(fault) => dialect.fault(fault),
            Event::Durable | Event::Counted => error,
        };
        *end = End { outcome: AuditOutcome::Withheld, failure: Some(dialect.failure(&error)), counted: false };
        (Err(error), None)
    }

    async fn append<D: Dialect>(&self, dialect: &D, trace: &Trace, event: AuditEvent) -> Event {
        let appended = match dialect.patience(trace) {
            None => self.audit.append(event).await,
            // The event is on its way, whoever waits for it.
            Some(patience) => match timeout(patience, self.audit.append(event)).await {
                Ok(appended) => appended,
                Err(_) => return Event::Missing(Fault::RecordedTooLate),
            },
        };
        match appended {
            Ok(()) => Event::Durable,
            Err(error) => Event::Missing(Fault::Unrecorded(error)),
        }
    }

    /// Waits until nothing goes on that was looked at before, for changes that do not come by the store: what was to be forbidden is so now.
    pub async fn settle(&self) {
        self.gate.clear(tokio::time::sleep(CLEAR_WAIT_MAX)).await;
    }

    /// Tells the log what was only counted so far. For the end of a service, before its log is closed.
    pub async fn finish(&self) {
        self.strangers.flush().await;
    }
}

//! The stages in their order.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use holdfast_core::{Ambient, AuditEvent, AuditOutcome, AuditSink};
use holdfast_wire::body;
use http::{HeaderValue, Response, header, request::Parts};
use http_body::Body;
use http_body_util::Full;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    dialect::{Dialect, Fault, Written},
    measure::Ended,
    stages::{Done, Head, Recorded, Request},
    strangers::Strangers,
    trace::Trace,
};

/// What all requests of a role have in common.
pub struct Spine {
    audit: Arc<dyn AuditSink>,
    ambient: Arc<dyn Ambient>,
    strangers: Arc<Strangers>,
    places: Option<Semaphore>,
}

/// What became of a request's event.
enum Event {
    Durable,
    Counted,
    Missing(Fault),
}

impl Spine {
    /// At most `in_flight_max` requests are at work at once; without it as many as there are connections.
    #[must_use]
    pub fn new(audit: Arc<dyn AuditSink>, ambient: Arc<dyn Ambient>, in_flight_max: Option<usize>) -> Self {
        let strangers = Strangers::new(Arc::clone(&audit));
        Self { audit, ambient, strangers, places: in_flight_max.map(Semaphore::new) }
    }

    /// For a second door of a role whose requests go another way: strangers at both are counted together.
    #[must_use]
    pub fn beside(audit: Arc<dyn AuditSink>, ambient: Arc<dyn Ambient>, strangers: Arc<Strangers>) -> Self {
        Self { audit, ambient, strangers, places: None }
    }

    /// Serves one request, from its head to its answer.
    pub async fn handle<D, B>(
        &self,
        dialect: &D,
        parts: Parts,
        body: B,
        source: Option<SocketAddr>,
    ) -> Response<Full<Bytes>>
    where
        D: Dialect,
        B: Body<Data = Bytes> + Send,
    {
        let head = Head::new(parts, source);
        let mut trace = Trace::of(&head, dialect.request_id(), dialect.client(&head));
        let mut told = D::Told::default();
        trace.body_waits(!body.is_end_stream());
        // Held to the end: whoever changes what a caller was judged by may wait for those who still are.
        let mut caller = None;
        let result = self.serve(dialect, &head, body, &mut trace, &mut told, &mut caller).await;
        let outcome = self.record(dialect, &mut trace, &mut told, result).await;
        let mut answer = dialect.answer(&head, &trace, outcome);
        if trace.leaves_body() {
            // What is left of the body is in the way of the next request: the client must not send one there.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    async fn serve<D, B>(
        &self,
        dialect: &D,
        head: &Head,
        body: B,
        trace: &mut Trace,
        told: &mut D::Told,
        caller: &mut Option<D::Caller>,
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
        let caller: &D::Caller = caller.insert(dialect.caller(&request, &route, early, told).await?);
        trace.recognize(D::principal(caller));
        let act = dialect.act(&request, route, caller, told, trace.client_mut())?;
        let leave = dialect.judge(&request, caller, &act, told)?;
        dialect.perform(&request, caller, act, leave, trace, told).await
    }

    /// Tells the log, and only then lets anything be told to the client.
    async fn record<D: Dialect>(
        &self,
        dialect: &D,
        trace: &mut Trace,
        told: &mut D::Told,
        result: Result<Done<D::Reply>, D::Error>,
    ) -> Recorded<Result<D::Reply, D::Error>> {
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
            Event::Durable | Event::Counted => result.map(Done::into_reply),
            Event::Missing(fault) => {
                let error = dialect.fault(fault);
                failure = Some(dialect.failure(&error));
                Err(error)
            }
        };
        let success = result.as_ref().ok().map(D::status).unwrap_or_default();
        dialect.measure(&Ended {
            request_id: trace.request_id(),
            operation: trace.operation(),
            outcome,
            status: failure.as_ref().map_or(success, |failure| failure.status),
            error: failure.as_ref().map(|failure| failure.code),
            reason: failure.as_ref().map(|failure| failure.reason.as_str()),
            counted,
            told,
            elapsed: trace.started().elapsed(),
        });
        Recorded::new(result)
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

    /// Tells the log what was only counted so far. For the end of a service, before its log is closed.
    pub async fn finish(&self) {
        self.strangers.flush().await;
    }
}

//! What the log is told of a request.

use std::{net::SocketAddr, time::Instant};

use holdfast_core::{AuditEvent, AuditOutcome, Principal, Timestamp};
use http::StatusCode;

use crate::{dialect::Failure, stages::Head};

/// What a dialect learns of a request on its way, for the log.
pub trait Told: Clone + Default + Send {
    /// Puts it into the event. What is put there may be taken out of here.
    fn tell(&mut self, event: &mut AuditEvent);
}

/// What a client says of itself, fit for the log.
#[derive(Clone, Default)]
pub struct Client {
    /// Its own id of the request.
    pub request_id: Option<String>,
    /// Its software.
    pub user_agent: Option<String>,
    /// The path that it asked for.
    pub path: String,
}

/// What is known of a request, or of an act of the service's own, whatever its dialect.
pub struct Trace {
    request_id: String,
    operation: &'static str,
    principal: Option<Principal>,
    source: Option<SocketAddr>,
    started: Instant,
    client: Client,
    /// Whether there is a body that was not read to its end.
    leaves_body: bool,
}

impl Trace {
    pub(crate) fn of(head: &Head, request_id: String, client: Client) -> Self {
        Self {
            request_id,
            operation: "Unknown",
            principal: None,
            source: head.source(),
            started: head.started(),
            client,
            leaves_body: false,
        }
    }

    /// Of something that the service does by itself; `path` stands where a request has one.
    #[must_use]
    pub fn automatic(request_id: String, operation: &'static str, path: &str) -> Self {
        Self {
            request_id,
            operation,
            principal: Some(Principal::system()),
            source: None,
            started: Instant::now(),
            client: Client { request_id: None, user_agent: None, path: path.to_owned() },
            leaves_body: false,
        }
    }

    pub(crate) fn body_waits(&mut self, waits: bool) {
        self.leaves_body = waits;
    }

    pub(crate) fn leaves_body(&self) -> bool {
        self.leaves_body
    }

    pub(crate) fn operation_is(&mut self, operation: &'static str) {
        self.operation = operation;
    }

    pub(crate) fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Remembers who asks.
    pub fn recognize(&mut self, principal: &Principal) {
        self.principal = Some(principal.clone());
    }

    /// Our id of the request.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The operation, in the dialect's own word.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Who asks, if that is known.
    #[must_use]
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }

    pub(crate) fn source(&self) -> Option<SocketAddr> {
        self.source
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The event of a success, as an operation needs it that commits it together with what it changes.
    #[must_use]
    pub fn event<T: Told>(&self, now: Timestamp, told: &T, status: StatusCode) -> AuditEvent {
        self.event_of(self.client.clone(), now, &mut told.clone(), status, AuditOutcome::Allowed)
    }

    /// The event of the end.
    pub(crate) fn last_event<T: Told>(
        &mut self,
        now: Timestamp,
        told: &mut T,
        status: StatusCode,
        outcome: AuditOutcome,
    ) -> AuditEvent {
        let client = std::mem::take(&mut self.client);
        self.event_of(client, now, told, status, outcome)
    }

    /// The event of an answer that was withheld. What the request was about stands in the event before, of the same request id.
    pub(crate) fn withheld(&self, now: Timestamp, failure: &Failure) -> AuditEvent {
        AuditEvent {
            time: now,
            operation: self.operation,
            principal: self.principal.clone(),
            key: None,
            key_version: None,
            algorithm: None,
            outcome: AuditOutcome::Withheld,
            status: failure.status.as_u16(),
            error_code: Some(failure.code),
            reason: Some(failure.reason.clone()),
            request_id: self.request_id.clone(),
            client_request_id: None,
            source: self.source.map(|address| address.to_string()),
            user_agent: None,
            context: Vec::new(),
            path: String::new(),
            duration_us: self.started.elapsed().as_micros() as u64,
        }
    }

    fn event_of<T: Told>(
        &self,
        client: Client,
        now: Timestamp,
        told: &mut T,
        status: StatusCode,
        outcome: AuditOutcome,
    ) -> AuditEvent {
        let Client { request_id, user_agent, path } = client;
        let mut event = AuditEvent {
            time: now,
            operation: self.operation,
            principal: self.principal.clone(),
            key: None,
            key_version: None,
            algorithm: None,
            outcome,
            status: status.as_u16(),
            error_code: None,
            reason: None,
            request_id: self.request_id.clone(),
            client_request_id: request_id,
            source: self.source.map(|address| address.to_string()),
            user_agent,
            context: Vec::new(),
            path,
            duration_us: self.started.elapsed().as_micros() as u64,
        };
        told.tell(&mut event);
        event
    }
}

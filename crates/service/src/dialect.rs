//! What a dialect writes itself.

use std::time::Duration;

use bytes::Bytes;
use holdfast_core::{AuditError, AuditOutcome, Holds, Principal};
use holdfast_wire::body::{BodyFault, BodyLimits};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::{
    measure::Ended,
    stages::{Confirmed, Done, Head, Request},
    trace::{Client, Told, Trace},
};

/// What the spine itself refuses a request for. Each dialect has words of its own for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The body cannot be read within its bounds.
    Body(BodyFault),
    /// As many requests as may be are at work.
    NoPlace,
    /// The event could not be written: nothing is answered without it.
    Unrecorded(AuditError),
    /// The event was not durable in time: what is logged as done is told as not done, and never the other way round.
    RecordedTooLate,
}

/// What becomes of a failure in the audit log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// It has an event of its own. Of callers who are not known, what repeats is counted.
    Each,
    /// The dialect counts it, and tells the log how often: to write each down would be work without bound.
    Counted,
}

/// A failure, as a dialect maps it: exhaustively, and without a look at any text.
#[derive(Clone, Debug)]
pub struct Failure {
    /// HTTP status.
    pub status: StatusCode,
    /// The error's code in the dialect.
    pub code: &'static str,
    /// How the audit log classes it.
    pub outcome: AuditOutcome,
    /// Why, for the log.
    pub reason: String,
    /// Whether it has an event.
    pub written: Written,
}

/// One dialect at one door of a role.
pub trait Dialect: Sync {
    /// What the log is told.
    type Told: Told + Clone + Sync;
    /// What the head names.
    type Route: Send + Sync;
    /// What was learnt from the head alone. It allows nothing.
    type Early: Send;
    /// Somebody who has proved who he is.
    type Caller: Send + Sync;
    /// What is asked.
    type Act: Send + Sync;
    /// Leave to do it, given when the body was there. A dialect whose bodies name what is used gives it where names are resolved.
    type Leave: Send;
    /// What a success has to say.
    type Reply: Send;
    /// The dialect's errors.
    type Error: Send;

    /// A new id for a request.
    fn request_id(&self) -> String;

    /// What the client says of itself.
    fn client(&self, head: &Head) -> Client;

    /// Finds what the head names, and tells the log of it: before the caller is known, so that refused attempts can be told apart.
    ///
    /// # Errors
    /// The dialect's.
    fn route(&self, head: &Head, told: &mut Self::Told) -> Result<Self::Route, Self::Error>;

    /// The operation's name in the log and in metrics.
    fn operation(route: &Self::Route) -> &'static str;

    /// A first look, before the body is waited for: it may refuse, and allows nothing. Whoever is recognized here is told to the trace.
    ///
    /// # Errors
    /// The dialect's.
    fn early(
        &self,
        head: &Head,
        route: &Self::Route,
        trace: &mut Trace,
    ) -> impl Future<Output = Result<Self::Early, Self::Error>> + Send;

    /// Bounds of the body.
    fn body_limits(&self) -> BodyLimits;

    /// Recognizes the caller, as he is known now.
    ///
    /// # Errors
    /// The dialect's.
    fn caller(
        &self,
        request: &Request<'_>,
        route: &Self::Route,
        early: Self::Early,
        told: &mut Self::Told,
    ) -> impl Future<Output = Result<Self::Caller, Self::Error>> + Send;

    /// Who the caller is in the log.
    fn principal(caller: &Self::Caller) -> &Principal;

    /// What the caller asks for. What the body says of the client goes into `client`.
    ///
    /// # Errors
    /// The dialect's.
    fn act(
        &self,
        request: &Request<'_>,
        route: Self::Route,
        caller: &Self::Caller,
        told: &mut Self::Told,
        client: &mut Client,
    ) -> Result<Self::Act, Self::Error>;

    /// Whether the caller may do it, by the rules in force now.
    ///
    /// # Errors
    /// The dialect's.
    fn judge(
        &self,
        request: &Request<'_>,
        caller: &Self::Caller,
        act: &Self::Act,
        told: &mut Self::Told,
    ) -> Result<Self::Leave, Self::Error>;

    /// Does it.
    fn perform(
        &self,
        request: &Request<'_>,
        caller: &Self::Caller,
        act: &Self::Act,
        leave: Self::Leave,
        trace: &Trace,
        told: &mut Self::Told,
    ) -> impl Future<Output = Result<Done<Self::Reply>, Self::Error>> + Send;

    /// Whether nothing was done because another request changed what this one rests on: then it is judged and done anew. Told to the caller only if
    /// that goes on and on.
    fn is_stale(&self, _error: &Self::Error) -> bool {
        false
    }

    /// Whether what was told may still be handed over: what it rests on (key, policy, role, grant, credential) is looked at as it is at this moment.
    /// Called when the event is durable, for everything but changes, which have happened whatever comes after. It must wait for nobody.
    ///
    /// # Errors
    /// The dialect's: what a request that came now would be told.
    fn confirm(&self, caller: &Self::Caller, act: &Self::Act, reply: &Self::Reply) -> Result<(), Self::Error>;

    /// The same for a refusal that tells what only those may know who may use the key: that a signature or a ciphertext is not valid under it, that
    /// a use would have succeeded. `None`: it tells nothing of the kind.
    fn confirm_refusal(
        &self,
        _caller: &Self::Caller,
        _act: &Self::Act,
        _told: &Self::Told,
        _error: &Self::Error,
    ) -> Option<Result<(), Self::Error>> {
        None
    }

    /// What ends by itself while a long answer is written: looked at before each of its pieces. `None`: nothing does, or answers are short.
    fn holds(&self, _caller: &Self::Caller) -> Option<Holds> {
        None
    }

    /// Status of a success.
    fn status(reply: &Self::Reply) -> StatusCode;

    /// Status, code and reason of an error.
    fn failure(&self, error: &Self::Error) -> Failure;

    /// The dialect's own error for what the spine refuses.
    fn fault(&self, fault: Fault) -> Self::Error;

    /// How long the answer waits for its event at most; `None`: as long as it takes.
    fn patience(&self, _trace: &Trace) -> Option<Duration> {
        None
    }

    /// Counts a request that has ended, and tells the process's log of it.
    fn measure(&self, ended: &Ended<'_, Self::Told>);

    /// The answer.
    fn answer(
        &self,
        head: &Head,
        trace: &Trace,
        outcome: Confirmed<Result<Self::Reply, Self::Error>>,
    ) -> Response<Full<Bytes>>;
}

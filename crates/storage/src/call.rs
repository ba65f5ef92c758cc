//! One request: who asks, for what, and what is noted of it until it is answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use holdfast_core::{Action, Ambient, Timestamp};
use http::HeaderMap;
use s3s::{S3Error, S3ErrorCode};

use crate::{error::Error, event::About, s3::authn::Caller};

/// What is known of a request before anything of it is understood.
pub(crate) struct Facts {
    /// As the answer tells it.
    pub id: String,
    /// The client's own id of it.
    pub client_id: Option<String>,
    /// Where it came from.
    pub source: Option<SocketAddr>,
    pub user_agent: Option<String>,
    /// Without the query, in which there may be a signature.
    pub path: String,
    pub at: Timestamp,
    pub began: Instant,
}

/// A request as it came in, before anybody knows whose it is.
pub(crate) struct Arrived {
    pub facts: Arc<Facts>,
    notes: Mutex<Notes>,
}

/// What is found out on the way.
#[derive(Default)]
struct Notes {
    caller: Option<Caller>,
    call: Option<Arc<Call>>,
    refused: Option<Error>,
    /// What the request asks for, where that is known before it is understood.
    act: Option<Act>,
    /// Nothing of the body came for too long.
    late: bool,
}

impl Arrived {
    pub(crate) fn new(
        id: &str,
        source: Option<SocketAddr>,
        path: &str,
        headers: &HeaderMap,
        ambient: &dyn Ambient,
    ) -> Arc<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let facts = Arc::new(Facts {
            id: id.to_owned(),
            client_id: text("amz-sdk-invocation-id"),
            source,
            user_agent: text("user-agent"),
            path: path.to_owned(),
            at: ambient.now(),
            began: Instant::now(),
        });
        Arc::new(Self { facts, notes: Mutex::default() })
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries an error past s3s, whose own has no place for all of it: what is given to s3s only says that there is one.
    pub(crate) fn refuse(&self, error: Error) -> S3Error {
        self.notes().refused = Some(error);
        S3Error::new(S3ErrorCode::InternalError)
    }

    /// Why the request was refused, if it was refused by us.
    pub(crate) fn refused(&self) -> Option<Error> {
        self.notes().refused.take()
    }

    /// Who asks, if that was proved.
    pub(crate) fn caller(&self) -> Option<Caller> {
        self.notes().caller.clone()
    }

    /// Notes what the request asks for, whatever else there is in it.
    pub(crate) fn asks_for(&self, act: Act) {
        self.notes().act = Some(act);
    }

    /// What the request asks for, as far as that is known.
    pub(crate) fn act(&self) -> Option<Act> {
        let notes = self.notes();
        notes.call.as_ref().map(|call| call.act().clone()).or_else(|| notes.act.clone())
    }

    pub(crate) fn came_late(&self) {
        self.notes().late = true;
    }

    pub(crate) fn is_late(&self) -> bool {
        self.notes().late
    }

    pub(crate) fn came_from(&self, caller: &Caller) {
        self.notes().caller = Some(caller.clone());
    }

    /// What the request was found to ask for, and by whom, if it came so far.
    pub(crate) fn call(&self) -> Option<Arc<Call>> {
        self.notes().call.clone()
    }
}

/// What an operation does, and to what.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    /// S3's name of the operation.
    pub operation: &'static str,
    pub action: Action,
    /// The bucket that the request names; and the owner that it expects it to have.
    pub bucket: Named,
    /// The object, if it names one alone.
    pub key: Option<String>,
    /// What is read for a copy.
    pub source: Option<(Named, String)>,
}

impl Act {
    /// Whether it changes nothing.
    pub(crate) fn reads(&self) -> bool {
        matches!(self.action, Action::BucketList | Action::BucketRead | Action::ObjectList | Action::ObjectRead)
    }
}

/// A bucket as a request names it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    pub bucket: String,
    /// Whose it is, as the caller expects.
    pub owner: Option<String>,
}

/// A request of a known caller, found to ask for one act. An operation can be carried out with one only.
pub(crate) struct Call {
    caller: Caller,
    act: Act,
    about: Mutex<About>,
    settled: Arc<AtomicBool>,
}

impl Call {
    pub(crate) fn new(arrived: &Arrived, caller: Caller, act: Act) -> Arc<Self> {
        let call = Arc::new(Self { caller, act, about: Mutex::default(), settled: Arc::default() });
        arrived.notes().call = Some(Arc::clone(&call));
        call
    }

    /// Who asks.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// For what.
    pub(crate) fn act(&self) -> &Act {
        &self.act
    }

    /// Notes for the log what a request that changes nothing turned out to be about.
    pub(crate) fn note(&self, about: About) {
        *self.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
    }

    pub(crate) fn about(&self) -> About {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Set when what the request changed, and the event of that, are durable.
    pub(crate) fn settled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.settled)
    }

    /// Whether the log has, or will have, the event of this request already.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }
}

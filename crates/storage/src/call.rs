//! One request: who asks, for what, and what is noted of it until it is answered.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_core::{Action, Principal};
use s3s::{S3Error, S3ErrorCode};

use crate::error::Error;

/// A request as it came in, before anybody knows whose it is.
pub(crate) struct Arrived {
    /// As the answer tells it.
    pub id: String,
    /// Where it came from.
    pub source: Option<SocketAddr>,
    notes: Mutex<Notes>,
}

/// What is found out on the way.
#[derive(Default)]
struct Notes {
    call: Option<Arc<Call>>,
    refused: Option<Error>,
}

impl Arrived {
    pub(crate) fn new(id: &str, source: Option<SocketAddr>) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), source, notes: Mutex::default() })
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

    /// What the request was found to ask for, and by whom, if it came so far.
    pub(crate) fn call(&self) -> Option<Arc<Call>> {
        self.notes().call.clone()
    }
}

/// Who asks. Made by [`crate::s3::authn::Directory`] alone, of a request whose signature holds.
#[derive(Clone)]
pub(crate) struct Caller {
    pub principal: Principal,
    /// By which credential.
    pub access_key: String,
    /// From where.
    pub source: Option<SocketAddr>,
    /// By which request.
    pub request_id: String,
}

impl Caller {
    /// The name that owners of buckets have.
    pub(crate) fn name(&self) -> &str {
        self.principal.object_id()
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

/// A bucket as a request names it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    pub bucket: String,
    /// Whose it is, as the caller expects.
    pub owner: Option<String>,
}

/// A request of a known caller, found to ask for one act. An operation can be carried out with one only.
pub(crate) struct Call {
    pub caller: Caller,
    pub act: Act,
}

impl Call {
    pub(crate) fn new(arrived: &Arrived, caller: Caller, act: Act) -> Arc<Self> {
        let call = Arc::new(Self { caller, act });
        arrived.notes().call = Some(Arc::clone(&call));
        call
    }
}

//! What a request is on its way. None of these can be made elsewhere:
//!
//! ```compile_fail
//! let request = holdfast_service::Request { head: unreachable!(), body: bytes::Bytes::new() };
//! ```
//! ```compile_fail
//! let confirmed = holdfast_service::Confirmed(Ok::<(), ()>(()));
//! ```
//! What is handed over has the pass that it was looked at last under, or is what anybody may have:
//! ```compile_fail,E0451
//! let handed = holdfast_service::Handed { bytes: http_body_util::Full::default(), pass: None };
//! ```
//! A dialect makes no answer of what was not confirmed:
//! ```compile_fail,E0308
//! # use holdfast_service::{Dialect, Done, Head, Trace};
//! fn answer<D: Dialect>(dialect: &D, head: &Head, trace: &Trace, outcome: Result<D::Reply, D::Error>) {
//!     dialect.answer(head, trace, outcome);
//! }
//! ```
//! Nothing is told as changed that was not committed:
//! ```compile_fail,E0308
//! fn changed() -> holdfast_service::Done<()> {
//!     holdfast_service::Done::Changed((), ())
//! }
//! ```

use std::{net::SocketAddr, time::Instant};

use bytes::Bytes;
use holdfast_core::{Committed, Pass};
use http::{HeaderMap, request::Parts};
use http_body_util::Full;

/// The head of a request. Nothing of what it says is proved.
pub struct Head {
    parts: Parts,
    source: Option<SocketAddr>,
    started: Instant,
}

impl Head {
    pub(crate) fn new(parts: Parts, source: Option<SocketAddr>) -> Self {
        Self { parts, source, started: Instant::now() }
    }

    /// All of it.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The header lines.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Path, without query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// Where it came from.
    #[must_use]
    pub fn source(&self) -> Option<SocketAddr> {
        self.source
    }

    /// When it was there.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }
}

/// A request that is there as a whole, its body read within its bounds.
pub struct Request<'a> {
    head: &'a Head,
    body: Bytes,
}

impl<'a> Request<'a> {
    pub(crate) fn new(head: &'a Head, body: Bytes) -> Self {
        Self { head, body }
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &'a Head {
        self.head
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

/// What an operation that succeeded gives back.
pub enum Done<R> {
    /// Something was used or read. The event is still to be written, and the answer waits for it.
    Told(R),
    /// Something was changed, and the event of this request ([`crate::Trace::event`]) was committed with it: none is written after it.
    Changed(Committed, R),
}

impl<R> Done<R> {
    /// The same with another reply.
    pub fn map<S>(self, reply: impl FnOnce(R) -> S) -> Done<S> {
        match self {
            Self::Told(told) => Done::Told(reply(told)),
            Self::Changed(committed, told) => Done::Changed(committed, reply(told)),
        }
    }

    pub(crate) fn reply(&self) -> &R {
        match self {
            Self::Told(reply) | Self::Changed(_, reply) => reply,
        }
    }
}

/// An outcome that the log knows: its event is durable, or it is of those that are only counted.
pub(crate) struct Recorded<R, E>(pub(crate) Result<Done<R>, E>);

/// An outcome that the log knows and that was looked at once more, under the pass that its answer is handed over with.
pub struct Confirmed<T>(T);

impl<T> Confirmed<T> {
    pub(crate) fn new(outcome: T) -> Self {
        Self(outcome)
    }

    /// What may be told now.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// The body of an answer. As long as it is on its way to the socket its pass is held, so that a change which ends what it rests on waits for it
/// or stops it.
pub struct Handed {
    bytes: Full<Bytes>,
    pass: Option<Pass>,
}

impl Handed {
    pub(crate) fn new(bytes: Full<Bytes>, pass: Option<Pass>) -> Self {
        Self { bytes, pass }
    }

    /// The bytes, and the pass that is to be held until the last of them is with the socket.
    #[must_use]
    pub fn into_parts(self) -> (Full<Bytes>, Option<Pass>) {
        (self.bytes, self.pass)
    }
}

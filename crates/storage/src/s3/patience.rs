//! Bodies do not take for ever: a client that sends nothing for too long holds a place that others wait for.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use s3s::{Body, StdError};
use tokio::time::{Sleep, sleep};

use crate::call::Arrived;

/// A body that ends with an error when nothing of it comes for so long. Time in which nobody asks for more of it does not count, once it is there.
struct Bounded {
    body: Body,
    idle: Duration,
    arrived: Arc<Arrived>,
    /// Runs while something is waited for.
    waits: Option<Pin<Box<Sleep>>>,
}

pub(super) fn bounded(body: Body, arrived: &Arc<Arrived>, idle: Duration) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::http_body_unsync(Bounded { body, idle, arrived: Arc::clone(arrived), waits: None })
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waits = None;
            return Poll::Ready(frame);
        }
        let idle = this.idle;
        let waits = this.waits.get_or_insert_with(|| Box::pin(sleep(idle)));
        if waits.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        this.arrived.came_late();
        Poll::Ready(Some(Err(Box::new(io::Error::from(io::ErrorKind::TimedOut)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

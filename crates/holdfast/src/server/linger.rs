//! Closing without cutting off the last answer.
//!
//! Closing a socket with unread bytes in it resets the connection, and a reset overtakes an answer that the client has not
//! read yet: "413" or "431" would be lost to a client that is still sending. So the sending half is closed first, and
//! what still comes is taken in and thrown away, within bounds.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// What a client may still send after it was refused: SDKs send a part of an upload, of some 10 to 50 MiB, before they read.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a client may pause.
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it may go on in all; its connection counts against the limit meanwhile.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket that lingers when it is shut down.
pub(super) struct Lingering {
    stream: TcpStream,
    closing: Option<Closing>,
}

struct Closing {
    idle: Pin<Box<Sleep>>,
    until: Instant,
    discarded: usize,
}

impl Lingering {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, closing: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closing = match &mut this.closing {
            Some(closing) => closing,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                let until = Instant::now() + LINGER_TIMEOUT;
                this.closing.insert(Closing { idle: Box::pin(sleep(IDLE_TIMEOUT)), until, discarded: 0 })
            }
        };
        let mut scratch = [0; 16 * 1024];
        while closing.discarded < LINGER_BYTES_MAX && closing.idle.as_mut().poll(context).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => closing.discarded += buf.filled().len(),
                Ok(()) | Err(_) => break,
            }
            closing.idle.as_mut().reset(closing.until.min(Instant::now() + IDLE_TIMEOUT));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

//! Handing an answer over, byte by byte, for as long as its pass holds.
//!
//! An answer's pass is held until its last byte is with the socket. Each write looks at the pass first and is made under it: once the pass is
//! revoked, nothing more of the answer leaves, and the connection ends. What the client has by then is a part of an encrypted stream that
//! breaks off, or a head without its body.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::{Pass, Reader};
use holdfast_service::Handed;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Full, combinators::UnsyncBoxBody};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::BodyError;

/// The body of an answer: bytes at hand, or a stream.
pub(crate) struct AnswerBody {
    content: Content,
    pass: Option<Pass>,
    /// The connection that it goes over, if it has a pass.
    hand: Option<Arc<Hand>>,
}

enum Content {
    Bytes(Full<Bytes>),
    Stream(UnsyncBoxBody<Bytes, BodyError>),
}

impl From<Full<Bytes>> for AnswerBody {
    fn from(bytes: Full<Bytes>) -> Self {
        Self { content: Content::Bytes(bytes), pass: None, hand: None }
    }
}

impl From<Handed> for AnswerBody {
    fn from(handed: Handed) -> Self {
        let (bytes, pass) = handed.into_parts();
        Self { content: Content::Bytes(bytes), pass, hand: None }
    }
}

impl From<UnsyncBoxBody<Bytes, BodyError>> for AnswerBody {
    fn from(stream: UnsyncBoxBody<Bytes, BodyError>) -> Self {
        Self { content: Content::Stream(stream), pass: None, hand: None }
    }
}

impl AnswerBody {
    /// Gives the pass to the connection, before anything of the answer is written.
    pub(super) fn over(mut self, hand: &Arc<Hand>) -> Self {
        if let Some(pass) = self.pass.take() {
            hand.lock().push(Held { pass, is_written: false });
            self.hand = Some(Arc::clone(hand));
        }
        self
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // All of it is in the connection's buffer; or it was given up, and so is the connection.
        if let Some(hand) = &self.hand {
            hand.lock().iter_mut().for_each(|held| held.is_written = true);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.content {
            Content::Bytes(bytes) => Pin::new(bytes)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Content::Stream(stream) => Pin::new(stream).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.is_end_stream(),
            Content::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => bytes.size_hint(),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}

struct Held {
    pass: Pass,
    /// Whether the connection has all of the answer in its buffer.
    is_written: bool,
}

/// The passes of the answers that are on their way over one connection. HTTP/1.1 answers one after the other.
#[derive(Default)]
pub(super) struct Hand(Mutex<Vec<Held>>);

impl Hand {
    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does `step` by leave of all these passes, none of which is revoked meanwhile. `None`: one was.
fn under<T>(passes: &[Held], step: &mut dyn FnMut() -> T) -> Option<T> {
    match passes {
        [] => Some(step()),
        [held, others @ ..] => held.pass.step(|| under(others, step)).flatten(),
    }
}

/// A connection that writes by leave of the passes in its hand, and that ends when its client reads nothing for long: nobody keeps others out by
/// holding connections with answers that he does not want.
pub(super) struct HandingOver<S> {
    stream: S,
    hand: Arc<Hand>,
    reader: Arc<Reader>,
    /// How long a client may read nothing.
    stall_max: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> HandingOver<S> {
    pub(super) fn new(stream: S, hand: &Arc<Hand>, reader: Arc<Reader>, stall_max: Duration) -> Self {
        Self { stream, hand: Arc::clone(hand), reader, stall_max, stalled: None }
    }

    /// What came of writing, if it did not stall for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.stalled.take().is_some() {
                self.hand.lock().iter().for_each(|held| held.pass.moves());
            }
            return polled;
        }
        // Again for those that have come since.
        self.hand.lock().iter().for_each(|held| held.pass.stalls(&self.reader));
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.stall_max)));
        ready!(stalled.as_mut().poll(context));
        counter!("holdfast_answers_not_read_total").increment(1);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }

    fn by_leave<T>(
        &mut self,
        mut step: impl FnMut(&mut S) -> Poll<io::Result<T>>,
        done: impl FnOnce(&mut Vec<Held>),
    ) -> Poll<io::Result<T>> {
        let Self { stream, hand, .. } = self;
        let mut passes = hand.lock();
        let Some(polled) = under(&passes, &mut || step(stream)) else {
            counter!("holdfast_answers_cut_total").increment(1);
            return Poll::Ready(Err(io::Error::other("what allowed the answer has ended before it was read")));
        };
        if let Poll::Ready(Ok(_)) = &polled {
            done(&mut passes);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HandingOver<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // TLS writes when it reads, too: what it has in its buffer goes before an alert.
        self.by_leave(|stream| Pin::new(stream).poll_read(context, buf), |_| {})
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HandingOver<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.by_leave(|stream| Pin::new(stream).poll_write(context, bytes), |_| {});
        self.in_time(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let has_stalled = self.stalled.is_some();
        // Everything that was written is with the socket now: who has taken it is not to be known for keeping a change waiting.
        let taken = |passes: &mut Vec<Held>| {
            if has_stalled {
                passes.iter().filter(|held| held.is_written).for_each(|held| held.pass.moves());
            }
            passes.retain(|held| !held.is_written);
        };
        let polled = self.by_leave(|stream| Pin::new(stream).poll_flush(context), taken);
        self.in_time(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What ends a TLS connection is written, too, and may not be read.
        let polled = self.by_leave(|stream| Pin::new(stream).poll_shutdown(context), Vec::clear);
        self.in_time(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.by_leave(|stream| Pin::new(stream).poll_write_vectored(context, slices), |_| {});
        self.in_time(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::Gate;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const STALL_MAX: Duration = Duration::from_secs(60);

    fn new_reader() -> Arc<Reader> {
        Arc::new(Reader::new(|| Duration::ZERO))
    }

    fn answer(gate: &Arc<Gate>, hand: &Arc<Hand>) -> AnswerBody {
        let mut body = AnswerBody::from(Full::new(Bytes::from_static(b"secret")));
        body.pass = Some(gate.enter());
        body.over(hand)
    }

    /// Whether clearing the gate had to wait for its bound.
    async fn revokes(gate: &Gate) -> bool {
        let bound = tokio::time::sleep(Duration::from_millis(20));
        tokio::pin!(bound);
        gate.clear(bound.as_mut()).await;
        bound.is_elapsed()
    }

    #[tokio::test]
    async fn a_pass_is_back_when_the_last_byte_is_with_the_socket() {
        let (gate, hand) = (Gate::new(), Arc::<Hand>::default());
        let (near, mut far) = duplex(64);
        let mut near = HandingOver::new(near, &hand, new_reader(), STALL_MAX);
        let body = answer(&gate, &hand);
        near.write_all(b"head").await.unwrap();
        near.flush().await.unwrap();
        let bytes = body.collect().await.unwrap().to_bytes();
        near.write_all(&bytes).await.unwrap();
        assert_eq!(hand.lock().len(), 1, "its body was not there at the first flush");
        near.flush().await.unwrap();
        assert!(!revokes(&gate).await);
        let mut read = [0; 10];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"headsecret");
    }

    #[tokio::test]
    async fn nothing_leaves_once_the_pass_is_revoked() {
        let (gate, hand) = (Gate::new(), Arc::<Hand>::default());
        let (near, mut far) = duplex(64);
        let mut near = HandingOver::new(near, &hand, new_reader(), STALL_MAX);
        let bytes = answer(&gate, &hand).collect().await.unwrap().to_bytes();
        assert!(revokes(&gate).await, "it is still on its way");
        assert!(near.write_all(&bytes).await.is_err() && near.flush().await.is_err() && near.shutdown().await.is_err());
        drop(near);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert!(read.is_empty());
    }

    #[tokio::test]
    async fn who_reads_nothing_for_long_is_left() {
        let (near, mut far) = duplex(4);
        let mut near = HandingOver::new(near, &Arc::default(), new_reader(), Duration::from_millis(20));
        for _ in 0..3 {
            near.write_all(b"read").await.unwrap();
            let mut read = [0; 4];
            far.read_exact(&mut read).await.unwrap();
        }
        near.write_all(b"left").await.unwrap();
        assert_eq!(near.write_all(b"!").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    /// A client of this reader who takes nothing. Whether a change waits for him in vain.
    async fn waits_for_one_who_takes_nothing(reader: &Arc<Reader>) -> bool {
        let (gate, hand) = (Gate::new(), Arc::<Hand>::default());
        let (near, _far) = duplex(4);
        let mut near = HandingOver::new(near, &hand, Arc::clone(reader), STALL_MAX);
        let bytes = answer(&gate, &hand).collect().await.unwrap().to_bytes();
        let writing = tokio::time::timeout(Duration::from_millis(1), near.write_all(&bytes));
        assert!(writing.await.is_err(), "it does not fit");
        let waited = revokes(&gate).await;
        assert!(near.write_all(&bytes).await.is_err(), "in any case nothing more leaves");
        waited
    }

    #[tokio::test]
    async fn one_change_waits_for_who_takes_nothing_and_no_other() {
        let reader = new_reader();
        assert!(waits_for_one_who_takes_nothing(&reader).await);
        for _ in 0..3 {
            assert!(!waits_for_one_who_takes_nothing(&reader).await);
        }
        assert!(waits_for_one_who_takes_nothing(&new_reader()).await, "for another one it does");
    }

    #[tokio::test]
    async fn who_takes_it_after_all_is_waited_for() {
        let (gate, hand, reader) = (Gate::new(), Arc::<Hand>::default(), new_reader());
        assert!(waits_for_one_who_takes_nothing(&reader).await);
        let (near, mut far) = duplex(4);
        let mut near = HandingOver::new(near, &hand, Arc::clone(&reader), STALL_MAX);
        let bytes = answer(&gate, &hand).collect().await.unwrap().to_bytes();
        let mut read = [0; 6];
        let (written, taken) = tokio::join!(near.write_all(&bytes), far.read_exact(&mut read));
        written.unwrap();
        taken.unwrap();
        assert_eq!(&read, b"secret");
        assert!(revokes(&gate).await, "it was not flushed, and it was not stalled either");
    }

    /// A stream that takes everything, and has it with the socket when it is let go, as TLS does.
    #[derive(Default)]
    struct FlushedLate {
        is_let_go: bool,
    }

    impl AsyncWrite for FlushedLate {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.is_let_go { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn who_takes_the_last_of_it_while_a_change_waits_is_not_known_for_it() {
        for takes_it in [true, false] {
            let (gate, hand, reader) = (Gate::new(), Arc::<Hand>::default(), new_reader());
            let mut near = HandingOver::new(FlushedLate::default(), &hand, Arc::clone(&reader), STALL_MAX);
            let bytes = answer(&gate, &hand).collect().await.unwrap().to_bytes();
            near.write_all(&bytes).await.unwrap();
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(&mut near).poll_flush(&mut context).is_pending());
            let mut clearing = Box::pin(gate.clear(std::future::pending()));
            assert!(clearing.as_mut().poll(&mut context).is_pending(), "the change waits for him");
            if takes_it {
                near.stream.is_let_go = true;
                near.flush().await.unwrap();
            } else {
                drop(near);
                hand.lock().clear();
            }
            assert!(clearing.as_mut().poll(&mut context).is_ready());
            assert_eq!(reader.kept_waiting(), !takes_it);
        }
    }

    /// A stream that writes what it has kept back when it is read from, as TLS does before an alert.
    struct WritesWhenRead(Vec<u8>, DuplexStream);

    impl AsyncRead for WritesWhenRead {
        fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let Self(kept, stream) = &mut *self;
            Pin::new(stream).poll_write(context, kept).map(|_| Err(io::Error::other("an alert")))
        }
    }

    #[tokio::test]
    async fn nothing_leaves_by_reading_either() {
        for is_revoked in [false, true] {
            let (gate, hand) = (Gate::new(), Arc::<Hand>::default());
            let (near, mut far) = duplex(64);
            let body = answer(&gate, &hand);
            if is_revoked {
                assert!(revokes(&gate).await);
            }
            let mut near = HandingOver::new(WritesWhenRead(b"secret".to_vec(), near), &hand, new_reader(), STALL_MAX);
            assert!(near.read_u8().await.is_err());
            drop((near, body));
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            assert_eq!(read.is_empty(), is_revoked);
        }
    }

    #[tokio::test]
    async fn several_answers_on_one_connection() {
        let (gate, hand) = (Gate::new(), Arc::<Hand>::default());
        let (near, mut far) = duplex(64);
        let mut near = HandingOver::new(near, &hand, new_reader(), STALL_MAX);
        for _ in 0..3 {
            let bytes = answer(&gate, &hand).collect().await.unwrap().to_bytes();
            near.write_all(&bytes).await.unwrap();
        }
        assert_eq!(hand.lock().len(), 3);
        near.flush().await.unwrap();
        assert!(!revokes(&gate).await);
        let mut read = [0; 18];
        far.read_exact(&mut read).await.unwrap();
    }
}

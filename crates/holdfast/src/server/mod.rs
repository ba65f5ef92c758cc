//! TLS and HTTP/1.1, with a limit on everything.

pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod client_certificate;
mod handing;
mod linger;
pub(crate) mod owned;
mod proxied;
mod readers;
pub(crate) mod tls;

use std::{convert::Infallible, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

pub(crate) use handing::AnswerBody;
use handing::{Hand, HandingOver};
use holdfast_core::Trouble;
use holdfast_xks_proxy::ClientCertificate;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use linger::Lingering;
use metrics::{counter, gauge};
use owned::{Abandoned, OwnedRequest, Place};
pub(crate) use proxied::Balancers;
use proxied::NotProxied;
use readers::Readers;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

/// Bounds on connections, and who makes them for others.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimits {
    /// Open connections; one more is closed at once.
    pub connections_max: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the header to arrive; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Time that a client may read nothing of what is there for it.
    pub stall_max: Duration,
    /// Bytes of all header lines together.
    pub header_bytes_max: usize,
    /// Header lines.
    pub headers_max: usize,
    /// Time that requests in flight are given at shutdown.
    pub drain_timeout: Duration,
    /// Whose connections begin with the address of somebody else.
    pub balancers: Balancers,
}

impl ConnectionLimits {
    /// Of a listener that nobody reaches through a balancer.
    pub(crate) fn behind_nobody(&self) -> Self {
        Self { balancers: Balancers::default(), ..self.clone() }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            // Longer than any pause of a client that still wants its answer.
            stall_max: Duration::from_secs(60),
            header_bytes_max: 32 * 1024,
            headers_max: 100,
            drain_timeout: Duration::from_secs(10),
            balancers: Balancers::default(),
        }
    }
}

/// Why a body ends early; the connection is cut.
type BodyError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Response<AnswerBody>> + Send>>;

/// What answers requests.
pub(crate) type Handler = Arc<dyn Fn(Request<Incoming>, SocketAddr) -> Answer + Send + Sync>;

/// Says of a verified client certificate whom it names.
pub(crate) type Identify = Arc<dyn Fn(&[CertificateDer<'_>]) -> Option<Arc<ClientCertificate>> + Send + Sync>;

/// How connections are encrypted, and who is at their other end. A client that was identified is an extension of its requests.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    identify: Option<Identify>,
}

impl Tls {
    /// TLS whose configuration asks for client certificates.
    pub(crate) fn identifying(config: Arc<ServerConfig>, identify: Identify) -> Self {
        Self { acceptor: TlsAcceptor::from(config), identify: Some(identify) }
    }
}

impl From<Arc<ServerConfig>> for Tls {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self { acceptor: TlsAcceptor::from(config), identify: None }
    }
}

/// Makes a handler of an async function.
pub(crate) fn handler<F, A, B>(function: F) -> Handler
where
    F: Fn(Request<Incoming>, SocketAddr) -> A + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Into<AnswerBody>,
{
    Arc::new(move |request, peer| {
        let answer = function(request, peer);
        Box::pin(async move { answer.await.map(Into::into) })
    })
}

/// Serves until `shutdown` turns true, then lets requests in flight end. Nothing is at work any more when it returns.
pub(crate) async fn serve(
    name: &'static str,
    listener: TcpListener,
    tls: Option<impl Into<Tls>>,
    limits: ConnectionLimits,
    handler: Handler,
    mut shutdown: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let tls: Option<Tls> = tls.map(Into::into);
    let abandoned = Abandoned::new(name);
    let mut connections = JoinSet::new();
    let trouble = Trouble::default();
    let callers = Arc::new(Callers { readers: Readers::new(), nameless: Trouble::default() });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => {
                if trouble.ends() {
                    tracing::info!(listener = name, "connections are accepted again");
                }
                accepted
            }
            Err(error) => {
                // Out of file descriptors, most likely: give connections time to end.
                if trouble.begins() {
                    tracing::warn!(%error, listener = name, "a connection could not be accepted");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            counter!("holdfast_connections_refused_total", "listener" => name).increment(1);
            continue;
        };
        let place = Place::new(permit, Arc::clone(&abandoned));
        let connection = Connection { name, peer, limits: limits.clone(), place, callers: Arc::clone(&callers) };
        connections.spawn(connection.run(stream, tls.clone(), Arc::clone(&handler), shutdown.clone()));
    }
    drop(listener);
    let deadline = Instant::now() + limits.drain_timeout;
    let drained = timeout_at(deadline, async { while connections.join_next().await.is_some() {} }).await;
    // A connection that is cut leaves its request to those that were abandoned before; they have what is left of the time.
    connections.shutdown().await;
    if !abandoned.drain(deadline).await || drained.is_err() {
        tracing::warn!(listener = name, "some requests did not end in time and were cut off");
    }
}

struct Connection {
    name: &'static str,
    peer: SocketAddr,
    limits: ConnectionLimits,
    place: Arc<Place>,
    callers: Arc<Callers>,
}

/// Who is at the other end of a listener's connections.
struct Callers {
    readers: Readers,
    /// Whether balancers do not say for whom they call.
    nameless: Trouble,
}

impl Connection {
    async fn run(mut self, mut stream: TcpStream, tls: Option<Tls>, handler: Handler, shutdown: watch::Receiver<bool>) {
        // Replies are one write each; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        let open = gauge!("holdfast_connections", "listener" => self.name);
        open.increment(1.0);
        if self.hears_client(&mut stream).await {
            self.serve(stream, tls, handler, shutdown).await;
        }
        open.decrement(1.0);
    }

    /// Whom a balancer calls for, if it is one. False: it does not say, and is not heard.
    async fn hears_client(&mut self, stream: &mut TcpStream) -> bool {
        if !self.limits.balancers.name(self.peer) {
            return true;
        }
        let error = match timeout(self.limits.handshake_timeout, proxied::client_of(stream)).await {
            Ok(Ok(client)) => {
                self.peer = client.unwrap_or(self.peer);
                self.callers.nameless.ends();
                return true;
            }
            // It looks whether we are there.
            Ok(Err(NotProxied::Io(_))) => return false,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its PROXY header took too long".to_owned(),
        };
        counter!("holdfast_proxy_headers_refused_total", "listener" => self.name).increment(1);
        if self.callers.nameless.begins() {
            tracing::warn!(listener = self.name, balancer = %self.peer, error, "a connection of a balancer is closed");
        }
        false
    }

    async fn serve(&self, stream: TcpStream, tls: Option<Tls>, handler: Handler, shutdown: watch::Receiver<bool>) {
        let stream = Lingering::new(stream);
        match tls {
            None => self.http(stream, None, handler, shutdown).await,
            Some(Tls { acceptor, identify }) => {
                match timeout(self.limits.handshake_timeout, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                        let client = identify.and_then(|identify| identify(shown));
                        self.http(stream, client, handler, shutdown).await;
                    }
                    Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
                }
            }
        }
    }

    async fn http<S>(
        &self,
        stream: S,
        client: Option<Arc<ClientCertificate>>,
        handler: Handler,
        mut shutdown: watch::Receiver<bool>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (peer, place) = (self.peer, &self.place);
        let hand = Arc::<Hand>::default();
        let reader = self.callers.readers.at(peer);
        let io = TokioIo::new(HandingOver::new(stream, &hand, reader, self.limits.stall_max));
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(client) = &client {
                request.extensions_mut().insert(Arc::clone(client));
            }
            let answer = OwnedRequest::new(handler(request, peer), place);
            let hand = Arc::clone(&hand);
            async move { Ok::<_, Infallible>(answer.await.map(|body| body.over(&hand))) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(self.limits.header_bytes_max)
            .max_headers(self.limits.headers_max)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            result = connection.as_mut() => Some(result),
            _ = shutdown.wait_for(|stop| *stop) => None,
        };
        let result = match ended {
            Some(result) => result,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended early");
        }
    }
}

//! A small HTTPS client: for an issuer's documents, for tokens, for `holdfast status`.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_crypto::SecretBytes;
use holdfast_managed_hsm::Fetch;
use holdfast_wire::{Exchange, ExchangeError};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::WantsClientCert,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::fault::Fault;

/// Longest document read.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer of the resolver is used. Each question to it holds a thread, and many connections may be made at once.
const RESOLVED_TTL: Duration = Duration::from_secs(5);

/// Addresses of one host and port, and when they were asked for.
type Resolved = HashMap<(String, u16), (Instant, Vec<SocketAddr>)>;

fn roots_of(ca_file: Option<&Path>) -> Result<RootCertStore, Fault> {
    match ca_file {
        Some(path) => roots_in(&std::fs::read(path).map_err(|error| Fault::file(path, error))?),
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Ok(roots)
        }
    }
}

fn roots_in(pem: &[u8]) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(Fault::tls)?).map_err(Fault::tls)?;
    }
    Ok(roots)
}

fn builder(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Fault> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Fault::tls)?;
    Ok(builder.with_root_certificates(roots))
}

/// A client that trusts given certificates, or else the system's.
#[derive(Clone)]
pub(crate) struct HttpsClient {
    tls: TlsConnector,
    /// Whether `http` URLs are asked, too.
    plain: bool,
    /// Held while the resolver is asked, so that it is asked once.
    resolved: Arc<tokio::sync::Mutex<Resolved>>,
}

impl HttpsClient {
    /// Trusts the certificates in `ca_file` and no others; without a file, the system's.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, Fault> {
        Ok(Self::over(builder(roots_of(ca_file)?)?.with_no_client_auth()))
    }

    /// The same, which shows a certificate to whoever asks for one: a chain and its key, in PEM files.
    pub(crate) fn showing(ca_file: Option<&Path>, chain: &Path, key: &Path) -> Result<Self, Fault> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| Fault::file(path, error));
        let pem = SecretBytes::take(read(key)?);
        let private = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|error| Fault::file(key, error))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(chain)?).collect();
        let certificates = certificates.map_err(|error| Fault::file(chain, error))?;
        if certificates.is_empty() {
            return Err(Fault::file(chain, "there is no certificate in it"));
        }
        let shown = builder(roots_of(ca_file)?)?.with_client_auth_cert(certificates, private);
        Ok(Self::over(shown.map_err(|error| Fault::file(chain, error).hint("is the key the certificate's?"))?))
    }

    /// Trusts the certificates in `pem` and no others.
    pub(crate) fn trusting(pem: &[u8]) -> Result<Self, Fault> {
        Ok(Self::over(builder(roots_in(pem)?)?.with_no_client_auth()))
    }

    fn over(config: ClientConfig) -> Self {
        Self { tls: TlsConnector::from(Arc::new(config)), plain: false, resolved: Arc::default() }
    }

    /// The same, which asks `http` URLs, too: nobody is recognized at their other end.
    pub(crate) fn insecure_http(self) -> Self {
        Self { plain: true, ..self }
    }

    /// Sends one request on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        self.send_for(request, DOCUMENT_BYTES_MAX, REQUEST_TIMEOUT).await
    }

    /// The same, for an answer of at most so many bytes in at most this time.
    pub(crate) async fn send_for(
        &self,
        request: Request<Full<Bytes>>,
        bytes_max: usize,
        time: Duration,
    ) -> Result<Response<Bytes>, String> {
        let sent = timeout(time, self.exchange(request, bytes_max)).await;
        sent.unwrap_or(Err(ExchangeError::TimedOut)).map_err(|error| error.to_string())
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let target = Target::of(&mut request, self.plain)?;
        let mut sender = self.connect(&target).await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        read_within(response, bytes_max).await
    }

    async fn connect(&self, target: &Target) -> Result<SendRequest<Full<Bytes>>, ExchangeError> {
        let unreachable = |error: std::io::Error| ExchangeError::Unreachable(error.to_string());
        let name =
            ServerName::try_from(target.host.clone()).map_err(|error| ExchangeError::Invalid(error.to_string()))?;
        let addresses = self.resolve(&target.host, target.port).await.map_err(unreachable)?;
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        if target.plain {
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
            tokio::spawn(connection);
            return Ok(sender);
        }
        let stream = self.tls.connect(name, stream).await.map_err(no_trust)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends when the sender is dropped or the other side closes.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn resolve(&self, host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
        let mut resolved = self.resolved.lock().await;
        let key = (host.to_owned(), port);
        if let Some((_, addresses)) = resolved.get(&key).filter(|(asked, _)| asked.elapsed() < RESOLVED_TTL) {
            return Ok(addresses.clone());
        }
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
        resolved.insert(key, (Instant::now(), addresses.clone()));
        Ok(addresses)
    }

    /// GETs a document.
    pub(crate) async fn get(&self, url: &str) -> Result<Response<Bytes>, String> {
        let request = Request::get(url).body(Full::default()).map_err(|error| error.to_string())?;
        self.send(request).await
    }
}

/// Where a request goes.
struct Target {
    host: String,
    port: u16,
    authority: String,
    plain: bool,
}

impl Target {
    /// Takes the host out of the request's URL, into its header.
    fn of(request: &mut Request<Full<Bytes>>, plain_too: bool) -> Result<Self, ExchangeError> {
        let invalid = |why: &str| ExchangeError::Invalid(why.to_owned());
        let uri = request.uri().clone();
        let plain = plain_too && uri.scheme_str() == Some("http");
        if uri.scheme_str() != Some("https") && !plain {
            return Err(invalid("only https is spoken"));
        }
        let authority = uri.authority().ok_or_else(|| invalid("the URL has no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let value = HeaderValue::try_from(authority.as_str()).map_err(|error| invalid(&error.to_string()))?;
        request.headers_mut().insert(header::HOST, value);
        *request.uri_mut() = uri.path_and_query().map_or(Uri::default(), |path| path.clone().into());
        let port = authority.port_u16().unwrap_or(if plain { 80 } else { 443 });
        Ok(Self { host, port, authority: authority.as_str().to_owned(), plain })
    }
}

/// A handshake that was cut is a connection that failed; one that came to a verdict is not.
fn no_trust(error: std::io::Error) -> ExchangeError {
    match error.kind() {
        ErrorKind::BrokenPipe
        | ErrorKind::ConnectionAborted
        | ErrorKind::ConnectionReset
        | ErrorKind::UnexpectedEof => ExchangeError::Unreachable(error.to_string()),
        _ => ExchangeError::Tls(error.to_string()),
    }
}

fn broken(error: hyper::Error) -> ExchangeError {
    if error.is_parse() { ExchangeError::NotHttp(error.to_string()) } else { ExchangeError::Broken(error.to_string()) }
}

/// A body that ended early is a connection that failed; one that is too long, or not what its headers say, is no answer.
fn no_body(error: Box<dyn std::error::Error + Send + Sync>) -> ExchangeError {
    match error.downcast::<hyper::Error>() {
        Ok(error) => broken(*error),
        Err(other) => ExchangeError::NotHttp(other.to_string()),
    }
}

async fn read_whole(response: Response<Incoming>) -> Result<Response<Bytes>, ExchangeError> {
    read_within(response, DOCUMENT_BYTES_MAX).await
}

async fn read_within(response: Response<Incoming>, bytes_max: usize) -> Result<Response<Bytes>, ExchangeError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, bytes_max).collect().await.map_err(no_body)?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// Connections kept to one host while nobody needs them, unless said otherwise.
const IDLE_MAX: usize = 64;

/// A client that keeps connections open between requests: for services that ask other services.
pub(crate) struct PooledClient {
    /// Prefix of URLs, and who connects. The first that fits is taken; the default comes last.
    clients: Vec<(String, HttpsClient)>,
    default: HttpsClient,
    idle_max: usize,
    idle: Mutex<HashMap<String, Vec<SendRequest<Full<Bytes>>>>>,
}

impl PooledClient {
    pub(crate) fn new(clients: Vec<(String, HttpsClient)>, default: HttpsClient) -> Self {
        Self { clients, default, idle_max: IDLE_MAX, idle: Mutex::default() }
    }

    /// The same, which keeps so many connections to one host.
    pub(crate) fn keeping(self, idle_max: usize) -> Self {
        Self { idle_max, ..self }
    }

    fn take_idle(&self, authority: &str) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(authority)?;
        while let Some(sender) = senders.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, authority: String, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.entry(authority).or_default();
        if senders.len() < self.idle_max {
            senders.push(sender);
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        let url = request.uri().to_string();
        let client = self.clients.iter().find(|(prefix, _)| url.starts_with(prefix.as_str()));
        let client = client.map_or(&self.default, |(_, client)| client);
        let mut request = request.map(Full::new);
        let target = Target::of(&mut request, client.plain)?;
        // A kept connection may have been closed by the other side just now: then once more on a new one. What is
        // sent here can be sent twice.
        if let Some(mut sender) = self.take_idle(&target.authority) {
            let sent = sender.send_request(request.clone()).await;
            if let Ok(response) = sent {
                let whole = read_whole(response).await;
                self.keep_if_ready(target.authority, sender).await;
                return whole;
            }
        }
        let mut sender = client.connect(&target).await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let whole = read_whole(response).await;
        self.keep_if_ready(target.authority, sender).await;
        whole
    }

    async fn keep_if_ready(&self, authority: String, mut sender: SendRequest<Full<Bytes>>) {
        if timeout(Duration::from_millis(1), sender.ready()).await.is_ok_and(|ready| ready.is_ok()) {
            self.keep(authority, sender);
        }
    }
}

#[async_trait]
impl Exchange for PooledClient {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        let sent = timeout(REQUEST_TIMEOUT, self.exchange(request)).await;
        sent.unwrap_or(Err(ExchangeError::TimedOut))
    }
}

/// Sends each issuer's documents through the client that trusts its CA.
pub(crate) struct IssuerFetch {
    /// Prefix of URLs, and who fetches them. The longest prefix wins; the default comes last.
    pub clients: Vec<(String, HttpsClient)>,
    pub default: HttpsClient,
}

#[async_trait]
impl Fetch for IssuerFetch {
    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        let named = self.clients.iter().find(|(prefix, _)| url.starts_with(prefix.as_str()));
        let client = named.map_or(&self.default, |(_, client)| client);
        let response = client.get(url).await.map_err(|error| format!("{url}: {error}"))?;
        if !response.status().is_success() {
            return Err(format!("{url}: status {}", response.status()));
        }
        Ok(response.into_body().to_vec())
    }
}

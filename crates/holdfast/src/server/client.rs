//! A small HTTPS client: for an issuer's documents, for tokens, for `holdfast status`.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_managed_hsm::Fetch;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::fault::Fault;

/// Longest document read.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that trusts given certificates, or else the system's.
#[derive(Clone)]
pub(crate) struct HttpsClient {
    tls: TlsConnector,
}

impl HttpsClient {
    /// Trusts the certificates in `ca_file` and no others; without a file, the system's.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, Fault> {
        match ca_file {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| Fault::file(path, error))?;
                Self::trusting(&pem)
            }
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Self::with_roots(roots)
            }
        }
    }

    /// Trusts the certificates in `pem` and no others.
    pub(crate) fn trusting(pem: &[u8]) -> Result<Self, Fault> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(Fault::tls)?).map_err(Fault::tls)?;
        }
        Self::with_roots(roots)
    }

    fn with_roots(roots: RootCertStore) -> Result<Self, Fault> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Fault::tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Sends one request on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let sent = timeout(REQUEST_TIMEOUT, self.exchange(request)).await;
        sent.unwrap_or_else(|_| Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())))
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let uri = request.uri().clone();
        if uri.scheme_str() != Some("https") {
            return Err("only https is spoken".into());
        }
        let authority = uri.authority().ok_or("the URL has no host")?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let address = (host.clone(), authority.port_u16().unwrap_or(443));
        let name = ServerName::try_from(host).map_err(|error| text(&error))?;
        let value = HeaderValue::try_from(authority.as_str()).map_err(|error| text(&error))?;
        request.headers_mut().insert(header::HOST, value);
        *request.uri_mut() = uri.path_and_query().map_or(Uri::default(), |path| path.clone().into());
        let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| text(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| text(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, DOCUMENT_BYTES_MAX).collect().await.map_err(|error| text(&error))?;
        driver.abort();
        Ok(Response::from_parts(parts, body.to_bytes()))
    }

    /// GETs a document.
    pub(crate) async fn get(&self, url: &str) -> Result<Response<Bytes>, String> {
        let request = Request::get(url).body(Full::default()).map_err(|error| error.to_string())?;
        self.send(request).await
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

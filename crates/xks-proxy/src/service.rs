//! The doors of the proxy, and what the log is told of those who were turned away.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use holdfast_core::AuditOutcome;
use holdfast_crypto::SecretBytes;
use holdfast_service::{AuditDoor, Handed, SigningReaders};
use holdfast_wire::sigv4::SigningSecret;
use http::{Response, request::Parts};
use http_body::Body;

use crate::{
    XksProxy,
    authn::{ClientCertificate, audit_reader},
    dialect::{AwsXks, AzureEkm, ProxyDoor},
};

/// Which dialect a listener speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door {
    /// AWS.
    AwsXks,
    /// Azure.
    AzureEkm,
}

/// Who is at the other end of the connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Where from.
    pub address: Option<SocketAddr>,
    /// Who, if the TLS handshake verified one.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl XksProxy {
    /// Serves one request. The future is to be polled to its end, whoever hangs up.
    pub async fn handle<B>(&self, door: Door, parts: Parts, body: B, peer: &Peer) -> Response<Handed>
    where
        B: Body<Data = Bytes> + Send,
    {
        let spine = &self.spine;
        match door {
            Door::AwsXks => spine.handle(&ProxyDoor::<AwsXks>::new(self, peer), parts, body, peer.address).await,
            Door::AzureEkm => spine.handle(&ProxyDoor::<AzureEkm>::new(self, peer), parts, body, peer.address).await,
        }
    }

    /// Serves one request for a copy of this process's audit log, behind `log`: for `readers`, who have credentials of their own. A key service's
    /// credential is not one of them: what the log tells is its customer's.
    pub async fn handle_audit<B>(
        &self,
        log: &AuditDoor,
        readers: &SigningReaders,
        parts: Parts,
        body: B,
        peer: &Peer,
    ) -> Response<Handed>
    where
        B: Body<Data = Bytes> + Send,
    {
        self.spine.handle(&log.through(readers), parts, body, peer.address).await
    }

    /// Those who may take a copy of the log: name, access key id, secret.
    #[must_use]
    pub fn audit_readers(&self, readers: Vec<(String, String, SecretBytes)>) -> SigningReaders {
        let names: Vec<String> = readers.iter().map(|(name, ..)| name.clone()).collect();
        let signer = |(name, id, secret): (String, String, SecretBytes)| {
            (id, Arc::new(SigningSecret::new(secret)), audit_reader(&name))
        };
        SigningReaders::new(readers.into_iter().map(signer), names, Arc::clone(&self.ambient))
    }

    /// Takes kills into the state that are only written down, and tells the log what was only counted so far: for the end of the service, before its
    /// log is closed.
    pub async fn finish(&self) {
        self.tend_state().await;
        self.report_throttled().await;
        self.spine.finish().await;
    }

    /// Tells the log how many requests were throttled since the last time.
    pub async fn report_throttled(&self) {
        for (store, count) in self.quotas.take_refused() {
            let context = vec![("count", count.to_string()), ("store", store)];
            let trouble = &self.efforts.throttled;
            match self.note("Throttled", None, AuditOutcome::Failed, None, context).await {
                Err(error) if trouble.begins() => {
                    tracing::error!(%error, "the audit log is not told how many requests were throttled");
                }
                Err(_) => {}
                Ok(()) => {
                    trouble.ends();
                }
            }
        }
    }
}

//! Client certificates: from a CA that the operator names, and of a subject that the operator names.

use std::{path::Path, sync::Arc};

use holdfast_crypto::kdf;
use holdfast_xks_proxy::ClientCertificate;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fault::Fault;

/// Verifies clients against each CA by itself, so that it is known which one vouches.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    authorities: Vec<([u8; 32], Arc<dyn ClientCertVerifier>)>,
    /// Common names that are let in; all, if there are none.
    subjects: Vec<String>,
    hints: Vec<DistinguishedName>,
}

impl ClientVerifier {
    /// Trusts the certificates in a PEM file.
    pub(crate) fn new(ca_file: &Path, subjects: &[String], provider: &Arc<CryptoProvider>) -> Result<Arc<Self>, Fault> {
        let pem = std::fs::read(ca_file).map_err(|error| Fault::file(ca_file, error))?;
        let mut authorities = Vec::new();
        let mut hints = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| Fault::file(ca_file, error))?;
            let digest = kdf::sha256(&[certificate.as_ref()]);
            let mut roots = RootCertStore::empty();
            roots.add(certificate).map_err(|error| Fault::file(ca_file, error))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
            let verifier = verifier.map_err(Fault::tls)?;
            hints.extend_from_slice(verifier.root_hint_subjects());
            authorities.push((digest, verifier));
        }
        if authorities.is_empty() {
            return Err(Fault::usage(format!("{}: no certificate in it", ca_file.display())));
        }
        Ok(Arc::new(Self { authorities, subjects: subjects.to_vec(), hints }))
    }

    fn vouching(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<[u8; 32]> {
        let vouches = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier.verify_client_cert(end_entity, intermediates, now).is_ok()
        };
        self.authorities.iter().find(|(_, verifier)| vouches(verifier)).map(|(digest, _)| *digest)
    }

    /// Whom a chain names that the handshake has let in.
    pub(crate) fn identify(&self, chain: &[CertificateDer<'_>]) -> Option<Arc<ClientCertificate>> {
        let (end_entity, intermediates) = chain.split_first()?;
        let ca_sha256 = self.vouching(end_entity, intermediates, UnixTime::now())?;
        Some(Arc::new(ClientCertificate { subject: common_name(end_entity)?, ca_sha256 }))
    }
}

/// The one common name of a certificate's subject.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate.as_ref()).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

/// Days until a certificate is no longer valid.
pub(crate) fn days_to_expire(certificate: &CertificateDer<'_>, now_secs: i64) -> Option<f64> {
    let (_, parsed) = X509Certificate::from_der(certificate.as_ref()).ok()?;
    Some((parsed.validity().not_after.timestamp() - now_secs) as f64 / 86_400.0)
}

/// Ends the handshake by the alert `handshake_failure`, as AWS's test client expects of any client that is not let in.
fn refused(why: &str) -> rustls::Error {
    rustls::Error::General(format!("the client is not let in: {why}"))
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.vouching(end_entity, intermediates, now).ok_or_else(|| refused("no CA vouches for it"))?;
        let name = common_name(end_entity).ok_or_else(|| refused("it has no common name"))?;
        if self.subjects.is_empty() || self.subjects.contains(&name) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(refused("its subject is not let in"))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities[0].1.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities[0].1.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities[0].1.supported_verify_schemes()
    }
}

//! Client certificates: verified by TLS, looked at here for whom they name.

use holdfast_core::Principal;
use holdfast_crypto::secret::ct_eq;

use super::{Rejection, key_service};
use crate::policy::{Dialect, KeyStore};

/// A client certificate that the TLS handshake has verified, up to a CA that the operator named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificate {
    /// Common name of the subject.
    pub subject: String,
    /// SHA-256 of the CA's certificate.
    pub ca_sha256: [u8; 32],
}

/// Whether the client is the one that a store of Azure's dialect belongs to.
///
/// # Errors
/// [`Rejection`].
pub(crate) fn authenticate_certificate(
    certificate: Option<&ClientCertificate>,
    store: &KeyStore,
) -> Result<Principal, Rejection> {
    let Dialect::AzureEkm { client_subject, client_ca_sha256 } = &store.dialect else {
        return Err(Rejection("the store does not know client certificates"));
    };
    let certificate = certificate.ok_or(Rejection("there is no client certificate"))?;
    if certificate.subject != *client_subject {
        return Err(Rejection("the client certificate names somebody else"));
    }
    if !ct_eq(&certificate.ca_sha256, client_ca_sha256) {
        return Err(Rejection("the client certificate is of another CA"));
    }
    Ok(key_service(&store.name, client_subject))
}

//! What the configurations of several roles have in common.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_crypto::SecretBytes;
use holdfast_managed_hsm::{KekClient, ServiceIdentity};
use holdfast_service::SigningReaders;
use serde::Deserialize;

use super::{Audit, DEFAULT_AUDIENCE, default_threads};
use crate::{
    fault::Fault,
    hsm::HsmThreads,
    private::read_private,
    server::{
        Balancers, ConnectionLimits,
        client::{HttpsClient, PooledClient},
    },
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAudit {
    pub segment_mib: Option<u64>,
    pub segment_minutes: Option<u64>,
    #[serde(default)]
    pub accept_loss: bool,
}

/// Who may take copies of the audit log, of those who have a credential.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAuditPull {
    #[serde(default)]
    pub readers: Vec<String>,
}

impl RawAuditPull {
    /// Nobody is a reader whom nobody can be.
    pub(crate) fn refuse_nobody(readers: &SigningReaders) -> Result<(), Fault> {
        match readers.nobody() {
            None => Ok(()),
            Some(name) => Err(Fault::usage(format!("audit_pull.readers: {name:?} has no credential here"))),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLog {
    #[serde(default)]
    pub json: bool,
}

/// What secrets are sealed to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSilicon {
    kind: String,
    root_file: PathBuf,
}

impl RawSilicon {
    pub(crate) fn check(self) -> Result<PathBuf, String> {
        if self.kind == "software-insecure" {
            return Ok(self.root_file);
        }
        Err(format!("silicon.kind = {:?}: this version knows \"software-insecure\" only", self.kind))
    }
}

/// The certificate of an instance whose key is sealed.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTls {
    pub certificate_file: Option<PathBuf>,
}

/// Reads a role's file; `example` is what its example is usually called.
pub(crate) fn load<T>(path: &Path, example: &str, parse: fn(&str) -> Result<T, String>) -> Result<T, Fault> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Fault::file(path, error).hint(format!("type: holdfast config example {example}")))?;
    parse(&text).map_err(|error| Fault::usage(format!("{}: {error}", path.display())))
}

/// A secret that somebody else shares, without the white space around it.
pub(crate) fn read_secret(path: &Path) -> Result<SecretBytes, Fault> {
    let content = read_private(path)?;
    let trimmed = content.expose().trim_ascii();
    if trimmed.len() < 16 {
        return Err(Fault::usage(format!("{}: a secret has at least 16 characters", path.display())));
    }
    Ok(SecretBytes::copy_of(trimmed))
}

/// How a service reaches Managed HSMs, and as whom.
pub(crate) struct HsmAccess<'a> {
    pub urls: &'a [String],
    /// From which earlier URL to which of these.
    pub moved: &'a BTreeMap<String, String>,
    /// Whom the HSMs' certificates are trusted from; the system's authorities without it.
    pub ca_file: Option<&'a Path>,
    pub authority: &'a str,
    pub authority_ca_file: Option<&'a Path>,
    pub audience: Option<&'a str>,
    pub client_id: &'a str,
    pub client_secret_file: &'a Path,
}

impl HsmAccess<'_> {
    pub(crate) fn client(&self) -> Result<KekClient, Fault> {
        let mut clients = Vec::new();
        if let Some(file) = self.ca_file {
            for url in self.urls {
                clients.push((url.clone(), HttpsClient::new(Some(file))?));
            }
        }
        if let Some(file) = self.authority_ca_file {
            clients.push((self.authority.to_owned(), HttpsClient::new(Some(file))?));
        }
        let identity = ServiceIdentity {
            authority: self.authority.trim_end_matches('/').to_owned(),
            client_id: self.client_id.to_owned(),
            client_secret: read_secret(self.client_secret_file)?,
            audience: self.audience.unwrap_or(DEFAULT_AUDIENCE).to_owned(),
        };
        let exchange = Arc::new(PooledClient::new(clients, HttpsClient::new(None)?));
        Ok(KekClient::new(exchange, identity, self.urls.to_vec()).with_moved(self.moved.clone()))
    }
}

/// `limits.connections`, and `listen.proxy_protocol_from`
pub(crate) fn connections(given: Option<usize>, balancers: &[String]) -> Result<ConnectionLimits, String> {
    let defaults = ConnectionLimits::default();
    let connections_max = within("limits.connections", given, defaults.connections_max, 1, 100_000)?;
    let balancers = Balancers::parse("listen.proxy_protocol_from", balancers)?;
    Ok(ConnectionLimits { connections_max, balancers, ..defaults })
}

/// `limits.private_key_threads` and `limits.private_key_queue`
pub(crate) fn hsm_threads(threads: Option<usize>, queue: Option<usize>) -> Result<HsmThreads, String> {
    let defaults = default_threads();
    Ok(HsmThreads {
        private_key: within("limits.private_key_threads", threads, defaults.private_key, 1, 256)?,
        queue_max: within("limits.private_key_queue", queue, defaults.queue_max, 1, 65_536)?,
    })
}

/// A socket address, or an error that names the field.
pub(crate) fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{name} = {text:?} is not a socket address (like 0.0.0.0:8443)"))
}

/// Refuses bounds that would turn the service off or let it run out of everything.
pub(crate) fn within<T: PartialOrd + std::fmt::Display + Copy>(
    name: &str,
    value: Option<T>,
    default: T,
    min: T,
    max: T,
) -> Result<T, String> {
    let value = value.unwrap_or(default);
    if value < min || value > max { Err(format!("{name} = {value} must be {min} to {max}")) } else { Ok(value) }
}

impl RawAudit {
    pub(crate) fn check(self) -> Result<Audit, String> {
        Ok(Audit {
            segment_bytes_max: within("audit.segment_mib", self.segment_mib, 64, 1, 4096)? << 20,
            segment_age_max: Duration::from_secs(
                60 * within("audit.segment_minutes", self.segment_minutes, 60, 1, 60 * 24 * 7)?,
            ),
            accept_loss: self.accept_loss,
        })
    }
}

//! The file as written.

use std::{path::PathBuf, time::Duration};

use holdfast_crypto::Rsa1_5Policy;
use holdfast_managed_hsm::{HostPort, IssuerConfig, Limits};
use serde::Deserialize;

use super::{
    DEFAULT_AUDIENCE, EmbeddedClient, EmbeddedIssuer, HsmConfig, Identity, IssuerSource, Listen,
    parts::{RawAudit, RawLog, RawSilicon, RawTls, address, connections, hsm_threads, within},
};
use crate::server::ConnectionLimits;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    listen: RawListen,
    hsm: RawHsm,
    silicon: RawSilicon,
    #[serde(default)]
    tls: RawTls,
    identity: RawIdentity,
    embedded_issuer: Option<RawEmbeddedIssuer>,
    #[serde(default)]
    audit: RawAudit,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    address: String,
    host_names: Vec<String>,
    metrics_address: Option<String>,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHsm {
    data_dir: PathBuf,
    #[serde(default = "ninety")]
    soft_delete_retention_days: u32,
    #[serde(default)]
    purge_protection: bool,
    #[serde(default)]
    initial_administrators: Vec<String>,
    #[serde(default = "yes")]
    allow_rsa1_5: bool,
}

fn ninety() -> u32 {
    90
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    authority: String,
    audience: Option<String>,
    #[serde(default)]
    issuers: Vec<RawIssuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    url: String,
    tenant: String,
    #[serde(default)]
    aliases: Vec<String>,
    ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEmbeddedIssuer {
    address: String,
    url: String,
    tenant: String,
    clients: Vec<RawEmbeddedClient>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEmbeddedClient {
    client_id: String,
    object_id: String,
    secret_file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<usize>,
    header_kib: Option<usize>,
    header_timeout_secs: Option<u64>,
    body_kib: Option<usize>,
    body_timeout_secs: Option<u64>,
    keys: Option<usize>,
    versions_per_key: Option<usize>,
    open_keys: Option<usize>,
    private_key_threads: Option<usize>,
    private_key_queue: Option<usize>,
}

fn https(name: &str, url: String) -> Result<String, String> {
    // Commas and `=` would break the challenge header, which has no escapes.
    if url.starts_with("https://") && !url.contains([',', '=', '"', ' ']) {
        Ok(url.trim_end_matches('/').to_owned())
    } else {
        Err(format!("{name} = {url:?} must be an https URL"))
    }
}

fn host_port(text: &str) -> Result<HostPort, String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| format!("{text:?} has no valid port"))?),
        None => (text, 443),
    };
    let valid = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if valid { Ok(HostPort::new(host, port)) } else { Err(format!("{text:?} is not a host name")) }
}

impl Config {
    pub(super) fn check(self) -> Result<super::Config, String> {
        if self.listen.host_names.is_empty() {
            return Err("listen.host_names must name at least one host".into());
        }
        let host_names = self.listen.host_names.iter().map(|name| host_port(name)).collect::<Result<_, _>>()?;
        let metrics = self.listen.metrics_address.as_deref();
        let listen = Listen {
            address: address("listen.address", &self.listen.address)?,
            metrics_address: metrics.map(|text| address("listen.metrics_address", text)).transpose()?,
            host_names,
        };
        let silicon_root = self.silicon.check()?;
        let embedded_issuer = self.embedded_issuer.map(RawEmbeddedIssuer::check).transpose()?;
        if self.identity.issuers.is_empty() && embedded_issuer.is_none() {
            return Err("identity.issuers must name at least one issuer".into());
        }
        let (connections, limits, threads) = self.limits.check(&self.listen.proxy_protocol_from)?;
        Ok(super::Config {
            listen,
            hsm: self.hsm.check()?,
            silicon_root,
            tls_certificate_file: self.tls.certificate_file,
            identity: self.identity.check()?,
            embedded_issuer,
            audit: self.audit.check()?,
            connections,
            limits,
            threads,
            log_json: self.log.json,
        })
    }
}

impl RawHsm {
    fn check(self) -> Result<HsmConfig, String> {
        let days = Some(self.soft_delete_retention_days);
        Ok(HsmConfig {
            soft_delete_retention_days: within("hsm.soft_delete_retention_days", days, 90, 7, 90)?,
            data_dir: self.data_dir,
            purge_protection: self.purge_protection,
            initial_administrators: self.initial_administrators,
            rsa1_5: if self.allow_rsa1_5 { Rsa1_5Policy::Allow } else { Rsa1_5Policy::Refuse },
        })
    }
}

impl RawIdentity {
    fn check(self) -> Result<Identity, String> {
        let source = |raw: RawIssuer| -> Result<IssuerSource, String> {
            https("identity.issuers.url", raw.url.clone())?;
            let config = IssuerConfig { url: raw.url, aliases: raw.aliases, tenant: raw.tenant };
            Ok(IssuerSource { config, ca_file: raw.ca_file })
        };
        Ok(Identity {
            authority: https("identity.authority", self.authority)?,
            audience: https("identity.audience", self.audience.unwrap_or_else(|| DEFAULT_AUDIENCE.into()))?,
            issuers: self.issuers.into_iter().map(source).collect::<Result<_, _>>()?,
        })
    }
}

impl RawEmbeddedIssuer {
    fn check(self) -> Result<EmbeddedIssuer, String> {
        let clients = self.clients.into_iter().map(|client| EmbeddedClient {
            client_id: client.client_id,
            object_id: client.object_id,
            secret_file: client.secret_file,
        });
        Ok(EmbeddedIssuer {
            address: address("embedded_issuer.address", &self.address)?,
            url: https("embedded_issuer.url", self.url)?,
            tenant: self.tenant,
            clients: clients.collect(),
        })
    }
}

impl RawLimits {
    fn check(self, balancers: &[String]) -> Result<(ConnectionLimits, Limits, crate::hsm::HsmThreads), String> {
        let connections = connections(self.connections, balancers)?;
        let connections = ConnectionLimits {
            header_bytes_max: within("limits.header_kib", self.header_kib, 32, 8, 256)? << 10,
            header_timeout: Duration::from_secs(within(
                "limits.header_timeout_secs",
                self.header_timeout_secs,
                connections.header_timeout.as_secs(),
                1,
                600,
            )?),
            ..connections
        };
        let defaults = Limits::default();
        let limits = Limits {
            body_bytes_max: within("limits.body_kib", self.body_kib, 1024, 16, 16 * 1024)? << 10,
            body_timeout: Duration::from_secs(within("limits.body_timeout_secs", self.body_timeout_secs, 10, 1, 600)?),
            keys_max: within("limits.keys", self.keys, defaults.keys_max, 1, 100_000_000)?,
            versions_max: within("limits.versions_per_key", self.versions_per_key, defaults.versions_max, 1, 1000)?,
            open_keys_max: within("limits.open_keys", self.open_keys, defaults.open_keys_max, 16, 1_000_000)?,
        };
        let threads = hsm_threads(self.private_key_threads, self.private_key_queue)?;
        Ok((connections, limits, threads))
    }
}

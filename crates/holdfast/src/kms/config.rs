//! The configuration file of `holdfast kms serve`: read raw, checked, unknown fields refused, secrets by file.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_core::{EvidenceVerifier, KekService};
use holdfast_enclave::NitroVerifier;
use holdfast_kms::{
    CredentialConfig, Directory, HsmCluster, IdentityConfig, KmsConfig, Limits, ProxyAccess, StoreLimits,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;

use super::HsmMaker;
use crate::{
    config::{
        Audit,
        parts::{
            self, HsmAccess, RawAudit, RawAuditPull, RawLog, RawSilicon, RawTls, address, hsm_threads, read_secret,
            within,
        },
    },
    fault::Fault,
    hsm::HsmThreads,
    server::{
        ConnectionLimits,
        client::{HttpsClient, PooledClient},
    },
};

/// The commented example: `holdfast config example --role kms`.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: RawListen,
    #[serde(default)]
    tls: RawTls,
    silicon: RawSilicon,
    kms: RawKms,
    principals: Vec<RawPrincipal>,
    credentials: Vec<RawCredential>,
    #[serde(default)]
    proxies: Vec<RawProxy>,
    #[serde(default)]
    hsm_clusters: Vec<RawCluster>,
    #[serde(default)]
    attestation: RawAttestation,
    #[serde(default)]
    audit: RawAudit,
    #[serde(default)]
    audit_pull: RawAuditPull,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    address: String,
    metrics_address: Option<String>,
    host_names: Vec<String>,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKms {
    data_dir: PathBuf,
    regions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrincipal {
    arn: String,
    service: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    policy_files: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredential {
    access_key_id: String,
    secret_file: PathBuf,
    principal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    endpoint: String,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    caller_proof: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    id: String,
    url: String,
    ca_file: Option<PathBuf>,
    authority: String,
    authority_ca_file: Option<PathBuf>,
    audience: Option<String>,
    client_id: String,
    client_secret_file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAttestation {
    #[serde(default)]
    nitro_root_files: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<usize>,
    requests_in_flight: Option<usize>,
    keys: Option<usize>,
    open_keys: Option<usize>,
    private_key_threads: Option<usize>,
    private_key_queue: Option<usize>,
    store_budget_ms: Option<u64>,
    store_requests_per_sec: Option<u32>,
    store_in_flight: Option<usize>,
}

/// Everything checked; files are read when the service starts.
pub(crate) struct Config {
    pub address: SocketAddr,
    pub metrics_address: Option<SocketAddr>,
    pub host_names: Vec<String>,
    pub certificate_file: Option<PathBuf>,
    pub silicon_root: PathBuf,
    pub data_dir: PathBuf,
    pub audit: Audit,
    pub audit_readers: Vec<String>,
    pub connections: ConnectionLimits,
    pub threads: HsmThreads,
    pub log_json: bool,
    regions: Vec<String>,
    principals: Vec<RawPrincipal>,
    credentials: Vec<RawCredential>,
    proxies: Vec<RawProxy>,
    clusters: Vec<RawCluster>,
    nitro_roots: Vec<PathBuf>,
    limits: Limits,
}

fn is_region(name: &str) -> bool {
    let fits = (3..=32).contains(&name.len());
    fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn https(name: &str, url: &str) -> Result<(), String> {
    if url.starts_with("https://") && !url.ends_with('/') {
        return Ok(());
    }
    Err(format!("{name} = {url:?} must be an https URL without a slash at its end"))
}

impl RawLimits {
    fn check(&self, balancers: &[String]) -> Result<(ConnectionLimits, HsmThreads, Limits), String> {
        let defaults = Limits::default();
        let stores = StoreLimits::default();
        let budget = within("limits.store_budget_ms", self.store_budget_ms, 250, 50, 5000)?;
        let stores = StoreLimits {
            budget: Duration::from_millis(budget),
            in_flight_max: within("limits.store_in_flight", self.store_in_flight, stores.in_flight_max, 1, 65_536)?,
            requests_per_sec: within(
                "limits.store_requests_per_sec",
                self.store_requests_per_sec,
                stores.requests_per_sec,
                1,
                10_000_000,
            )?,
            ..stores
        };
        let limits = Limits {
            in_flight_max: within(
                "limits.requests_in_flight",
                self.requests_in_flight,
                defaults.in_flight_max,
                1,
                100_000,
            )?,
            keys_max: within("limits.keys", self.keys, defaults.keys_max, 1, 100_000_000)?,
            open_keys_max: within("limits.open_keys", self.open_keys, defaults.open_keys_max, 16, 1_000_000)?,
            stores,
            ..defaults
        };
        let threads = hsm_threads(self.private_key_threads, self.private_key_queue)?;
        Ok((parts::connections(self.connections, balancers)?, threads, limits))
    }
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Self, Fault> {
        parts::load(path, "--role kms > kms.toml", Self::parse)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string())?;
        let silicon_root = raw.silicon.check()?;
        if raw.listen.host_names.is_empty() {
            return Err("listen.host_names must name at least one host".into());
        }
        if raw.kms.regions.is_empty() || !raw.kms.regions.iter().all(|region| is_region(region)) {
            return Err("kms.regions must name at least one region, as us-east-1".into());
        }
        if raw.credentials.is_empty() {
            return Err("credentials must name at least one".into());
        }
        for proxy in &raw.proxies {
            https("proxies.endpoint", &proxy.endpoint)?;
        }
        for cluster in &raw.hsm_clusters {
            https("hsm_clusters.url", &cluster.url)?;
            https("hsm_clusters.authority", &cluster.authority)?;
        }
        let (connections, threads, limits) = raw.limits.check(&raw.listen.proxy_protocol_from)?;
        let metrics = raw.listen.metrics_address.as_deref();
        Ok(Self {
            address: address("listen.address", &raw.listen.address)?,
            metrics_address: metrics.map(|text| address("listen.metrics_address", text)).transpose()?,
            host_names: raw.listen.host_names,
            certificate_file: raw.tls.certificate_file,
            silicon_root,
            data_dir: raw.kms.data_dir,
            audit: raw.audit.check()?,
            audit_readers: raw.audit_pull.readers,
            connections,
            threads,
            log_json: raw.log.json,
            regions: raw.kms.regions,
            principals: raw.principals,
            credentials: raw.credentials,
            proxies: raw.proxies,
            clusters: raw.hsm_clusters,
            nitro_roots: raw.attestation.nitro_root_files,
            limits,
        })
    }

    /// The role's configuration, every file that it names read.
    pub(crate) fn role(&self) -> Result<KmsConfig, Fault> {
        let mut identities = Vec::new();
        for principal in &self.principals {
            let read = |path: &PathBuf| {
                let text = std::fs::read_to_string(path).map_err(|error| Fault::file(path, error))?;
                let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                Ok((name, text))
            };
            identities.push(IdentityConfig {
                arn: principal.arn.clone(),
                service: principal.service.clone(),
                tags: principal.tags.clone(),
                policies: principal.policy_files.iter().map(read).collect::<Result<_, Fault>>()?,
            });
        }
        let mut credentials = Vec::new();
        for credential in &self.credentials {
            credentials.push(CredentialConfig {
                access_key_id: credential.access_key_id.clone(),
                secret: read_secret(&credential.secret_file)?,
                principal: credential.principal.clone(),
            });
        }
        let proxies = self.proxies.iter().map(RawProxy::access).collect::<Result<_, _>>()?;
        let clusters = self.clusters.iter().map(RawCluster::cluster).collect::<Result<_, _>>()?;
        Ok(KmsConfig {
            regions: self.regions.clone(),
            directory: Directory::new(identities, credentials).map_err(Fault::usage)?,
            proxies,
            clusters,
            evidence: verifier(&self.nitro_roots)?,
            limits: self.limits,
        })
    }
}

/// Verifies evidence under the certificates of these files, if there are some.
fn verifier(files: &[PathBuf]) -> Result<Option<Arc<dyn EvidenceVerifier>>, Fault> {
    let mut roots = Vec::new();
    for file in files {
        let pem = std::fs::read(file).map_err(|error| Fault::file(file, error))?;
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| Fault::usage(format!("{}: {error}", file.display())))?;
            roots.push(certificate.to_vec());
        }
        if roots.len() == before {
            return Err(Fault::usage(format!("{}: there is no certificate in it", file.display())));
        }
    }
    if roots.is_empty() {
        return Ok(None);
    }
    let verifier = NitroVerifier::new(roots).map_err(|error| Fault::usage(format!("attestation: {error}")))?;
    Ok(Some(Arc::new(verifier)))
}

impl RawProxy {
    fn access(&self) -> Result<ProxyAccess, Fault> {
        let client = HttpsClient::new(self.ca_file.as_deref())?;
        let exchange = Arc::new(PooledClient::new(Vec::new(), client).keeping(PROXY_IDLE_MAX));
        Ok(ProxyAccess { endpoint: self.endpoint.clone(), exchange, caller_proof: self.caller_proof })
    }
}

/// Connections kept to one proxy: as many as requests may be under way there, or each wave of them would connect anew.
pub(crate) const PROXY_IDLE_MAX: usize = 4096;

impl RawCluster {
    fn cluster(&self) -> Result<HsmCluster, Fault> {
        let access = HsmAccess {
            urls: std::slice::from_ref(&self.url),
            // No ciphertext names the URL.
            moved: &BTreeMap::new(),
            ca_file: self.ca_file.as_deref(),
            authority: &self.authority,
            authority_ca_file: self.authority_ca_file.as_deref(),
            audience: self.audience.as_deref(),
            client_id: &self.client_id,
            client_secret_file: &self.client_secret_file,
        };
        let client = Arc::new(access.client()?);
        Ok(HsmCluster {
            id: self.id.clone(),
            url: self.url.clone(),
            keks: Arc::clone(&client) as Arc<dyn KekService>,
            maker: Arc::new(HsmMaker(client)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid_and_mistakes_are_refused() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.limits.stores.budget, Duration::from_millis(250));
        for (from, to, why) in [
            ("store_budget_ms", "store_bugdet_ms", "unknown field"),
            ("store_budget_ms = 250", "store_budget_ms = 10", "50 to 5000"),
            ("\"us-east-1\"", "\"US East\"", "regions"),
            ("[\"kms.example.com\"]", "[]", "host_names"),
            ("https://xks.customer.example", "http://xks.customer.example", "https"),
            ("kind = \"software-insecure\"", "kind = \"tpm\"", "software-insecure"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Config::parse(&EXAMPLE.replace(from, to)).err().unwrap();
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}

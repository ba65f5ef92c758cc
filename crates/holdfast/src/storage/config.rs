//! The configuration file of `holdfast storage`: read raw, checked, unknown fields refused, secrets by file.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_core::KekService;
use holdfast_kms::{KmsCredential, KmsKekClient};
use holdfast_managed_hsm::KekClient;
use holdfast_storage::{AccessKey, DekCacheLimits, StorageConfig};
use serde::Deserialize;

use super::{CloudBlobsConfig, keks::KekServices};
use crate::{
    ambient::OsAmbient,
    cli::env_file::beside,
    config::{
        Audit,
        parts::{self, HsmAccess, RawAudit, RawAuditPull, RawLog, RawSilicon, address, read_secret},
    },
    fault::Fault,
    private::read_private,
    server::{
        ConnectionLimits,
        certificates::FromFiles,
        client::{HttpsClient, PooledClient},
    },
};

/// The commented example: `holdfast config example --role storage`.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: RawListen,
    storage: RawStorage,
    access_keys: Vec<RawAccessKey>,
    key_service: Option<RawKeyService>,
    kms: Option<RawKms>,
    blobs: Option<RawBlobs>,
    silicon: Option<RawSilicon>,
    #[serde(default)]
    audit: RawStorageAudit,
    #[serde(default)]
    audit_pull: RawAuditPull,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

/// As for every role, and whether requests that change nothing are told.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStorageAudit {
    segment_mib: Option<u64>,
    segment_minutes: Option<u64>,
    accept_loss: bool,
    reads: bool,
}

impl Default for RawStorageAudit {
    fn default() -> Self {
        Self { segment_mib: None, segment_minutes: None, accept_loss: false, reads: true }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlobs {
    url: String,
    #[serde(default)]
    options: BTreeMap<String, String>,
    #[serde(default)]
    secret_files: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    address: String,
    metrics_address: Option<String>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    #[serde(default)]
    insecure_http: bool,
    #[serde(default)]
    host_domains: Vec<String>,
    body_idle_timeout_secs: Option<u64>,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStorage {
    data_dir: PathBuf,
    default_kek: String,
    #[serde(default = "us_east_1")]
    region: String,
    dek_cache_ttl_secs: Option<u64>,
    outage_grace_secs: Option<u64>,
    dek_cache_entries: Option<usize>,
    kek_poll_secs: Option<u64>,
    disk_reserve_mib: Option<u64>,
    #[serde(default)]
    new_buckets_block_sse_c: bool,
    #[serde(default)]
    insecure_no_encryption: bool,
    #[serde(default)]
    adopt_blobs: bool,
}

fn us_east_1() -> String {
    "us-east-1".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccessKey {
    id: String,
    secret_file: PathBuf,
    principal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeyService {
    hsm_urls: Vec<String>,
    /// From the URL that an HSM had to the one that it has.
    #[serde(default)]
    moved: BTreeMap<String, String>,
    ca_file: Option<PathBuf>,
    authority: String,
    authority_ca_file: Option<PathBuf>,
    audience: Option<String>,
    client_id: String,
    client_secret_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKms {
    url: String,
    region: String,
    ca_file: Option<PathBuf>,
    access_key_id: String,
    secret_file: PathBuf,
}

/// Everything checked; secrets are read when the service starts.
pub(crate) struct Config {
    pub address: SocketAddr,
    pub metrics_address: Option<SocketAddr>,
    pub data_dir: PathBuf,
    pub silicon_root: PathBuf,
    pub audit: Audit,
    pub audit_readers: Vec<String>,
    pub role: StorageConfig,
    pub connections: ConnectionLimits,
    pub kek_poll: Duration,
    /// Bytes.
    pub disk_reserve: Option<u64>,
    pub log_json: bool,
    tls: Option<(PathBuf, PathBuf)>,
    access_keys: Vec<RawAccessKey>,
    key_service: Option<RawKeyService>,
    kms: Option<RawKms>,
    blobs: Option<RawBlobs>,
}

fn secs(name: &str, value: Option<u64>, default: u64, min: u64, max: u64) -> Result<Duration, String> {
    let value = value.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(Duration::from_secs(value));
    }
    Err(format!("{name} = {value} must be {min} to {max}"))
}

/// A DNS name in lower case, without a port.
fn host_domain(domain: &str) -> Result<String, String> {
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if domain.len() <= 253 && domain.split('.').all(label) {
        return Ok(domain.to_ascii_lowercase());
    }
    Err(format!("listen.host_domains: {domain:?} must be a DNS name without a port, such as s3.example.com"))
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Self, Fault> {
        parts::load(path, "--role storage > storage.toml", Self::parse)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string())?;
        let connections = parts::connections(raw.limits.connections, &raw.listen.proxy_protocol_from)?;
        let RawListen {
            address: listen, metrics_address, certificate_file, key_file, insecure_http, host_domains, ..
        } = raw.listen;
        let idle = raw.listen.body_idle_timeout_secs;
        let body_idle_timeout = secs("listen.body_idle_timeout_secs", idle, 20, 1, 3600)?;
        let tls = match (certificate_file, key_file, insecure_http) {
            (Some(certificate), Some(key), false) => Some((certificate, key)),
            (None, None, true) => None,
            _ => return Err("listen needs certificate_file and key_file, or insecure_http = true".into()),
        };
        let storage = raw.storage;
        if raw.access_keys.is_empty() {
            return Err("access_keys must name at least one credential".into());
        }
        if raw.key_service.is_none() && raw.kms.is_none() {
            return Err("key_service or kms must say where the KEKs are".into());
        }
        let of_hsm = raw.key_service.iter().flat_map(|service| service.hsm_urls.iter().chain([&service.authority]));
        for url in of_hsm.chain(raw.kms.iter().map(|kms| &kms.url)) {
            if !url.starts_with("https://") {
                return Err(format!("key_service and kms: {url:?} must be an https URL"));
            }
        }
        raw.key_service.as_ref().map_or(Ok(()), RawKeyService::check_moved)?;
        let deks = DekCacheLimits {
            ttl: secs("storage.dek_cache_ttl_secs", storage.dek_cache_ttl_secs, 300, 0, 86_400)?,
            outage_grace: secs("storage.outage_grace_secs", storage.outage_grace_secs, 0, 0, 86_400)?,
            entries_max: storage.dek_cache_entries.unwrap_or(100_000).clamp(1, 10_000_000),
        };
        let silicon_root = match raw.silicon {
            Some(silicon) => silicon.check()?,
            // Configurations from before storage services had a sealed instance.
            None => beside(&storage.data_dir, "silicon"),
        };
        let RawStorageAudit { segment_mib, segment_minutes, accept_loss, reads } = raw.audit;
        Ok(Self {
            silicon_root,
            audit: RawAudit { segment_mib, segment_minutes, accept_loss }.check()?,
            audit_readers: raw.audit_pull.readers,
            address: address("listen.address", &listen)?,
            metrics_address: metrics_address
                .as_deref()
                .map(|text| address("listen.metrics_address", text))
                .transpose()?,
            data_dir: storage.data_dir,
            connections,
            role: StorageConfig {
                default_kek: storage.default_kek,
                deks,
                encryption_off: storage.insecure_no_encryption,
                region: storage.region,
                host_domains: host_domains.iter().map(|domain| host_domain(domain)).collect::<Result<_, _>>()?,
                new_buckets_block_customer_keys: storage.new_buckets_block_sse_c,
                body_idle_timeout: Some(body_idle_timeout),
                adopt_blobs: storage.adopt_blobs,
                audit_reads: reads,
            },
            kek_poll: secs("storage.kek_poll_secs", storage.kek_poll_secs, 300, 1, 86_400)?,
            disk_reserve: storage.disk_reserve_mib.map(|mib| mib.saturating_mul(1024 * 1024)),
            log_json: raw.log.json,
            tls,
            access_keys: raw.access_keys,
            key_service: raw.key_service,
            kms: raw.kms,
            blobs: raw.blobs,
        })
    }

    /// Certificate and key from the operator's files; `None` for plain HTTP.
    pub(crate) fn certificate(&self) -> Result<Option<Arc<FromFiles>>, Fault> {
        self.tls.as_ref().map(|(certificate, key)| FromFiles::open(certificate, key)).transpose()
    }

    /// The object store that blobs lie in, if one is configured; its secrets read from their files.
    pub(crate) fn cloud_blobs(&self) -> Result<Option<CloudBlobsConfig>, Fault> {
        let Some(blobs) = &self.blobs else { return Ok(None) };
        let mut options: Vec<(String, String)> = blobs.options.clone().into_iter().collect();
        for (name, path) in &blobs.secret_files {
            let secret = read_private(path)?;
            let text = std::str::from_utf8(secret.expose()).map_err(|error| Fault::file(path, error))?;
            options.push((name.clone(), text.trim().to_owned()));
        }
        Ok(Some(CloudBlobsConfig { url: blobs.url.clone(), options }))
    }

    /// The credentials, their secrets read from their files.
    pub(crate) fn access_keys(&self) -> Result<Vec<AccessKey>, Fault> {
        let read = |key: &RawAccessKey| {
            let secret = read_secret(&key.secret_file)?;
            let secret = std::str::from_utf8(secret.expose()).map_err(|error| Fault::file(&key.secret_file, error))?;
            Ok(AccessKey { id: key.id.clone(), secret: secret.to_owned(), principal: key.principal.clone() })
        };
        self.access_keys.iter().map(read).collect()
    }

    /// Clients of the key services, with this service's own identities.
    pub(crate) fn keks(&self) -> Result<KekServices, Fault> {
        let mut services: Vec<Arc<dyn KekService>> = Vec::new();
        if let Some(service) = &self.key_service {
            services.push(Arc::new(service.client()?));
        }
        if let Some(kms) = &self.kms {
            services.push(Arc::new(kms.client()?));
        }
        let services = KekServices(services);
        if !services.knows(&self.role.default_kek) {
            return Err(Fault::usage(
                "storage.default_kek must be the URL of a key in one of key_service.hsm_urls, or the ARN of a key of the \
                 region of kms",
            ));
        }
        Ok(services)
    }
}

impl RawKeyService {
    /// An HSM is asked at one URL, and it is one of those that are named.
    fn check_moved(&self) -> Result<(), String> {
        let named =
            |url: &str| self.hsm_urls.iter().any(|known| known.trim_end_matches('/') == url.trim_end_matches('/'));
        for (old, new) in &self.moved {
            if !old.starts_with("https://") {
                return Err(format!("key_service.moved: {old:?} must be an https URL"));
            }
            if !named(new) {
                return Err(format!(
                    "key_service.moved: {new:?} is where {old} has moved to, and must be in key_service.hsm_urls"
                ));
            }
            if named(old) {
                return Err(format!(
                    "key_service.moved: {old:?} is in key_service.hsm_urls: take it out there, since nobody asks it any more"
                ));
            }
        }
        Ok(())
    }

    fn client(&self) -> Result<KekClient, Fault> {
        let access = HsmAccess {
            urls: &self.hsm_urls,
            moved: &self.moved,
            ca_file: self.ca_file.as_deref(),
            authority: &self.authority,
            authority_ca_file: self.authority_ca_file.as_deref(),
            audience: self.audience.as_deref(),
            client_id: &self.client_id,
            client_secret_file: &self.client_secret_file,
        };
        access.client()
    }
}

impl RawKms {
    fn client(&self) -> Result<KmsKekClient, Fault> {
        let exchange = Arc::new(PooledClient::new(Vec::new(), HttpsClient::new(self.ca_file.as_deref())?));
        let secret = read_secret(&self.secret_file)?;
        let credential = KmsCredential { access_key_id: self.access_key_id.clone(), secret };
        Ok(KmsKekClient::new(exchange, &self.url, &self.region, credential, Arc::new(OsAmbient)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid_and_mistakes_are_refused() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert!(Config::parse(&EXAMPLE.replace("# moved = {", "moved = {")).is_ok());
        assert_eq!(config.role.deks.ttl, Duration::from_secs(300));
        for (from, to, why) in [
            ("dek_cache_ttl_secs", "dek_cache_tll_secs", "unknown field"),
            ("dek_cache_ttl_secs = 300", "dek_cache_ttl_secs = 99999999", "must be"),
            ("key_file =", "# key_file =", "insecure_http"),
            ("https://hsm1", "http://hsm1", "https"),
            ("# moved = { \"https://old-hsm", "moved = { \"http://old-hsm", "key_service"),
            (
                "# moved = { \"https://old-hsm.example.com\" = \"https://hsm1",
                "moved = { \"https://old\" = \"https://hsm2",
                "hsm_urls",
            ),
            ("# moved = { \"https://old-hsm", "moved = { \"https://hsm1", "take it out"),
            ("host_domains = []", "host_domains = [\"s3.example.com:443\"]", "without a port"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Config::parse(&EXAMPLE.replace(from, to)).err().unwrap();
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}

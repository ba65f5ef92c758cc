//! `holdfast dev`: everything on loopback, for trying, developing and testing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use holdfast_core::Ambient;
use holdfast_crypto::{Rsa1_5Policy, SecretBytes, kdf};
use holdfast_kms::KmsKekClient;
use holdfast_managed_hsm::{
    ADMINISTRATOR, CRYPTO_OFFICER, CRYPTO_SERVICE_ENCRYPTION_USER, CRYPTO_USER, Founding, HostPort, KekClient, Limits,
    ServiceIdentity,
};
use holdfast_storage::{AccessKey, DekCacheLimits, StorageConfig};
use holdfast_wire::{Exchange, hex::hex};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::{
    dev_kms::{self, DevAccessKey, DevKms},
    dev_page::{self, Page},
    dev_xks::DevXks,
    env_file::{self, beside, path_text},
};
use crate::{
    ambient::OsAmbient,
    compose::{self, Sockets},
    config::{self, Audit, Config, EmbeddedIssuer, HsmConfig, Identity, Listen},
    fault::Fault,
    founding::MayFound,
    instance, issuer,
    server::{
        ConnectionLimits,
        client::{HttpsClient, PooledClient},
    },
    storage::{StorageSetup, keks::KekServices},
};

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Keep the state here; a temporary directory otherwise
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Root of the software silicon that the state is sealed to; DIR.silicon by default
    #[arg(long, value_name = "FILE", requires = "data_dir")]
    silicon: Option<PathBuf>,
    /// First port; the HSM listens on it, and on the next ones the issuer, S3, the external key store proxy and the KMS
    #[arg(long, value_name = "N", default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..=65_500))]
    port_base: u16,
    /// Write the variables, secrets among them, as KEY=VALUE lines once everything is ready; DIR.env by default
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// How long S3 uses an unwrapped DEK, in seconds
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    dek_cache_ttl_secs: u64,
    /// How often S3 looks for new versions of its KEKs, in seconds
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    kek_poll_secs: u64,
    /// How long the KMS waits for the external key store, in milliseconds; 250 at AWS
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u64).range(50..=5000))]
    kms_store_budget_ms: u64,
    /// Serve S3 without TLS: for measuring
    #[arg(long)]
    insecure_s3_http: bool,
    /// Keep S3 objects in clear, and refuse requests that ask for encryption: for measuring
    #[arg(long)]
    insecure_no_encryption: bool,
    /// Another client of the issuer, without any role, named in the env file; may be repeated
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
}

/// Prefix of a further client's variables.
pub(crate) fn client_prefix(name: &str) -> String {
    format!("HOLDFAST_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// A client with its secret, which lives as long as this process.
struct DevClient {
    prefix: String,
    client_id: String,
    object_id: String,
    secret: String,
}

impl DevClient {
    fn new(opened: &instance::Opened, prefix: String, name: &str) -> Self {
        let mut bytes = [0; 24];
        OsAmbient.fill(&mut bytes);
        let secret = hex(&bytes);
        let client_id = opened.derived_guid(&format!("client {name}"));
        Self { prefix, client_id, object_id: opened.derived_guid(&format!("object {name}")), secret }
    }
}

impl DevArgs {
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let metrics = instance::start_process(false)?;
        check_client_names(&self.clients)?;
        let temporary = tempfile::Builder::new().prefix("holdfast-").tempdir().map_err(Fault::new)?;
        let data_dir = self.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
        let env_file = self.env_file.clone().unwrap_or_else(|| beside(&data_dir, "env"));
        if let Some(path) = &self.env_file {
            // A stale file would be taken for a sign of readiness. One beside the state may be of a process that still has it.
            let _ = std::fs::remove_file(path);
        }
        let unresolved = unresolved_names(self.port_base);
        if !unresolved.is_empty() {
            let type_this = dev_page::hosts_line(&unresolved);
            tracing::warn!(type_this, "this machine does not know the name {}", unresolved.join(" "));
        }
        let silicon = self.silicon.clone().unwrap_or_else(|| beside(&data_dir, "silicon"));
        let opened = instance::open(&data_dir, &silicon, MayFound::Untold, &[])?;
        let administrator = DevClient::new(&opened, "HOLDFAST".into(), "administrator");
        let storage = DevClient::new(&opened, "HOLDFAST_STORAGE".into(), "storage");
        let mut clients = vec![administrator, storage];
        clients.extend(self.clients.iter().map(|name| DevClient::new(&opened, client_prefix(name), name)));
        let tenant = opened.derived_guid("tenant");
        let config = self.config(&data_dir, &silicon, &tenant, unresolved.is_empty());
        let sockets = Sockets::bind(&config).await?;
        let s3_socket = instance::listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port_base + 2)).await?;
        let founding = Founding {
            soft_delete_retention_days: 90,
            purge_protection: false,
            first_assignments: [ADMINISTRATOR, CRYPTO_OFFICER, CRYPTO_USER]
                .map(|role| (clients[0].object_id.clone(), role))
                .into_iter()
                .chain([(clients[1].object_id.clone(), CRYPTO_SERVICE_ENCRYPTION_USER)])
                .collect(),
        };
        let issuer_clients = clients.iter().map(|client| {
            let secret_sha256 = kdf::sha256(&[client.secret.as_bytes()]);
            (client.client_id.clone(), issuer::Client { object_id: client.object_id.clone(), secret_sha256 })
        });
        let issuer_clients: HashMap<_, _> = issuer_clients.collect();
        let running = opened.run(&config, sockets, founding, issuer_clients, metrics.clone()).await?;
        let mut variables = self.variables(&config, &data_dir, &tenant, &clients)?;
        let (port, identity) = (self.port_base + 3, running.identity());
        let xks = DevXks {
            data_dir: &data_dir,
            silicon: &silicon,
            port,
            region: DEV_REGION,
            identity: Arc::clone(&identity),
            metrics: metrics.clone(),
        };
        let (xks, more, proxy) = xks.start().await?;
        let access_key = DevAccessKey::new();
        let kms = DevKms {
            data_dir: &data_dir,
            silicon: &silicon,
            port: self.port_base + 4,
            region: DEV_REGION,
            identity,
            root: &access_key,
            proxy,
            store_budget: Duration::from_millis(self.kms_store_budget_ms),
            metrics: metrics.clone(),
        };
        let dev_kms::Started { running: kms, variables: of_kms, keks } = kms.start().await?;
        let storage = DevStorage {
            config: &config,
            data_dir: &data_dir,
            silicon: &silicon,
            socket: s3_socket,
            access_key,
            kms: keks,
            metrics,
        };
        let (storage, of_storage) = self.start_storage(&running, storage, &clients).await?;
        variables.extend(of_storage);
        variables.extend(more);
        variables.extend(of_kms);
        variables.extend(for_clients(&variables));
        env_file::write(&env_file, &variables)?;
        Page {
            variables: &variables,
            env_file: &env_file,
            data_dir: &data_dir,
            kept: self.data_dir.is_some(),
            unresolved: &unresolved,
        }
        .print();
        tracing::info!(data_dir = %data_dir.display(), "ready; stop with Ctrl-C");
        let result = running.until_stopped(instance::Hangup::Ends).await;
        storage.ended().await;
        kms.stop().await;
        xks.stop().await;
        let _ = std::fs::remove_file(&env_file);
        result
    }

    /// Makes the KEKs, as the administrator, and starts S3 on them, as a service of its own. Gives its variables.
    async fn start_storage(
        &self,
        running: &compose::Running,
        dev: DevStorage<'_>,
        clients: &[DevClient],
    ) -> Result<(crate::storage::Running, Vec<(String, String)>), Fault> {
        let hsm_url = dev.config.listen.host_names[0].base_url();
        let exchange: Arc<dyn Exchange> =
            Arc::new(PooledClient::new(Vec::new(), HttpsClient::trusting(running.authority_pem().as_bytes())?));
        let identity = |client: &DevClient| ServiceIdentity {
            authority: dev.config.identity.authority.clone(),
            client_id: client.client_id.clone(),
            client_secret: SecretBytes::copy_of(client.secret.as_bytes()),
            audience: dev.config.identity.audience.clone(),
        };
        let client = |of| KekClient::new(Arc::clone(&exchange), identity(of), vec![hsm_url.clone()]);
        let administrator = client(&clients[0]);
        let keks = ["storage", "storage-key-1", "storage-key-2"].map(|name| format!("{hsm_url}/keys/{name}"));
        for kek in &keks {
            administrator.ensure_rsa_key(kek, 2048).await.map_err(|error| Fault::new(format!("{kek}: {error}")))?;
        }
        let DevAccessKey { id: access_key, secret } = dev.access_key;
        let ttl = Duration::from_secs(self.dek_cache_ttl_secs);
        let setup = StorageSetup {
            audit_readers: vec!["dev".to_owned()],
            audit: Audit::default(),
            role: StorageConfig {
                default_kek: keks[0].clone(),
                deks: DekCacheLimits { ttl, ..DekCacheLimits::default() },
                encryption_off: self.insecure_no_encryption,
                region: DEV_REGION.into(),
                audit_reads: true,
                ..StorageConfig::default()
            },
            keys: vec![AccessKey { id: access_key.clone(), secret: secret.clone(), principal: "dev".into() }],
            keks: Arc::new(KekServices(vec![Arc::new(client(&clients[1])), Arc::new(dev.kms)])),
            cloud_blobs: None,
            kek_poll: Duration::from_secs(self.kek_poll_secs),
            disk_reserve: None,
            socket: dev.socket,
            metrics_socket: None,
            tls: if self.insecure_s3_http { None } else { Some(running.server_config()?) },
            connections: ConnectionLimits::default(),
            metrics: dev.metrics,
        };
        let opened = crate::storage::open(&dev.data_dir.join("storage"), dev.silicon, MayFound::Untold, false)?;
        let started = crate::storage::start(opened, setup, running.stopped()).await?;
        let scheme = if self.insecure_s3_http { "http" } else { "https" };
        let pairs = [
            ("HOLDFAST_S3_URL", format!("{scheme}://127.0.0.1:{}", self.port_base + 2)),
            ("AWS_ACCESS_KEY_ID", access_key),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", DEV_REGION.to_owned()),
            ("AWS_DEFAULT_REGION", DEV_REGION.to_owned()),
            // Without the scheme: `aws` fetches any parameter that looks like a URL.
            ("HOLDFAST_S3_KEY_1", keks[1].replacen("https://", "", 1)),
            ("HOLDFAST_S3_KEY_2", keks[2].replacen("https://", "", 1)),
            ("HOLDFAST_STORAGE_DIR", path_text(&dev.data_dir.join("storage"))?),
        ];
        Ok((started, pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    fn issuer_port(&self) -> u16 {
        self.port_base + 1
    }

    fn config(&self, data_dir: &Path, silicon: &Path, tenant: &str, named: bool) -> Config {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let issuer_url = format!("https://127.0.0.1:{}", self.issuer_port());
        // SDKs want the HSM's name to have a parent domain. Not every resolver knows names under .localhost; an address passes
        // the check of some SDKs (Python), not that of others (JavaScript, Rust), whose URL parsers read 0.0.1 as 0.0.0.1.
        let mut host_names: Vec<_> =
            ["127.0.0.1", NAME_UNDER_LOCALHOST, "localhost"].map(|name| HostPort::new(name, self.port_base)).to_vec();
        if named {
            host_names.swap(0, 1);
        }
        Config {
            listen: Listen { address: loopback(self.port_base), metrics_address: None, host_names },
            hsm: HsmConfig {
                data_dir: data_dir.into(),
                soft_delete_retention_days: 90,
                purge_protection: false,
                initial_administrators: Vec::new(),
                rsa1_5: Rsa1_5Policy::Allow,
            },
            silicon_root: silicon.into(),
            tls_certificate_file: None,
            identity: Identity {
                authority: format!("{issuer_url}/{tenant}"),
                audience: config::DEFAULT_AUDIENCE.into(),
                issuers: Vec::new(),
            },
            embedded_issuer: Some(EmbeddedIssuer {
                address: loopback(self.issuer_port()),
                url: issuer_url,
                tenant: tenant.into(),
                clients: Vec::new(),
            }),
            audit: Audit::default(),
            connections: ConnectionLimits::default(),
            limits: Limits::default(),
            threads: config::default_threads(),
            log_json: false,
        }
    }

    fn variables(
        &self,
        config: &Config,
        data_dir: &Path,
        tenant: &str,
        clients: &[DevClient],
    ) -> Result<Vec<(String, String)>, Fault> {
        let absolute = data_dir.canonicalize().map_err(|error| Fault::file(data_dir, error))?;
        let issuer = config.embedded_issuer.as_ref().map(|issuer| issuer.url.clone()).unwrap_or_default();
        let mut variables = vec![
            ("HOLDFAST_HSM_URL".to_owned(), config.listen.host_names[0].base_url()),
            ("HOLDFAST_CA_FILE".to_owned(), absolute.join("ca.pem").display().to_string()),
            ("HOLDFAST_TENANT_ID".to_owned(), tenant.to_owned()),
            ("HOLDFAST_AUTHORITY_URL".to_owned(), issuer),
            ("HOLDFAST_AUDIT_DIR".to_owned(), absolute.join("audit").display().to_string()),
        ];
        for client in clients {
            variables.push((format!("{}_CLIENT_ID", client.prefix), client.client_id.clone()));
            variables.push((format!("{}_CLIENT_SECRET", client.prefix), client.secret.clone()));
            variables.push((format!("{}_OBJECT_ID", client.prefix), client.object_id.clone()));
        }
        Ok(variables)
    }
}

/// What starting S3 beside the HSM takes.
struct DevStorage<'a> {
    config: &'a Config,
    data_dir: &'a Path,
    silicon: &'a Path,
    socket: TcpListener,
    access_key: DevAccessKey,
    kms: KmsKekClient,
    metrics: PrometheusHandle,
}

const DEV_REGION: &str = "us-east-1";

const NAME_UNDER_LOCALHOST: &str = "hsm.localhost";

/// Names that clients are given and this machine's resolver does not know.
fn unresolved_names(port: u16) -> Vec<&'static str> {
    let resolves = |name: &&str| {
        let addresses = (*name, port).to_socket_addrs();
        addresses.is_ok_and(|mut addresses| addresses.any(|address| address.ip().is_loopback()))
    };
    [NAME_UNDER_LOCALHOST, "localhost"].into_iter().filter(|name| !resolves(name)).collect()
}

/// The same under the names that clients themselves look for. What is not here is `REQUESTS_CA_BUNDLE`: pip obeys it, too.
fn for_clients(variables: &[(String, String)]) -> Vec<(String, String)> {
    let names = [
        ("AZURE_TENANT_ID", "HOLDFAST_TENANT_ID"),
        ("AZURE_CLIENT_ID", "HOLDFAST_CLIENT_ID"),
        ("AZURE_CLIENT_SECRET", "HOLDFAST_CLIENT_SECRET"),
        ("AZURE_AUTHORITY_HOST", "HOLDFAST_AUTHORITY_URL"),
        ("AWS_ENDPOINT_URL_S3", "HOLDFAST_S3_URL"),
        ("AWS_ENDPOINT_URL_KMS", "HOLDFAST_KMS_URL"),
        ("AWS_CA_BUNDLE", "HOLDFAST_CA_FILE"),
        ("NODE_EXTRA_CA_CERTS", "HOLDFAST_CA_FILE"),
    ];
    let find = |wanted: &str| variables.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    names.into_iter().filter_map(|(theirs, ours)| Some((theirs.to_owned(), find(ours)?))).collect()
}

fn check_client_names(names: &[String]) -> Result<(), Fault> {
    let valid =
        |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    match names.iter().find(|name| !valid(name)) {
        None => Ok(()),
        Some(name) => Err(Fault::usage(format!("{name:?} is not a client name: letters, digits and hyphens"))),
    }
}

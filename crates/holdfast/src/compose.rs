//! Who is wired to whom: from a checked configuration to a running instance.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::{Ambient, AuditSink, PartitionId, RecordKey, Sealer, Store, Write};
use holdfast_crypto::{EcKey, SecretBytes, kdf};
use holdfast_enclave::{InstanceError, InstanceSecrets, SiliconError, SoftwareSilicon};
use holdfast_engine::{Partition, PartitionPolicy};
use holdfast_managed_hsm::{Authenticator, Founding, HostNames, IssuerConfig, ManagedHsm, Seams};
use holdfast_store::{
    EmbeddedEngine, SealedStore,
    audit::{AuditLog, AuditLogConfig, Checkpoint},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    ambient::OsAmbient,
    config::{Config, EmbeddedIssuer},
    fault::Fault,
    hsm::SoftHsm,
    issuer::{self, Issuer},
    server::{
        self,
        client::{HttpsClient, IssuerFetch},
        tls::{self, TlsIdentity},
    },
    telemetry,
};

/// Record that remembers how far the audit log had come.
const AUDIT_MARK: u8 = 64;
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(30);
const AUDIT_MARK_INTERVAL: Duration = Duration::from_secs(1);
const CERTIFICATE_RENEWAL: Duration = Duration::from_secs(24 * 3600);

/// An instance whose secrets are open, before anything listens.
pub(crate) struct Opened {
    pub instance: PartitionId,
    secrets: InstanceSecrets,
    silicon: SoftwareSilicon,
    ambient: Arc<dyn Ambient>,
    data_dir: PathBuf,
}

/// A running instance.
pub(crate) struct Running {
    shutdown: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    audit: Arc<AuditLog>,
    marks: JoinHandle<AuditMarks>,
    identity: Arc<TlsIdentity>,
    ambient: Arc<dyn Ambient>,
}

/// Opens the instance in `data_dir`, or founds one there.
pub(crate) fn open(data_dir: &Path, silicon_root: &Path) -> Result<Opened, Fault> {
    holdfast_crypto::selftest::run().map_err(Fault::new)?;
    let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
    create_private_dir(data_dir).map_err(|error| Fault::file(data_dir, error))?;
    let state = data_dir.join("instance.sealed");
    let founded = state.exists();
    let silicon = open_silicon(silicon_root, data_dir, founded, &ambient)?;
    let open = InstanceSecrets::open(&state, &silicon).map_err(|error| explain(&error, silicon_root))?;
    let secrets = match open {
        Some(secrets) => secrets,
        None => {
            if data_dir.join("records.redb").exists() {
                return Err(Fault::new(format!("{} is missing, but records exist that need it", state.display()))
                    .hint("restore the whole data directory from the same moment"));
            }
            let identity = tls::found(ambient.as_ref())?;
            let secrets = InstanceSecrets::generate(
                ambient.as_ref(),
                identity.tls_key,
                identity.authority_key,
                identity.authority_certificate,
            )
            .map_err(Fault::new)?;
            secrets.seal(&state, &silicon, ambient.as_ref()).map_err(Fault::new)?;
            tracing::info!(instance = %secrets.instance, data_dir = %data_dir.display(), "a new instance was founded");
            secrets
        }
    };
    Ok(Opened { instance: secrets.instance, secrets, silicon, ambient, data_dir: data_dir.into() })
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Silicon is made only together with a new instance; state that exists needs the silicon that sealed it.
fn open_silicon(
    root: &Path,
    data_dir: &Path,
    founded: bool,
    ambient: &Arc<dyn Ambient>,
) -> Result<SoftwareSilicon, Fault> {
    let inside = root.parent().and_then(|parent| parent.canonicalize().ok()).zip(data_dir.canonicalize().ok());
    if inside.is_some_and(|(parent, data)| parent.starts_with(data)) {
        return Err(Fault::usage("the silicon root must not lie in the data directory: a copy would open anywhere"));
    }
    let silicon = match SoftwareSilicon::open(root, Arc::clone(ambient)) {
        Err(SiliconError::Missing(_)) if !founded => SoftwareSilicon::create(root, Arc::clone(ambient)),
        other => other,
    };
    let silicon = silicon.map_err(|error| match error {
        SiliconError::Missing(_) => Fault::new(format!(
            "{} was sealed to silicon whose root is not on this machine: {error}",
            data_dir.display()
        ))
        .hint("a data directory opens only with the silicon it was sealed to; a copy of it alone is useless"),
        other => Fault::new(other),
    })?;
    tracing::warn!(
        root = %root.display(),
        "sealing with SOFTWARE SILICON, which is for machines without a TEE: root on this host can read every key"
    );
    Ok(silicon)
}

fn explain(error: &InstanceError, silicon_root: &Path) -> Fault {
    let fault = Fault::new(error);
    match error {
        InstanceError::Sealed { .. } => fault.hint(format!(
            "the data directory was copied without its silicon, or changed; the silicon here is {}",
            silicon_root.display()
        )),
        InstanceError::File { .. } | InstanceError::Malformed(_) | InstanceError::Generation => fault,
    }
}

/// Sockets of an instance, bound before anything is told to the world.
pub(crate) struct Sockets {
    pub hsm: TcpListener,
    pub issuer: Option<TcpListener>,
    pub metrics: Option<TcpListener>,
}

impl Sockets {
    pub(crate) async fn bind(config: &Config) -> Result<Self, Fault> {
        let issuer = config.embedded_issuer.as_ref().map(|issuer| issuer.address);
        Ok(Self {
            hsm: listen(config.listen.address).await?,
            issuer: listen_some(issuer).await?,
            metrics: listen_some(config.listen.metrics_address).await?,
        })
    }
}

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Fault> {
    TcpListener::bind(address).await.map_err(|error| {
        Fault::unavailable(format!("{address}: {error}")).hint("is another instance running? choose another port")
    })
}

async fn listen_some(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Fault> {
    match address {
        Some(address) => Ok(Some(listen(address).await?)),
        None => Ok(None),
    }
}

impl Opened {
    /// An identifier that belongs to this instance for ever: for the tenant and clients of `dev`.
    pub(crate) fn derived_guid(&self, what: &str) -> String {
        let digest = kdf::sha256(&[b"holdfast dev identity v1", self.instance.as_bytes(), what.as_bytes()]);
        let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        // Marked as a version 8 UUID: made by our own rule (RFC 9562, section 5.8).
        format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
    }

    /// Builds every part, wires them, and serves.
    pub(crate) async fn run(
        self,
        config: &Config,
        sockets: Sockets,
        founding: Founding,
        issuer_clients: HashMap<String, issuer::Client>,
        metrics: PrometheusHandle,
    ) -> Result<Running, Fault> {
        let Self { secrets, silicon, ambient, data_dir, .. } = self;
        let InstanceSecrets {
            instance,
            database_key,
            masking_key,
            tls_key,
            authority_key,
            authority_certificate,
            audit_key,
        } = secrets;
        let identity = tls_identity(config, (tls_key, authority_key, authority_certificate), ambient.as_ref())?;
        write_public(&data_dir.join("ca.pem"), identity.authority_pem().as_bytes())?;
        write_public(&data_dir.join("tls.csr"), identity.signing_request()?.as_bytes())?;
        let engine = EmbeddedEngine::open(&data_dir.join("records.redb")).map_err(|error| {
            Fault::new(format!("{}: {error}", data_dir.display())).hint("does another process use this data directory?")
        })?;
        let store = SealedStore::new(engine, instance, &database_key, Arc::clone(&ambient)).map_err(Fault::new)?;
        let store: Arc<dyn Store> = Arc::new(store);
        let (audit, mark_version) =
            open_audit(config, &data_dir, store.as_ref(), instance, &audit_key, &ambient).await?;
        let policy = PartitionPolicy { rsa1_5: config.hsm.rsa1_5 };
        let partition = Partition::new(instance, &masking_key, policy).map_err(Fault::new)?;
        let hsm = Arc::new(SoftHsm::new(partition, Arc::clone(&ambient), config.threads).map_err(Fault::new)?);
        let hosts = HostNames::new(
            config.listen.host_names.clone(),
            config.identity.audience.clone(),
            config.identity.authority.clone(),
        );
        let (shutdown, stopped) = watch::channel(false);
        let mut servers = Vec::new();
        let mut issuers: Vec<IssuerConfig> =
            config.identity.issuers.iter().map(|source| source.config.clone()).collect();
        let mut embedded_url = None;
        if let (Some(embedded), Some(socket)) = (&config.embedded_issuer, sockets.issuer) {
            let issuer =
                Issuer::new(embedded.url.clone(), embedded.tenant.clone(), issuer_clients, Arc::clone(&ambient))?;
            issuers.push(IssuerConfig {
                url: issuer.issuer_url(),
                aliases: Vec::new(),
                tenant: embedded.tenant.clone(),
            });
            embedded_url = Some(embedded.url.clone());
            let issuer = Arc::new(issuer);
            let handler = server::handler(move |request, _| {
                let issuer = Arc::clone(&issuer);
                async move { issuer.handle(request).await }
            });
            let tls = Some(identity.server_config()?);
            servers.push(tokio::spawn(server::serve(
                "issuer",
                socket,
                tls,
                config.connections,
                handler,
                stopped.clone(),
            )));
        }
        let fetch = Arc::new(issuer_fetch(config, embedded_url, &identity)?);
        let authenticator = Authenticator::new(issuers, hosts.audiences(), fetch, Arc::clone(&ambient));
        let seams = Seams {
            hsm: Arc::clone(&hsm) as _,
            admin: hsm,
            store: Arc::clone(&store),
            audit: Arc::clone(&audit) as Arc<dyn AuditSink>,
            ambient: Arc::clone(&ambient),
        };
        let role = ManagedHsm::open(seams, authenticator, hosts, &founding, config.limits).await.map_err(Fault::new)?;
        let role = Arc::new(role);
        let health = Health {
            silicon: silicon.kind(),
            memory_isolated: silicon.memory_isolated(),
            role: Arc::clone(&role),
            audit: Arc::clone(&audit),
            metrics,
        };
        let health = Arc::new(health);
        if let Some(socket) = sockets.metrics {
            let health = Arc::clone(&health);
            let handler = server::handler(move |request, _| {
                let health = Arc::clone(&health);
                async move { health.answer(request.uri().path()).unwrap_or_else(not_found) }
            });
            servers.push(tokio::spawn(server::serve(
                "metrics",
                socket,
                None,
                config.connections,
                handler,
                stopped.clone(),
            )));
        }
        let on_main = config.listen.metrics_address.is_none();
        let handler = hsm_handler(Arc::clone(&role), health, on_main);
        let tls = Some(identity.server_config()?);
        servers.push(tokio::spawn(server::serve(
            "hsm",
            sockets.hsm,
            tls,
            config.connections,
            handler,
            stopped.clone(),
        )));
        servers.push(tokio::spawn(maintain(role, Arc::clone(&identity), Arc::clone(&ambient), stopped.clone())));
        let marks = AuditMarks { store, audit: Arc::clone(&audit), version: mark_version, written: 0 };
        let marks = tokio::spawn(marks.keep(stopped));
        Ok(Running { shutdown, servers, audit, marks, identity, ambient })
    }
}

fn tls_identity(
    config: &Config,
    keys: (SecretBytes, SecretBytes, Vec<u8>),
    ambient: &dyn Ambient,
) -> Result<Arc<TlsIdentity>, Fault> {
    let (tls_key, authority_key, authority_certificate) = keys;
    let chain = match &config.tls_certificate_file {
        Some(path) => Some(fs::read(path).map_err(|error| Fault::file(path, error))?),
        None => None,
    };
    let names = config.listen.host_names.iter().map(|name| name.host().to_owned()).collect();
    TlsIdentity::new(tls_key, authority_key, authority_certificate, names, chain.as_deref(), ambient.now())
}

fn write_public(path: &Path, content: &[u8]) -> Result<(), Fault> {
    fs::write(path, content).map_err(|error| Fault::file(path, error))
}

async fn open_audit(
    config: &Config,
    data_dir: &Path,
    store: &dyn Store,
    instance: PartitionId,
    key: &SecretBytes,
    ambient: &Arc<dyn Ambient>,
) -> Result<(Arc<AuditLog>, u64), Fault> {
    let record = store.read(&mark_key()).await.map_err(Fault::new)?;
    let version = record.as_ref().map_or(0, |record| record.version);
    let expected = record.and_then(|record| decode_mark(&record.value));
    let log = AuditLogConfig {
        directory: data_dir.join("audit"),
        segment_bytes_max: config.audit.segment_bytes_max,
        segment_age_max: config.audit.segment_age_max,
        checkpoint_interval: Duration::from_secs(1),
        expected,
        accept_loss: config.audit.accept_loss,
    };
    let key = EcKey::load(holdfast_crypto::Curve::P384, key).map_err(Fault::new)?;
    let log = AuditLog::open(log, instance, key, Arc::clone(ambient)).map_err(Fault::new)?;
    Ok((Arc::new(log), version))
}

fn mark_key() -> RecordKey {
    RecordKey::new(AUDIT_MARK, Vec::new())
}

fn decode_mark(value: &[u8]) -> Option<Checkpoint> {
    let (seq, head) = value.split_first_chunk::<8>()?;
    Some(Checkpoint { seq: u64::from_be_bytes(*seq), head: head.try_into().ok()? })
}

/// Remembers in the store how far the audit log has come, so that a log cut short shows at the next start.
struct AuditMarks {
    store: Arc<dyn Store>,
    audit: Arc<AuditLog>,
    version: u64,
    written: u64,
}

impl AuditMarks {
    async fn keep(mut self, mut stopped: watch::Receiver<bool>) -> Self {
        while tokio::time::timeout(AUDIT_MARK_INTERVAL, stopped.wait_for(|stop| *stop)).await.is_err() {
            self.write().await;
        }
        self
    }

    async fn write(&mut self) {
        let latest = self.audit.latest();
        gauge!("holdfast_audit_lines").set(latest.seq as f64);
        if latest.seq == self.written {
            return;
        }
        let value = [latest.seq.to_be_bytes().as_slice(), &latest.head].concat();
        let write = Write { key: mark_key(), expected_version: self.version, value: Some(value) };
        match self.store.commit(vec![write]).await {
            Ok(()) => (self.version, self.written) = (self.version + 1, latest.seq),
            Err(error) => tracing::warn!(%error, "the audit log's progress could not be remembered"),
        }
    }
}

fn issuer_fetch(config: &Config, embedded: Option<String>, identity: &TlsIdentity) -> Result<IssuerFetch, Fault> {
    let mut clients = Vec::new();
    if let Some(url) = embedded {
        clients.push((format!("{url}/"), HttpsClient::trusting(identity.authority_pem().as_bytes())?));
    }
    for source in &config.identity.issuers {
        if let Some(path) = &source.ca_file {
            let origin: String = source.config.url.split('/').take(3).collect::<Vec<_>>().join("/");
            clients.push((format!("{origin}/"), HttpsClient::new(Some(path))?));
        }
    }
    Ok(IssuerFetch { clients, default: HttpsClient::new(None)? })
}

/// Clients of a configured embedded issuer, their secrets read from their files.
pub(crate) fn embedded_clients(embedded: &EmbeddedIssuer) -> Result<HashMap<String, issuer::Client>, Fault> {
    let mut clients = HashMap::new();
    for client in &embedded.clients {
        let path = &client.secret_file;
        let secret = SecretBytes::take(fs::read(path).map_err(|error| Fault::file(path, error))?);
        let trimmed = secret.expose().trim_ascii();
        if trimmed.len() < 16 {
            return Err(Fault::usage(format!("{}: a client secret has at least 16 characters", path.display())));
        }
        let secret_sha256 = kdf::sha256(&[trimmed]);
        let object_id = client.object_id.clone();
        clients.insert(client.client_id.to_ascii_lowercase(), issuer::Client { object_id, secret_sha256 });
    }
    Ok(clients)
}

/// What orchestrators and Prometheus ask.
struct Health {
    silicon: &'static str,
    memory_isolated: bool,
    role: Arc<ManagedHsm>,
    audit: Arc<AuditLog>,
    metrics: PrometheusHandle,
}

impl Health {
    fn answer(&self, path: &str) -> Option<Response<Full<Bytes>>> {
        match path {
            "/healthz" => Some(plain(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")),
            "/readyz" => {
                let ready = serde_json::json!({
                    "status": "ready",
                    "role": "managed-hsm",
                    "version": env!("CARGO_PKG_VERSION"),
                    "silicon": self.silicon,
                    "memory_isolated": self.memory_isolated,
                    "keys": self.role.key_count(),
                    "audit_lines": self.audit.latest().seq,
                });
                Some(plain(StatusCode::OK, "application/json", format!("{ready}\n")))
            }
            "/metrics" => {
                gauge!("holdfast_hsm_keys").set(self.role.key_count() as f64);
                Some(plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render()))
            }
            _ => None,
        }
    }
}

fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn not_found() -> Response<Full<Bytes>> {
    plain(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n")
}

fn hsm_handler(role: Arc<ManagedHsm>, health: Arc<Health>, health_here: bool) -> server::Handler {
    server::handler(move |request: Request<Incoming>, peer| {
        let role = Arc::clone(&role);
        let health = Arc::clone(&health);
        async move {
            if health_here && let Some(answer) = health.answer(request.uri().path()) {
                return answer;
            }
            let (parts, body) = request.into_parts();
            role.handle(parts, body, Some(peer)).await
        }
    })
}

async fn maintain(
    role: Arc<ManagedHsm>,
    identity: Arc<TlsIdentity>,
    ambient: Arc<dyn Ambient>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut renewed = tokio::time::Instant::now();
    loop {
        if tokio::time::timeout(MAINTENANCE_INTERVAL, stopped.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
        role.maintain().await;
        if renewed.elapsed() >= CERTIFICATE_RENEWAL {
            renewed = tokio::time::Instant::now();
            if let Err(error) = identity.renew(ambient.now()) {
                tracing::error!(%error, "the TLS certificate could not be renewed");
            }
        }
    }
}

impl Running {
    /// The certificate authority that clients of this process trust.
    pub(crate) fn authority_pem(&self) -> String {
        self.identity.authority_pem()
    }

    /// TLS with this instance's identity, for another role in the same process.
    pub(crate) fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Fault> {
        self.identity.server_config()
    }

    pub(crate) fn ambient(&self) -> Arc<dyn Ambient> {
        Arc::clone(&self.ambient)
    }

    /// Turns true when it is time to stop.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.shutdown.subscribe()
    }

    /// Tasks of another role that end when this one stops.
    pub(crate) fn join(&mut self, tasks: Vec<JoinHandle<()>>) {
        self.servers.extend(tasks);
    }

    /// Stops listening, lets requests in flight end, and closes the audit log.
    pub(crate) async fn stop(self) {
        let _ = self.shutdown.send(true);
        for server in self.servers {
            let _ = server.await;
        }
        let audit = self.audit;
        let _ = tokio::task::spawn_blocking(move || audit.close()).await;
        if let Ok(mut marks) = self.marks.await {
            marks.write().await;
        }
        tracing::info!("stopped");
    }

    /// Serves until SIGINT or SIGTERM.
    pub(crate) async fn until_stopped(self) -> Result<(), Fault> {
        signalled().await?;
        tracing::info!("stopping");
        self.stop().await;
        Ok(())
    }
}

/// Waits for SIGINT or SIGTERM.
pub(crate) async fn signalled() -> Result<(), Fault> {
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(Fault::new)?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Metrics and logs, once for the process.
pub(crate) fn start_process(json: bool) -> Result<PrometheusHandle, Fault> {
    telemetry::start_logging(json);
    crate::hardening::apply();
    telemetry::start_metrics()
}

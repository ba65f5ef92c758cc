//! The xks-proxy role, wired: HSM users, shared state, listeners, control socket, and what goes on in the background.

pub(crate) mod config;
pub(crate) mod control;
#[cfg(test)]
mod flips;
mod logged;
mod members;
mod opening;
pub(crate) mod restore;
mod watch_state;
mod witness;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use config::{Config, HsmKind};
use holdfast_core::{AuditSink, AuditSource, ExternalHsm, Revision, Store};
use holdfast_crypto::Rsa1_5Policy;
use holdfast_engine::{Partition, PartitionPolicy};
use holdfast_pkcs11::{HostCommand, Pin, Pkcs11Hsm};
use holdfast_service::{AuditDoor, SigningReaders};
use holdfast_store::{Engine as _, SealedStore, SharedEngine, audit::AuditLog, open_in_place};
use holdfast_xks_proxy::{Beside, ClientCertificate, Door, Peer, Seams, XksProxy, governors_of};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use opening::Upgrade;
use rustls::{CipherSuite, ServerConfig, crypto::aws_lc_rs, version};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use witness::{Places, Witness};

use crate::{
    fault::Fault,
    hand_over::HandOvers,
    health::{Ground, Health, Told},
    history::LogPlace,
    hsm::SoftExternalHsm,
    instance::{self, AuditMarks, Opened, close_audit, listen, listen_some, plain, tls_identity, write_public},
    server::{self, AnswerBody, Tls, client_certificate::ClientVerifier, tls::TlsIdentity},
};

/// Name of the process that a command is when it changes the state by itself.
pub(crate) const COMMAND: &str = "command";
/// What it is called while others of that name run, or are stopped.
const COMMANDS: &[&str] = &[COMMAND, "command-2", "command-3", "command-4"];
/// What the state's rows lie in; tells an instance from an empty directory.
const RECORDS: &str = "rows.shared";

/// Sockets, bound before anything is told to the world.
pub(crate) struct Sockets {
    xks: TcpListener,
    ekm: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Sockets {
    pub(crate) async fn bind(config: &Config) -> Result<Self, Fault> {
        Ok(Self {
            xks: listen(config.address).await?,
            ekm: listen_some(config.ekm_address).await?,
            metrics: listen_some(config.metrics_address).await?,
        })
    }
}

/// A running process of the proxy.
pub(crate) struct Running {
    pub proxy: Arc<XksProxy>,
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    audit: Arc<AuditLog>,
    marks: JoinHandle<AuditMarks>,
    /// Held as long as the process lives: nobody else has its name.
    _alive: File,
}

/// State that is open, before anything listens.
pub(crate) struct State {
    opened: Opened,
    engine: SharedEngine,
    store: Arc<dyn Store>,
    places: Arc<Places>,
    upgrade: Option<Upgrade>,
}

pub(crate) use opening::open_state;
pub(crate) use watch_state::alive;

/// Directory of one process.
pub(crate) fn process_dir(state_dir: &Path, process: &str) -> PathBuf {
    state_dir.join("processes").join(process)
}

/// Takes a process's name; it is free again when the file is closed.
fn take_name(directory: &Path, process: &str) -> Result<File, Fault> {
    let path = directory.join("alive.lock");
    let file = open_in_place(OpenOptions::new().write(true).create(true).truncate(false).mode(0o600), &path);
    let file = file.map_err(|error| Fault::file(&path, error))?;
    file.try_lock().map_err(|_| {
        Fault::unavailable(format!("a process {process:?} runs on this state already"))
            .hint("give each process a name of its own: [state] process")
    })?;
    Ok(file)
}

impl State {
    /// Opens the proxy on this state, for `process` to serve or for a command to change it.
    pub(crate) async fn open_proxy(
        &self,
        config: &Config,
        process: &str,
        audit: Arc<dyn AuditSink>,
        pins: &mut HashMap<String, watch::Sender<Pin>>,
    ) -> Result<Arc<XksProxy>, Fault> {
        let mut hsms: BTreeMap<String, Arc<dyn ExternalHsm>> = BTreeMap::new();
        for user in &config.hsms {
            let hsm: Arc<dyn ExternalHsm> = match &user.kind {
                HsmKind::Pkcs11(pkcs11) => {
                    let (sender, receiver) = watch::channel(None);
                    pins.insert(user.name.clone(), sender);
                    Pkcs11Hsm::start(pkcs11.as_ref().clone(), host_command()?, receiver)
                }
                HsmKind::Software => {
                    let policy = PartitionPolicy { rsa1_5: Rsa1_5Policy::Refuse };
                    let masking = &self.opened.secrets.masking_key;
                    let partition = Partition::new(self.opened.instance, masking, policy).map_err(Fault::new)?;
                    tracing::warn!(
                        hsm = user.name,
                        "a SOFTWARE HSM, for trying: whoever has this machine has its keys"
                    );
                    let ambient = Arc::clone(&self.opened.ambient);
                    Arc::new(SoftExternalHsm::new(partition, Arc::clone(&self.store), ambient))
                }
            };
            hsms.insert(user.name.clone(), hsm);
        }
        let ambient = Arc::clone(&self.opened.ambient);
        let known = self.places.known().map_err(Fault::new)?;
        let (_, heard) = governors_of(self.store.as_ref()).await.map_err(Fault::new)?;
        let (_, lost) = self.places.pulled(&heard, &known.kills).map_err(Fault::new)?;
        opening::judge_kills(&lost)?;
        let witness = Witness::open(&self.places, process, self.engine.clone(), known.kills);
        let beside: Arc<dyn Beside> = Arc::new(witness.map_err(Fault::new)?);
        let own_keys_only =
            config.hsms.iter().filter(|user| user.own_keys_only).map(|user| user.name.clone()).collect();
        let health_keys =
            config.hsms.iter().filter_map(|user| Some((user.name.clone(), user.health_key.clone()?))).collect();
        let seams = Seams { hsms, own_keys_only, health_keys, store: Arc::clone(&self.store), audit, beside, ambient };
        XksProxy::open(seams, self.opened.instance, config.limits).await.map_err(Fault::new)
    }

    /// Builds every part, wires them, and serves; under `identity`, if another role's is to be shown.
    pub(crate) async fn run(
        mut self,
        config: &Config,
        sockets: Sockets,
        metrics: PrometheusHandle,
        identity: Option<Arc<TlsIdentity>>,
    ) -> Result<Running, Fault> {
        let directory = process_dir(&config.state_dir, &config.process);
        instance::create_private_dir(&directory).map_err(|error| Fault::file(&directory, error))?;
        let alive = take_name(&directory, &config.process)?;
        let ambient = Arc::clone(&self.opened.ambient);
        let enrolled = members::enrolled(self.store.as_ref()).await.map_err(Fault::new)?.contains(&config.process);
        let rows = self.places.process_rows(&config.process).map_err(Fault::new)?;
        let conditions = [self.engine.condition(), rows.condition()];
        let tried = vec![self.engine.clone(), rows.clone()];
        let own = (config.process.as_str(), rows);
        let (audit, mut marks) = open_process_log(&self, config, own, &directory, enrolled).await?;
        self.conclude_upgrade(audit.as_ref()).await?;
        self.opened.tell_restore_of_shared(audit.as_ref()).await?;
        let mut pins = HashMap::new();
        let proxy =
            self.open_proxy(config, &config.process, Arc::clone(&audit) as Arc<dyn AuditSink>, &mut pins).await?;
        found(&proxy, config).await?;
        proxy.tell_start().await.map_err(Fault::new)?;
        let _ = (marks.write().await, marks.write_watermark());
        if let Err(error) = members::enrol(self.store.as_ref(), &self.places).await {
            tracing::warn!(%error, "the shared state could not be told of this process; the next start tries again");
        }
        let State { opened, engine, places, .. } = self;
        let keys = (opened.secrets.tls_key, opened.secrets.authority_key, opened.secrets.authority_certificate);
        let names = config.host_names.clone();
        let identity = match identity {
            Some(identity) => identity,
            None => tls_identity(config.tls.certificate_file.as_deref(), names, keys, ambient.as_ref())?,
        };
        write_public(&config.state_dir.join("ca.pem"), identity.authority_pem().as_bytes())?;
        write_public(&config.state_dir.join("tls.csr"), identity.signing_request()?.as_bytes())?;
        let (shutdown, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        let serve = |name, socket, tls, handler| {
            tokio::spawn(server::serve(name, socket, Some(tls), config.connections.clone(), handler, stopped.clone()))
        };
        let readers = config.audit_readers.iter().map(config::Reader::credential).collect::<Result<_, _>>()?;
        let asked = Arc::clone(&proxy);
        // The shared state has a number of its own; the log of one process tells of no revision.
        let generation = move || Revision(asked.governed().generation);
        let source = Arc::clone(&audit) as Arc<dyn AuditSource>;
        let name = format!("xks-proxy/{}", config.process);
        let log = AuditDoor::new(source, name, generation, Arc::clone(&ambient));
        let log = Arc::new((log, proxy.audit_readers(readers)));
        tasks.push(serve("xks", sockets.xks, xks_tls(config, &identity)?, door(&proxy, Door::AwsXks, Some(&log))));
        if let (Some(socket), Some(ca_file)) = (sockets.ekm, &config.tls.ekm_client_ca_file) {
            tasks.push(serve("ekm", socket, ekm_tls(ca_file, &identity)?, door(&proxy, Door::AzureEkm, None)));
        }
        if let Some(socket) = sockets.metrics {
            let health =
                Health::new(ProxyTold { proxy: Arc::clone(&proxy), ground: Ground::new(&audit, conditions) }, metrics);
            tasks.push(health.serve(socket, &config.connections, stopped.clone()));
        }
        let asked = Arc::clone(&proxy);
        let process = config.process.clone();
        let (known, name) = (Arc::clone(&places), process.clone());
        let watermark = Box::new(move || known.watermark(&name));
        let hand_overs = Arc::new(HandOvers::new(&audit, &marks.store(), watermark, &ambient));
        let carry_out = move |request, uid, _| {
            let (asked, hand_overs) = (Arc::clone(&asked), Arc::clone(&hand_overs));
            control::carry_out(asked, hand_overs, process.clone(), request, uid)
        };
        let socket = crate::control::bind(&directory)?;
        tasks.push(tokio::spawn(crate::control::serve(socket, carry_out, stopped.clone())));
        let watcher = watch_state::Watcher {
            proxy: Arc::clone(&proxy),
            engine,
            tried,
            places,
            processes: config.state_dir.join("processes"),
            pins,
            identity,
            ambient: Arc::clone(&ambient),
        };
        tasks.extend(watcher.start(&stopped));
        let marks = tokio::spawn(marks.keep(stopped));
        Ok(Running { proxy, shutdown, tasks, audit, marks, _alive: alive })
    }
}

/// Puts the first operators in.
async fn found(proxy: &Arc<XksProxy>, config: &Config) -> Result<(), Fault> {
    if !proxy.governed().operators.operators.is_empty() {
        return Ok(());
    }
    let Some(quorum) = &config.quorum else {
        return Err(Fault::usage("a new proxy needs operators: [quorum] in the configuration")
            .hint("type: holdfast quorum keygen FILE"));
    };
    proxy.found(quorum).await.map_err(Fault::new)?;
    Ok(())
}

/// A host for one HSM user is this program again.
fn host_command() -> Result<HostCommand, Fault> {
    let program = std::env::current_exe().map_err(Fault::new)?;
    let umask = crate::hardening::umask_before().to_string();
    let arguments = vec!["pkcs11-host".into(), "--umask".into(), umask.into()];
    Ok(HostCommand { program, arguments })
}

/// The suites that AWS asks for (XKS proxy API 1.0.3), and no others.
const XKS_SUITES: &[CipherSuite] = &[
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
];
/// The suites that Azure knows.
const EKM_SUITES: &[CipherSuite] = &[CipherSuite::TLS13_AES_256_GCM_SHA384, CipherSuite::TLS13_AES_128_GCM_SHA256];

fn provider(suites: &[CipherSuite]) -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suites.contains(&suite.suite()));
    Arc::new(provider)
}

fn finish(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    identity: &Arc<TlsIdentity>,
) -> Arc<ServerConfig> {
    let mut config = builder.with_cert_resolver(Arc::clone(identity) as Arc<dyn rustls::server::ResolvesServerCert>);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn xks_tls(config: &Config, identity: &Arc<TlsIdentity>) -> Result<Tls, Fault> {
    let provider = provider(XKS_SUITES);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(Fault::tls)?;
    match &config.tls.client_ca_file {
        None => Ok(Tls::from(finish(builder.with_no_client_auth(), identity))),
        Some(file) => {
            let verifier = ClientVerifier::new(file, &config.tls.client_subjects, &provider)?;
            Ok(Tls::from(finish(builder.with_client_cert_verifier(verifier), identity)))
        }
    }
}

fn ekm_tls(ca_file: &Path, identity: &Arc<TlsIdentity>) -> Result<Tls, Fault> {
    let provider = provider(EKM_SUITES);
    // Which subject is let in is the policy's to say, and may change: see `authenticate_certificate`.
    let verifier = ClientVerifier::new(ca_file, &[], &provider)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(Fault::tls)?
        .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn rustls::server::danger::ClientCertVerifier>);
    Ok(Tls::identifying(finish(builder, identity), Arc::new(move |chain| verifier.identify(chain))))
}

/// One dialect, with the probe that load balancers ask, and with the process's audit log.
fn door(proxy: &Arc<XksProxy>, door: Door, log: Option<&Arc<(AuditDoor, SigningReaders)>>) -> server::Handler {
    let (proxy, log) = (Arc::clone(proxy), log.cloned());
    server::handler(move |request: Request<Incoming>, address| {
        let (proxy, log) = (Arc::clone(&proxy), log.clone());
        async move {
            if request.uri().path() == "/ping" {
                return plain(StatusCode::OK, "text/plain; charset=utf-8", "pong\n").map(AnswerBody::from);
            }
            let certificate = request.extensions().get::<Arc<ClientCertificate>>().cloned();
            let (parts, body) = request.into_parts();
            let peer = Peer { address: Some(address), certificate };
            if let Some(log) = log.filter(|_| AuditDoor::is_at(parts.uri.path())) {
                return proxy.handle_audit(&log.0, &log.1, parts, body, &peer).await.map(AnswerBody::from);
            }
            proxy.handle(door, parts, body, &peer).await.map(AnswerBody::from)
        }
    })
}

/// What the role tells of itself.
struct ProxyTold {
    proxy: Arc<XksProxy>,
    ground: Ground,
}

impl Told for ProxyTold {
    fn ready(&self) -> serde_json::Value {
        let mut told = control::status(&self.proxy);
        told["status"] = if self.proxy.distrusted().is_some() { "degraded" } else { "ready" }.into();
        self.ground.tell(told)
    }

    fn set_gauges(&self) {
        self.ground.set_gauges();
    }
}

impl Running {
    /// Stops listening, lets requests in flight end, and closes the audit log.
    pub(crate) async fn stop(self) {
        let _ = self.shutdown.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
        self.proxy.finish().await;
        close_audit(self.audit, self.marks).await;
    }
}

/// A name for a command: none that a stopped one holds keeps it from its work.
pub(crate) fn take_command_name(config: &Config) -> Result<(&'static str, PathBuf, File), Fault> {
    let mut refused = None;
    for name in COMMANDS {
        let directory = process_dir(&config.state_dir, name);
        instance::create_private_dir(&directory).map_err(|error| Fault::file(&directory, error))?;
        match take_name(&directory, name) {
            Ok(alive) => return Ok((name, directory, alive)),
            Err(fault) => refused = Some(fault),
        }
    }
    Err(refused.unwrap_or_else(|| Fault::unavailable("a command has no name")))
}

/// The audit log of a process. How far each has come lies apart: it changes every second, and the shared state should not.
async fn open_process_log(
    state: &State,
    config: &Config,
    (process, rows): (&str, SharedEngine),
    directory: &Path,
    marked: bool,
) -> Result<(Arc<AuditLog>, AuditMarks), Fault> {
    let Opened { instance, secrets, ambient, .. } = &state.opened;
    let store = SealedStore::open(rows, *instance, &secrets.database_key, Arc::clone(ambient), false).await;
    let store = store.map_err(Fault::new)?;
    let (outbox, notes) = (store.outbox(), store.notes().to_vec());
    let place = LogPlace {
        config: &config.audit,
        process: Some(process),
        directory: directory.join("audit"),
        store: Arc::new(store),
        marked,
        watermark: state.places.watermark(process).map_err(Fault::new)?,
        watermarked: marked,
        outbox,
        notes,
        accepted: Vec::new(),
        restored: None,
    };
    state.opened.open_log(place).await
}

/// An audit log of nothing but what a command does by itself: see `holdfast xks kill --config`.
pub(crate) async fn open_command_audit(
    state: &State,
    config: &Config,
    process: &str,
    directory: &Path,
) -> Result<(Arc<AuditLog>, AuditMarks), Fault> {
    let enrolled = members::enrolled(state.store.as_ref()).await.map_err(Fault::new)?;
    let enrolled = enrolled.iter().any(|name| name == process);
    let rows = state.places.process_rows(process).map_err(Fault::new)?;
    let (audit, mut marks) = open_process_log(state, config, (process, rows), directory, enrolled).await?;
    let _ = (marks.write().await, marks.write_watermark());
    Ok((audit, marks))
}

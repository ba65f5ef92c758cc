//! Who is wired to whom: from a checked configuration to a running instance.

use std::{collections::HashMap, sync::Arc, time::Duration};

use holdfast_core::{AuditSink, AuditSource, Sealer};
use holdfast_crypto::kdf;
use holdfast_enclave::InstanceSecrets;
use holdfast_engine::{Partition, PartitionPolicy};
use holdfast_managed_hsm::{Authenticator, Founding, HostNames, IssuerConfig, ManagedHsm, Seams};
use holdfast_service::AuditDoor;
use holdfast_store::audit::AuditLog;
use http::Request;
use hyper::body::Incoming;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    backup::live::Asked,
    config::{Config, EmbeddedIssuer, parts::read_secret},
    control,
    fault::Fault,
    health::{Ground, Health, Told},
    history::History,
    hsm::SoftHsm,
    instance::{AuditMarks, Hangup, Opened, close_audit, listen, listen_some, signalled, tls_identity, write_public},
    issuer::{self, Issuer},
    server::{
        self, AnswerBody, ConnectionLimits,
        certificates::{self, Certified},
        client::{HttpsClient, IssuerFetch},
        tls::TlsIdentity,
    },
};

const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(30);

/// A running instance.
pub(crate) struct Running {
    shutdown: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    role: Arc<ManagedHsm>,
    audit: Arc<AuditLog>,
    marks: JoinHandle<AuditMarks>,
    identity: Arc<TlsIdentity>,
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

impl Opened {
    /// Builds every part, wires them, and serves.
    pub(crate) async fn run(
        mut self,
        config: &Config,
        sockets: Sockets,
        founding: Founding,
        issuer_clients: HashMap<String, issuer::Client>,
        metrics: PrometheusHandle,
    ) -> Result<Running, Fault> {
        let records = self.open_records(&config.audit).await?;
        let History { store, condition, copies, audit, marks } =
            self.open_history(&config.audit, records, None).await?;
        let backups = self.backups("managed-hsm", (copies, None), &store, &audit);
        let Self { secrets, silicon, ambient, data_dir, .. } = self;
        let InstanceSecrets { instance, masking_key, tls_key, authority_key, authority_certificate, .. } = secrets;
        let names = config.listen.host_names.iter().map(|name| name.host().to_owned()).collect();
        let keys = (tls_key, authority_key, authority_certificate);
        let identity = tls_identity(config.tls_certificate_file.as_deref(), names, keys, ambient.as_ref())?;
        write_public(&data_dir.join("ca.pem"), identity.authority_pem().as_bytes())?;
        write_public(&data_dir.join("tls.csr"), identity.signing_request()?.as_bytes())?;
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
        let embedded = config.embedded_issuer.as_ref().zip(sockets.issuer);
        if let Some((embedded, _)) = &embedded {
            issuers.push(IssuerConfig {
                url: issuer::issuer_url(&embedded.url, &embedded.tenant),
                aliases: Vec::new(),
                tenant: embedded.tenant.clone(),
            });
        }
        let embedded_url = embedded.as_ref().map(|(embedded, _)| embedded.url.clone());
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
        let mut issuer = None;
        if let Some((embedded, socket)) = embedded {
            let EmbeddedIssuer { url, tenant, .. } = embedded;
            let (url, tenant, ambient) = (url.clone(), tenant.clone(), Arc::clone(&ambient));
            let opened = Issuer::open(url, tenant, issuer_clients, Arc::clone(&store), ambient).await?;
            let opened = issuer.insert(Arc::new(opened));
            let (tls, limits) = (identity.server_config()?, config.connections.behind_nobody());
            servers.push(serve_issuer(opened, socket, tls, limits, stopped.clone()));
        }
        let told = HsmTold {
            silicon: silicon.kind(),
            memory_isolated: silicon.memory_isolated(),
            role: Arc::clone(&role),
            ground: Ground::new(&audit, [condition]),
        };
        let health = Health::new(told, metrics);
        let on_main = sockets.metrics.is_none();
        if let Some(socket) = sockets.metrics {
            servers.push(health.serve(socket, &config.connections, stopped.clone()));
        }
        let asked = Arc::clone(&store);
        let source = Arc::clone(&audit) as Arc<dyn AuditSource>;
        let log = AuditDoor::new(source, "managed-hsm", move || asked.revision(), Arc::clone(&ambient));
        let handler = hsm_handler(Arc::clone(&role), log, on_main.then_some(health));
        let tls = Some(identity.server_config()?);
        servers.push(tokio::spawn(server::serve(
            "hsm",
            sockets.hsm,
            tls,
            config.connections.clone(),
            handler,
            stopped.clone(),
        )));
        let carry_out = move |asked: Asked, uid, lines| Arc::clone(&backups).carry_out(asked, uid, lines);
        servers.push(tokio::spawn(control::serve(control::bind(&data_dir)?, carry_out, stopped.clone())));
        let shown = Arc::clone(&identity) as Arc<dyn Certified>;
        servers.push(tokio::spawn(certificates::keep(shown, "managed-hsm", Arc::clone(&ambient), stopped.clone())));
        servers.push(tokio::spawn(maintain(Arc::clone(&role), issuer, stopped.clone())));
        let marks = tokio::spawn(marks.keep(stopped));
        Ok(Running { shutdown, servers, role, audit, marks, identity })
    }
}

fn serve_issuer(
    issuer: &Arc<Issuer>,
    socket: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    limits: ConnectionLimits,
    stopped: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let issuer = Arc::clone(issuer);
    let handler = server::handler(move |request, _| {
        let issuer = Arc::clone(&issuer);
        async move { issuer.handle(request).await }
    });
    tokio::spawn(server::serve("issuer", socket, Some(tls), limits, handler, stopped))
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
        let secret = read_secret(&client.secret_file)?;
        let secret_sha256 = kdf::sha256(&[secret.expose()]);
        let object_id = client.object_id.clone();
        clients.insert(client.client_id.to_ascii_lowercase(), issuer::Client { object_id, secret_sha256 });
    }
    Ok(clients)
}

/// What the role tells of itself.
struct HsmTold {
    silicon: &'static str,
    memory_isolated: bool,
    role: Arc<ManagedHsm>,
    ground: Ground,
}

impl Told for HsmTold {
    fn ready(&self) -> Value {
        let ready = json!({
            "status": "ready",
            "role": "managed-hsm",
            "version": env!("CARGO_PKG_VERSION"),
            "silicon": self.silicon,
            "memory_isolated": self.memory_isolated,
            "keys": self.role.key_count(),
        });
        self.ground.tell(ready)
    }

    fn set_gauges(&self) {
        self.ground.set_gauges();
        gauge!("holdfast_hsm_keys").set(self.role.key_count() as f64);
    }
}

/// `health`: answered here too, if not on a port of its own.
fn hsm_handler(role: Arc<ManagedHsm>, log: AuditDoor, health: Option<Health>) -> server::Handler {
    let log = Arc::new(log);
    server::handler(move |request: Request<Incoming>, peer| {
        let (role, log) = (Arc::clone(&role), Arc::clone(&log));
        let answer = health.as_ref().and_then(|health| health.answer(request.uri().path()));
        async move {
            if let Some(answer) = answer {
                return answer.map(AnswerBody::from);
            }
            let (parts, body) = request.into_parts();
            if AuditDoor::is_at(parts.uri.path()) {
                return role.handle_audit(&log, parts, body, Some(peer)).await.map(AnswerBody::from);
            }
            role.handle(parts, body, Some(peer)).await.map(AnswerBody::from)
        }
    })
}

async fn maintain(role: Arc<ManagedHsm>, issuer: Option<Arc<Issuer>>, mut stopped: watch::Receiver<bool>) {
    while tokio::time::timeout(MAINTENANCE_INTERVAL, stopped.wait_for(|stop| *stop)).await.is_err() {
        role.maintain().await;
        if let Some(issuer) = &issuer {
            issuer.maintain().await;
        }
    }
}

impl Running {
    /// The certificate authority that clients of this process trust.
    pub(crate) fn authority_pem(&self) -> String {
        self.identity.authority_pem()
    }

    /// The identity that this instance shows, for another role in the same process.
    pub(crate) fn identity(&self) -> Arc<TlsIdentity> {
        Arc::clone(&self.identity)
    }

    /// TLS with this instance's identity, for another role in the same process.
    pub(crate) fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Fault> {
        self.identity.server_config()
    }

    /// Turns true when it is time to stop.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.shutdown.subscribe()
    }

    /// Stops listening, lets requests in flight end, and closes the audit log.
    pub(crate) async fn stop(self) {
        let _ = self.shutdown.send(true);
        for server in self.servers {
            let _ = server.await;
        }
        self.role.finish().await;
        close_audit(self.audit, self.marks).await;
        tracing::info!("stopped");
    }

    /// Serves until SIGINT or SIGTERM.
    pub(crate) async fn until_stopped(self, hangup: Hangup) -> Result<(), Fault> {
        signalled(hangup).await?;
        tracing::info!("stopping");
        self.stop().await;
        Ok(())
    }
}

//! The kms role, wired: partition, records, audit log, listeners, admin socket, and what goes on in the background.

pub(crate) mod admin;
pub(crate) mod config;

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use holdfast_core::{AuditSink, AuditSource, KekError};
use holdfast_crypto::Rsa1_5Policy;
use holdfast_engine::{Partition, PartitionPolicy};
use holdfast_kms::{KekMaker, Kms, KmsConfig, Seams};
use holdfast_managed_hsm::KekClient;
use holdfast_service::{AuditDoor, SigningReaders};
use holdfast_store::audit::AuditLog;
use http::Request;
use hyper::body::Incoming;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    config::{Audit, parts::RawAuditPull},
    control,
    fault::Fault,
    founding::MayFound,
    health::{Ground, Health, Told},
    history::History,
    hsm::{HsmThreads, SoftHsm},
    instance::{self, AuditMarks, Opened, close_audit, tls_identity, write_public},
    server::{self, AnswerBody, ConnectionLimits, certificates, tls::TlsIdentity},
};

const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(30);

/// All that a key management service is started with.
pub(crate) struct KmsSetup {
    pub role: KmsConfig,
    /// ARNs of those who may take copies of the audit log.
    pub audit_readers: Vec<String>,
    pub audit: Audit,
    pub connections: ConnectionLimits,
    pub threads: HsmThreads,
    pub socket: TcpListener,
    pub metrics_socket: Option<TcpListener>,
    pub host_names: Vec<String>,
    pub certificate_file: Option<std::path::PathBuf>,
    /// Another role's, if that is to be shown.
    pub identity: Option<Arc<TlsIdentity>>,
    pub metrics: PrometheusHandle,
}

/// A running service.
pub(crate) struct Running {
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    role: Arc<Kms>,
    audit: Arc<AuditLog>,
    marks: JoinHandle<AuditMarks>,
}

/// Makes RSA keys in a Managed HSM.
pub(crate) struct HsmMaker(pub Arc<KekClient>);

#[async_trait]
impl KekMaker for HsmMaker {
    async fn ensure_kek(&self, kek_url: &str) -> Result<(), KekError> {
        self.0.ensure_rsa_key(kek_url, 2048).await
    }
}

/// Opens the instance in `data_dir`, or founds one.
pub(crate) fn open(data_dir: &Path, silicon_root: &Path, founding: MayFound) -> Result<Opened, Fault> {
    instance::open(data_dir, silicon_root, founding, &[])
}

/// Builds every part, wires them, and serves.
pub(crate) async fn run(mut opened: Opened, setup: KmsSetup) -> Result<Running, Fault> {
    let records = opened.open_records(&setup.audit).await?;
    let History { store, condition, copies, audit, marks } = opened.open_history(&setup.audit, records, None).await?;
    let backups = opened.backups("kms", (copies, None), &store, &audit);
    let Opened { instance, secrets, ambient, data_dir, .. } = opened;
    let policy = PartitionPolicy { rsa1_5: Rsa1_5Policy::Refuse };
    let partition = Partition::new(instance, &secrets.masking_key, policy).map_err(Fault::new)?;
    let hsm = Arc::new(SoftHsm::new(partition, Arc::clone(&ambient), setup.threads).map_err(Fault::new)?);
    let seams = Seams {
        hsm: Arc::clone(&hsm) as _,
        admin: hsm,
        store: Arc::clone(&store),
        audit: Arc::clone(&audit) as Arc<dyn AuditSink>,
        ambient: Arc::clone(&ambient),
    };
    let role = Arc::new(Kms::open(seams, setup.role).await.map_err(Fault::new)?);
    let keys = (secrets.tls_key, secrets.authority_key, secrets.authority_certificate);
    let identity = match setup.identity {
        Some(identity) => identity,
        None => tls_identity(setup.certificate_file.as_deref(), setup.host_names, keys, ambient.as_ref())?,
    };
    write_public(&data_dir.join("ca.pem"), identity.authority_pem().as_bytes())?;
    write_public(&data_dir.join("tls.csr"), identity.signing_request()?.as_bytes())?;
    let (shutdown, stopped) = watch::channel(false);
    let mut tasks = Vec::new();
    let health =
        Health::new(KmsTold { role: Arc::clone(&role), ground: Ground::new(&audit, [condition]) }, setup.metrics);
    let on_main = setup.metrics_socket.is_none();
    if let Some(socket) = setup.metrics_socket {
        tasks.push(health.serve(socket, &setup.connections, stopped.clone()));
    }
    let tls = Some(identity.server_config()?);
    let readers = role.audit_readers(&setup.audit_readers);
    RawAuditPull::refuse_nobody(&readers)?;
    let (asked, source) = (Arc::clone(&store), Arc::clone(&audit) as Arc<dyn AuditSource>);
    let log = AuditDoor::new(source, "kms", move || asked.revision(), Arc::clone(&ambient));
    let handler = door(Arc::clone(&role), (log, readers), on_main.then_some(health));
    tasks.push(tokio::spawn(server::serve("kms", setup.socket, tls, setup.connections, handler, stopped.clone())));
    let asked = Arc::clone(&role);
    let carry_out =
        move |request, uid, lines| admin::carry_out(Arc::clone(&asked), Arc::clone(&backups), request, uid, lines);
    tasks.push(tokio::spawn(control::serve(control::bind(&data_dir)?, carry_out, stopped.clone())));
    tasks.push(tokio::spawn(certificates::keep(identity, "kms", ambient, stopped.clone())));
    tasks.push(tokio::spawn(maintain(Arc::clone(&role), stopped.clone())));
    let marks = tokio::spawn(marks.keep(stopped));
    Ok(Running { shutdown, tasks, role, audit, marks })
}

/// What the role tells of itself.
struct KmsTold {
    role: Arc<Kms>,
    ground: Ground,
}

impl Told for KmsTold {
    fn ready(&self) -> Value {
        let stores: Map<_, _> = self.role.store_states().into_iter().map(|(id, state)| (id, state.into())).collect();
        let ready = json!({
            "status": "ready",
            "role": "kms",
            "version": env!("CARGO_PKG_VERSION"),
            "keys": self.role.key_count(),
            "custom_key_stores": stores,
        });
        self.ground.tell(ready)
    }

    fn set_gauges(&self) {
        self.ground.set_gauges();
        gauge!("holdfast_kms_keys").set(self.role.key_count() as f64);
    }
}

/// `health`: answered here too, if not on a port of its own.
fn door(role: Arc<Kms>, log: (AuditDoor, SigningReaders), health: Option<Health>) -> server::Handler {
    let log = Arc::new(log);
    server::handler(move |request: Request<Incoming>, address| {
        let (role, log) = (Arc::clone(&role), Arc::clone(&log));
        let answer = health.as_ref().and_then(|health| health.answer(request.uri().path()));
        async move {
            if let Some(answer) = answer {
                return answer.map(AnswerBody::from);
            }
            let (parts, body) = request.into_parts();
            if AuditDoor::is_at(parts.uri.path()) {
                return role.handle_audit(&log.0, &log.1, parts, body, Some(address)).await.map(AnswerBody::from);
            }
            role.handle(parts, body, Some(address)).await.map(AnswerBody::from)
        }
    })
}

async fn maintain(role: Arc<Kms>, mut stopped: watch::Receiver<bool>) {
    loop {
        role.maintain().await;
        if tokio::time::timeout(MAINTENANCE_INTERVAL, stopped.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
    }
}

impl Running {
    /// Stops listening, lets requests in flight end, and closes the audit log.
    pub(crate) async fn stop(self) {
        let _ = self.shutdown.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
        self.role.finish().await;
        close_audit(self.audit, self.marks).await;
    }
}

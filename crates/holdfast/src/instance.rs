//! What every role that keeps secrets stands on: sealed secrets, TLS identity, audit log; and the life of the process.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::{Ambient, PartitionId, Store};
use holdfast_crypto::{SecretBytes, kdf};
use holdfast_enclave::{InstanceError, InstanceSecrets, SiliconError, SoftwareSilicon};
use holdfast_store::{audit::AuditLog, write_regular};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    ambient::OsAmbient,
    descriptors,
    fault::Fault,
    founding::{Ground, MayFound, SEALED},
    history::{self, Watermark},
    notify, private,
    server::{
        certificates,
        tls::{self, TlsIdentity},
    },
    telemetry,
};

const AUDIT_MARK_INTERVAL: Duration = Duration::from_secs(1);

/// An instance whose secrets are open, before anything listens.
pub(crate) struct Opened {
    pub instance: PartitionId,
    pub secrets: InstanceSecrets,
    pub silicon: SoftwareSilicon,
    pub ambient: Arc<dyn Ambient>,
    pub data_dir: PathBuf,
}

/// Opens the instance in `data_dir`, or founds one there, as far as `founding` goes. `excused`: what may lie there beside no secrets.
pub(crate) fn open(
    data_dir: &Path,
    silicon_root: &Path,
    founding: MayFound,
    excused: &[&str],
) -> Result<Opened, Fault> {
    holdfast_crypto::selftest::run().map_err(Fault::new)?;
    let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
    crate::backup::refuse_unfinished(data_dir)?;
    let state = data_dir.join(SEALED);
    if founding == MayFound::Never && !state.exists() {
        return Err(Fault::usage(format!("there is no instance in {}", data_dir.display()))
            .hint("a service founds one at its first start; is the volume mounted?"));
    }
    create_private_dir(data_dir).map_err(|error| Fault::file(data_dir, error))?;
    if state.exists() {
        private::close(data_dir);
    }
    let ground = Ground::new(data_dir, silicon_root, founding)?;
    let (secrets, silicon) = if state.exists() {
        ground.judge_word()?;
        open_sealed(&state, data_dir, silicon_root, &ambient)?
    } else {
        // Two that start at once must not found two instances.
        let lock = holdfast_enclave::lock(data_dir).map_err(|error| Fault::file(data_dir, error))?;
        let opened = if state.exists() {
            open_sealed(&state, data_dir, silicon_root, &ambient)?
        } else {
            ground.judge_pieces(excused)?;
            let founded = found(&state, data_dir, silicon_root, &ground, &ambient)?;
            // It may have been made by somebody else, open to all.
            private::close(data_dir);
            founded
        };
        drop(lock);
        opened
    };
    // Last: what is known has been there.
    ground.remember(secrets.instance, &silicon, ambient.as_ref());
    Ok(Opened { instance: secrets.instance, secrets, silicon, ambient, data_dir: data_dir.into() })
}

fn open_sealed(
    state: &Path,
    data_dir: &Path,
    silicon_root: &Path,
    ambient: &Arc<dyn Ambient>,
) -> Result<(InstanceSecrets, SoftwareSilicon), Fault> {
    let silicon = open_silicon(silicon_root, data_dir, true, ambient)?;
    let secrets = InstanceSecrets::open(state, &silicon).map_err(|error| explain(&error, silicon_root))?;
    let gone = || Fault::unavailable(format!("{} was taken away this moment", state.display()));
    Ok((secrets.ok_or_else(gone)?, silicon))
}

/// The caller has locked the directory.
fn found(
    state: &Path,
    data_dir: &Path,
    silicon_root: &Path,
    ground: &Ground<'_>,
    ambient: &Arc<dyn Ambient>,
) -> Result<(InstanceSecrets, SoftwareSilicon), Fault> {
    let silicon = open_silicon(silicon_root, data_dir, false, ambient)?;
    ground.judge_founding(&silicon)?;
    let identity = tls::found(ambient.as_ref())?;
    let mut secrets = InstanceSecrets::generate(
        ambient.as_ref(),
        identity.tls_key,
        identity.authority_key,
        identity.authority_certificate,
    )
    .map_err(Fault::new)?;
    secrets.floors = history::floors_of_birth();
    secrets.seal(state, &silicon, ambient.as_ref()).map_err(Fault::new)?;
    tracing::info!(instance = %secrets.instance, data_dir = %data_dir.display(), "a new instance was founded");
    Ok((secrets, silicon))
}

pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
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

impl Opened {
    /// An identifier that belongs to this instance for ever: for the tenant and clients of `dev`.
    pub(crate) fn derived_guid(&self, what: &str) -> String {
        let digest = kdf::sha256(&[b"holdfast dev identity v1", self.instance.as_bytes(), what.as_bytes()]);
        let hex = holdfast_wire::hex::hex(&digest[..16]);
        // Marked as a version 8 UUID: made by our own rule (RFC 9562, section 5.8).
        format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
    }
}

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Fault> {
    TcpListener::bind(address).await.map_err(|error| {
        Fault::unavailable(format!("{address}: {error}")).hint("is another instance running? choose another port")
    })
}

pub(crate) async fn listen_some(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Fault> {
    match address {
        Some(address) => Ok(Some(listen(address).await?)),
        None => Ok(None),
    }
}

pub(crate) fn tls_identity(
    certificate_file: Option<&Path>,
    names: Vec<String>,
    keys: (SecretBytes, SecretBytes, Vec<u8>),
    ambient: &dyn Ambient,
) -> Result<Arc<TlsIdentity>, Fault> {
    let (tls_key, authority_key, authority_certificate) = keys;
    TlsIdentity::new(tls_key, authority_key, authority_certificate, names, certificate_file, ambient.now())
}

pub(crate) fn write_public(path: &Path, content: &[u8]) -> Result<(), Fault> {
    write_regular(path, content).map_err(|error| Fault::file(path, error))
}

/// Remembers in the store how far the audit log has come, so that a log cut short shows at the next start.
pub(crate) struct AuditMarks {
    store: Arc<dyn Store>,
    audit: Arc<AuditLog>,
    version: u64,
    written: u64,
    /// Whether it was said that they cannot be written.
    complained: bool,
    watermark: Watermark,
}

impl AuditMarks {
    /// `version`: of the mark that is there; 0 if there is none.
    pub(crate) fn new(store: Arc<dyn Store>, audit: Arc<AuditLog>, version: u64, watermark: Watermark) -> Self {
        Self { store, audit, version, written: 0, complained: false, watermark }
    }

    /// What has the mark.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Whether what is marked is remembered a second time, apart from the store.
    pub(crate) fn write_watermark(&mut self) -> bool {
        self.watermark.write(&self.audit.latest())
    }

    pub(crate) async fn keep(mut self, mut stopped: watch::Receiver<bool>) -> Self {
        while tokio::time::timeout(AUDIT_MARK_INTERVAL, stopped.wait_for(|stop| *stop)).await.is_err() {
            let _ = self.write().await;
            if self.watermark.is_due() {
                let _ = self.write_watermark();
            }
        }
        self
    }

    /// Whether the newest line is marked.
    pub(crate) async fn write(&mut self) -> bool {
        let latest = self.audit.latest();
        gauge!("holdfast_audit_lines").set(latest.seq as f64);
        if latest.seq == self.written {
            return true;
        }
        let write = history::mark(&latest, self.version);
        match self.store.keep(vec![write]).await {
            Ok(()) => {
                (self.version, self.written) = (self.version + 1, latest.seq);
                self.complained = false;
                true
            }
            Err(error) => {
                // Said once, and not each second.
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(%error, "the audit log's progress could not be remembered");
                }
                // Whether it was written may not be known.
                if let Ok(mark) = history::Mark::read(self.store.as_ref()).await {
                    self.version = mark.version;
                }
                false
            }
        }
    }
}

/// Closes the log once nothing writes to it any more, and remembers its end.
pub(crate) async fn close_audit(audit: Arc<AuditLog>, marks: JoinHandle<AuditMarks>) {
    let _ = tokio::task::spawn_blocking(move || audit.close()).await;
    if let Ok(mut marks) = marks.await {
        let _ = marks.write().await;
        let _ = marks.write_watermark();
    }
}

pub(crate) fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(crate) fn not_found() -> Response<Full<Bytes>> {
    plain(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n")
}

/// What SIGHUP does.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Hangup {
    /// It ends a program of a terminal that is closed.
    Ends,
    /// A service looks at its certificates, as it does from time to time.
    Looks,
}

/// Tells the service manager that everything serves, waits for SIGINT or SIGTERM, and tells that, too.
pub(crate) async fn signalled(hangup: Hangup) -> Result<(), Fault> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Fault::new)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(Fault::new)?;
    notify::tell(notify::READY);
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
            _ = hung_up.recv() => {
                if hangup == Hangup::Ends {
                    break;
                }
                tracing::info!("SIGHUP: certificates are looked at now; what else the configuration says needs a restart");
                certificates::look_now();
            }
        }
    }
    notify::tell(notify::STOPPING);
    Ok(())
}

/// Metrics and logs, once for the process. SIGHUP ends it no more, also before it serves; that needs a runtime.
pub(crate) fn start_process(json: bool) -> Result<PrometheusHandle, Fault> {
    telemetry::start_logging(json);
    crate::hardening::apply();
    descriptors::raise();
    drop(signal(SignalKind::hangup()).map_err(Fault::new)?);
    telemetry::start_metrics()
}

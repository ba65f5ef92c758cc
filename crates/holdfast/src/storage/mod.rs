//! The storage role, wired: instance, audit log, index, blobs, KEKs, listener, admin socket, and what goes on in the background.

pub(crate) mod admin;
pub(crate) mod config;
#[cfg(test)]
mod flips;
pub(crate) mod keks;
mod room;

use std::{path::Path, sync::Arc, time::Duration};

use holdfast_core::{Ambient, AuditSink, AuditSource, BlobStore, KekService, StoreError, Trouble};
use holdfast_service::AuditDoor;
use holdfast_storage::{Orphans, OwnerError, Seams, Storage, StorageConfig};
use holdfast_store::{CloudBlobs, Condition, EmbeddedIndex, FileBlobs, IndexOpening, IndexOwner, audit::AuditLog};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use room::DiskRoom;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    config::{Audit, parts::RawAuditPull},
    control,
    fault::Fault,
    founding::{self, LOG, MayFound, SEALED},
    health::{Ground, Health, Told},
    history::{self, History, OwnRows, STORAGE_INDEX, STORAGE_INDEX_ROWS, STORAGE_INDEX_VERSION, WATERMARK},
    instance::{self, AuditMarks, Opened, close_audit},
    server::{self, AnswerBody, ConnectionLimits},
};

/// Garbage that could not be deleted is tried again.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60);
/// Between two passes: what comes together is collected together.
const COLLECT_PAUSE: Duration = Duration::from_millis(50);
/// Orphans and answers of long ago are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// Where blobs lie, if not in files.
pub(crate) struct CloudBlobsConfig {
    pub url: String,
    /// Options of the crate `object_store`, secrets among them: no `Debug`.
    pub options: Vec<(String, String)>,
}

/// All that a storage service is started with.
pub(crate) struct StorageSetup {
    pub audit: Audit,
    pub role: StorageConfig,
    pub keys: Vec<holdfast_storage::AccessKey>,
    /// Principals who may take copies of the audit log.
    pub audit_readers: Vec<String>,
    pub keks: Arc<dyn KekService>,
    /// None: files in the data directory.
    pub cloud_blobs: Option<CloudBlobsConfig>,
    pub kek_poll: Duration,
    /// Bytes of the disk that new data does not get; None: by the size of the disk.
    pub disk_reserve: Option<u64>,
    pub socket: TcpListener,
    pub metrics_socket: Option<TcpListener>,
    /// None: plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    pub connections: ConnectionLimits,
    pub metrics: PrometheusHandle,
}

/// An instance, and whether it was founded for an index that was there before.
pub(crate) struct StorageInstance {
    opened: Opened,
    adopts: bool,
}

const INDEX: &str = "index.redb";
const BLOBS: &str = "blobs";
/// In the directory of blobs.
const BLOBS_MARK: &str = "blobs/owner";

/// Opens the instance in `data_dir`, or founds one there; also for an index from before storage services had instances, once, or, if `adopt_blobs`, for
/// blobs without a mark. An index that belongs to an instance opens with that one alone.
pub(crate) fn open(
    data_dir: &Path,
    silicon_root: &Path,
    founding: MayFound,
    adopt_blobs: bool,
) -> Result<StorageInstance, Fault> {
    let path = data_dir.join(INDEX);
    let owner = IndexOwner::of(&path).map_err(|error| {
        Fault::new(format!("{}: {error}", path.display())).hint("does another process use this data directory?")
    })?;
    let state = data_dir.join(SEALED);
    let founds = !state.exists();
    if let (IndexOwner::Instance(id), true) = (owner, founds) {
        return Err(founding::missing(&state, &format!("{INDEX} is there, and belongs to instance {id}")));
    }
    let unmarked = !data_dir.join(BLOBS_MARK).exists();
    let excused: &[&str] = match owner {
        IndexOwner::Nobody if unmarked => &[INDEX, BLOBS],
        IndexOwner::Missing if unmarked && adopt_blobs => &[BLOBS],
        IndexOwner::Nobody => &[INDEX],
        IndexOwner::Instance(_) | IndexOwner::Missing => &[],
    };
    let opened = instance::open(data_dir, silicon_root, founding, excused)?;
    match owner {
        IndexOwner::Instance(id) if id != opened.instance => {
            let why =
                format!("{} is of instance {}, but {INDEX} belongs to instance {id}", state.display(), opened.instance);
            Err(Fault::new(why).hint("restore the whole data directory from the same moment"))
        }
        IndexOwner::Instance(_) | IndexOwner::Missing => Ok(StorageInstance { opened, adopts: false }),
        IndexOwner::Nobody => {
            tracing::info!(instance = %opened.instance, index = %path.display(), "the index of an earlier version is taken over");
            Ok(StorageInstance { opened, adopts: true })
        }
    }
}

fn open_index(opened: &Opened, adopts: bool, audit: &Audit) -> Result<EmbeddedIndex, Fault> {
    let path = opened.data_dir.join(INDEX);
    let known = history::in_force(&opened.secrets.floors, STORAGE_INDEX, STORAGE_INDEX_ROWS);
    opened.judge_missing(INDEX, &[WATERMARK, LOG, BLOBS_MARK], known, audit)?;
    let founding = adopts.then(|| holdfast_storage::founding_event(opened.ambient.now(), opened.instance));
    let opening = IndexOpening {
        instance: opened.instance,
        database_key: &opened.secrets.database_key,
        ambient: Arc::clone(&opened.ambient),
        sets: holdfast_storage::SETS,
        founding: founding.as_ref(),
        upgraded: &|rows| holdfast_storage::upgraded_event(opened.ambient.now(), rows),
        in_force: known,
        counted: history::in_force(&opened.secrets.floors, STORAGE_INDEX, STORAGE_INDEX_VERSION),
        accept_loss: audit.accept_loss,
    };
    EmbeddedIndex::open(&path, opening).map_err(|error| {
        let fault = Fault::new(format!("{}: {error}", path.display()));
        match error {
            StoreError::NotWhole { .. } | StoreError::Damaged | StoreError::Disordered => fault,
            _ => fault.hint("does another process use this data directory, or was the file put here from elsewhere?"),
        }
    })
}

/// A running service.
pub(crate) struct Running {
    tasks: Vec<JoinHandle<()>>,
    role: Arc<Storage>,
    audit: Arc<AuditLog>,
    marks: JoinHandle<AuditMarks>,
}

impl Running {
    /// Waits, once it was told to stop, until requests in flight have ended, and closes the audit log.
    pub(crate) async fn ended(self) {
        for task in self.tasks {
            let _ = task.await;
        }
        self.role.settle().await;
        close_audit(self.audit, self.marks).await;
    }
}

/// Builds every part and serves until `stopped`.
pub(crate) async fn start(
    instance: StorageInstance,
    setup: StorageSetup,
    stopped: watch::Receiver<bool>,
) -> Result<Running, Fault> {
    let StorageInstance { mut opened, adopts } = instance;
    // First of all whether these secrets are of this moment: what is upgraded, and what is not taken any more, is said there.
    let records = opened.open_records(&setup.audit).await?;
    let index = Arc::new(open_index(&opened, adopts, &setup.audit)?);
    let (ambient, data_dir) = (Arc::clone(&opened.ambient), opened.data_dir.clone());
    let data_dir = data_dir.as_path();
    let own = OwnRows {
        index: Arc::clone(&index),
        accepted: index.notes().to_vec(),
        floor: (STORAGE_INDEX, STORAGE_INDEX_VERSION),
    };
    let of_index = index.condition();
    let History { store: records, condition, copies, audit, marks } =
        opened.open_history(&setup.audit, records, Some(own)).await?;
    let backups = opened.backups("storage", (copies, Some(index.copies())), &records, &audit);
    index.keep_accepted().await.map_err(Fault::new)?;
    let mut written_to = vec![data_dir.to_path_buf()];
    let (blobs, blobs_at): (Arc<dyn BlobStore>, _) = match &setup.cloud_blobs {
        None => {
            let directory = data_dir.join(BLOBS);
            written_to.push(directory.clone());
            (Arc::new(FileBlobs::open(&directory).map_err(Fault::new)?), directory.display().to_string())
        }
        Some(cloud) => (Arc::new(CloudBlobs::open(&cloud.url, &cloud.options).map_err(Fault::new)?), cloud.url.clone()),
    };
    let room = Arc::new(DiskRoom::new(written_to, setup.disk_reserve));
    let seams = Seams {
        keks: setup.keks,
        index,
        blobs,
        instance: opened.instance,
        ambient: Arc::clone(&ambient),
        room,
        audit: Arc::clone(&audit) as Arc<dyn AuditSink>,
    };
    if setup.role.encryption_off {
        tracing::warn!("ENCRYPTION IS OFF: everything is kept in clear");
    }
    if setup.role.adopt_blobs {
        tracing::warn!(
            "adopt_blobs is set: whatever place has no mark is taken for this installation's; take it out of [storage] again"
        );
    }
    let storage = Storage::open(seams, setup.role);
    begin_with_blobs(&storage, &blobs_at).await?;
    let service = Arc::new(holdfast_storage::service(&storage, setup.keys));
    let readers = service.audit_readers(&setup.audit_readers);
    RawAuditPull::refuse_nobody(&readers)?;
    // The log tells what the index has come to: an index is opened with the log of its own moment only.
    let (asked, source) = (Arc::clone(&audit), Arc::clone(&audit) as Arc<dyn AuditSource>);
    let log = AuditDoor::new(source, "storage", move || asked.latest().revision, Arc::clone(&ambient));
    let log = Arc::new((log, readers));
    let health = Health::new(
        StorageTold { role: Arc::clone(&storage), ground: Ground::new(&audit, [condition, of_index.clone()]) },
        setup.metrics,
    );
    let on_main = setup.metrics_socket.is_none();
    let mut tasks = Vec::new();
    if let Some(socket) = setup.metrics_socket {
        tasks.push(health.serve(socket, &setup.connections, stopped.clone()));
    }
    let handler = server::handler(move |request: Request<Incoming>, address| {
        let is_own = !service.names_bucket(request.headers());
        // No bucket has such a name.
        let asks_for_log = is_own && AuditDoor::is_at(request.uri().path());
        let health = (on_main && is_own).then(|| health.answer(request.uri().path())).flatten();
        let ends_connection = ends_connection(&request);
        let request_id = new_request_id(ambient.as_ref());
        let (service, log) = (Arc::clone(&service), Arc::clone(&log));
        async move {
            if let Some(health) = health {
                return health.map(AnswerBody::from);
            }
            if asks_for_log {
                return service.handle_audit(&log.0, &log.1, request, Some(address)).await.map(AnswerBody::from);
            }
            let response = service.call(request.map(Into::into), &request_id, Some(address)).await;
            let mut response = response.map(|body| AnswerBody::from(body.boxed_unsync()));
            if ends_connection(response.status()) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    });
    tasks.push(tokio::spawn(server::serve("s3", setup.socket, setup.tls, setup.connections, handler, stopped.clone())));
    let asked = Arc::clone(&storage);
    let carry_out =
        move |request, uid, lines| admin::carry_out(Arc::clone(&asked), Arc::clone(&backups), request, uid, lines);
    tasks.push(tokio::spawn(control::serve(control::bind(data_dir)?, carry_out, stopped.clone())));
    tasks.push(tokio::spawn(follow(Arc::clone(&storage), setup.kek_poll, stopped.clone())));
    tasks.push(tokio::spawn(collect(Arc::clone(&storage), stopped.clone())));
    tasks.push(tokio::spawn(look_at_rows(Arc::clone(&storage), of_index, stopped.clone())));
    let marks = tokio::spawn(marks.keep(stopped));
    Ok(Running { tasks, role: storage, audit, marks })
}

/// True when it is time to stop; false after `wait`.
async fn stops(stopped: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    tokio::time::timeout(wait, stopped.wait_for(|stop| *stop)).await.is_ok()
}

/// Blobs of somebody else are not touched. An object store that is away is looked at when it is back, before anything is written there.
async fn begin_with_blobs(storage: &Storage, blobs_at: &str) -> Result<(), Fault> {
    let error = match storage.begin_with_blobs().await {
        Ok(0) => return Ok(()),
        Ok(unfinished) => {
            tracing::info!(unfinished, "blobs that a crash left unfinished were removed");
            return Ok(());
        }
        Err(error) => error,
    };
    let fault = Fault::new(format!("the blobs in {blobs_at}: {error}"));
    match error {
        OwnerError::Failed(_) => {
            tracing::error!(%error, blobs_at, "it cannot be seen whose the blobs are; nothing is written there before it can");
            Ok(())
        }
        OwnerError::Other { .. } => Err(fault.hint(
            "give each installation a directory or a prefix of its own; a copy of that installation needs its instance.sealed and its silicon, too",
        )),
        OwnerError::Unknown { .. } | OwnerError::Gone { .. } => Err(fault.hint(
            "is it the right directory or prefix, and mounted? If this is to be the place of this installation, set `adopt_blobs = true` in [storage] once",
        )),
    }
}

/// Orphans are set aside, and told of when there are new ones. Gives how many there are.
async fn look_for_orphans(storage: &Storage) -> Result<usize, String> {
    let Orphans { aside, new, deleted } = storage.look_for_orphans().await?;
    if new > 0 {
        tracing::warn!(
            new,
            aside,
            "there are blobs that nothing names; they are kept for 30 days: is the index the newest one?"
        );
    }
    if deleted > 0 {
        tracing::info!(deleted, "blobs were deleted that nothing has named for 30 days");
    }
    Ok(aside)
}

async fn follow(storage: Arc<Storage>, interval: Duration, mut stopped: watch::Receiver<bool>) {
    while !stops(&mut stopped, interval).await {
        storage.follow_rotation().await;
    }
}

/// In the background: reads every row, at the start and whenever the index was opened anew.
async fn look_at_rows(storage: Arc<Storage>, index: Condition, mut stopped: watch::Receiver<bool>) {
    let looks = async {
        storage.look_at_rows("CheckIndexAtStart").await;
        loop {
            index.reopened().await;
            storage.look_at_rows("CheckIndexAfterFailure").await;
        }
    };
    tokio::select! {
        () = looks => {}
        _ = stopped.wait_for(|stop| *stop) => storage.stop_looking(),
    }
}

/// Tells when it begins to fail, and when that is over.
fn told_once(trouble: &Trouble, done: Result<usize, String>, what: &'static str) {
    match done {
        Ok(_) if trouble.ends() => tracing::info!("{what} works again"),
        Err(error) if trouble.begins() => tracing::warn!(error, "{what} fails"),
        Ok(_) | Err(_) => {}
    }
}

async fn collect(storage: Arc<Storage>, mut stopped: watch::Receiver<bool>) {
    let mut swept: Option<tokio::time::Instant> = None;
    let (orphans, answers) = (Trouble::default(), Trouble::default());
    loop {
        storage.collect().await;
        if swept.is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL) {
            swept = Some(tokio::time::Instant::now());
            told_once(&orphans, look_for_orphans(&storage).await, "looking for orphans");
            told_once(&answers, storage.forget_completed().await, "forgetting answers of long ago");
        }
        if stops(&mut stopped, COLLECT_PAUSE).await {
            return;
        }
        tokio::select! {
            () = storage.collectable() => {}
            stop = stops(&mut stopped, COLLECT_INTERVAL) => if stop { return },
        }
    }
}

/// What the role tells of itself.
struct StorageTold {
    role: Arc<Storage>,
    ground: Ground,
}

impl Told for StorageTold {
    fn ready(&self) -> serde_json::Value {
        let (reachable, left) = (self.role.keks_reachable(), self.role.room_left());
        let told = serde_json::json!({
            "status": if reachable && left.has(0) { "ready" } else { "degraded" },
            "role": "storage",
            "version": env!("CARGO_PKG_VERSION"),
            "key_service_reachable": reachable,
            "takes_new_data": left.has(0),
            "disk_free_bytes": left.free,
            "disk_reserve_bytes": left.reserve,
        });
        self.ground.tell(told)
    }

    fn set_gauges(&self) {
        let left = self.role.room_left();
        self.ground.set_gauges();
        gauge!("holdfast_storage_disk_free_bytes").set(left.free as f64);
        gauge!("holdfast_storage_disk_reserve_bytes").set(left.reserve as f64);
    }
}

/// A request may be answered before its body is read, and what is left of it is then in the way of the next one: hyper
/// cuts the connection, and botocore takes an answer for a part of the one before. So the connection ends with such an
/// answer: one to an empty body that waits for "100 Continue", or a refusal of a request that has a body.
fn ends_connection(request: &Request<Incoming>) -> impl Fn(StatusCode) -> bool + use<> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let empty = length.is_none_or(|length| length == "0") && !request.headers().contains_key(header::TRANSFER_ENCODING);
    let waits = request.headers().contains_key(header::EXPECT);
    move |status| if empty { waits } else { !status.is_success() }
}

/// 16 hex digits, as S3's are.
fn new_request_id(ambient: &dyn Ambient) -> String {
    format!("{:016X}", u64::from_be_bytes(ambient.random()))
}

//! The storage role, wired: index, blobs, KEKs, listener, admin socket, and what goes on in the background.

pub(crate) mod admin;
pub(crate) mod config;
pub(crate) mod keks;
mod room;

use std::{path::Path, sync::Arc, time::Duration};

use holdfast_core::{Ambient, BlobStore, KekService};
use holdfast_storage::{Seams, Storage, StorageConfig};
use holdfast_store::{CloudBlobs, EmbeddedIndex, FileBlobs};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use room::DiskRoom;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    control,
    fault::Fault,
    health::{Health, Told},
    server::{self, ConnectionLimits},
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
pub(crate) struct StorageSetup<'a> {
    pub data_dir: &'a Path,
    pub role: StorageConfig,
    pub keys: Vec<holdfast_storage::AccessKey>,
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
    pub ambient: Arc<dyn Ambient>,
    pub metrics: PrometheusHandle,
}

/// Opens the service and serves until `stopped`.
pub(crate) async fn start(
    setup: StorageSetup<'_>,
    stopped: watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, Fault> {
    let data_dir = setup.data_dir;
    std::fs::create_dir_all(data_dir).map_err(|error| Fault::file(data_dir, error))?;
    let index = EmbeddedIndex::open(&data_dir.join("index.redb")).map_err(|error| {
        Fault::new(format!("{}: {error}", data_dir.display())).hint("does another process use this data directory?")
    })?;
    let blobs: Arc<dyn BlobStore> = match &setup.cloud_blobs {
        None => Arc::new(FileBlobs::open(&data_dir.join("blobs")).map_err(Fault::new)?),
        Some(cloud) => Arc::new(CloudBlobs::open(&cloud.url, &cloud.options).map_err(Fault::new)?),
    };
    let ambient = Arc::clone(&setup.ambient);
    let written_to = match &setup.cloud_blobs {
        None => vec![data_dir.to_path_buf(), data_dir.join("blobs")],
        Some(_) => vec![data_dir.to_path_buf()],
    };
    let room = Arc::new(DiskRoom::new(written_to, setup.disk_reserve));
    let seams = Seams { keks: setup.keks, index: Arc::new(index), blobs, ambient: setup.ambient, room };
    if setup.role.encryption_off {
        tracing::warn!("ENCRYPTION IS OFF: everything is kept in clear");
    }
    let storage = Storage::open(seams, setup.role);
    let orphans = storage.collect_orphans(true).await.map_err(Fault::new)?;
    if orphans > 0 {
        tracing::info!(orphans, "blobs left by a crash were deleted");
    }
    let service = Arc::new(holdfast_storage::service(&storage, setup.keys));
    let health = Health::new(StorageTold(Arc::clone(&storage)), setup.metrics);
    let on_main = setup.metrics_socket.is_none();
    let mut tasks = Vec::new();
    if let Some(socket) = setup.metrics_socket {
        tasks.push(health.serve(socket, setup.connections, stopped.clone()));
    }
    let handler = server::streaming_handler(move |request: Request<Incoming>, address| {
        let is_own = on_main && !service.names_bucket(request.headers());
        let health = is_own.then(|| health.answer(request.uri().path())).flatten();
        let ends_connection = ends_connection(&request);
        let request_id = new_request_id(ambient.as_ref());
        let service = Arc::clone(&service);
        async move {
            if let Some(health) = health {
                return health.map(server::full);
            }
            let mut response =
                service.call(request.map(Into::into), &request_id, Some(address)).await.map(|body| body.boxed_unsync());
            if ends_connection(response.status()) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    });
    tasks.push(tokio::spawn(server::serve("s3", setup.socket, setup.tls, setup.connections, handler, stopped.clone())));
    let asked = Arc::clone(&storage);
    let carry_out = move |request, _, progress| admin::carry_out(Arc::clone(&asked), request, progress);
    tasks.push(tokio::spawn(control::serve(control::bind(data_dir)?, carry_out, stopped.clone())));
    tasks.push(tokio::spawn(follow(Arc::clone(&storage), setup.kek_poll, stopped.clone())));
    tasks.push(tokio::spawn(collect(storage, stopped)));
    Ok(tasks)
}

/// True when it is time to stop; false after `wait`.
async fn stops(stopped: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    tokio::time::timeout(wait, stopped.wait_for(|stop| *stop)).await.is_ok()
}

async fn follow(storage: Arc<Storage>, interval: Duration, mut stopped: watch::Receiver<bool>) {
    while !stops(&mut stopped, interval).await {
        storage.follow_rotation().await;
    }
}

async fn collect(storage: Arc<Storage>, mut stopped: watch::Receiver<bool>) {
    let mut swept = tokio::time::Instant::now();
    loop {
        storage.collect().await;
        if swept.elapsed() >= SWEEP_INTERVAL {
            swept = tokio::time::Instant::now();
            if let Err(error) = storage.collect_orphans(false).await {
                tracing::warn!(error, "orphans could not be collected");
            }
            if let Err(error) = storage.forget_completed().await {
                tracing::warn!(error, "answers of long ago could not be forgotten");
            }
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
struct StorageTold(Arc<Storage>);

impl Told for StorageTold {
    fn ready(&self) -> serde_json::Value {
        let (reachable, left) = (self.0.keks_reachable(), self.0.room_left());
        serde_json::json!({
            "status": if reachable && left.has(0) { "ready" } else { "degraded" },
            "role": "storage",
            "version": env!("CARGO_PKG_VERSION"),
            "key_service_reachable": reachable,
            "takes_new_data": left.has(0),
            "disk_free_bytes": left.free,
            "disk_reserve_bytes": left.reserve,
        })
    }

    fn set_gauges(&self) {
        let left = self.0.room_left();
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

//! The admin socket of a running storage service, for the user who runs it.
//!
//! One JSON object a line in, JSON objects a line out; the last has `"done"`.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_crypto::kdf;
use holdfast_storage::{RewrapReport, Storage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

use crate::fault::Fault;

const LINE_BYTES_MAX: u64 = 16 * 1024;

/// What can be asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub(crate) enum AdminRequest {
    /// Which KEK wraps a DEK.
    Envelope { dek: String, object: String },
    /// Drop all unwrapped DEKs.
    Forget,
    /// Move container DEKs to the newest version of their KEK.
    RewrapContainers,
    /// Move the DEKs of objects.
    RewrapObjects { bucket: String, prefix: String },
    /// What depends on each version of each KEK.
    Uses,
}

/// In the data directory: the path of the socket. The socket itself lies elsewhere, so that the directory holds plain files
/// only and can be copied, and because a socket's path has at most 107 bytes.
const PATH_FILE: &str = "admin-socket.path";

fn socket_path(data_dir: &Path) -> io::Result<PathBuf> {
    let whole = data_dir.canonicalize()?;
    let digest = kdf::sha256(&[whole.as_os_str().as_encoded_bytes()]);
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = std::env::temp_dir().join(format!("holdfast-{}", rustix::process::geteuid().as_raw()));
    match fs::DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Nobody else may have made it, to put a socket of his own in the place of ours.
    let metadata = fs::symlink_metadata(&directory)?;
    let ours =
        metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if !ours {
        let why = format!("{} is not a directory of this user's alone", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(directory.join(name).with_extension("sock"))
}

/// Binds the socket. A stale one, left by a crash, is replaced: the index is locked, so nobody else serves it.
pub(crate) fn bind(data_dir: &Path) -> Result<UnixListener, Fault> {
    let bind = || -> io::Result<UnixListener> {
        let path = socket_path(data_dir)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        fs::write(data_dir.join(PATH_FILE), path.as_os_str().as_encoded_bytes())?;
        Ok(listener)
    };
    bind().map_err(|error| Fault::new(format!("the admin socket: {error}")))
}

pub(crate) async fn serve(listener: UnixListener, storage: Arc<Storage>, mut stopped: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        if let Ok((stream, _)) = accepted {
            tokio::spawn(answer(stream, Arc::clone(&storage)));
        }
    }
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf));
    if let Some(path) = path {
        let _ = fs::remove_file(path);
    }
}

async fn answer(mut stream: UnixStream, storage: Arc<Storage>) {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    if BufReader::new(reader.take(LINE_BYTES_MAX)).read_line(&mut line).await.is_err() {
        return;
    }
    let (lines, mut queue) = mpsc::channel(64);
    let work = tokio::spawn(async move {
        let last = match serde_json::from_str(&line) {
            Ok(request) => carry_out(&storage, request, &lines).await,
            Err(error) => json!({"done": false, "error": error.to_string()}),
        };
        let _ = lines.send(last).await;
    });
    while let Some(value) = queue.recv().await {
        // Whoever hangs up stops hearing; the work goes on to its end.
        if writer.write_all(format!("{value}\n").as_bytes()).await.is_err() {
            break;
        }
    }
    let _ = work.await;
}

async fn carry_out(storage: &Arc<Storage>, request: AdminRequest, lines: &mpsc::Sender<Value>) -> Value {
    let progress = |bucket: &str, report: &RewrapReport| {
        // A reader that is slow misses some progress, and nothing else.
        let _ = lines.try_send(json!({"bucket": bucket, "seen": report.seen, "moved": report.moved}));
    };
    let report = |result: Result<RewrapReport, String>| match result {
        Ok(RewrapReport { seen, moved, failed }) => {
            json!({"done": failed.is_empty(), "seen": seen, "moved": moved, "failed": failed})
        }
        Err(error) => json!({"done": false, "error": error}),
    };
    match request {
        AdminRequest::Envelope { dek, object } => {
            let envelope = storage.envelope_of(&dek, &object);
            let envelope = envelope.and_then(|json| serde_json::from_str::<Value>(&json).ok());
            json!({"done": envelope.is_some(), "envelope": envelope})
        }
        AdminRequest::Forget => json!({"done": true, "forgotten": storage.forget()}),
        AdminRequest::RewrapContainers => report(storage.rewrap_containers(progress).await),
        AdminRequest::RewrapObjects { bucket, prefix } => {
            report(storage.rewrap_objects(&bucket, &prefix, progress).await)
        }
        AdminRequest::Uses => match storage.kek_uses() {
            Ok(uses) => {
                let uses: serde_json::Map<_, _> = uses
                    .into_iter()
                    .map(|(url, kek)| (url, json!({"containers": kek.containers, "objects": kek.objects})))
                    .collect();
                json!({"done": true, "uses": uses})
            }
            Err(error) => json!({"done": false, "error": error}),
        },
    }
}

/// Asks the service that serves `data_dir`; `hear` gets each line, the last one is returned.
pub(crate) async fn ask(data_dir: &Path, request: &AdminRequest, mut hear: impl FnMut(&Value)) -> Result<Value, Fault> {
    let path_file = data_dir.join(PATH_FILE);
    let unavailable = |error: io::Error| {
        Fault::unavailable(format!("{}: {error}", data_dir.display()))
            .hint("is the storage service running on this data directory?")
    };
    let path = PathBuf::from(fs::read_to_string(&path_file).map_err(unavailable)?);
    let mut stream = UnixStream::connect(&path).await.map_err(unavailable)?;
    let line = serde_json::to_string(request).map_err(Fault::new)?;
    stream.write_all(format!("{line}\n").as_bytes()).await.map_err(unavailable)?;
    let mut lines = BufReader::new(stream).lines();
    let mut last = None;
    while let Some(line) = lines.next_line().await.map_err(unavailable)? {
        let value: Value = serde_json::from_str(&line).map_err(Fault::new)?;
        if value.get("done").is_some() {
            last = Some(value);
        } else {
            hear(&value);
        }
    }
    let last = last.ok_or_else(|| Fault::unavailable("the storage service stopped before it was done"))?;
    match last.get("error").and_then(Value::as_str) {
        Some(error) => Err(Fault::new(error)),
        None => Ok(last),
    }
}

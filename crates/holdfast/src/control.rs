//! Control sockets: how the user who runs a service asks something of it.
//!
//! One JSON object a line in, JSON objects a line out; the last has `"done"`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::OsStringExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_crypto::{SecretBytes, kdf};
use holdfast_store::{read_regular, write_regular};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{fault::Fault, server::owned::Abandoned};

/// A policy is the longest thing that is sent.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// In the service's directory: the path of the socket. The socket itself lies elsewhere, so that the directory holds plain files
/// only and can be copied, and because a socket's path has at most 107 bytes.
const PATH_FILE: &str = "admin-socket.path";
/// A socket's path is far shorter.
const PATH_BYTES_MAX: u64 = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that requests in flight are given at the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

fn socket_path(directory: &Path) -> io::Result<PathBuf> {
    let whole = directory.canonicalize()?;
    let digest = kdf::sha256(&[whole.as_os_str().as_encoded_bytes()]);
    let name = holdfast_wire::hex::hex(&digest[..8]);
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

/// Binds the socket of the service in `directory`. A stale one, left by a crash, is replaced: the caller holds what makes sure that
/// nobody else serves the directory.
pub(crate) fn bind(directory: &Path) -> Result<UnixListener, Fault> {
    let bind = || -> io::Result<UnixListener> {
        let path = socket_path(directory)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        write_regular(&directory.join(PATH_FILE), path.as_os_str().as_encoded_bytes())?;
        Ok(listener)
    };
    bind().map_err(|error| Fault::new(format!("the admin socket: {error}")))
}

/// Where lines go before the last one.
pub(crate) type Progress = mpsc::Sender<Value>;

/// Serves until `stopped`, then lets requests in flight end. `carry_out` is given the request, the user id at the other end, and where
/// progress goes.
pub(crate) async fn serve<R, F, A>(listener: UnixListener, carry_out: F, mut stopped: watch::Receiver<bool>)
where
    R: DeserializeOwned + Send + 'static,
    F: Fn(R, u32, Progress) -> A + Clone + Send + 'static,
    A: Future<Output = Value> + Send + 'static,
{
    let works = Abandoned::new("admin");
    let mut answers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
            Some(_) = answers.join_next() => continue,
        };
        if let Ok((stream, _)) = accepted {
            answers.spawn(answer(stream, carry_out.clone(), Arc::clone(&works), stopped.clone()));
        }
    }
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf));
    if let Some(path) = path {
        let _ = fs::remove_file(path);
    }
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let _ = timeout_at(deadline, async { while answers.join_next().await.is_some() {} }).await;
    if !works.drain(deadline).await {
        tracing::warn!("some requests to the admin socket did not end in time and were cut off");
    }
}

async fn answer<R, F, A>(
    mut stream: UnixStream,
    carry_out: F,
    works: Arc<Abandoned>,
    mut stopped: watch::Receiver<bool>,
) where
    R: DeserializeOwned + Send + 'static,
    F: Fn(R, u32, Progress) -> A + Send + 'static,
    A: Future<Output = Value> + Send + 'static,
{
    let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(LINE_BYTES_MAX));
    let read = tokio::select! {
        read = reader.read_until(b'\n', &mut line) => read,
        // Nothing was asked yet.
        _ = stopped.wait_for(|stop| *stop) => return,
    };
    if read.is_err() {
        return;
    }
    // A request may hold a secret.
    let line = SecretBytes::take(line);
    let (lines, mut queue) = mpsc::channel(64);
    works.run(async move {
        let last = match serde_json::from_slice(line.expose()) {
            Ok(request) => carry_out(request, uid, lines.clone()).await,
            Err(error) => json!({"done": false, "error": format!("the request, at column {}", error.column())}),
        };
        let _ = lines.send(last).await;
    });
    while let Some(value) = queue.recv().await {
        // Whoever hangs up stops hearing; the work goes on to its end.
        if writer.write_all(format!("{value}\n").as_bytes()).await.is_err() {
            break;
        }
    }
}

/// Asks the service that serves `directory`; `hear` gets each line, the last one is returned.
pub(crate) async fn ask(
    directory: &Path,
    request: &impl Serialize,
    mut hear: impl FnMut(&Value),
) -> Result<Value, Fault> {
    let path_file = directory.join(PATH_FILE);
    let unavailable = |error: io::Error| {
        Fault::unavailable(format!("{}: {error}", directory.display()))
            .hint("is the service running on this directory?")
    };
    let path = PathBuf::from(OsString::from_vec(read_regular(&path_file, PATH_BYTES_MAX).map_err(unavailable)?));
    let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(&path)).await;
    let mut stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unavailable)?;
    // Where the socket is, a file in the directory says, which others may have written; what is asked may hold a secret, and the answer is believed.
    let peer = stream.peer_cred().map_err(unavailable)?.uid();
    let owner = fs::metadata(directory).map_err(unavailable)?.uid();
    if peer != owner && peer != rustix::process::geteuid().as_raw() {
        return Err(Fault::denied(format!(
            "{}: user {peer} is at the other end of {}, and the directory is of user {owner}: nothing was asked",
            directory.display(),
            path.display()
        )));
    }
    let mut line = serde_json::to_vec(request).map_err(Fault::new)?;
    line.push(b'\n');
    let sent = stream.write_all(&line).await;
    holdfast_crypto::secret::erase(&mut line);
    sent.map_err(unavailable)?;
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
    let last = last.ok_or_else(|| Fault::unavailable("the service stopped before it was done"))?;
    match last.get("error").and_then(Value::as_str) {
        Some(error) if last["denied"] == true => Err(Fault::denied(error)),
        Some(error) if last["unavailable"] == true => Err(Fault::unavailable(error)),
        Some(error) => Err(Fault::new(error)),
        None => Ok(last),
    }
}

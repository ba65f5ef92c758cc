//! Control sockets: how the user who runs a service asks something of it.
//!
//! One JSON object a line in, JSON objects a line out; the last has `"done"`.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStringExt,
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_crypto::{SecretBytes, kdf};
use holdfast_store::{read_regular, write_regular};
use rustix::fs::OFlags;
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
/// In the service's directory: the path of the socket. The socket itself lies in the host's directory for such, so that the service's holds plain files
/// only and can be copied; where there is none of this user's own, in the service's directory.
const PATH_FILE: &str = "admin-socket.path";
/// The longest path of Linux.
const PATH_BYTES_MAX: u64 = 4096;
const SOCKET_FILE: &str = "admin.sock";
/// What fits into a socket's address (108 bytes, the last of them zero).
const ADDRESS_BYTES_MAX: usize = 107;
/// Anybody writes there, whoever points us there.
const OPEN_TO_ALL: &[&str] = &["/tmp", "/var/tmp", "/dev/shm"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that requests in flight are given at the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound socket.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// The host's directories for sockets, as systemd and login sessions name them, and the one that root has.
fn runtime_directories() -> impl Iterator<Item = PathBuf> {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty());
    // Several are separated by colons.
    let of_unit = named("RUNTIME_DIRECTORY")
        .and_then(|all| all.as_encoded_bytes().split(|byte| *byte == b':').next().map(<[u8]>::to_vec))
        .map(|first| PathBuf::from(OsString::from_vec(first)));
    let of_user = named("XDG_RUNTIME_DIR").map(|directory| PathBuf::from(directory).join("holdfast"));
    [of_unit, of_user, Some("/run/holdfast".into())].into_iter().flatten()
}

/// Whether nobody else can put a socket of his own in there, nor another directory in its place. It is made, if only it is missing.
fn is_ours_alone(directory: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let kept = |path: &Path, owners: &[u32]| {
        let metadata = fs::symlink_metadata(path);
        metadata.is_ok_and(|data| data.is_dir() && owners.contains(&data.uid()) && data.mode() & 0o022 == 0)
    };
    let Some(parent) = directory.parent().filter(|parent| kept(parent, &[own, 0])) else { return false };
    if !parent.is_absolute() || OPEN_TO_ALL.iter().any(|open| parent.starts_with(open)) {
        return false;
    }
    let _ = fs::DirBuilder::new().mode(0o700).create(directory);
    kept(directory, &[own])
}

fn socket_path(directory: &Path, mut candidates: impl Iterator<Item = PathBuf>) -> io::Result<PathBuf> {
    let whole = directory.canonicalize()?;
    let digest = kdf::sha256(&[whole.as_os_str().as_encoded_bytes()]);
    let name = holdfast_wire::hex::hex(&digest[..8]);
    Ok(match candidates.find(|candidate| is_ours_alone(candidate)) {
        Some(runtime) => runtime.join(name).with_extension("sock"),
        None => whole.join(SOCKET_FILE),
    })
}

/// The same file by a path that fits into an address: through its directory, which is open as long as the first is held.
fn addressable(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
        return Ok((None, path.into()));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    let flags = (OFlags::PATH | OFlags::DIRECTORY).bits().cast_signed();
    let directory = File::options().read(true).custom_flags(flags).open(directory)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((Some(directory), short))
}

/// Binds the socket of the service in `directory`. A stale one, left by a crash, is replaced: the caller holds what makes sure that
/// nobody else serves the directory.
pub(crate) fn bind(directory: &Path) -> Result<Socket, Fault> {
    bind_in(directory, runtime_directories()).map_err(|error| Fault::new(format!("the admin socket: {error}")))
}

fn bind_in(directory: &Path, candidates: impl Iterator<Item = PathBuf>) -> io::Result<Socket> {
    let path = socket_path(directory, candidates)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (_directory, short) = addressable(&path)?;
    let listener = UnixListener::bind(short)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    write_regular(&directory.join(PATH_FILE), path.as_os_str().as_encoded_bytes())?;
    Ok(Socket { listener, path })
}

/// Where lines go before the last one.
pub(crate) type Progress = mpsc::Sender<Value>;

/// Serves until `stopped`, then lets requests in flight end. `carry_out` is given the request, the user id at the other end, and where
/// progress goes.
pub(crate) async fn serve<R, F, A>(socket: Socket, carry_out: F, mut stopped: watch::Receiver<bool>)
where
    R: DeserializeOwned + Send + 'static,
    F: Fn(R, u32, Progress) -> A + Clone + Send + 'static,
    A: Future<Output = Value> + Send + 'static,
{
    let Socket { listener, path } = socket;
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
    let _ = fs::remove_file(path);
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
    let (held, short) = addressable(&path).map_err(unavailable)?;
    let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(short)).await;
    let mut stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unavailable)?;
    drop(held);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_reached_however_long_its_directory_is() {
        let place = tempfile::tempdir().unwrap();
        let long = place.path().join("a".repeat(200)).join("b".repeat(200));
        fs::create_dir_all(&long).unwrap();
        for directory in [place.path(), long.as_path()] {
            // A crash leaves one.
            drop(bind_in(directory, std::iter::empty()).unwrap());
            let socket = bind_in(directory, std::iter::empty()).unwrap();
            assert_eq!(socket.path, directory.canonicalize().unwrap().join(SOCKET_FILE));
            let (stop, stopped) = watch::channel(false);
            let carry_out = |request: Value, _, _| async move { json!({"done": true, "heard": request}) };
            let served = tokio::spawn(serve(socket, carry_out, stopped));
            let answer = ask(directory, &json!("hello"), |_| ()).await.unwrap();
            assert_eq!(answer["heard"], "hello");
            stop.send(true).unwrap();
            served.await.unwrap();
            assert!(!directory.join(SOCKET_FILE).exists());
            assert!(ask(directory, &json!("hello"), |_| ()).await.is_err());
        }
    }

    #[test]
    fn what_others_may_write_to_is_no_place_for_a_socket() {
        let place = tempfile::tempdir().unwrap();
        let (data, candidate) = (place.path().join("data"), place.path().join("run"));
        fs::create_dir(&data).unwrap();
        assert!(!is_ours_alone(&candidate), "below /tmp");
        assert!(!is_ours_alone(Path::new("relative")) && !is_ours_alone(Path::new("/")));
        let path = socket_path(&data, [candidate, "/nowhere/at/all".into()].into_iter()).unwrap();
        assert_eq!(path, data.canonicalize().unwrap().join(SOCKET_FILE));
    }
}

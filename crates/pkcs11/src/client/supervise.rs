//! The life of hosts: started, watched, killed when they hang, started anew.

use std::{
    os::unix::net::UnixDatagram as PacketSocket,
    process::{Child, Command, Stdio},
    sync::{Arc, Weak},
    time::Duration,
};

use holdfast_core::HsmState;
use metrics::counter;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{
    net::UnixDatagram,
    sync::watch,
    time::{sleep, timeout},
};

use super::{HostCommand, Pin, Pkcs11Hsm, link::Link};
use crate::{
    Pkcs11Config,
    message::{Call, PACKET_BYTES_MAX, Setup, Started},
};

/// Library, login and sessions may take so long; a network HSM that is away takes its own time-outs.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no running host.
enum Down {
    /// Try again.
    Passing(String),
    /// Wait for another PIN.
    Lasting(String),
}

pub(super) async fn supervise(hsm: Weak<Pkcs11Hsm>, command: HostCommand, mut pin: watch::Receiver<Pin>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let secret = pin.borrow_and_update().clone();
        let down = match (&secret, hsm.upgrade()) {
            (_, None) => return,
            (None, Some(_)) => Down::Lasting("no PIN has been entered".into()),
            (Some(secret), Some(strong)) => match start(&strong.config, &command, secret).await {
                Err(down) => down,
                Ok(host) => {
                    backoff = BACKOFF_MIN;
                    drop(strong);
                    run(&hsm, host, &mut pin).await
                }
            },
        };
        let Some(strong) = hsm.upgrade() else { return };
        strong.link.store(None);
        let (why, lasting) = match down {
            Down::Passing(why) => (why, false),
            Down::Lasting(why) => (why, true),
        };
        strong.set_health(HsmState::Unavailable, None, why);
        drop(strong);
        let changed = if lasting {
            pin.changed().await
        } else {
            // The longer it fails, the longer the pause; another PIN ends it.
            timeout(backoff, pin.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// A host that is ready. Killed when dropped.
struct Host {
    child: Child,
    link: Arc<Link>,
    model: String,
    lacks: String,
    warning: String,
    sessions: usize,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn start(config: &Pkcs11Config, command: &HostCommand, pin: &holdfast_crypto::SecretBytes) -> Result<Host, Down> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Down::Passing(format!("{what}: {error}"));
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| failed("a socket for the HSM host", &error))?;
    let child = Command::new(&command.program)
        .args(&command.arguments)
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| failed("the HSM host", &error))?;
    counter!("holdfast_hsm_host_starts_total", "hsm" => config.name.clone()).increment(1);
    let mut child = KillOnDrop(Some(child));
    let setup = Setup::new(config, pin).encode();
    // Packets go through a SOCK_SEQPACKET socket by the same calls as through a datagram socket.
    let ours = PacketSocket::from(ours);
    ours.set_nonblocking(true).map_err(|error| failed("a socket for the HSM host", &error))?;
    let socket = UnixDatagram::from_std(ours).map_err(|error| failed("the reactor", &error))?;
    socket.send(setup.expose()).await.map_err(|error| failed("the HSM host", &error))?;
    let started = timeout(START_TIMEOUT, first_packet(&socket)).await;
    let started = started.map_err(|_| Down::Passing("the HSM host does not get ready".into()))?;
    match started.map_err(Down::Passing)? {
        Started::Failed { lasting: true, why } => Err(Down::Lasting(why)),
        Started::Failed { lasting: false, why } => Err(Down::Passing(why)),
        Started::Ready { model, profile, sessions, lacks, warning } => {
            let name = &config.name;
            tracing::info!(hsm = name, model, profile, sessions, "the HSM host is ready");
            if !lacks.is_empty() {
                tracing::warn!(hsm = name, lacks, "the HSM does not offer everything");
            }
            let sessions = usize::from(sessions);
            let room = sessions + usize::from(config.queue_max);
            let child = child.0.take().ok_or_else(|| Down::Passing("the HSM host has ended".into()))?;
            Ok(Host { child, link: Arc::new(Link::new(socket, room)), model, lacks, warning, sessions })
        }
    }
}

/// A child that may not outlive a failed start.
struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn first_packet(socket: &UnixDatagram) -> Result<Started, String> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    match socket.recv(&mut buffer).await {
        Ok(0) => Err("the HSM host ended at its start: the library may have crashed".into()),
        Ok(len) => Started::decode(&buffer[..len]).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Watches over a running host until it must be replaced.
async fn run(hsm: &Weak<Pkcs11Hsm>, host: Host, pin: &mut watch::Receiver<Pin>) -> Down {
    let receiver = tokio::spawn(Arc::clone(&host.link).receive());
    // What the HSM lacks is told and is no fault of it.
    let (well, detail) =
        if host.warning.is_empty() { (HsmState::Active, &host.lacks) } else { (HsmState::Degraded, &host.warning) };
    let Some(hang_timeout) = hsm.upgrade().map(|strong| {
        strong.set_health(well, Some(&host.model), detail.clone());
        strong.link.store(Some(Arc::clone(&host.link)));
        strong.ready.notify_one();
        strong.config.hang_timeout
    }) else {
        return Down::Passing("stopped".into());
    };
    let mut probed = tokio::time::Instant::now();
    let down = loop {
        tokio::select! {
            () = sleep(WATCH_INTERVAL) => {}
            changed = pin.changed() => {
                break Down::Passing(if changed.is_ok() { "another PIN was entered" } else { "stopped" }.into());
            }
        }
        let Some(strong) = hsm.upgrade() else { break Down::Passing("stopped".into()) };
        if receiver.is_finished() {
            break Down::Passing("the HSM host ended: the token is gone or the library crashed".into());
        }
        match host.link.older_than(hang_timeout) {
            0 => strong.set_health(well, None, detail.clone()),
            hung if hung >= host.sessions => break Down::Passing("every session hung; the HSM host was killed".into()),
            hung => {
                strong.set_health(HsmState::Degraded, None, format!("{hung} of {} sessions hang", host.sessions));
            }
        }
        if probed.elapsed() >= PROBE_INTERVAL {
            probed = tokio::time::Instant::now();
            let link = Arc::clone(&host.link);
            // Its failure ends the host, which is noticed above.
            tokio::spawn(async move { link.call(Call::Probe, PROBE_INTERVAL).await.map(|_| ()) });
        }
    };
    receiver.abort();
    down
}

//! What goes on in the background: the shared state is watched, HSMs are checked, gauges are kept.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_core::{Ambient, StoreError, Trouble};
use holdfast_pkcs11::Pin;
use holdfast_store::{FileStamp, SharedEngine, open_regular};
use holdfast_xks_proxy::XksProxy;
use metrics::gauge;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::witness::Places;
use crate::server::{
    certificates::{self, Certified},
    tls::TlsIdentity,
};

/// A change is noticed after this time even if nobody tells of it; looking costs a `stat` of each process's files.
const WATCH_INTERVAL: Duration = Duration::from_millis(25);
/// Looks after a change that read again, whatever the files' times say: two changes within one tick of the kernel's clock look alike.
const SETTLING_LOOKS: u32 = 4;
/// Looks after which everything is read again, whatever the files' times say.
const LOOKS_TO_READ: u32 = 40;
const SECOND: Duration = Duration::from_secs(1);
const DEEP_INTERVAL: Duration = Duration::from_secs(15);
/// The first look at the keys waits for the HSMs to get ready.
const INSPECTION_DELAY: Duration = Duration::from_secs(2);

pub(super) struct Watcher {
    pub proxy: Arc<XksProxy>,
    pub engine: SharedEngine,
    /// Files that take changes again when whoever looks each second says so.
    pub tried: Vec<SharedEngine>,
    pub places: Arc<Places>,
    pub processes: PathBuf,
    pub pins: HashMap<String, watch::Sender<Pin>>,
    pub identity: Arc<TlsIdentity>,
    pub ambient: Arc<dyn Ambient>,
}

/// True when it is time to stop; false after `wait`.
async fn stops(stopped: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    timeout(wait, stopped.wait_for(|stop| *stop)).await.is_ok()
}

impl Watcher {
    /// Starts everything; the tasks end when `stopped` turns true.
    pub(super) fn start(self, stopped: &watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
        let Self { proxy, engine, tried, places, processes, pins, identity, ambient } = self;
        hand_out_pins(&proxy, &pins);
        let mut tasks = vec![tokio::spawn(follow(Arc::clone(&proxy), Look { engine, places }, pins, stopped.clone()))];
        for name in proxy.hsms_with_health_key() {
            tasks.push(tokio::spawn(check_deeply(Arc::clone(&proxy), name, stopped.clone())));
        }
        tasks.push(tokio::spawn(inspect_once(Arc::clone(&proxy), stopped.clone())));
        let shown = Arc::clone(&identity) as Arc<dyn Certified>;
        tasks.push(tokio::spawn(certificates::keep(shown, "xks-proxy", Arc::clone(&ambient), stopped.clone())));
        tasks.push(tokio::spawn(every_second(proxy, processes, identity, ambient, stopped.clone())));
        tasks.push(tokio::spawn(try_again(tried, stopped.clone())));
        tasks
    }
}

/// Where changes show: the state, and the kills beside it.
struct Look {
    engine: SharedEngine,
    places: Arc<Places>,
}

/// What a look saw.
type Stamps = (Option<FileStamp>, Vec<(String, Option<FileStamp>)>);

impl Look {
    fn stamps(&self) -> Result<Stamps, StoreError> {
        Ok((self.engine.stamp()?, self.places.kill_stamps()))
    }
}

/// Takes each new state into force, whoever made it.
async fn follow(
    proxy: Arc<XksProxy>,
    look: Look,
    pins: HashMap<String, watch::Sender<Pin>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut seen: Option<Stamps> = None;
    let mut complained_of = None;
    let (mut settling, mut looks) = (0, 0);
    let blind = Trouble::default();
    while !stops(&mut stopped, WATCH_INTERVAL).await {
        looks += 1;
        let stamps = match look.stamps() {
            Ok(stamps) => {
                blind.ends();
                Some(stamps)
            }
            Err(error) => {
                if blind.begins() {
                    tracing::error!(%error, "the shared state cannot be looked at");
                }
                proxy.distrust(&error.to_string());
                seen = None;
                continue;
            }
        };
        if stamps != seen {
            settling = SETTLING_LOOKS;
        } else if settling == 0 && looks < LOOKS_TO_READ {
            continue;
        } else {
            settling = settling.saturating_sub(1);
        }
        looks = 0;
        match proxy.reload().await {
            Ok(()) => {
                if complained_of.take().is_some() {
                    tracing::warn!("the shared state is to be trusted again");
                }
                seen = stamps;
                hand_out_pins(&proxy, &pins);
            }
            Err(error) => {
                // Tried again, since the disk may only have failed for a moment; said once for each state.
                seen = None;
                if complained_of != stamps {
                    complained_of = stamps;
                    tracing::error!(%error, "the shared state is not to be trusted: nothing is served");
                }
            }
        }
    }
}

fn hand_out_pins(proxy: &XksProxy, pins: &HashMap<String, watch::Sender<Pin>>) {
    let governed = proxy.governed();
    for (name, sender) in pins {
        let pin = governed.pins.get(name).cloned();
        sender.send_if_modified(|current| {
            let same = match (&current, &pin) {
                (None, None) => true,
                (Some(current), Some(pin)) => current.ct_eq(pin.expose()),
                _ => false,
            };
            if !same {
                current.clone_from(&pin);
            }
            !same
        });
    }
}

async fn check_deeply(proxy: Arc<XksProxy>, name: String, mut stopped: watch::Receiver<bool>) {
    loop {
        proxy.check_deeply(&name).await;
        if stops(&mut stopped, DEEP_INTERVAL).await {
            return;
        }
    }
}

/// Says at the start what is wrong with keys, before a request finds out.
async fn inspect_once(proxy: Arc<XksProxy>, mut stopped: watch::Receiver<bool>) {
    if stops(&mut stopped, INSPECTION_DELAY).await {
        return;
    }
    for report in proxy.inspect_keys().await {
        let (key, version, hsm) = (report.key, report.version, report.hsm);
        match report.problem {
            Some(problem) => tracing::warn!(key, version, hsm, problem, "a key cannot be used"),
            None if !report.accepted.is_empty() => {
                tracing::warn!(
                    key,
                    version,
                    hsm,
                    accepted = report.accepted.join(", "),
                    "a key is held badly, and accepted"
                );
            }
            None => {}
        }
    }
}

/// Files that took no change are tried, so that health says that they do again though nobody wants one.
async fn try_again(tried: Vec<SharedEngine>, mut stopped: watch::Receiver<bool>) {
    while !stops(&mut stopped, SECOND).await {
        for engine in tried.iter().filter(|engine| engine.fault().is_some()) {
            let engine = engine.clone();
            // What it finds is told with its condition. It waits for a lock, and no longer than its bound.
            let _ = tokio::task::spawn_blocking(move || engine.look()).await;
        }
    }
}

async fn every_second(
    proxy: Arc<XksProxy>,
    processes: PathBuf,
    identity: Arc<TlsIdentity>,
    ambient: Arc<dyn Ambient>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut told = Vec::new();
    loop {
        proxy.set_fleet_size(alive(&processes).len());
        proxy.update_gauges();
        let foreign = proxy.foreign_keys().await;
        if foreign != told {
            for (hsm, keys) in &foreign {
                tracing::warn!(hsm, keys, "the HSM user can use keys that the policy does not name for it");
            }
            told = foreign;
        }
        if let Some(days) = identity.days_to_expire(ambient.now()) {
            gauge!("holdfast_xks_proxy_certificate_days_to_expire").set(days);
        }
        if stops(&mut stopped, SECOND).await {
            return;
        }
        proxy.report_throttled().await;
        proxy.tend_state().await;
    }
}

/// Whether a process runs, or is stopped, under the name of this directory.
pub(super) fn lives(process: &Path) -> bool {
    let file = open_regular(std::fs::OpenOptions::new().write(true), &process.join("alive.lock"));
    // Whoever holds it lives; it is let go at once if nobody did.
    file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Processes whose name is taken.
pub(crate) fn alive(processes: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(processes).into_iter().flatten().flatten();
    let command =
        |path: &PathBuf| super::COMMANDS.iter().any(|name| path.file_name().is_some_and(|found| found == *name));
    let serving = entries.map(|entry| entry.path()).filter(|path| !command(path) && lives(path));
    let mut found: Vec<PathBuf> = serving.collect();
    found.sort();
    found
}

//! What goes on in the background: the shared state is watched, HSMs are checked, gauges are kept.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_core::Ambient;
use holdfast_pkcs11::Pin;
use holdfast_store::{FileStamp, SharedEngine};
use holdfast_xks_proxy::XksProxy;
use metrics::gauge;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::server::tls::{Renewal, TlsIdentity};

/// A change is noticed after this time even if nobody tells of it; looking costs one `stat`.
const WATCH_INTERVAL: Duration = Duration::from_millis(25);
const SECOND: Duration = Duration::from_secs(1);
const DEEP_INTERVAL: Duration = Duration::from_secs(15);
/// The first look at the keys waits for the HSMs to get ready.
const INSPECTION_DELAY: Duration = Duration::from_secs(2);

pub(super) struct Watcher {
    pub proxy: Arc<XksProxy>,
    pub engine: SharedEngine,
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
        let Self { proxy, engine, processes, pins, identity, ambient } = self;
        hand_out_pins(&proxy, &pins);
        let mut tasks = vec![tokio::spawn(follow(Arc::clone(&proxy), engine, pins, stopped.clone()))];
        for name in proxy.hsms_with_health_key() {
            tasks.push(tokio::spawn(check_deeply(Arc::clone(&proxy), name, stopped.clone())));
        }
        tasks.push(tokio::spawn(inspect_once(Arc::clone(&proxy), stopped.clone())));
        tasks.push(tokio::spawn(every_second(proxy, processes, identity, ambient, stopped.clone())));
        tasks
    }
}

/// Takes each new state into force, whoever made it.
async fn follow(
    proxy: Arc<XksProxy>,
    engine: SharedEngine,
    pins: HashMap<String, watch::Sender<Pin>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut seen: Option<FileStamp> = None;
    let mut complained_of = None;
    while !stops(&mut stopped, WATCH_INTERVAL).await {
        let stamp = match engine.stamp() {
            Ok(stamp) if stamp == seen => continue,
            Ok(stamp) => stamp,
            Err(error) => {
                tracing::error!(%error, "the shared state cannot be looked at");
                proxy.distrust();
                continue;
            }
        };
        match proxy.reload().await {
            Ok(()) => {
                seen = stamp;
                hand_out_pins(&proxy, &pins);
            }
            Err(error) => {
                // Tried again, since the disk may only have failed for a moment; said once for each state.
                if complained_of != Some(stamp) {
                    complained_of = Some(stamp);
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

async fn every_second(
    proxy: Arc<XksProxy>,
    processes: PathBuf,
    identity: Arc<TlsIdentity>,
    ambient: Arc<dyn Ambient>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut renewal = Renewal::new(Arc::clone(&identity), Arc::clone(&ambient));
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
        renewal.when_due();
    }
}

/// Processes whose name is taken.
pub(super) fn alive(processes: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(processes).into_iter().flatten().flatten();
    let taken = |path: &PathBuf| {
        let file = std::fs::OpenOptions::new().write(true).open(path.join("alive.lock"));
        // Whoever holds it lives; it is let go at once if nobody did.
        file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
    };
    let serves = |path: &PathBuf| path.file_name().is_some_and(|name| name != super::COMMAND);
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(serves).filter(taken).collect();
    found.sort();
    found
}

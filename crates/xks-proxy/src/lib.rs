//! Role: the customer's proxy of an external key store, in front of any HSM.
//!
//! Reading order: `xks` and `ekm` (the two dialects: route, wire, operations, errors), [`policy`] (who may use which key),
//! `authn` (who asks), `dialect` (the stages of a request), [`state`] and [`quorum`] (what is governed, and how it is changed),
//! `health`. The role sees HSMs, store and audit log through the seams of `holdfast-core` only.

mod admin;
mod authn;
mod beside;
mod call;
mod candidate;
mod commit;
mod dialect;
mod ekm;
mod error;
#[cfg(forgery)]
mod forgeries;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
mod plug;
pub mod policy;
pub mod quorum;
mod reach;
mod restore;
mod service;
pub mod state;
mod untold;
mod using;
mod xks;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use admin::KeyReport;
use arc_swap::{ArcSwap, ArcSwapOption};
pub use authn::{ClientCertificate, EnrolledCaller, ProofReplays, is_access_key_id, is_secret_access_key};
pub use beside::{Beside, Heard, PulledKill};
use commit::State;
pub use error::AdminError;
pub use health::DeepHealth;
use holdfast_core::{Ambient, AuditSink, ExternalHsm, PartitionId, Store, StoreError, TokenObject, Trouble};
use holdfast_service::Spine;
use holdfast_wire::Quotas;
pub use restore::{Acceptance, Accepted, Restore, accept_restore, governors_of};
pub use service::{Door, Peer};
use state::{Governed, KillSwitch};

/// What the role stands on.
pub struct Seams {
    /// HSM users by name.
    pub hsms: BTreeMap<String, Arc<dyn ExternalHsm>>,
    /// HSM users that are not used while they could use keys that the policy does not name for them.
    pub own_keys_only: BTreeSet<String>,
    /// The proxy's own keys in them, for health checks.
    pub health_keys: BTreeMap<String, TokenObject>,
    /// Durable state, shared by all processes of the instance.
    pub store: Arc<dyn Store>,
    /// The audit log.
    pub audit: Arc<dyn AuditSink>,
    /// What is known of the state beside it, and the road of kills.
    pub beside: Arc<dyn Beside>,
    /// Clock and entropy.
    pub ambient: Arc<dyn Ambient>,
}

/// Bounds on what requests may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at work at once; one more is throttled.
    pub in_flight_max: usize,
    /// Time for an answer, from the request's head to its last byte. The provider gives up after 250 ms.
    pub answer_budget: Duration,
    /// The HSMs' share of it.
    pub hsm_budget: Duration,
    /// Time for a request's body to arrive.
    pub body_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_max: 512,
            answer_budget: Duration::from_millis(200),
            hsm_budget: Duration::from_millis(150),
            body_timeout: Duration::from_secs(5),
        }
    }
}

/// The proxy.
pub struct XksProxy {
    instance: PartitionId,
    hsms: BTreeMap<String, Arc<dyn ExternalHsm>>,
    own_keys_only: BTreeSet<String>,
    health_keys: BTreeMap<String, TokenObject>,
    /// Keys of others that an HSM user could use, as far as was last seen.
    foreign: Mutex<BTreeMap<String, usize>>,
    store: State,
    audit: Arc<dyn AuditSink>,
    ambient: Arc<dyn Ambient>,
    beside: Arc<dyn Beside>,
    governed: ArcSwap<Governed>,
    /// Up to which generation this process has remembered what it saw.
    remembered: AtomicU64,
    /// Kills that could not be written down: in force here all the same, until the process ends.
    unwritten: Mutex<Vec<KillSwitch>>,
    /// Ids of the newest events that are in the log. Their rows may still be in the state.
    told: Mutex<VecDeque<String>>,
    /// Held by whoever tells the log of a change.
    telling_changes: tokio::sync::Mutex<()>,
    /// Kills that this process has told the log of, by process and number. Held by whoever tells of one.
    told_kills: tokio::sync::Mutex<plug::ToldKills>,
    /// Why the state is not to be trusted: it went back to an older one, or cannot be read. Nothing is done until it is mended.
    untrusted: ArcSwapOption<String>,
    limits: Limits,
    spine: Spine,
    quotas: Quotas,
    replays: ProofReplays,
    deep: Mutex<BTreeMap<String, DeepHealth>>,
    fleet: AtomicUsize,
    reloading: tokio::sync::Mutex<()>,
    efforts: Efforts,
}

/// What is tried again and again, and told when it begins to fail and when that is over.
#[derive(Default)]
struct Efforts {
    /// A reload waits in vain for requests under the old state.
    draining: Trouble,
    remembering: Trouble,
    /// Taking kills into the state.
    hearing: Trouble,
    /// Taking events that are told out of the state.
    forgetting: Trouble,
    /// Telling the log of changes.
    telling: Trouble,
    /// Telling the log of what was throttled.
    throttled: Trouble,
}

impl XksProxy {
    /// Opens the proxy on the state in `seams.store`.
    ///
    /// # Errors
    /// [`AdminError::Store`], [`AdminError::Record`].
    pub async fn open(seams: Seams, instance: PartitionId, limits: Limits) -> Result<Arc<Self>, AdminError> {
        let Seams { hsms, own_keys_only, health_keys, store, audit, beside, ambient } = seams;
        let store = State::new(store);
        let governed = Governed::load(&store, beside.as_ref()).await?;
        let gate = Arc::clone(store.gate());
        let spine = Spine::new(Arc::clone(&audit), Arc::clone(&ambient), gate, Some(limits.in_flight_max));
        let proxy = Arc::new(Self {
            instance,
            hsms,
            own_keys_only,
            health_keys,
            foreign: Mutex::default(),
            store,
            audit,
            ambient,
            beside,
            governed: ArcSwap::from_pointee(governed),
            remembered: AtomicU64::new(0),
            unwritten: Mutex::default(),
            told: Mutex::default(),
            telling_changes: tokio::sync::Mutex::default(),
            told_kills: tokio::sync::Mutex::default(),
            untrusted: ArcSwapOption::empty(),
            limits,
            spine,
            quotas: Quotas::default(),
            replays: ProofReplays::default(),
            deep: Mutex::default(),
            fleet: AtomicUsize::new(1),
            reloading: tokio::sync::Mutex::new(()),
            efforts: Efforts::default(),
        });
        proxy.remember(&proxy.governed()).await;
        Ok(proxy)
    }

    /// The state in force.
    #[must_use]
    pub fn governed(&self) -> Arc<Governed> {
        self.governed.load_full()
    }

    /// The HSM users.
    #[must_use]
    pub fn hsms(&self) -> &BTreeMap<String, Arc<dyn ExternalHsm>> {
        &self.hsms
    }

    /// Takes the stored state into force, and waits until no request is at work under the old one. After it, nothing is answered
    /// that the new state forbids.
    ///
    /// # Errors
    /// [`AdminError`]; then nothing is served until a reload succeeds.
    pub async fn reload(&self) -> Result<(), AdminError> {
        let _turn = self.reloading.lock().await;
        let governed = match self.load().await {
            Ok(governed) => governed,
            Err(error) => {
                self.distrust(&error.to_string());
                return Err(error);
            }
        };
        // Before it is in force: whoever puts an older one back after this is found out, after a restart too.
        self.remember(&governed).await;
        let old = self.governed.swap(Arc::new(governed));
        self.untrusted.store(None);
        let drained = async {
            // Requests hold the state they were judged by for as long as they last.
            while Arc::strong_count(&old) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let draining = &self.efforts.draining;
        if tokio::time::timeout(self.limits.answer_budget * 2, drained).await.is_ok() {
            draining.ends();
        } else if draining.begins() {
            tracing::warn!("some requests that were judged by the old state take longer than they should");
        }
        // Answers that were looked at before are with the socket after this, or never will be.
        self.spine.settle().await;
        Ok(())
    }

    /// The stored state and the kills beside it, unless they are older than what is known.
    async fn load(&self) -> Result<Governed, AdminError> {
        let mut governed = Governed::load(&self.store, self.beside.as_ref()).await?;
        for kill in self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            governed.kills.insert(kill.clone());
        }
        Ok(governed)
    }

    /// Remembers what was seen of the state. A disk that has no room for it stops nothing: it is tried again each second.
    async fn remember(&self, governed: &Governed) {
        let generation = governed.generation;
        if generation <= self.remembered.load(Ordering::Acquire) {
            return;
        }
        let (beside, operators) = (Arc::clone(&self.beside), governed.operators.record());
        let saw = tokio::task::spawn_blocking(move || beside.saw(generation, &operators)).await;
        let saw = saw.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())));
        let trouble = &self.efforts.remembering;
        match saw {
            Ok(()) => {
                self.remembered.fetch_max(generation, Ordering::AcqRel);
                if trouble.ends() {
                    tracing::warn!(generation, "what is seen of the state is remembered again");
                }
            }
            Err(error) if trouble.begins() => {
                tracing::error!(%error, generation, "what was seen of the state could not be remembered");
            }
            Err(_) => {}
        }
    }

    /// What is to be done once a second: remembering what could not be remembered, and seeing that kills get into log and state.
    pub async fn tend_state(&self) {
        let governed = self.governed();
        self.remember(&governed).await;
        drop(governed);
        let Efforts { hearing, forgetting, .. } = &self.efforts;
        match self.hear_kills(false).await {
            Err(error) if hearing.begins() => {
                tracing::warn!(%error, "kills are in force, and could not be taken into the state yet");
            }
            Ok(_) if hearing.ends() => tracing::info!("kills are taken into the state again"),
            Ok(_) | Err(_) => {}
        }
        match self.tell_left().await {
            Err(error) if forgetting.begins() => {
                tracing::warn!(%error, "events that are told could not be taken out of the state yet");
            }
            Ok(()) if forgetting.ends() => tracing::info!("events that are told are taken out of the state again"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Refuses everything from now on: the state on disk is not to be trusted, and why.
    pub fn distrust(&self, why: &str) {
        self.untrusted.store(Some(Arc::new(why.to_owned())));
    }

    /// Why nothing is served, if that is so.
    #[must_use]
    pub fn distrusted(&self) -> Option<Arc<String>> {
        self.untrusted.load_full()
    }

    /// Up to which generation this process has durably remembered what it saw.
    #[must_use]
    pub fn remembered(&self) -> u64 {
        self.remembered.load(Ordering::Acquire)
    }

    /// How many processes serve this state.
    #[must_use]
    pub fn fleet_size(&self) -> usize {
        self.fleet.load(Ordering::Relaxed)
    }

    /// Tells how many processes serve this state.
    pub fn set_fleet_size(&self, processes: usize) {
        self.fleet.store(processes.max(1), Ordering::Relaxed);
    }
}

//! Role: the customer's proxy of an external key store, in front of any HSM.
//!
//! Reading order: `xks` and `ekm` (the two dialects: route, wire, operations, errors), [`policy`] (who may use which key),
//! `authn` (who asks), `service` (the life of a request), [`state`] and [`quorum`] (what is governed, and how it is changed),
//! `health`. The role sees HSMs, store and audit log through the seams of `holdfast-core` only.

mod admin;
mod authn;
mod call;
mod ekm;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
pub mod policy;
pub mod quorum;
mod reach;
mod service;
pub mod state;
mod using;
mod xks;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use admin::KeyReport;
use arc_swap::ArcSwap;
pub use authn::{ClientCertificate, EnrolledCaller, ProofReplays, is_access_key_id, is_secret_access_key};
pub use error::AdminError;
pub use health::DeepHealth;
use holdfast_core::{Ambient, AuditSink, ExternalHsm, PartitionId, Store, StoreError, TokenObject};
use holdfast_wire::Quotas;
pub use service::{Door, Peer};
use state::Governed;
use tokio::sync::Semaphore;

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
    /// How many changes the stored state has seen: it never goes down, unless somebody puts an older state back.
    pub generation: Generation,
    /// Clock and entropy.
    pub ambient: Arc<dyn Ambient>,
}

/// Tells the generation of the stored state.
pub type Generation = Box<dyn Fn() -> Result<u64, StoreError> + Send + Sync>;

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
    store: Arc<dyn Store>,
    audit: Arc<dyn AuditSink>,
    ambient: Arc<dyn Ambient>,
    generation: Generation,
    newest: AtomicU64,
    governed: ArcSwap<Governed>,
    /// The state went back to an older one, or cannot be read: nothing is done until it is mended.
    untrusted: AtomicBool,
    limits: Limits,
    in_flight: Arc<Semaphore>,
    quotas: Quotas,
    replays: ProofReplays,
    deep: Mutex<BTreeMap<String, DeepHealth>>,
    fleet: AtomicUsize,
    reloading: tokio::sync::Mutex<()>,
}

impl XksProxy {
    /// Opens the proxy on the state in `seams.store`.
    ///
    /// # Errors
    /// [`AdminError::Store`], [`AdminError::Record`].
    pub async fn open(seams: Seams, instance: PartitionId, limits: Limits) -> Result<Arc<Self>, AdminError> {
        let Seams { hsms, own_keys_only, health_keys, store, audit, generation, ambient } = seams;
        let newest = AtomicU64::new(generation()?);
        let governed = Governed::load(store.as_ref()).await?;
        Ok(Arc::new(Self {
            instance,
            hsms,
            own_keys_only,
            health_keys,
            foreign: Mutex::default(),
            store,
            audit,
            ambient,
            generation,
            newest,
            governed: ArcSwap::from_pointee(governed),
            untrusted: AtomicBool::new(false),
            limits,
            in_flight: Arc::new(Semaphore::new(limits.in_flight_max)),
            quotas: Quotas::default(),
            replays: ProofReplays::default(),
            deep: Mutex::default(),
            fleet: AtomicUsize::new(1),
            reloading: tokio::sync::Mutex::new(()),
        }))
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
                self.distrust();
                return Err(error);
            }
        };
        let old = self.governed.swap(Arc::new(governed));
        self.untrusted.store(false, Ordering::Release);
        let drained = async {
            // Requests hold the state they were judged by for as long as they last.
            while Arc::strong_count(&old) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(self.limits.answer_budget * 2, drained).await.is_err() {
            tracing::warn!("some requests that were judged by the old state take longer than they should");
        }
        Ok(())
    }

    /// The stored state, unless it is older than one that was seen before: somebody's attempt to undo a change.
    async fn load(&self) -> Result<Governed, AdminError> {
        let generation = (self.generation)()?;
        let newest = self.newest.fetch_max(generation, Ordering::AcqRel);
        if generation < newest {
            return Err(AdminError::Record(format!(
                "THE STATE WENT BACK from generation {newest} to {generation}: nothing is served until it is put right"
            )));
        }
        Governed::load(self.store.as_ref()).await
    }

    /// Refuses everything from now on: the state on disk is not to be trusted.
    pub fn distrust(&self) {
        self.untrusted.store(true, Ordering::Release);
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

//! Role: the provider's key management service, AWS-KMS-compatible.
//!
//! A key's material is hosted in the service's own partition, or the key is a *reference* to one in a custom key store: an external key
//! store behind a proxy, or a Managed HSM. Data under a reference key is encrypted twice, first under material of the service's own,
//! then by the other side, so that neither alone can read it.
//!
//! Reading order: [`Kms::handle`], `dialect` (the stages of a request), `call` (what an operation has at hand: the key named, the permit),
//! `ops` (what is done), `authz` with `policy` and `grants` (who may), `usable` (a key that may be used now, and its way into the partition),
//! `keys`, `usage` and `blob` (what is kept, what is given out), `stores` (custom
//! key stores), `error` (what is told). `client` is the dialect from the other side, for storage.
//!
//! The role sees the HSM, the store and the audit log through the seams of `holdfast-core` only.

mod action;
mod aliases;
mod authn;
mod authz;
mod basis;
mod blob;
mod call;
mod client;
mod code;
mod context;
mod dialect;
mod error;
mod explain;
mod facts;
#[cfg(forgery)]
mod forgeries;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grants;
mod keys;
mod maintain;
mod names;
mod operation;
mod ops;
mod own;
mod policy;
mod records;
mod service;
mod spec;
mod stores;
mod usable;
mod usage;
mod wire;

use std::{sync::Arc, time::Duration};

use aliases::Aliases;
pub use authn::{CredentialConfig, Directory, DirectoryError, IdentityConfig};
pub use client::{KmsCredential, KmsKekClient};
pub use code::Code;
pub use error::ApiError;
pub use explain::{Explanation, Question as ExplainQuestion};
use grants::Grants;
use holdfast_core::{Ambient, AuditSink, EvidenceVerifier, Hsm, HsmAdmin, Store, StoreError};
use holdfast_service::Spine;
use keys::{KeyRing, KeyRingLimits};
pub use names::is_account;
use stores::KeyStores;
pub use stores::{HsmCluster, KekMaker, LinkFault, ProxyAccess, StoreLimits};
use usage::Usage;

/// What the role stands on.
pub struct Seams {
    /// Uses keys.
    pub hsm: Arc<dyn Hsm>,
    /// Makes keys.
    pub admin: Arc<dyn HsmAdmin>,
    /// Durable records.
    pub store: Arc<dyn Store>,
    /// The audit log.
    pub audit: Arc<dyn AuditSink>,
    /// Clock and entropy.
    pub ambient: Arc<dyn Ambient>,
}

/// Bounds on what requests and keys may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Request body. An attestation document of 262,144 bytes in Base64, and what is around it.
    pub body_bytes_max: usize,
    /// Time for the body to arrive.
    pub body_timeout: Duration,
    /// Requests at the same time.
    pub in_flight_max: usize,
    /// Keys, those pending deletion included.
    pub keys_max: usize,
    /// Keys held open (parsed) in memory.
    pub open_keys_max: usize,
    /// Custom key stores.
    pub stores: StoreLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 400 * 1024,
            body_timeout: Duration::from_secs(10),
            in_flight_max: 8192,
            keys_max: 1_000_000,
            open_keys_max: 4096,
            stores: StoreLimits::default(),
        }
    }
}

/// How the role behaves.
pub struct KmsConfig {
    /// Regions that it answers for; the first is the usual one. Multi-region keys have replicas in the others.
    pub regions: Vec<String>,
    /// Who may ask.
    pub directory: Directory,
    /// External key store proxies that custom key stores may lead to.
    pub proxies: Vec<ProxyAccess>,
    /// Managed HSMs that custom key stores may be.
    pub clusters: Vec<HsmCluster>,
    /// Verifies the evidence of attested callers (`Recipient`); without it they are refused.
    pub evidence: Option<Arc<dyn EvidenceVerifier>>,
    /// Bounds.
    pub limits: Limits,
}

/// The key management service.
pub struct Kms {
    regions: Vec<Arc<str>>,
    directory: Directory,
    keys: Arc<KeyRing>,
    aliases: Aliases,
    grants: Grants,
    usage: Usage,
    stores: Arc<KeyStores>,
    hsm: Arc<dyn Hsm>,
    admin: Arc<dyn HsmAdmin>,
    store: Arc<dyn Store>,
    audit: Arc<dyn AuditSink>,
    ambient: Arc<dyn Ambient>,
    evidence: Option<Arc<dyn EvidenceVerifier>>,
    limits: Limits,
    spine: Spine,
    efforts: maintain::Efforts,
}

impl Kms {
    /// Opens the service: reads its index into memory. Nothing of the outside is asked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(seams: Seams, config: KmsConfig) -> Result<Self, StoreError> {
        let Seams { hsm, admin, store, audit, ambient } = seams;
        let KmsConfig { regions, directory, proxies, clusters, evidence, limits } = config;
        let ring = KeyRingLimits { keys_max: limits.keys_max, open_keys_max: limits.open_keys_max };
        let keys = KeyRing::open(Arc::clone(&store), Arc::clone(&hsm), Arc::clone(&ambient), ring).await?;
        let aliases = Aliases::open(Arc::clone(&store)).await?;
        let grants = Grants::open(Arc::clone(&store)).await?;
        let usage = Usage::open(Arc::clone(&store)).await?;
        let stores =
            KeyStores::open(Arc::clone(&store), Arc::clone(&ambient), proxies, clusters, limits.stores).await?;
        let gate = Arc::clone(store.gate());
        let spine = Spine::new(Arc::clone(&audit), Arc::clone(&ambient), gate, Some(limits.in_flight_max));
        Ok(Self {
            regions: regions.into_iter().map(Into::into).collect(),
            directory,
            keys: Arc::new(keys),
            aliases,
            grants,
            usage,
            stores: Arc::new(stores),
            hsm,
            admin,
            store,
            audit,
            ambient,
            evidence,
            limits,
            spine,
            efforts: maintain::Efforts::default(),
        })
    }

    /// How many keys there are, in all regions.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.count()
    }

    /// Each custom key store with its state and, as far as known, whether its other side answers.
    #[must_use]
    pub fn store_states(&self) -> Vec<(String, &'static str)> {
        self.stores.all().into_iter().map(|store| (store.id.clone(), store.connection.name())).collect()
    }
}

//! Custom key stores: where reference keys lie.
//!
//! A store is a record (`record`), a state, and a [`Link`] to the other side: an external key store proxy (`xks`) or a Managed HSM
//! (`hsm`). Nothing of the other side is cached: every use of a reference key asks it.

mod breaker;
mod fault;
mod hsm;
mod record;
mod xks;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
pub use fault::LinkFault;
pub(crate) use fault::connection_error_code;
use holdfast_core::{
    Action, Ambient, Change, Changed, Committed, Decided, KekError, KekService, Projection, RecordKey, Resource, Store,
    StoreError, Timestamp, Write,
};
use holdfast_wire::{Exchange, Quotas, sigv4::SigningSecret};
use metrics::{counter, histogram};
pub(crate) use record::StoredStore;
use tokio::sync::Mutex;

use crate::{error::ApiError, records};

/// An external key store proxy that the service may connect to: nobody who makes a store can send it elsewhere.
pub struct ProxyAccess {
    /// `https://HOST[:PORT]`
    pub endpoint: String,
    /// Speaks to it, with the trust that it needs.
    pub exchange: Arc<dyn Exchange>,
    /// Whether it is shown the original caller's request (`docs/formats/caller-proof.md`).
    pub caller_proof: bool,
}

/// A Managed HSM that a store of kind AWS_CLOUDHSM may be.
pub struct HsmCluster {
    /// `cluster-...`: how callers name it.
    pub id: String,
    /// `https://HOST[:PORT]`
    pub url: String,
    /// Uses its keys.
    pub keks: Arc<dyn KekService>,
    /// Makes keys in it.
    pub maker: Arc<dyn KekMaker>,
}

/// Makes KEKs.
#[async_trait]
pub trait KekMaker: Send + Sync {
    /// Makes a KEK at this URL, unless there is one.
    ///
    /// # Errors
    /// [`KekError`].
    async fn ensure_kek(&self, kek_url: &str) -> Result<(), KekError>;
}

/// Bounds of what stores may take.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// For one exchange with the other side.
    pub budget: Duration,
    /// Exchanges of one store at the same time.
    pub in_flight_max: usize,
    /// Cryptographic requests of one store.
    pub requests_per_sec: u32,
    /// Stores of an account in a region.
    pub stores_max: usize,
}

impl Default for StoreLimits {
    /// The service's own: 250 ms, 1,800 requests a second, 10 stores.
    fn default() -> Self {
        Self { budget: Duration::from_millis(250), in_flight_max: 4096, requests_per_sec: 1800, stores_max: 10 }
    }
}

/// What the other side is told of a request.
#[derive(Clone, Copy)]
pub(crate) struct About<'a> {
    pub principal_arn: &'a str,
    pub key_arn: Option<&'a str>,
    pub operation: &'a str,
    pub request_id: &'a str,
    pub via_service: Option<&'a str>,
    /// The original caller's request, if the other side is to see it.
    pub proof: Option<&'a serde_json::Value>,
}

/// The other side of a store.
#[async_trait]
pub(crate) trait Link: Send + Sync {
    /// Whether it is there and takes us.
    async fn health(&self, about: About<'_>) -> Result<(), LinkFault>;

    /// Whether a key may become the reference of a new key here.
    async fn check_key(&self, key: &str, about: About<'_>) -> Result<(), LinkFault>;

    /// The outer layer over `inner`, bound to `aad`.
    async fn encrypt(&self, key: &str, inner: &[u8], aad: &[u8], about: About<'_>) -> Result<Vec<u8>, LinkFault>;

    /// Takes the outer layer off.
    async fn decrypt(&self, key: &str, outer: &[u8], aad: &[u8], about: About<'_>) -> Result<Vec<u8>, LinkFault>;

    /// Whether it wants to see the original caller's request.
    fn wants_proof(&self) -> bool;
}

/// What a store is.
#[derive(Clone)]
pub(crate) enum StoreKind {
    Hsm { cluster: String },
    Xks(XksConfig),
}

impl StoreKind {
    /// Whether both lead to the same place with the same credential.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hsm { cluster }, Self::Hsm { cluster: other }) => cluster == other,
            (Self::Xks(config), Self::Xks(other)) => config.is_same(other),
            (Self::Hsm { .. }, Self::Xks(_)) | (Self::Xks(_), Self::Hsm { .. }) => false,
        }
    }
}

/// How an external key store proxy is reached.
#[derive(Clone)]
pub(crate) struct XksConfig {
    pub endpoint: String,
    pub path: String,
    pub vpc_service: Option<String>,
    pub access_key_id: String,
    pub secret: Arc<ProxySecret>,
}

impl XksConfig {
    /// Whether both lead to the same place with the same credential.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let place = |config: &Self| (config.endpoint.clone(), config.path.clone(), config.access_key_id.clone());
        place(self) == place(other) && self.secret.raw.ct_eq(other.secret.raw.expose())
    }
}

/// What requests to a proxy are signed with.
pub(crate) struct ProxySecret {
    /// As it is stored, inside an encrypted record.
    pub raw: holdfast_crypto::SecretBytes,
    pub signing: SigningSecret,
}

impl ProxySecret {
    pub(crate) fn new(raw: &[u8]) -> Self {
        let copy = || holdfast_crypto::SecretBytes::copy_of(raw);
        Self { raw: copy(), signing: SigningSecret::new(copy()) }
    }
}

/// Whether a store is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Connection {
    Connected,
    Connecting,
    Disconnected,
    Failed(&'static str),
}

impl Connection {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connected => "CONNECTED",
            Self::Connecting => "CONNECTING",
            Self::Disconnected => "DISCONNECTED",
            Self::Failed(_) => "FAILED",
        }
    }
}

/// A store.
#[derive(Clone)]
pub(crate) struct KeyStore {
    pub id: String,
    pub name: String,
    pub account: Arc<str>,
    pub region: Arc<str>,
    pub created: Timestamp,
    pub kind: StoreKind,
    pub connection: Connection,
    pub record_version: u64,
    /// `None` if the configuration no longer lets the service connect there.
    pub link: Option<Arc<dyn Link>>,
}

/// How the other sides are reached, as the configuration says.
struct Links {
    proxies: Vec<ProxyAccess>,
    clusters: Vec<HsmCluster>,
    limits: StoreLimits,
    ambient: Arc<dyn Ambient>,
}

impl Links {
    fn link(&self, kind: &StoreKind, region: &Arc<str>) -> Option<Arc<dyn Link>> {
        match kind {
            StoreKind::Xks(config) => {
                let access = self.proxies.iter().find(|access| access.endpoint == config.endpoint)?;
                Some(Arc::new(xks::XksLink::new(
                    config,
                    region,
                    Arc::clone(&access.exchange),
                    access.caller_proof,
                    self.limits,
                    Arc::clone(&self.ambient),
                )))
            }
            StoreKind::Hsm { cluster } => {
                let cluster = self.clusters.iter().find(|known| known.id == *cluster)?;
                Some(Arc::new(hsm::HsmLink::new(
                    cluster.url.clone(),
                    Arc::clone(&cluster.keks),
                    Arc::clone(&cluster.maker),
                    self.limits,
                    Arc::clone(&self.ambient),
                )))
            }
        }
    }
}

/// The stores in memory, with their links.
struct Held {
    index: RwLock<BTreeMap<String, Arc<KeyStore>>>,
    links: Links,
}

impl Held {
    fn insert(&self, store: KeyStore) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.insert(store.id.clone(), Arc::new(store));
    }

    fn get(&self, id: &str) -> Option<Arc<KeyStore>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// A store as its record has it. Its link stays while it leads to the same place: it knows how well that is.
    fn read(&self, value: &[u8], version: u64) -> Option<KeyStore> {
        let stored: StoredStore = serde_json::from_slice(value).ok()?;
        let mut store = stored.into_store(version)?;
        let old = self.get(&store.id).filter(|old| old.kind.is_same(&store.kind) && old.region == store.region);
        store.link = match old {
            Some(old) => old.link.clone(),
            None => self.links.link(&store.kind, &store.region),
        };
        Some(store)
    }
}

impl Projection for Held {
    fn apply(&self, changes: &[Changed]) {
        for changed in changes.iter().filter(|changed| changed.key.kind == records::KEY_STORE) {
            match &changed.value {
                Some(value) => match self.read(value, changed.version) {
                    Some(store) => self.insert(store),
                    None => tracing::error!("a custom key store that was just written cannot be read"),
                },
                None => {
                    let id = std::str::from_utf8(&changed.key.id).unwrap_or_default();
                    self.index.write().unwrap_or_else(PoisonError::into_inner).remove(id);
                }
            }
        }
    }
}

/// All stores.
pub(crate) struct KeyStores {
    held: Arc<Held>,
    /// Held by whoever changes one.
    pub changing: Mutex<()>,
    store: Arc<dyn Store>,
    limits: StoreLimits,
    quotas: Quotas,
}

fn record_key(id: &str) -> RecordKey {
    RecordKey::new(records::KEY_STORE, id)
}

impl KeyStores {
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        ambient: Arc<dyn Ambient>,
        proxies: Vec<ProxyAccess>,
        clusters: Vec<HsmCluster>,
        limits: StoreLimits,
    ) -> Result<Self, StoreError> {
        let mut found = Vec::new();
        store.scan(records::KEY_STORE, &mut |record| found.push(record)).await?;
        let held = Held { index: RwLock::default(), links: Links { proxies, clusters, limits, ambient } };
        for record in found {
            let store = held.read(&record.value, record.version);
            held.insert(store.ok_or_else(|| StoreError::Failed("a custom key store cannot be read".into()))?);
        }
        let held = Arc::new(held);
        let watching = Arc::downgrade(&held);
        store.watch(watching);
        Ok(Self { held, changing: Mutex::default(), store, limits, quotas: Quotas::default() })
    }

    pub(crate) fn limits(&self) -> StoreLimits {
        self.limits
    }

    /// The other side of a store of this kind, if the service may connect to it.
    pub(crate) fn link(&self, kind: &StoreKind, region: &Arc<str>) -> Option<Arc<dyn Link>> {
        self.held.links.link(kind, region)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<KeyStore>> {
        self.held.get(id)
    }

    /// All of them, by id.
    pub(crate) fn all(&self) -> Vec<Arc<KeyStore>> {
        self.held.index.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Those of an account in a region, by id.
    pub(crate) fn of(&self, account: &str, region: &str) -> Vec<Arc<KeyStore>> {
        let index = self.held.index.read().unwrap_or_else(PoisonError::into_inner);
        index.values().filter(|store| *store.account == *account && *store.region == *region).cloned().collect()
    }

    /// Whether a key that lies in this store can be used as far as the store's state goes. A store that failed to connect, or whose
    /// other side is away, does not change the state of its keys.
    pub(crate) fn is_in_use(&self, id: &str) -> bool {
        self.get(id).is_some_and(|store| store.connection != Connection::Disconnected)
    }

    /// Makes a store or its new state durable, then visible. The caller holds `changing`.
    pub(crate) async fn put(&self, store: &KeyStore, event: Decided) -> Result<Committed, ApiError> {
        let stored = StoredStore::of(store);
        let value = serde_json::to_vec(&stored).map_err(|error| ApiError::internal(error.to_string()))?;
        event.by_leave_of(&[Action::ExternalKeyManagerWrite], &Resource::Keys)?;
        let write = Write { key: record_key(&store.id), expected_version: store.record_version, value: Some(value) };
        Ok(self.store.commit(Change { writes: vec![write], event }).await?)
    }

    /// Shows a state that is not kept: CONNECTING. False: there is a newer record, or none any more, and memory stays as that has it.
    #[must_use]
    pub(crate) fn show(&self, store: KeyStore) -> bool {
        let mut index = self.held.index.write().unwrap_or_else(PoisonError::into_inner);
        match index.get_mut(&store.id).filter(|held| held.record_version == store.record_version) {
            Some(held) => {
                *held = Arc::new(store);
                true
            }
            None => false,
        }
    }

    pub(crate) async fn remove(&self, store: &KeyStore, event: Decided) -> Result<Committed, ApiError> {
        event.by_leave_of(&[Action::ExternalKeyManagerWrite], &Resource::Keys)?;
        let write = Write { key: record_key(&store.id), expected_version: store.record_version, value: None };
        Ok(self.store.commit(Change { writes: vec![write], event }).await?)
    }

    /// The link of a store for one cryptographic request, if the store is in use and its quota not used up.
    pub(crate) fn admit(&self, id: &str) -> Result<Arc<dyn Link>, ApiError> {
        let store = self.get(id).ok_or_else(|| ApiError::internal("a key lies in a store that is not there"))?;
        if store.connection != Connection::Connected {
            return Err(ApiError::invalid_state(format!(
                "The custom key store {id} is {}; it must be CONNECTED",
                store.connection.name()
            )));
        }
        if !self.quotas.admit(id, self.limits.requests_per_sec, Instant::now()) {
            counter!("holdfast_external_key_store_throttle_total", "store" => id.to_owned()).increment(1);
            return Err(ApiError::throttled("The request quota of the custom key store is used up"));
        }
        store.link.clone().ok_or_else(|| {
            LinkFault::NotAsked("the configuration does not let the service connect there".into()).for_crypto(id)
        })
    }

    /// Is told how an exchange went.
    pub(crate) fn note(&self, store: &str, operation: &'static str, started: Instant, fault: Option<&LinkFault>) {
        let labels = [("store", store.to_owned()), ("operation", operation.to_owned())];
        histogram!("holdfast_xks_link_latency_seconds", &labels).record(started.elapsed().as_secs_f64());
        if let Some(fault) = fault {
            let [store, operation] = labels;
            counter!("holdfast_xks_link_errors_total", &[store, operation, ("error", fault.name().to_owned())])
                .increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::Itself;

    use super::*;
    use crate::{
        Directory,
        code::Code,
        usable::tests::{ACCOUNT, NOW, event, service_of, spent_on},
    };

    fn decided() -> Decided {
        let spent = spent_on(Action::ExternalKeyManagerWrite, Resource::Keys);
        Decided::by_itself(event(), Itself::Answered(spent))
    }

    #[tokio::test]
    async fn what_memory_shows_never_hides_a_newer_record() {
        let kms = service_of(Directory::new(Vec::new(), Vec::new()).unwrap()).await;
        let stores = &kms.stores;
        let made = KeyStore {
            id: "cks-1".into(),
            name: "one".into(),
            account: ACCOUNT.into(),
            region: "us-east-1".into(),
            created: NOW,
            kind: StoreKind::Hsm { cluster: "cluster".into() },
            connection: Connection::Disconnected,
            record_version: 0,
            link: None,
        };
        assert!(!stores.show(made.clone()), "it is not there");
        drop(stores.put(&made, decided()).await.unwrap());
        let of_first = KeyStore::clone(&stores.get("cks-1").unwrap());
        assert!(stores.show(KeyStore { connection: Connection::Connecting, ..of_first.clone() }));
        // The connection whose commit is said to have failed is on disk, and comes into memory.
        let connected = KeyStore { connection: Connection::Connected, ..of_first.clone() };
        drop(stores.put(&connected, decided()).await.unwrap());
        assert!(!stores.show(of_first.clone()));
        assert_eq!(stores.get("cks-1").unwrap().connection, Connection::Connected);
        // Whoever disconnects by what was shown before is decided anew.
        assert!(stores.put(&of_first, decided()).await.unwrap_err().is_stale());
        let now = stores.get("cks-1").unwrap();
        let disconnected = KeyStore { connection: Connection::Disconnected, ..KeyStore::clone(&now) };
        drop(stores.put(&disconnected, decided()).await.unwrap());
        assert_eq!(stores.get("cks-1").unwrap().connection, Connection::Disconnected);
        // By leave of something else nothing is changed.
        let read = || {
            let spent = spent_on(Action::ExternalKeyManagerRead, Resource::Keys);
            Decided::by_itself(event(), Itself::Answered(spent))
        };
        let now = KeyStore::clone(&stores.get("cks-1").unwrap());
        assert_eq!(stores.put(&now, read()).await.unwrap_err().code, Code::KmsInternal);
        assert_eq!(stores.remove(&now, read()).await.unwrap_err().code, Code::KmsInternal);
        drop(stores.remove(&now, decided()).await.unwrap());
    }
}

//! Role: an S3 service that encrypts everything it keeps by envelope.
//!
//! Each bucket (container) has a random AES-256 DEK, wrapped by a KEK that never leaves its HSM; the wrapped DEK lies
//! beside the data with the KEK's URL. Content keys are derived from the DEK, one for each stream. Objects may have a DEK of
//! their own (`aws:kms`), or the client's key (SSE-C).
//!
//! Reading order: `s3` (the protocol, on the s3s crate), `ops` (what is done), `encryption` (the one function that decides),
//! `deks` (unwrapped DEKs, for a bounded time), `body` and `format` (streams at rest), `record` and `rows` (the index), `rewrap`
//! and `collect` (what goes on in the background). The role sees KEKs, index and blobs through the seams of
//! `holdfast-core` only.

mod body;
mod call;
mod collect;
mod deks;
mod encryption;
mod error;
mod event;
#[cfg(forgery)]
mod forgeries;
mod format;
mod grant;
mod inspect;
mod ops;
mod orphans;
mod owner;
mod readers;
mod record;
mod rewrap;
mod room;
mod rows;
mod s3;
#[cfg(test)]
mod twins;
mod verify;
mod versions;
mod view;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use body::Written;
use deks::DekCache;
pub use deks::DekCacheLimits;
use error::{Error, Result, from_store};
pub use event::{founding_event, upgraded_event};
use grant::{Change, Upkeep, Whole};
use holdfast_core::{
    Ambient, AuditSink, BlobStore, Index, IndexChange, IndexDecision, IndexReader, IndexWrite, KekService, PartitionId,
    StoreError, Trouble,
};
use holdfast_service::Strangers;
pub use inspect::{StreamReport, envelope_in, inspect_stream};
pub use orphans::Orphans;
use owner::Blobs;
pub use owner::OwnerError;
use readers::Readers;
pub use rewrap::{KekUse, RewrapReport};
pub use room::{Room, RoomLeft};
pub use rows::SETS;
pub use s3::{AccessKey, S3, service};
use tokio::sync::Notify;
pub use verify::{SetReport, VerifyReport};
use view::View;

/// What the role stands on.
pub struct Seams {
    /// Wraps and unwraps DEKs.
    pub keks: Arc<dyn KekService>,
    /// Buckets, objects, uploads.
    pub index: Arc<dyn Index>,
    /// Bulk bytes.
    pub blobs: Arc<dyn BlobStore>,
    /// Whose they are.
    pub instance: PartitionId,
    /// Clock and entropy.
    pub ambient: Arc<dyn Ambient>,
    /// How much may still be written.
    pub room: Arc<dyn Room>,
    /// Who hears of every request.
    pub audit: Arc<dyn AuditSink>,
}

/// How long a client may send nothing of a body that it has begun: as of S3, whose clients send the request again.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How the role behaves.
#[derive(Clone, Debug, Default)]
pub struct StorageConfig {
    /// KEK of container DEKs, and of `aws:kms` without a key id. Without a version it follows rotation.
    pub default_kek: String,
    /// Bounds of the DEK cache.
    pub deks: DekCacheLimits,
    /// Keep everything in clear and refuse requests that ask for encryption: for measuring what encryption costs.
    pub encryption_off: bool,
    /// Region that buckets say they are in, and that requests are signed for.
    pub region: String,
    /// Domains under which a bucket may be addressed as a host.
    pub host_domains: Vec<String>,
    /// Whether new buckets refuse SSE-C until their encryption configuration says otherwise, as S3's do since April 2026.
    pub new_buckets_block_customer_keys: bool,
    /// How long a client may send nothing of a body; `None`: as long as [`BODY_IDLE_TIMEOUT`].
    pub body_idle_timeout: Option<Duration>,
    /// Whether blobs are taken that carry no mark of an installation, and that the index does not name.
    pub adopt_blobs: bool,
    /// Whether the log tells of requests that change nothing. Denials it tells always.
    pub audit_reads: bool,
}

/// The storage service.
pub struct Storage {
    config: StorageConfig,
    deks: DekCache,
    index: Arc<dyn Index>,
    blobs: Blobs,
    ambient: Arc<dyn Ambient>,
    room: Arc<dyn Room>,
    audit: Arc<dyn AuditSink>,
    strangers: Arc<Strangers>,
    /// Bytes on their way to the disk.
    promised: Arc<AtomicU64>,
    /// Whether the key service answered when it was last asked in the background.
    keks_reachable: AtomicBool,
    readers: Arc<Readers>,
    /// Told when a commit has left something for the collector.
    discarded: Notify,
    /// Held by the one who collects.
    collecting: tokio::sync::Mutex<()>,
    /// Held by the one who compares rows with what was committed.
    verifying: tokio::sync::Mutex<()>,
    efforts: Efforts,
}

/// What is tried again and again, and told when it begins to fail and when that is over.
#[derive(Default)]
struct Efforts {
    /// Collecting garbage.
    collecting: Trouble,
    /// Deleting a blob.
    deleting: Trouble,
    /// Following the rotation of KEKs.
    rotation: Trouble,
}

impl Storage {
    /// Opens the service. It starts, and does all that needs no key, while the key service is away.
    #[must_use]
    pub fn open(seams: Seams, config: StorageConfig) -> Arc<Self> {
        let Seams { keks, index, blobs, instance, ambient, room, audit } = seams;
        let deks = DekCache::new(keks, config.deks);
        Arc::new(Self {
            blobs: Blobs::new(blobs, instance, config.adopt_blobs),
            config,
            deks,
            index,
            ambient,
            room,
            strangers: Strangers::new(Arc::clone(&audit)),
            audit,
            promised: Arc::default(),
            keks_reachable: AtomicBool::new(true),
            readers: Arc::default(),
            discarded: Notify::new(),
            collecting: tokio::sync::Mutex::default(),
            verifying: tokio::sync::Mutex::default(),
            efforts: Efforts::default(),
        })
    }

    /// Drops all unwrapped DEKs at once; says how many there were.
    pub fn forget(&self) -> usize {
        self.deks.forget()
    }

    /// Tells the log what it is still to be told, before it is closed.
    pub async fn settle(&self) {
        self.strangers.flush().await;
    }

    /// Whether the key service answered when it was last asked.
    #[must_use]
    pub fn keks_reachable(&self) -> bool {
        self.keks_reachable.load(Ordering::Acquire)
    }

    fn ambient(&self) -> &dyn Ambient {
        self.ambient.as_ref()
    }

    fn now_millis(&self) -> i64 {
        self.ambient.now().unix_millis()
    }

    /// Looks at the index as it is now.
    fn look<T>(&self, look: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        let snapshot = self.index.snapshot().map_err(from_store)?;
        look(&View::new(snapshot.as_ref()))
    }

    /// The same for the service itself, over all buckets.
    fn look_whole<T>(&self, look: impl FnOnce(&Whole<'_>) -> Result<T>) -> Result<T> {
        self.look(|view| look(&Whole::of_itself(view, Upkeep::begin()?)?))
    }

    /// Decides and writes in one step, durable when it returns.
    async fn transact<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&View<'_>) -> Result<(T, Change)> + Send + 'static,
    ) -> Result<T> {
        let decided = self.transact_if(move |view| decide(view).map(Some)).await?;
        decided.ok_or(Error::Internal(UNDECIDED))
    }

    /// The same, where there may be nothing to write any more.
    async fn transact_if<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&View<'_>) -> Result<Option<(T, Change)>> + Send + 'static,
    ) -> Result<Option<T>> {
        self.commit(decide).await.map_err(from_store)?
    }

    /// Names in the index what was written. This goes on to its end though the client hang up: a commit under way cannot be called
    /// back, and what it names must not be deleted under it.
    async fn transact_written<T: Send + 'static>(
        self: &Arc<Self>,
        mut written: Written,
        decide: impl FnOnce(&View<'_>) -> Result<(T, Change)> + Send + 'static,
    ) -> Result<T> {
        let storage = Arc::clone(self);
        let committed = tokio::spawn(async move {
            let outcome = storage.commit(move |view| decide(view).map(Some)).await;
            // Where it is not known whether the commit took place, a later look will find out what is an orphan.
            if matches!(outcome, Ok(Ok(_)) | Err(StoreError::Failed(_))) {
                written.keep();
            }
            outcome.map_err(from_store)?
        });
        let decided = committed.await.map_err(|_| Error::Internal("The change was not carried out"))??;
        decided.ok_or(Error::Internal(UNDECIDED))
    }

    /// Writes what is nobody's change, durable when it returns.
    async fn keep(&self, decide: impl FnOnce(&View<'_>) -> Result<Change> + Send + 'static) -> Result<()> {
        let (decision, slot) = decision(move |view| decide(view).map(|change| Some(((), change))));
        self.index.keep(decision).await.map_err(from_store)?;
        self.committed(&slot).map(drop)
    }

    /// The outer error is the index's, the inner one the decision's.
    async fn commit<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&View<'_>) -> Result<Option<(T, Change)>> + Send + 'static,
    ) -> Result<Result<Option<T>>, StoreError> {
        let (decision, slot) = decision(decide);
        self.index.commit(decision).await?;
        Ok(self.committed(&slot))
    }

    /// Takes in that a decision is durable.
    fn committed<T>(&self, slot: &Mutex<Option<Decided<T>>>) -> Result<Option<T>> {
        let decided = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let decided = decided.ok_or(Error::Internal(UNDECIDED))?;
        if decided.discards {
            self.discarded.notify_one();
        }
        if let Some(settles) = decided.settles {
            settles.store(true, Ordering::Release);
        }
        decided.outcome
    }
}

/// What a decision came to, inside its commit.
struct Decided<T> {
    outcome: Result<Option<T>>,
    /// Whether it leaves something to the collector.
    discards: bool,
    settles: Option<Arc<AtomicBool>>,
}

/// A decision as the index runs it, and the place where it leaves what it came to.
fn decision<T: Send + 'static>(
    decide: impl FnOnce(&View<'_>) -> Result<Option<(T, Change)>> + Send + 'static,
) -> (IndexDecision, Arc<Mutex<Option<Decided<T>>>>) {
    let slot = Arc::new(Mutex::new(None));
    let left = Arc::clone(&slot);
    let decision = move |reader: &dyn IndexReader| {
        let (outcome, change, settles) = match decide(&View::new(reader)) {
            Ok(Some((value, change))) => {
                let (change, settles) = change.into_parts();
                (Ok(Some(value)), change, settles)
            }
            Ok(None) => (Ok(None), IndexChange::default(), None),
            Err(error) => (Err(error), IndexChange::default(), None),
        };
        let leaves = |write: &IndexWrite| write.value.is_some() && rows::is_for_collector(&write.key);
        let discards = change.writes.iter().any(leaves);
        *left.lock().unwrap_or_else(PoisonError::into_inner) = Some(Decided { outcome, discards, settles });
        Ok(change)
    };
    (Box::new(decision), slot)
}

/// A commit that gave no answer.
const UNDECIDED: &str = "The change was not decided";

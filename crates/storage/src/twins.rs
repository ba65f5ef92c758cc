//! What the role stands on, in memory, for its unit tests: no key service, blobs without bytes, an index that counts.

use std::{
    collections::HashSet,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::{
    Action, Ambient, AuditError, AuditEvent, AuditSink, BlobId, BlobStore, BlobWriter, Index, IndexDecision,
    IndexReader, IndexVisitor, KekError, KekService, PartitionId, Revision, SetNames, StoreError, Timestamp,
    WrappedDek,
};
use holdfast_crypto::SecretBytes;
use holdfast_store::MemoryIndex;

use crate::{
    AccessKey,
    call::{Act, Arrived, Call, Named},
    s3::authn::Directory,
};
use crate::{DekCacheLimits, Room, RoomLeft, Seams, Storage, StorageConfig};

/// Each byte that is asked for is another than the one before; time stands.
#[derive(Default)]
struct Counting(AtomicU64);
impl Ambient for Counting {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let next = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            chunk.copy_from_slice(&next[8 - chunk.len()..]);
        }
    }
}

struct NoKeks;
#[async_trait]
impl KekService for NoKeks {
    async fn wrap(&self, kek: &str, _: &SecretBytes) -> Result<WrappedDek, KekError> {
        Err(KekError::NotFound(kek.into()))
    }
    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        Err(KekError::NotFound(wrapped.kek_url.clone()))
    }
    async fn newest_version(&self, kek: &str) -> Result<String, KekError> {
        Err(KekError::NotFound(kek.into()))
    }
    fn knows(&self, _: &str) -> bool {
        false
    }
    fn without_version(&self, kek: &str) -> String {
        kek.into()
    }
}

/// A log that takes everything in.
struct Deaf;
#[async_trait]
impl AuditSink for Deaf {
    async fn append(&self, _: AuditEvent) -> Result<(), AuditError> {
        Ok(())
    }
}

struct Endless;
impl Room for Endless {
    fn left(&self) -> RoomLeft {
        RoomLeft { free: u64::MAX, reserve: 0 }
    }
}

/// Names of blobs, without bytes, and whose they are.
#[derive(Default)]
pub(crate) struct Names(pub Mutex<HashSet<BlobId>>, pub Mutex<Option<Vec<u8>>>);
#[async_trait]
impl BlobStore for Names {
    async fn create(&self, _: BlobId) -> Result<Box<dyn BlobWriter>, StoreError> {
        Err(StoreError::Busy)
    }
    async fn read(&self, _: BlobId, _: u64, _: usize) -> Result<Bytes, StoreError> {
        Err(StoreError::Damaged)
    }
    async fn delete(&self, id: BlobId) -> Result<(), StoreError> {
        self.0.lock().unwrap().remove(&id);
        Ok(())
    }
    async fn list_older(&self, _: u64) -> Result<Vec<BlobId>, StoreError> {
        Ok(self.0.lock().unwrap().iter().copied().collect())
    }
    async fn drop_unfinished(&self) -> Result<usize, StoreError> {
        Ok(0)
    }
    async fn owner_mark(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.1.lock().unwrap().clone())
    }
    async fn leave_owner_mark(&self, mark: &[u8]) -> Result<bool, StoreError> {
        let mut held = self.1.lock().unwrap();
        let free = held.is_none();
        held.get_or_insert_with(|| mark.to_vec());
        Ok(free)
    }
}

/// An index that counts what its commits look at and write.
#[derive(Default)]
pub(crate) struct Counted {
    index: MemoryIndex,
    pub commits: AtomicUsize,
    /// The most that one commit has looked at, in rows and bytes, and the most that it has written, in rows.
    pub rows_read_max: Arc<AtomicUsize>,
    pub bytes_read_max: Arc<AtomicUsize>,
    pub rows_written_max: Arc<AtomicUsize>,
}

impl Counted {
    pub(crate) fn reset(&self) {
        self.commits.store(0, Ordering::SeqCst);
        for most in [&self.rows_read_max, &self.bytes_read_max, &self.rows_written_max] {
            most.store(0, Ordering::SeqCst);
        }
    }

    /// Rows read, bytes read, rows written.
    pub(crate) fn most(&self) -> (usize, usize, usize) {
        let read = |most: &AtomicUsize| most.load(Ordering::SeqCst);
        (read(&self.rows_read_max), read(&self.bytes_read_max), read(&self.rows_written_max))
    }
}

struct CountingReader<'a> {
    reader: &'a dyn IndexReader,
    rows: AtomicUsize,
    bytes: AtomicUsize,
}

impl CountingReader<'_> {
    fn count(&self, value: &[u8]) {
        self.rows.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(value.len(), Ordering::SeqCst);
    }
}

impl IndexReader for CountingReader<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.reader.get(key)?;
        self.count(value.as_deref().unwrap_or_default());
        Ok(value)
    }

    fn scan(&self, from: &[u8], prefix: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        self.reader.scan(from, prefix, &mut |key, value| -> ControlFlow<()> {
            self.count(value);
            visit(key, value)
        })
    }
}

#[async_trait]
impl Index for Counted {
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError> {
        self.index.snapshot()
    }

    fn sets(&self) -> Result<SetNames, StoreError> {
        self.index.sets()
    }

    async fn keep(&self, decide: IndexDecision) -> Result<(), StoreError> {
        self.commit(decide).await.map(drop)
    }

    async fn commit(&self, decide: IndexDecision) -> Result<Revision, StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let (rows, bytes) = (Arc::clone(&self.rows_read_max), Arc::clone(&self.bytes_read_max));
        let written = Arc::clone(&self.rows_written_max);
        let decide: IndexDecision = Box::new(move |reader| {
            let reader = CountingReader { reader, rows: AtomicUsize::new(0), bytes: AtomicUsize::new(0) };
            let change = decide(&reader)?;
            rows.fetch_max(reader.rows.into_inner(), Ordering::SeqCst);
            bytes.fetch_max(reader.bytes.into_inner(), Ordering::SeqCst);
            written.fetch_max(change.writes.len(), Ordering::SeqCst);
            Ok(change)
        });
        self.index.commit(decide).await
    }
}

pub(crate) const INSTANCE: PartitionId = PartitionId::from_bytes([7; 16]);

/// A service without encryption over these.
pub(crate) fn storage() -> (Arc<Storage>, Arc<Names>, Arc<Counted>) {
    let (blobs, index) = (Arc::new(Names::default()), Arc::new(Counted::default()));
    (over(&blobs, &index), blobs, index)
}

/// A service with an index of its own over these blobs.
pub(crate) fn storage_over(blobs: &Arc<Names>) -> Arc<Storage> {
    over(blobs, &Arc::default())
}

/// A service over these.
pub(crate) fn over(blobs: &Arc<Names>, index: &Arc<Counted>) -> Arc<Storage> {
    let seams = Seams {
        keks: Arc::new(NoKeks),
        index: Arc::clone(index) as _,
        blobs: Arc::clone(blobs) as _,
        instance: INSTANCE,
        ambient: Arc::new(Counting::default()),
        room: Arc::new(Endless),
        audit: Arc::new(Deaf),
    };
    let config = StorageConfig {
        default_kek: String::new(),
        deks: DekCacheLimits::default(),
        encryption_off: true,
        ..StorageConfig::default()
    };
    Storage::open(seams, config)
}

/// A request of somebody to the bucket `b`, found to be this.
pub(crate) fn call(operation: &'static str, action: Action, key: Option<&str>) -> Arc<Call> {
    let key_of = AccessKey { id: "AK".into(), secret: "secret".into(), principal: "somebody".into() };
    let arrived = Arrived::new("0123456789ABCDEF", None, "/b", &http::HeaderMap::new(), &Counting::default());
    let verified = s3s::auth::Credentials { access_key: "AK".into(), secret_key: "secret".into() };
    let caller = Directory::new(vec![key_of]).caller(Some(&verified), &arrived).unwrap();
    let bucket = Named { bucket: "b".into(), owner: None };
    Call::new(&arrived, caller, Act { operation, action, bucket, key: key.map(str::to_owned), source: None })
}

//! What is deleted in the background: blobs that nothing refers to any more, and orphans of crashes.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use holdfast_core::{BlobId, IndexWrite};
use s3s::S3Result;

use crate::{
    Storage,
    ops::versions::record_of,
    record::{self, Id, ManifestPart, PartRecord},
    rows,
};

/// A blob without an owner is an orphan at this age: no request takes longer to name what it wrote.
const ORPHAN_AGE_SECS: u64 = 24 * 3600;
/// Garbage rows taken in one pass: some 50 MB of memory.
const BATCH: usize = 1_000_000;

/// Readers that began before a blob became garbage have this long to end.
const GARBAGE_AGE: Duration = Duration::from_secs(15 * 60);

/// Garbage, and when it was first seen.
#[derive(Default)]
pub struct Collector {
    seen: HashMap<Id, Instant>,
}

impl Collector {
    /// One pass: deletes garbage that is old enough, remembers what is new. Says how many blobs were deleted.
    pub async fn pass(&mut self, storage: &Storage) -> usize {
        self.pass_at(storage, Instant::now()).await
    }

    async fn pass_at(&mut self, storage: &Storage, now: Instant) -> usize {
        storage.deks.sweep();
        let rows = match storage.garbage() {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "garbage could not be listed");
                return 0;
            }
        };
        let mut seen = HashMap::with_capacity(rows.len());
        let mut old = Vec::new();
        for id in rows {
            let since = *self.seen.get(&id).unwrap_or(&now);
            seen.insert(id, since);
            if now.duration_since(since) >= GARBAGE_AGE {
                old.push(id);
            }
        }
        self.seen = seen;
        let mut deleted = Vec::new();
        for id in old {
            match storage.blobs.delete(id.blob()).await {
                Ok(()) => deleted.push(id),
                Err(error) => tracing::warn!(%error, blob = %id, "a blob could not be deleted"),
            }
        }
        let count = deleted.len();
        if count > 0 {
            let forgotten = storage
                .transact(move |_| {
                    Ok(((), deleted.into_iter().map(|id| IndexWrite::remove(rows::garbage(id))).collect()))
                })
                .await;
            if let Err(error) = forgotten {
                tracing::warn!(%error, "deleted blobs could not be struck off");
            }
        }
        count
    }
}

impl Storage {
    fn garbage(&self) -> S3Result<Vec<Id>> {
        self.look(|view| {
            let mut found = Vec::new();
            view.scan(&rows::all_garbage(), &rows::all_garbage(), |row, _| {
                found.extend(row.get(1..17).and_then(|id| id.try_into().ok()).map(Id));
                Ok(if found.len() == BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(found)
        })
    }

    /// Every blob that something refers to.
    fn referenced(&self) -> S3Result<HashSet<BlobId>> {
        self.look(|view| {
            let mut all = HashSet::new();
            for rows in [rows::all_objects(), rows::all_versions()] {
                view.scan(&rows, &rows, |_, value| {
                    all.extend(record_of(value)?.stream.filter(|stream| !stream.inline).map(|stream| stream.id.blob()));
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            view.scan(&rows::all_manifests(), &rows::all_manifests(), |_, value| {
                let parts: Vec<ManifestPart> = crate::view::decode_manifest(value)?;
                all.extend(parts.iter().map(|part| part.stream.id.blob()));
                Ok(ControlFlow::Continue(()))
            })?;
            view.scan(&rows::all_parts(), &rows::all_parts(), |_, value| {
                all.extend(record::decode::<PartRecord>(value).map(|(part, _)| part.stream.id.blob()));
                Ok(ControlFlow::Continue(()))
            })?;
            view.scan(&rows::all_garbage(), &rows::all_garbage(), |row, _| {
                all.extend(row.get(1..17).and_then(|id| id.try_into().ok()).map(|id| Id(id).blob()));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(all)
        })
    }

    /// Deletes blobs that a crash left without an owner. `all`: whatever their age, which only a process that has just
    /// started and serves nobody yet may ask for. Says how many.
    ///
    /// # Errors
    /// If the index or the blobs cannot be listed.
    pub async fn collect_orphans(&self, all: bool) -> Result<usize, String> {
        let age = if all { 0 } else { ORPHAN_AGE_SECS };
        // Listed first: what is named meanwhile is found below.
        let blobs = self.blobs.list_older(age).await.map_err(|error| error.to_string())?;
        if blobs.is_empty() {
            return Ok(0);
        }
        let referenced = self.referenced().map_err(|error| error.to_string())?;
        let mut count = 0;
        for id in blobs.into_iter().filter(|id| !referenced.contains(id)) {
            match self.blobs.delete(id).await {
                Ok(()) => count += 1,
                Err(error) => tracing::warn!(%error, blob = %id, "an orphan could not be deleted"),
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use holdfast_core::{Ambient, BlobStore, BlobWriter, KekError, KekService, StoreError, Timestamp, WrappedDek};
    use holdfast_crypto::SecretBytes;
    use holdfast_store::MemoryIndex;

    use super::*;
    use crate::{DekCacheLimits, Seams, StorageConfig};

    struct Still;
    impl Ambient for Still {
        fn now(&self) -> Timestamp {
            Timestamp::default()
        }
        fn fill(&self, out: &mut [u8]) {
            out.fill(0);
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

    /// Names of blobs, without bytes.
    #[derive(Default)]
    struct Names(Mutex<HashSet<BlobId>>);
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
    }

    fn storage() -> (Arc<Storage>, Arc<Names>) {
        let blobs = Arc::new(Names::default());
        let seams = Seams {
            keks: Arc::new(NoKeks),
            index: Arc::new(MemoryIndex::default()),
            blobs: Arc::clone(&blobs) as _,
            ambient: Arc::new(Still),
        };
        let config = StorageConfig {
            default_kek: String::new(),
            deks: DekCacheLimits::default(),
            encryption_off: false,
            region: String::new(),
        };
        (Storage::open(seams, config), blobs)
    }

    fn blob(byte: u8) -> Id {
        Id([byte; 16])
    }

    async fn put(storage: &Storage, row: Vec<u8>, value: Vec<u8>) {
        storage.transact(move |_| Ok(((), vec![IndexWrite::put(row, value)]))).await.unwrap();
    }

    #[tokio::test]
    async fn garbage_goes_at_its_age_and_not_before() {
        let (storage, blobs) = storage();
        blobs.0.lock().unwrap().extend([blob(1).blob(), blob(2).blob(), blob(3).blob()]);
        put(&storage, rows::garbage(blob(1)), Vec::new()).await;
        let (mut collector, begun) = (Collector::default(), Instant::now());
        assert_eq!(collector.pass_at(&storage, begun).await, 0);
        put(&storage, rows::garbage(blob(2)), Vec::new()).await;
        let almost = begun + GARBAGE_AGE - Duration::from_secs(1);
        assert_eq!(collector.pass_at(&storage, almost).await, 0, "readers may still need it");
        assert_eq!(collector.pass_at(&storage, begun + GARBAGE_AGE).await, 1, "the first, and not the one seen later");
        assert_eq!(*blobs.0.lock().unwrap(), HashSet::from([blob(2).blob(), blob(3).blob()]));
        assert_eq!(collector.pass_at(&storage, almost + GARBAGE_AGE).await, 1);
        assert_eq!(storage.garbage().unwrap(), [], "both are struck off");
        assert_eq!(*blobs.0.lock().unwrap(), HashSet::from([blob(3).blob()]), "what is no garbage stays");
    }

    #[tokio::test]
    async fn an_orphan_is_what_no_row_names() {
        let (storage, blobs) = storage();
        blobs.0.lock().unwrap().extend([1, 2, 3, 4].map(|byte| blob(byte).blob()));
        let stream = |id| crate::record::StreamRecord { id, size: 1, inline: false };
        let part =
            PartRecord { v: 1, number: 1, stream: stream(blob(1)), etag: String::new(), modified: 0, checksum: None };
        put(&storage, rows::part(blob(9), 1), record::encode(&part, &[])).await;
        let manifest = [ManifestPart { number: 1, stream: stream(blob(2)), checksum: None }];
        put(&storage, rows::manifest(blob(8)), serde_json::to_vec(&manifest).unwrap()).await;
        put(&storage, rows::garbage(blob(3)), Vec::new()).await;
        assert_eq!(storage.collect_orphans(true).await, Ok(1));
        assert_eq!(*blobs.0.lock().unwrap(), HashSet::from([1, 2, 3].map(|byte| blob(byte).blob())));
    }
}

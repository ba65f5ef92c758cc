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
        storage.deks.sweep();
        let rows = match storage.garbage() {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "garbage could not be listed");
                return 0;
            }
        };
        let now = Instant::now();
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

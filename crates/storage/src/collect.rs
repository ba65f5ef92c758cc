//! What goes on in the background: blobs that nothing refers to any more are deleted, as soon as nobody reads them; what big changes
//! left behind is cleared away in small commits.
//!
//! Whatever is interrupted here is done again: a row that asks for something goes only after it was done.

use std::{collections::HashSet, ops::ControlFlow, time::Duration};

use futures::{StreamExt, stream};
use holdfast_core::IndexWrite;

use crate::{
    Storage,
    error::Result,
    grant::Upkeep,
    record::{self, CompletedRecord, FORMAT, Id, ManifestPart, UploadRecord, Waste},
    rows,
    view::{decode_manifest, waste},
};

/// Rows that one commit of the collector changes: a millisecond or two in which others wait.
pub(crate) const ROWS_A_COMMIT: usize = 256;
/// Blobs deleted at a time.
const DELETIONS_AT_ONCE: usize = 8;
/// How long the answer to a completed upload is remembered. A client that lost it asks again within minutes.
const COMPLETED_AGE: Duration = Duration::from_secs(24 * 3600);

/// A blob to be deleted, and the object whose readers it waits for.
struct Garbage {
    blob: Id,
    object: Option<Id>,
}

impl Storage {
    /// Waits until there may be something to collect.
    pub async fn collectable(&self) {
        tokio::select! {
            () = self.discarded.notified() => {}
            () = self.readers.ended() => {}
        }
    }

    /// One pass: deletes all garbage that nobody reads. Says how many blobs were deleted. Passes do not overlap.
    pub async fn collect(&self) -> usize {
        let _turn = self.collecting.lock().await;
        self.deks.sweep();
        let trouble = &self.efforts.collecting;
        let deleted = match self.collect_all().await {
            Ok(deleted) => {
                if trouble.ends() {
                    tracing::info!("garbage is collected again");
                }
                deleted
            }
            Err(error) => {
                if trouble.begins() {
                    tracing::warn!(%error, "garbage could not be collected");
                }
                0
            }
        };
        metrics::counter!("holdfast_storage_blobs_collected_total").increment(deleted as u64);
        deleted
    }

    async fn collect_all(&self) -> Result<usize> {
        Ok(self.collect_garbage().await? + self.collect_waste().await?)
    }

    async fn collect_garbage(&self) -> Result<usize> {
        let (mut deleted, mut from, mut kept) = (0, rows::all_garbage(), 0_usize);
        loop {
            let page = self.garbage(&from)?;
            let Some(last) = page.last() else { break };
            from = [rows::garbage(last.blob), vec![0]].concat();
            self.readers.settle();
            let (held, free): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|garbage| garbage.object.is_some_and(|object| self.readers.holds(object)));
            kept += held.len();
            let gone = self.delete_blobs(free.into_iter().map(|garbage| garbage.blob).collect()).await;
            deleted += gone.len();
            self.write(gone.into_iter().map(|id| IndexWrite::remove(rows::garbage(id))).collect()).await?;
        }
        metrics::gauge!("holdfast_storage_garbage_blobs_held").set(kept as f64);
        Ok(deleted)
    }

    /// A page of blobs to be deleted.
    fn garbage(&self, from: &[u8]) -> Result<Vec<Garbage>> {
        self.look_whole(|view| {
            let mut found = Vec::new();
            view.scan(from, &rows::all_garbage(), |row, object| {
                let blob = rows::collected_id(row);
                found.extend(blob.map(|blob| Garbage { blob, object: object.try_into().ok().map(Id) }));
                Ok(if found.len() == ROWS_A_COMMIT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(found)
        })
    }

    /// Says which are gone.
    async fn delete_blobs(&self, blobs: Vec<Id>) -> Vec<Id> {
        let asked = blobs.len();
        let trouble = &self.efforts.deleting;
        let store = match self.own_blobs().await {
            Ok(store) => store,
            Err(error) => {
                if trouble.begins() {
                    tracing::warn!(%error, "garbage is left where it is");
                }
                return Vec::new();
            }
        };
        let deletions = stream::iter(blobs).map(move |id| {
            let store = store.clone();
            async move { store.delete(id.blob()).await.map(|()| id).map_err(|error| (id, error)) }
        });
        let mut gone = Vec::with_capacity(asked);
        let mut deletions = deletions.buffer_unordered(DELETIONS_AT_ONCE);
        while let Some(deleted) = deletions.next().await {
            match deleted {
                Ok(id) => gone.push(id),
                Err((id, error)) if trouble.begins() => {
                    tracing::warn!(%error, blob = %id, "a blob could not be deleted; it is tried again");
                }
                Err(_) => {}
            }
        }
        if asked > 0 && gone.len() == asked && trouble.ends() {
            tracing::info!("blobs are deleted again");
        }
        gone
    }

    pub(crate) async fn write(&self, writes: Vec<IndexWrite>) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        self.keep(move |_| Upkeep::begin()?.change(writes)).await
    }

    async fn collect_waste(&self) -> Result<usize> {
        let (mut deleted, mut from) = (0, rows::all_waste());
        loop {
            let next = self.look_whole(|view| {
                let mut next = None;
                view.scan(&from, &rows::all_waste(), |row, value| {
                    next = rows::collected_id(row).zip(record::decode::<Waste>(value).map(|(what, _)| what));
                    Ok(ControlFlow::Break(()))
                })?;
                Ok(next)
            })?;
            let Some((id, what)) = next else { return Ok(deleted) };
            from = [rows::waste(id), vec![0]].concat();
            deleted += match what {
                Waste::Manifest { .. } => self.clear_manifest(id).await?,
                Waste::Parts { object, .. } => self.clear_parts(id, object).await?,
                Waste::Uploads { .. } => self.clear_uploads(id).await?,
            };
        }
    }

    /// A discarded object of many parts, when its last reader has ended.
    async fn clear_manifest(&self, object: Id) -> Result<usize> {
        self.readers.settle();
        if self.readers.holds(object) {
            return Ok(0);
        }
        let parts = self.manifest_of(object)?.unwrap_or_default();
        let gone = self.delete_blobs(parts.iter().map(|part| part.stream.id).collect()).await;
        if gone.len() == parts.len() {
            self.write(vec![IndexWrite::remove(rows::manifest(object)), IndexWrite::remove(rows::waste(object))])
                .await?;
        }
        Ok(gone.len())
    }

    fn manifest_of(&self, object: Id) -> Result<Option<Vec<ManifestPart>>> {
        self.look_whole(|view| view.find_manifest(object)?.as_deref().map(decode_manifest).transpose())
    }

    /// The parts of an upload that is over. Those that became a part of the object stay, if it is still there: an object without a
    /// manifest was discarded, and its blobs with it.
    async fn clear_parts(&self, upload: Id, object: Option<Id>) -> Result<usize> {
        let manifest = object.map(|object| self.manifest_of(object)).transpose()?.flatten().unwrap_or_default();
        let kept: HashSet<Id> = manifest.into_iter().map(|part| part.stream.id).collect();
        let mut deleted = 0;
        loop {
            let parts = self.look_whole(|view| view.parts(upload, 0, ROWS_A_COMMIT))?;
            if parts.is_empty() {
                self.write(vec![IndexWrite::remove(rows::waste(upload))]).await?;
                return Ok(deleted);
            }
            let unused = parts.iter().map(|part| part.stream.id).filter(|id| !kept.contains(id)).collect();
            let gone: HashSet<Id> = self.delete_blobs(unused).await.into_iter().collect();
            deleted += gone.len();
            let done = parts.iter().filter(|part| kept.contains(&part.stream.id) || gone.contains(&part.stream.id));
            let writes: Vec<_> = done.map(|part| IndexWrite::remove(rows::part(upload, part.number))).collect();
            let all = writes.len() == parts.len();
            self.write(writes).await?;
            if !all {
                return Ok(deleted);
            }
        }
    }

    /// The uploads that were under way in a bucket that is deleted.
    async fn clear_uploads(&self, bucket: Id) -> Result<usize> {
        loop {
            let uploads = self.look_whole(|view| {
                let (mut uploads, all) = (Vec::new(), rows::uploads(bucket));
                view.scan(&all, &all, |row, value| {
                    uploads.push((row.to_vec(), record::decode::<UploadRecord>(value).map(|(upload, _)| upload.id)));
                    Ok(if uploads.len() == ROWS_A_COMMIT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
                Ok(uploads)
            })?;
            let mut writes = Vec::new();
            for (row, id) in uploads {
                writes.push(IndexWrite::remove(row));
                writes.extend(id.map(|id| waste(id, &Waste::Parts { v: FORMAT, object: None })));
            }
            if writes.is_empty() {
                self.write(vec![IndexWrite::remove(rows::waste(bucket))]).await?;
                return Ok(0);
            }
            self.write(writes).await?;
        }
    }

    /// Forgets answers that were given long ago. Says how many.
    ///
    /// # Errors
    /// If the index cannot be read or written.
    pub async fn forget_completed(&self) -> Result<usize, String> {
        let oldest = self.now_millis() - i64::try_from(COMPLETED_AGE.as_millis()).unwrap_or(i64::MAX);
        let old = self.look_whole(|view| {
            let mut old = Vec::new();
            view.scan(&rows::all_completed(), &rows::all_completed(), |row, value| {
                let done: Option<(CompletedRecord, _)> = record::decode(value);
                if done.is_none_or(|(done, _)| done.completed < oldest) {
                    old.push(IndexWrite::remove(row.to_vec()));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(old)
        });
        let old = old.map_err(|error| error.to_string())?;
        let count = old.len();
        for rows in old.chunks(ROWS_A_COMMIT) {
            self.write(rows.to_vec()).await.map_err(|error| error.to_string())?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;

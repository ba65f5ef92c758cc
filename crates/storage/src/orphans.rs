//! Blobs that nothing names.
//!
//! A crash leaves such blobs. But an index may also be an older one than its blobs, and then they are somebody's data: so a blob without a name is
//! kept for a month after it was found to have none, and counted.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use holdfast_core::{BlobId, IndexWrite};

use crate::{
    Storage,
    collect::ROWS_A_COMMIT,
    error::{Result, from_store},
    record::{self, Id, ManifestPart, PartRecord},
    rows,
    view::{decode_manifest, record_of},
};

/// A blob that nothing names is an orphan at this age: no request takes longer to name what it wrote.
const ORPHAN_AGE_SECS: u64 = 24 * 3600;
/// So long after it was set aside an orphan is deleted.
const ASIDE_MILLIS: i64 = 30 * 24 * 3600 * 1000;
/// What a look for orphans has found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Orphans {
    /// Blobs that nothing names, kept for now.
    pub aside: usize,
    /// Of those, how many were not known before.
    pub new: usize,
    /// Those that had been set aside long ago, and are deleted.
    pub deleted: usize,
}

impl Storage {
    /// Every blob that something refers to, be it to have it deleted.
    pub(crate) fn referenced(&self) -> Result<HashSet<BlobId>> {
        let mut all = self.in_use()?;
        self.look_whole(|view| {
            view.scan(&rows::all_garbage(), &rows::all_garbage(), |row, _| {
                all.extend(rows::collected_id(row).map(Id::blob));
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(all)
    }

    /// Every blob that belongs to an object or an upload.
    pub(crate) fn in_use(&self) -> Result<HashSet<BlobId>> {
        self.look_whole(|view| {
            let mut all = HashSet::new();
            for rows in [rows::all_objects(), rows::all_versions()] {
                view.scan(&rows, &rows, |_, value| {
                    all.extend(record_of(value)?.stream.filter(|stream| !stream.inline).map(|stream| stream.id.blob()));
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            view.scan(&rows::all_manifests(), &rows::all_manifests(), |_, value| {
                let parts: Vec<ManifestPart> = decode_manifest(value)?;
                all.extend(parts.iter().map(|part| part.stream.id.blob()));
                Ok(ControlFlow::Continue(()))
            })?;
            view.scan(&rows::all_parts(), &rows::all_parts(), |_, value| {
                all.extend(record::decode::<PartRecord>(value).map(|(part, _)| part.stream.id.blob()));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(all)
        })
    }

    /// The orphans that were set aside, and since when.
    fn aside(&self) -> Result<HashMap<BlobId, i64>> {
        self.look_whole(|view| {
            let mut aside = HashMap::new();
            view.scan(&rows::all_orphans(), &rows::all_orphans(), |row, since| {
                let since = since.try_into().map(i64::from_be_bytes).unwrap_or(i64::MAX);
                aside.extend(rows::collected_id(row).map(|id| (id.blob(), since)));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(aside)
        })
    }

    /// Looks for blobs that nothing names. Those of a day's age are set aside: a row of the index says since when. Those that were set
    /// aside a month ago are deleted.
    ///
    /// # Errors
    /// If the index or the blobs cannot be listed, or rows of the index were dropped: then nothing is an orphan because nothing names it.
    pub async fn look_for_orphans(&self) -> std::result::Result<Orphans, String> {
        self.try_look_for_orphans().await.map_err(|error| error.reason())
    }

    async fn try_look_for_orphans(&self) -> Result<Orphans> {
        // Listed first: what is named meanwhile is found below.
        let blobs = self.blobs.list_older(ORPHAN_AGE_SECS).await.map_err(from_store)?;
        let mut aside = self.aside()?;
        if blobs.is_empty() && aside.is_empty() {
            return Ok(Orphans::default());
        }
        let (referenced, now) = (self.referenced()?, self.now_millis());
        let (mut writes, mut due, mut found) = (Vec::new(), Vec::new(), Orphans::default());
        for blob in blobs.into_iter().filter(|blob| !referenced.contains(blob)) {
            let row = rows::orphan(Id(blob.0));
            match aside.remove(&blob) {
                None => {
                    found.new += 1;
                    writes.push(IndexWrite::put(row, now.to_be_bytes().to_vec()));
                }
                Some(since) if now.saturating_sub(since) >= ASIDE_MILLIS => due.push(blob),
                Some(_) => {}
            }
            found.aside += 1;
        }
        // The others are gone, or have a name again.
        writes.extend(aside.into_keys().map(|blob| IndexWrite::remove(rows::orphan(Id(blob.0)))));
        // No blob is an orphan because somebody has dropped the row that names it.
        if !due.is_empty() && self.rows_are_whole().await? {
            let blobs = self.own_blobs().await?;
            for blob in due {
                match blobs.delete(blob).await {
                    Ok(()) => {
                        found.deleted += 1;
                        found.aside -= 1;
                        writes.push(IndexWrite::remove(rows::orphan(Id(blob.0))));
                    }
                    Err(error) => tracing::warn!(%error, blob = %blob, "an orphan could not be deleted"),
                }
            }
        }
        for writes in writes.chunks(ROWS_A_COMMIT) {
            self.write(writes.to_vec()).await?;
        }
        metrics::gauge!("holdfast_storage_orphan_blobs").set(found.aside as f64);
        Ok(found)
    }
}

#[cfg(test)]
mod tests;

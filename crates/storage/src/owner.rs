//! Whose the blobs are. A blob store may be shared by mistake: by two installations with the same bucket and prefix, or by a new one on the
//! volume of an old one. To each of them the blobs of the other look as if nothing named them. So a store carries the mark of the installation that
//! writes to it, and no other changes anything there.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{BlobId, BlobStore, BlobWriter, PartitionId, StoreError};
use tokio::sync::OnceCell;

use crate::{
    Storage,
    error::{Result, from_store},
};

/// The first line of a mark; the second is the instance.
const MARK: &str = "holdfast blobs v1";

/// Blobs, as far as whoever asks may go: anybody reads, and whoever changes something needs [`OwnBlobs`].
pub(crate) struct Blobs {
    store: Arc<dyn BlobStore>,
    instance: PartitionId,
    adopt: bool,
    /// Known to be ours.
    ours: OnceCell<OwnBlobs>,
}

/// Blobs that carry our mark.
#[derive(Clone)]
pub(crate) struct OwnBlobs(Arc<dyn BlobStore>);

/// Why blobs are not used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OwnerError {
    /// The mark is of another installation.
    #[error("they belong to another installation: their mark names instance {found}, and this is instance {instance}")]
    Other {
        /// Whose they are.
        found: String,
        /// Who asked.
        instance: PartitionId,
    },
    /// There are blobs without a mark, and the index names none of them.
    #[error(
        "there are blobs already, without the mark of an installation, and the index of instance {instance} names none of them"
    )]
    Unknown {
        /// Who asked.
        instance: PartitionId,
    },
    /// It could not be found out; it may be later.
    #[error("{0}")]
    Failed(String),
}

impl Blobs {
    pub(crate) fn new(store: Arc<dyn BlobStore>, instance: PartitionId, adopt: bool) -> Self {
        Self { store, instance, adopt, ours: OnceCell::new() }
    }

    pub(crate) async fn read(&self, id: BlobId, offset: u64, len: usize) -> std::result::Result<Bytes, StoreError> {
        self.store.read(id, offset, len).await
    }

    pub(crate) async fn list_older(&self, age_secs: u64) -> std::result::Result<Vec<BlobId>, StoreError> {
        self.store.list_older(age_secs).await
    }
}

impl OwnBlobs {
    pub(crate) async fn create(&self, id: BlobId) -> std::result::Result<Box<dyn BlobWriter>, StoreError> {
        self.0.create(id).await
    }

    pub(crate) async fn delete(&self, id: BlobId) -> std::result::Result<(), StoreError> {
        self.0.delete(id).await
    }
}

impl Storage {
    /// The blobs, to be changed; looks at their mark first, until it was seen once.
    pub(crate) async fn own_blobs(&self) -> Result<OwnBlobs> {
        self.claim_blobs().await.map_err(|error| from_store(StoreError::Unavailable(format!("the blobs: {error}"))))
    }

    /// Makes sure that the blobs are ours, leaves our mark with them if nobody has left one, and removes what a crash left unfinished there. Says of how
    /// many. To be called before anything is served.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub async fn begin_with_blobs(&self) -> std::result::Result<usize, OwnerError> {
        let OwnBlobs(blobs) = self.claim_blobs().await?;
        blobs.drop_unfinished().await.map_err(|error| OwnerError::Failed(error.to_string()))
    }

    async fn claim_blobs(&self) -> std::result::Result<OwnBlobs, OwnerError> {
        let ours = self.blobs.ours.get_or_try_init(|| async {
            let claimed = self.claim().await;
            claimed.map(|()| OwnBlobs(Arc::clone(&self.blobs.store)))
        });
        ours.await.cloned()
    }

    async fn claim(&self) -> std::result::Result<(), OwnerError> {
        let failed = |error: StoreError| OwnerError::Failed(error.to_string());
        let Blobs { store, instance, adopt, .. } = &self.blobs;
        let mark = format!("{MARK}\n{instance}\n");
        if let Some(found) = store.owner_mark().await.map_err(failed)? {
            return is_ours(&found, &mark, *instance);
        }
        // What was written before there were marks is ours if our index names some of it.
        let named = self.names_some_blob().await.map_err(|error| OwnerError::Failed(error.reason()))?;
        if !named && !adopt {
            return Err(OwnerError::Unknown { instance: *instance });
        }
        let context = vec![("instance", instance.to_string()), ("adopted", (!named).to_string())];
        self.record_own("ClaimBlobs", context, None).await.map_err(|error| OwnerError::Failed(error.to_string()))?;
        if store.leave_owner_mark(mark.as_bytes()).await.map_err(failed)? {
            return Ok(());
        }
        // Somebody else was quicker.
        let found = store.owner_mark().await.map_err(failed)?.unwrap_or_default();
        is_ours(&found, &mark, *instance)
    }

    /// Whether the index names one of the blobs that are there, or there are none.
    async fn names_some_blob(&self) -> Result<bool> {
        let blobs = self.blobs.list_older(0).await.map_err(from_store)?;
        if blobs.is_empty() {
            return Ok(true);
        }
        let referenced = self.referenced()?;
        Ok(blobs.iter().any(|blob| referenced.contains(blob)))
    }
}

fn is_ours(found: &[u8], mark: &str, instance: PartitionId) -> std::result::Result<(), OwnerError> {
    if found == mark.as_bytes() {
        return Ok(());
    }
    // Somebody may have written anything there; to terminals, control characters are commands.
    let named = found.split(|byte| *byte == b'\n').nth(1).unwrap_or_default().escape_ascii().to_string();
    Err(OwnerError::Other { found: named, instance })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::Id, rows, twins};

    #[tokio::test]
    async fn blobs_get_a_mark_and_another_installation_is_refused() {
        let (storage, names, _) = twins::storage();
        storage.begin_with_blobs().await.unwrap();
        let mark = names.1.lock().unwrap().clone().unwrap();
        assert_eq!(mark, format!("holdfast blobs v1\n{}\n", twins::INSTANCE).into_bytes());
        let other = twins::storage_over(&names);
        other.begin_with_blobs().await.expect("it is the same installation");
        *names.1.lock().unwrap() = Some(b"holdfast blobs v1\nan\x1bother\n".to_vec());
        let other = twins::storage_over(&names);
        let refused = other.begin_with_blobs().await.unwrap_err();
        assert!(matches!(&refused, OwnerError::Other { found, .. } if found == "an\\x1bother"), "{refused}");
        assert!(other.own_blobs().await.is_err(), "and nothing is changed there");
    }

    #[tokio::test]
    async fn blobs_without_a_mark_are_taken_only_if_the_index_names_some() {
        let (storage, names, _) = twins::storage();
        let blob = Id([1; 16]);
        names.0.lock().unwrap().insert(blob.blob());
        assert!(matches!(storage.begin_with_blobs().await, Err(OwnerError::Unknown { .. })));
        assert_eq!(*names.1.lock().unwrap(), None);
        storage
            .keep(move |_| {
                crate::grant::Upkeep::begin()?
                    .change(vec![holdfast_core::IndexWrite::put(rows::garbage(blob), Vec::new())])
            })
            .await
            .unwrap();
        storage.begin_with_blobs().await.unwrap();
        assert!(names.1.lock().unwrap().is_some());
    }
}

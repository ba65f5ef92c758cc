//! Whose the blobs are. A blob store may be shared by mistake: by two installations with the same bucket and prefix, or by a new one on the
//! volume of an old one. To each of them the blobs of the other look as if nothing named them. So a store carries the mark of the installation that
//! writes to it, and no other changes anything there.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_core::{BlobId, BlobStore, BlobWriter, IndexWrite, PartitionId, StoreError};
use tokio::sync::OnceCell;

use crate::{
    Storage,
    error::{Error, Result, from_store},
    rows,
};

/// The first line of a mark; the second is the instance.
const MARK: &str = "holdfast blobs v1";
/// How long an object store may take to show the mark.
const MARK_WAIT: Duration = Duration::from_secs(5);
/// So long nobody looks again after it could not be seen.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Blobs, as far as whoever asks may go: anybody reads, and whoever changes something needs [`OwnBlobs`].
pub(crate) struct Blobs {
    store: Arc<dyn BlobStore>,
    instance: PartitionId,
    adopt: bool,
    /// Known to be ours.
    ours: OnceCell<OwnBlobs>,
    /// When and why they were not, the last time.
    refused: Mutex<Option<(Instant, OwnerError)>>,
    /// Whether the log was told that they are claimed.
    told: AtomicBool,
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
    /// The mark is gone.
    #[error("the mark of instance {instance} is not there any more: this is not the place where its blobs lay")]
    Gone {
        /// Who asked.
        instance: PartitionId,
    },
    /// It could not be found out; it may be later.
    #[error("{0}")]
    Failed(String),
}

impl Blobs {
    pub(crate) fn new(store: Arc<dyn BlobStore>, instance: PartitionId, adopt: bool) -> Self {
        Self { store, instance, adopt, ours: OnceCell::new(), refused: Mutex::default(), told: AtomicBool::default() }
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

    /// One looks, and the others wait for that. What it finds against us holds for a moment, so that many who ask are answered soon.
    async fn claim_blobs(&self) -> std::result::Result<OwnBlobs, OwnerError> {
        let Blobs { store, ours, refused, .. } = &self.blobs;
        let ours = ours.get_or_try_init(|| async {
            if let Some((at, error)) = &*refused.lock().unwrap_or_else(PoisonError::into_inner)
                && at.elapsed() < AGAIN_AFTER
            {
                return Err(error.clone());
            }
            let claimed = self.claim().await;
            *refused.lock().unwrap_or_else(PoisonError::into_inner) =
                claimed.as_ref().err().map(|error| (Instant::now(), error.clone()));
            claimed.map(|()| OwnBlobs(Arc::clone(store)))
        });
        ours.await.cloned()
    }

    async fn claim(&self) -> std::result::Result<(), OwnerError> {
        let failed = |error: StoreError| OwnerError::Failed(error.to_string());
        let of_index = |error: Error| OwnerError::Failed(error.reason());
        let Blobs { store, instance, adopt, .. } = &self.blobs;
        let mark = format!("{MARK}\n{instance}\n");
        let found = tokio::time::timeout(MARK_WAIT, store.owner_mark()).await;
        let found = found.map_err(|_| OwnerError::Failed("no answer in time".into()))?.map_err(failed)?;
        let was_marked = self.look_whole(|view| view.is_marked()).map_err(of_index)?;
        if found.is_none() {
            if was_marked && !adopt {
                return Err(OwnerError::Gone { instance: *instance });
            }
            // What was written before there were marks is ours if our index names some of it.
            if !adopt && !self.is_place_of_index().await.map_err(of_index)? {
                return Err(OwnerError::Unknown { instance: *instance });
            }
            self.tell_of_claim().await?;
            store.leave_owner_mark(mark.as_bytes()).await.map_err(failed)?;
        }
        let found = match found {
            Some(found) => found,
            // Somebody else may have been quicker.
            None => store.owner_mark().await.map_err(failed)?.unwrap_or_default(),
        };
        is_ours(&found, &mark, *instance)?;
        if !was_marked {
            self.write(vec![IndexWrite::put(rows::marked(), Vec::new())]).await.map_err(of_index)?;
        }
        Ok(())
    }

    /// Once in the life of a process.
    async fn tell_of_claim(&self) -> std::result::Result<(), OwnerError> {
        let Blobs { instance, adopt, told, .. } = &self.blobs;
        if told.load(Ordering::Relaxed) {
            return Ok(());
        }
        let context = vec![("instance", instance.to_string()), ("adopt", adopt.to_string())];
        self.record_own("ClaimBlobs", context, None).await.map_err(|error| OwnerError::Failed(error.to_string()))?;
        told.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the index names one of the blobs that are there; where there are none, whether it names none.
    async fn is_place_of_index(&self) -> Result<bool> {
        let blobs = self.blobs.list_older(0).await.map_err(from_store)?;
        if blobs.is_empty() {
            return Ok(self.in_use()?.is_empty());
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
    use crate::{record::Id, twins};

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
        storage.write(vec![IndexWrite::put(rows::garbage(blob), Vec::new())]).await.unwrap();
        assert!(storage.begin_with_blobs().await.is_err(), "nobody looks again so soon");
        *storage.blobs.refused.lock().unwrap() = None;
        storage.begin_with_blobs().await.unwrap();
        assert!(names.1.lock().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_place_where_the_mark_was_is_known_by_it() {
        let (storage, names, index) = twins::storage();
        storage.begin_with_blobs().await.unwrap();
        names.1.lock().unwrap().take();
        let again = twins::over(&names, &index);
        assert!(
            matches!(again.begin_with_blobs().await, Err(OwnerError::Gone { .. })),
            "another volume is in its place"
        );
        assert!(again.own_blobs().await.is_err());
        assert_eq!(*names.1.lock().unwrap(), None);
    }

    #[tokio::test]
    async fn an_index_whose_blobs_are_elsewhere_claims_no_empty_place() {
        let (storage, names, _) = twins::storage();
        let manifest = serde_json::to_vec(&[crate::record::ManifestPart {
            number: 1,
            stream: crate::record::StreamRecord { id: Id([1; 16]), size: 1, inline: false },
            checksum: None,
        }]);
        storage.write(vec![IndexWrite::put(rows::manifest(Id([2; 16])), manifest.unwrap())]).await.unwrap();
        assert!(matches!(storage.begin_with_blobs().await, Err(OwnerError::Unknown { .. })));
        assert_eq!(*names.1.lock().unwrap(), None);
    }
}

//! Blobs in somebody's object store: S3, Azure or GCS, or anything that speaks their dialects. What lies there is
//! ciphertext already; the index and the wrapped DEKs stay here.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use holdfast_core::{BlobId, BlobStore, BlobWriter, OWNER_MARK_BYTES_MAX, StoreError};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, WriteMultipart, path::Path};

/// Size of the parts that a blob is sent in.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts of one blob under way.
const PARTS_MAX: usize = 4;

/// Blobs under a prefix of an object store.
pub struct CloudBlobs {
    store: Box<dyn ObjectStore>,
    prefix: Path,
}

fn failed(error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => StoreError::Damaged,
        error => StoreError::Failed(error.to_string()),
    }
}

impl CloudBlobs {
    /// Opens `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `gs://BUCKET/PREFIX`, with the options that the crate
    /// `object_store` knows (`aws_region`, `azure_storage_account_name`, ...).
    ///
    /// # Errors
    /// [`StoreError::Failed`] on a URL or option that is not known.
    pub fn open(url: &str, options: &[(String, String)]) -> Result<Self, StoreError> {
        let invalid = |error: &dyn std::fmt::Display| StoreError::Failed(format!("{url}: {error}"));
        let parsed = url::Url::parse(url).map_err(|error| invalid(&error))?;
        let pairs = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let (store, prefix) = object_store::parse_url_opts(&parsed, pairs).map_err(|error| invalid(&error))?;
        Ok(Self { store, prefix })
    }

    /// Says whose blobs these are. No blob has such a name.
    fn owner_path(&self) -> Path {
        self.prefix.clone().join("owner")
    }

    fn path(&self, id: BlobId) -> Path {
        self.prefix.clone().join(id.to_string())
    }
}

struct CloudWriter(WriteMultipart);

#[async_trait]
impl BlobWriter for CloudWriter {
    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.0.wait_for_capacity(PARTS_MAX).await.map_err(failed)?;
        self.0.put(bytes.into());
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        self.0.finish().await.map(|_| ()).map_err(failed)
    }
}

#[async_trait]
impl BlobStore for CloudBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>, StoreError> {
        let upload = self.store.put_multipart(&self.path(id)).await.map_err(failed)?;
        Ok(Box::new(CloudWriter(WriteMultipart::new_with_chunk_size(upload, PART_BYTES))))
    }

    async fn read(&self, id: BlobId, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.store.get_range(&self.path(id), offset..offset + len as u64).await.map_err(failed)
    }

    async fn delete(&self, id: BlobId) -> Result<(), StoreError> {
        match self.store.delete(&self.path(id)).await {
            Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    async fn list_older(&self, age_secs: u64) -> Result<Vec<BlobId>, StoreError> {
        let limit = SystemTime::now() - Duration::from_secs(age_secs);
        let mut found = Vec::new();
        let mut listing = self.store.list(Some(&self.prefix));
        while let Some(entry) = listing.next().await {
            let entry = entry.map_err(failed)?;
            // A prefix may have others in it: theirs are not ours.
            let id = entry.location.filename().and_then(BlobId::parse).filter(|id| entry.location == self.path(*id));
            found.extend(id.filter(|_| SystemTime::from(entry.last_modified) <= limit));
        }
        Ok(found)
    }

    /// None is seen from here: an object store shows what is finished. It forgets the rest by a rule of its own.
    async fn drop_unfinished(&self) -> Result<usize, StoreError> {
        Ok(0)
    }

    async fn owner_mark(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let found = match self.store.get(&self.owner_path()).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error @ object_store::Error::PermissionDenied { .. }) => {
                let why =
                    format!("{}: {error}; to see that it is not there takes the right to list, too", self.owner_path());
                return Err(StoreError::Failed(why));
            }
            Err(error) => return Err(failed(error)),
        };
        let (mut mark, mut pieces) = (Vec::new(), found.into_stream());
        while let Some(piece) = pieces.next().await {
            mark.extend_from_slice(&piece.map_err(failed)?);
            if mark.len() >= OWNER_MARK_BYTES_MAX {
                mark.truncate(OWNER_MARK_BYTES_MAX);
                break;
            }
        }
        Ok(Some(mark))
    }

    async fn leave_owner_mark(&self, mark: &[u8]) -> Result<bool, StoreError> {
        let put = |mode| {
            let (path, mark) = (self.owner_path(), mark.to_vec());
            async move { self.store.put_opts(&path, mark.into(), mode).await }
        };
        match put(PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            // An object store that knows no conditions, and says so in whatever way: the last of two who begin in the same moment is its owner, and
            // the other finds that out at its next start. One that is away does not answer this either.
            Err(_) => {
                if self.owner_mark().await?.is_some() {
                    return Ok(false);
                }
                put(PutMode::Overwrite.into()).await.map(|_| true).map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    fn blobs(store: &Arc<InMemory>, prefix: &str) -> CloudBlobs {
        CloudBlobs { store: Box::new(Arc::clone(store)), prefix: Path::from(prefix) }
    }

    #[tokio::test]
    async fn blobs_of_a_prefix_inside_ours_are_not_ours() {
        let store = Arc::new(InMemory::new());
        let (outer, inner) = (blobs(&store, "ours"), blobs(&store, "ours/theirs"));
        let (one, other) = (BlobId([1; 16]), BlobId([2; 16]));
        for (blobs, id) in [(&outer, one), (&inner, other)] {
            let mut writer = blobs.create(id).await.unwrap();
            writer.write(b"bytes".to_vec()).await.unwrap();
            writer.finish().await.unwrap();
        }
        assert_eq!(outer.list_older(0).await.unwrap(), [one]);
        assert_eq!(inner.list_older(0).await.unwrap(), [other]);
    }

    #[tokio::test]
    async fn the_first_mark_stays_and_is_of_one_prefix() {
        let store = Arc::new(InMemory::new());
        let (one, other) = (blobs(&store, "one"), blobs(&store, "other"));
        assert_eq!(one.owner_mark().await, Ok(None));
        assert_eq!(one.leave_owner_mark(b"first").await, Ok(true));
        assert_eq!(one.leave_owner_mark(b"second").await, Ok(false));
        assert_eq!(one.owner_mark().await.unwrap().unwrap(), b"first");
        assert_eq!(other.owner_mark().await, Ok(None));
    }
}

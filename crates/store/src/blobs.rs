//! Blobs in local files: `blobs/ab/cd/<id>`. File, then directory are synced before a blob counts as written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::{BlobId, BlobStore, BlobWriter, StoreError};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::files::open_regular;

/// Blobs under one directory.
pub struct FileBlobs {
    directory: PathBuf,
}

impl FileBlobs {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
        Ok(Self { directory: directory.into() })
    }

    fn path(&self, id: BlobId) -> PathBuf {
        let name = id.to_string();
        self.directory.join(&name[..2]).join(&name[2..4]).join(name)
    }
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    // Somebody else has filled the disk: come again when there is room.
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return StoreError::Unavailable(format!("{}: the disk is full", path.display()));
    }
    StoreError::Failed(format!("{}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work).await.map_err(|error| StoreError::Failed(error.to_string()))?
}

/// Makes the file; the directories on its way are durable when this returns.
fn create(path: &Path) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options
    };
    match options().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let parents: Vec<&Path> = path.ancestors().skip(1).take(3).collect();
    fs::create_dir_all(parents[0])?;
    for parent in parents {
        File::open(parent)?.sync_all()?;
    }
    options().open(path)
}

/// Writes behind the caller: one buffer is on its way to the file while the next is filled.
struct FileWriter {
    path: PathBuf,
    file: Option<File>,
    pending: Option<JoinHandle<io::Result<File>>>,
}

impl FileWriter {
    async fn settled(&mut self) -> Result<File, StoreError> {
        if let Some(pending) = self.pending.take() {
            let file = pending.await.map_err(|error| StoreError::Failed(error.to_string()))?;
            return file.map_err(|error| failed(&self.path, &error));
        }
        self.file.take().ok_or_else(|| StoreError::Failed("a write failed before".into()))
    }
}

#[async_trait]
impl BlobWriter for FileWriter {
    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), StoreError> {
        let mut file = self.settled().await?;
        self.pending = Some(spawn_blocking(move || file.write_all(&bytes).map(|()| file)));
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let file = self.settled().await?;
        let path = self.path;
        blocking(move || {
            let sync = || -> io::Result<()> {
                file.sync_data()?;
                path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
            };
            sync().map_err(|error| failed(&path, &error))
        })
        .await
    }
}

#[async_trait]
impl BlobStore for FileBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>, StoreError> {
        let path = self.path(id);
        let file = blocking({
            let path = path.clone();
            move || create(&path).map_err(|error| failed(&path, &error))
        })
        .await?;
        Ok(Box::new(FileWriter { path, file: Some(file), pending: None }))
    }

    async fn read(&self, id: BlobId, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let path = self.path(id);
        blocking(move || {
            let file = open_regular(OpenOptions::new().read(true), &path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => StoreError::Damaged,
                _ => failed(&path, &error),
            })?;
            let mut buffer = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed(&path, &error)),
                }
            }
            buffer.truncate(filled);
            Ok(buffer.into())
        })
        .await
    }

    async fn delete(&self, id: BlobId) -> Result<(), StoreError> {
        let path = self.path(id);
        blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, &error)),
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }

    async fn list_older(&self, age_secs: u64) -> Result<Vec<BlobId>, StoreError> {
        let directory = self.directory.clone();
        blocking(move || {
            let limit = SystemTime::now() - Duration::from_secs(age_secs);
            let mut found = Vec::new();
            collect(&directory, limit, &mut found).map_err(|error| failed(&directory, &error))?;
            Ok(found)
        })
        .await
    }
}

fn collect(directory: &Path, limit: SystemTime, found: &mut Vec<BlobId>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), limit, found)?;
        } else if let Some(id) = entry.file_name().to_str().and_then(BlobId::parse)
            && entry.metadata()?.modified()? <= limit
        {
            found.push(id);
        }
    }
    Ok(())
}

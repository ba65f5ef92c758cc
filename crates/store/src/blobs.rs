//! Blobs in local files: `blobs/ab/cd/<id>`. There stands only what is finished: a blob is written as `blobs/unfinished/<id>`, synced, and then renamed,
//! and the directories are synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::{BlobId, BlobStore, BlobWriter, OWNER_MARK_BYTES_MAX, StoreError};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::files::open_regular;

/// The directory of blobs that are being written.
const UNFINISHED: &str = "unfinished";
/// The file that says whose blobs these are. No blob has such a name.
const OWNER_MARK: &str = "owner";

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

    /// Where a blob is written until it is finished.
    fn unfinished(&self, id: BlobId) -> PathBuf {
        self.directory.join(UNFINISHED).join(id.to_string())
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

/// Makes the file of a blob that is begun.
fn create(path: &Path) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options
    };
    match (options().open(path), path.parent()) {
        (Err(error), Some(directory)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(directory)?;
            options().open(path)
        }
        (opened, _) => opened,
    }
}

/// Gives a synced file its place; file and directories are durable there when this returns.
fn place(unfinished: &Path, path: &Path) -> io::Result<()> {
    let parents: Vec<&Path> = path.ancestors().skip(1).take(3).collect();
    let Some(directory) = parents.first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    match fs::rename(unfinished, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(()) => return File::open(directory)?.sync_all(),
    }
    fs::create_dir_all(directory)?;
    fs::rename(unfinished, path)?;
    parents.into_iter().try_for_each(|parent| File::open(parent)?.sync_all())
}

/// Writes behind the caller: one buffer is on its way to the file while the next is filled.
struct FileWriter {
    /// Where it is written.
    unfinished: PathBuf,
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
        let Self { unfinished, path, .. } = *self;
        blocking(move || {
            let finished = file.sync_data().and_then(|()| place(&unfinished, &path));
            finished.map_err(|error| failed(&path, &error))
        })
        .await
    }
}

#[async_trait]
impl BlobStore for FileBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>, StoreError> {
        let (unfinished, path) = (self.unfinished(id), self.path(id));
        let file = blocking({
            let unfinished = unfinished.clone();
            move || create(&unfinished).map_err(|error| failed(&unfinished, &error))
        })
        .await?;
        Ok(Box::new(FileWriter { unfinished, path, file: Some(file), pending: None }))
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
        let paths = [self.unfinished(id), self.path(id)];
        blocking(move || {
            for path in &paths {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(path, &error)),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
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

    async fn drop_unfinished(&self) -> Result<usize, StoreError> {
        let directory = self.directory.join(UNFINISHED);
        blocking(move || {
            let left = match fs::read_dir(&directory) {
                Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(error) => Err(error),
            };
            let left = left.map_err(|error| failed(&directory, &error))?;
            let blobs = left.iter().filter(|path| named(path).is_some());
            blobs
                .map(|path| fs::remove_file(path).map_err(|error| failed(path, &error)))
                .try_fold(0, |count, gone| gone.map(|()| count + 1))
        })
        .await
    }

    async fn owner_mark(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.directory.join(OWNER_MARK);
        blocking(move || match open_regular(OpenOptions::new().read(true), &path) {
            Ok(file) => {
                let mut mark = Vec::new();
                file.take(OWNER_MARK_BYTES_MAX as u64).read_to_end(&mut mark).map_err(|error| failed(&path, &error))?;
                Ok(Some(mark))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, &error)),
        })
        .await
    }

    async fn leave_owner_mark(&self, mark: &[u8]) -> Result<bool, StoreError> {
        let (directory, mark) = (self.directory.clone(), mark.to_vec());
        blocking(move || leave_mark(&directory, &mark).map_err(|error| failed(&directory, &error))).await
    }
}

/// The mark takes its place when it is whole, and the place only if it is free.
fn leave_mark(directory: &Path, mark: &[u8]) -> io::Result<bool> {
    let (path, new) = (directory.join(OWNER_MARK), directory.join(format!("{OWNER_MARK}.{}", std::process::id())));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(mark)?;
    file.sync_all()?;
    let linked = match fs::hard_link(&new, &path) {
        // Some file systems have no links.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !path.exists() => fs::rename(&new, &path),
        linked => fs::remove_file(&new).and(linked),
    };
    File::open(directory)?.sync_all()?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true),
    }
}

/// The blob that a file is called after.
fn named(path: &Path) -> Option<BlobId> {
    BlobId::parse(path.file_name()?.to_str()?)
}

/// The entries of a directory; none if it is gone meanwhile.
fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

/// Blobs where they belong. What else lies there, such as the `lost+found` of a volume, is not looked into.
fn collect(directory: &Path, limit: SystemTime, found: &mut Vec<BlobId>) -> io::Result<()> {
    let is_part = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name.len() == 2 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
    };
    for first in entries(directory)?.iter().filter(|entry| is_part(entry)) {
        for second in entries(&first.path())?.iter().filter(|entry| is_part(entry)) {
            for entry in entries(&second.path())? {
                let Some(id) = named(&entry.path()) else { continue };
                let name = id.to_string();
                let here = first.file_name() == name[..2] && second.file_name() == name[2..4];
                match entry.metadata() {
                    Ok(metadata) if here && metadata.is_file() && metadata.modified()? <= limit => found.push(id),
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, FileBlobs) {
        let directory = tempfile::tempdir().unwrap();
        let blobs = FileBlobs::open(directory.path()).unwrap();
        (directory, blobs)
    }

    async fn begin(blobs: &FileBlobs, id: BlobId) -> Box<dyn BlobWriter> {
        let mut writer = blobs.create(id).await.unwrap();
        writer.write(b"bytes".to_vec()).await.unwrap();
        writer
    }

    #[tokio::test]
    async fn a_blob_has_its_name_when_it_is_finished() {
        let (_directory, blobs) = blobs();
        let (finished, begun) = (BlobId([1; 16]), BlobId([2; 16]));
        begin(&blobs, finished).await.finish().await.unwrap();
        drop(begin(&blobs, begun).await);
        assert_eq!(blobs.list_older(0).await.unwrap(), [finished]);
        assert_eq!(blobs.read(begun, 0, 9).await, Err(StoreError::Damaged));
        assert_eq!(blobs.drop_unfinished().await, Ok(1));
        assert_eq!(blobs.drop_unfinished().await, Ok(0));
        assert_eq!(blobs.read(finished, 0, 9).await.unwrap(), b"bytes".as_slice());
        drop(begin(&blobs, begun).await);
        blobs.delete(begun).await.unwrap();
        assert_eq!(blobs.drop_unfinished().await, Ok(0), "it went with its name");
    }

    #[tokio::test]
    async fn the_first_mark_stays() {
        let (directory, blobs) = blobs();
        assert_eq!(blobs.owner_mark().await, Ok(None));
        assert_eq!(blobs.leave_owner_mark(b"one").await, Ok(true));
        assert_eq!(blobs.leave_owner_mark(b"other").await, Ok(false));
        assert_eq!(blobs.owner_mark().await.unwrap().unwrap(), b"one");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "and nothing else");
        assert_eq!(blobs.list_older(0).await.unwrap(), []);
        fs::write(directory.path().join(OWNER_MARK), vec![b'x'; 10_000]).unwrap();
        assert_eq!(blobs.owner_mark().await.unwrap().unwrap().len(), OWNER_MARK_BYTES_MAX);
    }
}

//! A small engine that several processes of one machine share (`docs/formats/shared-rows.md`).
//!
//! All rows lie in one file, which each commit writes anew and puts in the place of the old one, under a lock. That is slow,
//! and right for hundreds of rows that change a few times a day: policies, credentials, kill switches.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use holdfast_core::StoreError;
use holdfast_crypto::kdf;

use super::{Engine, Row, RowName, RowWrite, Rows, apply};

const MAGIC: &[u8; 5] = b"HFSR\x01";
/// Largest file read or written.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Rows in one file, shared by processes.
#[derive(Clone)]
pub struct SharedEngine {
    directory: PathBuf,
}

/// Tells one state of the file from another, cheaply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FileStamp(u64, u64, i64, i64);

impl SharedEngine {
    /// Uses `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.into() }
    }

    fn file(&self) -> PathBuf {
        self.directory.join("rows.shared")
    }

    /// Which state the file is in. Two equal stamps mean that nothing was committed between.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn stamp(&self) -> Result<Option<FileStamp>, StoreError> {
        match fs::metadata(self.file()) {
            Ok(data) => Ok(Some(FileStamp(data.ino(), data.size(), data.mtime(), data.mtime_nsec()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// How many commits there have been. It never goes back unless the file is put back.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Damaged`].
    pub fn generation(&self) -> Result<u64, StoreError> {
        Ok(self.load()?.0)
    }

    fn load(&self) -> Result<(u64, Rows), StoreError> {
        let file = match File::open(self.file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, Rows::new())),
            other => other.map_err(|error| failed(&error))?,
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        decode(&bytes).ok_or(StoreError::Damaged)
    }

    fn store(&self, batch: Vec<RowWrite>) -> Result<(), StoreError> {
        let lock = self.directory.join("rows.lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock);
        let lock = lock.map_err(|error| failed(&error))?;
        // Released when the file is closed, by a crash too.
        lock.lock().map_err(|error| failed(&error))?;
        let (generation, mut rows) = self.load()?;
        apply(&mut rows, batch)?;
        let bytes = encode(generation + 1, &rows);
        if bytes.len() as u64 > BYTES_MAX {
            return Err(StoreError::Failed("the shared state is full".into()));
        }
        self.replace(&bytes).map_err(|error| failed(&error))
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.directory.join("rows.new");
        // Left by a crash: never complete, never in use; we hold the lock.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.file())?;
        File::open(&self.directory)?.sync_all()
    }
}

fn failed(error: &io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

fn encode(generation: u64, rows: &Rows) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&generation.to_be_bytes());
    for (name, (version, sealed)) in rows {
        out.extend_from_slice(name);
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&(sealed.len() as u32).to_be_bytes());
        out.extend_from_slice(sealed);
    }
    let digest = kdf::sha256(&[&out]);
    out.extend_from_slice(&digest);
    out
}

fn decode(bytes: &[u8]) -> Option<(u64, Rows)> {
    let (body, digest) = bytes.split_last_chunk::<32>()?;
    if kdf::sha256(&[body]) != *digest {
        return None;
    }
    let (generation, mut rest) = body.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let mut rows = Rows::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_first_chunk::<33>()?;
        let (version, after) = after.split_first_chunk::<8>()?;
        let (len, after) = after.split_first_chunk::<4>()?;
        let (sealed, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        rows.insert(*name, (u64::from_be_bytes(*version), sealed.to_vec()));
        rest = after;
    }
    Some((u64::from_be_bytes(*generation), rows))
}

#[async_trait]
impl Engine for SharedEngine {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        let (_, mut rows) = self.load()?;
        Ok(rows.remove(name).map(|(version, sealed)| Row { name: *name, version, sealed }))
    }

    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        let (_, rows) = self.load()?;
        let of_kind = rows.into_iter().filter(|(name, _)| name[0] == kind);
        of_kind.map(|(name, (version, sealed))| Row { name, version, sealed }).try_for_each(visit)
    }

    async fn commit(&self, batch: Vec<RowWrite>) -> Result<(), StoreError> {
        let engine = self.clone();
        let stored = tokio::task::spawn_blocking(move || engine.store(batch)).await;
        stored.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let rows = Rows::from([([1; 33], (7, b"sealed".to_vec())), ([2; 33], (1, Vec::new()))]);
        let bytes = encode(3, &rows);
        assert_eq!(decode(&bytes), Some((3, rows)));
        for at in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert_eq!(decode(&changed), None, "bit {at}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "length {len}");
        }
    }

    /// A file of the first version; it must be readable for ever.
    #[test]
    fn golden_file() {
        let golden = include_bytes!("../../tests/golden/rows-v1.shared");
        let rows = Rows::from([([1; 33], (7, b"sealed".to_vec())), ([2; 33], (1, Vec::new()))]);
        assert_eq!(decode(golden), Some((3, rows.clone())));
        assert_eq!(encode(3, &rows), golden);
    }
}

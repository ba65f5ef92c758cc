//! Sealed records in a file whose room is taken beforehand (`docs/formats/slots.md`): they can be written on a full disk, and
//! without a lock, since each file has one writer. Others read it at any time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{Ambient, PartitionId, StoreError};
use holdfast_crypto::{CryptoError, SealingKey, SecretBytes, kdf};

use crate::files::{open_in_place, open_regular};

const MAGIC: &[u8; 5] = b"HFSL\x01";
/// Magic and number.
const HEAD_BYTES: usize = MAGIC.len() + 8;
/// Salt, nonce and tag of a sealed message.
const SEAL_BYTES: usize = 16 + 12 + 16;
/// Length of the record, in clear only inside.
const LENGTH_BYTES: usize = 4;
/// Largest file: more is a mistake.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How a file of slots is laid out, for ever.
#[derive(Clone, Copy, Debug)]
pub struct SlotLayout {
    /// What it is for; its key is derived for that.
    pub purpose: &'static str,
    /// How many records there are at most.
    pub slots: usize,
    /// Bytes of each on the disk.
    pub slot_bytes: usize,
}

/// A file of slots. A record's number says where it lies: each takes the place of the one that is `slots` before it.
pub struct SlotFile {
    path: PathBuf,
    layout: SlotLayout,
    key: SealingKey,
    context: Vec<u8>,
    ambient: Arc<dyn Ambient>,
}

/// A record that opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlotRecord {
    /// Its number, from 1.
    pub number: u64,
    /// What it says.
    pub value: Vec<u8>,
}

impl SlotFile {
    /// The file at `path`, which `place` names within the instance.
    ///
    /// # Errors
    /// [`CryptoError`] if the database key is not one.
    pub fn new(
        path: &Path,
        layout: SlotLayout,
        database_key: &SecretBytes,
        instance: PartitionId,
        place: &str,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, CryptoError> {
        let key = SealingKey::new(&kdf::derive_key(database_key, layout.purpose)?)?;
        let context = [instance.as_bytes().as_slice(), place.as_bytes()].concat();
        Ok(Self { path: path.into(), layout, key, context, ambient })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Longest record.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.layout.slot_bytes - HEAD_BYTES - SEAL_BYTES - LENGTH_BYTES
    }

    fn file_bytes(&self) -> usize {
        (self.layout.slots * self.layout.slot_bytes).min(FILE_BYTES_MAX)
    }

    /// Makes the file with all its room, if it is not there whole.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn prepare(&self) -> Result<(), StoreError> {
        self.try_prepare().map_err(|error| self.failed(&error))
    }

    fn try_prepare(&self) -> io::Result<()> {
        let whole = self.file_bytes();
        let found = match fs::symlink_metadata(&self.path) {
            // A link that somebody put there is replaced.
            Ok(data) if data.is_symlink() => 0,
            Ok(data) => data.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        if found == whole as u64 {
            return Ok(());
        }
        if found > 0 {
            // Cut short by somebody: what is left stays, and who counts the records finds those that are missing.
            let file = open_in_place(OpenOptions::new().write(true), &self.path)?;
            let from = (found as usize).min(whole);
            file.write_all_at(&vec![0; whole - from], from as u64)?;
            file.set_len(whole as u64)?;
            return file.sync_all();
        }
        let new = self.path.with_extension("new");
        // Left by a crash, or put there by somebody.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Real zeros and no hole: a hole would need room when it is written.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let made = file.write_all(&vec![0; whole]).and_then(|()| file.sync_all());
        if let Err(error) = made.and_then(|()| fs::rename(&new, &self.path)) {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        self.path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }

    fn aad(&self, number: u64) -> Vec<u8> {
        [MAGIC, self.context.as_slice(), &number.to_be_bytes()].concat()
    }

    /// Writes a record to its slot, and returns when it is durable. The file is there already.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn write(&self, number: u64, value: &[u8]) -> Result<(), StoreError> {
        if value.len() > self.capacity() {
            return Err(StoreError::Failed(format!("a record of {} bytes does not fit its slot", value.len())));
        }
        let mut plaintext = (value.len() as u32).to_be_bytes().to_vec();
        plaintext.extend_from_slice(value);
        plaintext.resize(LENGTH_BYTES + self.capacity(), 0);
        let sealed = self
            .key
            .seal(self.ambient.random(), &self.aad(number), &plaintext)
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        let slot = [MAGIC, number.to_be_bytes().as_slice(), &sealed].concat();
        let at = (number % self.layout.slots as u64) * self.layout.slot_bytes as u64;
        let write = || {
            let file = open_in_place(OpenOptions::new().write(true), &self.path)?;
            file.write_all_at(&slot, at)?;
            file.sync_data()
        };
        write().map_err(|error: io::Error| self.failed(&error))
    }

    /// All records that open, in order. What does not is passed over: a crash may have torn it. Who knows how many there must
    /// be counts.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn read(&self) -> Result<Vec<SlotRecord>, StoreError> {
        let file = match open_regular(OpenOptions::new().read(true), &self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| self.failed(&error))?,
        };
        let mut bytes = Vec::new();
        file.take(self.file_bytes() as u64).read_to_end(&mut bytes).map_err(|error| self.failed(&error))?;
        Ok(self.records_in(&bytes))
    }

    /// The same of a file whose content is given.
    #[must_use]
    pub fn records_in(&self, bytes: &[u8]) -> Vec<SlotRecord> {
        let slots = bytes.chunks_exact(self.layout.slot_bytes).enumerate();
        let mut records: Vec<_> = slots.filter_map(|(index, slot)| self.open(index, slot)).collect();
        records.sort_by_key(|record| record.number);
        records
    }

    fn open(&self, index: usize, slot: &[u8]) -> Option<SlotRecord> {
        let (number, sealed) = slot.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let number = u64::from_be_bytes(*number);
        if number % self.layout.slots as u64 != index as u64 {
            return None;
        }
        let plaintext = self.key.open(&self.aad(number), sealed).ok()?;
        let (len, rest) = plaintext.expose().split_first_chunk::<LENGTH_BYTES>()?;
        let value = rest.get(..u32::from_be_bytes(*len) as usize)?.to_vec();
        Some(SlotRecord { number, value })
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        StoreError::Failed(format!("{}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twins::Fixed;

    const LAYOUT: SlotLayout = SlotLayout { purpose: "holdfast test slots v1", slots: 2, slot_bytes: 128 };

    fn slots(directory: &Path, instance: u8, key: u8, place: &str) -> SlotFile {
        let key = SecretBytes::copy_of(&[key; 32]);
        let instance = PartitionId::from_bytes([instance; 16]);
        SlotFile::new(&directory.join("file.slots"), LAYOUT, &key, instance, place, Arc::new(Fixed)).unwrap()
    }

    fn record(number: u64, value: &[u8]) -> SlotRecord {
        SlotRecord { number, value: value.to_vec() }
    }

    #[test]
    fn records_take_each_others_place_in_turn_and_open_here_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = slots(directory.path(), 1, 2, "a");
        assert_eq!(file.read().unwrap(), []);
        assert!(file.write(1, b"x").is_err(), "no room was taken");
        file.prepare().unwrap();
        for number in 1..=3 {
            file.write(number, &[number as u8; 3]).unwrap();
        }
        file.prepare().unwrap();
        assert_eq!(file.read().unwrap(), [record(2, &[2; 3]), record(3, &[3; 3])]);
        assert!(file.write(4, &vec![0; file.capacity() + 1]).is_err());
        for (instance, key, place) in [(9, 2, "a"), (1, 9, "a"), (1, 2, "b")] {
            assert_eq!(slots(directory.path(), instance, key, place).read().unwrap(), []);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_swap_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let file = slots(directory.path(), 1, 2, "a");
        file.prepare().unwrap();
        file.write(2, b"two").unwrap();
        let good = fs::read(file.path()).unwrap();
        for at in 0..LAYOUT.slot_bytes * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            fs::write(file.path(), &bad).unwrap();
            assert_eq!(file.read().unwrap(), [], "bit {at}");
        }
        let swapped = [&good[LAYOUT.slot_bytes..], &good[..LAYOUT.slot_bytes]].concat();
        fs::write(file.path(), swapped).unwrap();
        assert_eq!(file.read().unwrap(), []);
        fs::write(file.path(), &good[..LAYOUT.slot_bytes + 1]).unwrap();
        assert_eq!(file.read().unwrap(), [record(2, b"two")]);
        file.prepare().unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), good);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let file = slots(directory.path(), 1, 2, "a");
        let victim = directory.path().join("victim");
        for content in [vec![7; 100], vec![7; LAYOUT.slots * LAYOUT.slot_bytes]] {
            fs::write(&victim, &content).unwrap();
            let _ = fs::remove_file(file.path());
            std::os::unix::fs::symlink(&victim, file.path()).unwrap();
            assert!(file.write(1, b"x").is_err());
            file.prepare().unwrap();
            file.write(1, b"x").unwrap();
            assert_eq!((fs::read(&victim).unwrap(), file.read().unwrap()), (content, vec![record(1, b"x")]));
        }
    }

    /// A file of the first version; it must be readable for ever.
    #[test]
    fn golden_file() {
        let golden = include_bytes!("../tests/golden/slots-v1.bin");
        let directory = tempfile::tempdir().unwrap();
        let file = slots(directory.path(), 1, 2, "a");
        file.prepare().unwrap();
        file.write(1, b"one").unwrap();
        file.write(2, b"two").unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), golden);
        assert_eq!(file.read().unwrap(), [record(1, b"one"), record(2, b"two")]);
    }
}

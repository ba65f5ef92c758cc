//! The file that a backup is (`docs/formats/backup.md`): head, sealed state, then frames, each with a MAC that rests on all before it.
//!
//! It is written and read as a stream, frame by frame. Whose it is stands in clear, so that the silicon can be asked for the key; nothing else of it
//! is believed before its MAC.

use std::io::{self, Read, Write};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use holdfast_crypto::{CryptoError, HashAlgorithm, SecretBytes, kdf, kdf::MacKey};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 4] = b"HFBK";
const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
/// Head and sealed state: each is some hundred bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What one frame holds, before it is compressed: what reader and writer keep in memory.
const FRAME_BYTES: usize = 256 * 1024;
/// A frame that has one long row.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A path of ours is far shorter.
const NAME_BYTES_MAX: usize = 512;

const FILE: u8 = 1;
const BYTES: u8 = 2;
const DEFLATED: u8 = 3;
const ROWS: u8 = 4;
const END: u8 = 5;

/// What a backup says of itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head {
    /// Tells backups apart: 32 hex digits.
    pub id: String,
    /// The instance, as it is written elsewhere.
    pub instance: String,
    /// Of which role.
    pub role: String,
    /// The version of the program that made it.
    pub program: String,
    /// When it was begun: Unix milliseconds.
    pub time: i64,
    /// The newest change in it.
    pub revision: u64,
}

/// What stands at its end.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct End {
    /// How many files.
    pub files: u64,
    /// How many rows of tables, all together.
    pub rows: u64,
    /// The last line of the audit log in it.
    pub line: u64,
    /// Hex SHA-256 of that line.
    pub line_hash: String,
}

/// Why a backup is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read or written.
    #[error("{0}")]
    File(#[from] io::Error),
    /// It is something else.
    #[error("it is no backup")]
    Other,
    /// A later version made it.
    #[error("it is a backup of format {0}, which this version does not know")]
    Version(u8),
    /// It was changed, or is put together from several.
    #[error("it was changed: what stands at byte {0} is not what the instance wrote there")]
    Changed(u64),
    /// Its end is missing.
    #[error("it ends too soon, at byte {0}: it was cut, or never written to its end")]
    Cut(u64),
    /// A defect of the library.
    #[error("{0}")]
    Crypto(#[from] CryptoError),
}

/// The key of an instance's backups.
///
/// # Errors
/// [`CryptoError`] on a key of another length.
fn key_of(database_key: &SecretBytes) -> Result<MacKey, CryptoError> {
    let key = kdf::derive_key(database_key, "holdfast backup v1")?;
    Ok(MacKey::new(HashAlgorithm::Sha256, key.expose()))
}

fn too_long() -> BackupError {
    io::Error::new(io::ErrorKind::InvalidInput, "a part of the backup is too long").into()
}

/// Writes a backup.
pub struct Writer<W> {
    out: W,
    key: MacKey,
    mac: Vec<u8>,
    /// Rows on their way, and of which table.
    table: &'static str,
    rows: Vec<u8>,
    end: End,
}

impl<W: Write> Writer<W> {
    /// Begins with head and sealed state.
    ///
    /// # Errors
    /// [`BackupError::File`].
    pub fn begin(mut out: W, database_key: &SecretBytes, head: &Head, state: &[u8]) -> Result<Self, BackupError> {
        let key = key_of(database_key)?;
        let mut bytes = [MAGIC.as_slice(), &[VERSION]].concat();
        let head = serde_json::to_vec(head).map_err(io::Error::other)?;
        for part in [head.as_slice(), state] {
            if part.len() > HEAD_BYTES_MAX {
                return Err(too_long());
            }
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        let mac = key.sign(&[&bytes]);
        out.write_all(&bytes)?;
        out.write_all(&mac)?;
        Ok(Self { out, key, mac, table: "", rows: Vec::new(), end: End::default() })
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), BackupError> {
        if payload.len() > FRAME_BYTES_MAX {
            return Err(too_long());
        }
        let head = [&[kind], (payload.len() as u32).to_be_bytes().as_slice()].concat();
        self.mac = self.key.sign(&[&self.mac, &head, payload]);
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        self.out.write_all(&self.mac)?;
        Ok(())
    }

    fn flush_rows(&mut self) -> Result<(), BackupError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.frame(ROWS, &[&[self.table.len() as u8], self.table.as_bytes(), &rows].concat())
    }

    /// Begins a file; bytes or rows follow.
    ///
    /// # Errors
    /// [`BackupError::File`].
    pub fn file(&mut self, name: &str) -> Result<(), BackupError> {
        self.flush_rows()?;
        self.end.files += 1;
        if name.len() > NAME_BYTES_MAX {
            return Err(too_long());
        }
        self.frame(FILE, name.as_bytes())
    }

    /// More bytes of the file.
    ///
    /// # Errors
    /// [`BackupError::File`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        for part in bytes.chunks(FRAME_BYTES) {
            let mut deflated = DeflateEncoder::new(Vec::new(), Compression::fast());
            deflated.write_all(part)?;
            let deflated = deflated.finish()?;
            if deflated.len() < part.len() {
                self.frame(DEFLATED, &deflated)?;
            } else {
                self.frame(BYTES, part)?;
            }
        }
        Ok(())
    }

    /// A row of a table of the file.
    ///
    /// # Errors
    /// [`BackupError::File`].
    pub fn row(&mut self, table: &'static str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        if self.table != table || self.rows.len() >= FRAME_BYTES {
            self.flush_rows()?;
            self.table = table;
        }
        for part in [key, value] {
            self.rows.extend_from_slice(&(part.len() as u32).to_be_bytes());
            self.rows.extend_from_slice(part);
        }
        self.end.rows += 1;
        Ok(())
    }

    /// Ends it, with the last line of the log.
    ///
    /// # Errors
    /// [`BackupError::File`].
    pub fn end(mut self, line: u64, line_hash: String) -> Result<(W, End), BackupError> {
        self.flush_rows()?;
        let end = End { line, line_hash, ..self.end.clone() };
        self.frame(END, &serde_json::to_vec(&end).map_err(io::Error::other)?)?;
        self.out.flush()?;
        Ok((self.out, end))
    }
}

/// A backup whose head was read, and not believed yet.
pub struct Begun<R> {
    from: R,
    read: Vec<u8>,
    /// What it says of itself.
    pub head: Head,
    /// The sealed state of its instance.
    pub state: Vec<u8>,
}

/// What comes next in a backup.
#[derive(Debug, Eq, PartialEq)]
pub enum Part {
    /// A file begins.
    File(String),
    /// More bytes of it.
    Bytes(Vec<u8>),
    /// Rows of one of its tables: keys and values.
    Rows(String, Vec<(Vec<u8>, Vec<u8>)>),
    /// Nothing more.
    End(End),
}

fn exactly<R: Read>(from: &mut R, bytes: usize, at: u64) -> Result<Vec<u8>, BackupError> {
    let mut out = Vec::new();
    from.take(bytes as u64).read_to_end(&mut out)?;
    if out.len() == bytes { Ok(out) } else { Err(BackupError::Cut(at + out.len() as u64)) }
}

fn length(bytes: &[u8]) -> usize {
    bytes.try_into().map_or(usize::MAX, |bytes| u32::from_be_bytes(bytes) as usize)
}

impl<R: Read> Begun<R> {
    /// Reads whose it is.
    ///
    /// # Errors
    /// [`BackupError::Other`], [`BackupError::Version`], [`BackupError::Cut`].
    pub fn read(mut from: R) -> Result<Self, BackupError> {
        let mut read = exactly(&mut from, MAGIC.len() + 1, 0).map_err(|error| match error {
            BackupError::Cut(_) => BackupError::Other,
            error => error,
        })?;
        match read.strip_prefix(MAGIC) {
            Some([VERSION]) => {}
            Some([version]) => return Err(BackupError::Version(*version)),
            _ => return Err(BackupError::Other),
        }
        let mut part = || {
            let at = read.len() as u64;
            let len = exactly(&mut from, 4, at)?;
            read.extend_from_slice(&len);
            let len = length(&len);
            if len > HEAD_BYTES_MAX {
                return Err(BackupError::Changed(at));
            }
            let part = exactly(&mut from, len, at + 4)?;
            read.extend_from_slice(&part);
            Ok(part)
        };
        let (head, state) = (part()?, part()?);
        let head = serde_json::from_slice(&head).map_err(|_| BackupError::Changed(MAGIC.len() as u64 + 1))?;
        Ok(Self { from, read, head, state })
    }

    /// Believes it, if it has the MAC of the instance whose sealed state it has.
    ///
    /// # Errors
    /// [`BackupError::Changed`], [`BackupError::Cut`].
    pub fn believe(mut self, database_key: &SecretBytes) -> Result<Reader<R>, BackupError> {
        let key = key_of(database_key)?;
        let at = self.read.len() as u64;
        let mac = exactly(&mut self.from, MAC_BYTES, at)?;
        if !key.verify(&self.read, &mac) {
            return Err(BackupError::Changed(0));
        }
        Ok(Reader { from: self.from, key, mac, at: at + MAC_BYTES as u64, counted: End::default(), head: self.head })
    }
}

/// Reads a backup that is believed, part by part.
pub struct Reader<R> {
    from: R,
    key: MacKey,
    mac: Vec<u8>,
    at: u64,
    counted: End,
    /// What it says of itself.
    pub head: Head,
}

impl<R: Read> Reader<R> {
    /// The next part, verified.
    ///
    /// # Errors
    /// [`BackupError::Changed`], [`BackupError::Cut`], [`BackupError::File`].
    #[expect(clippy::should_implement_trait, reason = "it may fail, and ends with a part that says so")]
    pub fn next(&mut self) -> Result<Part, BackupError> {
        let begin = self.at;
        let head = exactly(&mut self.from, 5, begin)?;
        let len = length(&head[1..]);
        if len > FRAME_BYTES_MAX {
            return Err(BackupError::Changed(begin));
        }
        let payload = exactly(&mut self.from, len, begin + 5)?;
        let mac = exactly(&mut self.from, MAC_BYTES, begin + 5 + len as u64)?;
        let message = [self.mac.as_slice(), &head, &payload].concat();
        if !self.key.verify(&message, &mac) {
            return Err(BackupError::Changed(begin));
        }
        (self.mac, self.at) = (mac, begin + (5 + len + MAC_BYTES) as u64);
        // From here on it is what the instance wrote: what does not fit is of a defect, or of a version that lies about its own.
        self.part(head[0], payload).ok_or(BackupError::Changed(begin))?.finish(self)
    }

    fn part(&mut self, kind: u8, payload: Vec<u8>) -> Option<Part> {
        Some(match kind {
            FILE => {
                self.counted.files += 1;
                Part::File(String::from_utf8(payload).ok()?)
            }
            BYTES => Part::Bytes(payload),
            DEFLATED => {
                let mut bytes = Vec::new();
                DeflateDecoder::new(payload.as_slice())
                    .take(FRAME_BYTES_MAX as u64 + 1)
                    .read_to_end(&mut bytes)
                    .ok()?;
                Part::Bytes(Some(bytes).filter(|bytes| bytes.len() <= FRAME_BYTES_MAX)?)
            }
            ROWS => {
                let (len, rest) = payload.split_first()?;
                let (table, mut rest) = rest.split_at_checked((*len).into())?;
                let mut rows = Vec::new();
                let field = |rest: &mut &[u8]| {
                    let (len, after) = rest.split_first_chunk::<4>()?;
                    let (field, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
                    *rest = after;
                    Some(field.to_vec())
                };
                while !rest.is_empty() {
                    rows.push((field(&mut rest)?, field(&mut rest)?));
                }
                self.counted.rows += rows.len() as u64;
                Part::Rows(std::str::from_utf8(table).ok()?.to_owned(), rows)
            }
            END => Part::End(serde_json::from_slice(&payload).ok()?),
            _ => return None,
        })
    }

    /// How many bytes were read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.at
    }
}

impl Part {
    /// At the end nothing follows, and the counts are right.
    fn finish<R: Read>(self, reader: &mut Reader<R>) -> Result<Self, BackupError> {
        let Self::End(end) = &self else { return Ok(self) };
        let counted = (reader.counted.files, reader.counted.rows) == (end.files, end.rows);
        let mut after = Vec::new();
        reader.from.by_ref().take(1).read_to_end(&mut after)?;
        if counted && after.is_empty() { Ok(self) } else { Err(BackupError::Changed(reader.at)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretBytes {
        SecretBytes::copy_of(&[7; 32])
    }

    fn head() -> Head {
        Head {
            id: "00112233445566778899aabbccddeeff".into(),
            instance: "instance".into(),
            role: "kms".into(),
            program: "0.1.0".into(),
            time: 1_800_000_000_123,
            revision: 9,
        }
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), &key(), &head(), b"sealed").unwrap();
        writer.file("records.redb").unwrap();
        writer.row("rows v1", b"name", b"value").unwrap();
        writer.row("rows v1", b"other", b"").unwrap();
        writer.row("meta v1", b"revision", &9_u64.to_le_bytes()).unwrap();
        writer.file("audit/audit-000000000001.jsonl").unwrap();
        writer.bytes(b"line\n").unwrap();
        writer.bytes(&[b'a'; 300_000]).unwrap();
        writer.end(4, "ab".into()).unwrap().0
    }

    fn parts(bytes: &[u8]) -> Result<Vec<Part>, BackupError> {
        let mut reader = Begun::read(bytes)?.believe(&key())?;
        let mut parts = Vec::new();
        while !matches!(parts.last(), Some(Part::End(_))) {
            parts.push(reader.next()?);
        }
        Ok(parts)
    }

    #[test]
    fn what_was_written_is_read() {
        let row = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        let expected = [
            Part::File("records.redb".into()),
            Part::Rows("rows v1".into(), vec![row(b"name", b"value"), row(b"other", b"")]),
            Part::Rows("meta v1".into(), vec![row(b"revision", &9_u64.to_le_bytes())]),
            Part::File("audit/audit-000000000001.jsonl".into()),
            Part::Bytes(b"line\n".to_vec()),
            Part::Bytes(vec![b'a'; FRAME_BYTES]),
            Part::Bytes(vec![b'a'; 300_000 - FRAME_BYTES]),
            Part::End(End { files: 2, rows: 3, line: 4, line_hash: "ab".into() }),
        ];
        assert_eq!(parts(&written()).unwrap(), expected);
        assert_eq!(Begun::read(written().as_slice()).unwrap().head, head());
    }

    /// A backup of the first version; it must be readable for ever.
    #[test]
    fn golden_file() {
        let golden: &[u8] = include_bytes!("../tests/golden/backup-v1.bin");
        assert_eq!(parts(golden).unwrap(), parts(&written()).unwrap());
    }

    #[test]
    fn every_flipped_bit_every_cut_and_what_is_put_behind_is_refused() {
        let good = written();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(parts(&bad).is_err(), "bit {at}");
        }
        for len in 0..good.len() {
            assert!(parts(&good[..len]).is_err(), "length {len}");
        }
        assert!(matches!(parts(&[good.as_slice(), b"x"].concat()), Err(BackupError::Changed(_))));
        assert!(matches!(parts(&good[..good.len() - 1]), Err(BackupError::Cut(_))));
        assert!(matches!(parts(b"PK\x03\x04zip"), Err(BackupError::Other)));
        let mut later = good;
        later[4] = 2;
        assert!(matches!(parts(&later), Err(BackupError::Version(2))));
    }

    #[test]
    fn frames_of_another_backup_do_not_fit() {
        let other = {
            let mut writer = Writer::begin(Vec::new(), &key(), &Head { time: 1, ..head() }, b"sealed").unwrap();
            writer.file("records.redb").unwrap();
            writer.end(4, "ab".into()).unwrap().0
        };
        let end = other.len() - (5 + MAC_BYTES + 50);
        let begin = Begun::read(written().as_slice()).unwrap().read.len() + MAC_BYTES;
        assert!(parts(&[&written()[..begin], &other[end..]].concat()).is_err());
        assert!(Begun::read(written().as_slice()).unwrap().believe(&SecretBytes::copy_of(&[8; 32])).is_err());
    }
}

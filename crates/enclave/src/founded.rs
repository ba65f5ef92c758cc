//! Which directories this machine's silicon has sealed instances for: an empty one among them is a volume that is not mounted, or a loss, and no
//! place to begin anew without a word.
//!
//! The list lies beside the silicon's root, and opens with it alone (`docs/formats/founded.md`). It proves what is in it; whoever may write there can
//! take it away, as he can the root.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use holdfast_core::{Ambient, PartitionId, SealError, Sealer, Timestamp};
use holdfast_crypto::{CryptoError, SealingKey, SecretBytes, kdf};

use crate::file;

const MAGIC: &[u8; 5] = b"HFFD\x01";
const PURPOSE: &[u8] = b"holdfast founded directories root v1";
/// More than a machine has services; past it the oldest is forgotten.
const ENTRIES_MAX: usize = 1024;
/// A path of Linux has at most 4096 bytes.
const PATH_BYTES_MAX: usize = 4096;
/// All entries, and what is around them.
const FILE_BYTES_MAX: u64 = (ENTRIES_MAX * (PATH_BYTES_MAX + ENTRY_BYTES) + 4096) as u64;
/// Length of the path, instance, time.
const ENTRY_BYTES: usize = 2 + 16 + 8;

/// A directory that has, or had, an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Founded {
    /// Without symbolic links.
    pub directory: PathBuf,
    /// The instance in it.
    pub instance: PartitionId,
    /// When it was seen there first.
    pub since: Timestamp,
}

/// The list of one silicon.
pub struct FoundedList {
    root: PathBuf,
    path: PathBuf,
}

/// Why the list is not known.
#[derive(Debug, thiserror::Error)]
pub enum FoundedError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The list.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// It is none, or was changed by somebody without the silicon.
    #[error("{0} is damaged, or was not written by this silicon")]
    Damaged(PathBuf),
    /// The silicon failed.
    #[error("{path}: {source}")]
    Sealed {
        /// The list.
        path: PathBuf,
        /// What failed.
        source: SealError,
    },
}

impl FoundedList {
    /// The list beside the silicon whose root is `root`.
    #[must_use]
    pub fn beside(root: &Path) -> Self {
        let mut path = OsString::from(root);
        path.push(".founded");
        Self { root: root.into(), path: path.into() }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All entries, the oldest first. There are none if there is no list, or one of silicon that was here before.
    ///
    /// # Errors
    /// [`FoundedError`].
    pub fn read(&self, sealer: &dyn Sealer) -> Result<Vec<Founded>, FoundedError> {
        let content = file::read_private(&self.path, FILE_BYTES_MAX).map_err(|error| self.failed(error))?;
        let Some(content) = content else { return Ok(Vec::new()) };
        let damaged = || FoundedError::Damaged(self.path.clone());
        let rest = content.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (root_len, rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
        let (sealed_root, body) = rest.split_at_checked(u16::from_be_bytes(*root_len).into()).ok_or_else(damaged)?;
        let root = match sealer.unseal(PURPOSE, sealed_root) {
            Ok(root) => root,
            Err(SealError::OtherSilicon { .. }) => return Ok(Vec::new()),
            Err(SealError::Damaged) => return Err(damaged()),
            Err(source) => return Err(FoundedError::Sealed { path: self.path.clone(), source }),
        };
        let aad = &content[..content.len() - body.len()];
        let body = list_key(&root).and_then(|key| key.open(aad, body)).map_err(|_| damaged())?;
        decode(body.expose()).ok_or_else(damaged)
    }

    /// Adds an entry, or puts it in the place of the one for its directory. Whoever does the same at this moment is waited for. A list that is
    /// damaged is set aside; gives where it lies now.
    ///
    /// # Errors
    /// [`FoundedError`].
    pub fn remember(
        &self,
        founded: Founded,
        sealer: &dyn Sealer,
        ambient: &dyn Ambient,
    ) -> Result<Option<PathBuf>, FoundedError> {
        if founded.directory.as_os_str().len() > PATH_BYTES_MAX {
            return Err(self.failed(io::ErrorKind::InvalidFilename.into()));
        }
        let _lock = file::lock(&self.root).map_err(|error| self.failed(error))?;
        let mut set_aside = None;
        let mut entries = match self.read(sealer) {
            Err(FoundedError::Damaged(path)) => {
                let aside = path.with_added_extension("damaged");
                fs::rename(&path, &aside).map_err(|error| self.failed(error))?;
                set_aside = Some(aside);
                Vec::new()
            }
            other => other?,
        };
        entries.retain(|entry| entry.directory != founded.directory);
        entries.push(founded);
        let forgotten = entries.len().saturating_sub(ENTRIES_MAX);
        entries.drain(..forgotten);
        let mut root = SecretBytes::zeroed(32);
        ambient.fill(root.expose_mut());
        let sealed_root =
            sealer.seal(PURPOSE, &root).map_err(|source| FoundedError::Sealed { path: self.path.clone(), source })?;
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&(sealed_root.len() as u16).to_be_bytes());
        out.extend_from_slice(&sealed_root);
        let sealed = list_key(&root).and_then(|key| key.seal(ambient.random(), &out, &encode(&entries)));
        out.extend_from_slice(&sealed.map_err(|_| FoundedError::Damaged(self.path.clone()))?);
        file::write_private(&self.path, &out).map_err(|error| self.failed(error))?;
        Ok(set_aside)
    }

    fn failed(&self, source: io::Error) -> FoundedError {
        FoundedError::File { path: self.path.clone(), source }
    }
}

fn list_key(root: &SecretBytes) -> Result<SealingKey, CryptoError> {
    kdf::derive_key(root, "holdfast founded directories v1").and_then(|key| SealingKey::new(&key))
}

/// Each: length of the path (2), path, instance (16), milliseconds since the epoch (8).
fn encode(entries: &[Founded]) -> Vec<u8> {
    let mut out = Vec::new();
    for Founded { directory, instance, since } in entries {
        let path = directory.as_os_str().as_bytes();
        out.extend_from_slice(&(path.len() as u16).to_be_bytes());
        out.extend_from_slice(path);
        out.extend_from_slice(instance.as_bytes());
        out.extend_from_slice(&since.unix_millis().to_be_bytes());
    }
    out
}

fn decode(mut body: &[u8]) -> Option<Vec<Founded>> {
    let mut entries = Vec::new();
    while !body.is_empty() {
        let (len, rest) = body.split_first_chunk::<2>()?;
        let (path, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
        let (instance, rest) = rest.split_first_chunk::<16>()?;
        let (since, rest) = rest.split_first_chunk::<8>()?;
        body = rest;
        entries.push(Founded {
            directory: OsStr::from_bytes(path).into(),
            instance: PartitionId::from_bytes(*instance),
            since: Timestamp::from_unix_millis(i64::from_be_bytes(*since)),
        });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(paths in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..5), byte: u8, millis: i64) {
            let entries: Vec<_> = paths
                .into_iter()
                .map(|path| Founded {
                    directory: OsString::from_vec(path).into(),
                    instance: PartitionId::from_bytes([byte; 16]),
                    since: Timestamp::from_unix_millis(millis),
                })
                .collect();
            let encoded = encode(&entries);
            prop_assert_eq!(decode(&encoded), Some(entries));
            if !encoded.is_empty() {
                prop_assert_eq!(decode(&encoded[..encoded.len() - 1]), None);
            }
        }
    }
}

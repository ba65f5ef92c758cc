//! Software silicon: a chip made of a file. For machines without a TEE.
//!
//! It gives the *shape* of sealing (a data directory without its silicon does not open) and none of the protection of
//! hardware: whoever reads the root file has the machine. It says so wherever it is named.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{Ambient, SealError, Sealer, hex};
use holdfast_crypto::{SealingKey, SecretBytes, kdf};

use crate::file;

const ROOT_MAGIC: &[u8; 5] = b"HFSS\x01";
const SEALED_MAGIC: &[u8; 5] = b"HFSE\x01";
const ROOT_BYTES: usize = 32;
const ID_BYTES: usize = 8;

/// A chip whose secret is a file with mode 0600.
pub struct SoftwareSilicon {
    id: [u8; ID_BYTES],
    key: SealingKey,
    ambient: Arc<dyn Ambient>,
}

/// Why the root file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SiliconError {
    /// It is not there, and state exists that needs it.
    #[error("there is no silicon root at {0}")]
    Missing(PathBuf),
    /// It is not a root file.
    #[error("{0} is not a silicon root file")]
    Malformed(PathBuf),
    /// It cannot be read or written.
    #[error("the silicon root {path}: {source}")]
    File {
        /// The root file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

impl SoftwareSilicon {
    /// Opens the chip whose root is the file at `path`.
    ///
    /// # Errors
    /// [`SiliconError::Missing`] if there is none; it never makes one by itself.
    pub fn open(path: &Path, ambient: Arc<dyn Ambient>) -> Result<Self, SiliconError> {
        let content = file::read_private(path, 1024)
            .map_err(|source| SiliconError::File { path: path.into(), source })?
            .ok_or_else(|| SiliconError::Missing(path.into()))?;
        let content = SecretBytes::take(content);
        let root = content
            .expose()
            .strip_prefix(ROOT_MAGIC)
            .filter(|root| root.len() == ROOT_BYTES)
            .ok_or_else(|| SiliconError::Malformed(path.into()))?;
        Self::from_root(&SecretBytes::copy_of(root), ambient).ok_or_else(|| SiliconError::Malformed(path.into()))
    }

    /// Makes a new chip at `path`, or opens the one that somebody else has made there a moment before.
    ///
    /// # Errors
    /// [`SiliconError::File`]; as [`SoftwareSilicon::open`].
    pub fn create(path: &Path, ambient: Arc<dyn Ambient>) -> Result<Self, SiliconError> {
        let mut content = SecretBytes::zeroed(ROOT_MAGIC.len() + ROOT_BYTES);
        let (magic, root) = content.expose_mut().split_at_mut(ROOT_MAGIC.len());
        magic.copy_from_slice(ROOT_MAGIC);
        ambient.fill(root);
        let failed = |source| SiliconError::File { path: path.into(), source };
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(failed)?;
        // One that is there is never replaced: what somebody has sealed to it would be lost.
        file::create_private(path, content.expose()).map_err(failed)?;
        Self::open(path, ambient)
    }

    fn from_root(root: &SecretBytes, ambient: Arc<dyn Ambient>) -> Option<Self> {
        let id =
            kdf::hkdf(holdfast_crypto::HashAlgorithm::Sha256, &[], root.expose(), b"holdfast silicon id v1", ID_BYTES);
        let key = kdf::derive_key(root, "holdfast silicon seal v1").and_then(|key| SealingKey::new(&key));
        Some(Self { id: id.ok()?.expose().try_into().ok()?, key: key.ok()?, ambient })
    }
}

fn aad(header: &[u8], purpose: &[u8]) -> Vec<u8> {
    [header, purpose].concat()
}

impl Sealer for SoftwareSilicon {
    fn seal(&self, purpose: &[u8], secret: &SecretBytes) -> Result<Vec<u8>, SealError> {
        let mut out = [SEALED_MAGIC.as_slice(), &self.id].concat();
        let sealed = self
            .key
            .seal(self.ambient.random(), &aad(&out, purpose), secret.expose())
            .map_err(|error| SealError::Failed(error.to_string()))?;
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    fn unseal(&self, purpose: &[u8], sealed: &[u8]) -> Result<SecretBytes, SealError> {
        let header_bytes = SEALED_MAGIC.len() + ID_BYTES;
        let (header, body) = sealed.split_at_checked(header_bytes).ok_or(SealError::Damaged)?;
        let sealed_by = header.strip_prefix(SEALED_MAGIC).ok_or(SealError::Damaged)?;
        if sealed_by != self.id {
            return Err(SealError::OtherSilicon { sealed_by: hex(sealed_by), this: hex(&self.id) });
        }
        self.key.open(&aad(header, purpose), body).map_err(|_| SealError::Damaged)
    }

    fn kind(&self) -> &'static str {
        "software silicon"
    }

    fn memory_isolated(&self) -> bool {
        false
    }
}

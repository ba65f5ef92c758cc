//! The secrets of one instance: born inside, sealed, never in clear on disk.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use holdfast_core::{Ambient, PartitionId, SealError, Sealer};
use holdfast_crypto::{Curve, KeyMaterial, KeySpec, SealingKey, SecretBytes, kdf};

use crate::file;

const MAGIC: &[u8; 5] = b"HFIS\x01";
const PURPOSE: &[u8] = b"holdfast instance root v1";
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Everything secret that outlives a restart.
pub struct InstanceSecrets {
    /// The instance, which has one partition.
    pub instance: PartitionId,
    /// Encrypts every stored record. 32 bytes.
    pub database_key: SecretBytes,
    /// Masks the keys of the partition. 32 bytes.
    pub masking_key: SecretBytes,
    /// Private key of the TLS certificate, PKCS #8.
    pub tls_key: SecretBytes,
    /// Private key of the instance's own certificate authority, PKCS #8.
    pub authority_key: SecretBytes,
    /// Its certificate, DER. Not secret, but of one piece with its key.
    pub authority_certificate: Vec<u8>,
    /// Signs checkpoints of the audit log; P-384, canonical material.
    pub audit_key: SecretBytes,
    /// Formats of which nothing older than this version is taken any more, by the number of the format
    /// (`docs/formats/instance-state.md`). It lies here because whoever puts an old file in the place of a new one cannot undo it
    /// without putting the instance's secrets back, too.
    pub floors: BTreeMap<u8, u8>,
}

/// Why the instance does not open.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The sealed file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// It is not a sealed state of a version this program knows.
    #[error("{0} is not a sealed instance state of a version this program knows")]
    Malformed(PathBuf),
    /// It does not unseal here.
    #[error("{path} does not open on this machine: {source}")]
    Sealed {
        /// The sealed file.
        path: PathBuf,
        /// Why.
        source: SealError,
    },
    /// A key could not be made.
    #[error("the instance's keys could not be made")]
    Generation,
}

impl InstanceSecrets {
    /// Draws the secrets of a new instance. TLS and authority keys come from the caller, which speaks X.509.
    ///
    /// # Errors
    /// [`InstanceError::Generation`].
    pub fn generate(
        ambient: &dyn Ambient,
        tls_key: SecretBytes,
        authority_key: SecretBytes,
        authority_certificate: Vec<u8>,
    ) -> Result<Self, InstanceError> {
        let random_key = || {
            let mut key = SecretBytes::zeroed(32);
            ambient.fill(key.expose_mut());
            key
        };
        let audit_key =
            KeyMaterial::generate(KeySpec::Ec(Curve::P384), |_| ()).map_err(|_| InstanceError::Generation)?;
        Ok(Self {
            instance: PartitionId::from_bytes(ambient.random()),
            database_key: random_key(),
            masking_key: random_key(),
            tls_key,
            authority_key,
            authority_certificate,
            audit_key: SecretBytes::copy_of(audit_key.expose_canonical()),
            floors: BTreeMap::new(),
        })
    }

    /// Opens the state in `path`; `None` if there is none yet.
    ///
    /// # Errors
    /// [`InstanceError::Sealed`] above all: the directory was copied without its silicon, or changed.
    pub fn open(path: &Path, sealer: &dyn Sealer) -> Result<Option<Self>, InstanceError> {
        let content = file::read_private(path, FILE_BYTES_MAX)
            .map_err(|source| InstanceError::File { path: path.into(), source })?;
        content.map(|content| Self::open_content(path, &content, sealer)).transpose()
    }

    /// Opens a state that lies elsewhere than in a file of its own; `path` is what it is called.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_content(path: &Path, content: &[u8], sealer: &dyn Sealer) -> Result<Self, InstanceError> {
        let malformed = || InstanceError::Malformed(path.into());
        let sealed = |source| InstanceError::Sealed { path: path.into(), source };
        let rest = content.strip_prefix(MAGIC).ok_or_else(malformed)?;
        let (instance, rest) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
        let (root_len, rest) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
        let (sealed_root, body) = rest.split_at_checked(u16::from_be_bytes(*root_len).into()).ok_or_else(malformed)?;
        let root = sealer.unseal(PURPOSE, sealed_root).map_err(sealed)?;
        let aad = &content[..content.len() - body.len()];
        let body = state_key(&root)?.open(aad, body).map_err(|_| sealed(SealError::Damaged))?;
        Self::decode(PartitionId::from_bytes(*instance), body.expose()).ok_or_else(malformed)
    }

    /// Seals the state into `path` under a fresh root.
    ///
    /// # Errors
    /// [`InstanceError::File`], [`InstanceError::Sealed`].
    pub fn seal(&self, path: &Path, sealer: &dyn Sealer, ambient: &dyn Ambient) -> Result<(), InstanceError> {
        let mut root = SecretBytes::zeroed(32);
        ambient.fill(root.expose_mut());
        let sealed_root =
            sealer.seal(PURPOSE, &root).map_err(|source| InstanceError::Sealed { path: path.into(), source })?;
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.instance.as_bytes());
        out.extend_from_slice(&(sealed_root.len() as u16).to_be_bytes());
        out.extend_from_slice(&sealed_root);
        let body = self.encode();
        let sealed =
            state_key(&root)?.seal(ambient.random(), &out, body.expose()).map_err(|_| InstanceError::Generation)?;
        out.extend_from_slice(&sealed);
        file::write_private(path, &out).map_err(|source| InstanceError::File { path: path.into(), source })
    }

    /// Fields in the order of their tags, 1 to 7: tag, length (4 bytes), content. The last is there if it is not empty.
    fn encode(&self) -> SecretBytes {
        let floors: Vec<u8> = self.floors.iter().flat_map(|(format, version)| [*format, *version]).collect();
        let fields = [
            self.database_key.expose(),
            self.masking_key.expose(),
            self.tls_key.expose(),
            self.authority_key.expose(),
            &self.authority_certificate,
            self.audit_key.expose(),
            &floors,
        ];
        let fields = &fields[..fields.len() - usize::from(floors.is_empty())];
        let mut out = Vec::with_capacity(fields.iter().map(|field| field.len() + 5).sum());
        for (tag, field) in (1_u8..).zip(fields) {
            out.push(tag);
            out.extend_from_slice(&(field.len() as u32).to_be_bytes());
            out.extend_from_slice(field);
        }
        SecretBytes::take(out)
    }

    fn decode(instance: PartitionId, mut body: &[u8]) -> Option<Self> {
        let mut field = |expected: u8| {
            let ([tag, len @ ..], rest) = body.split_first_chunk::<5>()?;
            let (content, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            body = rest;
            (*tag == expected).then(|| SecretBytes::copy_of(content))
        };
        let secrets = Self {
            instance,
            database_key: field(1)?,
            masking_key: field(2)?,
            tls_key: field(3)?,
            authority_key: field(4)?,
            authority_certificate: field(5)?.expose().to_vec(),
            audit_key: field(6)?,
            floors: BTreeMap::new(),
        };
        if body.is_empty() {
            return Some(secrets);
        }
        let ([7, len @ ..], floors) = body.split_first_chunk::<5>()? else { return None };
        let (pairs, []) = floors.as_chunks::<2>() else { return None };
        if u32::from_be_bytes(*len) as usize != floors.len() || floors.is_empty() {
            return None;
        }
        Some(Self { floors: pairs.iter().map(|[format, version]| (*format, *version)).collect(), ..secrets })
    }
}

fn state_key(root: &SecretBytes) -> Result<SealingKey, InstanceError> {
    kdf::derive_key(root, "holdfast instance state v1")
        .and_then(|key| SealingKey::new(&key))
        .map_err(|_| InstanceError::Generation)
}

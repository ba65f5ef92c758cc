//! A partition: one masking key and what it alone can open.

use holdfast_core::{HsmError, KeyName, KeyVersion, MaskedKey, NewKey, PartitionId};
use holdfast_crypto::{
    CryptoError, HashAlgorithm, ImportedKey, KeyMaterial, KeySpec, LoadedKey, PublicKey, Rsa1_5Policy, SealingKey,
    SecretBytes, aead,
    kdf::{self, MacKey},
    transfer::{self, Transfer},
};

use crate::{
    blob::{self, BlobError, BlobHeader},
    perform::{Keyed, refuse},
};

const BACKUP_MAGIC: &[u8; 5] = b"HFKB\x01";

/// What a partition allows beyond the attributes of its keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartitionPolicy {
    /// Whether RSAES-PKCS1-v1_5 is offered.
    pub rsa1_5: Rsa1_5Policy,
}

/// A customer's isolated set of keys.
pub struct Partition {
    id: PartitionId,
    masking: SealingKey,
    backup: SealingKey,
    check: MacKey,
    policy: PartitionPolicy,
}

impl Partition {
    /// The partition with this masking key (32 bytes).
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] on another length.
    pub fn new(id: PartitionId, masking_key: &SecretBytes, policy: PartitionPolicy) -> Result<Self, CryptoError> {
        if masking_key.len() != 32 {
            return Err(CryptoError::InvalidKey("a masking key has 32 bytes"));
        }
        Ok(Self {
            id,
            masking: SealingKey::new(&kdf::derive_key(masking_key, "holdfast mask v1")?)?,
            backup: SealingKey::new(&kdf::derive_key(masking_key, "holdfast key backup v1")?)?,
            check: MacKey::new(HashAlgorithm::Sha256, kdf::derive_key(masking_key, "holdfast key check v1")?.expose()),
            policy,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// What it allows.
    #[must_use]
    pub fn policy(&self) -> PartitionPolicy {
        self.policy
    }

    /// Masks fresh material as `version`; the spec recorded is the material's own.
    ///
    /// # Errors
    /// [`CryptoError`] if the material does not load: a key that cannot be used is not stored.
    pub fn mask(
        &self,
        version: &KeyVersion,
        material: KeyMaterial,
        random: [u8; aead::SEAL_RANDOM_BYTES],
    ) -> Result<NewKey, CryptoError> {
        let spec = material.spec();
        let mut version = version.clone();
        version.attributes.spec = spec;
        let copy = KeyMaterial::from_canonical(spec, SecretBytes::copy_of(material.expose_canonical()));
        let public = copy.load()?.public();
        let masked = self.mask_checked(version.clone(), public.clone(), &material, random)?;
        let name = version.name.folded();
        let check = self.check.sign(&[&[name.len() as u8], name.as_bytes(), material.expose_canonical()]);
        let check = check.try_into().map_err(|_| CryptoError::Library("HMAC"))?;
        Ok(NewKey { masked, spec, public, check })
    }

    fn mask_checked(
        &self,
        version: KeyVersion,
        public: PublicKey,
        material: &KeyMaterial,
        random: [u8; aead::SEAL_RANDOM_BYTES],
    ) -> Result<MaskedKey, CryptoError> {
        let header = BlobHeader { partition: self.id, version, public };
        let blob = blob::mask(&self.masking, random, &header, material).map_err(|_| CryptoError::Library("masking"))?;
        Ok(MaskedKey(blob.into()))
    }

    /// Opens a masked key for use.
    ///
    /// # Errors
    /// [`BlobError`] unless the blob was made here for exactly this version with these attributes.
    pub fn open(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<Keyed, BlobError> {
        let (header, material) = blob::unmask(&self.masking, self.id, version, &masked.0)?;
        let key = material.load().map_err(|_| BlobError::Damaged)?;
        Ok(Keyed::new(version.clone(), header.public, key, self.policy))
    }

    /// The public part of a masked key, from its header; the blob is not decrypted.
    ///
    /// # Errors
    /// [`BlobError`] unless the header names exactly this version with these attributes.
    pub fn describe(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<PublicKey, BlobError> {
        let (header, _) = blob::decode_header(&masked.0)?;
        if header.partition != self.id || header.version != *version {
            return Err(BlobError::OtherIdentity);
        }
        Ok(header.public)
    }

    /// Masks the same material under other attributes. Name, version and spec stay.
    ///
    /// # Errors
    /// [`BlobError`] as for [`Self::open`]; [`BlobError::OtherIdentity`] if `to` is another key version.
    pub fn remask(
        &self,
        from: &KeyVersion,
        masked: &MaskedKey,
        to: &KeyVersion,
        random: [u8; aead::SEAL_RANDOM_BYTES],
    ) -> Result<MaskedKey, BlobError> {
        if from.name != to.name || from.id != to.id || from.attributes.spec != to.attributes.spec {
            return Err(BlobError::OtherIdentity);
        }
        let (header, material) = blob::unmask(&self.masking, self.id, from, &masked.0)?;
        self.mask_checked(to.clone(), header.public, &material, random).map_err(|_| BlobError::Damaged)
    }

    /// Unwraps a key sent for import under an exchange key of this partition, an RSA key for `import` only. `as_told`: the exchange key as the role
    /// has it at this moment.
    ///
    /// # Errors
    /// As of [`Keyed::perform`]; [`HsmError::InvalidInput`] if the exchange key is no RSA key, [`HsmError::Rejected`] if the key does not unwrap.
    pub fn unwrap_import(
        &self,
        exchange: &Keyed,
        as_told: &KeyVersion,
        spec: KeySpec,
        transfer: Transfer,
        wrapped: &[u8],
    ) -> Result<KeyMaterial, HsmError> {
        exchange.check_import(as_told)?;
        let LoadedKey::Rsa(key) = exchange.key() else { return Err(refuse(CryptoError::Mismatch)) };
        let target = transfer::unwrap(key, transfer, wrapped).map_err(refuse)?;
        let material = KeyMaterial::import(match spec {
            KeySpec::Aes(_) => ImportedKey::Aes(target),
            KeySpec::Hmac(hash) => ImportedKey::Hmac(hash, target),
            KeySpec::Ec(_) | KeySpec::Ed25519 | KeySpec::MlDsa(_) | KeySpec::MlKem(_) | KeySpec::Rsa { .. } => {
                ImportedKey::Pkcs8(spec, target)
            }
        });
        material.map_err(refuse)
    }

    /// Encrypts the description of one key for its owner to keep (`docs/formats/key-backup.md`).
    ///
    /// # Errors
    /// [`CryptoError::Library`] only.
    pub fn seal_backup(
        &self,
        name: &KeyName,
        content: &[u8],
        random: [u8; aead::SEAL_RANDOM_BYTES],
    ) -> Result<Vec<u8>, CryptoError> {
        let mut out = BACKUP_MAGIC.to_vec();
        out.extend_from_slice(self.id.as_bytes());
        let folded = name.folded();
        out.push(folded.len() as u8);
        out.extend_from_slice(folded.as_bytes());
        let sealed = self.backup.seal(random, &out, content)?;
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens a backup made here.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn open_backup(&self, sealed: &[u8]) -> Result<SecretBytes, BlobError> {
        let rest = sealed.strip_prefix(BACKUP_MAGIC).ok_or(BlobError::Malformed)?;
        let (partition, rest) = rest.split_at_checked(16).ok_or(BlobError::Malformed)?;
        let (name_len, rest) = rest.split_first().ok_or(BlobError::Malformed)?;
        let (_, body) = rest.split_at_checked(usize::from(*name_len)).ok_or(BlobError::Malformed)?;
        if partition != self.id.as_bytes() {
            return Err(BlobError::OtherIdentity);
        }
        let aad = &sealed[..sealed.len() - body.len()];
        self.backup.open(aad, body).map_err(|_| BlobError::Damaged)
    }
}

//! The software HSM behind its seams: `engine`'s pure partition on real threads.

mod external;
mod pool;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
pub(crate) use external::SoftExternalHsm;
use holdfast_core::{
    Action, Ambient, AtThisMoment, Hsm, HsmAdmin, HsmError, KeyName, KeyVersion, MaskedKey, NewKey, OpenKey, Operation,
    Outcome, Permit, Resource,
};
use holdfast_crypto::{
    CryptoError, Curve, ImportedKey, KeyMaterial, KeySpec, PublicKey, SecretBytes, transfer::Transfer,
};
use holdfast_engine::{BlobError, Keyed, Partition, Work};
pub(crate) use pool::CryptoPool;

/// Threads and queues of the HSM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HsmThreads {
    /// Threads for private-key operations.
    pub private_key: usize,
    /// Private-key operations that may wait.
    pub queue_max: usize,
}

/// A partition with its threads.
pub(crate) struct SoftHsm {
    partition: Arc<Partition>,
    ambient: Arc<dyn Ambient>,
    /// RSA and the slow curves: milliseconds.
    private_key: Arc<CryptoPool>,
    /// RSA key generation: seconds. One thread, so that it never takes the others' turn.
    generation: Arc<CryptoPool>,
}

impl SoftHsm {
    pub(crate) fn new(partition: Partition, ambient: Arc<dyn Ambient>, threads: HsmThreads) -> std::io::Result<Self> {
        Ok(Self {
            partition: Arc::new(partition),
            ambient,
            private_key: Arc::new(CryptoPool::start("private-key", threads.private_key, threads.queue_max)?),
            generation: Arc::new(CryptoPool::start("key-generation", 1, 64)?),
        })
    }

    /// Masks on the calling thread or on a pool, by what loading the key once costs.
    async fn mask(
        &self,
        version: &KeyVersion,
        make: impl FnOnce() -> Result<KeyMaterial, CryptoError> + Send + 'static,
    ) -> Result<NewKey, HsmError> {
        let partition = Arc::clone(&self.partition);
        let random = self.ambient.random();
        let spec = version.attributes.spec;
        let version = version.clone();
        let work = move || make().and_then(|material| partition.mask(&version, material, random)).map_err(refuse);
        match spec {
            KeySpec::Aes(_) | KeySpec::Ec(Curve::P256) | KeySpec::Ed25519 | KeySpec::Hmac(_) | KeySpec::MlKem(_) => {
                work()
            }
            KeySpec::Ec(_) | KeySpec::MlDsa(_) => self.private_key.run(work).await?,
            KeySpec::Rsa { .. } => self.generation.run(work).await?,
        }
    }
}

fn refuse(error: CryptoError) -> HsmError {
    match error {
        CryptoError::InvalidInput(why) | CryptoError::InvalidKey(why) => HsmError::InvalidInput(why),
        CryptoError::Mismatch => HsmError::InvalidInput("the key is not of the kind needed here"),
        CryptoError::Rejected => HsmError::Rejected,
        CryptoError::Library(what) => HsmError::Failed(what),
        _ => HsmError::Failed("an unknown cryptographic failure"),
    }
}

fn damaged(error: BlobError) -> HsmError {
    match error {
        BlobError::Malformed | BlobError::OtherIdentity | BlobError::Damaged => HsmError::Damaged,
    }
}

struct PooledKey {
    resource: Resource,
    keyed: Arc<Keyed>,
    private_key: Arc<CryptoPool>,
    ambient: Arc<dyn Ambient>,
}

#[async_trait]
impl OpenKey for PooledKey {
    async fn perform(
        &self,
        permit: Permit,
        key: Arc<dyn AtThisMoment>,
        operation: Operation,
    ) -> Result<Outcome, HsmError> {
        permit.spend(operation.action(), &self.resource)?;
        let work = self.keyed.work(&operation);
        let (keyed, ambient) = (Arc::clone(&self.keyed), Arc::clone(&self.ambient));
        let perform = move || {
            let (_pass, as_told) = key.look()?;
            keyed.perform(ambient.now(), &as_told, ambient.random(), operation)
        };
        match work {
            Work::Light => perform(),
            Work::PrivateKey => self.private_key.run(perform).await?,
        }
    }

    fn public(&self) -> &PublicKey {
        self.keyed.public()
    }
}

#[async_trait]
impl Hsm for SoftHsm {
    async fn open(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<Arc<dyn OpenKey>, HsmError> {
        let partition = Arc::clone(&self.partition);
        let spec = version.attributes.spec;
        let resource = Resource::Key(version.name.clone());
        let (version, masked) = (version.clone(), masked.clone());
        let work = move || partition.open(&version, &masked).map_err(damaged);
        let keyed = match spec {
            KeySpec::Aes(_)
            | KeySpec::Ec(_)
            | KeySpec::Ed25519
            | KeySpec::Hmac(_)
            | KeySpec::MlDsa(_)
            | KeySpec::MlKem(_) => work()?,
            // The library checks an RSA key when it is parsed: some milliseconds.
            KeySpec::Rsa { .. } => self.private_key.run(work).await??,
        };
        let (private_key, ambient) = (Arc::clone(&self.private_key), Arc::clone(&self.ambient));
        Ok(Arc::new(PooledKey { resource, keyed: Arc::new(keyed), private_key, ambient }))
    }

    fn describe(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<PublicKey, HsmError> {
        self.partition.describe(version, masked).map_err(damaged)
    }

    async fn random(&self, permit: Permit, count: usize) -> Result<SecretBytes, HsmError> {
        permit.spend(Action::RandomRead, &Resource::Instance)?;
        let mut bytes = SecretBytes::zeroed(count);
        self.ambient.fill(bytes.expose_mut());
        Ok(bytes)
    }
}

#[async_trait]
impl HsmAdmin for SoftHsm {
    async fn generate(&self, permit: Permit, version: &KeyVersion) -> Result<NewKey, HsmError> {
        permit.spend_any(&[Action::KeyCreate, Action::KeyRotate], &Resource::Key(version.name.clone()))?;
        let (spec, ambient) = (version.attributes.spec, Arc::clone(&self.ambient));
        self.mask(version, move || KeyMaterial::generate(spec, |bytes| ambient.fill(bytes))).await
    }

    async fn import(&self, permit: Permit, version: &KeyVersion, key: ImportedKey) -> Result<NewKey, HsmError> {
        permit.spend(Action::KeyImport, &Resource::Key(version.name.clone()))?;
        self.mask(version, move || KeyMaterial::import(key)).await
    }

    async fn import_wrapped(
        &self,
        permit: Permit,
        version: &KeyVersion,
        exchange: (Arc<dyn AtThisMoment>, &KeyVersion, &MaskedKey),
        transfer: Transfer,
        wrapped: &[u8],
    ) -> Result<NewKey, HsmError> {
        permit.spend(Action::KeyImport, &Resource::Key(version.name.clone()))?;
        let partition = Arc::clone(&self.partition);
        let (exchange_key, exchange_version, exchange_blob) = (exchange.0, exchange.1.clone(), exchange.2.clone());
        let (version, wrapped) = (version.clone(), wrapped.to_vec());
        let random = self.ambient.random();
        let work = move || {
            let exchange = partition.open(&exchange_version, &exchange_blob).map_err(damaged)?;
            // The pass is held until the key is put down.
            let (_pass, as_told) = exchange_key.look()?;
            let material = partition.unwrap_import(&exchange, &as_told, version.attributes.spec, transfer, &wrapped)?;
            partition.mask(&version, material, random).map_err(refuse)
        };
        self.private_key.run(work).await?
    }

    async fn data_key_pair(&self, spec: KeySpec) -> Result<(SecretBytes, PublicKey), HsmError> {
        const NOT_OFFERED: HsmError = HsmError::InvalidInput("key pairs of this kind are not given out");
        let ambient = Arc::clone(&self.ambient);
        let work = move || {
            let material = KeyMaterial::generate(spec, |bytes| ambient.fill(bytes)).map_err(refuse)?;
            let copy = KeyMaterial::from_canonical(spec, SecretBytes::copy_of(material.expose_canonical()));
            let public = copy.load().map_err(refuse)?.public();
            Ok((material.expose_pkcs8().map_err(refuse)?.ok_or(NOT_OFFERED)?, public))
        };
        match spec {
            KeySpec::Rsa { .. } => self.generation.run(work).await?,
            _ => self.private_key.run(work).await?,
        }
    }

    async fn remask(
        &self,
        permit: Permit,
        from: &KeyVersion,
        masked: &MaskedKey,
        to: &KeyVersion,
    ) -> Result<MaskedKey, HsmError> {
        permit.spend(Action::KeyUpdate, &Resource::Key(from.name.clone()))?;
        self.partition.remask(from, masked, to, self.ambient.random()).map_err(damaged)
    }

    async fn seal_backup(&self, permit: Permit, name: &KeyName, content: &[u8]) -> Result<Vec<u8>, HsmError> {
        permit.spend(Action::KeyBackup, &Resource::Key(name.clone()))?;
        self.partition.seal_backup(name, content, self.ambient.random()).map_err(refuse)
    }

    fn open_backup(&self, sealed: &[u8]) -> Result<SecretBytes, HsmError> {
        self.partition.open_backup(sealed).map_err(damaged)
    }
}

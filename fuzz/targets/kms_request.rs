#![no_main]
//! Requests of the key management service, over a real partition and a store in memory: first byte the operation, then the body, in
//! which `@` stands for the id of a key that is there.

use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use holdfast_core::{
    Action, Ambient, AtThisMoment, AuditError, AuditEvent, AuditSink, Decided, Gate, Hsm, HsmAdmin, HsmError, KeyName, KeyVersion, MaskedKey,
    NewKey, OpenKey, Operation, Outcome, PartitionId, Permit, Projection, Record, RecordKey, Resource, Revision, Store, StoreError, Timestamp,
    Write,
};
use holdfast_crypto::{CryptoError, ImportedKey, KeyMaterial, KeySpec, PublicKey, SecretBytes, transfer::Transfer};
use holdfast_engine::{BlobError, Keyed, Partition, PartitionPolicy};
use holdfast_kms::{CredentialConfig, Directory, IdentityConfig, Kms, KmsConfig, Limits, Seams};
use holdfast_store::{MemoryEngine, SealedStore};
use libfuzzer_sys::fuzz_target;

struct Fixed;

impl Ambient for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_secs(1_800_000_000)
    }

    fn fill(&self, out: &mut [u8]) {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        for chunk in out.chunks_mut(8) {
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

struct Nowhere;

#[async_trait]
impl AuditSink for Nowhere {
    async fn append(&self, _: AuditEvent) -> Result<(), AuditError> {
        Ok(())
    }
}

/// The partition without threads.
struct Here(Arc<Partition>);

struct Open(Resource, Keyed);

fn crypto(error: CryptoError) -> HsmError {
    match error {
        CryptoError::InvalidInput(why) | CryptoError::InvalidKey(why) => HsmError::InvalidInput(why),
        CryptoError::Rejected => HsmError::Rejected,
        _ => HsmError::InvalidInput("the key is not of the kind needed here"),
    }
}

fn blob(_: BlobError) -> HsmError {
    HsmError::Damaged
}

#[async_trait]
impl OpenKey for Open {
    async fn perform(&self, permit: Permit, key: Arc<dyn AtThisMoment>, operation: Operation) -> Result<Outcome, HsmError> {
        permit.spend(operation.action(), &self.0)?;
        let (_pass, as_told) = key.look()?;
        let mut random = [0; 28];
        Fixed.fill(&mut random);
        self.1.perform(Fixed.now(), &as_told, random, operation)
    }

    fn public(&self) -> &PublicKey {
        self.1.public()
    }
}

#[async_trait]
impl Hsm for Here {
    async fn open(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<Arc<dyn OpenKey>, HsmError> {
        let keyed = self.0.open(version, masked).map_err(blob)?;
        Ok(Arc::new(Open(Resource::Key(version.name.clone()), keyed)))
    }

    fn describe(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<PublicKey, HsmError> {
        self.0.describe(version, masked).map_err(blob)
    }

    async fn random(&self, permit: Permit, count: usize) -> Result<SecretBytes, HsmError> {
        permit.spend(Action::RandomRead, &Resource::Instance)?;
        Ok(SecretBytes::zeroed(count))
    }
}

fn random() -> [u8; 28] {
    let mut random = [0; 28];
    Fixed.fill(&mut random);
    random
}

#[async_trait]
impl HsmAdmin for Here {
    async fn generate(&self, permit: Permit, version: &KeyVersion) -> Result<NewKey, HsmError> {
        permit.spend_any(&[Action::KeyCreate, Action::KeyRotate], &Resource::Key(version.name.clone()))?;
        // RSA keys take too long to be made in a fuzz target.
        if matches!(version.attributes.spec, KeySpec::Rsa { .. }) {
            return Err(HsmError::Busy);
        }
        let material = KeyMaterial::generate(version.attributes.spec, |bytes| Fixed.fill(bytes)).map_err(crypto)?;
        self.0.mask(version, material, random()).map_err(crypto)
    }

    async fn import(&self, _: Permit, _: &KeyVersion, _: ImportedKey) -> Result<NewKey, HsmError> {
        Err(HsmError::Busy)
    }

    async fn import_wrapped(
        &self,
        _: Permit,
        _: &KeyVersion,
        _: (Arc<dyn AtThisMoment>, &KeyVersion, &MaskedKey),
        _: Transfer,
        _: &[u8],
    ) -> Result<NewKey, HsmError> {
        Err(HsmError::Busy)
    }

    async fn data_key_pair(&self, _: KeySpec) -> Result<(SecretBytes, PublicKey), HsmError> {
        Err(HsmError::Busy)
    }

    async fn remask(&self, _: Permit, _: &KeyVersion, _: &MaskedKey, _: &KeyVersion) -> Result<MaskedKey, HsmError> {
        Err(HsmError::Busy)
    }

    async fn seal_backup(&self, _: Permit, name: &KeyName, content: &[u8]) -> Result<Vec<u8>, HsmError> {
        self.0.seal_backup(name, content, random()).map_err(crypto)
    }

    fn open_backup(&self, sealed: &[u8]) -> Result<SecretBytes, HsmError> {
        self.0.open_backup(sealed).map_err(blob)
    }
}

/// A store whose events go nowhere: there is no log that would take them out.
struct Unlogged(SealedStore<MemoryEngine>);

#[async_trait]
impl Store for Unlogged {
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.0.read(key).await
    }

    async fn scan(&self, kind: u8, visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        self.0.scan(kind, visit).await
    }

    async fn scan_at_once(&self, kinds: &[u8], visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        self.0.scan_at_once(kinds, visit).await
    }

    async fn write(&self, writes: Vec<Write>, _: Option<Decided>) -> Result<Revision, StoreError> {
        self.0.write(writes, None).await
    }

    fn gate(&self) -> &Arc<Gate> {
        self.0.gate()
    }

    fn revision(&self) -> Revision {
        self.0.revision()
    }

    fn watch(&self, projection: Weak<dyn Projection>) {
        self.0.watch(projection);
    }
}

struct World {
    runtime: tokio::runtime::Runtime,
    kms: Kms,
}

async fn open() -> Kms {
    let partition = PartitionId::from_bytes([1; 16]);
    let key = SecretBytes::copy_of(&[2; 32]);
    let hsm = Arc::new(Here(Arc::new(Partition::new(partition, &key, PartitionPolicy::default()).expect("a partition"))));
    let store = SealedStore::open(MemoryEngine::default(), partition, &key, Arc::new(Fixed), false).await.expect("a store");
    let seams = Seams {
        hsm: Arc::clone(&hsm) as _,
        admin: hsm,
        store: Arc::new(Unlogged(store)),
        audit: Arc::new(Nowhere),
        ambient: Arc::new(Fixed),
    };
    let root = "arn:aws:iam::111122223333:root";
    let identity =
        IdentityConfig { arn: root.into(), service: None, tags: Default::default(), policies: Vec::new() };
    let credential =
        CredentialConfig { access_key_id: "A".into(), secret: SecretBytes::copy_of(b"s"), principal: root.into() };
    let config = KmsConfig {
        regions: vec!["us-east-1".into(), "eu-west-1".into()],
        directory: Directory::new(vec![identity], vec![credential]).expect("a directory"),
        proxies: Vec::new(),
        clusters: Vec::new(),
        evidence: None,
        limits: Limits { keys_max: 64, ..Limits::default() },
    };
    Kms::open(seams, config).await.expect("a service")
}

fuzz_target!(|data: &[u8]| {
    static WORLD: OnceLock<World> = OnceLock::new();
    let world = WORLD.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let kms = runtime.block_on(async {
            let kms = open().await;
            holdfast_kms::fuzzing::named_request(&kms, "CreateKey", b"{}").await;
            kms
        });
        World { runtime, kms }
    });
    let Some((operation, body)) = data.split_first() else { return };
    let body = String::from_utf8_lossy(body).replace('@', &holdfast_kms::fuzzing::a_key(&world.kms));
    world.runtime.block_on(holdfast_kms::fuzzing::request(&world.kms, *operation, body.as_bytes()));
});

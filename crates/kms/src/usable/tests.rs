//! Each line of defence alone: the partition with the role's check taken away, and the same without what the partition is told.

use std::collections::BTreeMap;

use async_trait::async_trait;
use holdfast_core::{
    Action, Ambient, AuditError, AuditEvent, AuditSink, CiphertextParts, Decided, Decision, EncryptionScheme, Hsm,
    HsmAdmin, HsmError, Intent, Itself, KeyName, MaskedKey, NewKey, OpenKey, PartitionId, Policy, Principal, Resource,
    Spent, authorize,
};
use holdfast_crypto::{ImportedKey, KeyMaterial, KeySpec, PublicKey, SecretBytes, transfer::Transfer};
use holdfast_engine::{Keyed, Partition, PartitionPolicy};
use holdfast_store::{MemoryEngine, SealedStore};

use super::*;
use crate::{
    Directory, KmsConfig, Limits, Seams,
    keys::{Draft, Origin, Reference},
    names::{KeyId, key_arn},
    policy::{PolicyDocument, PolicyKind},
    spec,
};

pub(crate) const NOW: Timestamp = Timestamp::from_unix_millis(1_800_000_000_000);
pub(crate) const ACCOUNT: &str = "111122223333";

struct Fixed;

impl Ambient for Fixed {
    fn now(&self) -> Timestamp {
        NOW
    }

    fn fill(&self, out: &mut [u8]) {
        out.fill(7);
    }
}

struct Nowhere;

#[async_trait]
impl AuditSink for Nowhere {
    async fn append(&self, _: AuditEvent) -> Result<(), AuditError> {
        Ok(())
    }
}

/// A partition without threads.
struct Here(Partition);

struct Open(Keyed);

#[async_trait]
impl OpenKey for Open {
    async fn perform(
        &self,
        permit: Permit,
        key: Arc<dyn AtThisMoment>,
        operation: Operation,
    ) -> Result<Outcome, HsmError> {
        permit.spend(operation.action(), &Resource::Key(self.0.version().name.clone()))?;
        let (_pass, as_told) = key.look()?;
        self.0.perform(NOW, &as_told, [7; 28], operation)
    }

    fn public(&self) -> &PublicKey {
        self.0.public()
    }
}

#[async_trait]
impl Hsm for Here {
    async fn open(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<Arc<dyn OpenKey>, HsmError> {
        Ok(Arc::new(Open(self.0.open(version, masked).map_err(|_| HsmError::Damaged)?)))
    }

    fn describe(&self, version: &KeyVersion, masked: &MaskedKey) -> Result<PublicKey, HsmError> {
        self.0.describe(version, masked).map_err(|_| HsmError::Damaged)
    }

    async fn random(&self, _: Permit, _: usize) -> Result<SecretBytes, HsmError> {
        Err(HsmError::Busy)
    }
}

#[async_trait]
impl HsmAdmin for Here {
    async fn generate(&self, permit: Permit, version: &KeyVersion) -> Result<NewKey, HsmError> {
        permit.spend(Action::KeyCreate, &Resource::Key(version.name.clone()))?;
        let material = KeyMaterial::generate(version.attributes.spec, |bytes| bytes.fill(3)).unwrap();
        Ok(self.0.mask(version, material, [4; 28]).unwrap())
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

    async fn seal_backup(&self, _: Permit, _: &KeyName, _: &[u8]) -> Result<Vec<u8>, HsmError> {
        Err(HsmError::Busy)
    }

    fn open_backup(&self, _: &[u8]) -> Result<SecretBytes, HsmError> {
        Err(HsmError::Busy)
    }
}

struct Everything;

impl Policy for Everything {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        Decision::Allow("test".into())
    }
}

fn permit(action: Action, key: &KeyEntry) -> Permit {
    authorize(&Everything, &Principal::system(), Intent { action, resource: key.resource() }).unwrap()
}

async fn service() -> Kms {
    service_of(Directory::new(Vec::new(), Vec::new()).unwrap()).await
}

/// A service for these people.
pub(crate) async fn service_of(directory: Directory) -> Kms {
    service_told(directory, Arc::new(Nowhere)).await
}

/// The same with a log of one's own.
pub(crate) async fn service_told(directory: Directory, audit: Arc<dyn AuditSink>) -> Kms {
    let partition = PartitionId::from_bytes([1; 16]);
    let secret = SecretBytes::copy_of(&[2; 32]);
    let hsm = Arc::new(Here(Partition::new(partition, &secret, PartitionPolicy::default()).unwrap()));
    let store = SealedStore::open(MemoryEngine::default(), partition, &secret, Arc::new(Fixed), false).await.unwrap();
    let seams =
        Seams { hsm: Arc::clone(&hsm) as _, admin: hsm, store: Arc::new(store), audit, ambient: Arc::new(Fixed) };
    let config = KmsConfig {
        regions: vec!["us-east-1".into()],
        directory,
        proxies: Vec::new(),
        clusters: Vec::new(),
        evidence: None,
        limits: Limits::default(),
    };
    Kms::open(seams, config).await.unwrap()
}

pub(crate) fn event() -> AuditEvent {
    AuditEvent::allowed(NOW, "Test", "")
}

pub(crate) fn spent_on(action: Action, resource: Resource) -> Spent {
    let intent = Intent { action, resource: resource.clone() };
    authorize(&Everything, &Principal::system(), intent).unwrap().spend(action, &resource).unwrap()
}

pub(crate) fn decided(action: Action, key: &KeyEntry) -> Decided {
    Decided::by_itself(event(), Itself::Due(spent_on(action, key.resource())))
}

/// Makes a change durable and visible.
pub(crate) async fn put(
    kms: &Kms,
    entry: KeyEntry,
    blobs: Vec<(KeyVersionId, u64, Option<MaskedKey>)>,
) -> Arc<KeyEntry> {
    let lock = kms.keys.lock(entry.id).await;
    let event = decided(Action::KeyCreate, &entry);
    kms.keys.commit(&lock, Draft { blobs, ..Draft::of(entry) }, event).await.unwrap().0.remove(0)
}

async fn key(kms: &Kms) -> Arc<KeyEntry> {
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*"}]}"#;
    key_of(kms, policy).await
}

/// A key with this policy.
pub(crate) async fn key_of(kms: &Kms, policy: &str) -> Arc<KeyEntry> {
    let id = KeyId::new([9; 16], false);
    let mut entry = KeyEntry {
        id,
        name: id.name().unwrap(),
        region: "us-east-1".into(),
        account: ACCOUNT.into(),
        arn: key_arn("us-east-1", ACCOUNT, id),
        record_version: 0,
        created: NOW,
        description: String::new(),
        usage: KeyUsage::EncryptDecrypt,
        spec: spec::SYMMETRIC_DEFAULT,
        origin: Origin::AwsKms,
        enabled: true,
        deletion: None,
        deletion_after_replicas: None,
        policy: Arc::new(PolicyDocument::parse_stored(PolicyKind::Key, policy).unwrap()),
        tags: BTreeMap::new(),
        rotation: None,
        rotations_on_demand: 0,
        materials: Vec::new(),
        reference: None,
        multi_region: None,
    };
    let version = KeyVersionId::from_bytes([5; 16]);
    let new = kms.admin.generate(permit(Action::KeyCreate, &entry), &entry.bound(version)).await.unwrap();
    entry.materials.push(Material {
        id: version,
        check: new.check,
        created: NOW,
        rotated: None,
        state: MaterialState::Current,
        blob_version: Some(1),
        expires: None,
        description: None,
    });
    put(kms, entry, vec![(version, 0, Some(new.masked))]).await
}

fn encrypt() -> Operation {
    Operation::Encrypt {
        scheme: EncryptionScheme::AesGcmPerMessage,
        plaintext: SecretBytes::copy_of(b"plaintext"),
        parts: CiphertextParts::default(),
    }
}

fn decrypt(ciphertext: &[u8]) -> Operation {
    Operation::Decrypt {
        scheme: EncryptionScheme::AesGcmPerMessage,
        ciphertext: ciphertext.to_vec(),
        parts: CiphertextParts::default(),
    }
}

/// A use by what the request found once, without the role's own look at it.
async fn unchecked(kms: &Kms, key: &Arc<KeyEntry>, operation: Operation) -> Result<Outcome, ApiError> {
    let usable = Usable::unchecked(Arc::clone(key));
    let material = usable.current_material()?;
    perform(kms, permit(operation.action(), key), &usable, material, operation).await
}

async fn a_ciphertext(kms: &Kms, key: &Arc<KeyEntry>) -> Vec<u8> {
    let Ok(Outcome::Ciphertext(ciphertext, _)) = unchecked(kms, key, encrypt()).await else { panic!("no ciphertext") };
    ciphertext
}

/// What a key becomes, and whether it still decrypts then.
type Change = (&'static str, fn(&mut KeyEntry), bool);

const CHANGES: [Change; 7] = [
    ("disabled", |key| key.enabled = false, false),
    ("pending deletion", |key| key.deletion = Some(NOW), false),
    ("a primary whose replicas go", |key| key.deletion_after_replicas = Some(7), false),
    (
        "in a store that is not there",
        |key| key.reference = Some(Reference { store: "cks-0".into(), key: "k".into() }),
        false,
    ),
    ("its material has expired", |key| key.materials[0].expires = Some(NOW), false),
    ("its material waits for a rotation", |key| key.materials[0].state = MaterialState::PendingRotation, false),
    ("rotated", |key| key.materials[0].state = MaterialState::NonCurrent, true),
];

#[tokio::test]
async fn without_the_roles_check_the_partition_still_refuses() {
    for (what, change, decrypts) in CHANGES {
        let kms = service().await;
        let found = key(&kms).await;
        let ciphertext = a_ciphertext(&kms, &found).await;
        let mut entry = KeyEntry::clone(&found);
        change(&mut entry);
        put(&kms, entry, Vec::new()).await;
        // The request goes on with what it found: it is the partition that refuses, by what it is told now.
        let error = unchecked(&kms, &found, encrypt()).await.err().expect(what);
        assert!(error.is_stale(), "the request is decided anew, and the role says why: {what}: {error:?}");
        assert_eq!(unchecked(&kms, &found, decrypt(&ciphertext)).await.is_ok(), decrypts, "{what}");
    }
}

#[tokio::test]
async fn a_key_that_is_gone_is_used_no_more() {
    let kms = service().await;
    let found = key(&kms).await;
    let ciphertext = a_ciphertext(&kms, &found).await;
    let open = kms.keys.open_key(&found, &found.materials[0]).await.unwrap();
    let lock = kms.keys.lock(found.id).await;
    let draft = Draft { removed: vec![Arc::clone(&found)], ..Draft::default() };
    drop(kms.keys.commit(&lock, draft, decided(Action::KeyDelete, &found)).await.unwrap());
    // Even by who holds it open.
    let asked = Asked::about(&kms, &found, found.materials[0].id);
    let refused = open.perform(permit(Action::KeyDecrypt, &found), asked, decrypt(&ciphertext)).await;
    assert_eq!(refused.err(), Some(HsmError::Disabled));
}

/// Somebody who says what was, whenever he is asked.
struct Lie(Arc<Gate>, KeyVersion);

impl AtThisMoment for Lie {
    fn look(&self) -> Result<(Pass, KeyVersion), HsmError> {
        Ok((self.0.enter(), self.1.clone()))
    }
}

/// The positive control: told what is not so, as it was before it was told the truth, the partition gives the plaintext.
#[tokio::test]
async fn told_a_lie_the_partition_obeys() {
    for (what, change, _) in CHANGES {
        let kms = service().await;
        let found = key(&kms).await;
        let ciphertext = a_ciphertext(&kms, &found).await;
        let mut entry = KeyEntry::clone(&found);
        change(&mut entry);
        put(&kms, entry, Vec::new()).await;
        let material = &found.materials[0];
        let open = kms.keys.open_key(&found, material).await.unwrap();
        let lie = Arc::new(Lie(Gate::new(), found.bound(material.id)));
        let given = open.perform(permit(Action::KeyDecrypt, &found), lie, decrypt(&ciphertext)).await;
        assert!(matches!(given, Ok(Outcome::Plaintext(plaintext)) if plaintext.ct_eq(b"plaintext")), "{what}");
    }
}

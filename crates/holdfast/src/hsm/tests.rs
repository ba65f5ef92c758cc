//! What waits for its turn with private keys is asked at its turn whether it may still be done.

use std::{
    sync::mpsc::{self, Sender},
    task::Poll,
};

use holdfast_core::{
    Decision, Gate, Intent, KeyAttributes, KeyOperation, KeyVersionId, PartitionId, Pass, Policy, Principal, authorize,
};
use holdfast_crypto::{AesSize, EncryptionPadding, LoadedKey, RsaSize, transfer};
use holdfast_engine::PartitionPolicy;

use super::*;
use crate::ambient::OsAmbient;

struct Everything;

impl Policy for Everything {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        Decision::Allow("test".into())
    }
}

/// What a role says of the exchange key, which may change.
struct Told {
    gate: Arc<Gate>,
    version: std::sync::Mutex<KeyVersion>,
}

impl AtThisMoment for Told {
    fn look(&self) -> Result<(Pass, KeyVersion), HsmError> {
        Ok((self.gate.enter(), self.version.lock().unwrap().clone()))
    }
}

fn version(name: &str, spec: KeySpec, operation: KeyOperation) -> KeyVersion {
    let attributes = KeyAttributes {
        spec,
        operations: [operation].into_iter().collect(),
        enabled: true,
        exportable: false,
        not_before: None,
        expires: None,
        release_policy_sha256: None,
    };
    KeyVersion { name: KeyName::parse(name).unwrap(), id: KeyVersionId::from_bytes([1; 16]), attributes }
}

struct Bench {
    hsm: Arc<SoftHsm>,
    told: Arc<Told>,
    exchange: (KeyVersion, MaskedKey),
    wrapped: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let secret = SecretBytes::copy_of(&[2; 32]);
        let partition = Partition::new(PartitionId::from_bytes([1; 16]), &secret, PartitionPolicy::default()).unwrap();
        let spec = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
        let exchange = version("exchange", spec, KeyOperation::Import);
        let material = KeyMaterial::generate(spec, |_| ()).unwrap();
        let copy = KeyMaterial::from_canonical(spec, SecretBytes::copy_of(material.expose_canonical()));
        let LoadedKey::Rsa(key) = copy.load().unwrap() else { panic!("it is an RSA key") };
        let wrapped = transfer::wrap(&key, SecretBytes::copy_of(&[3; 32]), &[4; 32]).unwrap();
        let masked = partition.mask(&exchange, material, [5; 28]).unwrap().masked;
        let told = Arc::new(Told { gate: Gate::new(), version: exchange.clone().into() });
        let threads = HsmThreads { private_key: 1, queue_max: 8 };
        let hsm = Arc::new(SoftHsm::new(partition, Arc::new(OsAmbient), threads).unwrap());
        Self { hsm, told, exchange: (exchange, masked), wrapped }
    }

    /// Holds the only thread until something is sent.
    async fn occupied(&self) -> Sender<()> {
        let (started, running) = mpsc::channel();
        let (release, held) = mpsc::channel();
        let pool = Arc::clone(&self.hsm.private_key);
        let work = move || {
            started.send(()).unwrap();
            held.recv().unwrap();
        };
        tokio::spawn(async move { pool.run(work).await });
        tokio::task::spawn_blocking(move || running.recv().unwrap()).await.unwrap();
        release
    }

    /// An import that waits for the thread while `meanwhile` happens.
    async fn import(&self, meanwhile: impl FnOnce(&mut KeyVersion)) -> Result<NewKey, HsmError> {
        let release = self.occupied().await;
        let target = version("target", KeySpec::Aes(AesSize::Bits256), KeyOperation::WrapKey);
        let intent = Intent { action: Action::KeyImport, resource: Resource::Key(target.name.clone()) };
        let permit = authorize(&Everything, &Principal::system(), intent).unwrap();
        let exchange = (Arc::clone(&self.told) as Arc<dyn AtThisMoment>, &self.exchange.0, &self.exchange.1);
        let transfer = Transfer::AesKeyWrap(EncryptionPadding::OaepSha1);
        let mut import = self.hsm.import_wrapped(permit, &target, exchange, transfer, &self.wrapped);
        let polled = std::future::poll_fn(|context| Poll::Ready(import.as_mut().poll(context).is_pending()));
        assert!(polled.await, "it waits for its turn");
        meanwhile(&mut self.told.version.lock().unwrap());
        release.send(()).unwrap();
        import.await
    }
}

#[tokio::test]
async fn an_import_that_waits_is_not_done_under_an_exchange_key_that_was_taken_out_of_use() {
    let bench = Bench::new();
    assert_eq!(bench.import(|key| key.attributes.enabled = false).await.err(), Some(HsmError::Disabled));
    // The control: the exchange key that it was sent for would unwrap it.
    assert_eq!(bench.import(|key| key.attributes.enabled = true).await.unwrap().spec, KeySpec::Aes(AesSize::Bits256));
    let no_more = bench.import(|key| key.attributes.operations = [KeyOperation::WrapKey].into_iter().collect());
    assert_eq!(no_more.await.err(), Some(HsmError::OperationNotAllowed));
    let another = bench.import(|key| key.id = KeyVersionId::from_bytes([9; 16]));
    assert_eq!(another.await.err(), Some(HsmError::Damaged));
}

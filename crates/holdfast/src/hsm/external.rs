//! The software HSM as an external one: keys of a partition, kept masked in the store that the proxy's processes share.
//!
//! For trying and testing without any HSM: whoever has the proxy's machine has the keys, too.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use holdfast_core::{
    Action, Ambient, CiphertextParts, EncryptionScheme, ExternalHsm, ExternalKey, ExternalKeyId, ExternalKeySpec,
    ExternalOperation, ExternalOutcome, ExternalWrap, HsmError, HsmHealth, HsmState, KeyAttributes, KeyName,
    KeyOperations, KeyVersion, KeyVersionId, MaskedKey, Operation, Outcome, Permit, RecordKey, Resource, Store,
    TokenObject, WrapScheme, Write,
};
use holdfast_crypto::{AesSize, CryptoError, ImportedKey, KeyMaterial, KeySpec, SecretBytes, kdf};
use holdfast_engine::{Keyed, Partition};

/// Kind of the records that keys lie in (`docs/formats/xks-records.md`); the proxy's own are below.
const KEY_RECORD: u8 = 32;
const FORMAT: u8 = 1;

/// A partition whose keys are named by labels.
pub(crate) struct SoftExternalHsm {
    partition: Partition,
    store: Arc<dyn Store>,
    ambient: Arc<dyn Ambient>,
    open: RwLock<HashMap<String, Arc<OpenKey>>>,
}

struct OpenKey {
    keyed: Keyed,
    described: Arc<ExternalKey>,
}

impl SoftExternalHsm {
    pub(crate) fn new(partition: Partition, store: Arc<dyn Store>, ambient: Arc<dyn Ambient>) -> Self {
        Self { partition, store, ambient, open: RwLock::default() }
    }

    async fn open(&self, object: &TokenObject) -> Result<Arc<OpenKey>, HsmError> {
        // Keys have no other id here than their label.
        let label = match (&object.label, &object.id) {
            (Some(label), None) => label,
            (Some(label), Some(id)) if label.as_bytes() == id.as_slice() => label,
            _ => return Err(HsmError::NotFound),
        };
        if let Some(key) = self.open.read().unwrap_or_else(PoisonError::into_inner).get(label) {
            return Ok(Arc::clone(key));
        }
        let record = self.store.read(&record_key(label)).await.map_err(|error| failed(&error))?;
        let value = record.ok_or(HsmError::NotFound)?.value;
        let (version, masked) = decode(label, &value).ok_or(HsmError::Damaged)?;
        let keyed = self.partition.open(&version, &masked).map_err(|_| HsmError::Damaged)?;
        let described = ExternalKey {
            spec: ExternalKeySpec::Aes(256),
            usage: version.attributes.operations,
            extractable: false,
            sensitive: true,
            was_extractable: Some(false),
        };
        let key = Arc::new(OpenKey { keyed, described: Arc::new(described) });
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(label.clone(), Arc::clone(&key));
        Ok(key)
    }

    fn run(&self, key: &OpenKey, operation: Operation) -> Result<Outcome, HsmError> {
        // It keeps its keys itself: nobody but the blob says what they are.
        key.keyed.perform(self.ambient.now(), key.keyed.version(), self.ambient.random(), operation)
    }

    fn encrypt(
        &self,
        key: &OpenKey,
        plaintext: SecretBytes,
        aad: Vec<u8>,
        integrity: Option<&[u8]>,
    ) -> Result<ExternalOutcome, HsmError> {
        let again = integrity.map(|_| SecretBytes::copy_of(plaintext.expose()));
        let scheme = EncryptionScheme::AesGcm;
        let parts = CiphertextParts { aad: Some(aad), ..CiphertextParts::default() };
        let Outcome::Ciphertext(ciphertext, parts) = self.run(key, Operation::Encrypt { scheme, plaintext, parts })?
        else {
            return Err(HsmError::Failed("it did not encrypt"));
        };
        let iv = parts.iv.clone().unwrap_or_default();
        let tag = parts.tag.clone().unwrap_or_default();
        let value = integrity.map(|prefix| kdf::sha256(&[prefix, &iv, &ciphertext, &tag]));
        if let Some(plaintext) = again {
            let decrypt = Operation::Decrypt { scheme, ciphertext: ciphertext.clone(), parts };
            match self.run(key, decrypt)? {
                Outcome::Plaintext(found) if found.ct_eq(plaintext.expose()) => {}
                _ => return Err(HsmError::Failed("what was encrypted did not decrypt to the same")),
            }
        }
        Ok(ExternalOutcome::Ciphertext { iv, ciphertext, tag, integrity: value })
    }
}

fn failed(error: &dyn std::fmt::Display) -> HsmError {
    HsmError::Unavailable(error.to_string())
}

fn record_key(label: &str) -> RecordKey {
    RecordKey::new(KEY_RECORD, label.as_bytes())
}

/// Format, version id (16), operations (2), masked key.
fn encode(version: &KeyVersion, masked: &MaskedKey) -> Vec<u8> {
    let operations = version.attributes.operations.bits().to_be_bytes();
    [&[FORMAT], version.id.as_bytes().as_slice(), &operations, &masked.0].concat()
}

/// Reads what [`encode`] writes.
fn decode(label: &str, value: &[u8]) -> Option<(KeyVersion, MaskedKey)> {
    let rest = value.strip_prefix(&[FORMAT])?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let (operations, masked) = rest.split_first_chunk::<2>()?;
    let operations = KeyOperations::from_bits(u16::from_be_bytes(*operations))?;
    let version = key_version(label, KeyVersionId::from_bytes(*id), operations).ok()?;
    Some((version, MaskedKey(masked.into())))
}

fn key_version(label: &str, id: KeyVersionId, operations: KeyOperations) -> Result<KeyVersion, HsmError> {
    let name = KeyName::parse(label)
        .map_err(|_| HsmError::InvalidInput("a label in the software HSM has 1 to 127 letters, digits and hyphens"))?;
    let attributes = KeyAttributes {
        spec: KeySpec::Aes(AesSize::Bits256),
        operations,
        enabled: true,
        exportable: false,
        not_before: None,
        expires: None,
        release_policy_sha256: None,
    };
    Ok(KeyVersion { name, id, attributes })
}

#[async_trait]
impl ExternalHsm for SoftExternalHsm {
    async fn describe(&self, object: &TokenObject, _: Duration) -> Result<Arc<ExternalKey>, HsmError> {
        Ok(Arc::clone(&self.open(object).await?.described))
    }

    async fn perform(
        &self,
        permit: Permit,
        key: &ExternalKeyId,
        object: &TokenObject,
        operation: ExternalOperation,
        _: Duration,
    ) -> Result<ExternalOutcome, HsmError> {
        permit.spend(operation.action(), &Resource::ExternalKey(key.clone()))?;
        let key = self.open(object).await?;
        if operation.needs().iter().any(|needed| !key.described.usage.contains(needed)) {
            return Err(HsmError::OperationNotAllowed);
        }
        let wrap_scheme = |wrap| match wrap {
            ExternalWrap::Aes(padding) => WrapScheme::AesKeyWrap(padding),
            ExternalWrap::Rsa(padding) => WrapScheme::Rsa(padding),
        };
        let outcome = match operation {
            ExternalOperation::GcmEncrypt { plaintext, aad, integrity } => {
                return self.encrypt(&key, plaintext, aad, integrity.as_deref());
            }
            ExternalOperation::GcmDecrypt { iv, aad, ciphertext, tag } => {
                let parts = CiphertextParts { iv: Some(iv), tag: Some(tag), aad: Some(aad) };
                self.run(&key, Operation::Decrypt { scheme: EncryptionScheme::AesGcm, ciphertext, parts })?
            }
            ExternalOperation::Wrap { wrap, key: secret } => {
                self.run(&key, Operation::Wrap { scheme: wrap_scheme(wrap), key: secret })?
            }
            ExternalOperation::Unwrap { wrap, wrapped } => {
                self.run(&key, Operation::Unwrap { scheme: wrap_scheme(wrap), wrapped })?
            }
        };
        match outcome {
            Outcome::Plaintext(plaintext) => Ok(ExternalOutcome::Plaintext(plaintext)),
            Outcome::Wrapped(wrapped) => Ok(ExternalOutcome::Wrapped(wrapped)),
            Outcome::Ciphertext(..) | Outcome::Encapsulated(..) | Outcome::Signature(_) | Outcome::Verified(_) => {
                Err(HsmError::Failed("it did something else"))
            }
        }
    }

    async fn list(&self, _: Duration) -> Result<Vec<(TokenObject, ExternalKey)>, HsmError> {
        let mut labels = Vec::new();
        let mut visit = |record: holdfast_core::Record| labels.extend(String::from_utf8(record.key.id));
        self.store.scan(KEY_RECORD, &mut visit).await.map_err(|error| failed(&error))?;
        let mut keys = Vec::new();
        for label in labels {
            let object = TokenObject::labelled(&label);
            let key = self.open(&object).await?;
            keys.push((object, ExternalKey::clone(&key.described)));
        }
        Ok(keys)
    }

    async fn create(
        &self,
        permit: Permit,
        key: &ExternalKeyId,
        object: &TokenObject,
        usage: KeyOperations,
        import: Option<ImportedKey>,
        _: Duration,
    ) -> Result<(), HsmError> {
        let action = if import.is_some() { Action::KeyImport } else { Action::KeyCreate };
        permit.spend(action, &Resource::ExternalKey(key.clone()))?;
        let label = object.label.as_deref().ok_or(HsmError::InvalidInput("a key needs a label"))?;
        let version = key_version(label, KeyVersionId::from_bytes(self.ambient.random()), usage)?;
        let spec = version.attributes.spec;
        let material = match import {
            None => KeyMaterial::generate(spec, |bytes| self.ambient.fill(bytes)),
            Some(key) => KeyMaterial::import(key),
        };
        let refuse = |error: CryptoError| match error {
            CryptoError::InvalidInput(why) | CryptoError::InvalidKey(why) => HsmError::InvalidInput(why),
            _ => HsmError::Failed("a key could not be made"),
        };
        let material = material.map_err(refuse)?;
        if material.spec() != spec {
            return Err(HsmError::InvalidInput("only AES-256 keys are kept here"));
        }
        let new = self.partition.mask(&version, material, self.ambient.random()).map_err(refuse)?;
        let write = Write { key: record_key(label), expected_version: 0, value: Some(encode(&version, &new.masked)) };
        self.store.keep(vec![write]).await.map_err(|error| match error {
            holdfast_core::StoreError::Conflict => HsmError::InvalidInput("there is a key of this label already"),
            other => failed(&other),
        })
    }

    fn health(&self) -> HsmHealth {
        HsmHealth { state: HsmState::Active, model: "Holdfast software HSM".into(), detail: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 wrote must be readable for ever; the masked key in it has a golden file of its own.
    #[test]
    fn golden_record() {
        let golden = [&[1], [7; 16].as_slice(), &[0, 0b101], b"masked"].concat();
        let (version, masked) = decode("a", &golden).unwrap();
        assert_eq!(version.id, KeyVersionId::from_bytes([7; 16]));
        assert_eq!(version.attributes.operations.bits(), 0b101);
        assert_eq!(encode(&version, &masked), golden);
        assert!(decode("a", &golden[..18]).is_none() && decode("a", &[&[2], &golden[1..]].concat()).is_none());
    }
}

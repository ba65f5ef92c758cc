//! Records encrypted under the database key (`docs/formats/record.md`).

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_core::{Ambient, PartitionId, Record, RecordKey, Store, StoreError, Write};
use holdfast_crypto::{CryptoError, HashAlgorithm, SealingKey, SecretBytes, kdf, kdf::MacKey};

use crate::engine::{Engine, Row, RowName, RowWrite};

const FORMAT: u8 = 1;

/// The [`Store`] seam over any engine.
pub struct SealedStore<E> {
    engine: E,
    instance: PartitionId,
    names: MacKey,
    records: SealingKey,
    ambient: Arc<dyn Ambient>,
}

impl<E: Engine> SealedStore<E> {
    /// Lays the seam over `engine`, with the instance's database key (32 bytes).
    ///
    /// # Errors
    /// [`CryptoError::InvalidKey`] on another length.
    pub fn new(
        engine: E,
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, CryptoError> {
        let names = kdf::derive_key(database_key, "holdfast record names v1")?;
        let records = kdf::derive_key(database_key, "holdfast records v1")?;
        Ok(Self {
            engine,
            instance,
            names: MacKey::new(HashAlgorithm::Sha256, names.expose()),
            records: SealingKey::new(&records)?,
            ambient,
        })
    }

    fn row_name(&self, key: &RecordKey) -> RowName {
        let mut name = [0; 33];
        name[0] = key.kind;
        name[1..].copy_from_slice(&self.names.sign(&[&[key.kind], &key.id]));
        name
    }

    /// What a record is bound to: format, instance, kind and name, version.
    fn aad(&self, name: &RowName, version: u64) -> Vec<u8> {
        [&[FORMAT], self.instance.as_bytes().as_slice(), name, &version.to_be_bytes()].concat()
    }

    fn seal(&self, name: &RowName, version: u64, key: &RecordKey, value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let id_len = u16::try_from(key.id.len()).map_err(|_| StoreError::Failed("a record id is too long".into()))?;
        let plaintext = [&id_len.to_be_bytes(), key.id.as_slice(), value].concat();
        let sealed = self
            .records
            .seal(self.ambient.random(), &self.aad(name, version), &plaintext)
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok([&[FORMAT], sealed.as_slice()].concat())
    }

    fn open(&self, row: &Row) -> Result<Record, StoreError> {
        let sealed = row.sealed.strip_prefix(&[FORMAT]).ok_or(StoreError::Damaged)?;
        let plaintext =
            self.records.open(&self.aad(&row.name, row.version), sealed).map_err(|_| StoreError::Damaged)?;
        let (id_len, rest) = plaintext.expose().split_first_chunk::<2>().ok_or(StoreError::Damaged)?;
        let (id, value) = rest.split_at_checked(u16::from_be_bytes(*id_len).into()).ok_or(StoreError::Damaged)?;
        Ok(Record { key: RecordKey::new(row.name[0], id), version: row.version, value: value.to_vec() })
    }
}

#[async_trait]
impl<E: Engine> Store for SealedStore<E> {
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        let row = self.engine.read(&self.row_name(key)).await?;
        row.map(|row| self.open(&row)).transpose()
    }

    async fn scan(&self, kind: u8, visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        self.engine
            .scan(kind, &mut |row| {
                visit(self.open(&row)?);
                Ok(())
            })
            .await
    }

    async fn commit(&self, batch: Vec<Write>) -> Result<(), StoreError> {
        let mut rows = Vec::with_capacity(batch.len());
        for write in batch {
            let name = self.row_name(&write.key);
            let version = write.expected_version + 1;
            let sealed = write.value.map(|value| self.seal(&name, version, &write.key, &value)).transpose()?;
            rows.push(RowWrite { name, expected_version: write.expected_version, sealed });
        }
        self.engine.commit(rows).await
    }
}

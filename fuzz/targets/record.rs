#![no_main]
//! A row of a hostile storage engine: never opened, never a panic.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use holdfast_core::{Ambient, PartitionId, RecordKey, Revision, Store, StoreError, Timestamp};
use holdfast_crypto::SecretBytes;
use holdfast_store::{Batch, Engine, Row, RowName, RowVisitor, SealedStore};
use libfuzzer_sys::fuzz_target;

struct Nothing;
impl Ambient for Nothing {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill(0);
    }
}

struct Hostile(Mutex<Vec<u8>>);

/// Kind of the rows of events, which a store reads when it is opened: there are none.
const EVENT: u8 = 65;

#[async_trait]
impl Engine for Hostile {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        let sealed = self.0.lock().map(|data| data.clone()).unwrap_or_default();
        Ok(Some(Row { name: *name, version: 1, sealed }))
    }
    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        if kind == EVENT {
            return Ok(());
        }
        let mut name = [0; 33];
        name[0] = kind;
        let row = self.read(&name).await?;
        row.map_or(Ok(()), visit)
    }
    async fn scan_all(&self, _: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        Ok(())
    }
    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        Ok(None)
    }
    async fn commit(&self, _: Batch) -> Result<Revision, StoreError> {
        Ok(Revision(0))
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(Revision(0))
    }
}

fuzz_target!(|data: &[u8]| {
    let key = SecretBytes::copy_of(&[3; 32]);
    let engine = Hostile(Mutex::new(data.to_vec()));
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    runtime.block_on(async {
        let instance = PartitionId::from_bytes([1; 16]);
        let store = SealedStore::open(engine, instance, &key, Arc::new(Nothing), false).await;
        let store = store.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(store.read(&RecordKey::new(1, "k")).await, Err(StoreError::Damaged));
        assert_eq!(store.scan(1, &mut |_| ()).await, Err(StoreError::Damaged));
    });
});

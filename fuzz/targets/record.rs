#![no_main]
//! A row of a hostile storage engine: never opened, never a panic.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use holdfast_core::{Ambient, PartitionId, RecordKey, Store, StoreError, Timestamp};
use holdfast_crypto::SecretBytes;
use holdfast_store::{Engine, Row, RowName, RowWrite, SealedStore};
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
        let mut name = [0; 33];
        name[0] = kind;
        let row = self.read(&name).await?;
        row.map_or(Ok(()), visit)
    }
    async fn commit(&self, _: Vec<RowWrite>) -> Result<(), StoreError> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let key = SecretBytes::copy_of(&[3; 32]);
    let engine = Hostile(Mutex::new(data.to_vec()));
    let Ok(store) = SealedStore::new(engine, PartitionId::from_bytes([1; 16]), &key, Arc::new(Nothing)) else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    runtime.block_on(async {
        assert_eq!(store.read(&RecordKey::new(1, "k")).await, Err(StoreError::Damaged));
        assert_eq!(store.scan(1, &mut |_| ()).await, Err(StoreError::Damaged));
    });
});

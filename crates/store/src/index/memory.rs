//! The in-memory twin: the same contract, nothing durable.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use holdfast_core::{Index, IndexDecision, IndexReader, IndexVisitor, StoreError};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// An index in a map.
#[derive(Default)]
pub struct MemoryIndex(Mutex<Map>);

impl MemoryIndex {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct View(Map);

impl IndexReader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        for (key, value) in self.0.range(from.to_vec()..) {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Index for MemoryIndex {
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError> {
        Ok(Box::new(View(self.map().clone())))
    }

    async fn commit(&self, decide: IndexDecision) -> Result<(), StoreError> {
        let mut map = self.map();
        for write in decide(&View(map.clone()))? {
            match write.value {
                Some(value) => map.insert(write.key, value),
                None => map.remove(&write.key),
            };
        }
        Ok(())
    }
}

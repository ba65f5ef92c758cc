//! The in-memory twin: the same contract, nothing durable.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use holdfast_core::{AuditEvent, Index, IndexDecision, IndexReader, IndexVisitor, Revision, SetNames, StoreError};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// An index in a map.
#[derive(Default)]
pub struct MemoryIndex(Mutex<State>);

#[derive(Default)]
struct State {
    map: Map,
    events: Vec<AuditEvent>,
}

impl MemoryIndex {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events of all changes, in order.
    #[must_use]
    pub fn events(&self) -> Vec<AuditEvent> {
        self.state().events.clone()
    }
}

struct View(Map);

impl IndexReader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], prefix: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError> {
        for (key, value) in self.0.range(from.to_vec()..) {
            if !key.starts_with(prefix) {
                break;
            }
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
        Ok(Box::new(View(self.state().map.clone())))
    }

    async fn commit(&self, decide: IndexDecision) -> Result<Revision, StoreError> {
        let mut state = self.state();
        let change = decide(&View(state.map.clone()))?;
        for write in change.writes {
            match write.value {
                Some(value) => state.map.insert(write.key, value),
                None => state.map.remove(&write.key),
            };
        }
        state.events.extend(change.event);
        Ok(Revision(state.events.len() as u64))
    }

    /// Nobody else writes to this one.
    fn sets(&self) -> Result<SetNames, StoreError> {
        Ok(SetNames { names: Vec::new(), whole: true })
    }

    async fn keep(&self, decide: IndexDecision) -> Result<(), StoreError> {
        self.commit(decide).await.map(drop)
    }
}

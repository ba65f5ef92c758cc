//! The in-memory twin: the same contract, nothing durable.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use holdfast_core::StoreError;

use super::{Engine, Row, RowName, RowWrite, Rows, apply};

/// Rows in a map.
#[derive(Default)]
pub struct MemoryEngine(Mutex<Rows>);

impl MemoryEngine {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        Ok(self.rows().get(name).map(|(version, sealed)| Row {
            name: *name,
            version: *version,
            sealed: sealed.clone(),
        }))
    }

    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        let of_kind: Vec<Row> = self
            .rows()
            .iter()
            .filter(|(name, _)| name[0] == kind)
            .map(|(name, (version, sealed))| Row { name: *name, version: *version, sealed: sealed.clone() })
            .collect();
        of_kind.into_iter().try_for_each(visit)
    }

    async fn commit(&self, batch: Vec<RowWrite>) -> Result<(), StoreError> {
        let mut rows = self.rows();
        apply(&mut rows, batch)
    }
}

//! The in-memory twin: the same contract, nothing durable.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use holdfast_core::{Revision, StoreError};

use super::{Batch, Engine, Row, RowName, RowVisitor, Rows, apply};

#[derive(Default)]
struct State {
    revision: Revision,
    rows: Rows,
    head: Option<Vec<u8>>,
}

/// Rows in a map.
#[derive(Default)]
pub struct MemoryEngine(Mutex<State>);

impl MemoryEngine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        Ok(self.state().rows.get(name).map(|(version, sealed)| Row {
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
            .state()
            .rows
            .iter()
            .filter(|(name, _)| name[0] == kind)
            .map(|(name, (version, sealed))| Row { name: *name, version: *version, sealed: sealed.clone() })
            .collect();
        of_kind.into_iter().try_for_each(visit)
    }

    async fn scan_all(&self, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        self.state().rows.iter().for_each(|(name, (version, sealed))| visit(name, *version, sealed));
        Ok(())
    }

    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        Ok(Some(self.state().head.clone()))
    }

    async fn commit(&self, mut batch: Batch) -> Result<Revision, StoreError> {
        let mut state = self.state();
        let before = state.revision;
        let mut fold = batch.row_set.take().map(|set| set.fold());
        let revision = apply(&mut state.rows, &mut batch, before, fold.as_mut())?;
        state.revision = revision;
        if let Some(fold) = fold {
            state.head = Some(fold.head(revision)?);
            fold.keep();
        }
        // Under the lock: the order of commits is the order in which memory changes.
        (batch.applied)(revision);
        Ok(revision)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.state().revision)
    }
}

//! The one way to change the state: by leave of an operator's word or of a quorum, with the event of the change in the same commit; or by the
//! proxy itself, for a reason that has a name.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_core::{Gate, Record, RecordKey, Store, StoreError, Write};

use crate::{
    XksProxy,
    error::AdminError,
    quorum::{Approved, Refused, Word},
    untold::Untold,
};

/// Records to look at.
#[async_trait]
pub(crate) trait Look: Send + Sync {
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError>;
    /// All records of these kinds, as of one moment.
    async fn scan(&self, kinds: &[u8], visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError>;
}

#[async_trait]
impl<S: Store + ?Sized> Look for S {
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        Store::read(self, key).await
    }

    async fn scan(&self, kinds: &[u8], visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        Store::scan_at_once(self, kinds, visit).await
    }
}

/// The stored state. It can be looked at; only what is here changes it.
pub(crate) struct State(Arc<dyn Store>);

impl State {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        self.0.gate()
    }
}

#[async_trait]
impl Look for State {
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError> {
        self.0.read(key).await
    }

    async fn scan(&self, kinds: &[u8], visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
        self.0.scan_at_once(kinds, visit).await
    }
}

/// By whose leave the state changes: none of these can be made but of signatures that hold.
#[derive(Clone, Copy)]
pub(crate) enum Leave<'a> {
    Approved(&'a Approved),
    Refused(&'a Refused),
    Word(&'a Word),
}

impl Leave<'_> {
    fn proposal(self) -> String {
        match self {
            Self::Approved(approved) => approved.proposal().to_owned(),
            Self::Refused(refused) => refused.proposal().to_owned(),
            Self::Word(word) => word.proposal().to_owned(),
        }
    }
}

/// Why the proxy changes its state though no operator says so. There is nothing else.
#[derive(Clone, Copy)]
pub(crate) enum Itself<'a> {
    /// There are no operators yet: the configuration has the first.
    Founding(&'a Untold),
    /// Kills that are in force and in the log are taken in.
    KillsTold,
    /// Events that are in the log are let go of.
    EventsTold,
}

impl XksProxy {
    /// Changes the state.
    ///
    /// # Errors
    /// [`AdminError::Store`]; [`AdminError::Record`] if the event is of another proposal than the leave.
    pub(crate) async fn commit(
        &self,
        leave: Leave<'_>,
        mut writes: Vec<Write>,
        event: &Untold,
    ) -> Result<(), AdminError> {
        if event.proposal() != Some(&leave.proposal()) {
            return Err(AdminError::Record("a change by leave of another proposal".into()));
        }
        writes.push(event.write()?);
        Ok(self.store.0.keep(writes).await?)
    }

    /// Changes what no operator has to approve.
    ///
    /// # Errors
    /// [`AdminError::Store`].
    pub(crate) async fn commit_by_itself(&self, why: Itself<'_>, mut writes: Vec<Write>) -> Result<(), AdminError> {
        match why {
            Itself::Founding(event) => writes.push(event.write()?),
            Itself::KillsTold | Itself::EventsTold => {}
        }
        Ok(self.store.0.keep(writes).await?)
    }
}

//! Events of changes on their way from the store to the log.
//!
//! A commit writes the row of its event together with its rows; from then on the event is durable. Here it waits, in the order of
//! revisions, until the log has written it down and synced; then its row may go, with a later commit. After a crash the rows that are
//! left come here again, and the log drops those that it has already.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use holdfast_core::{Revision, StoreError};

/// Events of changes that may wait for a log that cannot be written. Then changes are refused before they commit.
pub const EVENTS_WAITING_MAX: usize = 4096;

/// An event that is durable in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct StoredEvent {
    pub revision: Revision,
    /// What the log's line says, without its place in the chain.
    pub body: Arc<str>,
}

#[derive(Default)]
struct State {
    /// The newest change in the store, as it was when it was opened.
    stored: Revision,
    waiting: VecDeque<StoredEvent>,
    /// Places kept for changes that are being committed.
    reserved: usize,
    /// Taken by the log, and not yet synced there.
    taken: usize,
    /// In the log: their rows may go.
    recorded: Vec<Revision>,
    /// The log was woken, and has not looked since.
    woken: bool,
}

/// Events of changes that the log does not have yet.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A place for the event of one change. It is given back if the change does not happen.
pub(crate) struct Place(Arc<Outbox>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state().reserved -= 1;
    }
}

impl Place {
    /// The change happened.
    pub(crate) fn fill(self, event: StoredEvent) {
        let mut state = self.0.state();
        state.waiting.push_back(event);
        let known = std::mem::replace(&mut state.woken, true);
        drop(state);
        if let Some(wake) = self.0.wake.get()
            && !known
        {
            wake();
        }
    }
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with the events that were left in the store.
    pub(crate) fn with(mut left: Vec<StoredEvent>, stored: Revision) -> Self {
        left.sort_by_key(|event| event.revision);
        Self { state: Mutex::new(State { stored, waiting: left.into(), ..State::default() }), wake: OnceLock::new() }
    }

    /// The newest change in the store, as it was when it was opened.
    pub(crate) fn stored(&self) -> Revision {
        self.state().stored
    }

    /// The log tells of changes up to this one: of those that are left here, later ones only are for it.
    pub(crate) fn told_up_to(&self, revision: Revision) {
        let mut state = self.state();
        let later = state.waiting.partition_point(|event| event.revision <= revision);
        let told: Vec<_> = state.waiting.drain(..later).map(|event| event.revision).collect();
        state.recorded.extend(told);
    }

    /// The newest change whose event neither a log that has come to `told` has, nor the outbox; `told` if there is none.
    pub(crate) fn missing_after(&self, told: Revision) -> Revision {
        let state = self.state();
        let mut missing = state.stored;
        // From the newest backwards, without a gap.
        for event in state.waiting.iter().rev() {
            if event.revision != missing {
                break;
            }
            missing = Revision(missing.0.saturating_sub(1));
        }
        missing.max(told)
    }

    /// Keeps a place for an event.
    ///
    /// # Errors
    /// [`StoreError::Unrecorded`] if as many wait as may.
    pub(crate) fn reserve(self: &Arc<Self>) -> Result<Place, StoreError> {
        let mut state = self.state();
        let waiting = state.waiting.len() + state.taken;
        if waiting + state.reserved >= EVENTS_WAITING_MAX {
            return Err(StoreError::Unrecorded { waiting });
        }
        state.reserved += 1;
        drop(state);
        Ok(Place(Arc::clone(self)))
    }

    /// `wake` is called when an event has come in, and not again before the log has taken it. The log sets it, once.
    pub(crate) fn wake_with(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake.set(Box::new(wake));
    }

    /// Takes all that wait, in the order of revisions, up to `count`.
    pub(crate) fn take(&self, count: usize) -> Vec<StoredEvent> {
        let mut state = self.state();
        state.woken = false;
        let count = count.min(state.waiting.len());
        state.taken += count;
        state.waiting.drain(..count).collect()
    }

    /// The log could not write these; they wait again, before all others.
    pub(crate) fn put_back(&self, events: Vec<StoredEvent>) {
        let mut state = self.state();
        state.taken -= events.len();
        for event in events.into_iter().rev() {
            state.waiting.push_front(event);
        }
    }

    /// The log has these, and has synced them.
    pub(crate) fn recorded(&self, events: Vec<StoredEvent>) {
        let mut state = self.state();
        state.taken -= events.len();
        state.recorded.extend(events.into_iter().map(|event| event.revision));
    }

    /// Takes the revisions whose rows may go.
    pub(crate) fn take_recorded(&self) -> Vec<Revision> {
        std::mem::take(&mut self.state().recorded)
    }

    /// Their rows did not go.
    pub(crate) fn still_stored(&self, revisions: Vec<Revision>) {
        self.state().recorded.extend(revisions);
    }

    /// How many events the log does not have yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let state = self.state();
        state.waiting.len() + state.taken
    }
}

//! Sets of what the index keeps for itself, beside those of its rows: events that the log may not have, and pins. They are summed up as the rows
//! are, each commit seals the sums with its head, and each start compares them before anything is served.
//!
//! A pin says what a row was when a process left it that had not seen yet that the row's set is whole. What is kept of a set is a sum: who removes a
//! row while nobody runs, lets its owner make and delete another one, and puts the first one back when nobody runs again, would have evened it
//! out. But the row that was deleted is pinned as deleted, and has to be so at the next start. Pins go when their set was seen to be whole.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_core::{Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    super::seals::{Seals, SetState, TAG_BYTES},
    EVENTS, ROWS, SETS,
};
use crate::{group::failed, order};

type Bytes = &'static [u8];

/// Name of a row to its MAC as it was left, or to nothing if it was left deleted.
pub(super) const PINS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("pins v1");
/// Names of these sets beside those of rows, which are shorter or longer.
pub(crate) const SET_OF_EVENTS: &[u8] = b"*events";
pub(crate) const SET_OF_PINS: &[u8] = b"*pins";
/// Pins that one commit takes away: some milliseconds.
pub(super) const UNPINNED_A_COMMIT: usize = 1024;

pub(super) fn is_own(set: &[u8]) -> bool {
    set == SET_OF_EVENTS || set == SET_OF_PINS
}

/// What is pinned of a row.
pub(super) fn pinned(row: Option<&[u8]>) -> &[u8] {
    row.map_or(&[], |row| row.get(..TAG_BYTES).unwrap_or(row))
}

/// Which sets of rows this process has seen to be whole.
#[derive(Default)]
pub(super) struct Seen(Mutex<State>);

#[derive(Default)]
struct State {
    /// Goes up when the file is opened anew: then nothing is seen.
    file: u64,
    /// Whether the rows stand in the order of their names.
    in_order: bool,
    whole: BTreeSet<Vec<u8>>,
    /// Sets whose pins may go.
    to_unpin: BTreeSet<Vec<u8>>,
    /// The weakened build: everything is believed.
    #[cfg(test)]
    believes: bool,
}

impl Seen {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of which file something will be seen that is looked at from now on.
    pub(super) fn file(&self) -> u64 {
        self.state().file
    }

    /// Another file lies there, as far as is known.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        let file = state.file + 1;
        *state = State { file, ..State::default() };
    }

    /// The rows of that file stand in their order.
    pub(super) fn in_order(&self, file: u64) {
        let mut state = self.state();
        state.in_order |= state.file == file;
    }

    /// A set of that file is whole. Where it is not known that rows stand in their order, that says nothing of what is asked for by name.
    pub(super) fn whole(&self, file: u64, set: &[u8]) {
        let mut state = self.state();
        if state.file == file && state.in_order {
            state.whole.insert(set.to_vec());
            state.to_unpin.insert(set.to_vec());
        }
    }

    /// A set is what it is from its first row on, or because an operator said so.
    pub(super) fn known(&self, file: u64, set: &[u8], unpin: bool) {
        let mut state = self.state();
        if state.file != file {
            return;
        }
        state.whole.insert(set.to_vec());
        if unpin {
            state.to_unpin.insert(set.to_vec());
        }
    }

    pub(super) fn is_whole(&self, set: &[u8]) -> bool {
        let state = self.state();
        #[cfg(test)]
        if state.believes {
            return true;
        }
        state.whole.contains(set)
    }

    pub(super) fn to_unpin(&self) -> Vec<Vec<u8>> {
        self.state().to_unpin.iter().cloned().collect()
    }

    pub(super) fn unpinned(&self, sets: &[Vec<u8>]) {
        let mut state = self.state();
        state.to_unpin.retain(|set| !sets.contains(set));
    }

    #[cfg(test)]
    pub(super) fn believe(&self) {
        self.state().believes = true;
    }
}

/// What there is of events and pins, and what should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub events: SetState,
    /// Of changes that the index has.
    pub events_of_ours: SetState,
    pub pins: SetState,
    /// Whether each row is as it was left.
    pub pins_hold: bool,
    /// What is kept; `None` if nothing that could be believed.
    pub kept_events: Option<SetState>,
    pub kept_pins: Option<SetState>,
}

impl Own {
    /// Looks at all of it, and at the order in which it stands.
    pub(super) fn look(
        (rows, kept, pins): (
            &impl ReadableTable<Bytes, Bytes>,
            &impl ReadableTable<Bytes, Bytes>,
            &impl ReadableTable<Bytes, Bytes>,
        ),
        events: &impl ReadableTable<u64, Bytes>,
        seals: &Seals,
        newest: Revision,
    ) -> Result<Self, StoreError> {
        order::visit_all(kept, |_, _| Ok(()))?;
        let (mut all, mut ours) = (SetState::default(), SetState::default());
        order::visit_all(events, |revision, sealed| {
            let revision = u64::from_le_bytes(revision.try_into().map_err(|_| StoreError::Damaged)?);
            let digest = seals.digest_of_event(revision, sealed);
            all.add(digest);
            if revision <= newest.0 {
                ours.add(digest);
            }
            Ok(())
        })?;
        let (mut found, mut hold) = (SetState::default(), true);
        order::visit_all(pins, |name, left| {
            found.add(seals.digest_of_pin(name, left));
            let row = rows.get(name).map_err(failed)?;
            hold &= pinned(row.as_ref().map(|row| row.value())) == left;
            Ok(())
        })?;
        let kept = |set| match kept.get(set).map_err(failed)? {
            None => Ok(Some(SetState::default())),
            Some(sealed) => Ok(seals.open_set(set, sealed.value())),
        };
        Ok(Self {
            events: all,
            events_of_ours: ours,
            pins: found,
            pins_hold: hold,
            kept_events: kept(SET_OF_EVENTS)?,
            kept_pins: kept(SET_OF_PINS)?,
        })
    }

    pub(super) fn in_database(database: &Database, seals: &Seals, newest: Revision) -> Result<Self, StoreError> {
        let transaction = database.begin_read().map_err(failed)?;
        let table = |definition| transaction.open_table(definition).map_err(failed);
        let (rows, kept, pins) = (table(ROWS)?, table(SETS)?, table(PINS)?);
        let events = transaction.open_table(EVENTS).map_err(failed)?;
        Self::look((&rows, &kept, &pins), &events, seals, newest)
    }

    /// Whether the rows that were left in an unknown state are as they were left.
    pub(super) fn pins_are_whole(&self) -> bool {
        self.pins_hold && self.kept_pins == Some(self.pins)
    }

    /// Whether the events of our changes are those that the commits left.
    pub(super) fn events_are_whole(&self) -> bool {
        self.kept_events == Some(self.events_of_ours)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.pins_are_whole() && self.kept_events == Some(self.events)
    }
}

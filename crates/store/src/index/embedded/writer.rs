//! What commits do: rows, what is kept of their sets, the head, events.

use std::{collections::BTreeMap, sync::Arc};

use holdfast_core::{AcceptTold, AuditEvent, IndexDecision, IndexSets, IndexWrite, Revision, SetCheck, StoreError};
use redb::{ReadableTable, Table, WriteTransaction};

use super::{
    super::seals::{Head, Seals, SetState},
    Checked, EVENTS, HEAD, META, ROWS, SETS,
    own::{self, Own, PINS, SET_OF_EVENTS, SET_OF_PINS, Seen, UNPINNED_A_COMMIT},
    sets,
};
use crate::{
    audit,
    database::DatabaseFile,
    group::{Fared, failed},
    order,
    outbox::{Outbox, Place, StoredEvent},
};

/// What is to be done, and a place for its event if it may have one.
pub(super) struct Job {
    pub work: Work,
    pub place: Option<Place>,
}

pub(super) enum Work {
    Decide(IndexDecision),
    /// The rows of a set are what they are from now on.
    Accept(Vec<u8>, AcceptTold),
    /// What was accepted at opening is so from now on.
    KeepAccepted,
    /// The next change gets a number above this one.
    Raise(Revision),
}

/// What a job came to.
pub(super) struct Done {
    pub revision: Revision,
    pub accepted: Option<SetCheck>,
}

/// The thread that commits; `mending` is the rest of it.
pub(super) struct Writer {
    pub file: Arc<DatabaseFile>,
    pub seals: Arc<Seals>,
    pub sets: IndexSets,
    pub outbox: Arc<Outbox>,
    /// Of what is known to be durable.
    pub head: Head,
    pub seen: Arc<Seen>,
    /// What the group would have done whose commit failed last.
    pub unknown: Option<Outcome>,
}

type Events<'t> = Table<'t, u64, &'static [u8]>;

/// What a transaction does, once it is durable.
pub(super) struct Outcome {
    pub head: Head,
    results: Vec<Result<Done, StoreError>>,
    /// Events with their places.
    told: Vec<(Place, StoredEvent)>,
    /// Sets that an operator has accepted, and those whose pins are gone; of this file.
    accepted: Vec<Vec<u8>>,
    unpinned: Vec<Vec<u8>>,
    file: u64,
    seen: Arc<Seen>,
}

impl Outcome {
    /// It is durable.
    pub(super) fn done(self) -> Vec<Result<Done, StoreError>> {
        for (place, event) in self.told {
            place.fill(event);
        }
        self.seen.unpinned(&self.unpinned);
        self.accepted.iter().for_each(|set| self.seen.known(self.file, set, true));
        self.results
    }
}

impl Writer {
    /// One transaction. The outer error means that it is not known whether anything of the group is written.
    pub(super) fn write_group(&mut self, jobs: Vec<Job>) -> Fared<Done> {
        // The rows of events that the log has go with whatever is committed next.
        let dropped = self.outbox.take_recorded();
        let written = self.try_write_group(jobs, &dropped);
        if written.is_err() {
            // Whether they are gone or not: a row that is not there can be dropped.
            self.outbox.still_stored(dropped);
        }
        written.map(Outcome::done)
    }

    fn try_write_group(&mut self, jobs: Vec<Job>, dropped: &[Revision]) -> Result<Outcome, StoreError> {
        let transaction = self.file.begin_write()?;
        let outcome = self.decide_group(&transaction, jobs, dropped)?;
        let head = outcome.head;
        if let Err(error) = transaction.commit() {
            self.unknown = Some(outcome);
            return Err(failed(error));
        }
        self.head = head;
        Ok(outcome)
    }

    /// Writes what the jobs come to into a transaction.
    fn decide_group(
        &self,
        transaction: &WriteTransaction,
        jobs: Vec<Job>,
        dropped: &[Revision],
    ) -> Result<Outcome, StoreError> {
        let (mut results, mut told) = (Vec::with_capacity(jobs.len()), Vec::new());
        let file = self.seen.file();
        let mut group = Group::begin(transaction, &self.seals, self.sets, &self.seen)?;
        for revision in dropped {
            group.forget(*revision)?;
        }
        let unpinned = group.unpin(self.seen.to_unpin())?;
        let mut accepted_sets = Vec::new();
        for Job { work, place } in jobs {
            let decided = match work {
                Work::Decide(decide) => {
                    let reader = Checked { table: &group.rows, seals: &self.seals };
                    decide(&reader).and_then(|change| Ok((change.writes, None, told_of(change.event, place)?)))
                }
                Work::Accept(set, tell) => group.accept(&set).and_then(|(writes, check)| {
                    let event = told_of(Some(tell(&check)), place)?;
                    accepted_sets.push(set);
                    Ok((writes, Some(check), event))
                }),
                Work::KeepAccepted => {
                    group.keep_accepted()?;
                    Ok((Vec::new(), None, None))
                }
                Work::Raise(to) => {
                    group.head.revision = group.head.revision.max(to);
                    Ok((Vec::new(), None, None))
                }
            };
            results.push(match decided {
                Ok((writes, accepted, event)) => {
                    group.apply(writes)?;
                    if let Some((body, place)) = event {
                        let revision = group.tell(&body)?;
                        told.push((place, StoredEvent { revision, body: body.into() }));
                    }
                    Ok(Done { revision: group.head.revision, accepted })
                }
                Err(error) => Err(error),
            });
        }
        let head = group.finish()?;
        Ok(Outcome { head, results, told, accepted: accepted_sets, unpinned, file, seen: Arc::clone(&self.seen) })
    }
}

/// The event of a change, with the place that was kept for it.
fn told_of(event: Option<AuditEvent>, place: Option<Place>) -> Result<Option<(String, Place)>, StoreError> {
    match (event, place) {
        (None, _) => Ok(None),
        (Some(event), Some(place)) => Ok(Some((audit::event_body(&event)?, place))),
        (Some(_), None) => Err(failed("an event came with what has none")),
    }
}

/// A set as the transaction found it, and as it leaves it.
struct Touched {
    before: Option<SetState>,
    now: SetState,
    /// Whether what its rows are left as is pinned.
    pins: bool,
}

/// The rows, in a transaction that changes them.
pub(super) struct Group<'t> {
    pub rows: Table<'t, &'static [u8], &'static [u8]>,
    kept: Table<'t, &'static [u8], &'static [u8]>,
    meta: Table<'t, &'static str, &'static [u8]>,
    events: Events<'t>,
    pins: Table<'t, &'static [u8], &'static [u8]>,
    seals: &'t Seals,
    sets: IndexSets,
    seen: &'t Seen,
    /// Of rows that nobody could have evened out.
    pub pins_nothing: bool,
    touched: BTreeMap<Vec<u8>, Touched>,
    pub head: Head,
    head_before: Head,
}

impl<'t> Group<'t> {
    pub(super) fn begin(
        transaction: &'t WriteTransaction,
        seals: &'t Seals,
        sets: IndexSets,
        seen: &'t Seen,
    ) -> Result<Self, StoreError> {
        let meta = transaction.open_table(META).map_err(failed)?;
        let head = stored_head(&meta, seals)?.ok_or(StoreError::Damaged)?;
        Ok(Self {
            rows: transaction.open_table(ROWS).map_err(failed)?,
            kept: transaction.open_table(SETS).map_err(failed)?,
            events: transaction.open_table(EVENTS).map_err(failed)?,
            pins: transaction.open_table(PINS).map_err(failed)?,
            meta,
            seals,
            sets,
            seen,
            pins_nothing: false,
            touched: BTreeMap::new(),
            head,
            head_before: head,
        })
    }

    pub(super) fn apply(&mut self, writes: Vec<IndexWrite>) -> Result<(), StoreError> {
        for IndexWrite { key, value } in writes {
            let pins = self.set_of(&key)?.pins;
            let new = value.map(|content| self.seals.close(&key, &content));
            let old = match &new {
                Some(row) => self.rows.insert(key.as_slice(), row.as_slice()).map_err(failed)?,
                None => self.rows.remove(key.as_slice()).map_err(failed)?,
            };
            let old = old.map(|row| self.seals.digest(row.value()));
            let digest = new.as_ref().map(|row| self.seals.digest(row));
            if old == digest {
                continue;
            }
            let state = &mut self.set_of(&key)?.now;
            if let Some(old) = old {
                state.remove(old);
            }
            if let Some(digest) = digest {
                state.add(digest);
            }
            if pins {
                self.pin(&key, own::pinned(new.as_deref()))?;
            }
        }
        Ok(())
    }

    /// Remembers what a row is left as.
    fn pin(&mut self, name: &[u8], left: &[u8]) -> Result<(), StoreError> {
        let old = self.pins.insert(name, left).map_err(failed)?;
        let old = old.map(|old| self.seals.digest_of_pin(name, old.value()));
        let new = self.seals.digest_of_pin(name, left);
        let state = &mut self.own_set(SET_OF_PINS)?.now;
        if let Some(old) = old {
            state.remove(old);
        }
        state.add(new);
        Ok(())
    }

    /// Takes away what is pinned of these sets, up to a bound. Gives those of which nothing is left.
    fn unpin(&mut self, sets: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, StoreError> {
        let (mut done, mut room) = (Vec::new(), UNPINNED_A_COMMIT);
        for set in sets {
            for prefix in (self.sets.prefixes)(&set) {
                let mut names = Vec::new();
                for entry in self.pins.range(prefix.as_slice()..).map_err(failed)? {
                    let name = entry.map_err(failed)?.0.value().to_vec();
                    if !name.starts_with(&prefix) || names.len() == room {
                        break;
                    }
                    if (self.sets.of)(&name) == set {
                        names.push(name);
                    }
                }
                room -= names.len();
                for name in names {
                    let old = self.pins.remove(name.as_slice()).map_err(failed)?;
                    let old = old.map(|old| self.seals.digest_of_pin(&name, old.value()));
                    if let Some(old) = old {
                        self.own_set(SET_OF_PINS)?.now.remove(old);
                    }
                }
            }
            if room == 0 {
                break;
            }
            done.push(set);
        }
        Ok(done)
    }

    /// The event of a change. Gives its number.
    pub(super) fn tell(&mut self, body: &str) -> Result<Revision, StoreError> {
        let revision = Revision(self.head.revision.0 + 1);
        let sealed = self.seals.seal_event(revision, body)?;
        self.events.insert(revision.0, sealed.as_slice()).map_err(failed)?;
        let digest = self.seals.digest_of_event(revision.0, &sealed);
        self.own_set(SET_OF_EVENTS)?.now.add(digest);
        self.head.revision = revision;
        Ok(revision)
    }

    /// The log has the event of this change.
    fn forget(&mut self, revision: Revision) -> Result<(), StoreError> {
        let sealed = self.events.remove(revision.0).map_err(failed)?;
        let digest = sealed.map(|sealed| self.seals.digest_of_event(revision.0, sealed.value()));
        if let Some(digest) = digest {
            self.own_set(SET_OF_EVENTS)?.now.remove(digest);
        }
        Ok(())
    }

    /// Counts the events that wait, if nothing is kept of them. False: there is nothing to count.
    pub(super) fn count_events(&mut self) -> Result<bool, StoreError> {
        if self.own_set(SET_OF_EVENTS)?.before.is_some() {
            return Ok(false);
        }
        let found = Own::look((&self.rows, &self.kept, &self.pins), &self.events, self.seals, self.head.revision)?;
        self.own_set(SET_OF_EVENTS)?.now = found.events_of_ours;
        Ok(found.events_of_ours != SetState::default())
    }

    /// What is kept of events or pins, to be changed.
    fn own_set(&mut self, set: &'static [u8]) -> Result<&mut Touched, StoreError> {
        if !self.touched.contains_key(set) {
            let before = self.kept_of(set)?;
            let touched = Touched { before, now: before.unwrap_or_default(), pins: false };
            self.touched.insert(set.to_vec(), touched);
        }
        self.touched.get_mut(set).ok_or(StoreError::Damaged)
    }

    fn kept_of(&self, set: &[u8]) -> Result<Option<SetState>, StoreError> {
        let Some(sealed) = self.kept.get(set).map_err(failed)? else { return Ok(None) };
        let state = self.seals.open_set(set, sealed.value());
        state.map(Some).ok_or_else(|| StoreError::Forged { row: set.to_vec() })
    }

    /// Whether there are rows of a set, as far as is seen at the first of them.
    fn has_rows(&self, set: &[u8]) -> Result<bool, StoreError> {
        for prefix in (self.sets.prefixes)(set) {
            if let Some(entry) = order::from(&self.rows, &prefix)?.next()
                && entry.map_err(failed)?.0.value().starts_with(&prefix)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The set of a row, to be changed.
    fn set_of(&mut self, row: &[u8]) -> Result<&mut Touched, StoreError> {
        let set = (self.sets.of)(row);
        if !self.touched.contains_key(set) {
            let before = self.kept_of(set)?;
            let mut pins = !self.pins_nothing && !self.seen.is_whole(set);
            if pins && before.is_none() && !self.has_rows(set)? {
                // It begins now.
                self.seen.known(self.seen.file(), set, false);
                pins = false;
            }
            self.touched.insert(set.to_vec(), Touched { before, now: before.unwrap_or_default(), pins });
        }
        self.touched.get_mut(set).ok_or(StoreError::Damaged)
    }

    /// Takes a set for what it is. What is given back removes the rows that are not ours.
    fn accept(&mut self, set: &[u8]) -> Result<(Vec<IndexWrite>, SetCheck), StoreError> {
        self.write_sets()?;
        let looked = sets::check(&self.rows, &self.kept, self.seals, self.sets, set)?;
        if looked.check.expected.is_none() {
            // What it adds to the head is not known. Where that is accepted is the start.
            return Err(StoreError::Forged { row: set.to_vec() });
        }
        let mut found = looked.found;
        for row in &looked.forged {
            // They are in no sum; when they are removed they go out of this one.
            if let Some(row) = self.rows.get(row.as_slice()).map_err(failed)? {
                found.add(self.seals.digest(row.value()));
            }
        }
        self.touched.insert(set.to_vec(), Touched { before: looked.kept, now: found, pins: false });
        Ok((looked.forged.into_iter().map(IndexWrite::remove).collect(), looked.check))
    }

    /// Makes the head one of what is kept of the sets, and that one of the rows where it is not ours. It is known here that this is accepted;
    /// whether the rows of the other sets are what is kept of them is not looked at. Events of changes that the index does not have go.
    fn keep_accepted(&mut self) -> Result<(), StoreError> {
        self.write_sets()?;
        let newest = self.head.revision;
        self.events.retain(|revision, _| revision <= newest.0).map_err(failed)?;
        let own = Own::look((&self.rows, &self.kept, &self.pins), &self.events, self.seals, newest)?;
        if !own.events_are_whole() {
            self.events.retain(|_, _| false).map_err(failed)?;
            self.kept.remove(SET_OF_EVENTS).map_err(failed)?;
        }
        if !own.pins_are_whole() {
            self.pins.retain(|_, _| false).map_err(failed)?;
            self.kept.remove(SET_OF_PINS).map_err(failed)?;
        }
        let mut bad = Vec::new();
        for entry in self.kept.iter().map_err(failed)? {
            let (set, sealed) = entry.map_err(failed)?;
            bad.extend(self.seals.open_set(set.value(), sealed.value()).is_none().then(|| set.value().to_vec()));
        }
        for set in bad {
            let found = sets::check(&self.rows, &self.kept, self.seals, self.sets, &set)?.found;
            self.kept.insert(set.as_slice(), self.seals.seal_set(&set, found)?.as_slice()).map_err(failed)?;
        }
        self.head.sum = sets::sum_of(&self.kept, self.seals)?.ok_or(StoreError::Damaged)?;
        Ok(())
    }

    /// How many rows there are in all sets.
    pub(super) fn rows_kept(&mut self) -> Result<u64, StoreError> {
        self.write_sets()?;
        let mut rows = 0;
        for entry in self.kept.iter().map_err(failed)? {
            let (set, sealed) = entry.map_err(failed)?;
            if !own::is_own(set.value()) {
                rows += self.seals.open_set(set.value(), sealed.value()).map_or(0, |state| state.rows);
            }
        }
        Ok(rows)
    }

    /// Writes down what is kept of the sets that were changed.
    fn write_sets(&mut self) -> Result<(), StoreError> {
        for (set, Touched { before, now, .. }) in std::mem::take(&mut self.touched) {
            if before == Some(now) {
                continue;
            }
            let mut sum = self.head.sum;
            if let Some(before) = before {
                sum = sum.plus(self.seals.digest_of_set(&set, before).negative());
            }
            if now == SetState::default() {
                self.kept.remove(set.as_slice()).map_err(failed)?;
            } else {
                sum = sum.plus(self.seals.digest_of_set(&set, now));
                self.kept.insert(set.as_slice(), self.seals.seal_set(&set, now)?.as_slice()).map_err(failed)?;
            }
            self.head.sum = sum;
        }
        Ok(())
    }

    /// Writes down what is kept of the whole, if it is another than before. Gives it.
    pub(super) fn finish(mut self) -> Result<Head, StoreError> {
        self.write_sets()?;
        if self.head != self.head_before {
            let sealed = self.seals.seal_head(self.head)?;
            self.meta.insert(HEAD, sealed.as_slice()).map_err(failed)?;
        }
        Ok(self.head)
    }
}

/// The head; `None` if there is none.
pub(super) fn stored_head(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    seals: &Seals,
) -> Result<Option<Head>, StoreError> {
    let Some(sealed) = meta.get(HEAD).map_err(failed)? else { return Ok(None) };
    let head = seals.open_head(sealed.value());
    head.map(Some).ok_or_else(|| {
        failed("the head of the index was not written by this instance: it was changed, or is another's")
    })
}

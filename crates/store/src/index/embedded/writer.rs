//! What commits do: rows, what is kept of their sets, the head, events.

use std::{collections::BTreeMap, sync::Arc};

use holdfast_core::{AcceptTold, AuditEvent, IndexDecision, IndexSets, IndexWrite, Revision, SetCheck, StoreError};
use redb::{ReadableTable, Table, WriteTransaction};

use super::{
    super::seals::{Head, Seals, SetState},
    Checked, EVENTS, HEAD, META, ROWS, SETS, sets,
};
use crate::{
    audit,
    database::DatabaseFile,
    group::{Fared, failed},
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
}

impl Outcome {
    /// It is durable.
    pub(super) fn done(self) -> Vec<Result<Done, StoreError>> {
        for (place, event) in self.told {
            place.fill(event);
        }
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
        let mut events = transaction.open_table(EVENTS).map_err(failed)?;
        for revision in dropped {
            events.remove(revision.0).map_err(failed)?;
        }
        let mut group = Group::begin(transaction, &self.seals, self.sets)?;
        for Job { work, place } in jobs {
            let decided = match work {
                Work::Decide(decide) => {
                    let reader = Checked { table: &group.rows, seals: &self.seals };
                    decide(&reader).and_then(|change| Ok((change.writes, None, told_of(change.event, place)?)))
                }
                Work::Accept(set, tell) => group.accept(&set).and_then(|(writes, check)| {
                    told_of(Some(tell(&check)), place).map(|event| (writes, Some(check), event))
                }),
                Work::KeepAccepted => {
                    group.keep_accepted(&mut events)?;
                    Ok((Vec::new(), None, None))
                }
            };
            results.push(match decided {
                Ok((writes, accepted, event)) => {
                    group.apply(writes)?;
                    if let Some((body, place)) = event {
                        group.head.revision = Revision(group.head.revision.0 + 1);
                        let revision = group.head.revision;
                        let sealed = self.seals.seal_event(revision, &body)?;
                        events.insert(revision.0, sealed.as_slice()).map_err(failed)?;
                        told.push((place, StoredEvent { revision, body: body.into() }));
                    }
                    Ok(Done { revision: group.head.revision, accepted })
                }
                Err(error) => Err(error),
            });
        }
        Ok(Outcome { head: group.finish()?, results, told })
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
}

/// The rows, in a transaction that changes them.
pub(super) struct Group<'t> {
    pub rows: Table<'t, &'static [u8], &'static [u8]>,
    kept: Table<'t, &'static [u8], &'static [u8]>,
    meta: Table<'t, &'static str, &'static [u8]>,
    seals: &'t Seals,
    sets: IndexSets,
    touched: BTreeMap<Vec<u8>, Touched>,
    pub head: Head,
    head_before: Head,
}

impl<'t> Group<'t> {
    pub(super) fn begin(
        transaction: &'t WriteTransaction,
        seals: &'t Seals,
        sets: IndexSets,
    ) -> Result<Self, StoreError> {
        let meta = transaction.open_table(META).map_err(failed)?;
        let head = stored_head(&meta, seals)?.ok_or(StoreError::Damaged)?;
        Ok(Self {
            rows: transaction.open_table(ROWS).map_err(failed)?,
            kept: transaction.open_table(SETS).map_err(failed)?,
            meta,
            seals,
            sets,
            touched: BTreeMap::new(),
            head,
            head_before: head,
        })
    }

    pub(super) fn apply(&mut self, writes: Vec<IndexWrite>) -> Result<(), StoreError> {
        for IndexWrite { key, value } in writes {
            let new = value.map(|content| self.seals.close(&key, &content));
            let old = match &new {
                Some(row) => self.rows.insert(key.as_slice(), row.as_slice()).map_err(failed)?,
                None => self.rows.remove(key.as_slice()).map_err(failed)?,
            };
            let old = old.map(|row| self.seals.digest(row.value()));
            let new = new.map(|row| self.seals.digest(&row));
            if old == new {
                continue;
            }
            let state = self.state_of(&key)?;
            if let Some(old) = old {
                state.remove(old);
            }
            if let Some(new) = new {
                state.add(new);
            }
        }
        Ok(())
    }

    /// The set of a row, to be changed.
    fn state_of(&mut self, row: &[u8]) -> Result<&mut SetState, StoreError> {
        let set = (self.sets.of)(row);
        if !self.touched.contains_key(set) {
            let before = match self.kept.get(set).map_err(failed)? {
                None => None,
                Some(sealed) => {
                    let state = self.seals.open_set(set, sealed.value());
                    Some(state.ok_or_else(|| StoreError::Forged { row: set.to_vec() })?)
                }
            };
            self.touched.insert(set.to_vec(), Touched { before, now: before.unwrap_or_default() });
        }
        self.touched.get_mut(set).map(|touched| &mut touched.now).ok_or(StoreError::Damaged)
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
        self.touched.insert(set.to_vec(), Touched { before: looked.kept, now: found });
        Ok((looked.forged.into_iter().map(IndexWrite::remove).collect(), looked.check))
    }

    /// Makes the head one of what is kept of the sets, and that one of the rows where it is not ours. It is known here that this is accepted;
    /// whether the rows of the other sets are what is kept of them is not looked at. Events of changes that the index does not have go.
    fn keep_accepted(&mut self, events: &mut Events<'_>) -> Result<(), StoreError> {
        self.write_sets()?;
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
        let newest = self.head.revision.0;
        events.retain(|revision, _| revision <= newest).map_err(failed)
    }

    /// How many rows there are in all sets.
    pub(super) fn rows_kept(&mut self) -> Result<u64, StoreError> {
        self.write_sets()?;
        let mut rows = 0;
        for entry in self.kept.iter().map_err(failed)? {
            let (set, sealed) = entry.map_err(failed)?;
            rows += self.seals.open_set(set.value(), sealed.value()).map_or(0, |state| state.rows);
        }
        Ok(rows)
    }

    /// Writes down what is kept of the sets that were changed.
    fn write_sets(&mut self) -> Result<(), StoreError> {
        for (set, Touched { before, now }) in std::mem::take(&mut self.touched) {
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

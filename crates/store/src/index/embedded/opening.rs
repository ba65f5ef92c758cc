//! An index as it is found: new, of this version, or of an earlier one, whose rows are taken over once.
//!
//! Rows of version 1 have no MAC. They are moved in small transactions, so that whatever is interrupted goes on where it was; the last of
//! them tells the log. That no others are taken after that is not written here, where it could be put back, but with the instance's secrets.

use holdfast_core::{AuditEvent, Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle, WriteTransaction};

use super::{
    super::seals::{Head, Seals},
    EVENTS, HEAD, INSTANCE, IndexOpening, META, ROWS, SETS,
    own::{Own, PINS, Seen},
    sets,
    writer::{Group, stored_head},
};
use crate::{audit, group::failed, row_set::Sum};

/// Rows of version 1: name to content.
pub(super) const ROWS_V1: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v1");
/// Version 1: `revision` and `instance`, in clear.
pub(super) const META_V1: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta v1");
const REVISION_V1: &str = "revision";
/// Rows of version 1 that are on their way.
pub(super) const TAKEN_OVER: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v1 taken over");
/// In the place of the rows of version 1, with types of its own: a program of that time does not open it. It would take the index for
/// empty, and every blob for an orphan.
const TOMBSTONE: TableDefinition<'_, &str, &str> = TableDefinition::new("index v1");
/// Rows that one transaction takes over, and their bytes: some tens of milliseconds.
const ROWS_A_COMMIT: usize = 1024;
const BYTES_A_COMMIT: usize = 8 * 1024 * 1024;

/// An index as it was found.
pub(super) struct Prepared {
    /// What its newest commit left.
    pub head: Head,
    /// The events that wait cannot be believed, which was accepted.
    pub events_lost: bool,
    /// What was accepted, for the log.
    pub notes: Vec<String>,
    /// Whether something of that is still to be kept.
    pub accepted: bool,
}

/// Makes the index one of this version and this instance, or sees that it is.
pub(super) fn prepare(database: &Database, seals: &Seals, opening: &IndexOpening<'_>) -> Result<Prepared, StoreError> {
    let mut notes = Vec::new();
    if begin(database, seals, opening)? {
        notes.push(
            "an index of an earlier version, no row of which is proved, was accepted in the place of ours".into(),
        );
    }
    while take_over(database, seals, opening)? {}
    if !opening.counted {
        count_events(database, seals, opening)?;
    }
    let head = whole_head(database, seals)?;
    let own = Own::in_database(database, seals, head.revision)?;
    let (sets_whole, events_lost) = (sets::whole(database, seals, head)?, !own.events_are_whole());
    let accepted = !sets_whole || events_lost || !own.pins_are_whole();
    if accepted && !opening.accept_loss {
        return Err(StoreError::NotWhole { revision: head.revision });
    }
    if events_lost {
        notes.push(
            "the events of changes that wait in the index are not those that its commits left; that they are not told was accepted".into(),
        );
    }
    if !own.pins_are_whole() {
        notes.push(
            "rows of the index are not as they were left before their set was looked at; this was accepted".into(),
        );
    }
    if !sets_whole {
        notes.push(format!(
            "what the index keeps of its rows is not what its last commit, change {}, left; this was accepted",
            head.revision
        ));
    }
    Ok(Prepared { head, events_lost, notes, accepted })
}

fn has(transaction: &WriteTransaction, name: &str) -> Result<bool, StoreError> {
    Ok(transaction.list_tables().map_err(failed)?.any(|table| table.name() == name))
}

/// Whether the rows of version 1 are there, and not what stands in their place.
pub(super) fn has_rows_of_v1<T>(opened: &Result<T, TableError>) -> Result<bool, StoreError> {
    match opened {
        Ok(_) => Ok(true),
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// True: what it begins with is accepted, though it is not taken otherwise.
fn begin(database: &Database, seals: &Seals, opening: &IndexOpening<'_>) -> Result<bool, StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    let known = has(&transaction, META.name())?;
    let old = !known && has(&transaction, ROWS_V1.name())?;
    let accepted;
    {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        transaction.open_table(ROWS).map_err(failed)?;
        transaction.open_table(SETS).map_err(failed)?;
        transaction.open_table(EVENTS).map_err(failed)?;
        transaction.open_table(PINS).map_err(failed)?;
        let named = meta.get(INSTANCE).map_err(failed)?.map(|value| value.value().to_vec());
        if known && named.as_deref() != Some(seals.instance().as_bytes().as_slice()) {
            return Err(failed("the index belongs to another instance"));
        }
        let head = stored_head(&meta, seals)?;
        if known && head.is_none() {
            return Err(failed("the head of the index is missing: it was removed"));
        }
        let upgrading = old || head.is_some_and(|head| head.upgrading);
        accepted = upgrading && opening.in_force;
        if accepted && !opening.accept_loss {
            return Err(failed(
                "the index is of an earlier version, and this instance takes none of that any more: it was put back; restore the index of \
                 the moment of the audit log, or set `accept_loss = true` in [audit] once to go on with this one and record that",
            ));
        }
        if !known {
            let revision = if old { revision_of_v1(&transaction, seals)? } else { Revision(0) };
            let head = Head { revision, upgrading: old, sum: Sum::default() };
            meta.insert(HEAD, seals.seal_head(head)?.as_slice()).map_err(failed)?;
            meta.insert(INSTANCE, seals.instance().as_bytes().as_slice()).map_err(failed)?;
        }
    }
    if let Some(event) = opening.founding.filter(|_| old) {
        found(&transaction, seals, opening, event)?;
    }
    if old {
        let rows = transaction.open_table(ROWS_V1).map_err(failed)?;
        transaction.rename_table(rows, TAKEN_OVER).map_err(failed)?;
        transaction.delete_table(META_V1).map_err(failed)?;
    }
    if !known {
        let mut tombstone = transaction.open_table(TOMBSTONE).map_err(failed)?;
        tombstone.insert("see", ROWS.name()).map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(accepted)
}

/// The newest change of an index of version 1, which is this instance's or nobody's.
fn revision_of_v1(transaction: &WriteTransaction, seals: &Seals) -> Result<Revision, StoreError> {
    let meta = transaction.open_table(META_V1).map_err(failed)?;
    if meta.get(INSTANCE).map_err(failed)?.is_some_and(|known| known.value() != seals.instance().as_bytes()) {
        return Err(failed("the index belongs to another instance"));
    }
    match meta.get(REVISION_V1).map_err(failed)? {
        None => Ok(Revision(0)),
        Some(value) => Ok(Revision(u64::from_be_bytes(value.value().try_into().map_err(|_| StoreError::Damaged)?))),
    }
}

/// Tells the log that an index that was nobody's is this instance's from now on.
fn found(
    transaction: &WriteTransaction,
    seals: &Seals,
    opening: &IndexOpening<'_>,
    event: &AuditEvent,
) -> Result<(), StoreError> {
    if transaction.open_table(META_V1).map_err(failed)?.get(INSTANCE).map_err(failed)?.is_some() {
        return Ok(());
    }
    let seen = Seen::default();
    let mut group = Group::begin(transaction, seals, opening.sets, &seen)?;
    group.tell(&audit::event_body(event)?)?;
    group.finish().map(drop)
}

/// Counts the events of an index of before they were counted, once.
fn count_events(database: &Database, seals: &Seals, opening: &IndexOpening<'_>) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    {
        let seen = Seen::default();
        let mut group = Group::begin(&transaction, seals, opening.sets, &seen)?;
        if !group.count_events()? {
            return Ok(());
        }
        group.finish()?;
    }
    transaction.commit().map_err(failed)
}

/// One transaction of the upgrade. False: there is nothing left to do.
fn take_over(database: &Database, seals: &Seals, opening: &IndexOpening<'_>) -> Result<bool, StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    let mut left = true;
    {
        // Nobody has seen these rows before, and nobody evens anything out in them.
        let seen = Seen::default();
        let mut group = Group::begin(&transaction, seals, opening.sets, &seen)?;
        group.pins_nothing = true;
        if !group.head.upgrading {
            return Ok(false);
        }
        let mut old = transaction.open_table(TAKEN_OVER).map_err(failed)?;
        let (mut writes, mut bytes) = (Vec::new(), 0);
        while writes.len() < ROWS_A_COMMIT && bytes < BYTES_A_COMMIT {
            let Some((name, content)) = old.pop_first().map_err(failed)? else {
                left = false;
                break;
            };
            bytes += content.value().len();
            writes.push(holdfast_core::IndexWrite::put(name.value().to_vec(), content.value().to_vec()));
        }
        group.apply(writes)?;
        if !left {
            let rows = group.rows_kept()?;
            group.head.upgrading = false;
            group.tell(&audit::event_body(&(opening.upgraded)(rows))?)?;
            tracing::warn!(
                rows,
                "the index was upgraded to version 2: each row has a MAC, and none of version 1 is taken any more"
            );
        }
        group.finish()?;
    }
    if !left {
        transaction.delete_table(TAKEN_OVER).map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(left)
}

/// What the last commit left of the whole.
pub(super) fn whole_head(database: &Database, seals: &Seals) -> Result<Head, StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    stored_head(&transaction.open_table(META).map_err(failed)?, seals)?.ok_or(StoreError::Damaged)
}

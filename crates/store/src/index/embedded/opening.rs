//! An index as it is found: new, of this version, or of an earlier one, whose rows are taken over once.
//!
//! Rows of version 1 have no MAC. They are moved in small transactions, so that whatever is interrupted goes on where it was; the last of
//! them tells the log. That no others are taken after that is not written here, where it could be put back, but with the instance's secrets.

use holdfast_core::{AuditEvent, Revision, StoreError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle, WriteTransaction};

use super::{
    super::seals::{Head, Seals},
    EVENTS, HEAD, INSTANCE, IndexOpening, META, ROWS, SETS, sets,
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
    let head = whole_head(database, seals)?;
    let accepted = !sets::whole(database, seals, head)?;
    if accepted && !opening.accept_loss {
        return Err(StoreError::NotWhole { revision: head.revision });
    }
    if accepted {
        notes.push(format!(
            "what the index keeps of its rows is not what its last commit, change {}, left; this was accepted",
            head.revision
        ));
    }
    Ok(Prepared { head, notes, accepted })
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
            let revision = if old { found(&transaction, seals, opening.founding)? } else { Revision(0) };
            let head = Head { revision, upgrading: old, sum: Sum::default() };
            meta.insert(HEAD, seals.seal_head(head)?.as_slice()).map_err(failed)?;
            meta.insert(INSTANCE, seals.instance().as_bytes().as_slice()).map_err(failed)?;
        }
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

/// Whose the index of version 1 is: this instance's, or nobody's, and then it is this one's from now on. Gives its newest change.
fn found(transaction: &WriteTransaction, seals: &Seals, founding: Option<&AuditEvent>) -> Result<Revision, StoreError> {
    let meta = transaction.open_table(META_V1).map_err(failed)?;
    let revision = match meta.get(REVISION_V1).map_err(failed)? {
        None => Revision(0),
        Some(value) => Revision(u64::from_be_bytes(value.value().try_into().map_err(|_| StoreError::Damaged)?)),
    };
    match (meta.get(INSTANCE).map_err(failed)?, founding) {
        (Some(known), _) if known.value() == seals.instance().as_bytes() => Ok(revision),
        (Some(_), _) => Err(failed("the index belongs to another instance")),
        (None, None) => Ok(revision),
        (None, Some(event)) => tell(transaction, seals, revision, event),
    }
}

/// Leaves an event to the log; gives its revision.
fn tell(
    transaction: &WriteTransaction,
    seals: &Seals,
    before: Revision,
    event: &AuditEvent,
) -> Result<Revision, StoreError> {
    let revision = Revision(before.0 + 1);
    let sealed = seals.seal_event(revision, &audit::event_body(event)?)?;
    let mut events = transaction.open_table(EVENTS).map_err(failed)?;
    events.insert(revision.0, sealed.as_slice()).map_err(failed)?;
    Ok(revision)
}

/// One transaction of the upgrade. False: there is nothing left to do.
fn take_over(database: &Database, seals: &Seals, opening: &IndexOpening<'_>) -> Result<bool, StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
    let mut left = true;
    {
        let mut group = Group::begin(&transaction, seals, opening.sets)?;
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
            group.head.revision = tell(&transaction, seals, group.head.revision, &(opening.upgraded)(rows))?;
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

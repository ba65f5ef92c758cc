//! Sets of rows, compared with what the commits have kept of them.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use holdfast_core::{IndexSets, SetCheck, SetNames, StoreError};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use super::{
    super::seals::{Head, Seals, SetState},
    META, ROWS, SETS, own,
    writer::stored_head,
};
use crate::{group::failed, order, row_set::Sum};

type Bytes = &'static [u8];

/// What a look at a set has found.
pub(super) struct Looked {
    pub check: SetCheck,
    /// What is kept of it, if that can be believed.
    pub kept: Option<SetState>,
    /// What should be kept of it.
    pub found: SetState,
    /// All rows that are not ours.
    pub forged: Vec<Vec<u8>>,
}

pub(super) fn check(
    rows: &impl ReadableTable<Bytes, Bytes>,
    kept: &impl ReadableTable<Bytes, Bytes>,
    seals: &Seals,
    sets: IndexSets,
    set: &[u8],
) -> Result<Looked, StoreError> {
    check_until(&AtomicBool::default(), rows, kept, seals, sets, set)
}

pub(super) fn was_stopped() -> StoreError {
    StoreError::Unavailable("the check was stopped".into())
}

/// The same; it ends with an error once `stopped` turns true.
pub(super) fn check_until(
    stopped: &AtomicBool,
    rows: &impl ReadableTable<Bytes, Bytes>,
    kept: &impl ReadableTable<Bytes, Bytes>,
    seals: &Seals,
    sets: IndexSets,
    set: &[u8],
) -> Result<Looked, StoreError> {
    let sealed = kept.get(set).map_err(failed)?;
    let (kept, believed) = match sealed {
        None => (None, true),
        Some(sealed) => {
            let kept = seals.open_set(set, sealed.value());
            (kept, kept.is_some())
        }
    };
    let (mut found, mut forged) = (SetState::default(), Vec::new());
    for prefix in (sets.prefixes)(set) {
        for entry in order::from(rows, &prefix)? {
            if stopped.load(Ordering::Relaxed) {
                return Err(was_stopped());
            }
            let (name, row) = entry.map_err(failed)?;
            if !name.value().starts_with(&prefix) {
                break;
            }
            if (sets.of)(name.value()) != set {
                continue;
            }
            match seals.open(name.value(), row.value()) {
                Ok(_) => found.add(seals.digest(row.value())),
                Err(_) => forged.push(name.value().to_vec()),
            }
        }
    }
    let expected = kept.unwrap_or_default();
    let check = SetCheck {
        found: found.rows,
        expected: believed.then_some(expected.rows),
        whole: believed && expected == found && forged.is_empty(),
        forged: forged.len() as u64,
        names: forged.iter().take(SetCheck::NAMES_MAX).cloned().collect(),
    };
    Ok(Looked { check, kept, found, forged })
}

/// Every set that something is kept of, or that there are rows of.
pub(super) fn names(transaction: &ReadTransaction, seals: &Seals, sets: IndexSets) -> Result<SetNames, StoreError> {
    let kept = transaction.open_table(SETS).map_err(failed)?;
    let mut names = BTreeSet::new();
    for entry in kept.iter().map_err(failed)? {
        let set = entry.map_err(failed)?.0.value().to_vec();
        if !own::is_own(&set) {
            names.insert(set);
        }
    }
    named_by(&transaction.open_table(ROWS).map_err(failed)?, sets, &mut names)?;
    // Of one that is empty by now there may be pins.
    named_by(&transaction.open_table(own::PINS).map_err(failed)?, sets, &mut names)?;
    let head = stored_head(&transaction.open_table(META).map_err(failed)?, seals)?;
    let sum = sum_of(&kept, seals)?;
    let whole = head.is_some_and(|head| Some(head.sum) == sum);
    Ok(SetNames { names: names.into_iter().collect(), whole })
}

/// The sets that these rows are of.
fn named_by(
    rows: &impl ReadableTable<Bytes, Bytes>,
    sets: IndexSets,
    names: &mut BTreeSet<Vec<u8>>,
) -> Result<(), StoreError> {
    let mut from = Vec::new();
    while let Some(entry) = order::from(rows, &from)?.next() {
        let (name, _) = entry.map_err(failed)?;
        let (name, set) = (name.value(), (sets.of)(name.value()));
        let prefix = (sets.prefixes)(set).into_iter().find(|prefix| !prefix.is_empty() && name.starts_with(prefix));
        names.insert(set.to_vec());
        // Whatever cannot be passed over as a whole is passed over row by row: a planted name hides nothing behind it.
        from = prefix.as_deref().and_then(after).unwrap_or_else(|| [name, &[0]].concat());
    }
    Ok(())
}

/// The smallest name after all that begin with `prefix`.
fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut next = prefix.to_vec();
    while let Some(last) = next.pop() {
        if last < u8::MAX {
            next.push(last + 1);
            return Some(next);
        }
    }
    None
}

/// Of what is kept of all sets; `None` if something there is not ours.
pub(super) fn sum_of(kept: &impl ReadableTable<Bytes, Bytes>, seals: &Seals) -> Result<Option<Sum>, StoreError> {
    let mut sum = Sum::default();
    for entry in kept.iter().map_err(failed)? {
        let (set, sealed) = entry.map_err(failed)?;
        let Some(state) = seals.open_set(set.value(), sealed.value()) else { return Ok(None) };
        sum = sum.plus(seals.digest_of_set(set.value(), state));
    }
    Ok(Some(sum))
}

/// Whether what is kept of the sets is what the last commit left.
pub(super) fn whole(database: &Database, seals: &Seals, head: Head) -> Result<bool, StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    Ok(sum_of(&transaction.open_table(SETS).map_err(failed)?, seals)? == Some(head.sum))
}

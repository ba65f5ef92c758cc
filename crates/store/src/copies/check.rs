//! Whether the rows of a copy are all, and ours: the same sums that each commit keeps, computed as the rows pass by.

use std::{collections::BTreeMap, sync::Arc};

use holdfast_core::{Ambient, IndexSets, PartitionId, RecordKey, Revision, StoreError};
use holdfast_crypto::SecretBytes;

use super::CopyOf;
use crate::{
    engine::{Row, RowName},
    group::failed,
    index::{
        SET_OF_EVENTS, SET_OF_PINS,
        seals::{Head, Seals, SetState},
    },
    row_set::{Fold, RowSet, Sum},
    sealed::RowSealer,
};

/// Keys of the instance that a copy is of.
pub struct CopyKeys<'a> {
    /// The instance.
    pub instance: PartitionId,
    /// Its database key, 32 bytes.
    pub database_key: &'a SecretBytes,
    /// Entropy.
    pub ambient: Arc<dyn Ambient>,
    /// How the rows of an index fall into sets.
    pub sets: IndexSets,
}

impl CopyKeys<'_> {
    pub(super) fn seals(&self) -> Result<Seals, StoreError> {
        Seals::new(self.instance, self.database_key, Arc::clone(&self.ambient))
    }

    pub(super) fn rows(&self) -> Result<RowSealer, StoreError> {
        RowSealer::new(self.instance, self.database_key, Arc::clone(&self.ambient)).map_err(failed)
    }
}

/// What was found whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckedCopy {
    /// How many rows.
    pub rows: u64,
    /// The newest change.
    pub revision: Revision,
    /// The content of the record that was asked for, if it is there.
    pub record: Option<Vec<u8>>,
}

/// Takes the rows of a copy, in any order of tables.
pub struct CopyCheck(Kind);

enum Kind {
    Records(Box<Records>),
    Index(Box<Index>),
}

struct Records {
    asked: Option<(RowSealer, RowName)>,
    record: Option<Vec<u8>>,
    rows: u64,
    found: Fold,
    head: Option<Vec<u8>>,
    revision: Revision,
}

struct Index {
    seals: Seals,
    sets: IndexSets,
    rows: u64,
    found: BTreeMap<Vec<u8>, SetState>,
    kept: BTreeMap<Vec<u8>, SetState>,
    head: Option<Head>,
}

impl CopyCheck {
    /// Begins without a row. Of records one is opened, if it is asked for.
    ///
    /// # Errors
    /// [`StoreError::Failed`] on a key of another length.
    pub fn begin(of: CopyOf, keys: &CopyKeys<'_>, asked: Option<&RecordKey>) -> Result<Self, StoreError> {
        Ok(Self(match of {
            CopyOf::Records => {
                let set = RowSet::new(keys.instance, keys.database_key, Arc::clone(&keys.ambient)).map_err(failed)?;
                let sealer = asked.map(|key| keys.rows().map(|rows| (key, rows))).transpose()?;
                let asked = sealer.map(|(key, rows)| {
                    let name = rows.name(key);
                    (rows, name)
                });
                Kind::Records(Box::new(Records {
                    asked,
                    record: None,
                    rows: 0,
                    found: Arc::new(set).empty(),
                    head: None,
                    revision: Revision(0),
                }))
            }
            CopyOf::Index => Kind::Index(Box::new(Index {
                seals: keys.seals()?,
                sets: keys.sets,
                rows: 0,
                found: BTreeMap::new(),
                kept: BTreeMap::new(),
                head: None,
            })),
        }))
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Forged`]: it is none of ours.
    pub fn add(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        match &mut self.0 {
            Kind::Records(records) => records.add(table, key, value),
            Kind::Index(index) => index.add(table, key, value),
        }
    }

    /// Whether these were all.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`]; [`StoreError::Gone`]: nothing was kept of the rows, which a version before the present one does.
    pub fn finish(self) -> Result<CheckedCopy, StoreError> {
        match self.0 {
            Kind::Records(records) => records.finish(),
            Kind::Index(index) => index.finish(),
        }
    }
}

impl Records {
    fn add(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        match (table, key) {
            ("rows v1", name) => {
                let name: &RowName = name.try_into().map_err(|_| StoreError::Damaged)?;
                let (version, sealed) = value.split_first_chunk::<8>().ok_or(StoreError::Damaged)?;
                let version = u64::from_be_bytes(*version);
                self.found.add(name, version, sealed);
                self.rows += 1;
                if let Some((rows, _)) = self.asked.as_ref().filter(|(_, asked)| asked == name) {
                    let row = Row { name: *name, version, sealed: sealed.to_vec() };
                    self.record = Some(rows.open(&row)?.value);
                }
            }
            ("meta v1", b"revision") => {
                self.revision = Revision(u64::from_le_bytes(value.try_into().map_err(|_| StoreError::Damaged)?));
            }
            ("head v1", b"rows") => self.head = Some(value.to_vec()),
            _ => return Err(StoreError::Damaged),
        }
        Ok(())
    }

    fn finish(self) -> Result<CheckedCopy, StoreError> {
        let Self { record, rows, found, head, revision, .. } = self;
        let head = head.ok_or(StoreError::Gone { what: "the row set of the store" })?;
        if found.is_of(&head, revision) {
            Ok(CheckedCopy { rows, revision, record })
        } else {
            Err(StoreError::NotWhole { revision })
        }
    }
}

impl Index {
    fn add(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut found = |set: &[u8], digest: Sum| self.found.entry(set.to_vec()).or_default().add(digest);
        match table {
            "index v2" => {
                self.seals.open(key, value)?;
                found((self.sets.of)(key), self.seals.digest(value));
                self.rows += 1;
            }
            "events v1" => {
                let revision = u64::from_le_bytes(key.try_into().map_err(|_| StoreError::Damaged)?);
                found(SET_OF_EVENTS, self.seals.digest_of_event(revision, value));
            }
            "pins v1" => found(SET_OF_PINS, self.seals.digest_of_pin(key, value)),
            "sets v2" => {
                let state = self.seals.open_set(key, value).ok_or(StoreError::Damaged)?;
                self.kept.insert(key.to_vec(), state);
            }
            "meta v2" if key == b"head" => {
                self.head = Some(self.seals.open_head(value).ok_or(StoreError::Damaged)?);
            }
            // In clear, and believed by nobody; and what keeps programs of the first version away.
            "meta v2" | "index v1" => {}
            _ => return Err(StoreError::Damaged),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<CheckedCopy, StoreError> {
        let head = self.head.ok_or(StoreError::Gone { what: "the head of the index" })?;
        let sum =
            self.kept.iter().fold(Sum::default(), |sum, (set, state)| sum.plus(self.seals.digest_of_set(set, *state)));
        // Of a set without rows something may be kept, or nothing.
        self.found.retain(|_, state| state.rows > 0);
        self.kept.retain(|_, state| state.rows > 0);
        if sum != head.sum || self.found != self.kept {
            return Err(StoreError::NotWhole { revision: head.revision });
        }
        if head.upgrading {
            return Err(failed("the index is being upgraded: start its service once before it is copied"));
        }
        Ok(CheckedCopy { rows: self.rows, revision: head.revision, record: None })
    }
}

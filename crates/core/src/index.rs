//! The seam behind which an ordered index is durable: keys in byte order, changes decided inside the commit.

use std::ops::ControlFlow;

use async_trait::async_trait;

use crate::{AuditEvent, Revision, StoreError};

/// One change to the index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexWrite {
    /// Which key.
    pub key: Vec<u8>,
    /// Its new value, or `None` to remove it.
    pub value: Option<Vec<u8>>,
}

impl IndexWrite {
    /// Sets a value.
    #[must_use]
    pub fn put(key: Vec<u8>, value: Vec<u8>) -> Self {
        Self { key, value: Some(value) }
    }

    /// Removes a key, if it is there.
    #[must_use]
    pub fn remove(key: Vec<u8>) -> Self {
        Self { key, value: None }
    }
}

/// What a scan calls with each key and value.
pub type IndexVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A consistent view of the index.
pub trait IndexReader {
    /// The value of a key.
    ///
    /// # Errors
    /// [`StoreError::Forged`], [`StoreError::Failed`].
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits keys from `from` (included) on that begin with `prefix`, in byte order, until `visit` breaks or one does not begin so.
    ///
    /// # Errors
    /// [`StoreError::Forged`], [`StoreError::Failed`].
    fn scan(&self, from: &[u8], prefix: &[u8], visit: &mut IndexVisitor<'_>) -> Result<(), StoreError>;
}

/// What happens as one: these rows are written, and the log tells this event of it. Neither is without the other.
#[derive(Debug, Default)]
pub struct IndexChange {
    /// The rows.
    pub writes: Vec<IndexWrite>,
    /// What the log tells; `None`: nobody's change, such as clearing away what was deleted before.
    pub event: Option<AuditEvent>,
}

/// Decides what to write, having seen the state that the writes will be applied to.
pub type IndexDecision = Box<dyn FnOnce(&dyn IndexReader) -> Result<IndexChange, StoreError> + Send>;

/// Makes the event of what was found and is accepted.
pub type AcceptTold = Box<dyn FnOnce(&SetCheck) -> AuditEvent + Send>;

const NO_SETS: &str = "this index keeps no sets of its rows";

/// How rows fall into sets that are checked as one, by their names: a role says it of its rows.
#[derive(Clone, Copy, Debug)]
pub struct IndexSets {
    /// The set of a row: a part of its name.
    pub of: fn(&[u8]) -> &[u8],
    /// What names of rows of a set begin with.
    pub prefixes: fn(&[u8]) -> Vec<Vec<u8>>,
}

/// A set of rows, compared with what the commits have kept of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SetCheck {
    /// Rows that are there, and are ours.
    pub found: u64,
    /// Rows that there should be; `None` if nothing that could be believed was kept of the set.
    pub expected: Option<u64>,
    /// Whether they are the rows that the last commit left, no one missing, older or more.
    pub whole: bool,
    /// Rows that are not ours.
    pub forged: u64,
    /// The names of the first of them, at most [`SetCheck::NAMES_MAX`].
    pub names: Vec<Vec<u8>>,
}

impl SetCheck {
    /// Names of rows that a check tells.
    pub const NAMES_MAX: usize = 16;
}

/// The sets that an index has rows of, or keeps something of.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SetNames {
    /// In byte order.
    pub names: Vec<Vec<u8>>,
    /// Whether what is kept of them is what the last commit left.
    pub whole: bool,
}

/// An ordered, durable index.
#[async_trait]
pub trait Index: Send + Sync {
    /// A view of the state as it is now.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn snapshot(&self) -> Result<Box<dyn IndexReader + '_>, StoreError>;

    /// Runs `decide` alone, applies what it returns all or nothing, and returns when it is durable, with the revision behind it: a change
    /// with an event is one more. Changes are refused before they are decided while the log cannot be written and too many events wait
    /// for it.
    ///
    /// # Errors
    /// What `decide` returns, [`StoreError::Busy`], [`StoreError::Unrecorded`], [`StoreError::Unavailable`], [`StoreError::Failed`].
    async fn commit(&self, decide: IndexDecision) -> Result<Revision, StoreError>;

    /// The same for what has no event, which is never refused for want of the log.
    ///
    /// # Errors
    /// What `decide` returns, [`StoreError::Busy`], [`StoreError::Unavailable`], [`StoreError::Failed`]; also if there is an event.
    async fn keep(&self, decide: IndexDecision) -> Result<(), StoreError>;

    /// The sets that there are. Blocks for a moment for each.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also of an index that keeps none.
    fn sets(&self) -> Result<SetNames, StoreError> {
        Err(StoreError::Failed(NO_SETS.into()))
    }

    /// Whether all rows stand in the order of their names, and each is what is found by its name: or else a look at all rows says nothing of those
    /// that are asked for. Blocks as long as reading them takes, and nobody else.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn check_order(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Compares the rows of a set with what the commits have kept of it. Blocks as long as reading them takes, and nobody else.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also of an index that keeps no sets.
    fn check(&self, _set: &[u8]) -> Result<SetCheck, StoreError> {
        Err(StoreError::Failed(NO_SETS.into()))
    }

    /// Checks that are under way end soon, with an error, and no other begins: whoever asked for them is about to end.
    fn stop_checks(&self) {}

    /// Takes the rows of a set for what they are from now on, and removes those that are not ours; `told` makes the event of what was
    /// found. Other commits wait until the rows are read.
    ///
    /// # Errors
    /// As those of [`Index::commit`].
    async fn accept(&self, _set: Vec<u8>, _told: AcceptTold) -> Result<SetCheck, StoreError> {
        Err(StoreError::Failed(NO_SETS.into()))
    }
}

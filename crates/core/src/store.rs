//! The seam behind which state is durable, and the life of a change: rows and event in one transaction, then memory, then the answer.

use std::sync::{Arc, Weak};

use async_trait::async_trait;

use crate::{Action, AuditEvent, Gate, Pass, PermitMismatch, Resource, Spent};

/// Names a record: its kind and, within the kind, its id. Neither is visible in the engine's files.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RecordKey {
    /// What sort of record; a stable number, recorded for ever.
    pub kind: u8,
    /// Which one.
    pub id: Vec<u8>,
}

impl RecordKey {
    /// A record key.
    #[must_use]
    pub fn new(kind: u8, id: impl Into<Vec<u8>>) -> Self {
        Self { kind, id: id.into() }
    }
}

/// A stored record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its name.
    pub key: RecordKey,
    /// Its version: 1 when created, one more with each write.
    pub version: u64,
    /// Its content.
    pub value: Vec<u8>,
}

/// One change in a batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// Which record.
    pub key: RecordKey,
    /// The version it must have now; 0 if it must not exist.
    pub expected_version: u64,
    /// Its new content, or `None` to remove it.
    pub value: Option<Vec<u8>>,
}

/// Which change of a store: they are numbered from 1 without a gap. 0 is the store before any.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to happen as one: these rows are written, and the log tells this event. Neither is without the other.
#[derive(Debug)]
pub struct Change {
    /// The rows.
    pub writes: Vec<Write>,
    /// What the log tells of it.
    pub event: Decided,
}

/// The event of a change, and by whose leave the change is made. There is no other way to commit one:
/// ```compile_fail,E0277
/// # use holdfast_core::{AuditEvent, Change, Decided};
/// fn unjudged(event: AuditEvent) -> Change {
///     Change { writes: Vec::new(), event: event.into() }
/// }
/// ```
/// ```compile_fail,E0451
/// # use holdfast_core::{AuditEvent, Decided};
/// fn forged(event: AuditEvent, other: Decided) -> Decided {
///     Decided { event, ..other }
/// }
/// ```
/// ```compile_fail,E0063
/// # use holdfast_core::Change;
/// fn untold() -> Change {
///     Change { writes: Vec::new() }
/// }
/// ```
#[derive(Debug)]
#[must_use = "what was decided is committed, or was decided in vain"]
pub struct Decided {
    event: AuditEvent,
    leave: Leave,
}

#[derive(Debug)]
enum Leave {
    Asked { spent: Spent, pass: Pass },
    Itself(Itself),
}

/// Why an instance changes something that nobody asks for now. There is nothing else that it does by itself.
#[derive(Debug)]
pub enum Itself {
    /// The configuration says so when it starts: an instance is founded, or protected from now on.
    Configured,
    /// The time has come of something that a key says of itself (rotation, the end of its deletion window, the expiry of its material); judged by
    /// the rules for what the service does by itself.
    Due(Spent),
    /// The other side has answered: the second half of what somebody asked for, and was permitted to.
    Answered(Spent),
}

impl Decided {
    /// Somebody asked for it and was permitted to, and was looked at last under `pass`: a change that ends what he was allowed by waits until this
    /// one is in memory, or revokes the pass, and then this one is not made. Nobody waits for anything between the look and the commit: locks are taken before.
    pub fn asked(event: AuditEvent, spent: Spent, pass: Pass) -> Self {
        Self { event, leave: Leave::Asked { spent, pass } }
    }

    /// Nobody asks for it now.
    pub fn by_itself(event: AuditEvent, why: Itself) -> Self {
        Self { event, leave: Leave::Itself(why) }
    }

    /// What the log will tell.
    #[must_use]
    pub fn event(&self) -> &AuditEvent {
        &self.event
    }

    /// What was permitted. Nothing had to be for what the configuration says.
    #[must_use]
    pub fn spent(&self) -> Option<&Spent> {
        match &self.leave {
            Leave::Asked { spent, .. } | Leave::Itself(Itself::Due(spent) | Itself::Answered(spent)) => Some(spent),
            Leave::Itself(Itself::Configured) => None,
        }
    }

    /// Checks that what was permitted is one of `actions` on `resource`.
    ///
    /// # Errors
    /// [`PermitMismatch`] if it is anything else, or nothing had to be permitted.
    pub fn by_leave_of(&self, actions: &[Action], resource: &Resource) -> Result<(), PermitMismatch> {
        match self.spent() {
            Some(spent) if spent.is_for(actions, resource) => Ok(()),
            spent => Err(PermitMismatch::new(spent.map(Spent::action), resource)),
        }
    }

    /// For stores: what the log tells, and the pass to be held until the change is in memory.
    #[must_use]
    pub fn into_parts(self) -> (AuditEvent, Option<Pass>) {
        let pass = match self.leave {
            Leave::Asked { pass, .. } => Some(pass),
            Leave::Itself(_) => None,
        };
        (self.event, pass)
    }
}

/// Proof that a change happened: its rows and its event are durable, every projection of this process has applied it, and nothing goes on in it
/// that was looked at before.
///
/// Only [`Store::commit`] makes one:
/// ```compile_fail
/// let done = holdfast_core::Committed { revision: holdfast_core::Revision(1) };
/// ```
/// and whoever has one passes it on:
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use holdfast_core::{Change, Store, StoreError};
/// async fn untold(store: &dyn Store, change: Change) -> Result<(), StoreError> {
///     store.commit(change).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Eq, PartialEq)]
#[must_use = "whoever changed something says so in the answer, and writes no second event"]
pub struct Committed {
    revision: Revision,
}

impl Committed {
    /// Which change it was.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

/// A row as a commit left it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Changed {
    /// Which record.
    pub key: RecordKey,
    /// Its version now; 0 if it was removed.
    pub version: u64,
    /// Its content now; `None` if it was removed.
    pub value: Option<Vec<u8>>,
}

/// Memory that is a function of the store: an index of keys, the roles, the grants. It is changed by commits alone, in their order, and never
/// by the request that asks for a commit.
pub trait Projection: Send + Sync {
    /// Takes in what a commit wrote. Called on the thread that commits: it must be quick and wait for nobody.
    fn apply(&self, changes: &[Changed]);
}

/// What can go wrong in a store.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// A record is not at the version the batch expected. Nothing was written.
    #[error("the record was changed by somebody else")]
    Conflict,
    /// What allowed the change may have ended while it waited to be written. Nothing was written; it is to be decided anew.
    #[error("what the change rests on was changed before it could be written")]
    Overtaken,
    /// A record does not open: it was changed, swapped, or belongs to another instance.
    #[error("a stored record does not open: it was changed, swapped or restored from elsewhere")]
    Damaged,
    /// A row of the index was not written by this instance: planted, changed, or moved to another name.
    #[error("the row \"{}\" of the index was not written by this instance: it was planted, changed or moved", .row.escape_ascii())]
    Forged {
        /// Its name.
        row: Vec<u8>,
    },
    /// The rows are not those of the last commit. A store tells it when it is opened.
    #[error(
        "the store is not what its last commit (change {revision}) left: rows were changed, removed or put back; restore the store of one \
         moment, or set `accept_loss = true` in [audit] once to go on with these rows and record that"
    )]
    NotWhole {
        /// The change that it says it has come to.
        revision: Revision,
    },
    /// Something that the store had before is not there any more. A store tells it when it is opened.
    #[error(
        "{what} is gone, and was there before: the store was replaced or rows were removed; restore the store of one moment, or set \
         `accept_loss = true` in [audit] once to go on without and record that"
    )]
    Gone {
        /// What is missing.
        what: &'static str,
    },
    /// The rows do not stand in the order of their names.
    #[error(
        "the rows of the store do not stand in the order of their names: whoever asks for one would not see what is there; no program of ours \
         leaves such a file; restore the store of one moment"
    )]
    Disordered,
    /// The engine failed; whether the batch was written is not known.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The engine takes no changes now: its disk is full, or it failed and is not mended yet. Nothing was written.
    #[error("the store takes no changes: {0}")]
    Unavailable(String),
    /// Too many writes are queued. Nothing was written.
    #[error("the store has no capacity left")]
    Busy,
    /// The audit log cannot be written, and as many events wait for it as may. Nothing was written.
    #[error("the audit log cannot be written: {waiting} events of changes wait for it")]
    Unrecorded {
        /// How many wait.
        waiting: usize,
    },
}

/// Durable records. A returned commit is on disk.
#[async_trait]
pub trait Store: Send + Sync {
    /// One record.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`].
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>, StoreError>;

    /// Every record of a kind, in no order, given to `visit` one by one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`].
    async fn scan(&self, kind: u8, visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError>;

    /// Every record of some kinds as they are at one moment, in no order, given to `visit` one by one. Looks at all records that there are: for stores
    /// of a few.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`].
    async fn scan_at_once(&self, kinds: &[u8], visit: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError>;

    /// Writes all or nothing: rows, and the event of the change if it is one. Returns when it is durable, every projection has applied it, and, if
    /// it is a change, the [`Gate`] is clear of what was looked at before.
    /// For stores to implement: roles call [`Store::commit`] or [`Store::keep`].
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Overtaken`], [`StoreError::Busy`], [`StoreError::Unrecorded`], [`StoreError::Unavailable`],
    /// [`StoreError::Failed`].
    async fn write(&self, writes: Vec<Write>, event: Option<Decided>) -> Result<Revision, StoreError>;

    /// Makes a change: one revision more.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Overtaken`], [`StoreError::Busy`], [`StoreError::Unrecorded`], [`StoreError::Unavailable`],
    /// [`StoreError::Failed`].
    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let revision = self.write(change.writes, Some(change.event)).await?;
        Ok(Committed { revision })
    }

    /// Writes what is nobody's change and needs no event: how far the log has come, when a key was last used. The revision stays.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Busy`], [`StoreError::Unavailable`], [`StoreError::Failed`].
    async fn keep(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.write(writes, None).await.map(|_| ())
    }

    /// What every change of this store clears, and what is to be entered before memory is looked at for a use or an answer.
    fn gate(&self) -> &Arc<Gate>;

    /// The newest change that every projection has applied.
    fn revision(&self) -> Revision;

    /// The next change gets a number above this one: others were given already, to changes that this store does not have. Durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Unavailable`].
    async fn raise(&self, _to: Revision) -> Result<(), StoreError> {
        Err(StoreError::Failed("the changes of this store are not numbered from outside".into()))
    }

    /// From now on `projection` is told of every commit, in order, before whoever waits for the commit. It has read the store before, and nobody
    /// commits meanwhile: roles are opened before they serve.
    fn watch(&self, projection: Weak<dyn Projection>);
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::Mutex,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{Action, Decision, Intent, Policy, Principal, Resource, Timestamp, authorize};

    /// Remembers what is written, and by which events.
    #[derive(Default)]
    struct Rows(Mutex<Vec<(usize, Option<&'static str>, bool)>>, Arc<Gate>);

    #[async_trait]
    impl Store for Rows {
        async fn read(&self, _: &RecordKey) -> Result<Option<Record>, StoreError> {
            Ok(None)
        }

        async fn scan(&self, _: u8, _: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
            Ok(())
        }

        async fn scan_at_once(&self, _: &[u8], _: &mut (dyn FnMut(Record) + Send)) -> Result<(), StoreError> {
            Ok(())
        }

        async fn write(&self, writes: Vec<Write>, event: Option<Decided>) -> Result<Revision, StoreError> {
            let (event, pass) = event.map(Decided::into_parts).unzip();
            let told = event.map(|event| event.operation);
            self.0.lock().unwrap().push((writes.len(), told, pass.flatten().is_some()));
            Ok(Revision(7))
        }

        fn gate(&self) -> &Arc<Gate> {
            &self.1
        }

        fn revision(&self) -> Revision {
            Revision(7)
        }

        fn watch(&self, _: Weak<dyn Projection>) {}
    }

    struct Everything;

    impl Policy for Everything {
        fn decide(&self, _: &Principal, _: &Intent) -> Decision {
            Decision::Allow("test".into())
        }
    }

    fn spent() -> Spent {
        let intent = Intent { action: Action::KeyCreate, resource: Resource::Keys };
        let permit = authorize(&Everything, &Principal::system(), intent).unwrap();
        permit.spend(Action::KeyCreate, &Resource::Keys).unwrap()
    }

    fn event() -> AuditEvent {
        AuditEvent::allowed(Timestamp::from_unix_secs(0), "Do", "")
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("nothing is waited for here"),
        }
    }

    #[test]
    fn a_commit_has_its_event_and_holds_the_pass_and_what_is_kept_has_none() {
        let rows = Rows::default();
        let write = || Write { key: RecordKey::new(1, "a"), expected_version: 0, value: None };
        let asked = Decided::asked(event(), spent(), rows.gate().enter());
        let committed = now(rows.commit(Change { writes: vec![write()], event: asked })).unwrap();
        assert_eq!(committed.revision(), Revision(7));
        let configured = Decided::by_itself(event(), Itself::Configured);
        drop(now(rows.commit(Change { writes: Vec::new(), event: configured })).unwrap());
        now(rows.keep(vec![write()])).unwrap();
        assert_eq!(*rows.0.lock().unwrap(), [(1, Some("Do"), true), (0, Some("Do"), false), (1, None, false)]);
    }

    #[test]
    fn what_is_decided_says_what_was_permitted() {
        let is_spent = |decided: &Decided| decided.spent().is_some_and(|spent| spent.action() == Action::KeyCreate);
        assert!(is_spent(&Decided::asked(event(), spent(), Gate::new().enter())));
        assert!(is_spent(&Decided::by_itself(event(), Itself::Due(spent()))));
        assert!(is_spent(&Decided::by_itself(event(), Itself::Answered(spent()))));
        let configured = Decided::by_itself(event(), Itself::Configured);
        assert!(configured.spent().is_none() && configured.event().operation == "Do");
    }
}

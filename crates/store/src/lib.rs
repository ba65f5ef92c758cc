//! Durable state.
//!
//! An [`Engine`] keeps opaque rows; it stands outside the trust boundary. [`SealedStore`] lays the [`holdfast_core::Store`]
//! seam over any engine: each record encrypted under the instance's database key, bound to its own identity, its name
//! an HMAC. The audit log ([`audit`]) is separate: append-only files, hash-chained. For storage there are an ordered index
//! ([`EmbeddedIndex`]) and bulk bytes ([`FileBlobs`], [`CloudBlobs`]): they hold what their role has encrypted.

pub mod audit;
pub mod backup;
mod blobs;
mod cloud;
mod condition;
mod copies;
mod database;
mod engine;
mod files;
mod gather;
mod group;
mod index;
mod order;
mod outbox;
mod row_set;
mod sealed;
mod slots;
#[cfg(test)]
mod twins;

pub use blobs::FileBlobs;
pub use cloud::CloudBlobs;
pub use condition::Condition;
pub use copies::{CheckedCopy, Copies, Copy, CopyCheck, CopyKeys, CopyOf, CopyVisitor, CopyWriter};
pub use engine::{
    Applied, Batch, EmbeddedEngine, Engine, EventRow, FileStamp, MemoryEngine, Row, RowName, RowVisitor, RowWrite,
    SharedEngine, StateId, state_of,
};
pub use files::{open_in_place, open_regular, read_regular, write_regular};
pub use index::{EmbeddedIndex, IndexCopy, IndexOpening, IndexOwner, MemoryIndex};
pub use outbox::{EVENTS_WAITING_MAX, Outbox};
pub use row_set::{Fold, RowSet};
pub use sealed::SealedStore;
pub use slots::{SlotFile, SlotLayout, SlotRecord};

//! Ordered indexes: one redb file with group commit, and the twin in memory.

mod embedded;
mod memory;
pub(crate) mod seals;
mod verified;

pub use embedded::{EmbeddedIndex, IndexCopy, IndexOpening, IndexOwner};
pub(crate) use embedded::{SET_OF_EVENTS, SET_OF_PINS};
pub use memory::MemoryIndex;

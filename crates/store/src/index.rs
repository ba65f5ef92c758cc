//! Ordered indexes: one redb file with group commit, and the twin in memory.

mod embedded;
mod memory;
mod seals;
mod verified;

pub use embedded::{EmbeddedIndex, IndexCopy, IndexOpening, IndexOwner};
pub use memory::MemoryIndex;

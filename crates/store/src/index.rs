//! Ordered indexes: one redb file with group commit, and the twin in memory.

mod embedded;
mod memory;

pub use embedded::{EmbeddedIndex, IndexCopy, IndexOwner};
pub use memory::MemoryIndex;

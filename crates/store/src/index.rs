//! Ordered indexes: one redb file with group commit, and the twin in memory.

mod embedded;
mod memory;

pub use embedded::EmbeddedIndex;
pub use memory::MemoryIndex;

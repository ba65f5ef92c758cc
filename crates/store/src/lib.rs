//! Durable state.
//!
//! An [`Engine`] keeps opaque rows; it stands outside the trust boundary. [`SealedStore`] lays the [`holdfast_core::Store`]
//! seam over any engine: each record encrypted under the instance's database key, bound to its own identity, its name
//! an HMAC. The audit log ([`audit`]) is separate: append-only files, hash-chained.

pub mod audit;
mod engine;
mod sealed;

pub use engine::{EmbeddedEngine, Engine, MemoryEngine, Row, RowName, RowWrite};
pub use sealed::SealedStore;

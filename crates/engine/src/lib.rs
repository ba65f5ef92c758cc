//! The software HSM.
//!
//! A [`Partition`] is a customer's isolated set of keys. It holds one secret, the masking key, and no keys: a key lies
//! outside, masked ([`blob`], `docs/formats/masked-key.md`), and is opened for use. The crate is pure and synchronous:
//! time and randomness are arguments, and the same arguments give the same answer (save for the randomness
//! inside an algorithm, which aws-lc-rs draws itself).

pub mod blob;
mod partition;
mod perform;

pub use blob::BlobError;
pub use partition::{Partition, PartitionPolicy};
pub use perform::{Keyed, PerformRandom, Work};

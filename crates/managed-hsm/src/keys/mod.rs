//! The keys of the instance: an index in memory, records in the store, hot keys open.
//!
//! A change goes decide -> commit -> apply: the entry is worked out under the name's lock, committed with its masked
//! blobs in one batch, and only then put into the index. Readers take the entry as it is at that moment.

mod entry;
mod record;
mod ring;

pub(crate) use entry::{Deletion, KeyEntry, RotationPolicy, VersionEntry};
pub(crate) use record::{StoredKey, policy_digest};
pub(crate) use ring::{Draft, KeyRing, KeyRingLimits, Located, NameLock};

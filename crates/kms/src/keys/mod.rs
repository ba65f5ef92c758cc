//! Keys: what is kept of one, how it is stored, and all of them together.

mod entry;
mod record;
mod ring;
mod shared;

pub(crate) use entry::{
    KeyEntry, KeyRef, KeyState, Material, MaterialState, MultiRegion, Origin, Reference, Rotation, RotationKind,
};
pub(crate) use record::StoredKey;
pub(crate) use ring::{Draft, KeyRing, KeyRingLimits};

//! Kinds of records in the store, for ever.

use holdfast_core::{KeyName, KeyVersionId, RecordKey};

/// A key: its versions, attributes, rotation policy. Id: folded name.
pub(crate) const KEY: u8 = 1;
/// A masked blob. Id: key version.
const BLOB: u8 = 2;
/// A custom role definition. Id: GUID.
pub(crate) const ROLE_DEFINITION: u8 = 3;
/// A role assignment. Id: GUID.
pub(crate) const ROLE_ASSIGNMENT: u8 = 4;
/// A setting. Id: its name.
pub(crate) const SETTING: u8 = 5;
/// What was fixed when the instance was made. Id: empty.
pub(crate) const INSTANCE: u8 = 6;

pub(crate) fn key(name: &KeyName) -> RecordKey {
    RecordKey::new(KEY, name.folded())
}

pub(crate) fn blob(version: KeyVersionId) -> RecordKey {
    RecordKey::new(BLOB, version.as_bytes().as_slice())
}

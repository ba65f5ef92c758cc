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

/// Which key a record is of.
pub(crate) fn name_of(record: &RecordKey) -> Option<KeyName> {
    KeyName::parse(std::str::from_utf8(&record.id).ok()?).ok()
}

/// Which version a record is the blob of, if it is one.
pub(crate) fn blob_of(record: &RecordKey) -> Option<KeyVersionId> {
    let id = <[u8; 16]>::try_from(record.id.as_slice()).ok().filter(|_| record.kind == BLOB);
    id.map(KeyVersionId::from_bytes)
}

pub(crate) fn blob(version: KeyVersionId) -> RecordKey {
    RecordKey::new(BLOB, version.as_bytes().as_slice())
}

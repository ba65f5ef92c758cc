//! Kinds of records in the store, for ever.

use holdfast_core::{KeyVersionId, RecordKey};

use crate::{keys::KeyRef, names::KeyId};

/// A key in one region. Id: region, a slash, the key's id.
pub(crate) const KEY: u8 = 1;
/// A masked blob. Id: its version in the partition.
const MATERIAL: u8 = 2;
/// An alias. Id: account, region and name, with slashes.
pub(crate) const ALIAS: u8 = 3;
/// A grant. Id: its own, 32 bytes.
pub(crate) const GRANT: u8 = 4;
/// A custom key store. Id: its own.
pub(crate) const KEY_STORE: u8 = 5;
/// The last use of a key. Id: region, a slash, the key's id.
pub(crate) const LAST_USE: u8 = 6;

pub(crate) fn key(key: &KeyRef) -> RecordKey {
    RecordKey::new(KEY, format!("{}/{}", key.region, key.id))
}

/// Which key a record is of.
pub(crate) fn key_of(record: &RecordKey) -> Option<KeyRef> {
    let (region, id) = std::str::from_utf8(&record.id).ok()?.rsplit_once('/')?;
    Some(KeyRef { region: region.into(), id: KeyId::parse(id)? })
}

/// Which material a record is of, if it is one.
pub(crate) fn material_of(record: &RecordKey) -> Option<KeyVersionId> {
    let id = <[u8; 16]>::try_from(record.id.as_slice()).ok().filter(|_| record.kind == MATERIAL);
    id.map(KeyVersionId::from_bytes)
}

pub(crate) fn material(version: KeyVersionId) -> RecordKey {
    RecordKey::new(MATERIAL, version.as_bytes().as_slice())
}

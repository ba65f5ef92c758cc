//! One key as the index holds it. About 400 bytes for a key with one version; public and secret parts stay in the store.

use holdfast_core::{KeyAttributes, KeyName, KeyVersion, KeyVersionId, Timestamp};

use crate::wire::{LifetimeAction, ReleasePolicy, Tags};

/// A key with all its versions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyEntry {
    pub name: KeyName,
    /// Version of the record in the store; 0 before it is first written.
    pub record_version: u64,
    /// Oldest first; the last one is current. Never empty once stored.
    pub versions: Vec<VersionEntry>,
    pub rotation: Option<Box<RotationPolicy>>,
    pub deletion: Option<Deletion>,
}

/// One version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VersionEntry {
    pub id: KeyVersionId,
    pub created: Timestamp,
    pub updated: Timestamp,
    pub attributes: KeyAttributes,
    pub tags: Option<Box<Tags>>,
    pub release_policy: Option<Box<ReleasePolicy>>,
    /// Version of the record that holds the masked blob.
    pub blob_version: u64,
}

/// When a key was soft-deleted, and when it goes for good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Deletion {
    pub deleted: Timestamp,
    pub purge: Timestamp,
}

/// When a key gets a new version by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RotationPolicy {
    pub actions: Vec<LifetimeAction>,
    /// ISO 8601 period: how long each new version is valid.
    pub expiry_time: Option<String>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

impl KeyEntry {
    pub(crate) fn current(&self) -> Option<&VersionEntry> {
        self.versions.last()
    }

    /// What a masked blob of `version` is bound to.
    pub(crate) fn bound(&self, version: &VersionEntry) -> KeyVersion {
        KeyVersion { name: self.name.clone(), id: version.id, attributes: version.attributes.clone() }
    }
}

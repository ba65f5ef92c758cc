//! Bundles and items: how a key looks outside.

use holdfast_crypto::PublicKey;

use super::Call;
use crate::{
    ManagedHsm,
    error::ApiError,
    keys::{KeyEntry, VersionEntry},
    wire::{AttributesOut, DeletionOut, JwkOut, KeyBundle, KeyItem},
};

impl ManagedHsm {
    fn attributes(&self, version: &VersionEntry) -> AttributesOut {
        let attributes = &version.attributes;
        AttributesOut {
            enabled: attributes.enabled,
            nbf: attributes.not_before.map(|moment| moment.unix_secs()),
            exp: attributes.expires.map(|moment| moment.unix_secs()),
            created: version.created.unix_secs(),
            updated: version.updated.unix_secs(),
            exportable: attributes.exportable,
            recoverable_days: self.retention.days,
            recovery_level: self.retention.recovery_level(),
        }
    }
}

fn deletion(base_url: &str, entry: &KeyEntry) -> Option<DeletionOut> {
    entry.deletion.map(|deletion| DeletionOut {
        recovery_id: format!("{base_url}/deletedkeys/{}", entry.name),
        deleted_date: deletion.deleted.unix_secs(),
        scheduled_purge_date: deletion.purge.unix_secs(),
    })
}

/// `https://HOST/keys/NAME/VERSION`
pub(super) fn key_id(base_url: &str, entry: &KeyEntry, version: &VersionEntry) -> String {
    format!("{base_url}/keys/{}/{}", entry.name, version.id)
}

impl Call<'_> {
    pub(super) fn bundle(&self, entry: &KeyEntry, version: &VersionEntry, public: &PublicKey) -> KeyBundle {
        KeyBundle {
            key: JwkOut::new(key_id(self.base_url, entry, version), version.attributes.operations, public),
            attributes: self.hsm.attributes(version),
            tags: version.tags.as_deref().cloned(),
            release_policy: version.release_policy.as_deref().cloned(),
            deletion: deletion(self.base_url, entry),
        }
    }

    /// The bundle of the current version.
    pub(super) async fn current_bundle(&self, entry: &KeyEntry) -> Result<KeyBundle, ApiError> {
        let current = entry.current().ok_or_else(|| ApiError::internal("a key without versions"))?;
        let public = self.hsm.keys.public(entry, current).await?;
        Ok(self.bundle(entry, current, &public))
    }

    /// An item of a list of keys: its id has no version.
    pub(super) fn item(&self, entry: &KeyEntry) -> Option<KeyItem> {
        let current = entry.current()?;
        Some(KeyItem {
            kid: format!("{}/keys/{}", self.base_url, entry.name),
            attributes: self.hsm.attributes(current),
            tags: current.tags.as_deref().cloned(),
            deletion: deletion(self.base_url, entry),
        })
    }

    /// An item of a list of versions.
    pub(super) fn version_item(&self, entry: &KeyEntry, version: &VersionEntry) -> KeyItem {
        KeyItem {
            kid: key_id(self.base_url, entry, version),
            attributes: self.hsm.attributes(version),
            tags: version.tags.as_deref().cloned(),
            deletion: None,
        }
    }
}

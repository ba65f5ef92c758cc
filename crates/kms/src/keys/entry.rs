//! One key as the index holds it.

use std::{collections::BTreeMap, sync::Arc};

use holdfast_core::{KeyAttributes, KeyName, KeyVersion, KeyVersionId, Resource, Timestamp};
use holdfast_crypto::KeySpec;

use crate::{names::KeyId, policy::PolicyDocument, spec::KeyUsage};

/// Region and id: the same id in another region is another key (a replica).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct KeyRef {
    pub region: Arc<str>,
    pub id: KeyId,
}

impl KeyRef {
    /// `None`: no key has such an id.
    pub(crate) fn resource(&self) -> Option<Resource> {
        self.id.resource()
    }
}

/// Where the key material comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// A Managed HSM, as a custom key store.
    AwsCloudHsm,
    /// Made here.
    AwsKms,
    /// Imported.
    External,
    /// An external key store.
    ExternalKeyStore,
}

impl Origin {
    pub(crate) const ALL: [Self; 4] = [Self::AwsKms, Self::External, Self::AwsCloudHsm, Self::ExternalKeyStore];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AwsCloudHsm => "AWS_CLOUDHSM",
            Self::AwsKms => "AWS_KMS",
            Self::External => "EXTERNAL",
            Self::ExternalKeyStore => "EXTERNAL_KEY_STORE",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| origin.name() == name)
    }
}

/// How usable a key is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyState {
    Disabled,
    Enabled,
    PendingDeletion,
    PendingImport,
    PendingReplicaDeletion,
    /// Its custom key store was disconnected.
    Unavailable,
}

impl KeyState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::Enabled => "Enabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::PendingImport => "PendingImport",
            Self::PendingReplicaDeletion => "PendingReplicaDeletion",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// How a material came to be the current one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RotationKind {
    Automatic,
    OnDemand,
}

impl RotationKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Automatic => "AUTOMATIC",
            Self::OnDemand => "ON_DEMAND",
        }
    }
}

/// What a material is for now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MaterialState {
    /// It encrypts.
    Current,
    /// It decrypts what it encrypted.
    NonCurrent,
    /// Imported, and becomes current by a rotation on demand.
    PendingRotation,
}

impl MaterialState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Current => "CURRENT",
            Self::NonCurrent => "NON_CURRENT",
            Self::PendingRotation => "PENDING_ROTATION",
        }
    }
}

/// One material of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Material {
    /// Its version in the partition; ciphertexts name it.
    pub id: KeyVersionId,
    /// Its id on the wire: the same for the same bytes under the same key.
    pub check: [u8; 32],
    pub created: Timestamp,
    pub rotated: Option<(Timestamp, RotationKind)>,
    pub state: MaterialState,
    /// Version of the record that holds the masked blob; `None` if imported material was deleted or has expired.
    pub blob_version: Option<u64>,
    pub expires: Option<Timestamp>,
    pub description: Option<String>,
}

impl Material {
    pub(crate) fn is_present(&self, now: Timestamp) -> bool {
        self.blob_version.is_some() && self.expires.is_none_or(|expires| now < expires)
    }

    /// `KeyMaterialId`
    pub(crate) fn wire_id(&self) -> String {
        holdfast_wire::hex::hex(&self.check)
    }
}

/// Automatic rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rotation {
    pub period_days: u32,
    pub next: Timestamp,
}

/// A key that lies in a custom key store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Reference {
    pub store: String,
    /// Its name there.
    pub key: String,
}

/// A key that is in several regions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MultiRegion {
    pub primary: Arc<str>,
    pub replicas: Vec<Arc<str>>,
}

/// A key.
#[derive(Clone, Debug)]
pub(crate) struct KeyEntry {
    pub id: KeyId,
    pub name: KeyName,
    pub region: Arc<str>,
    pub account: Arc<str>,
    pub arn: String,
    /// Version of the record in the store; 0 before it is first written.
    pub record_version: u64,
    pub created: Timestamp,
    pub description: String,
    pub usage: KeyUsage,
    pub spec: KeySpec,
    pub origin: Origin,
    pub enabled: bool,
    /// When it goes for good.
    pub deletion: Option<Timestamp>,
    /// A primary that goes once its replicas are gone, and how many days then.
    pub deletion_after_replicas: Option<u32>,
    pub policy: Arc<PolicyDocument>,
    pub tags: BTreeMap<String, String>,
    pub rotation: Option<Rotation>,
    pub rotations_on_demand: u32,
    /// Oldest first.
    pub materials: Vec<Material>,
    pub reference: Option<Reference>,
    pub multi_region: Option<MultiRegion>,
}

impl KeyEntry {
    pub(crate) fn key_ref(&self) -> KeyRef {
        KeyRef { region: Arc::clone(&self.region), id: self.id }
    }

    pub(crate) fn resource(&self) -> Resource {
        Resource::Key(self.name.clone())
    }

    /// `store_connected`: whether the custom key store that it lies in is not disconnected.
    pub(crate) fn state(&self, now: Timestamp, store_connected: bool) -> KeyState {
        if self.deletion.is_some() {
            KeyState::PendingDeletion
        } else if self.deletion_after_replicas.is_some() {
            KeyState::PendingReplicaDeletion
        } else if self.lacks_material(now) {
            KeyState::PendingImport
        } else if !store_connected {
            KeyState::Unavailable
        } else if self.enabled {
            KeyState::Enabled
        } else {
            KeyState::Disabled
        }
    }

    /// Whether what it allows may end without a change: its policy looks at the hour, or its material expires.
    pub(crate) fn ends_by_itself(&self) -> bool {
        self.policy.looks_at_time() || self.materials.iter().any(|material| material.expires.is_some())
    }

    /// Whether material that was imported, or is to be, is not there.
    fn lacks_material(&self, now: Timestamp) -> bool {
        self.origin == Origin::External
            && (self.current().is_none()
                || self.materials.iter().any(|m| m.state != MaterialState::PendingRotation && !m.is_present(now)))
    }

    pub(crate) fn current(&self) -> Option<&Material> {
        self.materials.iter().rfind(|material| material.state == MaterialState::Current)
    }

    pub(crate) fn material(&self, id: KeyVersionId) -> Option<&Material> {
        self.materials.iter().rfind(|material| material.id == id)
    }

    pub(crate) fn is_symmetric_encryption(&self) -> bool {
        self.spec == crate::spec::SYMMETRIC_DEFAULT
    }

    /// Automatic rotation is for keys made here that encrypt symmetrically.
    pub(crate) fn can_rotate(&self) -> bool {
        self.is_symmetric_encryption() && self.origin == Origin::AwsKms
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.multi_region.as_ref().is_some_and(|multi| multi.primary == self.region)
    }

    /// What a masked blob of this material is bound to. State is the record's affair, so that it does not change with it.
    pub(crate) fn bound(&self, material: KeyVersionId) -> KeyVersion {
        bound(&self.name, self.spec, self.usage, material)
    }
}

pub(crate) fn bound(name: &KeyName, spec: KeySpec, usage: KeyUsage, id: KeyVersionId) -> KeyVersion {
    KeyVersion {
        name: name.clone(),
        id,
        attributes: KeyAttributes {
            spec,
            operations: usage.operations(),
            enabled: true,
            exportable: false,
            not_before: None,
            expires: None,
            release_policy_sha256: None,
        },
    }
}

//! Stored form of a key (`docs/formats/managed-hsm-records.md`). JSON inside encrypted records; a version in each.

use holdfast_core::{KeyAttributes, KeyName, KeyOperations, KeyVersionId, Timestamp};
use holdfast_crypto::{AesSize, Curve, KeySpec, RsaSize, kdf};
use serde::{Deserialize, Serialize};

use super::{Deletion, KeyEntry, RotationPolicy, VersionEntry};
use crate::wire::{self, LifetimeAction, ReleasePolicy, Tags};

const FORMAT: u8 = 1;

/// A record that cannot be read: written by a newer version of this program, or damaged before it was encrypted.
#[derive(Debug, thiserror::Error)]
#[error("a key record cannot be read: {0}")]
pub(crate) struct RecordError(pub String);

#[derive(Deserialize, Serialize)]
pub(crate) struct StoredKey {
    v: u8,
    name: String,
    pub(crate) versions: Vec<StoredVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation: Option<StoredRotation>,
    /// Milliseconds since the epoch: deleted, purge.
    #[serde(skip_serializing_if = "Option::is_none")]
    deletion: Option<(i64, i64)>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct StoredVersion {
    pub(crate) id: String,
    created: i64,
    updated: i64,
    spec: String,
    ops: u16,
    enabled: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    exportable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Box<Tags>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release_policy: Option<Box<ReleasePolicy>>,
    blob: u64,
}

#[derive(Deserialize, Serialize)]
struct StoredRotation {
    actions: Vec<LifetimeAction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry: Option<String>,
    created: i64,
    updated: i64,
}

impl StoredKey {
    pub(crate) fn from_entry(entry: &KeyEntry) -> Self {
        let rotation = entry.rotation.as_ref().map(|policy| StoredRotation {
            actions: policy.actions.clone(),
            expiry: policy.expiry_time.clone(),
            created: policy.created.unix_millis(),
            updated: policy.updated.unix_millis(),
        });
        Self {
            v: FORMAT,
            name: entry.name.as_str().to_owned(),
            versions: entry.versions.iter().map(StoredVersion::from_entry).collect(),
            rotation,
            deletion: entry.deletion.map(|d| (d.deleted.unix_millis(), d.purge.unix_millis())),
        }
    }

    /// Back to the entry it was made of, at this version of its record.
    pub(crate) fn into_entry(self, record_version: u64) -> Result<KeyEntry, RecordError> {
        if self.v != FORMAT {
            return Err(RecordError(format!("format {} is not known", self.v)));
        }
        let name = KeyName::parse(&self.name).map_err(|error| RecordError(error.to_string()))?;
        // As long as they are, not longer: most keys have one, and there are many keys.
        let mut versions = Vec::with_capacity(self.versions.len());
        for version in self.versions {
            versions.push(version.into_entry()?);
        }
        if versions.is_empty() {
            return Err(RecordError("a key without versions".into()));
        }
        let rotation = self.rotation.map(|stored| {
            Box::new(RotationPolicy {
                actions: stored.actions,
                expiry_time: stored.expiry,
                created: Timestamp::from_unix_millis(stored.created),
                updated: Timestamp::from_unix_millis(stored.updated),
            })
        });
        let deletion = self.deletion.map(|(deleted, purge)| Deletion {
            deleted: Timestamp::from_unix_millis(deleted),
            purge: Timestamp::from_unix_millis(purge),
        });
        Ok(KeyEntry { name, record_version, versions, rotation, deletion })
    }
}

impl StoredVersion {
    fn from_entry(version: &VersionEntry) -> Self {
        let attributes = &version.attributes;
        Self {
            id: version.id.to_string(),
            created: version.created.unix_millis(),
            updated: version.updated.unix_millis(),
            spec: encode_spec(attributes.spec),
            ops: attributes.operations.bits(),
            enabled: attributes.enabled,
            exportable: attributes.exportable,
            nbf: attributes.not_before.map(Timestamp::unix_millis),
            exp: attributes.expires.map(Timestamp::unix_millis),
            tags: version.tags.clone(),
            release_policy: version.release_policy.clone(),
            blob: version.blob_version,
        }
    }

    fn into_entry(self) -> Result<VersionEntry, RecordError> {
        let unreadable = |what: &str| RecordError(format!("{what} of version {}", self.id));
        let attributes = KeyAttributes {
            spec: decode_spec(&self.spec).ok_or_else(|| unreadable("spec"))?,
            operations: KeyOperations::from_bits(self.ops).ok_or_else(|| unreadable("operations"))?,
            enabled: self.enabled,
            exportable: self.exportable,
            not_before: self.nbf.map(Timestamp::from_unix_millis),
            expires: self.exp.map(Timestamp::from_unix_millis),
            release_policy_sha256: self.release_policy.as_deref().map(policy_digest),
        };
        Ok(VersionEntry {
            id: KeyVersionId::parse(&self.id).ok_or_else(|| unreadable("id"))?,
            created: Timestamp::from_unix_millis(self.created),
            updated: Timestamp::from_unix_millis(self.updated),
            attributes,
            tags: self.tags,
            release_policy: self.release_policy,
            blob_version: self.blob,
        })
    }
}

/// What a masked blob is bound to of a release policy.
pub(crate) fn policy_digest(policy: &ReleasePolicy) -> [u8; 32] {
    let content_type = policy.content_type.as_deref().unwrap_or_default();
    kdf::sha256(&[&[u8::from(policy.immutable)], content_type.as_bytes(), &[0], policy.data.as_bytes()])
}

fn encode_spec(spec: KeySpec) -> String {
    match spec {
        KeySpec::Aes(size) => format!("AES-{}", size.bits()),
        KeySpec::Ec(curve) => wire::curve_name(curve).to_owned(),
        // Kinds that this dialect does not make; no reader knows these names.
        KeySpec::Ed25519 | KeySpec::Hmac(_) | KeySpec::MlDsa(_) | KeySpec::MlKem(_) => format!("{spec:?}"),
        KeySpec::Rsa { size, exponent } => format!("RSA-{}-{exponent}", size.bits()),
    }
}

fn decode_spec(text: &str) -> Option<KeySpec> {
    if let Some(bits) = text.strip_prefix("AES-") {
        return AesSize::from_bits(bits.parse().ok()?).map(KeySpec::Aes);
    }
    if let Some((bits, exponent)) = text.strip_prefix("RSA-").and_then(|rest| rest.split_once('-')) {
        let size = RsaSize::from_bits(bits.parse().ok()?)?;
        return Some(KeySpec::Rsa { size, exponent: exponent.parse().ok()? });
    }
    Curve::ALL.into_iter().find(|curve| wire::curve_name(*curve) == text).map(KeySpec::Ec)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by format 1; must be readable for ever.
    const GOLDEN: &str = r#"{"v":1,"name":"Kek","versions":[{"id":"000102030405060708090a0b0c0d0e0f","created":1700000000123,"updated":1700000001000,"spec":"RSA-2048-65537","ops":325,"enabled":true,"exp":1800000000000,"tags":{"a":"b"},"blob":1},{"id":"101112131415161718191a1b1c1d1e1f","created":1700000002000,"updated":1700000002000,"spec":"P-256K","ops":160,"enabled":false,"blob":3}],"rotation":{"actions":[{"trigger":{"timeAfterCreate":"P90D"},"action":{"type":"Rotate"}}],"expiry":"P2Y","created":1,"updated":2},"deletion":[1700000003000,1700600003000]}"#;

    #[test]
    fn golden_record_reads_and_writes_alike() {
        let stored: StoredKey = serde_json::from_str(GOLDEN).unwrap();
        let entry = stored.into_entry(7).unwrap();
        assert_eq!((entry.name.as_str(), entry.versions.len(), entry.record_version), ("Kek", 2, 7));
        assert_eq!(entry.current().unwrap().attributes.spec, KeySpec::Ec(Curve::P256K));
        assert_eq!(serde_json::to_string(&StoredKey::from_entry(&entry)).unwrap(), GOLDEN);
    }

    #[test]
    fn unknown_formats_are_refused() {
        for (from, to) in [(r#""v":1"#, r#""v":2"#), ("P-256K", "P-257"), (r#""ops":160"#, r#""ops":65535"#)] {
            let stored: StoredKey = serde_json::from_str(&GOLDEN.replace(from, to)).unwrap();
            assert!(stored.into_entry(1).is_err(), "{to}");
        }
    }
}

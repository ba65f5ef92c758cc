//! Stored form of a key (`docs/formats/kms-records.md`). JSON inside encrypted records; a version in each.

use std::collections::BTreeMap;

use holdfast_core::{KeyVersionId, Timestamp};
use holdfast_wire::hex::{hex, unhex};
use serde::{Deserialize, Serialize};

use super::{
    KeyEntry, Material, MaterialState, MultiRegion, Origin, Reference, Rotation, RotationKind, shared::Shared,
};
use crate::{
    names::{KeyId, key_arn},
    spec::{KeyUsage, parse_spec, spec_name},
};

const FORMAT: u8 = 1;

#[derive(Deserialize, Serialize)]
pub(crate) struct StoredKey {
    v: u8,
    id: String,
    region: String,
    account: String,
    created: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    usage: String,
    spec: String,
    origin: String,
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    deletion: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deletion_after_replicas: Option<u32>,
    policy: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    /// Days, and the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation: Option<(u32, i64)>,
    #[serde(default, skip_serializing_if = "is_zero")]
    rotations_on_demand: u32,
    materials: Vec<StoredMaterial>,
    /// Store, and name of the key there.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<(String, String)>,
    /// Region of the primary, regions of the replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    multi_region: Option<(String, Vec<String>)>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Deserialize, Serialize)]
struct StoredMaterial {
    id: String,
    check: String,
    created: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotated: Option<(i64, String)>,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    blob: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
}

impl StoredKey {
    pub(crate) fn from_entry(entry: &KeyEntry) -> Self {
        Self {
            v: FORMAT,
            id: entry.id.to_string(),
            region: entry.region.to_string(),
            account: entry.account.to_string(),
            created: entry.created.unix_millis(),
            description: entry.description.clone(),
            usage: entry.usage.name().to_owned(),
            spec: spec_name(entry.spec).to_owned(),
            origin: entry.origin.name().to_owned(),
            enabled: entry.enabled,
            deletion: entry.deletion.map(Timestamp::unix_millis),
            deletion_after_replicas: entry.deletion_after_replicas,
            policy: entry.policy.text().to_owned(),
            tags: entry.tags.clone(),
            rotation: entry.rotation.map(|rotation| (rotation.period_days, rotation.next.unix_millis())),
            rotations_on_demand: entry.rotations_on_demand,
            materials: entry.materials.iter().map(StoredMaterial::from_material).collect(),
            reference: entry.reference.as_ref().map(|reference| (reference.store.clone(), reference.key.clone())),
            multi_region: entry
                .multi_region
                .as_ref()
                .map(|multi| (multi.primary.to_string(), multi.replicas.iter().map(ToString::to_string).collect())),
        }
    }

    /// Back to the entry it was made of, at this version of its record. `None` if it cannot be read.
    /// What other keys have, too, is shared with them.
    pub(crate) fn into_entry(self, record_version: u64, shared: &mut Shared) -> Result<KeyEntry, String> {
        let unreadable = |what: &str| format!("the {what} of key {} cannot be read", self.id);
        if self.v != FORMAT {
            return Err(format!("key {}: format {} is not known", self.id, self.v));
        }
        let id = KeyId::parse(&self.id).ok_or_else(|| unreadable("id"))?;
        let policy = shared.policy(&self.policy).map_err(|_| unreadable("policy"))?;
        let spec = parse_spec(&self.spec).ok_or_else(|| unreadable("spec"))?;
        let usage = KeyUsage::parse(&self.usage).ok_or_else(|| unreadable("usage"))?;
        let origin = Origin::parse(&self.origin).ok_or_else(|| unreadable("origin"))?;
        // As long as they are, not longer: most keys have one, and there are many keys.
        let mut materials = Vec::with_capacity(self.materials.len());
        for material in &self.materials {
            materials.push(material.to_material().ok_or_else(|| unreadable("material"))?);
        }
        let mut arn = key_arn(&self.region, &self.account, id);
        arn.shrink_to_fit();
        let mut description = self.description;
        description.shrink_to_fit();
        Ok(KeyEntry {
            arn,
            name: id.name().ok_or_else(|| unreadable("name"))?,
            id,
            region: shared.text(&self.region),
            account: shared.text(&self.account),
            record_version,
            created: Timestamp::from_unix_millis(self.created),
            description,
            usage,
            spec,
            origin,
            enabled: self.enabled,
            deletion: self.deletion.map(Timestamp::from_unix_millis),
            deletion_after_replicas: self.deletion_after_replicas,
            policy,
            tags: self.tags,
            rotation: self
                .rotation
                .map(|(period_days, next)| Rotation { period_days, next: Timestamp::from_unix_millis(next) }),
            rotations_on_demand: self.rotations_on_demand,
            materials,
            reference: self.reference.map(|(store, key)| Reference { store, key }),
            multi_region: self.multi_region.map(|(primary, replicas)| MultiRegion {
                primary: shared.text(&primary),
                replicas: replicas.iter().map(|region| shared.text(region)).collect(),
            }),
        })
    }
}

impl StoredMaterial {
    fn from_material(material: &Material) -> Self {
        Self {
            id: material.id.to_string(),
            check: hex(&material.check),
            created: material.created.unix_millis(),
            rotated: material.rotated.map(|(when, kind)| (when.unix_millis(), kind.name().to_owned())),
            state: material.state.name().to_owned(),
            blob: material.blob_version,
            expires: material.expires.map(Timestamp::unix_millis),
            description: material.description.clone(),
        }
    }

    fn to_material(&self) -> Option<Material> {
        let rotated = match &self.rotated {
            None => None,
            Some((when, kind)) => {
                let kinds = [RotationKind::Automatic, RotationKind::OnDemand];
                let kind = kinds.into_iter().find(|known| known.name() == kind)?;
                Some((Timestamp::from_unix_millis(*when), kind))
            }
        };
        let states = [MaterialState::Current, MaterialState::NonCurrent, MaterialState::PendingRotation];
        Some(Material {
            id: KeyVersionId::parse(&self.id)?,
            check: unhex(&self.check)?.try_into().ok()?,
            created: Timestamp::from_unix_millis(self.created),
            rotated,
            state: states.into_iter().find(|known| known.name() == self.state)?,
            blob_version: self.blob,
            expires: self.expires.map(Timestamp::from_unix_millis),
            description: self.description.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by format 1; must be readable for ever.
    const GOLDEN: &str = include_str!("golden/key-v1.json");

    #[test]
    fn golden_record_reads_and_writes_alike() {
        let stored: StoredKey = serde_json::from_str(GOLDEN).unwrap();
        let entry = stored.into_entry(7, &mut Shared::default()).unwrap();
        assert_eq!((entry.record_version, entry.materials.len()), (7, 2));
        assert_eq!(entry.arn, "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab");
        assert!(entry.is_primary() && entry.current().is_some_and(|material| material.rotated.is_some()));
        assert_eq!(serde_json::to_string(&StoredKey::from_entry(&entry)).unwrap(), GOLDEN.trim());
    }

    #[test]
    fn unknown_formats_are_refused() {
        for (from, to) in [
            (r#""v":1"#, r#""v":2"#),
            ("SYMMETRIC_DEFAULT", "SYMMETRIC_OTHER"),
            ("CURRENT", "RECENT"),
            ("mrk-1234", "mrk-123"),
            ("2012-10-17", "2013-10-17"),
        ] {
            assert!(GOLDEN.contains(from), "{from}");
            let stored: StoredKey = serde_json::from_str(&GOLDEN.replace(from, to)).unwrap();
            assert!(stored.into_entry(1, &mut Shared::default()).is_err(), "{to}");
        }
    }
}

//! Multi-region keys: the same key in another region that this installation serves.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::{Answer, change::current, changed, keys::metadata, nothing, policies, rotation::family, tags};
use crate::{
    action::KmsAction,
    call::{Call, With},
    code::Code,
    error::ApiError,
    keys::{Draft, KeyEntry, KeyRef},
    names::{key_arn, served},
    usable::Enabled,
    wire::{self, Violations},
};

fn region(call: &Call<'_>, name: Option<&str>, member: &str) -> Result<Arc<str>, ApiError> {
    let mut violations = Violations::default();
    let name = violations.text(name, member, 1, 32);
    violations.finish()?;
    served(&call.kms.regions, name)
        .ok_or_else(|| ApiError::unsupported(format!("Region {name} is not served by this installation")))
}

fn must_be_primary(key: &KeyEntry) -> Result<(), ApiError> {
    if key.is_primary() {
        return Ok(());
    }
    Err(ApiError::unsupported(format!("{} is not a multi-region primary key.", key.arn)))
}

/// The key in every region that it is in, to be changed: only of an enabled primary.
fn family_of(call: &Call<'_>, primary: &Enabled<'_>) -> Vec<KeyEntry> {
    family(call.kms, primary)
}

pub(super) async fn replicate(call: &mut Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        replica_region: Option<String>,
        policy: Option<String>,
        bypass_policy_lockout_safety_check: Option<bool>,
        description: Option<String>,
        tags: Option<Vec<tags::Tag>>,
    }
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    violations.length(request.description.as_deref().unwrap_or_default(), "description", 0, 8192);
    violations.finish()?;
    let tags = tags::checked(request.tags.as_deref())?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let region = region(call, request.replica_region.as_deref(), "replicaRegion")?;
    let facts = [("kms:replicaregion", vec![region.to_string()])];
    let spent = call.allowed(KmsAction::ReplicateKey, &key, With { more: &facts, ..With::default() })?;
    let with = With { tags: Some(&tags), ..With::default() };
    call.allowed_apart(KmsAction::CreateKey, "*", with)?;
    if !tags.is_empty() {
        call.allowed_apart(KmsAction::TagResource, "*", with)?;
    }
    must_be_primary(&key)?;
    call.enabled(&key)?;
    call.kms.keys.check_room()?;
    let policy = match &request.policy {
        Some(text) => policies::checked(call, text)?,
        None => policies::default_for(&key.account)?,
    };
    let lock = call.kms.keys.lock(key.id).await;
    let primary = current(call, &key)?;
    must_be_primary(&primary)?;
    let primary = call.enabled(&primary)?;
    if call.kms.keys.entry(&KeyRef { region: Arc::clone(&region), id: key.id }).is_some() {
        return Err(ApiError::new(Code::AlreadyExists, format!("The key is in {region} already")));
    }
    let mut entries = family_of(call, &primary);
    for entry in &mut entries {
        if let Some(multi) = &mut entry.multi_region {
            multi.replicas.push(Arc::clone(&region));
        }
    }
    let multi_region = entries.first().and_then(|entry| entry.multi_region.clone());
    let replica = KeyEntry {
        arn: key_arn(&region, &primary.account, primary.id),
        region: Arc::clone(&region),
        record_version: 0,
        created: call.now,
        description: request.description.unwrap_or_default(),
        enabled: true,
        policy: Arc::new(policy),
        tags,
        multi_region,
        ..KeyEntry::clone(&primary)
    };
    if request.policy.is_some() {
        policies::check_lockout(call, &replica, request.bypass_policy_lockout_safety_check)?;
    }
    entries.push(replica);
    let draft = Draft { entries, ..Draft::default() };
    let (made, committed) = call.kms.keys.commit(&lock, draft, call.decided(spent)?).await?;
    let replica = made.iter().find(|entry| entry.region == region);
    let replica = replica.ok_or_else(|| ApiError::internal("no replica was made"))?;
    let tags: Vec<_> = replica.tags.iter().map(|(name, value)| json!({"TagKey": name, "TagValue": value})).collect();
    let answer = json!({
        "ReplicaKeyMetadata": metadata(call, replica),
        "ReplicaPolicy": replica.policy.text(),
        "ReplicaTags": tags,
    });
    changed(committed, wire::answer(&answer))
}

pub(super) async fn update_primary(call: &mut Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        primary_region: Option<String>,
    }
    let request: Request = call.parse()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let region = region(call, request.primary_region.as_deref(), "primaryRegion")?;
    let facts = [("kms:primaryregion", vec![region.to_string()])];
    let spent = call.allowed(KmsAction::UpdatePrimaryRegion, &key, With { more: &facts, ..With::default() })?;
    must_be_primary(&key)?;
    call.enabled(&key)?;
    let lock = call.kms.keys.lock(key.id).await;
    let primary = current(call, &key)?;
    must_be_primary(&primary)?;
    let primary = call.enabled(&primary)?;
    let mut entries = family_of(call, &primary);
    if !entries.iter().any(|entry| entry.region == region) {
        return Err(ApiError::not_found(format!("The key is not in {region}")));
    }
    // Rotation is the primary's affair, and goes with it.
    let rotation = primary.rotation;
    for entry in &mut entries {
        if let Some(multi) = &mut entry.multi_region {
            let old = std::mem::replace(&mut multi.primary, Arc::clone(&region));
            multi.replicas.retain(|replica| *replica != region);
            if old != region {
                multi.replicas.push(old);
            }
        }
        entry.rotation = rotation.filter(|_| entry.region == region);
    }
    let draft = Draft { entries, ..Draft::default() };
    let (_, committed) = call.kms.keys.commit(&lock, draft, call.decided(spent)?).await?;
    changed(committed, nothing())
}

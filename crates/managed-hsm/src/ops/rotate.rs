//! New versions on demand and by themselves; rotation policies.

use std::sync::Arc;

use holdfast_core::{Committed, Decided, KeyName, KeyVersionId, Permit};
use holdfast_crypto::PublicKey;
use holdfast_service::Done;
use http::StatusCode;

use super::{
    Call, Reply,
    keys::{append, bound},
};
use crate::{
    ManagedHsm,
    error::ApiError,
    keys::{Draft, KeyEntry, VersionEntry},
    rotation,
    wire::{self, RotationAttributes, RotationPolicyBody},
};

/// A key with its new version, and the public part of that.
struct Rotated {
    entry: Arc<KeyEntry>,
    public: PublicKey,
    committed: Committed,
}

/// Makes a version like the current one: same kind, operations, tags and release policy; validity from the policy.
async fn new_version(
    hsm: &ManagedHsm,
    permit: Permit,
    name: &KeyName,
    still_wanted: impl FnOnce(&KeyEntry) -> bool + Send,
    event: impl FnOnce(KeyVersionId) -> Result<Decided, ApiError> + Send,
) -> Result<Option<Rotated>, ApiError> {
    let keys = &hsm.keys;
    let lock = keys.lock(name).await;
    let old = keys.active(name)?;
    if !still_wanted(&old) {
        return Ok(None);
    }
    keys.check_room(Some(&old))?;
    let current = old.current().ok_or_else(|| ApiError::internal("a key without versions"))?;
    let now = keys.now();
    let mut version =
        VersionEntry { id: keys.new_version_id(), created: now, updated: now, blob_version: 1, ..current.clone() };
    version.attributes.enabled = true;
    version.attributes.not_before = None;
    version.attributes.expires = old.rotation.as_deref().and_then(|policy| rotation::expiry(policy, now));
    let new = hsm.admin.generate(permit, &bound(&old.name, &version)).await?;
    let (event, public) = (event(version.id)?, new.public.clone());
    let (committed, entry) = keys.commit(&lock, append(name, Some(&old), version, new), event).await?;
    Ok(Some(Rotated { entry, public, committed }))
}

pub(super) async fn rotate(call: &mut Call<'_>, permit: Permit, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let hsm = call.hsm;
    let event = |version| {
        call.facts.version = Some(version);
        call.decided(StatusCode::OK)
    };
    let rotated = new_version(hsm, permit, name, |_| true, event).await?;
    let rotated = rotated.ok_or_else(|| ApiError::internal("a rotation on demand was not wanted"))?;
    let current = rotated.entry.current().ok_or_else(|| ApiError::internal("a key without versions"))?;
    let reply = Reply::ok(&call.bundle(&rotated.entry, current, &rotated.public))?;
    Ok(Done::Changed(rotated.committed, reply))
}

/// Rotates if it is still due; for maintenance.
pub(crate) async fn rotate_by_itself(
    hsm: &ManagedHsm,
    permit: Permit,
    name: &KeyName,
    event: impl FnOnce(KeyVersionId) -> Result<Decided, ApiError> + Send,
) -> Result<Option<Committed>, ApiError> {
    let now = hsm.keys.now();
    let rotated = new_version(hsm, permit, name, |entry| rotation::is_due(entry, now), event).await?;
    Ok(rotated.map(|rotated| rotated.committed))
}

fn policy_body(call: &Call<'_>, entry: &KeyEntry) -> RotationPolicyBody {
    let mut body = RotationPolicyBody {
        id: Some(format!("{}/keys/{}/rotationpolicy", call.base_url, entry.name)),
        ..RotationPolicyBody::default()
    };
    if let Some(policy) = &entry.rotation {
        body.lifetime_actions.clone_from(&policy.actions);
        body.attributes = RotationAttributes {
            expiry_time: policy.expiry_time.clone(),
            created: Some(policy.created.unix_secs()),
            updated: Some(policy.updated.unix_secs()),
        };
    }
    body
}

pub(super) fn get_policy(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let entry = call.hsm.keys.active(name)?;
    Reply::ok(&policy_body(call, &entry))
}

pub(super) async fn put_policy(call: &Call<'_>, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let body: RotationPolicyBody = wire::parse(call.body)?;
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let mut entry = (*keys.active(name)?).clone();
    entry.rotation = rotation::check(body, entry.rotation.as_deref(), keys.now())?.map(Box::new);
    let reply = Reply::ok(&policy_body(call, &entry))?;
    let (committed, _) = keys.commit(&lock, Draft { entry, blobs: Vec::new() }, call.decided(StatusCode::OK)?).await?;
    Ok(Done::Changed(committed, reply))
}

//! How one key is changed.

use std::sync::Arc;

use holdfast_core::Committed;

use super::KeyOnly;
use crate::{
    action::KmsAction,
    call::{Call, With},
    error::ApiError,
    keys::{Draft, KeyEntry},
};

/// Changes one key: finds it, asks for the permit, takes its lock, looks at it again, changes, commits.
pub(super) async fn change(
    call: &mut Call<'_>,
    key_id: Option<&str>,
    action: KmsAction,
    with: With<'_>,
    change: impl FnOnce(&Call<'_>, &mut KeyEntry) -> Result<(), ApiError>,
) -> Result<(Arc<KeyEntry>, Committed), ApiError> {
    let key = call.named_without_alias("keyId", key_id)?;
    let spent = call.allowed(action, &key, with)?;
    let kms = call.kms;
    let lock = kms.keys.lock(key.id).await;
    let mut entry = current(call, &key)?;
    change(call, &mut entry)?;
    let (changed, committed) = kms.keys.commit(&lock, Draft::of(entry), call.decided(spent)?).await?;
    let key = changed.into_iter().next().ok_or_else(|| ApiError::internal("nothing was changed"))?;
    Ok((key, committed))
}

/// A key as it is now, under its lock.
pub(super) fn current(call: &Call<'_>, key: &KeyEntry) -> Result<KeyEntry, ApiError> {
    let entry = call.kms.keys.entry(&key.key_ref());
    let entry = entry.ok_or_else(|| ApiError::not_found(format!("Key '{}' does not exist", key.arn)))?;
    Ok(KeyEntry::clone(&entry))
}

/// The key that a request names, for operations that take nothing else.
pub(super) fn key_only(call: &Call<'_>) -> Result<Option<String>, ApiError> {
    Ok(call.parse::<KeyOnly>()?.key_id)
}

//! Soft delete: delete, see, recover, purge.

use holdfast_core::{Committed, Decided, KeyName};
use holdfast_service::Done;
use http::StatusCode;

use super::{Call, Reply};
use crate::{
    ManagedHsm,
    error::ApiError,
    keys::{Deletion, Draft, KeyEntry, NameLock},
};

pub(super) async fn delete(call: &Call<'_>, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let mut entry = (*keys.active(name)?).clone();
    let deleted = keys.now();
    entry.deletion = Some(Deletion { deleted, purge: call.hsm.retention.end(deleted) });
    change(call, &lock, entry).await
}

pub(super) async fn get(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let (entry, _) = call.hsm.keys.deleted(name)?;
    Reply::ok(&call.current_bundle(&entry).await?)
}

pub(super) async fn recover(call: &Call<'_>, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let (entry, _) = keys.deleted(name)?;
    let mut entry = (*entry).clone();
    entry.deletion = None;
    change(call, &lock, entry).await
}

/// What can fail of the answer fails before the change.
async fn change(call: &Call<'_>, lock: &NameLock<'_>, entry: KeyEntry) -> Result<Done<Reply>, ApiError> {
    let reply = Reply::ok(&call.current_bundle(&entry).await?)?;
    let draft = Draft { entry, blobs: Vec::new() };
    let (committed, _) = call.hsm.keys.commit(lock, draft, call.decided(StatusCode::OK)?).await?;
    Ok(Done::Changed(committed, reply))
}

pub(super) async fn purge(call: &Call<'_>, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let (entry, _) = keys.deleted(name)?;
    if call.hsm.retention.purge_protection {
        let message =
            "Operation purge is not allowed: purge protection is on, and keys stay until their retention ends";
        return Err(ApiError::not_permitted(message));
    }
    let committed = purge_for_good(call.hsm, &lock, &entry, || call.decided(StatusCode::NO_CONTENT)).await?;
    Ok(Done::Changed(committed, Reply::no_content()))
}

/// Removes a key, its blobs and the role assignments on it in one batch: no assignment may outlive its key, since the next
/// key of that name would be another's.
pub(crate) async fn purge_for_good(
    hsm: &ManagedHsm,
    lock: &NameLock<'_>,
    entry: &KeyEntry,
    event: impl FnOnce() -> Result<Decided, ApiError>,
) -> Result<Committed, ApiError> {
    let ending = hsm.rbac.end_assignments_on(&entry.name).await;
    hsm.keys.purge(lock, entry, ending.writes, event()?).await
}

//! Soft delete: delete, see, recover, purge.

use holdfast_core::KeyName;

use super::{Call, Reply};
use crate::{
    error::ApiError,
    keys::{Deletion, Draft},
};

pub(super) async fn delete(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let mut entry = (*keys.active(name)?).clone();
    let deleted = keys.now();
    entry.deletion = Some(Deletion { deleted, purge: call.hsm.retention.end(deleted) });
    let entry = keys.commit(&lock, Draft { entry, blobs: Vec::new() }).await?;
    Reply::ok(&call.current_bundle(&entry).await?)
}

pub(super) async fn get(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let (entry, _) = call.hsm.keys.deleted(name)?;
    Reply::ok(&call.current_bundle(&entry).await?)
}

pub(super) async fn recover(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let (entry, _) = keys.deleted(name)?;
    let mut entry = (*entry).clone();
    entry.deletion = None;
    let entry = keys.commit(&lock, Draft { entry, blobs: Vec::new() }).await?;
    Reply::ok(&call.current_bundle(&entry).await?)
}

pub(super) async fn purge(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let (entry, _) = keys.deleted(name)?;
    if call.hsm.retention.purge_protection {
        let message =
            "Operation purge is not allowed: purge protection is on, and keys stay until their retention ends";
        return Err(ApiError::not_permitted(message));
    }
    keys.purge(&lock, &entry).await?;
    Ok(Reply::no_content())
}

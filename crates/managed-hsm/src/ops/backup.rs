//! Backup and restore of one key, all versions (`docs/formats/key-backup.md`).

use std::collections::BTreeMap;

use holdfast_core::{HsmError, KeyName, MaskedKey, Permit};
use holdfast_service::Done;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Call, Reply};
use crate::{
    code::Code,
    error::ApiError,
    keys::{Draft, StoredKey},
    usable::Used,
    wire::{self, Value},
};

const FORMAT: u8 = 1;

/// What lies inside a sealed backup.
#[derive(Deserialize, Serialize)]
struct Content {
    v: u8,
    key: StoredKey,
    /// Version to masked blob.
    blobs: BTreeMap<String, String>,
}

pub(super) async fn backup(call: &Call<'_>, permit: Permit, name: &KeyName) -> Result<Reply, ApiError> {
    let keys = &call.hsm.keys;
    // Held so that no attribute changes between one blob and the next.
    let _lock = keys.lock(name).await;
    let entry = keys.active(name)?;
    let mut blobs = BTreeMap::new();
    for version in &entry.versions {
        blobs.insert(version.id.to_string(), wire::encode(&keys.masked(version).await?.0));
    }
    let content = Content { v: FORMAT, key: StoredKey::from_entry(&entry), blobs };
    let content = serde_json::to_vec(&content).map_err(|error| ApiError::internal(error.to_string()))?;
    let sealed = call.hsm.admin.seal_backup(permit, &entry.name, &content).await?;
    let reply = Reply::ok(&Value { value: wire::encode(&sealed) })?;
    Ok(match entry.current() {
        Some(version) => reply.resting_on(Used::told(name, version.id)),
        None => reply,
    })
}

pub(super) async fn restore(call: &mut Call<'_>) -> Result<Done<Reply>, ApiError> {
    let request: Value = wire::parse(call.body)?;
    let sealed = wire::decode("value", &request.value)?;
    let not_ours =
        |_| ApiError::bad_parameter("The backup was not made under this HSM's security domain, or was changed");
    let content = call.hsm.admin.open_backup(&sealed).map_err(not_ours)?;
    let content: Content =
        serde_json::from_slice(content.expose()).map_err(|error| ApiError::internal(error.to_string()))?;
    if content.v != FORMAT {
        return Err(ApiError::bad_parameter("The backup is of a newer format than this server reads"));
    }
    let mut entry = content.key.into_entry(0).map_err(|error| ApiError::internal(error.to_string()))?;
    entry.deletion = None;
    let mut blobs = Vec::new();
    for version in &mut entry.versions {
        version.blob_version = 1;
        let blob = content.blobs.get(&version.id.to_string());
        let blob = blob.ok_or_else(|| not_ours(HsmError::Damaged))?;
        blobs.push((version.id, 0, MaskedKey(wire::decode("value", blob)?.into())));
    }
    let keys = &call.hsm.keys;
    let lock = keys.lock(&entry.name).await;
    match keys.entry(&entry.name) {
        None => {}
        Some(there) if there.deletion.is_some() => return Err(ApiError::deleted_but_recoverable(&there.name)),
        Some(there) => {
            return Err(ApiError::conflict(Code::Conflict, format!("The key {} already exists", there.name)));
        }
    }
    keys.check_room(None)?;
    // Nothing is stored that could not be used.
    for (version, (_, _, masked)) in entry.versions.iter().zip(&blobs) {
        call.hsm.hsm.open(&entry.bound(version), masked).await.map_err(not_ours)?;
    }
    call.facts.version = entry.current().map(|version| version.id);
    let (committed, entry) = keys.commit(&lock, Draft { entry, blobs }, call.decided(StatusCode::OK)?).await?;
    Ok(Done::Changed(committed, Reply::ok(&call.current_bundle(&entry).await?)?))
}

//! Whether a key is enabled, and whether it stays.

use std::{sync::Arc, time::Duration};

use holdfast_core::{AuditEvent, Committed, Decided, Itself, Spent, Timestamp};
use serde::Deserialize;
use serde_json::json;

use super::{
    Answer,
    change::{change, key_only},
    changed, nothing,
};
use crate::{
    Kms,
    action::KmsAction,
    call::{Call, With},
    error::ApiError,
    keys::{Draft, KeyEntry, KeyRef, KeyState},
    wire::{self, Violations, secs},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const WINDOW_DAYS_DEFAULT: u32 = 30;

pub(crate) fn after_days(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_unix_millis(now.unix_millis() + i64::from(days) * DAY.as_millis() as i64)
}

pub(super) async fn set_enabled(call: &mut Call<'_>, enabled: bool) -> Answer {
    let key_id = key_only(call)?;
    let action = if enabled { KmsAction::EnableKey } else { KmsAction::DisableKey };
    let (_, committed) = change(call, key_id.as_deref(), action, With::default(), |call, key| {
        call.must_not_be(key, &[KeyState::PendingDeletion, KeyState::PendingImport, KeyState::PendingReplicaDeletion])?;
        key.enabled = enabled;
        Ok(())
    })
    .await?;
    changed(committed, nothing())
}

pub(super) async fn schedule_deletion(call: &mut Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        pending_window_in_days: Option<i64>,
    }
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    violations.range(request.pending_window_in_days, "pendingWindowInDays", 7, 30);
    violations.finish()?;
    let days = request.pending_window_in_days.map_or(WINDOW_DAYS_DEFAULT, |days| days as u32);
    let facts = [("kms:schedulekeydeletionpendingwindowindays", vec![days.to_string()])];
    let with = With { more: &facts, ..With::default() };
    let (key, committed) =
        change(call, request.key_id.as_deref(), KmsAction::ScheduleKeyDeletion, with, |call, key| {
            call.must_not_be(key, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
            // A primary goes after its replicas.
            if key.is_primary() && key.multi_region.as_ref().is_some_and(|multi| !multi.replicas.is_empty()) {
                key.deletion_after_replicas = Some(days);
            } else {
                key.deletion = Some(after_days(call.now, days));
            }
            Ok(())
        })
        .await?;
    let mut answer = json!({
        "KeyId": key.arn,
        "KeyState": call.state(&key).name(),
        "PendingWindowInDays": days,
    });
    if let Some(moment) = key.deletion {
        answer["DeletionDate"] = secs(moment).into();
    }
    changed(committed, wire::answer(&answer))
}

/// The key comes back disabled.
pub(super) async fn cancel_deletion(call: &mut Call<'_>) -> Answer {
    let key_id = key_only(call)?;
    let (key, committed) =
        change(call, key_id.as_deref(), KmsAction::CancelKeyDeletion, With::default(), |call, key| {
            if key.deletion.is_none() && key.deletion_after_replicas.is_none() {
                let state = call.state(key);
                return Err(ApiError::invalid_state(format!(
                    "{} is not pending deletion: it is {}.",
                    key.arn,
                    state.name()
                )));
            }
            key.deletion = None;
            key.deletion_after_replicas = None;
            key.enabled = false;
            Ok(())
        })
        .await?;
    changed(committed, wire::answer(&json!({"KeyId": key.arn})))
}

/// Removes a key whose window is over, with its material unless a replica still has it, its aliases and grants.
pub(crate) async fn delete_by_itself(
    kms: &Kms,
    spent: Spent,
    key: &KeyEntry,
    event: AuditEvent,
) -> Result<Option<Committed>, ApiError> {
    let lock = kms.keys.lock(key.id).await;
    let now = kms.keys.now();
    let entry = kms.keys.entry(&key.key_ref()).filter(|entry| entry.deletion.is_some_and(|moment| moment <= now));
    let Some(entry) = entry else { return Ok(None) };
    let mut draft = Draft { removed: vec![Arc::clone(&entry)], ..Draft::default() };
    if let Some(multi) = &entry.multi_region {
        // The others forget it; a primary that waited for its last replica has its own window from now on.
        let others = multi.replicas.iter().chain([&multi.primary]).filter(|region| **region != entry.region);
        for region in others {
            let Some(other) = kms.keys.entry(&KeyRef { region: Arc::clone(region), id: entry.id }) else { continue };
            let mut other = KeyEntry::clone(&other);
            if let Some(multi) = &mut other.multi_region {
                multi.replicas.retain(|region| *region != entry.region);
            }
            if other.is_primary()
                && other.multi_region.as_ref().is_some_and(|multi| multi.replicas.is_empty())
                && let Some(days) = other.deletion_after_replicas.take()
            {
                other.deletion = Some(after_days(now, days));
            }
            draft.entries.push(other);
        }
    }
    if draft.entries.is_empty() {
        draft.blobs = entry
            .materials
            .iter()
            .filter_map(|material| material.blob_version.map(|version| (material.id, version, None)))
            .collect();
    }
    // Nobody points an alias at the key, or makes a grant on it, while it goes.
    let changing = kms.aliases.changing().await;
    draft.others = kms.aliases.removal(&changing, &entry.account, &entry.region, entry.id);
    let ending = kms.grants.ending(&entry.key_ref()).await;
    draft.others.extend(ending.writes());
    let (_, committed) = kms.keys.commit(&lock, draft, Decided::by_itself(event, Itself::Due(spent))).await?;
    kms.usage.forget(&entry.key_ref());
    Ok(Some(committed))
}

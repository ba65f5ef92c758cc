//! When a key was last used.

use bytes::Bytes;
use serde_json::json;

use super::KeyOnly;
use crate::{
    action::KmsAction,
    call::{Call, With},
    error::ApiError,
    wire::{self, secs},
};

pub(super) fn last(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: KeyOnly = call.parse()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    call.allowed(KmsAction::GetKeyLastUsage, &key, With::default())?;
    // A request is an event of the audit log under its own id.
    let last = call.kms.usage.of(&key.key_ref()).map(|last| {
        json!({
            "Operation": last.operation.name(),
            "Timestamp": secs(last.at),
            "CloudTrailEventId": &*last.request_id,
            "KmsRequestId": &*last.request_id,
        })
    });
    wire::answer(&json!({
        "KeyId": key.id.to_string(),
        "KeyLastUsage": last.unwrap_or_else(|| json!({})),
        "TrackingStartDate": secs(key.created),
        "KeyCreationDate": secs(key.created),
    }))
}

//! Tags.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{bad_marker, change::change, limit, nothing};
use crate::{
    action::KmsAction,
    call::{Call, With},
    error::ApiError,
    keys::KeyState,
    wire::{self, Violations},
};

const TAGS_MAX: usize = 50;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tag {
    tag_key: Option<String>,
    tag_value: Option<String>,
}

fn tag_error(message: impl Into<String>) -> ApiError {
    ApiError::new("TagException", message)
}

/// Tags as a request has them.
pub(super) fn checked(tags: Option<&[Tag]>) -> Result<BTreeMap<String, String>, ApiError> {
    let mut checked = BTreeMap::new();
    for tag in tags.unwrap_or_default() {
        let mut violations = Violations::default();
        let key = violations.text(tag.tag_key.as_deref(), "tagKey", 1, 128);
        let value = violations.text(tag.tag_value.as_deref(), "tagValue", 0, 256);
        violations.finish()?;
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(tag_error("Tag keys that begin with aws: are reserved"));
        }
        if checked.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(tag_error(format!("The tag key {key} is there twice")));
        }
    }
    if checked.len() > TAGS_MAX {
        return Err(tag_error(format!("A key has at most {TAGS_MAX} tags")));
    }
    Ok(checked)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    key_id: Option<String>,
    tags: Option<Vec<Tag>>,
    tag_keys: Option<Vec<String>>,
    limit: Option<i64>,
    marker: Option<String>,
}

const GONE: [KeyState; 2] = [KeyState::PendingDeletion, KeyState::PendingReplicaDeletion];

pub(super) async fn tag(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let tags = checked(request.tags.as_deref())?;
    let with = With { tags: Some(&tags), ..With::default() };
    change(call, request.key_id.as_deref(), KmsAction::TagResource, with, |call, key| {
        call.must_not_be(key, &GONE)?;
        key.tags.extend(tags.clone());
        if key.tags.len() > TAGS_MAX {
            return Err(tag_error(format!("A key has at most {TAGS_MAX} tags")));
        }
        Ok(())
    })
    .await?;
    nothing()
}

pub(super) async fn untag(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let names: BTreeSet<String> = request.tag_keys.unwrap_or_default().into_iter().collect();
    let facts = [("aws:tagkeys", names.iter().cloned().collect())];
    let with = With { more: &facts, ..With::default() };
    change(call, request.key_id.as_deref(), KmsAction::UntagResource, with, |call, key| {
        call.must_not_be(key, &GONE)?;
        key.tags.retain(|name, _| !names.contains(name));
        Ok(())
    })
    .await?;
    nothing()
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let count = limit(request.limit, 50, 50)?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    call.allowed(KmsAction::ListResourceTags, &key, With::default())?;
    let after = request.marker.as_deref();
    if after.is_some_and(|after| !key.tags.contains_key(after)) {
        return Err(bad_marker());
    }
    let rest: Vec<_> = key.tags.iter().filter(|(name, _)| after.is_none_or(|after| name.as_str() > after)).collect();
    let shown = &rest[..rest.len().min(count)];
    let more = shown.len() < rest.len();
    let tags: Vec<_> = shown.iter().map(|(name, value)| json!({"TagKey": name, "TagValue": value})).collect();
    let mut answer = json!({"Tags": tags, "Truncated": more});
    if let Some((last, _)) = shown.last().filter(|_| more) {
        answer["NextMarker"] = last.as_str().into();
    }
    wire::answer(&answer)
}

//! Tags.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, change::change, changed, limit, marker::Listing, nothing};
use crate::{
    action::KmsAction,
    call::{Call, With},
    code::Code,
    error::ApiError,
    keys::KeyState,
    wire::{self, Violations},
};

const TAGS_MAX: usize = 50;
const TAG_KEY_CHARS_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tag {
    tag_key: Option<String>,
    tag_value: Option<String>,
}

fn tag_error(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::Tag, message)
}

/// Tags as a request has them.
pub(super) fn checked(tags: Option<&[Tag]>) -> Result<BTreeMap<String, String>, ApiError> {
    let tags = tags.unwrap_or_default();
    let mut violations = Violations::default();
    for (index, tag) in tags.iter().enumerate() {
        let member = |name: &str| format!("tags.{}.member.{name}", index + 1);
        violations.text(tag.tag_key.as_deref(), &member("tagKey"), 1, TAG_KEY_CHARS_MAX);
        violations.text(tag.tag_value.as_deref(), &member("tagValue"), 0, 256);
    }
    violations.finish()?;
    let mut checked = BTreeMap::new();
    for tag in tags {
        let (key, value) = (tag.tag_key.as_deref().unwrap_or_default(), tag.tag_value.as_deref().unwrap_or_default());
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(tag_error("Tags beginning with aws: are reserved"));
        }
        if !(fits(key) && fits(value)) {
            return Err(tag_error(format!("Invalid tag: {}", holdfast_wire::printable(key, TAG_KEY_CHARS_MAX))));
        }
        if checked.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(tag_error("Duplicate tag keys"));
        }
    }
    if checked.len() > TAGS_MAX {
        return Err(tag_error("Too many tags"));
    }
    Ok(checked)
}

/// Letters, digits and white space of any script, and a few signs: the most that the service's pages allow anywhere.
fn fits(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c.is_whitespace() || "_.:/=+-@".contains(c))
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

pub(super) async fn tag(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let tags = checked(request.tags.as_deref())?;
    let with = With { tags: Some(&tags), ..With::default() };
    let (_, committed) = change(call, request.key_id.as_deref(), KmsAction::TagResource, with, |call, key| {
        call.must_not_be(key, &GONE)?;
        key.tags.extend(tags.clone());
        if key.tags.len() > TAGS_MAX {
            return Err(tag_error("Too many tags"));
        }
        Ok(())
    })
    .await?;
    changed(committed, nothing())
}

pub(super) async fn untag(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let names = request.tag_keys.unwrap_or_default();
    let mut violations = Violations::default();
    for (index, name) in names.iter().enumerate() {
        violations.length(name, &format!("tagKeys.{}.member", index + 1), 1, TAG_KEY_CHARS_MAX);
    }
    violations.finish()?;
    let names: BTreeSet<String> = names.into_iter().collect();
    let facts = [("aws:tagkeys", names.iter().cloned().collect())];
    let with = With { more: &facts, ..With::default() };
    let (_, committed) = change(call, request.key_id.as_deref(), KmsAction::UntagResource, with, |call, key| {
        call.must_not_be(key, &GONE)?;
        key.tags.retain(|name, _| !names.contains(name));
        Ok(())
    })
    .await?;
    changed(committed, nothing())
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let count = limit(request.limit, 50, 50)?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    call.allowed(KmsAction::ListResourceTags, &key, With::default())?;
    let listing = Listing::of(call, &[&key.arn]);
    let after = listing.after_text(request.marker.as_deref())?;
    let rest: Vec<_> = key.tags.iter().filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after)).collect();
    let shown = &rest[..rest.len().min(count)];
    let more = shown.len() < rest.len();
    let tags: Vec<_> = shown.iter().map(|(name, value)| json!({"TagKey": name, "TagValue": value})).collect();
    let mut answer = json!({"Tags": tags, "Truncated": more});
    if let Some((last, _)) = shown.last().filter(|_| more) {
        answer["NextMarker"] = listing.next(last.as_bytes()).into();
    }
    wire::answer(&answer)
}

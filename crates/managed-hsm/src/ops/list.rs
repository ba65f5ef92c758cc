//! Lists and their pages.

use holdfast_core::{KeyName, KeyVersionId, Timestamp};

use super::{Call, Reply};
use crate::{
    error::ApiError,
    keys::{KeyEntry, VersionEntry},
    wire::{self, Page},
};

/// Items of a page at most, and without `maxresults`.
const PAGE_ITEMS_MAX: usize = 25;

impl Call<'_> {
    fn page_size(&self) -> Result<usize, ApiError> {
        let Some(text) = self.query.get("maxresults") else { return Ok(PAGE_ITEMS_MAX) };
        text.parse()
            .ok()
            .filter(|count| (1..=PAGE_ITEMS_MAX).contains(count))
            .ok_or_else(|| ApiError::bad_parameter("maxresults must be 1 to 25"))
    }

    /// Where the page before ended.
    fn after<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ApiError> {
        let Some(token) = self.query.get("$skiptoken") else { return Ok(None) };
        let decoded = wire::decode("$skiptoken", token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        decoded
            .and_then(|text| parse(&text))
            .map(Some)
            .ok_or_else(|| ApiError::bad_parameter("$skiptoken is not one of this service's"))
    }

    /// Absolute and, as the service's own, without api-version: some clients add theirs, others follow it as it stands
    /// (`Query::check_api_version`).
    fn next_link(&self, path: &str, count: usize, last: &str) -> String {
        format!("{}{path}?maxresults={count}&$skiptoken={}", self.base_url, wire::encode(last.as_bytes()))
    }
}

fn keys(call: &Call<'_>, path: &str, wanted: impl Fn(&KeyEntry) -> bool) -> Result<Reply, ApiError> {
    let count = call.page_size()?;
    let after = call.after(|text| KeyName::parse(text).ok())?;
    let (entries, more) = call.hsm.keys.page(after.as_ref(), count, wanted);
    let last = entries.last().filter(|_| more);
    let next_link = last.map(|entry| call.next_link(path, count, entry.name.as_str()));
    Reply::ok(&Page { value: entries.iter().filter_map(|entry| call.item(entry)).collect(), next_link })
}

pub(super) fn active(call: &Call<'_>) -> Result<Reply, ApiError> {
    keys(call, "/keys", |entry| entry.deletion.is_none())
}

pub(super) fn deleted(call: &Call<'_>) -> Result<Reply, ApiError> {
    keys(call, "/deletedkeys", |entry| entry.deletion.is_some())
}

/// Where a page of versions ended: the version and when it was made, so that the next page is found although the version is
/// gone. Without a time it is a token of an earlier release.
struct VersionMark {
    id: KeyVersionId,
    created: Option<Timestamp>,
}

impl VersionMark {
    fn parse(text: &str) -> Option<Self> {
        let (id, created) = match text.split_once('@') {
            None => (text, None),
            Some((id, millis)) => (id, Some(Timestamp::from_unix_millis(millis.parse().ok()?))),
        };
        Some(Self { id: KeyVersionId::parse(id)?, created })
    }

    fn of(version: &VersionEntry) -> String {
        format!("{}@{}", version.id, version.created.unix_millis())
    }

    /// How many of `versions`, which are in the order of their making, the pages before have told.
    fn told(&self, versions: &[VersionEntry]) -> usize {
        let found = versions.iter().position(|version| version.id == self.id).map(|position| position + 1);
        found.unwrap_or_else(|| {
            versions.iter().take_while(|version| self.created.is_none_or(|created| version.created <= created)).count()
        })
    }
}

/// Of a key that is not there: none.
pub(super) fn versions(call: &Call<'_>, name: &KeyName) -> Result<Reply, ApiError> {
    let count = call.page_size()?;
    let after = call.after(VersionMark::parse)?;
    let Some(entry) = call.hsm.keys.entry(name).filter(|entry| entry.deletion.is_none()) else {
        return Reply::ok(&Page::<()> { value: Vec::new(), next_link: None });
    };
    let start = after.map_or(0, |mark| mark.told(&entry.versions));
    let page = &entry.versions[start..entry.versions.len().min(start + count)];
    let last = page.last().filter(|_| start + page.len() < entry.versions.len());
    let path = format!("/keys/{}/versions", entry.name);
    let next_link = last.map(|version| call.next_link(&path, count, &VersionMark::of(version)));
    Reply::ok(&Page { value: page.iter().map(|version| call.version_item(&entry, version)).collect(), next_link })
}

//! ListObjects, both versions: a seek for each common prefix, never a walk through the bucket.

use std::{ops::ControlFlow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_core::Action;
use s3s::{S3Request, S3Response, dto};

use super::{answer, owner, timestamp};
use crate::{
    Storage,
    call::Call,
    error::{Error, Result, Text},
    grant::Granted,
    record::ObjectRecord,
    rows,
    view::record_of,
};

/// Entries of one page.
const PAGE_MAX: i32 = 1000;

/// A parameter that cannot be what it is.
pub(crate) fn invalid_value(name: &'static str, message: impl Into<Text>) -> Error {
    Error::InvalidArgument { message: message.into(), name: Some(name), value: None }
}

/// A number in a query that must not be negative.
pub(crate) fn not_negative(name: &'static str, asked: Option<i32>) -> Result<Option<i32>> {
    if asked.is_some_and(|asked| asked < 0) {
        return Err(invalid_value(name, format!("Argument {name} must be an integer between 0 and 2147483647")));
    }
    Ok(asked)
}

pub(crate) fn page_size(name: &'static str, asked: Option<i32>) -> Result<usize> {
    Ok(not_negative(name, asked)?.unwrap_or(PAGE_MAX).min(PAGE_MAX) as usize)
}

/// Where a listing goes on, as a client carries it.
pub(crate) fn token(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

pub(crate) fn read_token(token: Option<&str>) -> Result<Option<String>> {
    let read = |token| URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let invalid = || invalid_value("continuation-token", "The continuation token provided is incorrect");
    token.map(|token| read(token).ok_or_else(invalid)).transpose()
}

/// An object, or a prefix that stands for many.
pub(crate) enum Entry {
    Object(Box<ObjectRecord>),
    Prefix(String),
}

impl Entry {
    fn name(&self) -> &str {
        match self {
            Self::Object(record) => &record.key,
            Self::Prefix(prefix) => prefix,
        }
    }
}

/// A page, and where the next begins.
pub(crate) struct Page {
    pub entries: Vec<Entry>,
    pub truncated: bool,
}

/// The common prefix of `key`, if the delimiter stands in it behind `prefix`.
pub(crate) fn common_prefix<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty())?;
    let at = key.strip_prefix(prefix)?.find(delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}

/// Lists what comes after `after` (a key or common prefix already told).
fn list(bucket: &Granted<'_>, prefix: &str, delimiter: Option<&str>, after: Option<&str>, max: usize) -> Result<Page> {
    let all = rows::object(bucket.id, prefix);
    let mut from = match after {
        // A common prefix was told: everything under it was, too.
        Some(after) if common_prefix(after, prefix, delimiter) == Some(after) => {
            rows::after(&rows::object(bucket.id, after))
        }
        Some(after) => [rows::object(bucket.id, after), vec![0]].concat(),
        None => all.clone(),
    };
    if from < all {
        from.clone_from(&all);
    }
    let mut page = Page { entries: Vec::new(), truncated: false };
    loop {
        let mut skip = None;
        bucket.scan(&from, &all, |row, value| {
            if page.entries.len() == max {
                page.truncated = max > 0;
                return Ok(ControlFlow::Break(()));
            }
            let key = rows::key_of_object(row).unwrap_or_default();
            if let Some(common) = common_prefix(key, prefix, delimiter) {
                page.entries.push(Entry::Prefix(common.to_owned()));
                skip = Some(rows::after(&rows::object(bucket.id, common)));
                return Ok(ControlFlow::Break(()));
            }
            page.entries.push(Entry::Object(Box::new(record_of(value)?)));
            Ok(ControlFlow::Continue(()))
        })?;
        match skip {
            Some(next) => from = next,
            None => return Ok(page),
        }
    }
}

/// Percent-encodes for `encoding-type=url`: s3s leaves it to us.
pub(crate) fn url_encoded(text: String, encode: bool) -> String {
    if !encode {
        return text;
    }
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        use std::fmt::Write as _;
        if byte.is_ascii_alphanumeric() || b"-._~/*".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

pub(crate) fn wants_url(encoding: Option<&dto::EncodingType>) -> Result<bool> {
    match encoding.map(dto::EncodingType::as_str) {
        None => Ok(false),
        Some("url") => Ok(true),
        Some(_) => Err(invalid_value("encoding-type", "Invalid Encoding Method specified in Request")),
    }
}

fn object_told(record: ObjectRecord, encode: bool, owner_name: Option<&str>) -> dto::Object {
    dto::Object {
        key: Some(url_encoded(record.key, encode)),
        e_tag: Some(dto::ETag::Strong(record.etag)),
        size: Some(record.size as i64),
        last_modified: Some(timestamp(record.modified)),
        storage_class: Some(record.content.storage_class.unwrap_or_else(|| "STANDARD".into()).into()),
        owner: owner_name.map(owner),
        checksum_algorithm: record.checksum.map(|checksum| vec![checksum.algorithm.into()]),
        ..Default::default()
    }
}

/// Objects and common prefixes of a page.
fn split(entries: Vec<Entry>, encode: bool, owner: Option<&str>) -> (Vec<dto::Object>, Vec<dto::CommonPrefix>) {
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Object(record) => objects.push(object_told(*record, encode, owner)),
            Entry::Prefix(prefix) => prefixes.push(dto::CommonPrefix { prefix: Some(url_encoded(prefix, encode)) }),
        }
    }
    (objects, prefixes)
}

/// An empty delimiter is none.
pub(crate) fn told_delimiter(delimiter: Option<String>, encode: bool) -> Option<String> {
    delimiter.filter(|delimiter| !delimiter.is_empty()).map(|delimiter| url_encoded(delimiter, encode))
}

pub(crate) async fn list_objects(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::ListObjectsInput>,
) -> Result<S3Response<dto::ListObjectsOutput>> {
    let input = request.input;
    let encode = wants_url(input.encoding_type.as_ref())?;
    let max = page_size("max-keys", input.max_keys)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let marker = input.marker.clone().filter(|marker| !marker.is_empty());
    let delimiter = input.delimiter.as_deref();
    // A marker under a common prefix stands for all of it.
    let after = marker.as_deref().map(|marker| common_prefix(marker, &prefix, delimiter).unwrap_or(marker));
    let (bucket, page) = storage.look(|view| {
        let bucket = view.grant(call)?;
        let page = list(&bucket, &prefix, delimiter, after, max)?;
        Ok((bucket.read(Action::ObjectList)?, page))
    })?;
    let next = page.truncated.then(|| page.entries.last().map(|entry| entry.name().to_owned())).flatten();
    let (objects, prefixes) = split(page.entries, encode, Some(&bucket.owner));
    answer(dto::ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(url_encoded(prefix, encode)),
        marker: Some(url_encoded(marker.unwrap_or_default(), encode)),
        max_keys: Some(max as i32),
        is_truncated: Some(page.truncated),
        contents: Some(objects),
        common_prefixes: Some(prefixes),
        next_marker: next.map(|next| url_encoded(next, encode)),
        delimiter: told_delimiter(input.delimiter, encode),
        encoding_type: input.encoding_type,
        request_charged: None,
    })
}

pub(crate) async fn list_objects_v2(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::ListObjectsV2Input>,
) -> Result<S3Response<dto::ListObjectsV2Output>> {
    let input = request.input;
    let encode = wants_url(input.encoding_type.as_ref())?;
    let max = page_size("max-keys", input.max_keys)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let after = read_token(input.continuation_token.as_deref())?;
    let after = after.or_else(|| input.start_after.clone().filter(|after| !after.is_empty()));
    let (bucket, page) = storage.look(|view| {
        let bucket = view.grant(call)?;
        let page = list(&bucket, &prefix, input.delimiter.as_deref(), after.as_deref(), max)?;
        Ok((bucket.read(Action::ObjectList)?, page))
    })?;
    let next = page.truncated.then(|| page.entries.last().map(|entry| token(entry.name()))).flatten();
    let count = page.entries.len();
    let owner = input.fetch_owner.unwrap_or(false).then_some(bucket.owner.as_str());
    let (objects, prefixes) = split(page.entries, encode, owner);
    answer(dto::ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(url_encoded(prefix, encode)),
        max_keys: Some(max as i32),
        key_count: Some(count as i32),
        continuation_token: input.continuation_token,
        is_truncated: Some(page.truncated),
        next_continuation_token: next,
        contents: Some(objects),
        common_prefixes: Some(prefixes),
        delimiter: told_delimiter(input.delimiter, encode),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|after| url_encoded(after, encode)),
        request_charged: None,
    })
}

//! Versions: the switch, and the listing.

use std::{ops::ControlFlow, sync::Arc};

use holdfast_core::{Action, IndexWrite};
use s3s::{S3Request, S3Response, dto};

use super::{
    answer,
    list::{common_prefix, invalid_value, page_size, told_delimiter, url_encoded, wants_url},
    owner, timestamp,
};
use crate::{
    Storage,
    call::Call,
    error::{Error, Result},
    event::About,
    grant::Granted,
    record::{self, ObjectRecord, Versioning},
    rows, versions,
    view::record_of,
};

pub(crate) async fn put_bucket_versioning(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::PutBucketVersioningInput>,
) -> Result<S3Response<dto::PutBucketVersioningOutput>> {
    let input = request.input;
    let wanted = match input.versioning_configuration.status.as_ref().map(dto::BucketVersioningStatus::as_str) {
        Some("Enabled") => Versioning::Enabled,
        Some("Suspended") => Versioning::Suspended,
        _ => return Err(Error::MalformedXml("Status must be Enabled or Suspended")),
    };
    if input.versioning_configuration.mfa_delete.is_some_and(|mfa| mfa.as_str() == "Enabled") {
        return Err(crate::error::not_implemented("MFA delete is not supported"));
    }
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant(&call)?;
            let record = record::BucketRecord { versioning: wanted, ..bucket.record() };
            let row = IndexWrite::put(rows::bucket(&bucket.name), record::encode(&record, &[]));
            let status = if wanted == Versioning::Enabled { "Enabled" } else { "Suspended" };
            let about = About::default().with("versioning", status);
            Ok(((), bucket.change(Action::BucketUpdate, about, vec![row])?))
        })
        .await?;
    answer(dto::PutBucketVersioningOutput {})
}

pub(crate) async fn get_bucket_versioning(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::GetBucketVersioningInput>,
) -> Result<S3Response<dto::GetBucketVersioningOutput>> {
    let bucket = storage.look(|view| view.grant(call)?.read(Action::BucketRead))?;
    let status = match bucket.versioning {
        Versioning::Off => None,
        Versioning::Enabled => Some(dto::BucketVersioningStatus::from_static("Enabled")),
        Versioning::Suspended => Some(dto::BucketVersioningStatus::from_static("Suspended")),
    };
    answer(dto::GetBucketVersioningOutput { status, ..Default::default() })
}

/// One line of the listing.
enum Line {
    Version(Box<ObjectRecord>, bool),
    Prefix(String),
}

/// The first key at or behind `from`, from the version list and from objects that are in no list. `None` at the end.
fn next_key(bucket: &Granted<'_>, prefix: &str, from: &[u8]) -> Result<Option<String>> {
    let first = |all: Vec<u8>, key_of: fn(&[u8]) -> Option<&str>| -> Result<Option<String>> {
        let begin = [&all[..], from].concat();
        let all = [&all[..], prefix.as_bytes()].concat();
        let mut found = None;
        bucket.scan(&begin.max(all.clone()), &all, |row, _| {
            found = key_of(row).map(str::to_owned);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    };
    let objects = first(rows::objects(bucket.id), rows::key_of_object)?;
    let versions = first(rows::versions(bucket.id), rows::key_of_version)?;
    Ok(match (objects, versions) {
        (Some(object), Some(version)) => Some(object.min(version)),
        (object, version) => object.or(version),
    })
}

/// Behind every key that is `key`: no key has a byte 0, and none stands between.
fn behind(key: &str) -> Vec<u8> {
    [key.as_bytes(), &[1]].concat()
}

struct Asked<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    key_marker: &'a str,
    /// The version told last, and its place if the marker has it.
    version_marker: Option<(&'a str, Option<u64>)>,
    max: usize,
}

impl Asked<'_> {
    /// The place behind which the listing goes on among the versions of the marker's key. A version that was deleted meanwhile leaves
    /// its place behind in its marker. If it does not, the key is listed from its beginning: rather twice than not at all.
    fn place(&self, bucket: &Granted<'_>) -> Result<Option<u64>> {
        match self.version_marker {
            None | Some((_, Some(_))) => Ok(self.version_marker.and_then(|(_, place)| place)),
            Some((version, None)) => {
                if let Some(place) = bucket.places_of(self.key_marker, &[version])?.remove(version) {
                    return Ok(Some(place));
                }
                let current = bucket.current(self.key_marker)?;
                Ok(current.filter(|current| current.record.version == version).map(|current| current.record.seq))
            }
        }
    }
}

/// Up to one line more than asked for, which says that there is one.
fn lines(bucket: &Granted<'_>, asked: &Asked<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let common = |key: &str| common_prefix(key, asked.prefix, asked.delimiter).map(str::to_owned);
    // A marker under a common prefix stands for all of it.
    let (mut from, mut place) = match (common(asked.key_marker), asked.version_marker) {
        (Some(common), _) => (rows::after(common.as_bytes()), None),
        (None, Some(_)) => (asked.key_marker.as_bytes().to_vec(), asked.place(bucket)?),
        (None, None) if asked.key_marker.is_empty() => (Vec::new(), None),
        (None, None) => (behind(asked.key_marker), None),
    };
    while lines.len() <= asked.max
        && let Some(key) = next_key(bucket, asked.prefix, &from)?
    {
        if let Some(common) = common(&key) {
            from = rows::after(common.as_bytes());
            lines.push(Line::Prefix(common));
            continue;
        }
        let behind_place = place.take().filter(|_| key == asked.key_marker);
        let current = bucket.current(&key)?.map(|current| current.record).filter(|current| !current.listed);
        if let Some(current) = current.filter(|current| behind_place.is_none_or(|place| current.seq < place)) {
            lines.push(Line::Version(Box::new(current), true));
        }
        let newest = bucket.newest_place(&key)?;
        bucket.versions_of(&key, behind_place, |seq, value| {
            if lines.len() > asked.max {
                return Ok(ControlFlow::Break(()));
            }
            lines.push(Line::Version(Box::new(record_of(value)?), newest == Some(seq)));
            Ok(ControlFlow::Continue(()))
        })?;
        from = behind(&key);
    }
    Ok(lines)
}

pub(crate) async fn list_object_versions(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::ListObjectVersionsInput>,
) -> Result<S3Response<dto::ListObjectVersionsOutput>> {
    let input = request.input;
    let encode = wants_url(input.encoding_type.as_ref())?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let key_marker = input.key_marker.clone().unwrap_or_default();
    let max = page_size("max-keys", input.max_keys)?;
    let version_marker = match input.version_id_marker.as_deref().filter(|marker| !marker.is_empty()) {
        None => None,
        Some(_) if key_marker.is_empty() => {
            let message = "A version-id marker cannot be specified without a key marker.";
            return Err(invalid_value("version-id-marker", message));
        }
        Some(marker) => {
            let invalid = || invalid_value("version-id-marker", "Invalid version id specified");
            Some(versions::read_marker(marker).ok_or_else(invalid)?)
        }
    };
    let delimiter = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
    let asked = Asked { prefix: &prefix, delimiter, key_marker: &key_marker, version_marker, max };
    let (bucket, mut lines) = storage.look(|view| {
        let bucket = view.grant(call)?;
        let lines = if max == 0 { Vec::new() } else { lines(&bucket, &asked)? };
        Ok((bucket.read(Action::ObjectList)?, lines))
    })?;
    let truncated = lines.len() > max;
    lines.truncate(max);
    let next = lines.last().filter(|_| truncated).map(|line| match line {
        Line::Version(record, _) => (record.key.clone(), Some(versions::marker(&record.version, record.seq))),
        Line::Prefix(prefix) => (prefix.clone(), None),
    });
    let (mut versions, mut markers, mut prefixes) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        match line {
            Line::Prefix(prefix) => prefixes.push(dto::CommonPrefix { prefix: Some(url_encoded(prefix, encode)) }),
            Line::Version(record, latest) if record.delete_marker => markers.push(dto::DeleteMarkerEntry {
                is_latest: Some(latest),
                key: Some(url_encoded(record.key, encode)),
                last_modified: Some(timestamp(record.modified)),
                owner: Some(owner(&bucket.owner)),
                version_id: Some(record.version),
            }),
            Line::Version(record, latest) => versions.push(dto::ObjectVersion {
                is_latest: Some(latest),
                key: Some(url_encoded(record.key, encode)),
                last_modified: Some(timestamp(record.modified)),
                owner: Some(owner(&bucket.owner)),
                version_id: Some(record.version),
                e_tag: Some(dto::ETag::Strong(record.etag)),
                size: Some(record.size as i64),
                storage_class: Some(record.content.storage_class.unwrap_or_else(|| "STANDARD".into()).into()),
                ..Default::default()
            }),
        }
    }
    let (next_key, next_version) = next.map_or((None, None), |(key, version)| (Some(key), version));
    answer(dto::ListObjectVersionsOutput {
        name: Some(input.bucket),
        prefix: Some(url_encoded(prefix.clone(), encode)),
        key_marker: Some(url_encoded(key_marker.clone(), encode)),
        version_id_marker: Some(input.version_id_marker.clone().unwrap_or_default()),
        max_keys: Some(max as i32),
        is_truncated: Some(truncated),
        next_key_marker: next_key.map(|key| url_encoded(key, encode)),
        next_version_id_marker: next_version,
        versions: Some(versions),
        delete_markers: Some(markers),
        common_prefixes: Some(prefixes),
        delimiter: told_delimiter(input.delimiter.clone(), encode),
        encoding_type: input.encoding_type,
        request_charged: None,
    })
}

/// Whether a bucket has no object and no version. An upload under way does not keep it.
pub(crate) fn is_empty(bucket: &Granted<'_>) -> Result<bool> {
    for prefix in [rows::objects(bucket.id), rows::versions(bucket.id)] {
        let mut any = false;
        bucket.scan(&prefix, &prefix, |_, _| {
            any = true;
            Ok(ControlFlow::Break(()))
        })?;
        if any {
            return Ok(false);
        }
    }
    Ok(true)
}

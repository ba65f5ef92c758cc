//! Versions: the switch, and the listing.

use std::{ops::ControlFlow, sync::Arc};

use holdfast_core::IndexWrite;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer,
    list::{common_prefix, page_size, url_encoded, wants_url},
    owner, timestamp,
};
use crate::{
    Storage,
    error::error,
    record::{self, BucketRecord, ObjectRecord, Versioning},
    rows,
    view::{View, decode_object},
};

pub(crate) async fn put_bucket_versioning(
    storage: &Arc<Storage>,
    request: S3Request<dto::PutBucketVersioningInput>,
) -> S3Result<S3Response<dto::PutBucketVersioningOutput>> {
    let input = request.input;
    let wanted = match input.versioning_configuration.status.as_ref().map(dto::BucketVersioningStatus::as_str) {
        Some("Enabled") => Versioning::Enabled,
        Some("Suspended") => Versioning::Suspended,
        _ => return Err(error(S3ErrorCode::MalformedXML, "Status must be Enabled or Suspended")),
    };
    if input.versioning_configuration.mfa_delete.is_some_and(|mfa| mfa.as_str() == "Enabled") {
        return Err(crate::error::not_implemented("MFA delete is not supported"));
    }
    storage
        .transact(move |view| {
            let mut bucket = view.bucket(&input.bucket)?;
            bucket.versioning = wanted;
            Ok(((), vec![IndexWrite::put(rows::bucket(&bucket.name), record::encode(&bucket, &[]))]))
        })
        .await?;
    answer(dto::PutBucketVersioningOutput {})
}

pub(crate) async fn get_bucket_versioning(
    storage: &Arc<Storage>,
    request: S3Request<dto::GetBucketVersioningInput>,
) -> S3Result<S3Response<dto::GetBucketVersioningOutput>> {
    let bucket = storage.look(|view| view.bucket(&request.input.bucket))?;
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

/// Keys in order, from the version list and from objects that are in no list. `None` at the end.
fn next_key(
    view: &View<'_>,
    bucket: &BucketRecord,
    prefix: &str,
    from: &str,
    inclusive: bool,
) -> S3Result<Option<String>> {
    let later = |key: &str| if inclusive { key >= from } else { key > from };
    let mut found: Option<String> = None;
    let starts = |row: Vec<u8>, all: &[u8]| if row.as_slice() < all { all.to_vec() } else { row };
    let all = rows::object(bucket.id, prefix);
    view.scan(&starts(rows::object(bucket.id, from), &all), &all, |row, _| {
        let key = rows::key_of_object(row).unwrap_or_default();
        if later(key) {
            found = Some(key.to_owned());
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let all = [rows::versions(bucket.id), prefix.as_bytes().to_vec()].concat();
    let begin =
        if inclusive { rows::versions_of(bucket.id, from) } else { rows::after(&rows::versions_of(bucket.id, from)) };
    let begin = if from.is_empty() { all.clone() } else { starts(begin, &all) };
    view.scan(&begin, &all, |row, _| {
        let key = rows::key_of_version(row).unwrap_or_default();
        if later(key) {
            if found.as_deref().is_none_or(|known| key < known) {
                found = Some(key.to_owned());
            }
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// All versions of a key, newest first.
fn versions_of(view: &View<'_>, bucket: &BucketRecord, key: &str) -> S3Result<Vec<ObjectRecord>> {
    let mut versions: Vec<ObjectRecord> =
        view.versions_of(bucket.id, key)?.into_iter().map(|found| found.record).collect();
    if let Some(current) = view.current(bucket.id, key)?.filter(|current| !current.record.listed) {
        versions.insert(0, current.record);
    }
    Ok(versions)
}

struct Asked<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    key_marker: &'a str,
    version_marker: Option<&'a str>,
    max: usize,
}

fn page(view: &View<'_>, bucket: &BucketRecord, asked: &Asked<'_>) -> S3Result<(Vec<Line>, bool)> {
    let mut lines = Vec::new();
    let (mut from, mut inclusive) =
        (asked.key_marker.to_owned(), asked.version_marker.is_some() || asked.key_marker.is_empty());
    let mut skip_until = asked.version_marker.map(str::to_owned);
    if common_prefix(&from, asked.prefix, asked.delimiter) == Some(&from) {
        // The marker is a common prefix that was told: go on behind all that it stands for.
        from.push(char::MAX);
    }
    while let Some(key) = next_key(view, bucket, asked.prefix, &from, inclusive)? {
        if let Some(common) = common_prefix(&key, asked.prefix, asked.delimiter) {
            if lines.len() == asked.max {
                return Ok((lines, true));
            }
            lines.push(Line::Prefix(common.to_owned()));
            from = format!("{common}{}", char::MAX);
            inclusive = false;
            continue;
        }
        let mut latest = true;
        for version in versions_of(view, bucket, &key)? {
            let is_latest = std::mem::take(&mut latest);
            if let Some(marker) = skip_until.as_ref().filter(|_| key == asked.key_marker) {
                if *marker == version.version {
                    skip_until = None;
                }
                continue;
            }
            if lines.len() == asked.max {
                return Ok((lines, asked.max > 0));
            }
            lines.push(Line::Version(Box::new(version), is_latest));
        }
        skip_until = None;
        from = key;
        inclusive = false;
    }
    Ok((lines, false))
}

pub(crate) async fn list_object_versions(
    storage: &Arc<Storage>,
    request: S3Request<dto::ListObjectVersionsInput>,
) -> S3Result<S3Response<dto::ListObjectVersionsOutput>> {
    let input = request.input;
    let encode = wants_url(input.encoding_type.as_ref())?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let key_marker = input.key_marker.clone().unwrap_or_default();
    let asked = Asked {
        prefix: &prefix,
        delimiter: input.delimiter.as_deref(),
        key_marker: &key_marker,
        version_marker: input.version_id_marker.as_deref().filter(|marker| !marker.is_empty()),
        max: page_size(input.max_keys)?,
    };
    let (bucket, lines, truncated) = storage.look(|view| {
        let bucket = view.bucket(&input.bucket)?;
        let (lines, truncated) = page(view, &bucket, &asked)?;
        Ok((bucket, lines, truncated))
    })?;
    let next = lines.last().filter(|_| truncated).map(|line| match line {
        Line::Version(record, _) => (record.key.clone(), Some(record.version.clone())),
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
        max_keys: Some(asked.max as i32),
        is_truncated: Some(truncated),
        next_key_marker: next_key.map(|key| url_encoded(key, encode)),
        next_version_id_marker: next_version,
        versions: Some(versions),
        delete_markers: Some(markers),
        common_prefixes: Some(prefixes),
        delimiter: input.delimiter.clone().map(|delimiter| url_encoded(delimiter, encode)),
        encoding_type: input.encoding_type,
        request_charged: None,
    })
}

/// Whether anything is left in a bucket, a version or an upload.
pub(crate) fn is_empty(view: &View<'_>, bucket: &BucketRecord) -> S3Result<bool> {
    for prefix in [rows::objects(bucket.id), rows::versions(bucket.id), rows::uploads(bucket.id)] {
        let mut any = false;
        view.scan(&prefix, &prefix, |_, _| {
            any = true;
            Ok(ControlFlow::Break(()))
        })?;
        if any {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads an object row that a scan met.
pub(crate) fn record_of(value: &[u8]) -> S3Result<ObjectRecord> {
    decode_object(value).map(|found| found.record)
}

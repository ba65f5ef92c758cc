//! ListMultipartUploads and ListParts.

use std::{ops::ControlFlow, sync::Arc};

use holdfast_core::Action;
use s3s::{S3Request, S3Response, dto};

use super::{
    answer,
    list::{common_prefix, invalid_value, not_negative, page_size, told_delimiter, url_encoded, wants_url},
    multipart::checksum_type,
    owner, timestamp,
};
use crate::{
    Storage,
    body::told_checksum,
    call::Call,
    error::{Result, damaged},
    grant::Granted,
    record::{self, Id, UploadRecord},
    rows,
};

pub(crate) async fn list_parts(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::ListPartsInput>,
) -> Result<S3Response<dto::ListPartsOutput>> {
    let input = request.input;
    let max = page_size("max-parts", input.max_parts)?;
    let marker = not_negative("part-number-marker", input.part_number_marker)?.unwrap_or(0);
    let (bucket, upload, mut parts) = storage.look(|view| {
        let bucket = view.grant(call)?;
        let upload = bucket.upload(&input.key, &input.upload_id)?;
        // One more than asked for says that there is one.
        let parts = bucket.parts(&upload, u16::try_from(marker).unwrap_or(u16::MAX), max + 1)?;
        Ok((bucket.read(Action::ObjectList)?, upload, parts))
    })?;
    let truncated = max > 0 && parts.len() > max;
    parts.truncate(max);
    let page: Vec<dto::Part> = parts
        .into_iter()
        .map(|part| {
            let sum = told_checksum(part.checksum.as_ref());
            dto::Part {
                e_tag: Some(dto::ETag::Strong(part.etag)),
                last_modified: Some(timestamp(part.modified)),
                part_number: Some(i32::from(part.number)),
                size: Some(part.stream.size as i64),
                checksum_crc32: sum.checksum_crc32,
                checksum_crc32c: sum.checksum_crc32c,
                checksum_crc64nvme: sum.checksum_crc64nvme,
                checksum_sha1: sum.checksum_sha1,
                checksum_sha256: sum.checksum_sha256,
            }
        })
        .collect();
    answer(dto::ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        max_parts: Some(max as i32),
        part_number_marker: Some(marker),
        next_part_number_marker: Some(page.last().and_then(|part| part.part_number).unwrap_or(0)),
        is_truncated: Some(truncated),
        parts: Some(page),
        owner: Some(owner(&bucket.owner)),
        initiator: Some(dto::Initiator { display_name: Some(bucket.owner.clone()), id: Some(bucket.owner) }),
        storage_class: Some(upload.content.storage_class.unwrap_or_else(|| "STANDARD".into()).into()),
        checksum_type: upload.checksum_algorithm.is_some().then(|| checksum_type(upload.checksum_full_object)),
        checksum_algorithm: upload.checksum_algorithm.map(Into::into),
        ..Default::default()
    })
}

/// A line of the listing.
enum Entry {
    Upload(Box<UploadRecord>),
    Prefix(String),
}

/// Where the rows behind a marker begin, without the bucket: whether what it names is still there or not.
fn behind_marker((key, upload): &(String, String), prefix: &str, delimiter: Option<&str>) -> Result<Vec<u8>> {
    if let Some(common) = common_prefix(key, prefix, delimiter) {
        return Ok(rows::after(common.as_bytes()));
    }
    if key.is_empty() {
        return Ok(Vec::new());
    }
    if upload.is_empty() {
        return Ok([key.as_bytes(), &[1]].concat());
    }
    let id = Id::parse(upload).ok_or_else(|| invalid_value("upload-id-marker", "Invalid uploadId marker"))?;
    Ok([key.as_bytes(), &[0], &id.0, &[0]].concat())
}

fn entries(
    bucket: &Granted<'_>,
    prefix: &str,
    delimiter: Option<&str>,
    mut from: Vec<u8>,
    max: usize,
) -> Result<Vec<Entry>> {
    let rows_of = rows::uploads(bucket.id);
    let all = [&rows_of[..], prefix.as_bytes()].concat();
    let mut entries = Vec::new();
    loop {
        let mut skip = None;
        bucket.scan(&[&rows_of[..], &from].concat().max(all.clone()), &all, |_, value| {
            if entries.len() == max {
                return Ok(ControlFlow::Break(()));
            }
            let decoded: Option<(UploadRecord, _)> = record::decode(value);
            let (upload, _) = decoded.ok_or_else(|| damaged("an upload", "unreadable"))?;
            if let Some(common) = common_prefix(&upload.key, prefix, delimiter) {
                skip = Some(rows::after(common.as_bytes()));
                entries.push(Entry::Prefix(common.to_owned()));
                return Ok(ControlFlow::Break(()));
            }
            entries.push(Entry::Upload(Box::new(upload)));
            Ok(ControlFlow::Continue(()))
        })?;
        match skip {
            Some(behind) => from = behind,
            None => return Ok(entries),
        }
    }
}

pub(crate) async fn list_multipart_uploads(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::ListMultipartUploadsInput>,
) -> Result<S3Response<dto::ListMultipartUploadsOutput>> {
    let input = request.input;
    let encode = wants_url(input.encoding_type.as_ref())?;
    let max = page_size("max-uploads", input.max_uploads)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let marker = (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone().unwrap_or_default());
    let delimiter = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
    let from = behind_marker(&marker, &prefix, delimiter)?;
    let (bucket, mut entries) = storage.look(|view| {
        let bucket = view.grant(call)?;
        let entries = if max == 0 { Vec::new() } else { entries(&bucket, &prefix, delimiter, from, max + 1)? };
        Ok((bucket.read(Action::ObjectList)?, entries))
    })?;
    // One more than asked for says that there is one.
    let truncated = entries.len() > max;
    entries.truncate(max);
    let next = entries.last().filter(|_| truncated).map(|last| match last {
        Entry::Upload(upload) => (upload.key.clone(), upload.id.to_string()),
        Entry::Prefix(prefix) => (prefix.clone(), String::new()),
    });
    let (mut uploads, mut prefixes) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Upload(upload) => uploads.push(*upload),
            Entry::Prefix(prefix) => prefixes.push(prefix),
        }
    }
    let uploads = uploads.into_iter().map(|upload| dto::MultipartUpload {
        key: Some(url_encoded(upload.key, encode)),
        upload_id: Some(upload.id.to_string()),
        initiated: Some(timestamp(upload.initiated)),
        owner: Some(owner(&bucket.owner)),
        initiator: Some(dto::Initiator { display_name: Some(bucket.owner.clone()), id: Some(bucket.owner.clone()) }),
        storage_class: Some(upload.content.storage_class.unwrap_or_else(|| "STANDARD".into()).into()),
        checksum_type: upload.checksum_algorithm.is_some().then(|| checksum_type(upload.checksum_full_object)),
        checksum_algorithm: upload.checksum_algorithm.map(Into::into),
    });
    answer(dto::ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        uploads: Some(uploads.collect()),
        common_prefixes: Some(
            prefixes.into_iter().map(|p| dto::CommonPrefix { prefix: Some(url_encoded(p, encode)) }).collect(),
        ),
        prefix: Some(url_encoded(prefix.clone(), encode)),
        delimiter: told_delimiter(input.delimiter.clone(), encode),
        max_uploads: Some(max as i32),
        is_truncated: Some(truncated),
        key_marker: Some(url_encoded(marker.0, encode)),
        upload_id_marker: Some(marker.1),
        next_key_marker: next.as_ref().map(|(key, _)| url_encoded(key.clone(), encode)),
        next_upload_id_marker: next.map(|(_, id)| id),
        encoding_type: input.encoding_type.clone(),
        request_charged: None,
    })
}

//! CopyObject and UploadPartCopy: decrypted under the source's key and encrypted anew, piece by piece.

use std::sync::Arc;

use s3s::{S3Request, S3Response, dto};

use super::{
    answer, asked, check_content, check_key,
    conditions::{Conditions, WriteConditions},
    content, customer,
    get::Opened,
    multipart::OpenUpload,
    place::{New, place},
    source_customer, tagging, timestamp,
};
use crate::{
    Storage,
    body::{Claims, Target, told_checksum},
    call::Call,
    encryption::{CustomerKey, Key},
    error::{Error, Result, invalid_argument, invalid_request, not_implemented},
    record::{Id, ObjectRecord, Versioning},
};

struct Source {
    opened: Opened,
    key: Key,
    version: Option<String>,
}

impl Source {
    async fn open(
        storage: &Storage,
        call: &Call,
        source: &dto::CopySource,
        customer: CustomerKey,
        conditions: &Conditions,
    ) -> Result<(String, Self)> {
        let dto::CopySource::Bucket { bucket, key, version_id } = source else {
            return Err(not_implemented("Access points are not supported as a copy source"));
        };
        let opened = Opened::find_source(storage, call, key, version_id.as_deref()).map_err(|error| match error {
            Error::DeleteMarker(_) => invalid_request(
                "The source of a copy request may not specifically refer to a delete marker by version id.",
            ),
            other => other,
        })?;
        conditions.check_source(opened.record(), storage.now_millis())?;
        let unlocked = opened.unlock(storage, customer).await?;
        let version = (opened.bucket.versioning != Versioning::Off).then(|| opened.record().version.clone());
        Ok((bucket.to_string(), Self { opened, key: unlocked, version }))
    }

    async fn read(&self, storage: &Arc<Storage>, from: u64, to: u64) -> Result<dto::StreamingBlob> {
        let record = self.opened.record();
        let whose = (self.opened.bucket.id, record.object, record.dek());
        storage.read_body(whose, self.key.clone(), self.opened.segments(from, to), self.opened.hold()).await
    }
}

pub(crate) async fn copy_object(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::CopyObjectInput>,
) -> Result<S3Response<dto::CopyObjectOutput>> {
    let mut input = request.input;
    check_key(&input.key)?;
    let writes = WriteConditions::of(&request.headers);
    // Whoever would be refused in the end is refused before the source is read.
    let bucket = storage.look(|view| {
        let bucket = view.grant(call)?;
        writes.check(&input.key, bucket.current(&input.key)?.as_ref().map(|found| &found.record))?;
        Ok(bucket.known())
    })?;
    let conditions = Conditions {
        if_match: input.copy_source_if_match.take(),
        if_none_match: input.copy_source_if_none_match.take(),
        if_modified_since: input.copy_source_if_modified_since.take(),
        if_unmodified_since: input.copy_source_if_unmodified_since.take(),
    };
    let source_customer = source_customer!(input);
    let (source_bucket, source) = Source::open(storage, call, &input.copy_source, source_customer, &conditions).await?;
    let replace = match input.metadata_directive.as_ref().map(dto::MetadataDirective::as_str) {
        None | Some("COPY") => false,
        Some("REPLACE") => true,
        Some(_) => return Err(invalid_argument("Unknown metadata directive")),
    };
    let onto_itself = source_bucket == input.bucket
        && source.opened.record().key == input.key
        && source
            .version
            .as_deref()
            .is_none_or(|_| matches!(&input.copy_source, dto::CopySource::Bucket { version_id: None, .. }));
    let changes = replace
        || input.server_side_encryption.is_some()
        || input.sse_customer_key.is_some()
        || input.storage_class.is_some()
        || input.website_redirect_location.is_some();
    if onto_itself && !changes {
        return Err(invalid_request(
            "This copy request is illegal because it is trying to copy an object to itself without changing the \
             object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let mut content = content!(input, request.extensions);
    if !replace {
        let class = content.storage_class.take();
        let redirect = content.website_redirect.take();
        content = source.opened.record().content.clone();
        content.storage_class = class;
        content.website_redirect = redirect;
    }
    check_content(&content)?;
    let tags = match input.tagging_directive.as_ref().map(dto::TaggingDirective::as_str) {
        Some("REPLACE") => tagging::from_header(input.tagging.as_deref())?,
        None | Some("COPY") => source.opened.record().tags.clone(),
        Some(_) => return Err(invalid_argument("Unknown tagging directive")),
    };
    // Without headers: the destination's default, not the source's encryption.
    let object = Id::random(storage.ambient());
    let decided = storage.decide(call, &bucket, object, asked!(input)).await?;
    let algorithm = input.checksum_algorithm.take().map(|algorithm| algorithm.as_str().to_owned());
    let kept = || source.opened.record().checksum.as_ref().map(|checksum| checksum.algorithm.clone());
    let claims = Claims { checksum: algorithm.or_else(kept).map(|name| (name, None)), ..Claims::default() };
    let size = source.opened.record().size;
    let mut record = ObjectRecord::new(input.key, object, storage.now_millis(), decided.encryption.clone());
    record.content = content;
    record.tags = tags;
    let target =
        Target { bucket: bucket.id, object, dek: record.dek(), md5_etag: decided.md5_etag(), may_inline: true };
    let body = source.read(storage, 0, size).await?;
    let mut written = storage.write_body(target, decided.key.clone(), Some(body), claims).await?;
    if written.stream.size != size {
        return Err(Error::Internal("The source could not be read to its end"));
    }
    record.complete(&written);
    let told = storage.told(call, &bucket, &record.encryption);
    let (etag, modified) = (record.etag.clone(), record.modified);
    let new = New::object(storage, record, std::mem::take(&mut written.inline), decided.key);
    let sum = told_checksum(written.checksum.as_ref());
    let call = Arc::clone(call);
    let version = storage
        .transact_written(written, move |view| {
            let bucket = view.grant_same(&call, &bucket)?;
            let current = bucket.current(&new.record.key)?;
            writes.check(&new.record.key, current.as_ref().map(|found| &found.record))?;
            place(bucket, new)
        })
        .await?;
    answer(dto::CopyObjectOutput {
        copy_object_result: Some(dto::CopyObjectResult {
            e_tag: Some(dto::ETag::Strong(etag)),
            last_modified: Some(timestamp(modified)),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: sum.checksum_type,
        }),
        copy_source_version_id: source.version,
        version_id: version,
        server_side_encryption: told.sse,
        ssekms_key_id: told.kek,
        bucket_key_enabled: told.bucket_key,
        sse_customer_algorithm: told.customer_algorithm,
        sse_customer_key_md5: told.customer_key_md5,
        ..Default::default()
    })
}

/// `bytes=a-b`, both ends named and inside the source.
fn source_range(range: Option<&str>, size: u64) -> Result<(u64, u64)> {
    let Some(range) = range else { return Ok((0, size)) };
    let invalid = || invalid_argument("The x-amz-copy-source-range value must be of the form bytes=first-last");
    let (first, last) = range.strip_prefix("bytes=").and_then(|rest| rest.split_once('-')).ok_or_else(invalid)?;
    let (first, last): (u64, u64) = (first.parse().map_err(|_| invalid())?, last.parse().map_err(|_| invalid())?);
    if first > last || last >= size {
        return Err(Error::InvalidRange("The specified copy range is invalid for the source object size"));
    }
    Ok((first, last + 1))
}

pub(crate) async fn upload_part_copy(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::UploadPartCopyInput>,
) -> Result<S3Response<dto::UploadPartCopyOutput>> {
    let mut input = request.input;
    let conditions = Conditions {
        if_match: input.copy_source_if_match.take(),
        if_none_match: input.copy_source_if_none_match.take(),
        if_modified_since: input.copy_source_if_modified_since.take(),
        if_unmodified_since: input.copy_source_if_unmodified_since.take(),
    };
    if !(1..=10_000).contains(&input.part_number) {
        return Err(invalid_argument("Part number must be an integer between 1 and 10000, inclusive"));
    }
    let number = input.part_number as u16;
    let open = OpenUpload::find(storage, call, &input.key, &input.upload_id, customer!(input)).await?;
    let (_, source) = Source::open(storage, call, &input.copy_source, source_customer!(input), &conditions).await?;
    let (from, to) = source_range(input.copy_source_range.as_deref(), source.opened.record().size)?;
    let claims = open.fit_claims(Claims::default())?;
    let body = source.read(storage, from, to).await?;
    let written = storage.write_body(open.target(), open.key.clone(), Some(body), claims).await?;
    if written.stream.size != to - from {
        return Err(Error::Internal("The source could not be read to its end"));
    }
    let part = open.place_part(storage, call, number, written).await?;
    let told = storage.told(call, &open.bucket, &open.upload.encryption);
    let sum = told_checksum(part.checksum.as_ref());
    answer(dto::UploadPartCopyOutput {
        copy_part_result: Some(dto::CopyPartResult {
            e_tag: Some(dto::ETag::Strong(part.etag)),
            last_modified: Some(timestamp(part.modified)),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
        }),
        copy_source_version_id: source.version,
        server_side_encryption: told.sse,
        ssekms_key_id: told.kek,
        bucket_key_enabled: told.bucket_key,
        sse_customer_algorithm: told.customer_algorithm,
        sse_customer_key_md5: told.customer_key_md5,
        ..Default::default()
    })
}

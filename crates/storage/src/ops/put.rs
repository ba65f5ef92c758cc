//! PutObject and the POST form.

use std::sync::Arc;

use s3s::{S3Request, S3Response, dto};

use super::{
    answer, asked, check_content, check_key,
    conditions::WriteConditions,
    content,
    place::{New, place},
    tagging,
};
use crate::{
    Storage,
    body::{Claims, Target, told_checksum},
    call::Call,
    error::Result,
    record::{Id, ObjectRecord},
};

pub(crate) async fn put_object(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    mut request: S3Request<dto::PutObjectInput>,
) -> Result<S3Response<dto::PutObjectOutput>> {
    let mut claims = Claims::from_headers(&request.headers, request.trailing_headers.take())?;
    let mut input = request.input;
    check_key(&input.key)?;
    claims.content_length = input.content_length;
    if claims.content_md5.is_none() {
        claims.content_md5 = input.content_md5.take();
    }
    if claims.checksum.is_none() {
        claims.checksum = input.checksum_algorithm.take().map(|algorithm| (algorithm.as_str().to_owned(), None));
    }
    let tags = tagging::from_header(input.tagging.as_deref())?;
    let content = content!(input, request.extensions);
    check_content(&content)?;
    let asked = asked!(input);
    let conditions = WriteConditions::of(&request.headers);
    // Whoever would be refused in the end is refused before the body is taken in.
    let bucket = storage.look(|view| {
        let bucket = view.grant(call)?;
        conditions.check(&input.key, bucket.current(&input.key)?.as_ref().map(|found| &found.record))?;
        Ok(bucket.known())
    })?;
    let object = Id::random(storage.ambient());
    let decided = storage.decide(call, &bucket, object, asked).await?;
    let mut record = ObjectRecord::new(input.key, object, storage.now_millis(), decided.encryption.clone());
    record.content = content;
    record.tags = tags;
    let target =
        Target { bucket: bucket.id, object, dek: record.dek(), md5_etag: decided.md5_etag(), may_inline: true };
    let mut written = storage.write_body(target, decided.key.clone(), input.body, claims).await?;
    record.complete(&written);
    let told = storage.told(call, &bucket, &record.encryption);
    let (etag, size) = (record.etag.clone(), record.size);
    let new = New::object(storage, record, std::mem::take(&mut written.inline), decided.key);
    let sum = told_checksum(written.checksum.as_ref());
    let call = Arc::clone(call);
    let version = storage
        .transact_written(written, move |view| {
            let bucket = view.grant_same(&call, &bucket)?;
            let current = bucket.current(&new.record.key)?;
            conditions.check(&new.record.key, current.as_ref().map(|found| &found.record))?;
            place(bucket, new)
        })
        .await?;
    answer(dto::PutObjectOutput {
        e_tag: Some(dto::ETag::Strong(etag)),
        size: Some(size as i64),
        version_id: version,
        server_side_encryption: told.sse,
        ssekms_key_id: told.kek,
        bucket_key_enabled: told.bucket_key,
        sse_customer_algorithm: told.customer_algorithm,
        sse_customer_key_md5: told.customer_key_md5,
        checksum_crc32: sum.checksum_crc32,
        checksum_crc32c: sum.checksum_crc32c,
        checksum_crc64nvme: sum.checksum_crc64nvme,
        checksum_sha1: sum.checksum_sha1,
        checksum_sha256: sum.checksum_sha256,
        checksum_type: sum.checksum_type,
        ..Default::default()
    })
}

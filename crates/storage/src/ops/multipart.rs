//! Multipart uploads: each part is a stream of its own under the upload's one DEK. See `complete` for their end, `uploads` for
//! their listings.

use std::sync::Arc;

use holdfast_core::{Action, IndexWrite};
use s3s::{S3Request, S3Response, dto};

use super::{answer, asked, check_content, check_key, conditions::check_initiated, content, customer, tagging};
use crate::{
    Storage,
    body::{Claims, Target, Written, hasher, told_checksum},
    call::Call,
    encryption::{CustomerKey, Key},
    error::{Result, invalid_argument, invalid_request},
    event::About,
    grant::Known,
    record::{self, Encryption, FORMAT, Id, PartRecord, UploadRecord, Waste},
    rows,
    view::waste,
};

const PART_NUMBER_MAX: i32 = 10_000;

pub(crate) async fn create_multipart_upload(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::CreateMultipartUploadInput>,
) -> Result<S3Response<dto::CreateMultipartUploadOutput>> {
    let mut input = request.input;
    check_key(&input.key)?;
    storage.must_have_room(0).await?;
    let bucket = storage.look(|view| Ok(view.grant(call)?.known()))?;
    let tags = tagging::from_header(input.tagging.as_deref())?;
    let content = content!(input, request.extensions);
    check_content(&content)?;
    let algorithm = input.checksum_algorithm.take().map(|algorithm| algorithm.as_str().to_owned());
    if algorithm.as_deref().is_some_and(|name| hasher(name).is_none()) {
        return Err(invalid_request("The checksum algorithm is not supported"));
    }
    let full = match input.checksum_type.as_ref().map(dto::ChecksumType::as_str) {
        Some("FULL_OBJECT") => true,
        Some("COMPOSITE") => false,
        Some(_) => return Err(invalid_request("The checksum type is not supported")),
        None => algorithm.as_deref() == Some("CRC64NVME"),
    };
    let crc = algorithm.as_deref().is_none_or(|name| name.starts_with("CRC"));
    if (full && !crc) || (!full && algorithm.as_deref() == Some("CRC64NVME")) {
        return Err(invalid_request("The checksum type does not fit the checksum algorithm"));
    }
    let object = Id::random(storage.ambient());
    let decided = storage.decide(call, &bucket, object, asked!(input)).await?;
    let now = storage.now_millis();
    let mut upload = UploadRecord {
        v: FORMAT,
        id: Id::random_at(storage.ambient(), now),
        key: input.key.clone(),
        object,
        initiated: now,
        encryption: decided.encryption,
        content,
        checksum_algorithm: algorithm.clone(),
        checksum_full_object: full,
        tags,
        began_on: None,
        changes: 0,
    };
    let told = storage.told(call, &bucket, &upload.encryption);
    let id = upload.id;
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant_same(&call, &bucket)?;
            let newest = bucket.newest(&upload.key)?;
            upload.began_on = Some(newest.map(|newest| newest.object.to_string()).unwrap_or_default());
            let row = rows::upload(bucket.id, &upload.key, upload.id);
            let write = IndexWrite::put(row, record::encode(&upload, &[]));
            let about = About::upload(&bucket, &upload);
            Ok(((), bucket.change_object(Action::ObjectWrite, &upload.key, about, vec![write])?))
        })
        .await?;
    answer(dto::CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(id.to_string()),
        checksum_type: algorithm.is_some().then(|| checksum_type(full)),
        checksum_algorithm: algorithm.map(Into::into),
        server_side_encryption: told.sse,
        ssekms_key_id: told.kek,
        bucket_key_enabled: told.bucket_key,
        sse_customer_algorithm: told.customer_algorithm,
        sse_customer_key_md5: told.customer_key_md5,
        ..Default::default()
    })
}

pub(crate) fn checksum_type(full: bool) -> dto::ChecksumType {
    dto::ChecksumType::from_static(if full { "FULL_OBJECT" } else { "COMPOSITE" })
}

fn part_number(number: i32) -> Result<u16> {
    if (1..=PART_NUMBER_MAX).contains(&number) {
        return Ok(number as u16);
    }
    Err(invalid_argument("Part number must be an integer between 1 and 10000, inclusive"))
}

/// An upload with its bucket, and the key that its parts are under.
pub(crate) struct OpenUpload {
    pub bucket: Known,
    pub upload: UploadRecord,
    pub key: Key,
}

impl OpenUpload {
    pub(crate) async fn find(
        storage: &Storage,
        call: &Call,
        key: &str,
        upload: &str,
        customer: CustomerKey,
    ) -> Result<Self> {
        let (bucket, upload) = storage.look(|view| {
            let bucket = view.grant(call)?;
            let upload = bucket.upload(key, upload)?;
            Ok((bucket.known(), upload))
        })?;
        if matches!(upload.encryption, Encryption::Customer { .. }) && customer.key.is_none() {
            return Err(invalid_request("The upload was begun with a customer's key, and each part must bring it"));
        }
        let key = storage.key_for(&bucket, &upload.encryption, upload.object, customer).await?;
        Ok(Self { bucket, upload, key })
    }

    /// How the upload's own choice of checksum and the part's go together.
    pub(crate) fn fit_claims(&self, mut claims: Claims) -> Result<Claims> {
        match (&self.upload.checksum_algorithm, &claims.checksum) {
            (Some(chosen), Some((algorithm, _))) if chosen != algorithm => {
                Err(invalid_request("Checksum Type mismatch occurred: the part has another algorithm than the upload"))
            }
            (Some(chosen), None) => {
                claims.checksum = Some((chosen.clone(), None));
                Ok(claims)
            }
            _ => Ok(claims),
        }
    }

    pub(crate) fn target(&self) -> Target {
        let dek = match &self.upload.encryption {
            Encryption::Container { dek, .. } | Encryption::Object { dek, .. } => Some(*dek),
            Encryption::Customer { .. } | Encryption::Off => None,
        };
        let md5_etag = matches!(self.upload.encryption, Encryption::Container { kms: false, .. } | Encryption::Off);
        Target { bucket: self.bucket.id, object: self.upload.object, dek, md5_etag, may_inline: false }
    }

    /// A part takes its place; one of the same number becomes garbage.
    pub(crate) async fn place_part(
        &self,
        storage: &Arc<Storage>,
        call: &Arc<Call>,
        number: u16,
        written: Written,
    ) -> Result<PartRecord> {
        let part = PartRecord {
            v: FORMAT,
            number,
            stream: written.stream.clone(),
            etag: written.etag.clone(),
            modified: storage.now_millis(),
            checksum: written.checksum.clone(),
        };
        let (bucket, key, upload, placed) =
            (self.bucket.clone(), self.upload.key.clone(), self.upload.id, part.clone());
        let call = Arc::clone(call);
        storage
            .transact_written(written, move |view| {
                let bucket = view.grant_same(&call, &bucket)?;
                // Aborted or completed meanwhile?
                let mut open = bucket.upload(&key, &upload.to_string())?;
                let mut writes = Vec::new();
                if let Some(old) = bucket.part(upload, number)? {
                    writes.push(IndexWrite::put(rows::garbage(old.stream.id), Vec::new()));
                }
                writes.push(IndexWrite::put(rows::part(upload, number), record::encode(&placed, &[])));
                // Whoever completes it sees that its parts are others than he looked at.
                open.changes += 1;
                writes.push(IndexWrite::put(rows::upload(bucket.id, &key, upload), record::encode(&open, &[])));
                let about = About::upload(&bucket, &open).with("part", number);
                Ok(((), bucket.change_object(Action::ObjectWrite, &key, about, writes)?))
            })
            .await?;
        Ok(part)
    }
}

pub(crate) async fn upload_part(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    mut request: S3Request<dto::UploadPartInput>,
) -> Result<S3Response<dto::UploadPartOutput>> {
    if request.headers.contains_key("x-amz-server-side-encryption") {
        return Err(invalid_argument("x-amz-server-side-encryption is fixed when the upload is created"));
    }
    let mut claims = Claims::from_headers(&request.headers, request.trailing_headers.take())?;
    let mut input = request.input;
    claims.content_length = input.content_length;
    let number = part_number(input.part_number)?;
    let open = OpenUpload::find(storage, call, &input.key, &input.upload_id, customer!(input)).await?;
    let claims = open.fit_claims(claims)?;
    let written = storage.write_body(open.target(), open.key.clone(), input.body, claims).await?;
    let part = open.place_part(storage, call, number, written).await?;
    let told = storage.told(call, &open.bucket, &open.upload.encryption);
    let sum = told_checksum(part.checksum.as_ref());
    answer(dto::UploadPartOutput {
        e_tag: Some(dto::ETag::Strong(part.etag)),
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
        ..Default::default()
    })
}

/// Works though the key be away.
pub(crate) async fn abort_multipart_upload(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::AbortMultipartUploadInput>,
) -> Result<S3Response<dto::AbortMultipartUploadOutput>> {
    let input = request.input;
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant(&call)?;
            let upload = bucket.upload(&input.key, &input.upload_id)?;
            check_initiated(upload.initiated, input.if_match_initiated_time.as_ref())?;
            let about = About::upload(&bucket, &upload);
            let writes = vec![
                IndexWrite::remove(rows::upload(bucket.id, &upload.key, upload.id)),
                waste(upload.id, &Waste::Parts { v: FORMAT, object: None }),
            ];
            Ok(((), bucket.change_object(Action::ObjectDelete, &upload.key, about, writes)?))
        })
        .await?;
    Ok(S3Response::with_status(dto::AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}

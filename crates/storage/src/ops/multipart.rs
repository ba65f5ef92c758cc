//! Multipart uploads: each part is a stream of its own under the upload's one DEK; completing writes a manifest and moves
//! no data.

use std::{ops::ControlFlow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_core::IndexWrite;
use holdfast_crypto::md5::Md5;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer, asked, check_content, check_key,
    conditions::Conditions,
    content, customer,
    list::{common_prefix, page_size, url_encoded, wants_url},
    owner,
    place::{new_version, place},
    refuse_unkept, tagging, timestamp, whole_seconds,
};
use crate::{
    Storage,
    body::{Claims, Target, Written, checksum_value, hasher, hex, told_checksum},
    encryption::{CustomerKey, Key, refuse_unknown},
    error::{damaged, error, invalid_argument, invalid_request},
    record::{
        self, BucketRecord, ChecksumRecord, Encryption, FORMAT, Id, ManifestPart, ObjectRecord, PartRecord,
        UploadRecord, Versioning,
    },
    rows,
    view::View,
};

/// Smallest part but the last.
const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
const PART_NUMBER_MAX: i32 = 10_000;

pub(crate) async fn create_multipart_upload(
    storage: &Arc<Storage>,
    request: S3Request<dto::CreateMultipartUploadInput>,
) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
    refuse_unknown(&request.headers)?;
    refuse_unkept(&request.headers)?;
    let mut input = request.input;
    check_key(&input.key)?;
    let bucket = storage.look(|view| view.bucket(&input.bucket))?;
    let tags = tagging::from_header(input.tagging.as_deref())?;
    let content = content!(input);
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
    let decided = storage.decide(&bucket, object, asked!(input)).await?;
    let upload = UploadRecord {
        v: FORMAT,
        id: Id::random(storage.ambient()),
        key: input.key.clone(),
        object,
        initiated: storage.now_millis(),
        encryption: decided.encryption,
        content,
        checksum_algorithm: algorithm.clone(),
        checksum_full_object: full,
        tags,
    };
    let told = storage.told(&bucket, &upload.encryption);
    let id = upload.id;
    let bucket_known = bucket;
    storage
        .transact(move |view| {
            let bucket = view.same_bucket(&bucket_known)?;
            let row = rows::upload(bucket.id, &upload.key, upload.id);
            Ok(((), vec![IndexWrite::put(row, record::encode(&upload, &[]))]))
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

fn checksum_type(full: bool) -> dto::ChecksumType {
    dto::ChecksumType::from_static(if full { "FULL_OBJECT" } else { "COMPOSITE" })
}

fn part_number(number: i32) -> S3Result<u16> {
    if (1..=PART_NUMBER_MAX).contains(&number) {
        return Ok(number as u16);
    }
    Err(invalid_argument("Part number must be an integer between 1 and 10000, inclusive"))
}

/// An upload with its bucket, and the key that its parts are under.
pub(crate) struct OpenUpload {
    pub bucket: BucketRecord,
    pub upload: UploadRecord,
    pub key: Key,
}

impl OpenUpload {
    pub(crate) async fn find(
        storage: &Storage,
        bucket: &str,
        key: &str,
        upload: &str,
        customer: CustomerKey,
    ) -> S3Result<Self> {
        let (bucket, upload) = storage.look(|view| {
            let bucket = view.bucket(bucket)?;
            let upload = view.upload(bucket.id, key, upload)?;
            Ok((bucket, upload))
        })?;
        if matches!(upload.encryption, Encryption::Customer { .. }) && customer.key.is_none() {
            return Err(invalid_request("The upload was begun with a customer's key, and each part must bring it"));
        }
        let key = storage.key_for(&bucket, &upload.encryption, upload.object, customer).await?;
        Ok(Self { bucket, upload, key })
    }

    /// How the upload's own choice of checksum and the part's go together.
    pub(crate) fn fit_claims(&self, mut claims: Claims) -> S3Result<Claims> {
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
        number: u16,
        written: &mut Written,
    ) -> S3Result<PartRecord> {
        let part = PartRecord {
            v: FORMAT,
            number,
            stream: written.stream.clone(),
            etag: written.etag.clone(),
            modified: storage.now_millis(),
            checksum: written.checksum.clone(),
        };
        let (bucket, key, upload, placed) = (self.bucket.id, self.upload.key.clone(), self.upload.id, part.clone());
        storage
            .transact(move |view| {
                // Aborted or completed meanwhile?
                view.upload(bucket, &key, &upload.to_string())?;
                let mut writes = Vec::new();
                if let Some(old) = view.part(upload, number)? {
                    writes.push(IndexWrite::put(rows::garbage(old.stream.id), Vec::new()));
                }
                writes.push(IndexWrite::put(rows::part(upload, number), record::encode(&placed, &[])));
                Ok(((), writes))
            })
            .await?;
        written.keep();
        Ok(part)
    }
}

pub(crate) async fn upload_part(
    storage: &Arc<Storage>,
    mut request: S3Request<dto::UploadPartInput>,
) -> S3Result<S3Response<dto::UploadPartOutput>> {
    if request.headers.contains_key("x-amz-server-side-encryption") {
        return Err(invalid_argument("x-amz-server-side-encryption is fixed when the upload is created"));
    }
    let mut claims = Claims::from_headers(&request.headers, request.trailing_headers.take())?;
    let mut input = request.input;
    claims.content_length = input.content_length;
    let number = part_number(input.part_number)?;
    let open = OpenUpload::find(storage, &input.bucket, &input.key, &input.upload_id, customer!(input)).await?;
    let claims = open.fit_claims(claims)?;
    let mut written = storage.write_body(open.target(), open.key.clone(), input.body, claims).await?;
    let part = open.place_part(storage, number, &mut written).await?;
    let told = storage.told(&open.bucket, &open.upload.encryption);
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

/// The parts that a client names, checked against those uploaded.
fn chosen_parts(named: Option<dto::CompletedMultipartUpload>, uploaded: &[PartRecord]) -> S3Result<Vec<PartRecord>> {
    let named = named.and_then(|named| named.parts).unwrap_or_default();
    if named.is_empty() {
        return Err(error(S3ErrorCode::MalformedXML, "The list of parts is empty"));
    }
    let mut chosen: Vec<PartRecord> = Vec::with_capacity(named.len());
    for part in named {
        let invalid = || error(S3ErrorCode::InvalidPart, "One or more of the specified parts could not be found");
        let number = part.part_number.and_then(|number| u16::try_from(number).ok()).ok_or_else(invalid)?;
        if chosen.last().is_some_and(|last| last.number >= number) {
            return Err(error(S3ErrorCode::InvalidPartOrder, "The list of parts was not in ascending order"));
        }
        let at = uploaded.binary_search_by_key(&number, |part| part.number).map_err(|_| invalid())?;
        let found = &uploaded[at];
        if part.e_tag.as_ref().is_some_and(|etag| etag.value() != found.etag) {
            return Err(invalid());
        }
        let claimed = [
            ("CRC32", &part.checksum_crc32),
            ("CRC32C", &part.checksum_crc32c),
            ("CRC64NVME", &part.checksum_crc64nvme),
            ("SHA1", &part.checksum_sha1),
            ("SHA256", &part.checksum_sha256),
        ];
        for (algorithm, value) in claimed {
            let known = found.checksum.as_ref().filter(|known| known.algorithm == algorithm);
            if value.is_some() && known.is_some_and(|known| Some(&known.value) != value.as_ref()) {
                return Err(invalid());
            }
        }
        chosen.push(found.clone());
    }
    let (_, but_last) = chosen.split_last().ok_or_else(|| error(S3ErrorCode::MalformedXML, "no parts"))?;
    if but_last.iter().any(|part| part.stream.size < PART_BYTES_MIN) {
        let message = "Your proposed upload is smaller than the minimum allowed size";
        return Err(error(S3ErrorCode::EntityTooSmall, message));
    }
    Ok(chosen)
}

/// MD5 over the parts' ETags, and their number.
fn etag_of(parts: &[PartRecord]) -> String {
    let mut md5 = Md5::default();
    for part in parts {
        let digits = part.etag.as_bytes();
        let bytes: Vec<u8> =
            digits.chunks(2).filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
        md5.update(&bytes);
    }
    format!("{}-{}", hex(&md5.finish()), parts.len())
}

/// A composite checksum (the checksum of the parts' checksums), or one of the whole object.
fn checksum_of(upload: &UploadRecord, parts: &[PartRecord]) -> Option<ChecksumRecord> {
    let algorithm = upload.checksum_algorithm.clone()?;
    let of_parts: Option<Vec<Vec<u8>>> =
        parts.iter().map(|part| BASE64.decode(&part.checksum.as_ref()?.value).ok()).collect();
    let of_parts = of_parts?;
    if upload.checksum_full_object {
        let crc = match algorithm.as_str() {
            "CRC32" => crc_fast::CrcAlgorithm::Crc32IsoHdlc,
            "CRC32C" => crc_fast::CrcAlgorithm::Crc32Iscsi,
            "CRC64NVME" => crc_fast::CrcAlgorithm::Crc64Nvme,
            _ => return None,
        };
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let width = of_parts.first()?.len();
        let combined = of_parts.iter().zip(parts).fold(None, |all, (sum, part)| match all {
            None => Some(number(sum)),
            Some(all) => Some(crc_fast::checksum_combine(crc, all, number(sum), part.stream.size)),
        })?;
        let value = BASE64.encode(&combined.to_be_bytes()[8 - width..]);
        return Some(ChecksumRecord { algorithm, value, composite: false });
    }
    let mut hasher = hasher(&algorithm)?;
    of_parts.iter().for_each(|sum| hasher.update(sum));
    let value = format!("{}-{}", checksum_value(hasher)?, parts.len());
    Some(ChecksumRecord { algorithm, value, composite: true })
}

fn check_claimed(input: &dto::CompleteMultipartUploadInput, checksum: Option<&ChecksumRecord>) -> S3Result<()> {
    let claimed = [
        ("CRC32", &input.checksum_crc32),
        ("CRC32C", &input.checksum_crc32c),
        ("CRC64NVME", &input.checksum_crc64nvme),
        ("SHA1", &input.checksum_sha1),
        ("SHA256", &input.checksum_sha256),
    ];
    for (algorithm, value) in claimed {
        let Some(value) = value else { continue };
        let known = checksum.filter(|known| known.algorithm == algorithm);
        let known = known.ok_or_else(|| invalid_request("The upload was not created with this checksum algorithm"))?;
        // A composite one may be told with or without the number of parts.
        if known.value != *value && known.value.split('-').next() != Some(value) {
            return Err(error(
                S3ErrorCode::BadDigest,
                "The checksum you specified did not match the calculated checksum",
            ));
        }
    }
    Ok(())
}

/// The object that an upload becomes, with its manifest.
struct Completed {
    record: ObjectRecord,
    manifest: Vec<u8>,
    chosen: Vec<Id>,
}

async fn completed(
    storage: &Storage,
    bucket: &BucketRecord,
    upload: &UploadRecord,
    input: &mut dto::CompleteMultipartUploadInput,
) -> S3Result<Completed> {
    let uploaded = storage.look(|view| view.parts(upload.id))?;
    let parts = chosen_parts(input.multipart_upload.take(), &uploaded)?;
    let size = parts.iter().map(|part| part.stream.size).sum();
    if input.mpu_object_size.is_some_and(|claimed| claimed != size as i64) {
        return Err(invalid_request("The object is not of the size claimed"));
    }
    let checksum = checksum_of(upload, &parts);
    check_claimed(input, checksum.as_ref())?;
    let manifest: Vec<ManifestPart> = parts
        .iter()
        .map(|part| ManifestPart { number: part.number, stream: part.stream.clone(), checksum: part.checksum.clone() })
        .collect();
    let manifest = serde_json::to_vec(&manifest).map_err(|_| damaged("a manifest", &upload.key))?;
    let mut record = ObjectRecord::new(
        upload.key.clone(),
        upload.object,
        new_version(storage, bucket),
        storage.now_millis(),
        upload.encryption.clone(),
    );
    record.size = size;
    record.etag = etag_of(&parts);
    record.parts = parts.len() as u32;
    record.content = upload.content.clone();
    record.checksum = checksum;
    record.tags.clone_from(&upload.tags);
    // A customer's key need not come along here; such an object has no MAC, only its streams are authenticated.
    if !matches!(upload.encryption, Encryption::Customer { .. }) {
        let key = storage.key_for(bucket, &upload.encryption, upload.object, CustomerKey::default()).await?;
        if let Some(dek) = key.bytes() {
            record.authenticate(dek, bucket.id, Some(&manifest));
        }
    }
    Ok(Completed { record, manifest, chosen: parts.iter().map(|part| part.stream.id).collect() })
}

pub(crate) async fn complete_multipart_upload(
    storage: &Arc<Storage>,
    request: S3Request<dto::CompleteMultipartUploadInput>,
) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
    let mut input = request.input;
    let (bucket, upload) = storage.look(|view| {
        let bucket = view.bucket(&input.bucket)?;
        let upload = view.upload(bucket.id, &input.key, &input.upload_id)?;
        Ok((bucket, upload))
    })?;
    let Completed { record, manifest, chosen } = completed(storage, &bucket, &upload, &mut input).await?;
    let told = storage.told(&bucket, &record.encryption);
    let sum = told_checksum(record.checksum.as_ref());
    let etag = record.etag.clone();
    let version = (bucket.versioning != Versioning::Off).then(|| record.version.clone());
    let conditions =
        Conditions { if_match: input.if_match, if_none_match: input.if_none_match, ..Conditions::default() };
    storage
        .transact(move |view| {
            let bucket = view.same_bucket(&bucket)?;
            view.upload(bucket.id, &upload.key, &upload.id.to_string())?;
            let current = view.current(bucket.id, &upload.key)?;
            conditions.check_write(current.as_ref().map(|found| &found.record))?;
            // A part that was uploaded again meanwhile is another than the manifest names.
            let now = view.parts(upload.id)?;
            if chosen.iter().any(|id| !now.iter().any(|part| part.stream.id == *id)) {
                return Err(error(S3ErrorCode::InvalidPart, "A part was replaced while the upload was completed"));
            }
            let object = record.object;
            let mut writes = place(view, &bucket, record, &[])?;
            writes.push(IndexWrite::put(rows::manifest(object), manifest));
            writes.extend(remove_upload(view, bucket.id, &upload, |stream| !chosen.contains(&stream))?);
            Ok(((), writes))
        })
        .await?;
    answer(dto::CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(dto::ETag::Strong(etag)),
        version_id: version,
        server_side_encryption: told.sse,
        ssekms_key_id: told.kek,
        bucket_key_enabled: told.bucket_key,
        checksum_crc32: sum.checksum_crc32,
        checksum_crc32c: sum.checksum_crc32c,
        checksum_crc64nvme: sum.checksum_crc64nvme,
        checksum_sha1: sum.checksum_sha1,
        checksum_sha256: sum.checksum_sha256,
        checksum_type: sum.checksum_type,
        ..Default::default()
    })
}

/// Removes an upload and its rows; streams for which `garbage` holds are to be deleted.
fn remove_upload(
    view: &View<'_>,
    bucket: Id,
    upload: &UploadRecord,
    garbage: impl Fn(Id) -> bool,
) -> S3Result<Vec<IndexWrite>> {
    let mut writes = vec![IndexWrite::remove(rows::upload(bucket, &upload.key, upload.id))];
    for part in view.parts(upload.id)? {
        writes.push(IndexWrite::remove(rows::part(upload.id, part.number)));
        if garbage(part.stream.id) {
            writes.push(IndexWrite::put(rows::garbage(part.stream.id), Vec::new()));
        }
    }
    Ok(writes)
}

/// Works though the key be away.
pub(crate) async fn abort_multipart_upload(
    storage: &Arc<Storage>,
    request: S3Request<dto::AbortMultipartUploadInput>,
) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
    let input = request.input;
    storage
        .transact(move |view| {
            let bucket = view.bucket(&input.bucket)?;
            let upload = view.upload(bucket.id, &input.key, &input.upload_id)?;
            Ok(((), remove_upload(view, bucket.id, &upload, |_| true)?))
        })
        .await?;
    Ok(S3Response::with_status(dto::AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(crate) async fn list_parts(
    storage: &Arc<Storage>,
    request: S3Request<dto::ListPartsInput>,
) -> S3Result<S3Response<dto::ListPartsOutput>> {
    let input = request.input;
    let (bucket, upload, parts) = storage.look(|view| {
        let bucket = view.bucket(&input.bucket)?;
        let upload = view.upload(bucket.id, &input.key, &input.upload_id)?;
        let parts = view.parts(upload.id)?;
        Ok((bucket, upload, parts))
    })?;
    let max = page_size(input.max_parts)?;
    let marker = input.part_number_marker.unwrap_or(0);
    let later: Vec<PartRecord> = parts.into_iter().filter(|part| i32::from(part.number) > marker).collect();
    let truncated = later.len() > max;
    let page: Vec<dto::Part> = later
        .into_iter()
        .take(max)
        .map(|part| {
            let sum = told_checksum(part.checksum.as_ref());
            dto::Part {
                e_tag: Some(dto::ETag::Strong(part.etag)),
                last_modified: Some(timestamp(whole_seconds(part.modified))),
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
        next_part_number_marker: page.last().and_then(|part| part.part_number),
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

pub(crate) async fn list_multipart_uploads(
    storage: &Arc<Storage>,
    request: S3Request<dto::ListMultipartUploadsInput>,
) -> S3Result<S3Response<dto::ListMultipartUploadsOutput>> {
    let input = request.input;
    let encode = wants_url(input.encoding_type.as_ref())?;
    let max = page_size(input.max_uploads)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let marker = (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone().unwrap_or_default());
    let after = |upload: &UploadRecord| match (marker.0.as_str(), marker.1.as_str()) {
        ("", _) => true,
        (key, "") => upload.key.as_str() > key,
        (key, id) => (upload.key.as_str(), upload.id.to_string().as_str()) > (key, id),
    };
    let (mut uploads, mut prefixes, mut truncated) = (Vec::new(), Vec::<String>::new(), false);
    let bucket = storage.look(|view| {
        let bucket = view.bucket(&input.bucket)?;
        let all = [rows::uploads(bucket.id), prefix.as_bytes().to_vec()].concat();
        view.scan(&all, &all, |_, value| {
            let decoded: Option<(UploadRecord, _)> = record::decode(value);
            let (upload, _) = decoded.ok_or_else(|| damaged("an upload", "unreadable"))?;
            if !after(&upload) {
                return Ok(ControlFlow::Continue(()));
            }
            let common = common_prefix(&upload.key, &prefix, input.delimiter.as_deref()).map(str::to_owned);
            if common.is_some() && common.as_ref() == prefixes.last() {
                return Ok(ControlFlow::Continue(()));
            }
            if uploads.len() + prefixes.len() == max {
                truncated = true;
                return Ok(ControlFlow::Break(()));
            }
            match common {
                Some(common) => prefixes.push(common),
                None => uploads.push(upload),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(bucket)
    })?;
    let next = uploads.last().filter(|_| truncated).map(|upload| (upload.key.clone(), upload.id.to_string()));
    let uploads = uploads.into_iter().map(|upload| dto::MultipartUpload {
        key: Some(url_encoded(upload.key, encode)),
        upload_id: Some(upload.id.to_string()),
        initiated: Some(timestamp(whole_seconds(upload.initiated))),
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
        delimiter: input.delimiter.clone(),
        max_uploads: Some(max as i32),
        is_truncated: Some(truncated),
        key_marker: Some(marker.0.clone()),
        upload_id_marker: Some(marker.1.clone()),
        next_key_marker: next.as_ref().map(|(key, _)| key.clone()),
        next_upload_id_marker: next.map(|(_, id)| id),
        encoding_type: input.encoding_type.clone(),
        request_charged: None,
    })
}

//! CompleteMultipartUpload: writes a manifest and moves no data. Its answer is remembered, so that a client that lost it and asks
//! again hears the same.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_core::{Action, IndexWrite, hex};
use holdfast_crypto::{kdf::sha256, md5::Md5};
use s3s::{S3Request, S3Response, dto};

use super::{
    answer,
    conditions::WriteConditions,
    place::{New, Placed, placed},
};
use crate::{
    Storage,
    body::{checksum_value, hasher, told_checksum},
    call::Call,
    encryption::{CustomerKey, Key},
    error::{Error, Result, damaged, invalid_request},
    event::About,
    grant::{Granted, Known},
    record::{
        self, ChecksumRecord, CompletedRecord, Encryption, FORMAT, ManifestDigest, ManifestPart, ObjectRecord,
        PartRecord, UploadRecord, Waste,
    },
    rows,
    view::waste,
};

/// Smallest part but the last.
const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Parts of one upload.
const PARTS_MAX: usize = 10_000;

/// The parts that a client names, checked against those uploaded.
fn chosen_parts(named: Option<dto::CompletedMultipartUpload>, uploaded: &[PartRecord]) -> Result<Vec<PartRecord>> {
    let named = named.and_then(|named| named.parts).unwrap_or_default();
    if named.is_empty() {
        return Err(Error::MalformedXml("The list of parts is empty"));
    }
    let mut chosen: Vec<PartRecord> = Vec::with_capacity(named.len());
    for part in named {
        let invalid = || Error::InvalidPart("One or more of the specified parts could not be found");
        let number = part.part_number.and_then(|number| u16::try_from(number).ok()).ok_or_else(invalid)?;
        if chosen.last().is_some_and(|last| last.number >= number) {
            return Err(Error::InvalidPartOrder);
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
    let (_, but_last) = chosen.split_last().ok_or_else(|| Error::MalformedXml("no parts"))?;
    if but_last.iter().any(|part| part.stream.size < PART_BYTES_MIN) {
        return Err(Error::TooSmall);
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

fn check_claimed(input: &dto::CompleteMultipartUploadInput, checksum: Option<&ChecksumRecord>) -> Result<()> {
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
            return Err(Error::BadDigest("The checksum you specified did not match the calculated checksum".into()));
        }
    }
    Ok(())
}

/// What tells one list of parts from another.
fn digest_of(named: Option<&dto::CompletedMultipartUpload>) -> String {
    let parts = named.and_then(|named| named.parts.as_deref()).unwrap_or_default();
    let text = parts.iter().map(|part| {
        let etag = part.e_tag.as_ref().map_or("", dto::ETag::value);
        format!("{} {etag}\n", part.part_number.unwrap_or(0))
    });
    BASE64.encode(sha256(&[text.collect::<String>().as_bytes()]))
}

/// The object that an upload becomes, with its manifest.
struct Prepared {
    new: New,
    manifest: Vec<u8>,
}

async fn prepare(
    storage: &Storage,
    bucket: &Known,
    upload: &UploadRecord,
    uploaded: &[PartRecord],
    input: &mut dto::CompleteMultipartUploadInput,
) -> Result<Prepared> {
    let parts = chosen_parts(input.multipart_upload.take(), uploaded)?;
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
    let mut record =
        ObjectRecord::new(upload.key.clone(), upload.object, storage.now_millis(), upload.encryption.clone());
    record.size = size;
    record.etag = etag_of(&parts);
    record.parts = parts.len() as u32;
    record.content = upload.content.clone();
    record.checksum = checksum;
    record.tags.clone_from(&upload.tags);
    // A customer's key need not come along here; such an object has no MAC, only its streams are authenticated.
    let key = match &upload.encryption {
        Encryption::Customer { .. } => Key::None,
        encryption => storage.key_for(bucket, encryption, upload.object, CustomerKey::default()).await?,
    };
    let mut new = New::object(storage, record, Vec::new(), key);
    new.manifest = Some(ManifestDigest::of(&manifest));
    Ok(Prepared { new, manifest })
}

/// The answer of before, if this upload was completed with the same parts.
fn answer_of_before(bucket: &Granted<'_>, key: &str, upload: &str, parts: &str) -> Result<Option<CompletedRecord>> {
    Ok(bucket.completed(key, upload)?.filter(|done| done.parts == parts))
}

/// What the request is about, as far as it has not been answered already.
enum Found {
    Open(Known, Box<UploadRecord>, Vec<PartRecord>),
    Done(CompletedRecord),
}

pub(crate) async fn complete_multipart_upload(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::CompleteMultipartUploadInput>,
) -> Result<S3Response<dto::CompleteMultipartUploadOutput>> {
    let conditions = WriteConditions::of(&request.headers);
    let mut input = request.input;
    let parts = digest_of(input.multipart_upload.as_ref());
    let found = storage.look(|view| {
        let bucket = view.grant(call)?;
        if let Some(done) = answer_of_before(&bucket, &input.key, &input.upload_id, &parts)? {
            return Ok(Found::Done(done));
        }
        let upload = bucket.upload(&input.key, &input.upload_id)?;
        check(&bucket, &upload, &conditions)?;
        let uploaded = bucket.parts(&upload, 0, PARTS_MAX)?;
        Ok(Found::Open(bucket.known(), Box::new(upload), uploaded))
    })?;
    let done = match found {
        Found::Done(done) => done,
        Found::Open(bucket, upload, uploaded) => {
            let prepared = prepare(storage, &bucket, &upload, &uploaded, &mut input).await?;
            commit(storage, call, bucket, *upload, prepared, conditions, parts).await?
        }
    };
    let sum = told_checksum(done.checksum.as_ref());
    answer(dto::CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(dto::ETag::Strong(done.etag)),
        version_id: done.version,
        server_side_encryption: done.sse.map(Into::into),
        ssekms_key_id: done.kek,
        bucket_key_enabled: done.bucket_key.then_some(true),
        checksum_crc32: sum.checksum_crc32,
        checksum_crc32c: sum.checksum_crc32c,
        checksum_crc64nvme: sum.checksum_crc64nvme,
        checksum_sha1: sum.checksum_sha1,
        checksum_sha256: sum.checksum_sha256,
        checksum_type: sum.checksum_type,
        ..Default::default()
    })
}

/// The preconditions: of the key as it is now, and that nobody touched it since the upload began.
fn check(bucket: &Granted<'_>, upload: &UploadRecord, conditions: &WriteConditions) -> Result<()> {
    let newest = bucket.newest(&upload.key)?;
    conditions.check(&upload.key, newest.as_ref().filter(|newest| !newest.delete_marker))?;
    match &upload.began_on {
        Some(began_on) => conditions.check_since(&upload.key, began_on, newest.as_ref()),
        None => Ok(()),
    }
}

async fn commit(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    bucket: Known,
    upload: UploadRecord,
    prepared: Prepared,
    conditions: WriteConditions,
    parts: String,
) -> Result<CompletedRecord> {
    let told = storage.told(call, &bucket, &upload.encryption);
    let mut done = CompletedRecord {
        v: FORMAT,
        completed: storage.now_millis(),
        parts,
        etag: prepared.new.record.etag.clone(),
        version: None,
        sse: told.sse.map(|sse| sse.as_str().to_owned()),
        kek: told.kek,
        bucket_key: told.bucket_key.unwrap_or(false),
        checksum: prepared.new.record.checksum.clone(),
    };
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant_same(&call, &bucket)?;
            let id = upload.id.to_string();
            // Somebody else may have sent the same request.
            if let Some(done) = answer_of_before(&bucket, &upload.key, &id, &done.parts)? {
                let about = About::upload(&bucket, &upload).with("answered_before", "true");
                return Ok((done, bucket.change_object(Action::ObjectWrite, &upload.key, about, Vec::new())?));
            }
            // A part that was uploaded again meanwhile is another than the manifest names.
            if bucket.upload(&upload.key, &id)?.changes != upload.changes {
                return Err(Error::InvalidPart("A part was replaced while the upload was completed"));
            }
            check(&bucket, &upload, &conditions)?;
            let Prepared { new, manifest } = prepared;
            let object = new.record.object;
            let Placed { told, about, mut writes } = placed(&bucket, new)?;
            done.version = told;
            writes.push(IndexWrite::put(rows::manifest(object), manifest));
            writes.push(IndexWrite::remove(rows::upload(bucket.id, &upload.key, upload.id)));
            writes.push(waste(upload.id, &Waste::Parts { v: FORMAT, object: Some(object) }));
            let row = rows::completed(bucket.id, &upload.key, upload.id);
            writes.push(IndexWrite::put(row, record::encode(&done, &[])));
            let about = about.with("upload", upload.id);
            Ok((done, bucket.change_object(Action::ObjectWrite, &upload.key, about, writes)?))
        })
        .await
}

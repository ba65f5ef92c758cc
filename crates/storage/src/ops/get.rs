//! GetObject, HeadObject, GetObjectAttributes.

use std::sync::Arc;

use holdfast_core::Action;
use http::{HeaderName, HeaderValue};
use s3s::{S3Request, S3Response, dto};

use super::{answer, conditions::Conditions, customer, timestamp};
use crate::{
    Storage,
    body::{Segment, told_checksum},
    call::Call,
    encryption::{CustomerKey, Key},
    error::{Error, Result, damaged, invalid_argument},
    event::About,
    grant::Known,
    readers::Hold,
    record::{ChecksumRecord, ManifestDigest, ManifestPart, ObjectRecord, Versioning},
    view::{Found, decode_manifest},
};

/// An object found for reading, with all that its reading needs.
pub(crate) struct Opened {
    pub bucket: Known,
    pub found: Found,
    pub manifest: Option<Vec<u8>>,
    pub parts: Vec<ManifestPart>,
    hold: Option<Arc<Hold>>,
}

impl Opened {
    /// The object that a request is about.
    pub(crate) fn find(storage: &Storage, call: &Call, key: &str, version: Option<&str>) -> Result<Self> {
        let opened = Self::find_in(storage, call, false, key, version)?;
        call.note(About::object(&opened.bucket, opened.record()));
        Ok(opened)
    }

    /// The object that a request copies from.
    pub(crate) fn find_source(storage: &Storage, call: &Call, key: &str, version: Option<&str>) -> Result<Self> {
        Self::find_in(storage, call, true, key, version)
    }

    fn find_in(storage: &Storage, call: &Call, source: bool, key: &str, version: Option<&str>) -> Result<Self> {
        let look = || {
            storage.look(|view| {
                let bucket = if source { view.grant_source(call)? } else { view.grant(call)? };
                let found = bucket.object(key, version)?;
                let manifest = match found.record.parts {
                    0 => None,
                    _ => Some(bucket.manifest_bytes(&found.record)?),
                };
                let parts = manifest.as_deref().map_or(Ok(Vec::new()), decode_manifest)?;
                let known = bucket.known();
                bucket.read(Action::ObjectRead)?;
                Ok(Self { bucket: known, found, manifest, parts, hold: None })
            })
        };
        let (mut opened, hold) = storage.readers.find(look, |opened: &Self| opened.record().object)?;
        opened.hold = Some(hold);
        Ok(opened)
    }

    /// Keeps the object's blobs for as long as they are read, whatever becomes of the object meanwhile.
    pub(crate) fn hold(&self) -> Option<Arc<Hold>> {
        self.hold.clone()
    }

    pub(crate) fn record(&self) -> &ObjectRecord {
        &self.found.record
    }

    /// The object's key, and proof that the index says of the object what was written.
    pub(crate) async fn unlock(&self, storage: &Storage, customer: CustomerKey) -> Result<Key> {
        let key = storage.key_for(&self.bucket, &self.record().encryption, self.record().object, customer).await?;
        // A multipart upload under a customer's key is completed without that key: it has no MAC.
        let unproven = matches!(key, Key::Customer(_)) && self.record().parts > 0;
        if let Some(dek) = key.bytes()
            && !unproven
            && !self.record().is_authentic(
                dek,
                self.bucket.id,
                self.manifest.as_deref().map(ManifestDigest::of).as_ref(),
            )
        {
            return Err(damaged("an object's record", &self.record().key));
        }
        Ok(key)
    }

    /// The streams that `from..to` of the object lies in.
    pub(crate) fn segments(&self, from: u64, to: u64) -> Vec<Segment> {
        if let Some(stream) = &self.record().stream {
            let inline = if stream.inline { self.found.inline.clone() } else { Vec::new() };
            return vec![Segment { stream: stream.clone(), inline, from, to }];
        }
        let mut begin = 0;
        let mut segments = Vec::new();
        for part in &self.parts {
            let end = begin + part.stream.size;
            if end > from && begin < to {
                let (from, to) = (from.max(begin) - begin, to.min(end) - begin);
                segments.push(Segment { stream: part.stream.clone(), inline: Vec::new(), from, to });
            }
            begin = end;
        }
        segments
    }

    fn version_told(&self) -> Option<String> {
        let told = self.record().version != "null" || self.bucket.versioning != Versioning::Off;
        told.then(|| self.record().version.clone())
    }
}

/// Which bytes, and of which part.
struct Wanted {
    from: u64,
    to: u64,
    partial: bool,
    checksum: Option<ChecksumRecord>,
}

fn wanted(opened: &Opened, range: Option<&dto::Range>, part: Option<i32>) -> Result<Wanted> {
    let record = opened.record();
    let size = record.size;
    match (range, part) {
        (Some(_), Some(_)) => Err(Error::InvalidRequest("Cannot specify both Range header and partNumber".into())),
        (Some(range), None) => {
            let unsatisfiable = |_| Error::InvalidRange("The requested range is not satisfiable");
            let range = range.check(size).map_err(unsatisfiable)?;
            Ok(Wanted { from: range.start, to: range.end, partial: true, checksum: None })
        }
        (None, Some(number)) => {
            if record.parts == 0 {
                let whole = Wanted { from: 0, to: size, partial: true, checksum: record.checksum.clone() };
                return if number == 1 { Ok(whole) } else { Err(Error::NoSuchPartNumber) };
            }
            let mut begin = 0;
            for part in &opened.parts {
                let end = begin + part.stream.size;
                if i32::from(part.number) == number {
                    return Ok(Wanted { from: begin, to: end, partial: true, checksum: part.checksum.clone() });
                }
                begin = end;
            }
            Err(Error::NoSuchPartNumber)
        }
        (None, None) => Ok(Wanted { from: 0, to: size, partial: false, checksum: record.checksum.clone() }),
    }
}

/// A range is of what the client has, if it says what that is (RFC 9110, section 13.1.5): of anything else it gets all.
fn range_of(record: &ObjectRecord, range: Option<dto::Range>, headers: &http::HeaderMap) -> Option<dto::Range> {
    let Some(known) = headers.get(http::header::IF_RANGE) else { return range };
    let known = known.to_str().unwrap_or_default();
    let is_etag = known.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) == Some(&record.etag);
    let modified = super::http_date(timestamp(record.modified));
    range.filter(|_| is_etag || modified.as_deref() == Some(known))
}

/// An answer about an object, with what s3s has no place for, or not in this form.
fn response<T>(opened: &Opened, wanted: &Wanted, output: T) -> S3Response<T> {
    let mut response = S3Response::new(output);
    if wanted.partial {
        response.status = Some(http::StatusCode::PARTIAL_CONTENT);
    }
    let expires = opened.record().content.expires.as_deref();
    if let Some(expires) = expires.and_then(|text| http::HeaderValue::from_str(text).ok()) {
        response.headers.insert(http::header::EXPIRES, expires);
    }
    response
}

/// The headers that GET and HEAD share.
macro_rules! describe {
    ($output:ident, $storage:expr, $call:expr, $opened:expr, $wanted:expr, $mode:expr) => {{
        let record = $opened.record();
        let content = &record.content;
        let told = $storage.told($call, &$opened.bucket, &record.encryption);
        let mut sum = if $mode.is_some_and(|mode| mode.as_str() == "ENABLED") {
            told_checksum($wanted.checksum.as_ref())
        } else {
            dto::Checksum::default()
        };
        // The type is the object's, also where the value is a part's.
        let whole = || told_checksum(record.checksum.as_ref()).checksum_type;
        sum.checksum_type = sum.checksum_type.and_then(|kind| whole().or(Some(kind)));
        let range = ($wanted.partial && record.size > 0)
            .then(|| format!("bytes {}-{}/{}", $wanted.from, $wanted.to.saturating_sub(1), record.size));
        dto::$output {
            accept_ranges: Some("bytes".into()),
            content_length: Some(($wanted.to - $wanted.from) as i64),
            content_range: range,
            e_tag: Some(dto::ETag::Strong(record.etag.clone())),
            last_modified: Some(timestamp(record.modified)),
            version_id: $opened.version_told(),
            metadata: (!content.metadata.is_empty()).then(|| content.metadata.clone().into_iter().collect()),
            content_type: Some(content.content_type.clone().unwrap_or_else(|| "binary/octet-stream".into())),
            cache_control: content.cache_control.clone(),
            content_disposition: content.content_disposition.clone(),
            content_encoding: content.content_encoding.clone(),
            content_language: content.content_language.clone(),
            website_redirect_location: content.website_redirect.clone(),
            storage_class: content.storage_class.clone().filter(|class| class != "STANDARD").map(Into::into),
            parts_count: ($opened.record().parts > 0 && $wanted.partial).then(|| record.parts as i32),
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
        }
    }};
}

pub(crate) async fn get_object(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::GetObjectInput>,
) -> Result<S3Response<dto::GetObjectOutput>> {
    let mut input = request.input;
    let opened = Opened::find(storage, call, &input.key, input.version_id.as_deref())?;
    let customer = customer!(input);
    let conditions = Conditions {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
        if_modified_since: input.if_modified_since,
        if_unmodified_since: input.if_unmodified_since,
    };
    conditions.check_read(opened.record(), storage.now_millis())?;
    let range = range_of(opened.record(), input.range, &request.headers);
    let wanted = wanted(&opened, range.as_ref(), input.part_number)?;
    let key = opened.unlock(storage, customer).await?;
    let record = opened.record();
    let whose = (opened.bucket.id, record.object, record.dek());
    let body = storage.read_body(whose, key, opened.segments(wanted.from, wanted.to), opened.hold()).await?;
    let mut output = describe!(GetObjectOutput, storage, call, opened, wanted, input.checksum_mode);
    output.tag_count = (!record.tags.is_empty()).then_some(record.tags.len() as i32);
    output.body = Some(body);
    let mut response = response(&opened, &wanted, output);
    if input.response_expires.is_some() {
        response.headers.remove(http::header::EXPIRES);
    }
    Ok(response)
}

/// Answers from the index without the key, so that inventory and clean-up work while the key is away. A customer's key
/// is checked, as the protocol asks.
pub(crate) async fn head_object(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::HeadObjectInput>,
) -> Result<S3Response<dto::HeadObjectOutput>> {
    let mut input = request.input;
    let opened = Opened::find(storage, call, &input.key, input.version_id.as_deref())?;
    let customer = customer!(input);
    if matches!(opened.record().encryption, crate::record::Encryption::Customer { .. })
        || customer.key.is_some()
        || customer.algorithm.is_some()
    {
        opened.unlock(storage, customer).await?;
    }
    let conditions = Conditions {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
        if_modified_since: input.if_modified_since,
        if_unmodified_since: input.if_unmodified_since,
    };
    conditions.check_read(opened.record(), storage.now_millis())?;
    let range = range_of(opened.record(), input.range, &request.headers);
    let wanted = wanted(&opened, range.as_ref(), input.part_number)?;
    let output = describe!(HeadObjectOutput, storage, call, opened, wanted, input.checksum_mode);
    let mut response = response(&opened, &wanted, output);
    let tags = opened.record().tags.len();
    if tags > 0 {
        response.headers.insert(HeaderName::from_static("x-amz-tagging-count"), HeaderValue::from(tags));
    }
    Ok(response)
}

pub(crate) async fn get_object_attributes(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::GetObjectAttributesInput>,
) -> Result<S3Response<dto::GetObjectAttributesOutput>> {
    let mut input = request.input;
    let opened = Opened::find(storage, call, &input.key, input.version_id.as_deref())?;
    let customer = customer!(input);
    if matches!(opened.record().encryption, crate::record::Encryption::Customer { .. }) {
        opened.unlock(storage, customer).await?;
    }
    let record = opened.record();
    // SDKs send the names one by one or in one list.
    let asked: Vec<&str> =
        input.object_attributes.iter().flat_map(|name| name.as_str().split(',')).map(str::trim).collect();
    const KNOWN: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];
    if asked.is_empty() || asked.iter().any(|name| !KNOWN.contains(name)) {
        return Err(invalid_argument("Invalid attribute name specified"));
    }
    let asked = |name: &str| asked.contains(&name);
    let class = record.content.storage_class.clone().unwrap_or_else(|| "STANDARD".into());
    answer(dto::GetObjectAttributesOutput {
        e_tag: asked("ETag").then(|| dto::ETag::Strong(record.etag.clone())),
        checksum: (asked("Checksum") && record.checksum.is_some()).then(|| told_checksum(record.checksum.as_ref())),
        object_parts: (asked("ObjectParts") && record.parts > 0).then(|| parts_told(&opened, &input)),
        storage_class: asked("StorageClass").then(|| class.into()),
        object_size: asked("ObjectSize").then_some(record.size as i64),
        last_modified: Some(timestamp(record.modified)),
        version_id: opened.version_told(),
        ..Default::default()
    })
}

fn parts_told(opened: &Opened, input: &dto::GetObjectAttributesInput) -> dto::GetObjectAttributesParts {
    let marker = input.part_number_marker.unwrap_or(0);
    let max = input.max_parts.unwrap_or(1000).clamp(0, 1000);
    let later: Vec<&ManifestPart> = opened.parts.iter().filter(|part| i32::from(part.number) > marker).collect();
    let page: Vec<&ManifestPart> = later.iter().take(max as usize).copied().collect();
    let parts = page.iter().map(|part| {
        let sum = told_checksum(part.checksum.as_ref());
        dto::ObjectPart {
            part_number: Some(i32::from(part.number)),
            size: Some(part.stream.size as i64),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
        }
    });
    // Parts are listed one by one only where they have checksums of their own.
    let parts = opened.parts.iter().any(|part| part.checksum.is_some()).then(|| parts.collect());
    dto::GetObjectAttributesParts {
        is_truncated: Some(later.len() > page.len()),
        max_parts: Some(max),
        next_part_number_marker: Some(page.last().map_or(0, |part| i32::from(part.number))),
        part_number_marker: Some(marker),
        parts,
        total_parts_count: Some(opened.record().parts as i32),
    }
}

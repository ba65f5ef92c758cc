//! Tags of objects and buckets. No key is needed to change them.

use std::sync::Arc;

use holdfast_core::{Action, IndexWrite};
use s3s::{S3Request, S3Response, dto};
use serde::Deserialize;

use super::answer;
use crate::{
    Storage,
    call::Call,
    error::{Error, Result, invalid_argument},
    event::About,
    record, rows,
};

type Tags = Vec<(String, String)>;

const OBJECT_TAGS_MAX: usize = 10;
const BUCKET_TAGS_MAX: usize = 50;

fn check(tags: Tags, max: usize) -> Result<Tags> {
    if tags.len() > max {
        return Err(Error::TooManyTags(max));
    }
    let invalid =
        |(key, value): &(String, String)| key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256;
    if tags.iter().any(invalid) {
        return Err(Error::InvalidTag("A tag has a key of 1 to 128 and a value of at most 256 characters"));
    }
    let mut keys: Vec<&str> = tags.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::InvalidTag("Cannot provide multiple Tags with the same key"));
    }
    Ok(tags)
}

/// `a=b&c=d`, percent-encoded: the `x-amz-tagging` header.
pub(crate) fn from_header(header: Option<&str>) -> Result<Tags> {
    let pairs = header.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let decode = |text: &str| -> Result<String> {
        let invalid = || invalid_argument("The header x-amz-tagging is not valid");
        let mut out = Vec::with_capacity(text.len());
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            out.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let mut digit = || bytes.next().and_then(|digit| (digit as char).to_digit(16));
                    let (high, low) = (digit().ok_or_else(invalid)?, digit().ok_or_else(invalid)?);
                    (high << 4 | low) as u8
                }
                other => other,
            });
        }
        String::from_utf8(out).map_err(|_| invalid())
    };
    let tags = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(key)?, decode(value)?))
    });
    check(tags.collect::<Result<Tags>>()?, OBJECT_TAGS_MAX)
}

/// Tags as they stand in a body that s3s does not read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TagSet {
    #[serde(rename = "Tag", default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: String,
}

impl TagSet {
    /// Checked as those of a bucket.
    pub(crate) fn of_bucket(self) -> Result<Tags> {
        check(self.tags.into_iter().map(|tag| (tag.key, tag.value)).collect(), BUCKET_TAGS_MAX)
    }
}

fn from_xml(tagging: dto::Tagging, max: usize) -> Result<Tags> {
    let tags = tagging.tag_set.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default()));
    check(tags.collect(), max)
}

/// In the order of their keys, however they came.
fn to_xml(mut tags: Tags) -> Vec<dto::Tag> {
    tags.sort_unstable();
    tags.into_iter().map(|(key, value)| dto::Tag { key: Some(key), value: Some(value) }).collect()
}

/// Sets an object's tags; says its version where there is one.
async fn set(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    key: String,
    version: Option<String>,
    tags: Tags,
) -> Result<Option<String>> {
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant(&call)?;
            let mut found = bucket.object(&key, version.as_deref())?;
            found.record.tags = tags;
            let record = &found.record;
            let value = record::encode(record, &found.inline);
            let mut writes = Vec::new();
            if record.listed {
                writes.push(IndexWrite::put(rows::version(bucket.id, &key, record.seq), value.clone()));
            }
            if bucket.current(&key)?.is_some_and(|current| current.record.object == record.object) {
                writes.push(IndexWrite::put(rows::object(bucket.id, &key), value));
            }
            let about = About { version: Some(record.version.clone()), ..About::default() };
            let version = record.listed.then(|| record.version.clone());
            Ok((version, bucket.change_object(Action::ObjectUpdate, &key, about, writes)?))
        })
        .await
}

pub(crate) async fn put_object_tagging(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::PutObjectTaggingInput>,
) -> Result<S3Response<dto::PutObjectTaggingOutput>> {
    let input = request.input;
    let tags = from_xml(input.tagging, OBJECT_TAGS_MAX)?;
    let version_id = set(storage, call, input.key, input.version_id, tags).await?;
    answer(dto::PutObjectTaggingOutput { version_id })
}

pub(crate) async fn delete_object_tagging(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::DeleteObjectTaggingInput>,
) -> Result<S3Response<dto::DeleteObjectTaggingOutput>> {
    let input = request.input;
    let version_id = set(storage, call, input.key, input.version_id, Vec::new()).await?;
    Ok(S3Response::with_status(dto::DeleteObjectTaggingOutput { version_id }, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn get_object_tagging(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::GetObjectTaggingInput>,
) -> Result<S3Response<dto::GetObjectTaggingOutput>> {
    let input = request.input;
    let record = storage.look(|view| {
        let bucket = view.grant(call)?;
        let found = bucket.object(&input.key, input.version_id.as_deref())?;
        call.note(About { version: Some(found.record.version.clone()), ..About::default() });
        bucket.read(Action::ObjectRead)?;
        Ok(found.record)
    })?;
    let version_id = record.listed.then_some(record.version);
    answer(dto::GetObjectTaggingOutput { tag_set: to_xml(record.tags), version_id })
}

async fn set_bucket(storage: &Arc<Storage>, call: &Arc<Call>, tags: Tags) -> Result<()> {
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant(&call)?;
            let record = record::BucketRecord { tags, ..bucket.record() };
            let row = IndexWrite::put(rows::bucket(&bucket.name), record::encode(&record, &[]));
            Ok(((), bucket.change(Action::BucketUpdate, About::default(), vec![row])?))
        })
        .await
}

pub(crate) async fn put_bucket_tagging(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::PutBucketTaggingInput>,
) -> Result<S3Response<dto::PutBucketTaggingOutput>> {
    let tags = from_xml(request.input.tagging, BUCKET_TAGS_MAX)?;
    set_bucket(storage, call, tags).await?;
    answer(dto::PutBucketTaggingOutput {})
}

pub(crate) async fn delete_bucket_tagging(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::DeleteBucketTaggingInput>,
) -> Result<S3Response<dto::DeleteBucketTaggingOutput>> {
    set_bucket(storage, call, Vec::new()).await?;
    Ok(S3Response::with_status(dto::DeleteBucketTaggingOutput {}, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn get_bucket_tagging(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::GetBucketTaggingInput>,
) -> Result<S3Response<dto::GetBucketTaggingOutput>> {
    let bucket = storage.look(|view| view.grant(call)?.read(Action::BucketRead))?;
    if bucket.tags.is_empty() {
        return Err(Error::NoSuchTagSet);
    }
    answer(dto::GetBucketTaggingOutput { tag_set: to_xml(bucket.tags) })
}

//! DeleteObject and DeleteObjects. No key is needed to delete.

use std::sync::Arc;

use holdfast_core::IndexWrite;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer,
    conditions::Conditions,
    place::{new_version, place, remove_version},
};
use crate::{
    Storage,
    error::error,
    record::{BucketRecord, Encryption, Id, ObjectRecord, Versioning},
    rows,
};

/// Objects of one DeleteObjects.
const OBJECTS_MAX: usize = 1000;

/// What a deletion did.
#[derive(Default)]
struct Deleted {
    /// A delete marker was made, or removed.
    marker: Option<bool>,
    version: Option<String>,
}

async fn delete_one(
    storage: &Arc<Storage>,
    bucket: BucketRecord,
    key: String,
    version: Option<String>,
    conditions: Conditions,
) -> S3Result<Deleted> {
    let object = Id::random(storage.ambient());
    let version_of_marker = new_version(storage, &bucket);
    let mut marker = ObjectRecord::new(key.clone(), object, version_of_marker, storage.now_millis(), Encryption::Off);
    marker.delete_marker = true;
    storage
        .transact(move |view| {
            let bucket = view.same_bucket(&bucket)?;
            let current = view.current(bucket.id, &key)?;
            if conditions.if_match.is_some() {
                conditions.check_write(current.as_ref().map(|found| &found.record))?;
            }
            if let Some(version) = version {
                return Ok(match remove_version(view, &bucket, &key, &version)? {
                    None => (Deleted { marker: None, version: Some(version) }, Vec::new()),
                    Some((marker, writes)) => {
                        (Deleted { marker: marker.then_some(true), version: Some(version) }, writes)
                    }
                });
            }
            if bucket.versioning != Versioning::Off {
                let deleted = Deleted { marker: Some(true), version: Some(marker.version.clone()) };
                return Ok((deleted, place(view, &bucket, marker, &[])?));
            }
            let Some(found) = current else { return Ok((Deleted::default(), Vec::new())) };
            let mut writes = view.discard(&found.record)?;
            writes.push(IndexWrite::remove(rows::object(bucket.id, &key)));
            Ok((Deleted::default(), writes))
        })
        .await
}

pub(crate) async fn delete_object(
    storage: &Arc<Storage>,
    request: S3Request<dto::DeleteObjectInput>,
) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
    let input = request.input;
    let bucket = storage.look(|view| view.bucket(&input.bucket))?;
    let conditions = Conditions { if_match: input.if_match, ..Conditions::default() };
    let deleted = delete_one(storage, bucket, input.key, input.version_id, conditions).await?;
    let output =
        dto::DeleteObjectOutput { delete_marker: deleted.marker, version_id: deleted.version, ..Default::default() };
    Ok(S3Response::with_status(output, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn delete_objects(
    storage: &Arc<Storage>,
    request: S3Request<dto::DeleteObjectsInput>,
) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
    let input = request.input;
    let bucket = storage.look(|view| view.bucket(&input.bucket))?;
    if input.delete.objects.len() > OBJECTS_MAX {
        return Err(error(S3ErrorCode::MalformedXML, "At most 1000 objects can be deleted at once"));
    }
    let quiet = input.delete.quiet.unwrap_or(false);
    // Together, so that they share their syncs.
    let work = input.delete.objects.into_iter().map(|object| {
        let (storage, bucket) = (Arc::clone(storage), bucket.clone());
        async move {
            let conditions =
                Conditions { if_match: object.e_tag.map(dto::ETagCondition::ETag), ..Conditions::default() };
            let named = (object.key.clone(), object.version_id.clone());
            (named, delete_one(&storage, bucket, object.key, object.version_id, conditions).await)
        }
    });
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for ((key, version), result) in futures::future::join_all(work).await {
        match result {
            Ok(deleted) => done.push(dto::DeletedObject {
                key: Some(key),
                delete_marker: deleted.marker,
                // Named in the request: the version removed. Otherwise: the marker made.
                delete_marker_version_id: deleted.marker.and(deleted.version.clone()),
                version_id: version,
            }),
            Err(error) => errors.push(dto::Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(key),
                message: error.message().map(str::to_owned),
                version_id: version,
            }),
        }
    }
    answer(dto::DeleteObjectsOutput {
        deleted: (!quiet).then_some(done),
        errors: (!errors.is_empty()).then_some(errors),
        ..Default::default()
    })
}

//! DeleteObject and DeleteObjects. No key is needed to delete.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, stream};
use holdfast_core::{Action, IndexWrite};
use s3s::{S3Request, S3Response, dto};

use super::{
    answer,
    conditions::DeleteConditions,
    place::{New, Placed, placed, remove_version},
};
use crate::{
    Storage,
    call::Call,
    encryption::Key,
    error::{Error, Result},
    event::About,
    grant::Known,
    record::{Encryption, Id, ObjectRecord, Versioning},
    rows, versions,
    view::{View, invalid_version},
};

/// Objects of one DeleteObjects.
const OBJECTS_MAX: usize = 1000;
/// How many of them are deleted at a time: they share their syncs, and others wait for no more than these.
const OBJECTS_AT_ONCE: usize = 32;

/// What is to be deleted.
struct Doomed {
    key: String,
    version: Option<String>,
    /// Where the version stands in the list of its key, if somebody has looked.
    place: Option<u64>,
    conditions: DeleteConditions,
}

/// What a deletion did.
#[derive(Default)]
struct Deleted {
    /// A delete marker was made, or removed.
    marker: Option<bool>,
    version: Option<String>,
}

async fn delete_one(storage: &Arc<Storage>, call: &Arc<Call>, bucket: Known, doomed: Doomed) -> Result<Deleted> {
    let object = Id::random(storage.ambient());
    let mut marker = ObjectRecord::new(doomed.key.clone(), object, storage.now_millis(), Encryption::Off);
    marker.delete_marker = true;
    let marker = New::object(storage, marker, Vec::new(), Key::None);
    let Doomed { key, version, place: at, conditions } = doomed;
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant_same(&call, &bucket)?;
            let (deleted, about, writes) = if let Some(version) = version {
                let found = match bucket.listed(&key, &version, at)? {
                    Some(found) => Some(found),
                    None => bucket.current(&key)?.filter(|found| found.record.version == version),
                };
                let found = found.map(|found| found.record);
                conditions.check(&key, Some(&version), found.as_ref())?;
                let marker = found.as_ref().is_some_and(|found| found.delete_marker).then_some(true);
                let writes = found.map_or(Ok(Vec::new()), |found| remove_version(&bucket, &found))?;
                let about = About { version: Some(version.clone()), ..About::default() };
                (Deleted { marker, version: Some(version) }, about, writes)
            } else {
                conditions.check(&key, None, bucket.newest(&key)?.as_ref())?;
                if bucket.versioning != Versioning::Off {
                    let Placed { told: version, about, writes } = placed(&bucket, marker)?;
                    (Deleted { marker: Some(true), version }, about, writes)
                } else if let Some(found) = bucket.current(&key)? {
                    let mut writes = View::discard(&found.record);
                    writes.push(IndexWrite::remove(rows::object(bucket.id, &key)));
                    (Deleted::default(), About::object(&bucket, &found.record), writes)
                } else {
                    (Deleted::default(), About::default(), Vec::new())
                }
            };
            Ok((deleted, bucket.change_object(Action::ObjectDelete, &key, about, writes)?))
        })
        .await
}

pub(crate) async fn delete_object(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::DeleteObjectInput>,
) -> Result<S3Response<dto::DeleteObjectOutput>> {
    let input = request.input;
    if let Some(version) = input.version_id.as_deref().filter(|version| !versions::is_legal(version)) {
        return Err(invalid_version(version));
    }
    let bucket = storage.look(|view| Ok(view.grant(call)?.known()))?;
    let conditions = DeleteConditions::of(&request.headers, input.if_match_last_modified_time, input.if_match_size);
    let doomed = Doomed { key: input.key, version: input.version_id, place: None, conditions };
    let deleted = delete_one(storage, call, bucket, doomed).await?;
    let output =
        dto::DeleteObjectOutput { delete_marker: deleted.marker, version_id: deleted.version, ..Default::default() };
    Ok(S3Response::with_status(output, http::StatusCode::NO_CONTENT))
}

/// Versions from before their ids carried their places: one walk through the list of a key finds all of them that are named.
fn look_up(
    storage: &Storage,
    call: &Call,
    bucket: &Known,
    objects: &[dto::ObjectIdentifier],
) -> Result<HashMap<(String, String), u64>> {
    let mut wanted: HashMap<&str, Vec<&str>> = HashMap::new();
    for object in objects {
        let version = object.version_id.as_deref().filter(|version| versions::place(version).is_none());
        if let Some(version) = version.filter(|version| *version != versions::NULL) {
            wanted.entry(&object.key).or_default().push(version);
        }
    }
    let mut places = HashMap::new();
    for (key, versions) in wanted {
        let found = storage.look(|view| view.grant_same(call, bucket)?.places_of(key, &versions))?;
        places.extend(found.into_iter().map(|(version, place)| ((key.to_owned(), version), place)));
    }
    Ok(places)
}

pub(crate) async fn delete_objects(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::DeleteObjectsInput>,
) -> Result<S3Response<dto::DeleteObjectsOutput>> {
    let input = request.input;
    let bucket = storage.look(|view| Ok(view.grant(call)?.known()))?;
    let objects = input.delete.objects;
    if objects.len() > OBJECTS_MAX {
        return Err(Error::MalformedXml("At most 1000 objects can be deleted at once"));
    }
    if objects.iter().any(|object| object.key.is_empty()) {
        return Err(Error::UserKeyMissing);
    }
    let quiet = input.delete.quiet.unwrap_or(false);
    let mut places = look_up(storage, call, &bucket, &objects)?;
    let work = objects.into_iter().map(|object| {
        let (storage, call, bucket) = (Arc::clone(storage), Arc::clone(call), bucket.clone());
        let named = (object.key.clone(), object.version_id.clone());
        let place = object.version_id.clone().and_then(|version| places.remove(&(object.key.clone(), version)));
        async move {
            if object.version_id.as_deref().is_some_and(|version| !versions::is_legal(version)) {
                let (key, version) = (named.0.clone(), named.1.clone().unwrap_or_default());
                return (named, Err(Error::NoSuchVersion { key, version }));
            }
            let conditions = DeleteConditions::of_entry(object.e_tag, object.last_modified_time, object.size);
            let doomed = Doomed { key: object.key, version: object.version_id, place, conditions };
            (named, delete_one(&storage, &call, bucket, doomed).await)
        }
    });
    let work: Vec<_> = stream::iter(work).buffered(OBJECTS_AT_ONCE).collect().await;
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for ((key, version), result) in work {
        match result {
            Ok(deleted) => done.push(dto::DeletedObject {
                key: Some(key),
                delete_marker: deleted.marker,
                // Named in the request: the version removed. Otherwise: the marker made.
                delete_marker_version_id: deleted.marker.and(deleted.version.clone()),
                version_id: version,
            }),
            Err(error) => {
                let about = About { key: Some(key.clone()), version: version.clone(), ..About::default() };
                storage.record_part(call, about, &error).await?;
                let told = error.told();
                errors.push(dto::Error {
                    code: Some(told.code.into_owned()),
                    key: Some(key),
                    message: Some(told.message.into_owned()),
                    version_id: version,
                });
            }
        }
    }
    answer(dto::DeleteObjectsOutput {
        deleted: (!quiet).then_some(done),
        errors: (!errors.is_empty()).then_some(errors),
        ..Default::default()
    })
}

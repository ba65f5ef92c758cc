//! The index, in terms of records.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use holdfast_core::{IndexReader, IndexWrite};
use http::{HeaderMap, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result};
use serde::Deserialize;

use crate::{
    error::{damaged, error, from_store, with_members},
    ops::{http_date, timestamp},
    record::{
        self, BucketRecord, CompletedRecord, FORMAT, Id, ManifestPart, ObjectRecord, PartRecord, UploadRecord, Waste,
    },
    rows, versions,
};

/// A consistent view of the index, for somebody.
pub(crate) struct View<'a> {
    reader: &'a dyn IndexReader,
    caller: Option<Arc<str>>,
}

tokio::task_local! {
    /// Whose request is at work.
    static CALLER: Arc<str>;
}

/// Does work on behalf of a caller: only his buckets are there for it, whoever owned a name when the request began.
pub(crate) async fn on_behalf<T>(caller: &str, work: impl Future<Output = T>) -> T {
    CALLER.scope(caller.into(), work).await
}

/// The caller whose request is at work, to be carried to where it does not follow by itself.
pub(crate) fn caller() -> Option<Arc<str>> {
    CALLER.try_with(Arc::clone).ok()
}

/// An object with the bytes that lie behind its record.
pub(crate) struct Found {
    pub record: ObjectRecord,
    pub inline: Vec<u8>,
}

impl<'a> View<'a> {
    /// For a caller; for the service itself if there is none.
    pub(crate) fn new(reader: &'a dyn IndexReader, caller: Option<Arc<str>>) -> Self {
        Self { reader, caller }
    }

    fn get(&self, row: &[u8]) -> S3Result<Option<Vec<u8>>> {
        self.reader.get(row).map_err(from_store)
    }

    pub(crate) fn find_bucket(&self, name: &str) -> S3Result<Option<BucketRecord>> {
        let Some(value) = self.get(&rows::bucket(name))? else { return Ok(None) };
        record::decode(&value).map(|(bucket, _)| Some(bucket)).ok_or_else(|| damaged("a bucket", name))
    }

    pub(crate) fn bucket(&self, name: &str) -> S3Result<BucketRecord> {
        let missing = || error(S3ErrorCode::NoSuchBucket, "The specified bucket does not exist");
        let bucket = self.find_bucket(name)?.ok_or_else(missing)?;
        match &self.caller {
            Some(caller) if **caller != *bucket.owner => Err(error(S3ErrorCode::AccessDenied, "Access Denied")),
            _ => Ok(bucket),
        }
    }

    /// The bucket, if it is still the one that was looked at before.
    pub(crate) fn same_bucket(&self, known: &BucketRecord) -> S3Result<BucketRecord> {
        let bucket = self.bucket(&known.name)?;
        if bucket.id == known.id {
            return Ok(bucket);
        }
        Err(error(S3ErrorCode::NoSuchBucket, "The specified bucket does not exist"))
    }

    /// The current version of an object, unless it is deleted.
    pub(crate) fn current(&self, bucket: Id, key: &str) -> S3Result<Option<Found>> {
        let Some(value) = self.get(&rows::object(bucket, key))? else { return Ok(None) };
        decode_object(&value).map(Some)
    }

    /// Visits the version list of a key, newest first, from the version behind the place `after` on. Bytes behind the records are
    /// not looked at.
    pub(crate) fn versions_of(
        &self,
        bucket: Id,
        key: &str,
        after: Option<u64>,
        mut visit: impl FnMut(u64, &[u8]) -> S3Result<ControlFlow<()>>,
    ) -> S3Result<()> {
        let prefix = rows::versions_of(bucket, key);
        let from = match after {
            None => prefix.clone(),
            Some(0) => return Ok(()),
            Some(seq) => rows::version(bucket, key, seq - 1),
        };
        self.scan(&from, &prefix, |row, value| {
            // A longer key may contain this one and a NUL: keys with NUL are refused, so this does not happen.
            match rows::seq_of_version(row) {
                Some(seq) if row.len() == prefix.len() + 8 => visit(seq, value),
                _ => Ok(ControlFlow::Continue(())),
            }
        })
    }

    /// The first of the version list behind the place `after`, whole.
    pub(crate) fn next_version(&self, bucket: Id, key: &str, after: Option<u64>) -> S3Result<Option<Found>> {
        let mut found = None;
        self.versions_of(bucket, key, after, |_, value| {
            found = Some(decode_object(value)?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The place of the newest version in the list of a key.
    pub(crate) fn newest_place(&self, bucket: Id, key: &str) -> S3Result<Option<u64>> {
        let mut newest = None;
        self.versions_of(bucket, key, None, |seq, _| {
            newest = Some(seq);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(newest)
    }

    /// What a key has now: its current object, or the delete marker that hides it.
    pub(crate) fn newest(&self, bucket: Id, key: &str) -> S3Result<Option<ObjectRecord>> {
        if let Some(current) = self.current(bucket, key)? {
            return Ok(Some(current.record));
        }
        Ok(self.next_version(bucket, key, None)?.map(|found| found.record))
    }

    /// The places of those among `wanted` that are in the version list of a key, in one walk through it.
    pub(crate) fn places_of(&self, bucket: Id, key: &str, wanted: &[&str]) -> S3Result<HashMap<String, u64>> {
        #[derive(Deserialize)]
        struct Named {
            version: String,
        }
        let mut places = HashMap::new();
        self.versions_of(bucket, key, None, |seq, value| {
            let named: Option<(Named, _)> = record::decode(value);
            let (Named { version }, _) = named.ok_or_else(|| damaged("an object's record", "unreadable"))?;
            if wanted.contains(&version.as_str()) {
                places.insert(version, seq);
            }
            Ok(if places.len() == wanted.len() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(places)
    }

    /// The place in the list of a named version, if it is there. Only versions from before ids carried it are looked for one by one.
    fn place_of(&self, bucket: &BucketRecord, key: &str, version: &str) -> S3Result<Option<u64>> {
        if let Some(seq) = versions::place(version) {
            return Ok(Some(seq));
        }
        if version == versions::NULL && bucket.nulls {
            let Some(seq) = self.get(&rows::null(bucket.id, key))? else { return Ok(None) };
            let seq = seq.try_into().map_err(|_| damaged("the place of a version", key))?;
            return Ok(Some(u64::from_be_bytes(seq)));
        }
        Ok(self.places_of(bucket.id, key, &[version])?.remove(version))
    }

    /// A version in the list, by its place if that is known already.
    pub(crate) fn listed(
        &self,
        bucket: &BucketRecord,
        key: &str,
        version: &str,
        place: Option<u64>,
    ) -> S3Result<Option<Found>> {
        let place = match place {
            Some(place) => Some(place),
            None => self.place_of(bucket, key, version)?,
        };
        let Some(place) = place else { return Ok(None) };
        let Some(value) = self.get(&rows::version(bucket.id, key, place))? else { return Ok(None) };
        Ok(Some(decode_object(&value)?).filter(|found| found.record.version == version))
    }

    /// A named version.
    pub(crate) fn version(&self, bucket: &BucketRecord, key: &str, version: &str) -> S3Result<Option<Found>> {
        if let Some(listed) = self.listed(bucket, key, version, None)? {
            return Ok(Some(listed));
        }
        Ok(self.current(bucket.id, key)?.filter(|found| found.record.version == version))
    }

    /// An object for reading: the current one, or the version named.
    pub(crate) fn object(&self, bucket: &BucketRecord, key: &str, version: Option<&str>) -> S3Result<Found> {
        let Some(version) = version else {
            if let Some(current) = self.current(bucket.id, key)? {
                return Ok(current);
            }
            let missing = error(S3ErrorCode::NoSuchKey, "The specified key does not exist.");
            let marker = self.next_version(bucket.id, key, None)?;
            return Err(told_of_marker(missing, marker.as_ref(), &[("Key", key)]));
        };
        if !versions::is_legal(version) {
            return Err(invalid_version(version));
        }
        let Some(found) = self.version(bucket, key, version)? else {
            let missing = error(S3ErrorCode::NoSuchVersion, "The specified version does not exist.");
            return Err(with_members(missing, &[("Key", key), ("VersionId", version)]));
        };
        if found.record.delete_marker {
            let message = "The specified method is not allowed against this resource.";
            let refused = error(S3ErrorCode::MethodNotAllowed, message);
            return Err(told_of_marker(refused, Some(&found), &[("ResourceType", "DeleteMarker")]));
        }
        Ok(found)
    }

    /// The manifest of a multipart object, as stored.
    pub(crate) fn find_manifest(&self, object: Id) -> S3Result<Option<Vec<u8>>> {
        self.get(&rows::manifest(object))
    }

    pub(crate) fn manifest_bytes(&self, object: Id) -> S3Result<Vec<u8>> {
        self.find_manifest(object)?.ok_or_else(|| damaged("a manifest", &object.to_string()))
    }

    pub(crate) fn upload(&self, bucket: Id, key: &str, upload: &str) -> S3Result<UploadRecord> {
        let missing = || {
            let message = "The specified upload does not exist. The upload ID may be invalid, or the upload may have been \
                           aborted or completed.";
            with_members(error(S3ErrorCode::NoSuchUpload, message), &[("UploadId", upload)])
        };
        let id = Id::parse(upload).ok_or_else(missing)?;
        let value = self.get(&rows::upload(bucket, key, id))?.ok_or_else(missing)?;
        record::decode(&value).map(|(record, _)| record).ok_or_else(|| damaged("an upload", upload))
    }

    pub(crate) fn part(&self, upload: Id, number: u16) -> S3Result<Option<PartRecord>> {
        let Some(value) = self.get(&rows::part(upload, number))? else { return Ok(None) };
        record::decode(&value).map(|(part, _)| Some(part)).ok_or_else(|| damaged("a part", &upload.to_string()))
    }

    /// The parts of an upload behind number `after`, in order, at most `max`.
    pub(crate) fn parts(&self, upload: Id, after: u16, max: usize) -> S3Result<Vec<PartRecord>> {
        let mut parts = Vec::new();
        let Some(first) = after.checked_add(1).filter(|_| max > 0) else { return Ok(parts) };
        self.scan(&rows::part(upload, first), &rows::parts(upload), |_, value| {
            let (part, _) = record::decode(value).ok_or_else(|| damaged("a part", &upload.to_string()))?;
            parts.push(part);
            Ok(if parts.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(parts)
    }

    /// What the answer to completing an upload was, if it was completed.
    pub(crate) fn completed(&self, bucket: Id, key: &str, upload: &str) -> S3Result<Option<CompletedRecord>> {
        let Some(id) = Id::parse(upload) else { return Ok(None) };
        let Some(value) = self.get(&rows::completed(bucket, key, id))? else { return Ok(None) };
        record::decode(&value).map(|(done, _)| Some(done)).ok_or_else(|| damaged("a completed upload", upload))
    }

    /// Visits rows from `from` on, as long as they begin with `prefix`.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> S3Result<ControlFlow<()>>,
    ) -> S3Result<()> {
        let mut fault = None;
        self.reader
            .scan(from, &mut |row, value| {
                if !row.starts_with(prefix) {
                    return ControlFlow::Break(());
                }
                visit(row, value).unwrap_or_else(|error| {
                    fault = Some(error);
                    ControlFlow::Break(())
                })
            })
            .map_err(from_store)?;
        fault.map_or(Ok(()), Err)
    }

    /// What must be written so that nothing of `record` is left. However many parts it has, this is one row: the collector does the
    /// rest, when the last reader has ended.
    pub(crate) fn discard(record: &ObjectRecord) -> Vec<IndexWrite> {
        let mut writes = Vec::new();
        if let Some(stream) = record.stream.as_ref().filter(|stream| !stream.inline) {
            writes.push(IndexWrite::put(rows::garbage(stream.id), record.object.0.to_vec()));
        }
        if record.parts > 0 {
            writes.push(waste(record.object, &Waste::Manifest { v: FORMAT }));
        }
        writes
    }
}

/// Headers say of an answer that a delete marker is behind it, and which.
fn told_of_marker(mut error: S3Error, marker: Option<&Found>, members: &[(&str, &str)]) -> S3Error {
    if let Some(Found { record: marker, .. }) = marker {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
        let modified = http_date(timestamp(marker.modified));
        for (name, value) in [("x-amz-version-id", Some(marker.version.clone())), ("last-modified", modified)] {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        error.set_headers(headers);
    }
    with_members(error, members)
}

/// Something that never was the id of a version.
pub(crate) fn invalid_version(version: &str) -> S3Error {
    let invalid = error(S3ErrorCode::InvalidArgument, "Invalid version id specified");
    with_members(invalid, &[("ArgumentName", "versionId"), ("ArgumentValue", version)])
}

/// Leaves something to the collector.
pub(crate) fn waste(id: Id, what: &Waste) -> IndexWrite {
    IndexWrite::put(rows::waste(id), record::encode(what, &[]))
}

fn parted(value: &[u8]) -> S3Result<(ObjectRecord, &[u8])> {
    record::decode(value).ok_or_else(|| damaged("an object's record", "unreadable"))
}

pub(crate) fn decode_object(value: &[u8]) -> S3Result<Found> {
    parted(value).map(|(record, inline)| Found { record, inline: inline.to_vec() })
}

/// The record alone, of a row that a scan met.
pub(crate) fn record_of(value: &[u8]) -> S3Result<ObjectRecord> {
    parted(value).map(|(record, _)| record)
}

pub(crate) fn decode_manifest(bytes: &[u8]) -> S3Result<Vec<ManifestPart>> {
    serde_json::from_slice(bytes).map_err(|_| damaged("a manifest", "unreadable"))
}

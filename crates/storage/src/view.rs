//! The index, in terms of records.

use std::ops::ControlFlow;

use holdfast_core::{IndexReader, IndexWrite};
use s3s::{S3ErrorCode, S3Result};

use crate::{
    error::{damaged, error, from_store},
    record::{self, BucketRecord, Id, ManifestPart, ObjectRecord, PartRecord, UploadRecord},
    rows,
};

/// A consistent view of the index.
pub(crate) struct View<'a>(pub &'a dyn IndexReader);

/// An object with the bytes that lie behind its record.
pub(crate) struct Found {
    pub record: ObjectRecord,
    pub inline: Vec<u8>,
}

impl View<'_> {
    fn get(&self, row: &[u8]) -> S3Result<Option<Vec<u8>>> {
        self.0.get(row).map_err(from_store)
    }

    pub(crate) fn find_bucket(&self, name: &str) -> S3Result<Option<BucketRecord>> {
        let Some(value) = self.get(&rows::bucket(name))? else { return Ok(None) };
        record::decode(&value).map(|(bucket, _)| Some(bucket)).ok_or_else(|| damaged("a bucket", name))
    }

    pub(crate) fn bucket(&self, name: &str) -> S3Result<BucketRecord> {
        let missing = || error(S3ErrorCode::NoSuchBucket, "The specified bucket does not exist");
        self.find_bucket(name)?.ok_or_else(missing)
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

    /// Rows of the version list of a key, newest first.
    pub(crate) fn versions_of(&self, bucket: Id, key: &str) -> S3Result<Vec<Found>> {
        let prefix = rows::versions_of(bucket, key);
        let mut found = Vec::new();
        self.scan(&prefix, &prefix, |row, value| {
            // A longer key may contain this one and a NUL: keys with NUL are refused, so this does not happen.
            if row.len() == prefix.len() + 8 {
                found.push(decode_object(value)?);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// A named version.
    pub(crate) fn version(&self, bucket: Id, key: &str, version: &str) -> S3Result<Option<Found>> {
        let listed = self.versions_of(bucket, key)?.into_iter().find(|found| found.record.version == version);
        if listed.is_some() {
            return Ok(listed);
        }
        Ok(self.current(bucket, key)?.filter(|found| found.record.version == version))
    }

    /// An object for reading: the current one, or the version named.
    pub(crate) fn object(&self, bucket: Id, key: &str, version: Option<&str>) -> S3Result<Found> {
        let found = match version {
            None => {
                let current = self.current(bucket, key)?;
                return current.ok_or_else(|| error(S3ErrorCode::NoSuchKey, "The specified key does not exist."));
            }
            Some(version) => self.version(bucket, key, version)?,
        };
        let found = found.ok_or_else(|| error(S3ErrorCode::NoSuchVersion, "The specified version does not exist."))?;
        if found.record.delete_marker {
            return Err(error(S3ErrorCode::MethodNotAllowed, "The specified version is a delete marker"));
        }
        Ok(found)
    }

    /// The manifest of a multipart object, as stored.
    pub(crate) fn manifest_bytes(&self, object: Id) -> S3Result<Vec<u8>> {
        self.get(&rows::manifest(object))?.ok_or_else(|| damaged("a manifest", &object.to_string()))
    }

    pub(crate) fn upload(&self, bucket: Id, key: &str, upload: &str) -> S3Result<UploadRecord> {
        let missing = || error(S3ErrorCode::NoSuchUpload, "The specified multipart upload does not exist.");
        let id = Id::parse(upload).ok_or_else(missing)?;
        let value = self.get(&rows::upload(bucket, key, id))?.ok_or_else(missing)?;
        record::decode(&value).map(|(record, _)| record).ok_or_else(|| damaged("an upload", upload))
    }

    pub(crate) fn part(&self, upload: Id, number: u16) -> S3Result<Option<PartRecord>> {
        let Some(value) = self.get(&rows::part(upload, number))? else { return Ok(None) };
        record::decode(&value).map(|(part, _)| Some(part)).ok_or_else(|| damaged("a part", &upload.to_string()))
    }

    /// The parts of an upload, in order.
    pub(crate) fn parts(&self, upload: Id) -> S3Result<Vec<PartRecord>> {
        let prefix = rows::parts(upload);
        let mut parts = Vec::new();
        self.scan(&prefix, &prefix, |_, value| {
            let (part, _) = record::decode(value).ok_or_else(|| damaged("a part", &upload.to_string()))?;
            parts.push(part);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(parts)
    }

    /// Visits rows from `from` on, as long as they begin with `prefix`.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> S3Result<ControlFlow<()>>,
    ) -> S3Result<()> {
        let mut fault = None;
        self.0
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

    /// What must be written so that nothing of `record` is left: its blobs become garbage.
    pub(crate) fn discard(&self, record: &ObjectRecord) -> S3Result<Vec<IndexWrite>> {
        let mut writes = Vec::new();
        if let Some(stream) = record.stream.as_ref().filter(|stream| !stream.inline) {
            writes.push(IndexWrite::put(rows::garbage(stream.id), Vec::new()));
        }
        if record.parts > 0 {
            for part in decode_manifest(&self.manifest_bytes(record.object)?)? {
                writes.push(IndexWrite::put(rows::garbage(part.stream.id), Vec::new()));
            }
            writes.push(IndexWrite::remove(rows::manifest(record.object)));
        }
        Ok(writes)
    }
}

pub(crate) fn decode_object(value: &[u8]) -> S3Result<Found> {
    let decoded: Option<(ObjectRecord, &[u8])> = record::decode(value);
    let (record, inline) = decoded.ok_or_else(|| damaged("an object's record", "unreadable"))?;
    Ok(Found { record, inline: inline.to_vec() })
}

pub(crate) fn decode_manifest(bytes: &[u8]) -> S3Result<Vec<ManifestPart>> {
    serde_json::from_slice(bytes).map_err(|_| damaged("a manifest", "unreadable"))
}

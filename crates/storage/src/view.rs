//! The index, in terms of records.

use std::{collections::HashMap, ops::ControlFlow};

use holdfast_core::{IndexReader, IndexWrite};
use serde::Deserialize;

use crate::{
    error::{Error, Marker, Result, damaged, from_store},
    grant::{Granted, Whole},
    ops::{http_date, timestamp},
    record::{
        self, BucketRecord, CompletedRecord, FORMAT, Id, ManifestPart, ObjectRecord, PartRecord, UploadRecord, Waste,
    },
    rows, versions,
};

/// A consistent view of the index. What lies in a bucket is seen through [`Granted`] alone.
pub(crate) struct View<'a> {
    reader: &'a dyn IndexReader,
}

/// An object with the bytes that lie behind its record.
pub(crate) struct Found {
    pub record: ObjectRecord,
    pub inline: Vec<u8>,
}

impl<'a> View<'a> {
    pub(crate) fn new(reader: &'a dyn IndexReader) -> Self {
        Self { reader }
    }

    fn get(&self, row: &[u8]) -> Result<Option<Vec<u8>>> {
        self.reader.get(row).map_err(from_store)
    }

    /// Whoever owns it: to be granted or not.
    pub(crate) fn find_bucket(&self, name: &str) -> Result<Option<BucketRecord>> {
        let Some(value) = self.get(&rows::bucket(name))? else { return Ok(None) };
        record::decode(&value).map(|(bucket, _)| Some(bucket)).ok_or_else(|| damaged("a bucket", name))
    }

    /// Visits the buckets of one owner, from the row `from` on, as long as rows begin with `prefix`.
    pub(crate) fn buckets_of(
        &self,
        owner: &str,
        from: &[u8],
        prefix: &[u8],
        mut visit: impl FnMut(BucketRecord) -> ControlFlow<()>,
    ) -> Result<()> {
        self.scan(from, prefix, |_, value| {
            let (bucket, _): (BucketRecord, _) =
                record::decode(value).ok_or_else(|| damaged("a bucket", "unreadable"))?;
            Ok(if bucket.owner == owner { visit(bucket) } else { ControlFlow::Continue(()) })
        })
    }

    /// Visits rows from `from` on, as long as they begin with `prefix`.
    fn scan(
        &self,
        from: &[u8],
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut fault = None;
        self.reader
            .scan(from, prefix, &mut |row, value| {
                visit(row, value).unwrap_or_else(|error| {
                    fault = Some(error);
                    ControlFlow::Break(())
                })
            })
            .map_err(from_store)?;
        fault.map_or(Ok(()), Err)
    }

    fn find_manifest(&self, object: Id) -> Result<Option<Vec<u8>>> {
        self.get(&rows::manifest(object))
    }

    /// The parts of an upload behind number `after`, in order, at most `max`.
    fn parts(&self, upload: Id, after: u16, max: usize) -> Result<Vec<PartRecord>> {
        let mut parts = Vec::new();
        let Some(first) = after.checked_add(1).filter(|_| max > 0) else { return Ok(parts) };
        self.scan(&rows::part(upload, first), &rows::parts(upload), |_, value| {
            let (part, _) = record::decode(value).ok_or_else(|| damaged("a part", &upload.to_string()))?;
            parts.push(part);
            Ok(if parts.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(parts)
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

impl Whole<'_> {
    pub(crate) fn scan(
        &self,
        from: &[u8],
        prefix: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        self.view().scan(from, prefix, visit)
    }

    pub(crate) fn find_manifest(&self, object: Id) -> Result<Option<Vec<u8>>> {
        self.view().find_manifest(object)
    }

    /// Whether there once was a mark of ours beside the blobs.
    pub(crate) fn is_marked(&self) -> Result<bool> {
        Ok(self.view().get(&rows::marked())?.is_some())
    }

    pub(crate) fn parts(&self, upload: Id, after: u16, max: usize) -> Result<Vec<PartRecord>> {
        self.view().parts(upload, after, max)
    }

    pub(crate) fn find_bucket(&self, name: &str) -> Result<Option<BucketRecord>> {
        self.view().find_bucket(name)
    }
}

impl Granted<'_> {
    fn get(&self, row: &[u8]) -> Result<Option<Vec<u8>>> {
        self.view.get(row)
    }

    /// Visits rows of this bucket from `from` on, as long as they begin with `prefix`.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        prefix: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        if !rows::is_of_bucket(prefix, self.id) {
            return Err(Error::Internal("rows of another bucket"));
        }
        self.view.scan(from, prefix, visit)
    }

    /// The current version of an object, unless it is deleted.
    pub(crate) fn current(&self, key: &str) -> Result<Option<Found>> {
        let Some(value) = self.get(&rows::object(self.id, key))? else { return Ok(None) };
        decode_object(&value).map(Some)
    }

    /// Visits the version list of a key, newest first, from the version behind the place `after` on. Bytes behind the records are
    /// not looked at.
    pub(crate) fn versions_of(
        &self,
        key: &str,
        after: Option<u64>,
        mut visit: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let prefix = rows::versions_of(self.id, key);
        let from = match after {
            None => prefix.clone(),
            Some(0) => return Ok(()),
            Some(seq) => rows::version(self.id, key, seq - 1),
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
    pub(crate) fn next_version(&self, key: &str, after: Option<u64>) -> Result<Option<Found>> {
        let mut found = None;
        self.versions_of(key, after, |_, value| {
            found = Some(decode_object(value)?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The place of the newest version in the list of a key.
    pub(crate) fn newest_place(&self, key: &str) -> Result<Option<u64>> {
        let mut newest = None;
        self.versions_of(key, None, |seq, _| {
            newest = Some(seq);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(newest)
    }

    /// What a key has now: its current object, or the delete marker that hides it.
    pub(crate) fn newest(&self, key: &str) -> Result<Option<ObjectRecord>> {
        if let Some(current) = self.current(key)? {
            return Ok(Some(current.record));
        }
        Ok(self.next_version(key, None)?.map(|found| found.record))
    }

    /// The places of those among `wanted` that are in the version list of a key, in one walk through it.
    pub(crate) fn places_of(&self, key: &str, wanted: &[&str]) -> Result<HashMap<String, u64>> {
        #[derive(Deserialize)]
        struct Named {
            version: String,
        }
        let mut places = HashMap::new();
        self.versions_of(key, None, |seq, value| {
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
    fn place_of(&self, key: &str, version: &str) -> Result<Option<u64>> {
        if let Some(seq) = versions::place(version) {
            return Ok(Some(seq));
        }
        if version == versions::NULL && self.nulls {
            let Some(seq) = self.get(&rows::null(self.id, key))? else { return Ok(None) };
            let seq = seq.try_into().map_err(|_| damaged("the place of a version", key))?;
            return Ok(Some(u64::from_be_bytes(seq)));
        }
        Ok(self.places_of(key, &[version])?.remove(version))
    }

    /// A version in the list, by its place if that is known already.
    pub(crate) fn listed(&self, key: &str, version: &str, place: Option<u64>) -> Result<Option<Found>> {
        let place = match place {
            Some(place) => Some(place),
            None => self.place_of(key, version)?,
        };
        let Some(place) = place else { return Ok(None) };
        let Some(value) = self.get(&rows::version(self.id, key, place))? else { return Ok(None) };
        Ok(Some(decode_object(&value)?).filter(|found| found.record.version == version))
    }

    /// A named version.
    pub(crate) fn version(&self, key: &str, version: &str) -> Result<Option<Found>> {
        if let Some(listed) = self.listed(key, version, None)? {
            return Ok(Some(listed));
        }
        Ok(self.current(key)?.filter(|found| found.record.version == version))
    }

    /// An object for reading: the current one, or the version named.
    pub(crate) fn object(&self, key: &str, version: Option<&str>) -> Result<Found> {
        let Some(version) = version else {
            if let Some(current) = self.current(key)? {
                return Ok(current);
            }
            let marker = self.next_version(key, None)?.map(|found| marker(&found.record));
            return Err(Error::NoSuchKey { key: key.to_owned(), marker });
        };
        if !versions::is_legal(version) {
            return Err(invalid_version(version));
        }
        let Some(found) = self.version(key, version)? else {
            return Err(Error::NoSuchVersion { key: key.to_owned(), version: version.to_owned() });
        };
        if found.record.delete_marker {
            return Err(Error::DeleteMarker(marker(&found.record)));
        }
        Ok(found)
    }

    /// The manifest of a multipart object, as stored.
    pub(crate) fn manifest_bytes(&self, object: &ObjectRecord) -> Result<Vec<u8>> {
        let manifest = self.view.find_manifest(object.object)?;
        manifest.ok_or_else(|| damaged("a manifest", &object.object.to_string()))
    }

    pub(crate) fn upload(&self, key: &str, upload: &str) -> Result<UploadRecord> {
        let missing = || Error::NoSuchUpload(upload.to_owned());
        let id = Id::parse(upload).ok_or_else(missing)?;
        let value = self.get(&rows::upload(self.id, key, id))?.ok_or_else(missing)?;
        record::decode(&value).map(|(record, _)| record).ok_or_else(|| damaged("an upload", upload))
    }

    pub(crate) fn part(&self, upload: Id, number: u16) -> Result<Option<PartRecord>> {
        let Some(value) = self.get(&rows::part(upload, number))? else { return Ok(None) };
        record::decode(&value).map(|(part, _)| Some(part)).ok_or_else(|| damaged("a part", &upload.to_string()))
    }

    pub(crate) fn parts(&self, upload: &UploadRecord, after: u16, max: usize) -> Result<Vec<PartRecord>> {
        self.view.parts(upload.id, after, max)
    }

    /// What the answer to completing an upload was, if it was completed.
    pub(crate) fn completed(&self, key: &str, upload: &str) -> Result<Option<CompletedRecord>> {
        let Some(id) = Id::parse(upload) else { return Ok(None) };
        let Some(value) = self.get(&rows::completed(self.id, key, id))? else { return Ok(None) };
        record::decode(&value).map(|(done, _)| Some(done)).ok_or_else(|| damaged("a completed upload", upload))
    }
}

fn marker(record: &ObjectRecord) -> Marker {
    Marker { version: record.version.clone(), modified: http_date(timestamp(record.modified)) }
}

/// Something that never was the id of a version.
pub(crate) fn invalid_version(version: &str) -> Error {
    let message = "Invalid version id specified".into();
    Error::InvalidArgument { message, name: Some("versionId"), value: Some(version.to_owned()) }
}

/// Leaves something to the collector.
pub(crate) fn waste(id: Id, what: &Waste) -> IndexWrite {
    IndexWrite::put(rows::waste(id), record::encode(what, &[]))
}

fn parted(value: &[u8]) -> Result<(ObjectRecord, &[u8])> {
    record::decode(value).ok_or_else(|| damaged("an object's record", "unreadable"))
}

pub(crate) fn decode_object(value: &[u8]) -> Result<Found> {
    parted(value).map(|(record, inline)| Found { record, inline: inline.to_vec() })
}

/// The record alone, of a row that a scan met.
pub(crate) fn record_of(value: &[u8]) -> Result<ObjectRecord> {
    parted(value).map(|(record, _)| record)
}

pub(crate) fn decode_manifest(bytes: &[u8]) -> Result<Vec<ManifestPart>> {
    serde_json::from_slice(bytes).map_err(|_| damaged("a manifest", "unreadable"))
}

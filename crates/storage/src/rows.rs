//! Names of rows in the index, for ever (`docs/formats/storage-records.md`). Byte order is the order of listings.

use crate::record::Id;

/// Kinds of rows.
const BUCKET: u8 = b'B';
const COMPLETED: u8 = b'C';
const GARBAGE: u8 = b'G';
const MANIFEST: u8 = b'M';
const NULL: u8 = b'N';
const OBJECT: u8 = b'O';
const PART: u8 = b'P';
const UPLOAD: u8 = b'U';
const VERSION: u8 = b'V';
const WASTE: u8 = b'W';

fn row(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![kind];
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

pub(crate) fn bucket(name: &str) -> Vec<u8> {
    row(BUCKET, &[name.as_bytes()])
}

pub(crate) fn buckets() -> Vec<u8> {
    row(BUCKET, &[])
}

/// The current version of an object, unless it is a delete marker.
pub(crate) fn object(bucket: Id, key: &str) -> Vec<u8> {
    row(OBJECT, &[&bucket.0, key.as_bytes()])
}

/// Every current object of a bucket.
pub(crate) fn objects(bucket: Id) -> Vec<u8> {
    row(OBJECT, &[&bucket.0])
}

/// Every current object of every bucket.
pub(crate) fn all_objects() -> Vec<u8> {
    row(OBJECT, &[])
}

/// One version of an object, newest first.
pub(crate) fn version(bucket: Id, key: &str, seq: u64) -> Vec<u8> {
    row(VERSION, &[&bucket.0, key.as_bytes(), &[0], &(!seq).to_be_bytes()])
}

/// Every version of one object.
pub(crate) fn versions_of(bucket: Id, key: &str) -> Vec<u8> {
    row(VERSION, &[&bucket.0, key.as_bytes(), &[0]])
}

/// Every version in a bucket.
pub(crate) fn versions(bucket: Id) -> Vec<u8> {
    row(VERSION, &[&bucket.0])
}

pub(crate) fn all_versions() -> Vec<u8> {
    row(VERSION, &[])
}

/// The place in the name of a version's row.
pub(crate) fn seq_of_version(row: &[u8]) -> Option<u64> {
    let seq = row.get(row.len().checked_sub(8)?..)?;
    Some(!u64::from_be_bytes(seq.try_into().ok()?))
}

/// The place of the listed `null` version of a key, 8 bytes.
pub(crate) fn null(bucket: Id, key: &str) -> Vec<u8> {
    row(NULL, &[&bucket.0, key.as_bytes()])
}

/// The key in the name of a version's row.
pub(crate) fn key_of_version(row: &[u8]) -> Option<&str> {
    let key = row.get(17..row.len().checked_sub(9)?)?;
    std::str::from_utf8(key).ok()
}

/// The key in the name of an object's row.
pub(crate) fn key_of_object(row: &[u8]) -> Option<&str> {
    std::str::from_utf8(row.get(17..)?).ok()
}

/// The manifest of a multipart object.
pub(crate) fn manifest(object: Id) -> Vec<u8> {
    row(MANIFEST, &[&object.0])
}

pub(crate) fn upload(bucket: Id, key: &str, upload: Id) -> Vec<u8> {
    row(UPLOAD, &[&bucket.0, key.as_bytes(), &[0], &upload.0])
}

pub(crate) fn uploads(bucket: Id) -> Vec<u8> {
    row(UPLOAD, &[&bucket.0])
}

pub(crate) fn all_uploads() -> Vec<u8> {
    row(UPLOAD, &[])
}

/// An upload that was completed.
pub(crate) fn completed(bucket: Id, key: &str, upload: Id) -> Vec<u8> {
    row(COMPLETED, &[&bucket.0, key.as_bytes(), &[0], &upload.0])
}

pub(crate) fn all_completed() -> Vec<u8> {
    row(COMPLETED, &[])
}

pub(crate) fn part(upload: Id, number: u16) -> Vec<u8> {
    row(PART, &[&upload.0, &number.to_be_bytes()])
}

pub(crate) fn parts(upload: Id) -> Vec<u8> {
    row(PART, &[&upload.0])
}

pub(crate) fn all_parts() -> Vec<u8> {
    row(PART, &[])
}

pub(crate) fn all_manifests() -> Vec<u8> {
    row(MANIFEST, &[])
}

/// A blob that nothing refers to any more, to be deleted. The value names the object whose readers it waits for, if there may
/// be some.
pub(crate) fn garbage(blob: Id) -> Vec<u8> {
    row(GARBAGE, &[&blob.0])
}

pub(crate) fn all_garbage() -> Vec<u8> {
    row(GARBAGE, &[])
}

/// Something to be cleared away piece by piece, under the id of an object, an upload or a bucket.
pub(crate) fn waste(id: Id) -> Vec<u8> {
    row(WASTE, &[&id.0])
}

pub(crate) fn all_waste() -> Vec<u8> {
    row(WASTE, &[])
}

/// Whether a row says that there is something for the collector.
pub(crate) fn is_for_collector(row: &[u8]) -> bool {
    matches!(row.first(), Some(&GARBAGE | &WASTE))
}

/// Whether a row, or the beginning of one, is of objects, versions or uploads of a bucket.
pub(crate) fn is_of_bucket(row: &[u8], bucket: Id) -> bool {
    matches!(row.first(), Some(&COMPLETED | &NULL | &OBJECT | &UPLOAD | &VERSION)) && row.get(1..17) == Some(&bucket.0)
}

/// The id in the name of a row of garbage or waste.
pub(crate) fn collected_id(row: &[u8]) -> Option<Id> {
    row.get(1..17)?.try_into().ok().map(Id)
}

/// The smallest row after all that begin with `prefix`.
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut next = prefix.to_vec();
    while let Some(last) = next.pop() {
        if last < u8::MAX {
            next.push(last + 1);
            break;
        }
    }
    next
}

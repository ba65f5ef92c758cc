//! Names of rows in the index, for ever (`docs/formats/storage-records.md`). Byte order is the order of listings.

use holdfast_core::IndexSets;

use holdfast_core::hex;

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
/// Left without a name.
const ORPHAN: u8 = b'L';
/// What is known of the place where the blobs lie.
const PLACE: u8 = b'S';

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

/// A blob that nothing names, and since when that is known, in milliseconds.
pub(crate) fn orphan(blob: Id) -> Vec<u8> {
    row(ORPHAN, &[&blob.0])
}

pub(crate) fn all_orphans() -> Vec<u8> {
    row(ORPHAN, &[])
}

/// There once was a mark of ours beside the blobs.
pub(crate) fn marked() -> Vec<u8> {
    row(PLACE, &[b"owner"])
}

/// Whether a row says that there is something for the collector.
pub(crate) fn is_for_collector(row: &[u8]) -> bool {
    matches!(row.first(), Some(&GARBAGE | &WASTE))
}

/// Whether a row, or the beginning of one, is of objects, versions or uploads of a bucket.
pub(crate) fn is_of_bucket(row: &[u8], bucket: Id) -> bool {
    matches!(row.first(), Some(&COMPLETED | &NULL | &OBJECT | &UPLOAD | &VERSION)) && row.get(1..17) == Some(&bucket.0)
}

/// The rows of one bucket are a set, and so are all rows of each other kind: what the index keeps of sets shows which bucket lacks one, or
/// has an older one.
pub const SETS: IndexSets = IndexSets { of: set_of, prefixes };

/// Kinds whose names begin with the id of a bucket.
const OF_BUCKETS: [u8; 5] = [COMPLETED, NULL, OBJECT, UPLOAD, VERSION];
const ID_BYTES: usize = 16;

/// The id of the bucket, or else the kind.
fn set_of(row: &[u8]) -> &[u8] {
    match row.first() {
        // A planted name that is too short for the id of a bucket is of no bucket.
        Some(kind) if OF_BUCKETS.contains(kind) => row.get(1..=ID_BYTES).unwrap_or(&row[..1]),
        _ => row.get(..1).unwrap_or(row),
    }
}

fn prefixes(set: &[u8]) -> Vec<Vec<u8>> {
    match set.len() {
        ID_BYTES => OF_BUCKETS.iter().map(|kind| row(*kind, &[set])).collect(),
        _ => vec![set.to_vec()],
    }
}

/// Which bucket a set is the rows of; `None`: of a kind.
pub(crate) fn bucket_of_set(set: &[u8]) -> Option<Id> {
    set.try_into().ok().map(Id)
}

/// Sets that are not of one bucket, and what an operator calls them. No bucket can have such a name.
const KINDS: [(u8, &str); 7] = [
    (BUCKET, "*buckets"),
    (GARBAGE, "*garbage"),
    (MANIFEST, "*manifests"),
    (ORPHAN, "*orphans"),
    (PART, "*parts"),
    (PLACE, "*place"),
    (WASTE, "*waste"),
];

/// Rows of names that no kind has: somebody put them there. What follows is the set in hex.
const UNKNOWN: &str = "*unknown-";

pub(crate) fn kind_of_set(set: &[u8]) -> String {
    let known = KINDS.iter().find(|(kind, _)| set == [*kind]);
    known.map_or_else(|| format!("{UNKNOWN}{}", hex(set)), |(_, name)| (*name).to_owned())
}

pub(crate) fn kind_called(name: &str) -> Option<Vec<u8>> {
    if let Some(set) = name.strip_prefix(UNKNOWN) {
        // Of rows without a name it is nothing, and else one letter.
        return match set {
            "" => Some(Vec::new()),
            set => u8::from_str_radix(set, 16).ok().filter(|kind| hex(&[*kind]) == set).map(|kind| vec![kind]),
        };
    }
    KINDS.iter().find(|(_, known)| *known == name).map(|(kind, _)| vec![*kind])
}

/// What a row is, for people.
pub(crate) fn described(row: &[u8]) -> String {
    let text = |from: usize, to: usize| {
        let bytes = row.get(from..row.len().saturating_sub(to)).unwrap_or_default();
        // For terminals, too, where control characters are commands.
        String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>()
    };
    let id =
        || row.get(1..=ID_BYTES).and_then(|id| id.try_into().ok()).map_or_else(String::new, |id| Id(id).to_string());
    match row.first() {
        Some(&BUCKET) => format!("bucket {}", text(1, 0)),
        Some(&OBJECT) => format!("object {} in bucket {}", text(17, 0), id()),
        Some(&VERSION) => format!("a version of {} in bucket {}", text(17, 9), id()),
        Some(&NULL) => format!("place of the null version of {} in bucket {}", text(17, 0), id()),
        Some(&UPLOAD) => format!("an upload of {} in bucket {}", text(17, 17), id()),
        Some(&COMPLETED) => format!("a completed upload of {} in bucket {}", text(17, 17), id()),
        Some(&MANIFEST) => format!("manifest of object {}", id()),
        Some(&PART) => format!("a part of upload {}", id()),
        Some(&GARBAGE) => format!("blob to be deleted {}", id()),
        Some(&PLACE) => "that there is a mark beside the blobs".into(),
        Some(&ORPHAN) => format!("blob without a name {}", id()),
        Some(&WASTE) => format!("waste {}", id()),
        _ => row.escape_ascii().to_string(),
    }
}

/// The id in the name of a row of garbage, of waste or of an orphan.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_planted_has_a_set_that_finds_it_and_a_name_that_accepts_it() {
        let names: [&[u8]; 7] = [b"", b"O", b"Oqqqqqqqqqqqqqqq", b"Vq", b"Zfoo", b"\xff\xff", b"Bname"];
        for name in names {
            let set = set_of(name);
            assert!(bucket_of_set(set).is_none(), "{name:?}");
            assert!(prefixes(set).iter().any(|prefix| name.starts_with(prefix)), "{name:?}");
            assert_eq!(kind_called(&kind_of_set(set)).as_deref(), Some(set), "{name:?}");
        }
        for name in ["*unknown-5", "*unknown-5A", "*unknown-+5", "*unknown-5a5a", "*unknown", "*other"] {
            assert_eq!(kind_called(name), None, "{name}");
        }
        assert_eq!(described(b"B\x1b[2Jx"), "bucket ?[2Jx");
    }
}

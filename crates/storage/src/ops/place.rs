//! A version of an object takes its place in the index; what it replaces becomes garbage.

use holdfast_core::IndexWrite;
use s3s::S3Result;

use crate::{
    record::{self, BucketRecord, ObjectRecord, Versioning},
    rows,
    view::{Found, View},
};

/// Sets what only the moment of the commit knows: order and, where versions are off or suspended, nothing else.
fn order(view: &View<'_>, bucket: &BucketRecord, new: &mut ObjectRecord, old: Option<&Found>) -> S3Result<()> {
    let newest = match old {
        Some(found) => found.record.seq,
        None if bucket.versioning == Versioning::Off => 0,
        None => view.versions_of(bucket.id, &new.key)?.first().map_or(0, |found| found.record.seq),
    };
    let millis = u64::try_from(new.modified).unwrap_or(0);
    new.seq = (millis << 10).max(newest + 1);
    Ok(())
}

/// The version that a new object has in this bucket. A part of what its MAC is over, so it is chosen before.
pub(crate) fn new_version(storage: &crate::Storage, bucket: &BucketRecord) -> String {
    match bucket.versioning {
        Versioning::Enabled => record::Id::random(storage.ambient()).to_string(),
        Versioning::Off | Versioning::Suspended => "null".into(),
    }
}

/// What must be written for `new`, an object or a delete marker, to become the current version.
pub(crate) fn place(
    view: &View<'_>,
    bucket: &BucketRecord,
    mut new: ObjectRecord,
    inline: &[u8],
) -> S3Result<Vec<IndexWrite>> {
    let old = view.current(bucket.id, &new.key)?;
    order(view, bucket, &mut new, old.as_ref())?;
    let object_row = rows::object(bucket.id, &new.key);
    let mut writes = Vec::new();
    if bucket.versioning == Versioning::Off {
        if let Some(old) = &old {
            writes.extend(view.discard(&old.record)?);
        }
        writes.push(IndexWrite::put(object_row, record::encode(&new, inline)));
        return Ok(writes);
    }
    // From here on there is a version list. A version from before it was kept joins it, unless it is replaced.
    if let Some(Found { record: mut old, inline }) = old
        && !old.listed
    {
        if new.version == "null" {
            writes.extend(view.discard(&old)?);
        } else {
            old.listed = true;
            writes.push(IndexWrite::put(rows::version(bucket.id, &old.key, old.seq), record::encode(&old, &inline)));
        }
    }
    if new.version == "null" {
        for found in view.versions_of(bucket.id, &new.key)? {
            if found.record.version == "null" {
                writes.extend(view.discard(&found.record)?);
                writes.push(IndexWrite::remove(rows::version(bucket.id, &new.key, found.record.seq)));
            }
        }
    }
    new.listed = true;
    let value = record::encode(&new, inline);
    writes.push(IndexWrite::put(rows::version(bucket.id, &new.key, new.seq), value.clone()));
    writes.push(if new.delete_marker { IndexWrite::remove(object_row) } else { IndexWrite::put(object_row, value) });
    Ok(writes)
}

/// What must be written to remove one version for good. Says whether it was a delete marker; `None` if it is not there.
pub(crate) fn remove_version(
    view: &View<'_>,
    bucket: &BucketRecord,
    key: &str,
    version: &str,
) -> S3Result<Option<(bool, Vec<IndexWrite>)>> {
    let mut listed = view.versions_of(bucket.id, key)?;
    let Some(position) = listed.iter().position(|found| found.record.version == version) else {
        // Not in the list: perhaps a current version from before versions were kept.
        let unlisted = view.current(bucket.id, key)?.filter(|found| found.record.version == version);
        let Some(found) = unlisted else { return Ok(None) };
        let mut writes = view.discard(&found.record)?;
        writes.push(IndexWrite::remove(rows::object(bucket.id, key)));
        return Ok(Some((false, writes)));
    };
    let removed = listed.remove(position);
    let mut writes = view.discard(&removed.record)?;
    writes.push(IndexWrite::remove(rows::version(bucket.id, key, removed.record.seq)));
    if position == 0 {
        let object_row = rows::object(bucket.id, key);
        writes.push(match listed.first().filter(|next| !next.record.delete_marker) {
            Some(next) => IndexWrite::put(object_row, record::encode(&next.record, &next.inline)),
            None => IndexWrite::remove(object_row),
        });
    }
    Ok(Some((removed.record.delete_marker, writes)))
}

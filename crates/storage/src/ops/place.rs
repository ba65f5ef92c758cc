//! A version of an object takes its place in the index; what it replaces becomes garbage. Each of these looks at a few rows,
//! however many versions there are: they run inside the commit, where everybody else waits.

use holdfast_core::{Action, IndexWrite};

use crate::{
    Storage,
    encryption::Key,
    error::Result,
    event::About,
    grant::{Change, Granted},
    record::{self, BucketRecord, Id, ManifestDigest, ObjectRecord, Versioning},
    rows, versions,
    view::{Found, View},
};

/// An object, or a delete marker, about to take its place.
pub(crate) struct New {
    pub record: ObjectRecord,
    pub inline: Vec<u8>,
    /// What the record is authenticated under, once its version is known.
    pub key: Key,
    pub manifest: Option<ManifestDigest>,
    /// For the id of the version.
    random: u64,
}

impl New {
    pub(crate) fn object(storage: &Storage, record: ObjectRecord, inline: Vec<u8>, key: Key) -> Self {
        let random = u64::from_be_bytes(storage.ambient().random());
        Self { record, inline, key, manifest: None, random }
    }

    /// Settles what only the moment of the commit knows: the place, and with it the version. Then the record is whole.
    fn settle(&mut self, bucket: &BucketRecord, newest: Option<u64>) {
        let record = &mut self.record;
        let millis = u64::try_from(record.modified).unwrap_or(0);
        record.seq = (millis << 10).max(newest.map_or(0, |newest| newest + 1));
        record.version = match bucket.versioning {
            Versioning::Enabled => versions::new(record.seq, self.random),
            Versioning::Off | Versioning::Suspended => versions::NULL.into(),
        };
        record.listed = bucket.versioning != Versioning::Off;
        if let Some(dek) = self.key.bytes() {
            record.authenticate(dek, bucket.id, self.manifest.as_ref());
        }
    }
}

/// The row that says where the `null` version of a key stands in its list.
fn null_at(bucket: Id, key: &str, seq: u64) -> IndexWrite {
    IndexWrite::put(rows::null(bucket, key), seq.to_be_bytes().to_vec())
}

/// What must be written for `new` to become the current version; says which version it is, where that is told: of objects only while
/// versions are kept, of delete markers always.
pub(crate) fn place(bucket: Granted<'_>, new: New) -> Result<(Option<String>, Change)> {
    let key = new.record.key.clone();
    let Placed { told, about, writes } = placed(&bucket, new)?;
    Ok((told, bucket.change_object(Action::ObjectWrite, &key, about, writes)?))
}

/// A version in its place.
pub(crate) struct Placed {
    /// The version, where that is told.
    pub told: Option<String>,
    pub about: About,
    pub writes: Vec<IndexWrite>,
}

/// The same as rows, for a change that is more than this.
pub(crate) fn placed(bucket: &Granted<'_>, mut new: New) -> Result<Placed> {
    let key = new.record.key.clone();
    let old = bucket.current(&key)?;
    let object_row = rows::object(bucket.id, &key);
    let mut writes = Vec::new();
    if bucket.versioning == Versioning::Off {
        new.settle(bucket, old.as_ref().map(|old| old.record.seq));
        writes.extend(old.iter().flat_map(|old| View::discard(&old.record)));
        writes.push(IndexWrite::put(object_row, record::encode(&new.record, &new.inline)));
        return Ok(Placed { told: None, about: About::object(bucket, &new.record), writes });
    }
    let newest = match &old {
        Some(old) => Some(old.record.seq),
        None => bucket.newest_place(&key)?,
    };
    new.settle(bucket, newest);
    let becomes_null = new.record.version == versions::NULL;
    // From here on there is a version list. A version from before it was kept joins it, unless it is replaced.
    if let Some(Found { record: mut old, inline }) = old
        && !old.listed
    {
        if becomes_null {
            writes.extend(View::discard(&old));
        } else {
            old.listed = true;
            writes.push(null_at(bucket.id, &key, old.seq));
            writes.push(IndexWrite::put(rows::version(bucket.id, &key, old.seq), record::encode(&old, &inline)));
        }
    } else if becomes_null && let Some(null) = bucket.listed(&key, versions::NULL, None)? {
        writes.extend(View::discard(&null.record));
        writes.push(IndexWrite::remove(rows::version(bucket.id, &key, null.record.seq)));
    }
    let New { record: new, inline, .. } = new;
    if becomes_null {
        writes.push(null_at(bucket.id, &key, new.seq));
    }
    let value = record::encode(&new, &inline);
    writes.push(IndexWrite::put(rows::version(bucket.id, &key, new.seq), value.clone()));
    writes.push(if new.delete_marker { IndexWrite::remove(object_row) } else { IndexWrite::put(object_row, value) });
    let told = bucket.versioning == Versioning::Enabled || new.delete_marker;
    let about = About::object(bucket, &new);
    Ok(Placed { told: told.then_some(new.version), about, writes })
}

/// What must be written to remove one version for good.
pub(crate) fn remove_version(bucket: &Granted<'_>, removed: &ObjectRecord) -> Result<Vec<IndexWrite>> {
    let key = &removed.key;
    let object_row = rows::object(bucket.id, key);
    let mut writes = View::discard(removed);
    if !removed.listed {
        writes.push(IndexWrite::remove(object_row));
        return Ok(writes);
    }
    writes.push(IndexWrite::remove(rows::version(bucket.id, key, removed.seq)));
    if removed.version == versions::NULL {
        writes.push(IndexWrite::remove(rows::null(bucket.id, key)));
    }
    if bucket.newest_place(key)? == Some(removed.seq) {
        let next = bucket.next_version(key, Some(removed.seq))?;
        writes.push(match next.filter(|next| !next.record.delete_marker) {
            Some(next) => IndexWrite::put(object_row, record::encode(&next.record, &next.inline)),
            None => IndexWrite::remove(object_row),
        });
    }
    Ok(writes)
}

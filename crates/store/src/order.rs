//! Whether a table shows the same rows to whoever reads all of them and to whoever asks for one.
//!
//! redb believes the order of the names in its file: it looks for one by halving. In a file that somebody made by hand they may stand in another
//! order, and then what is asked for by its name is another row than the one that a look at all rows has found, or none. So all rows are read in
//! the order in which they stand, which nothing in the file can hide any from; that order must be the one of their names, and each is asked for.

use holdfast_core::StoreError;
use redb::{Key, Range, ReadableTable, Value};

use crate::group::failed;

type Bytes = &'static [u8];

/// Visits all rows, name and value as they are kept.
///
/// # Errors
/// [`StoreError::Disordered`] if a name does not come behind the one before it, or asking for it does not lead to its row; what `visit` returns;
/// [`StoreError::Failed`].
pub(crate) fn visit_all<K: Key + 'static, V: Value + 'static>(
    table: &impl ReadableTable<K, V>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut before: Option<Vec<u8>> = None;
    for entry in table.iter().map_err(failed)? {
        let (name, row) = entry.map_err(failed)?;
        let (key, value) = (name.value(), row.value());
        let (key_bytes, value_bytes) = (K::as_bytes(&key), V::as_bytes(&value));
        let (key_bytes, value_bytes) = (key_bytes.as_ref(), value_bytes.as_ref());
        if before.as_ref().is_some_and(|before| K::compare(before, key_bytes).is_ge()) {
            return Err(StoreError::Disordered);
        }
        let asked = table.get(&key).map_err(failed)?;
        if asked.is_none_or(|asked| V::as_bytes(&asked.value()).as_ref() != value_bytes) {
            return Err(StoreError::Disordered);
        }
        visit(key_bytes, value_bytes)?;
        let kept = before.get_or_insert_default();
        kept.clear();
        kept.extend_from_slice(key_bytes);
    }
    Ok(())
}

/// The rows from `from` on, where the name before that place says that it is the right one.
///
/// # Errors
/// [`StoreError::Disordered`], [`StoreError::Failed`].
pub(crate) fn from<'t>(
    table: &'t impl ReadableTable<Bytes, Bytes>,
    from: &[u8],
) -> Result<Range<'t, Bytes, Bytes>, StoreError> {
    if let Some(before) = table.range(..from).map_err(failed)?.next_back()
        && before.map_err(failed)?.0.value() >= from
    {
        return Err(StoreError::Disordered);
    }
    table.range(from..).map_err(failed)
}

//! Rows whose MAC was looked at already. A row that is read again with each byte as it was then needs no second look: the bucket of nearly every
//! request, and objects that many ask for.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

/// How many rows are remembered.
const ROWS_MAX: usize = 512;
/// A row of more bytes, its name included, is not remembered: all of them together take at most 4 MiB.
const ROW_BYTES_MAX: usize = 8 * 1024;

/// Name, and bytes as they lie in the file.
type Row = (Box<[u8]>, Box<[u8]>);

/// The rows, each in the place that its name has.
pub(super) struct Verified {
    places: Vec<Mutex<Option<Row>>>,
    hasher: RandomState,
}

impl Verified {
    pub(super) fn new() -> Self {
        Self { places: std::iter::repeat_with(Mutex::default).take(ROWS_MAX).collect(), hasher: RandomState::new() }
    }

    fn place(&self, name: &[u8]) -> Option<&Mutex<Option<Row>>> {
        // Short of 2^64 rows, nothing is lost.
        self.places.get(self.hasher.hash_one(name) as usize % ROWS_MAX)
    }

    /// Whether exactly this row was found to be ours.
    pub(super) fn knows(&self, name: &[u8], row: &[u8]) -> bool {
        let Some(place) = self.place(name) else { return false };
        let held = place.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().is_some_and(|(known, bytes)| **known == *name && **bytes == *row)
    }

    /// It was found to be ours.
    pub(super) fn remember(&self, name: &[u8], row: &[u8]) {
        if name.len() + row.len() > ROW_BYTES_MAX {
            return;
        }
        if let Some(place) = self.place(name) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.into(), row.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_same_to_the_last_byte_is_known() {
        let verified = Verified::new();
        verified.remember(b"Bname", b"row");
        assert!(verified.knows(b"Bname", b"row"));
        for (name, row) in
            [(b"Bname".as_slice(), b"rox".as_slice()), (b"Bnama", b"row"), (b"Bname", b"ro"), (b"Bnamer", b"ow")]
        {
            assert!(!verified.knows(name, row));
        }
    }

    #[test]
    fn what_is_too_large_is_not_kept_and_a_newer_row_takes_the_place() {
        let verified = Verified::new();
        verified.remember(b"large", &vec![0; ROW_BYTES_MAX]);
        assert!(!verified.knows(b"large", &vec![0; ROW_BYTES_MAX]));
        verified.remember(b"name", b"one");
        verified.remember(b"name", b"two");
        assert!(verified.knows(b"name", b"two") && !verified.knows(b"name", b"one"));
    }
}

//! All rows of a store as one number, which says whether one was dropped or put back.
//!
//! Each row has a digest under a key of the instance; the number is their sum. A commit takes off what a row was and adds what it becomes,
//! and the sum goes into the same transaction, sealed together with the revision (`docs/formats/record.md`): in clear it could be forged by
//! who has seen others. A row's digest is of its name, its version and the ends of its ciphertext, where salt and tag are; what lies between
//! is the seal's to protect.

use std::sync::{Arc, Mutex, PoisonError};

use holdfast_core::{Ambient, PartitionId, Revision, StoreError};
use holdfast_crypto::{CryptoError, HashAlgorithm, SealingKey, SecretBytes, kdf, kdf::MacKey};

use crate::engine::RowName;

const FORMAT: u8 = 1;
/// Bytes at the beginning of a ciphertext that its digest sees: format, salt, nonce and more.
const BEGIN_BYTES: usize = 32;
/// Bytes at its end: the tag.
const END_BYTES: usize = 16;

/// A sum of digests, modulo 2^256; least significant part first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Sum([u64; 4]);

impl Sum {
    pub(crate) fn of(digest: &[u8]) -> Self {
        let mut parts = digest.chunks_exact(8).map(|part| part.try_into().map_or(0, u64::from_le_bytes));
        Self(std::array::from_fn(|_| parts.next().unwrap_or(0)))
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|part| part.to_le_bytes()).collect()
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let mut carry = 0;
        Self(std::array::from_fn(|at| {
            let sum = u128::from(self.0[at]) + u128::from(other.0[at]) + carry;
            carry = sum >> 64;
            sum as u64
        }))
    }

    /// The one that gives zero with this.
    pub(crate) fn negative(self) -> Self {
        Self(self.0.map(|part| !part)).plus(Self([1, 0, 0, 0]))
    }
}

/// The rows of one store.
pub struct RowSet {
    instance: PartitionId,
    digests: MacKey,
    heads: SealingKey,
    ambient: Arc<dyn Ambient>,
    /// Of what is durable.
    sum: Mutex<Sum>,
}

impl RowSet {
    /// The set without rows.
    ///
    /// # Errors
    /// [`CryptoError`] on a key of another length than 32 bytes.
    pub(crate) fn new(
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, CryptoError> {
        let digests = kdf::derive_key(database_key, "holdfast row digests v1")?;
        let heads = kdf::derive_key(database_key, "holdfast row set v1")?;
        let digests = MacKey::new(HashAlgorithm::Sha256, digests.expose());
        Ok(Self { instance, digests, heads: SealingKey::new(&heads)?, ambient, sum: Mutex::default() })
    }

    fn digest(&self, name: &RowName, version: u64, sealed: &[u8]) -> Sum {
        let (begin, end) = (sealed.len().min(BEGIN_BYTES), sealed.len().saturating_sub(END_BYTES));
        let length = (sealed.len() as u64).to_be_bytes();
        Sum::of(&self.digests.sign(&[name, &version.to_be_bytes(), &length, &sealed[..begin], &sealed[end..]]))
    }

    fn aad(&self, revision: Revision) -> Vec<u8> {
        [&[FORMAT], self.instance.as_bytes().as_slice(), &revision.0.to_be_bytes()].concat()
    }

    /// Begins with no row, where rows are counted anew.
    #[must_use]
    pub fn empty(self: &Arc<Self>) -> Fold {
        Fold { sum: Sum::default(), set: Arc::clone(self) }
    }

    /// Begins what one transaction does to the set.
    #[must_use]
    pub fn fold(self: &Arc<Self>) -> Fold {
        Fold { sum: *self.sum.lock().unwrap_or_else(PoisonError::into_inner), set: Arc::clone(self) }
    }
}

/// The set as a transaction will leave it.
pub struct Fold {
    set: Arc<RowSet>,
    sum: Sum,
}

impl Fold {
    /// A row comes in.
    pub fn add(&mut self, name: &RowName, version: u64, sealed: &[u8]) {
        self.sum = self.sum.plus(self.set.digest(name, version, sealed));
    }

    /// A row goes.
    pub fn remove(&mut self, name: &RowName, version: u64, sealed: &[u8]) {
        self.sum = self.sum.plus(self.set.digest(name, version, sealed).negative());
    }

    /// What the transaction keeps of the set.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: a defect of the library.
    pub fn head(&self, revision: Revision) -> Result<Vec<u8>, StoreError> {
        let sealed = self.set.heads.seal(self.set.ambient.random(), &self.set.aad(revision), &self.sum.to_bytes());
        let sealed = sealed.map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok([&[FORMAT], sealed.as_slice()].concat())
    }

    /// Whether `head` was kept of this very set, at this revision.
    #[must_use]
    pub fn is_of(&self, head: &[u8], revision: Revision) -> bool {
        let opened = head.strip_prefix(&[FORMAT]).map(|sealed| self.set.heads.open(&self.set.aad(revision), sealed));
        opened.is_some_and(|opened| opened.is_ok_and(|sum| sum.expose() == self.sum.to_bytes()))
    }

    /// Whether these are the same rows.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.sum == other.sum
    }

    /// Whether these are the rows that are durable, as far as is known.
    #[must_use]
    pub fn is_what_is_kept(&self) -> bool {
        *self.set.sum.lock().unwrap_or_else(PoisonError::into_inner) == self.sum
    }

    /// The transaction is durable.
    pub fn keep(self) {
        *self.set.sum.lock().unwrap_or_else(PoisonError::into_inner) = self.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twins::Fixed;

    fn set() -> Arc<RowSet> {
        let key = SecretBytes::copy_of(&[2; 32]);
        let set = RowSet::new(PartitionId::from_bytes([1; 16]), &key, Arc::new(Fixed));
        Arc::new(set.unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing() {
        let mut fold = set().fold();
        for byte in 0..=255_u8 {
            fold.add(&[byte; 33], u64::from(byte), &[byte; 100]);
        }
        assert_ne!(fold.sum, Sum::default());
        for byte in (0..=255_u8).rev() {
            fold.remove(&[byte; 33], u64::from(byte), &[byte; 100]);
        }
        assert_eq!(fold.sum, Sum::default());
    }

    #[test]
    fn order_is_nothing_and_content_is_all() {
        let rows: [(&RowName, u64, &[u8]); 3] = [(&[1; 33], 1, b"one"), (&[2; 33], 1, b"two"), (&[3; 33], 7, b"")];
        let sum = |rows: &[(&RowName, u64, &[u8])]| {
            let mut fold = set().fold();
            rows.iter().for_each(|(name, version, sealed)| fold.add(name, *version, sealed));
            fold.sum
        };
        let whole = sum(&rows);
        assert_eq!(whole, sum(&[rows[2], rows[0], rows[1]]));
        assert_ne!(whole, sum(&rows[..2]), "one is missing");
        assert_ne!(whole, sum(&[rows[0], rows[0], rows[2]]), "one stands for another");
        assert_ne!(whole, sum(&[(&[1; 33], 2, b"one"), rows[1], rows[2]]), "a version");
        assert_ne!(whole, sum(&[(&[1; 33], 1, b"One"), rows[1], rows[2]]), "a content");
    }

    #[test]
    fn a_head_is_of_one_set_at_one_revision() {
        let golden = include_bytes!("../tests/golden/row-set-v1.bin");
        let mut fold = set().fold();
        fold.add(&[1; 33], 7, b"sealed");
        let head = fold.head(Revision(3)).unwrap_or_else(|error| panic!("{error}"));
        assert!(fold.is_of(&head, Revision(3)) && !fold.is_of(&head, Revision(2)));
        assert!(fold.is_of(golden, Revision(3)), "{head:?}");
        assert!(!set().fold().is_of(&head, Revision(3)));
        for bit in 0..head.len() * 8 {
            let mut changed = head.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!fold.is_of(&changed, Revision(3)), "bit {bit}");
        }
        for len in 0..head.len() {
            assert!(!fold.is_of(&head[..len], Revision(3)), "length {len}");
        }
    }
}

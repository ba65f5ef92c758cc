//! What makes a row of the index ours: a MAC over its name and content. And what is kept of many rows at once, for those that are dropped
//! or put back: a sum of digests for each set of rows, and the sum of those, with the revision, in the head (`docs/formats/storage-records.md`).

use std::sync::Arc;

use holdfast_core::{Ambient, PartitionId, Revision, StoreError};
use holdfast_crypto::{HashAlgorithm, SealingKey, SecretBytes, kdf, kdf::MacKey, secret::ct_eq};

use super::verified::Verified;
use crate::{group::failed, outbox::StoredEvent, row_set::Sum};

/// Bytes of a row's MAC, which stands before its content.
pub(crate) const TAG_BYTES: usize = 32;

/// The keys of one instance's index.
pub(crate) struct Seals {
    instance: PartitionId,
    rows: MacKey,
    digests: MacKey,
    heads: SealingKey,
    events: SealingKey,
    verified: Verified,
    ambient: Arc<dyn Ambient>,
}

/// What is kept of a set of rows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct SetState {
    sum: Sum,
    pub rows: u64,
}

impl SetState {
    pub(crate) fn add(&mut self, digest: Sum) {
        *self = Self { sum: self.sum.plus(digest), rows: self.rows.wrapping_add(1) };
    }

    pub(crate) fn remove(&mut self, digest: Sum) {
        *self = Self { sum: self.sum.plus(digest.negative()), rows: self.rows.wrapping_sub(1) };
    }

    fn encode(self) -> Vec<u8> {
        [self.sum.to_bytes().as_slice(), &self.rows.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (sum, rows) = bytes.split_first_chunk::<32>()?;
        Some(Self { sum: Sum::of(sum), rows: u64::from_be_bytes(rows.try_into().ok()?) })
    }
}

/// What each commit leaves of the whole index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Head {
    pub revision: Revision,
    /// Whether rows of an earlier version are still to be taken over.
    pub upgrading: bool,
    /// Of all sets.
    pub sum: Sum,
}

impl Seals {
    /// # Errors
    /// [`StoreError::Failed`] on a key of another length than 32 bytes.
    pub(crate) fn new(
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, StoreError> {
        let key = |purpose| kdf::derive_key(database_key, purpose).map_err(failed);
        let mac = |purpose| key(purpose).map(|key| MacKey::new(HashAlgorithm::Sha256, key.expose()));
        let seal = |purpose| SealingKey::new(&key(purpose)?).map_err(failed);
        Ok(Self {
            instance,
            rows: mac("holdfast index rows v2")?,
            digests: mac("holdfast index digests v2")?,
            heads: seal("holdfast index heads v2")?,
            events: seal("holdfast index events v1")?,
            verified: Verified::new(),
            ambient,
        })
    }

    pub(crate) fn instance(&self) -> PartitionId {
        self.instance
    }

    fn tag(&self, name: &[u8], content: &[u8]) -> Vec<u8> {
        self.rows.sign(&[self.instance.as_bytes(), &(name.len() as u32).to_be_bytes(), name, content])
    }

    /// A row as it is kept: its MAC, then its content.
    pub(crate) fn close(&self, name: &[u8], content: &[u8]) -> Vec<u8> {
        let mut row = self.tag(name, content);
        row.extend_from_slice(content);
        row
    }

    /// The content of a row, if it is ours.
    pub(crate) fn open<'r>(&self, name: &[u8], row: &'r [u8]) -> Result<&'r [u8], StoreError> {
        match row.split_at_checked(TAG_BYTES) {
            Some((tag, content)) if ct_eq(&self.tag(name, content), tag) => Ok(content),
            _ => Err(StoreError::Forged { row: name.to_vec() }),
        }
    }

    /// The same, of a row that is asked for by its name, perhaps not for the first time.
    pub(crate) fn open_again<'r>(&self, name: &[u8], row: &'r [u8]) -> Result<&'r [u8], StoreError> {
        if let Some((_, content)) = row.split_at_checked(TAG_BYTES)
            && self.verified.knows(name, row)
        {
            return Ok(content);
        }
        let content = self.open(name, row)?;
        self.verified.remember(name, row);
        Ok(content)
    }

    /// What a row adds to its set. The MACs lie there in clear, and their sum could be forged by who has seen many of them: so this is
    /// not the MAC itself.
    pub(crate) fn digest(&self, row: &[u8]) -> Sum {
        Sum::of(&self.digests.sign(&[b"row", row.get(..TAG_BYTES).unwrap_or(row)]))
    }

    /// What an event that waits adds to the set of those.
    pub(crate) fn digest_of_event(&self, revision: u64, sealed: &[u8]) -> Sum {
        Sum::of(&self.digests.sign(&[b"event", &revision.to_be_bytes(), sealed]))
    }

    /// What a pin adds to the set of pins.
    pub(crate) fn digest_of_pin(&self, name: &[u8], left: &[u8]) -> Sum {
        Sum::of(&self.digests.sign(&[b"pin", &(name.len() as u32).to_be_bytes(), name, left]))
    }

    /// What a set adds to the head.
    pub(crate) fn digest_of_set(&self, set: &[u8], state: SetState) -> Sum {
        Sum::of(&self.digests.sign(&[b"set", &(set.len() as u32).to_be_bytes(), set, &state.encode()]))
    }

    pub(crate) fn seal_set(&self, set: &[u8], state: SetState) -> Result<Vec<u8>, StoreError> {
        self.heads.seal(self.ambient.random(), &self.bound_to(b"set v2", set), &state.encode()).map_err(failed)
    }

    /// `None`: it is not ours.
    pub(crate) fn open_set(&self, set: &[u8], sealed: &[u8]) -> Option<SetState> {
        SetState::decode(self.heads.open(&self.bound_to(b"set v2", set), sealed).ok()?.expose())
    }

    pub(crate) fn seal_head(&self, head: Head) -> Result<Vec<u8>, StoreError> {
        let content =
            [&head.revision.0.to_be_bytes(), [u8::from(head.upgrading)].as_slice(), &head.sum.to_bytes()].concat();
        self.heads.seal(self.ambient.random(), &self.bound_to(b"head v2", &[]), &content).map_err(failed)
    }

    /// `None`: it is not ours.
    pub(crate) fn open_head(&self, sealed: &[u8]) -> Option<Head> {
        let content = self.heads.open(&self.bound_to(b"head v2", &[]), sealed).ok()?;
        let (revision, rest) = content.expose().split_first_chunk::<8>()?;
        let (upgrading, sum) = rest.split_first()?;
        let sum: &[u8; 32] = sum.try_into().ok()?;
        Some(Head { revision: Revision(u64::from_be_bytes(*revision)), upgrading: *upgrading != 0, sum: Sum::of(sum) })
    }

    /// The row of an event: whoever can write to the file can neither read, make nor move one.
    pub(crate) fn seal_event(&self, revision: Revision, body: &str) -> Result<Vec<u8>, StoreError> {
        let bound = self.bound_to(b"event v1", &revision.0.to_be_bytes());
        self.events.seal(self.ambient.random(), &bound, body.as_bytes()).map_err(failed)
    }

    pub(crate) fn open_event(&self, revision: Revision, sealed: &[u8]) -> Result<StoredEvent, StoreError> {
        let body = self.events.open(&self.bound_to(b"event v1", &revision.0.to_be_bytes()), sealed);
        let body = body.map_err(|_| StoreError::Damaged)?;
        let body = std::str::from_utf8(body.expose()).map_err(|_| StoreError::Damaged)?.into();
        Ok(StoredEvent { revision, body })
    }

    fn bound_to(&self, what: &[u8], name: &[u8]) -> Vec<u8> {
        [b"holdfast index ".as_slice(), what, self.instance.as_bytes(), name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twins::Fixed;

    fn seals() -> Seals {
        Seals::new(PartitionId::from_bytes([1; 16]), &SecretBytes::copy_of(&[2; 32]), Arc::new(Fixed)).unwrap()
    }

    #[test]
    fn golden_event() {
        let golden = include_bytes!("../../tests/golden/index-event-v1.bin");
        assert_eq!(seals().seal_event(Revision(3), r#"{"type":"event""#).unwrap(), golden);
        let event = seals().open_event(Revision(3), golden).unwrap();
        assert_eq!((event.revision, event.body.as_ref()), (Revision(3), r#"{"type":"event""#));
        assert_eq!(seals().open_event(Revision(4), golden), Err(StoreError::Damaged), "it is bound to its change");
    }

    /// A row, what is kept of its set, and of the whole.
    #[test]
    fn golden_row_set_and_head() {
        let golden: &[u8] = include_bytes!("../../tests/golden/index-v2.bin");
        let (name, content) = (b"Bname".as_slice(), b"content".as_slice());
        let row = seals().close(name, content);
        let mut state = SetState::default();
        state.add(seals().digest(&row));
        let head = Head { revision: Revision(7), upgrading: false, sum: seals().digest_of_set(b"B", state) };
        let (set, sealed) = (seals().seal_set(b"B", state).unwrap(), seals().seal_head(head).unwrap());
        let all = [row.as_slice(), &set, &sealed].concat();
        assert_eq!(all, golden);
        assert_eq!(seals().open(name, &row).unwrap(), content);
        assert_eq!((seals().open_set(b"B", &set), seals().open_head(&sealed)), (Some(state), Some(head)));
    }

    #[test]
    fn every_bit_and_the_name_count() {
        let row = seals().close(b"Bname", b"content");
        for at in 0..row.len() * 8 {
            let mut other = row.clone();
            other[at / 8] ^= 1 << (at % 8);
            assert_eq!(seals().open(b"Bname", &other), Err(StoreError::Forged { row: b"Bname".to_vec() }));
        }
        for name in [b"Bother".as_slice(), b"Bnam", b"Bnamee", b""] {
            assert!(seals().open(name, &row).is_err());
        }
        for cut in 0..row.len() {
            assert!(seals().open(b"Bname", &row[..cut]).is_err());
        }
        let seals = seals();
        assert_eq!(seals.open_again(b"Bname", &row).unwrap(), b"content");
        assert_eq!(seals.open_again(b"Bname", &row).unwrap(), b"content");
        for at in 0..row.len() * 8 {
            let mut other = row.clone();
            other[at / 8] ^= 1 << (at % 8);
            assert!(seals.open_again(b"Bname", &other).is_err(), "one that was found to be ours vouches for no other");
        }
        assert!(seals.open_again(b"Bother", &row).is_err());
        let other = Seals::new(PartitionId::from_bytes([3; 16]), &SecretBytes::copy_of(&[2; 32]), Arc::new(Fixed));
        assert!(other.unwrap().open(b"Bname", &row).is_err(), "another instance");
        let other = Seals::new(PartitionId::from_bytes([1; 16]), &SecretBytes::copy_of(&[4; 32]), Arc::new(Fixed));
        assert!(other.unwrap().open(b"Bname", &row).is_err(), "another key");
    }

    #[test]
    fn a_set_and_the_head_are_bound_to_their_names() {
        let mut state = SetState::default();
        state.add(seals().digest(&[9; 40]));
        let set = seals().seal_set(b"B", state).unwrap();
        assert_eq!(seals().open_set(b"O", &set), None);
        assert_eq!(seals().open_head(&set), None);
        state.remove(seals().digest(&[9; 40]));
        assert_eq!(state, SetState::default());
    }
}

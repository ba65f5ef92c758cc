//! The file's bytes (`docs/formats/shared-rows.md`).

use holdfast_core::PartitionId;
use holdfast_crypto::{CryptoError, HashAlgorithm, SecretBytes, kdf, kdf::MacKey};

use crate::engine::Rows;

const MAGIC_V1: &[u8; 5] = b"HFSR\x01";
const MAGIC: &[u8; 5] = b"HFSR\x02";
const TAG_BYTES: usize = 32;

/// One state of the file: its number, and the tag over all of it. Two states that differ anywhere differ in one of these.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StateId {
    /// Commits up to this state.
    pub generation: u64,
    /// MAC over the whole file; zeros if there is none.
    pub tag: [u8; TAG_BYTES],
}

/// A whole file, read and checked.
pub(super) struct State {
    pub id: StateId,
    pub rows: Rows,
}

/// Authenticates files of one place of one instance.
pub(super) struct FileKey {
    key: MacKey,
    /// What a tag is bound to beside the file: instance and place.
    context: Vec<u8>,
}

/// Why bytes are not a state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unreadable {
    /// Well-formed, of version 1, which has no key.
    Version1,
    /// Anything else.
    Damaged,
}

impl FileKey {
    pub(super) fn new(database_key: &SecretBytes, instance: PartitionId, place: &str) -> Result<Self, CryptoError> {
        let key = kdf::derive_key(database_key, "holdfast shared rows v2")?;
        let place_len = u16::try_from(place.len()).map_err(|_| CryptoError::InvalidInput("the place is too long"))?;
        let context = [instance.as_bytes().as_slice(), &place_len.to_be_bytes(), place.as_bytes()].concat();
        Ok(Self { key: MacKey::new(HashAlgorithm::Sha256, key.expose()), context })
    }

    /// The file's bytes, and its id.
    pub(super) fn encode(&self, generation: u64, rows: &Rows) -> (Vec<u8>, StateId) {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&generation.to_be_bytes());
        put_rows(&mut out, rows);
        let mut id = StateId { generation, ..StateId::default() };
        for (to, from) in id.tag.iter_mut().zip(self.key.sign(&[&self.context, &out])) {
            *to = from;
        }
        out.extend_from_slice(&id.tag);
        (out, id)
    }

    pub(super) fn decode(&self, bytes: &[u8]) -> Result<State, Unreadable> {
        if decode_v1(bytes).is_some() {
            return Err(Unreadable::Version1);
        }
        let (body, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(Unreadable::Damaged)?;
        let message = [self.context.as_slice(), body].concat();
        if !self.key.verify(&message, tag) {
            return Err(Unreadable::Damaged);
        }
        let (generation, rows) = take_file(body, MAGIC).ok_or(Unreadable::Damaged)?;
        Ok(State { id: StateId { generation, tag: *tag }, rows })
    }
}

/// Reads version 1: a digest in the tag's place, which anybody can make.
pub(super) fn decode_v1(bytes: &[u8]) -> Option<(u64, Rows)> {
    let (body, digest) = bytes.split_last_chunk::<TAG_BYTES>()?;
    if !body.starts_with(MAGIC_V1) || kdf::sha256(&[body]) != *digest {
        return None;
    }
    take_file(body, MAGIC_V1)
}

fn put_rows(out: &mut Vec<u8>, rows: &Rows) {
    for (name, (version, sealed)) in rows {
        out.extend_from_slice(name);
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&(sealed.len() as u32).to_be_bytes());
        out.extend_from_slice(sealed);
    }
}

fn take_file(body: &[u8], magic: &[u8; 5]) -> Option<(u64, Rows)> {
    let (generation, mut rest) = body.strip_prefix(magic)?.split_first_chunk::<8>()?;
    let mut rows = Rows::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_first_chunk::<33>()?;
        let (version, after) = after.split_first_chunk::<8>()?;
        let (len, after) = after.split_first_chunk::<4>()?;
        let (sealed, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        rows.insert(*name, (u64::from_be_bytes(*version), sealed.to_vec()));
        rest = after;
    }
    Some((u64::from_be_bytes(*generation), rows))
}

#[cfg(test)]
pub(super) fn encode_v1(generation: u64, rows: &Rows) -> Vec<u8> {
    let mut out = MAGIC_V1.to_vec();
    out.extend_from_slice(&generation.to_be_bytes());
    put_rows(&mut out, rows);
    let digest = kdf::sha256(&[&out]);
    out.extend_from_slice(&digest);
    out
}

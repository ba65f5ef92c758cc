//! Encrypted streams (`docs/formats/object-stream.md`): what an object, or a part of one, looks like at rest.
//!
//! A stream is a header of 128 bytes and chunks of 64 KiB, each with its own tag. Its key is derived from the DEK and the
//! stream's identity, so no two streams share one; the place of a chunk and the end of the stream are in the nonce, the
//! header is in the AAD, and a commitment in the header pins the DEK (AES-GCM alone does not commit to its key).

use holdfast_crypto::{
    CryptoError, HashAlgorithm, SecretBytes,
    chunk::{CHUNK_TAG_BYTES, ChunkKey},
    kdf,
};

use crate::record::Id;

/// Bytes before the first chunk.
pub(crate) const HEADER_BYTES: usize = 128;
/// Plaintext of a chunk.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// Sealed bytes are handed on in pieces of at least this size.
const PIECE_BYTES: usize = 1024 * 1024;

const MAGIC: &[u8; 4] = b"HFOS";
const VERSION: u8 = 1;
const CHUNK_LOG2: u8 = 16;

/// Who a stream is, and which DEK it is under.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct StreamIdentity {
    pub dek: Id,
    pub bucket: Id,
    pub object: Id,
    pub stream: Id,
}

/// How a stream's bytes are protected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Suite {
    /// Encryption is off on this server.
    Plain = 0,
    Aes256Gcm = 1,
}

/// What a header says, for `holdfast storage inspect`.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub suite: Suite,
    pub identity: StreamIdentity,
}

/// Reads a header.
pub(crate) fn read_header(bytes: &[u8]) -> Option<Header> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
    let id = |at: usize| header[at..at + 16].try_into().ok().map(Id);
    if header[..4] != *MAGIC || header[4] != VERSION || header[6] != CHUNK_LOG2 {
        return None;
    }
    let suite = match header[5] {
        0 => Suite::Plain,
        1 => Suite::Aes256Gcm,
        _ => return None,
    };
    Some(Header { suite, identity: StreamIdentity { dek: id(8)?, bucket: id(24)?, object: id(40)?, stream: id(56)? } })
}

/// The keys of one stream.
pub(crate) struct StreamKeys {
    key: Option<ChunkKey>,
    header: [u8; HEADER_BYTES],
}

impl StreamKeys {
    /// Derives the stream's keys from the DEK; without one, the stream is plain.
    pub(crate) fn derive(dek: Option<&SecretBytes>, identity: StreamIdentity) -> Result<Self, CryptoError> {
        let mut header = [0; HEADER_BYTES];
        let suite = if dek.is_some() { Suite::Aes256Gcm } else { Suite::Plain };
        header[..4].copy_from_slice(MAGIC);
        header[4..7].copy_from_slice(&[VERSION, suite as u8, CHUNK_LOG2]);
        for (at, id) in [(8, identity.dek), (24, identity.bucket), (40, identity.object), (56, identity.stream)] {
            header[at..at + 16].copy_from_slice(&id.0);
        }
        let Some(dek) = dek else { return Ok(Self { key: None, header }) };
        let derive = |what: &str| {
            let info = [what.as_bytes(), &[suite as u8], &identity.bucket.0, &identity.object.0].concat();
            kdf::hkdf(HashAlgorithm::Sha256, &identity.stream.0, dek.expose(), &info, 32)
        };
        header[72..104].copy_from_slice(derive("holdfast object v1 commitment")?.expose());
        let key = ChunkKey::new(&derive("holdfast object v1 content")?, kdf::sha256(&[&header]))?;
        Ok(Self { key: Some(key), header })
    }

    /// The header that the stream must begin with.
    pub(crate) fn header(&self) -> &[u8; HEADER_BYTES] {
        &self.header
    }

    fn tag_bytes(&self) -> usize {
        if self.key.is_some() { CHUNK_TAG_BYTES } else { 0 }
    }

    /// Where chunk `index` begins.
    pub(crate) fn chunk_offset(&self, index: u64) -> u64 {
        HEADER_BYTES as u64 + index * (CHUNK_BYTES + self.tag_bytes()) as u64
    }

    /// Length of a stream at rest.
    pub(crate) fn sealed_bytes(&self, plain_bytes: u64) -> u64 {
        HEADER_BYTES as u64 + plain_bytes + chunk_count(plain_bytes) * self.tag_bytes() as u64
    }

    /// Opens chunks from `first` on, out of a stream of `plain_bytes`; `sealed` is whole chunks.
    pub(crate) fn open(&self, first: u64, plain_bytes: u64, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let Some(key) = &self.key else { return Ok(sealed.to_vec()) };
        let last = chunk_count(plain_bytes) - 1;
        let whole = CHUNK_BYTES + CHUNK_TAG_BYTES;
        let tags = sealed.len().div_ceil(whole) * CHUNK_TAG_BYTES;
        let mut out = vec![0; sealed.len().checked_sub(tags).ok_or(CryptoError::Rejected)?];
        for (number, (sealed, plain)) in sealed.chunks(whole).zip(out.chunks_mut(CHUNK_BYTES)).enumerate() {
            let index = first + number as u64;
            key.open(index, index == last, sealed, plain)?;
        }
        if out.is_empty() {
            // The one chunk of an empty stream.
            key.open(0, true, sealed, &mut [])?;
        }
        Ok(out)
    }
}

/// Chunks of a stream; an empty one has one.
pub(crate) fn chunk_count(plain_bytes: u64) -> u64 {
    plain_bytes.div_ceil(CHUNK_BYTES as u64).max(1)
}

/// Encrypts a stream as it comes.
pub(crate) struct StreamSealer {
    keys: StreamKeys,
    /// Sealed chunks, then the plaintext of the chunk that is being filled.
    buffer: Vec<u8>,
    chunk_start: usize,
    index: u64,
    plain_bytes: u64,
}

impl StreamSealer {
    pub(crate) fn new(keys: StreamKeys) -> Self {
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        buffer.extend_from_slice(keys.header());
        Self { keys, chunk_start: buffer.len(), buffer, index: 0, plain_bytes: 0 }
    }

    pub(crate) fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Takes plaintext in. Gives a piece of whole sealed chunks now and then.
    pub(crate) fn push(&mut self, mut plain: &[u8], mut piece: impl FnMut(Vec<u8>)) -> Result<(), CryptoError> {
        self.plain_bytes += plain.len() as u64;
        while !plain.is_empty() {
            // A full chunk is sealed only when more comes: the last one is sealed as the last.
            if self.buffer.len() - self.chunk_start == CHUNK_BYTES {
                self.seal_chunk(false)?;
                if self.buffer.len() >= PIECE_BYTES {
                    let next = Vec::with_capacity(PIECE_BYTES + CHUNK_BYTES + 1024);
                    piece(std::mem::replace(&mut self.buffer, next));
                    self.chunk_start = 0;
                }
            }
            let room = CHUNK_BYTES - (self.buffer.len() - self.chunk_start);
            let (now, later) = plain.split_at(room.min(plain.len()));
            self.buffer.extend_from_slice(now);
            plain = later;
        }
        Ok(())
    }

    /// Seals the last chunk; gives what was not given yet.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, CryptoError> {
        self.seal_chunk(true)?;
        Ok(self.buffer)
    }

    fn seal_chunk(&mut self, last: bool) -> Result<(), CryptoError> {
        if let Some(key) = &self.keys.key {
            key.seal(self.index, last, &mut self.buffer, self.chunk_start)?;
        }
        self.index += 1;
        self.chunk_start = self.buffer.len();
        Ok(())
    }
}

/// Authenticates what the index says of an object (`docs/formats/storage-records.md`).
pub(crate) fn metadata_mac(dek: &SecretBytes, object: Id, canonical: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let key = kdf::hkdf(HashAlgorithm::Sha256, &object.0, dek.expose(), b"holdfast object v1 metadata", 32)?;
    Ok(kdf::MacKey::new(HashAlgorithm::Sha256, key.expose()).sign(&[canonical]))
}

#[cfg(test)]
mod tests;

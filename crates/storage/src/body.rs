//! Bodies: from the wire to rest, and back.

use std::{collections::VecDeque, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use holdfast_core::{BlobWriter, hex};
use holdfast_crypto::md5::Md5;
use http::HeaderMap;
use s3s::{
    TrailingHeaders,
    checksum::ChecksumHasher,
    crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256},
    dto::{self, StreamingBlob},
};

use crate::{
    Storage,
    encryption::Key,
    error::{Error, Result, damaged, from_kek, from_store, invalid_request},
    format::{CHUNK_BYTES, StreamIdentity, StreamKeys, StreamSealer, chunk_count},
    readers::Hold,
    record::{ChecksumRecord, Id, StreamRecord},
};

/// A sealed stream up to this size lies in the index: one shared sync instead of three of its own.
const INLINE_BYTES_MAX: usize = 32 * 1024;
/// Chunks read and decrypted at a time: 1 MiB.
const READ_CHUNKS: u64 = 16;
/// Longest body of one request: S3's limit for one PUT, 5 GiB.
const BODY_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// What a request claims of its body, checked before anything is committed.
#[derive(Default)]
pub(crate) struct Claims {
    pub content_md5: Option<String>,
    /// Algorithm, and value if it came in a header.
    pub checksum: Option<(String, Option<String>)>,
    /// Whether the value comes behind the body.
    pub trailing: bool,
    pub trailers: Option<TrailingHeaders>,
    pub content_length: Option<i64>,
}

/// The algorithms, with the header that carries each and the bytes of its value.
const ALGORITHMS: [(&str, &str, usize); 5] = [
    ("CRC32", "x-amz-checksum-crc32", 4),
    ("CRC32C", "x-amz-checksum-crc32c", 4),
    ("CRC64NVME", "x-amz-checksum-crc64nvme", 8),
    ("SHA1", "x-amz-checksum-sha1", 20),
    ("SHA256", "x-amz-checksum-sha256", 32),
];

impl Claims {
    /// Reads checksum claims from headers: a value, or a trailer to come.
    ///
    /// # Errors
    /// As S3's: several checksums, a value that is none, a trailer that is no checksum, an algorithm without a value.
    pub(crate) fn from_headers(headers: &HeaderMap, trailers: Option<TrailingHeaders>) -> Result<Self> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let mut found = ALGORITHMS.iter().filter(|(_, header, _)| headers.contains_key(*header));
        let named = found.next();
        if found.next().is_some() {
            return Err(invalid_request(
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
            ));
        }
        let mut checksum = None;
        if let Some((algorithm, header, bytes)) = named {
            let value = text(header).unwrap_or_default();
            if BASE64.decode(value).map(|decoded| decoded.len()) != Ok(*bytes) {
                return Err(invalid_request(format!("Value for {header} header is invalid.")));
            }
            checksum = Some(((*algorithm).to_owned(), Some(value.to_owned())));
        }
        let announced = text("x-amz-trailer").map(str::to_ascii_lowercase);
        if let Some(announced) = &announced {
            let known = ALGORITHMS.iter().find(|(_, header, _)| *header == announced.trim());
            let (algorithm, ..) = known
                .filter(|_| checksum.is_none())
                .ok_or_else(|| invalid_request("The value specified in the x-amz-trailer header is not supported"))?;
            checksum = Some(((*algorithm).to_owned(), None));
        }
        if let Some(asked) = text("x-amz-sdk-checksum-algorithm") {
            let (given, _) = checksum.as_ref().ok_or_else(|| {
                invalid_request(
                    "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer \
                     headers were found.",
                )
            })?;
            if !given.eq_ignore_ascii_case(asked) {
                return Err(invalid_request("Value for x-amz-sdk-checksum-algorithm header is invalid."));
            }
        }
        let content_md5 = text("content-md5").map(str::to_owned);
        Ok(Self { content_md5, checksum, trailing: announced.is_some(), trailers, content_length: None })
    }

    /// Only what is of the body, where checksums in headers are of something else.
    pub(crate) fn of_body_alone(headers: &HeaderMap) -> Self {
        let content_md5 = headers.get("content-md5").map(|value| value.to_str().unwrap_or_default().to_owned());
        Self { content_md5, ..Self::default() }
    }

    fn claimed_checksum(&self) -> Option<String> {
        let (algorithm, value) = self.checksum.as_ref()?;
        let header = ALGORITHMS.iter().find(|(known, ..)| known == algorithm)?.1;
        let trailed = || self.trailers.as_ref()?.read(|map| Some(map.get(header)?.to_str().ok()?.to_owned()))?;
        value.clone().or_else(trailed)
    }
}

/// A hasher for one algorithm.
pub(crate) fn hasher(algorithm: &str) -> Option<ChecksumHasher> {
    let mut hasher = ChecksumHasher::default();
    match algorithm {
        "CRC32" => hasher.crc32 = Some(Crc32::new()),
        "CRC32C" => hasher.crc32c = Some(Crc32c::new()),
        "CRC64NVME" => hasher.crc64nvme = Some(Crc64Nvme::new()),
        "SHA1" => hasher.sha1 = Some(Sha1::new()),
        "SHA256" => hasher.sha256 = Some(Sha256::new()),
        _ => return None,
    }
    Some(hasher)
}

/// The value that a hasher of one algorithm gives.
pub(crate) fn checksum_value(hasher: ChecksumHasher) -> Option<String> {
    let sum = hasher.finalize();
    sum.checksum_crc32.or(sum.checksum_crc32c).or(sum.checksum_crc64nvme).or(sum.checksum_sha1).or(sum.checksum_sha256)
}

/// A body at rest, not yet named by the index. Dropped before it is kept, its blob is deleted.
pub(crate) struct Written {
    pub stream: StreamRecord,
    pub inline: Vec<u8>,
    pub etag: String,
    pub checksum: Option<ChecksumRecord>,
    blob: Option<Unkept>,
}

impl Written {
    /// The index names it now.
    pub(crate) fn keep(&mut self) {
        if let Some(blob) = &mut self.blob {
            blob.kept = true;
        }
    }
}

struct Unkept {
    storage: Arc<Storage>,
    id: Id,
    kept: bool,
}

impl Drop for Unkept {
    fn drop(&mut self) {
        if !self.kept {
            let (storage, id) = (Arc::clone(&self.storage), self.id);
            tokio::spawn(async move {
                let deleted = match storage.own_blobs().await {
                    Ok(blobs) => blobs.delete(id.blob()).await.map_err(from_store),
                    Err(error) => Err(error),
                };
                if let Err(error) = deleted {
                    tracing::warn!(%error, blob = %id, "an unfinished blob is left for collection");
                }
            });
        }
    }
}

/// Whom a new stream belongs to, and how its ETag is made.
pub(crate) struct Target {
    pub bucket: Id,
    pub object: Id,
    pub dek: Option<Id>,
    pub md5_etag: bool,
    pub may_inline: bool,
}

impl Storage {
    /// Encrypts a body to rest, checking what was claimed of it.
    pub(crate) async fn write_body(
        self: &Arc<Self>,
        target: Target,
        mut key: Key,
        body: Option<StreamingBlob>,
        claims: Claims,
    ) -> Result<Written> {
        // Who announces more than fits is told before he sends it.
        self.must_have_room(claims.content_length.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)).await?;
        let stream = Id::random(self.ambient());
        let identity = StreamIdentity {
            dek: target.dek.unwrap_or(Id([0; 16])),
            bucket: target.bucket,
            object: target.object,
            stream,
        };
        let library = |_| damaged("a stream", "its keys cannot be derived");
        let keys = StreamKeys::derive(key.bytes(), identity).map_err(library)?;
        let mut sealer = StreamSealer::new(keys);
        let mut md5 = (target.md5_etag || claims.content_md5.is_some()).then(Md5::default);
        let mut checksum = claims.checksum.as_ref().and_then(|(algorithm, _)| hasher(algorithm));
        let mut blob: Option<(Unkept, Box<dyn BlobWriter>)> = None;
        let mut body = body;
        let (mut pieces, mut promised) = (Vec::new(), None);
        while let Some(chunk) = match &mut body {
            Some(body) => body.next().await,
            None => None,
        } {
            let chunk = chunk.map_err(incomplete)?;
            if let Some(md5) = &mut md5 {
                md5.update(&chunk);
            }
            if let Some(checksum) = &mut checksum {
                checksum.update(&chunk);
            }
            sealer.push(&chunk, |piece| pieces.push(piece)).map_err(library)?;
            if sealer.plain_bytes() > BODY_BYTES_MAX {
                return Err(Error::TooLarge);
            }
            for piece in pieces.drain(..) {
                // A slow upload does not outlive the permission to write under the key.
                self.still_allowed(&mut key).await.map_err(from_kek)?;
                let room = self.promise_room(piece.len()).await?;
                self.blob_writer(&mut blob, stream).await?.write(piece).await.map_err(from_store)?;
                // The piece before is on the disk now; this one is on its way.
                promised = Some(room);
            }
        }
        let size = sealer.plain_bytes();
        if claims.content_length.is_some_and(|claimed| claimed != size as i64) {
            return Err(Error::IncompleteBody("The body is not as long as its Content-Length"));
        }
        let last = sealer.finish().map_err(library)?;
        let inline = if blob.is_none() && target.may_inline && last.len() <= INLINE_BYTES_MAX {
            last
        } else {
            let room = self.promise_room(last.len()).await?;
            self.blob_writer(&mut blob, stream).await?.write(last).await.map_err(from_store)?;
            promised = Some(room);
            Vec::new()
        };
        let md5 = md5.map(Md5::finish);
        let checksum = check_claims(&claims, md5.as_ref(), checksum)?;
        let blob = match blob {
            Some((unkept, writer)) => {
                writer.finish().await.map_err(from_store)?;
                drop(promised);
                Some(unkept)
            }
            None => None,
        };
        let etag = match md5 {
            Some(md5) if target.md5_etag => hex(&md5),
            // Opaque, as AWS's are for these modes: the MD5 of the plaintext would be a fingerprint at rest.
            _ => Id::random(self.ambient()).to_string(),
        };
        let stream = StreamRecord { id: stream, size, inline: blob.is_none() };
        Ok(Written { stream, inline, etag, checksum, blob })
    }

    async fn blob_writer<'a>(
        self: &Arc<Self>,
        blob: &'a mut Option<(Unkept, Box<dyn BlobWriter>)>,
        id: Id,
    ) -> Result<&'a mut Box<dyn BlobWriter>> {
        if blob.is_none() {
            let blobs = self.own_blobs().await?;
            let unkept = Unkept { storage: Arc::clone(self), id, kept: false };
            let writer = blobs.create(id.blob()).await.map_err(from_store)?;
            *blob = Some((unkept, writer));
        }
        match blob {
            Some((_, writer)) => Ok(writer),
            None => Err(Error::Internal("no writer")),
        }
    }
}

pub(crate) fn incomplete(cause: s3s::StdError) -> Error {
    let text = cause.to_string();
    tracing::debug!(text, "a body ended early");
    // s3s tells chunk signatures and lengths that do not hold as errors of the stream.
    match cause.downcast::<s3s::S3Error>() {
        Ok(error) => Error::from(*error),
        Err(error) if is_forged(&error) => Error::SignatureDoesNotMatch,
        Err(_) => Error::IncompleteBody("The request body ended early, is malformed, or does not match its signature"),
    }
}

/// Whether a chunk, or the trailer, has the signature of nobody. s3s keeps the type of this error to itself; the name of its variant is all that there
/// is to tell it from a body that is malformed, and s3s is pinned (`tests/s3/test_audit.py` holds it). Where it is not known, the body is malformed.
fn is_forged(error: &s3s::StdError) -> bool {
    const VARIANT: &str = "SignatureMismatch";
    format!("{error:?}") == VARIANT
}

/// Holds what came against what was claimed of it; the checksum that is kept with it.
///
/// # Errors
/// `InvalidDigest`, `BadDigest`, `MalformedTrailerError`.
pub(crate) fn check_claims(
    claims: &Claims,
    md5: Option<&[u8; 16]>,
    hasher: Option<ChecksumHasher>,
) -> Result<Option<ChecksumRecord>> {
    if let (Some(claimed), Some(md5)) = (&claims.content_md5, md5) {
        let claimed = BASE64.decode(claimed).ok().filter(|bytes| bytes.len() == 16);
        let claimed = claimed.ok_or_else(|| Error::InvalidDigest)?;
        if claimed != md5 {
            return Err(Error::BadDigest("The Content-MD5 you specified did not match what we received".into()));
        }
    }
    let (Some((algorithm, _)), Some(hasher)) = (&claims.checksum, hasher) else { return Ok(None) };
    let value = checksum_value(hasher).unwrap_or_default();
    let claimed = claims.claimed_checksum();
    if claims.trailing && claimed.is_none() {
        return Err(Error::MalformedTrailer);
    }
    if claimed.is_some_and(|claimed| claimed != value) {
        let message = format!("The {algorithm} you specified did not match what we received");
        return Err(Error::BadDigest(message.into()));
    }
    Ok(Some(ChecksumRecord { algorithm: algorithm.clone(), value, composite: false }))
}

/// A run of plaintext in one stream.
pub(crate) struct Segment {
    pub stream: StreamRecord,
    pub inline: Vec<u8>,
    pub from: u64,
    pub to: u64,
}

struct Reader {
    storage: Arc<Storage>,
    identity: StreamIdentity,
    key: Key,
    segments: VecDeque<Segment>,
    open: Option<OpenSegment>,
    /// The blobs stay for as long as this reads them.
    hold: Option<Arc<Hold>>,
}

struct OpenSegment {
    segment: Segment,
    keys: Arc<StreamKeys>,
    /// Next byte of plaintext.
    at: u64,
}

/// Why a body ends early; the connection is cut.
#[derive(Debug, thiserror::Error)]
#[error("the body was cut: {0}")]
pub(crate) struct Cut(String);

impl Storage {
    /// Decrypts segments of an object, one after the other. The first piece is verified before this returns, so that
    /// damage and refusals there are answers and not cut connections.
    pub(crate) async fn read_body(
        self: &Arc<Self>,
        (bucket, object, dek): (Id, Id, Option<Id>),
        key: Key,
        segments: Vec<Segment>,
        hold: Option<Arc<Hold>>,
    ) -> Result<StreamingBlob> {
        let identity = StreamIdentity { dek: dek.unwrap_or(Id([0; 16])), bucket, object, stream: Id([0; 16]) };
        let segments = segments.into();
        let mut reader = Reader { storage: Arc::clone(self), identity, key, segments, open: None, hold };
        let Some(first) = reader.next().await? else { return Ok(StreamingBlob::from(s3s::Body::empty())) };
        let rest = stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(code = error.code(), "a body was cut in the middle");
                    metrics::counter!("holdfast_storage_bodies_cut_total").increment(1);
                    Some((Err(Cut(error.code().to_owned())), None))
                }
            }
        });
        let whole = stream::once(async move { Ok(first) }).chain(rest);
        Ok(StreamingBlob::from(s3s::Body::http_body_unsync(Frames(Box::pin(whole)))))
    }
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        // Reading, like writing, ends when the permission does.
        let storage = Arc::clone(&self.storage);
        storage.still_allowed(&mut self.key).await.map_err(from_kek)?;
        if let Some(hold) = &self.hold {
            hold.moved();
        }
        loop {
            if self.open.is_none() {
                let Some(segment) = self.segments.pop_front() else { return Ok(None) };
                self.open = Some(self.open_segment(segment).await?);
            }
            let Some(open) = &mut self.open else { return Ok(None) };
            if open.at >= open.segment.to {
                self.open = None;
                continue;
            }
            return open.read(&storage).await.map(Some);
        }
    }

    async fn open_segment(&self, segment: Segment) -> Result<OpenSegment> {
        let identity = StreamIdentity { stream: segment.stream.id, ..self.identity };
        let keys = StreamKeys::derive(self.key.bytes(), identity).map_err(|_| damaged("a stream", "keys"))?;
        let header = if segment.stream.inline {
            Bytes::copy_from_slice(segment.inline.get(..keys.header().len()).unwrap_or_default())
        } else {
            self.storage.blobs.read(segment.stream.id.blob(), 0, keys.header().len()).await.map_err(from_store)?
        };
        // The commitment in it pins the DEK: another key, object or stream shows here, before any chunk.
        if !holdfast_crypto::secret::ct_eq(&header, keys.header()) {
            return Err(damaged("a stream's header", &segment.stream.id.to_string()));
        }
        let at = segment.from;
        Ok(OpenSegment { segment, keys: Arc::new(keys), at })
    }
}

impl OpenSegment {
    /// The next piece: whole chunks are read and verified, what was not asked for is trimmed.
    async fn read(&mut self, storage: &Storage) -> Result<Bytes> {
        let size = self.segment.stream.size;
        let chunk = CHUNK_BYTES as u64;
        let first = self.at / chunk;
        let end = (self.segment.to.div_ceil(chunk)).min(first + READ_CHUNKS).min(chunk_count(size));
        let from = self.keys.chunk_offset(first);
        let reaches_end = end == chunk_count(size);
        let to = if reaches_end { self.keys.sealed_bytes(size) } else { self.keys.chunk_offset(end) };
        let len = (to - from) as usize;
        let torn = || damaged("a stream", &self.segment.stream.id.to_string());
        let sealed = if self.segment.stream.inline {
            let inline = self.segment.inline.get(from as usize..).ok_or_else(torn)?;
            Bytes::copy_from_slice(inline)
        } else {
            // One byte more than there should be, at the end: a longer blob was tampered with, too.
            let extra = usize::from(reaches_end);
            storage.blobs.read(self.segment.stream.id.blob(), from, len + extra).await.map_err(from_store)?
        };
        if sealed.len() != len {
            return Err(torn());
        }
        let plain = self.keys.open(first, size, &sealed).map_err(|_| torn())?;
        let begin = (self.at - first * chunk) as usize;
        let until = (self.segment.to.min(first * chunk + plain.len() as u64) - first * chunk) as usize;
        let piece = Bytes::from(plain).slice(begin..until);
        self.at += piece.len() as u64;
        Ok(piece)
    }
}

/// A stream of pieces as an HTTP body.
struct Frames<S>(std::pin::Pin<Box<S>>);

impl<S: Stream<Item = Result<Bytes, Cut>>> http_body::Body for Frames<S> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Cut>>> {
        self.0.as_mut().poll_next(context).map(|piece| piece.map(|piece| piece.map(http_body::Frame::data)))
    }
}

/// Puts a checksum where an answer has it.
pub(crate) fn told_checksum(checksum: Option<&ChecksumRecord>) -> dto::Checksum {
    let mut told = dto::Checksum::default();
    let Some(checksum) = checksum else { return told };
    let value = Some(checksum.value.clone());
    match checksum.algorithm.as_str() {
        "CRC32" => told.checksum_crc32 = value,
        "CRC32C" => told.checksum_crc32c = value,
        "CRC64NVME" => told.checksum_crc64nvme = value,
        "SHA1" => told.checksum_sha1 = value,
        "SHA256" => told.checksum_sha256 = value,
        _ => {}
    }
    let kind = if checksum.composite { "COMPOSITE" } else { "FULL_OBJECT" };
    told.checksum_type = Some(dto::ChecksumType::from_static(kind));
    told
}

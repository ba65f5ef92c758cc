//! What the index keeps of buckets, objects and uploads (`docs/formats/storage-records.md`): JSON with a version.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_core::{Ambient, DekWrapAlgorithm, WrappedDek};
use holdfast_crypto::SecretBytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub(crate) const FORMAT: u8 = 1;

/// 16 random bytes that name a bucket, an object generation, a stream, a DEK or an upload; 32 hex digits in text.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Id(pub [u8; 16]);

impl Id {
    pub(crate) fn random(ambient: &dyn Ambient) -> Self {
        Self(ambient.random())
    }

    /// In order of time: 6 bytes of milliseconds since 1970, the rest at random.
    pub(crate) fn random_at(ambient: &dyn Ambient, millis: i64) -> Self {
        let mut id: [u8; 16] = ambient.random();
        id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        Self(id)
    }

    pub(crate) fn parse(hex: &str) -> Option<Self> {
        holdfast_core::BlobId::parse(hex).map(|id| Self(id.0))
    }

    pub(crate) fn blob(self) -> holdfast_core::BlobId {
        holdfast_core::BlobId(self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.blob().fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.blob().fmt(f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not an id"))
    }
}

/// A wrapped DEK with the KEK's URL: what lies beside the data.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Envelope {
    pub v: u8,
    /// With its version.
    pub kek_url: String,
    pub alg: String,
    /// base64.
    pub wrapped: String,
    /// Milliseconds since 1970.
    pub created: i64,
}

impl Envelope {
    pub(crate) fn new(wrapped: &WrappedDek, created: i64) -> Self {
        Self {
            v: FORMAT,
            kek_url: wrapped.kek_url.clone(),
            alg: wrapped.algorithm.as_str().into(),
            wrapped: BASE64.encode(&wrapped.wrapped),
            created,
        }
    }

    pub(crate) fn to_wrapped(&self) -> Option<WrappedDek> {
        Some(WrappedDek {
            kek_url: self.kek_url.clone(),
            algorithm: DekWrapAlgorithm::parse(&self.alg)?,
            wrapped: BASE64.decode(&self.wrapped).ok()?,
        })
    }
}

/// Which encryption new objects of a bucket get when the request does not say.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct DefaultEncryption {
    pub kms: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kek: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bucket_key: bool,
}

/// A container's DEK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ContainerDek {
    pub id: Id,
    /// The KEK as it was asked for, perhaps without a version: what rotation follows.
    pub kek: String,
    pub envelope: Envelope,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Versioning {
    #[default]
    Off,
    Enabled,
    Suspended,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct BucketRecord {
    pub v: u8,
    pub id: Id,
    pub name: String,
    pub owner: String,
    pub created: i64,
    #[serde(default)]
    pub versioning: Versioning,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<DefaultEncryption>,
    /// Whether new objects under a client's key (SSE-C) are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blocks_customer_keys: bool,
    /// The first is the bucket's own; one more for each KEK that `aws:kms` with a bucket key named.
    pub deks: Vec<ContainerDek>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, String)>,
    /// Whether every listed `null` version of this bucket has a row that says its place. Not so in buckets from before there
    /// were such rows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nulls: bool,
}

/// How an object is encrypted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub(crate) enum Encryption {
    /// Under the container's DEK. `kms`: asked for as `aws:kms` with a bucket key.
    Container { dek: Id, kms: bool },
    /// Under a DEK of its own (`aws:kms`).
    Object { dek: Id, kek: String, envelope: Envelope },
    /// Under the client's key (SSE-C).
    Customer { key_md5: String },
    /// Not at all: the server runs with encryption off.
    Off,
}

/// One encrypted stream.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct StreamRecord {
    pub id: Id,
    pub size: u64,
    /// Whether it lies in the index, behind this record, and not in a blob.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
}

/// A checksum that S3 keeps beside the ETag.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ChecksumRecord {
    /// `CRC32`, `CRC32C`, `CRC64NVME`, `SHA1`, `SHA256`.
    pub algorithm: String,
    /// base64; for a composite one with `-N`.
    pub value: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub composite: bool,
}

/// Headers that come back as they were sent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ContentHeaders {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    /// RFC 7231 date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub website_redirect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// One version of an object.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ObjectRecord {
    pub v: u8,
    pub key: String,
    /// This generation of the object; a part of every key derived for it.
    pub object: Id,
    /// See `versions`; empty while its place is not known.
    pub version: String,
    /// Order of versions of a key: larger is newer.
    pub seq: u64,
    pub modified: i64,
    pub size: u64,
    pub etag: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_marker: bool,
    /// Whether a row of the version list holds it too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listed: bool,
    pub encryption: Encryption,
    /// The one stream; none if there are parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamRecord>,
    /// How many parts stand in the manifest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parts: u32,
    #[serde(default)]
    pub content: ContentHeaders,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<ChecksumRecord>,
    /// Not authenticated by the MAC: they can be changed while the key is away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, String)>,
    /// base64; empty while it is computed.
    #[serde(default)]
    pub mac: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero_u64(number: &u64) -> bool {
    *number == 0
}

impl ObjectRecord {
    /// A version that is about to be made; what its body gives, and the MAC, come later.
    pub(crate) fn new(key: String, object: Id, modified: i64, encryption: Encryption) -> Self {
        Self {
            v: FORMAT,
            key,
            object,
            version: String::new(),
            seq: 0,
            modified,
            size: 0,
            etag: String::new(),
            delete_marker: false,
            listed: false,
            encryption,
            stream: None,
            parts: 0,
            content: ContentHeaders::default(),
            checksum: None,
            tags: Vec::new(),
            mac: String::new(),
        }
    }

    /// Takes over what writing the body gave.
    pub(crate) fn complete(&mut self, written: &crate::body::Written) {
        self.size = written.stream.size;
        self.stream = Some(written.stream.clone());
        self.etag.clone_from(&written.etag);
        self.checksum.clone_from(&written.checksum);
    }

    /// What the MAC is over: everything but the envelope (rewrapping changes it), the tags, and the MAC itself. Order of
    /// versions is kept by the index alone.
    fn canonical(&self, bucket: Id, manifest: Option<&ManifestDigest>) -> Vec<u8> {
        let content = serde_json::to_string(&self.content).unwrap_or_default();
        let checksum = serde_json::to_string(&self.checksum).unwrap_or_default();
        let stream = serde_json::to_string(&self.stream).unwrap_or_default();
        let fields = [
            bucket.to_string(),
            self.key.clone(),
            self.object.to_string(),
            self.version.clone(),
            self.modified.to_string(),
            self.size.to_string(),
            self.etag.clone(),
            stream,
            self.parts.to_string(),
            content,
            checksum,
            manifest.map(|digest| digest.0.clone()).unwrap_or_default(),
        ];
        let mut out = Vec::new();
        for field in fields {
            out.extend_from_slice(&(field.len() as u32).to_be_bytes());
            out.extend_from_slice(field.as_bytes());
        }
        out
    }

    fn mac_under(&self, dek: &SecretBytes, bucket: Id, manifest: Option<&ManifestDigest>) -> Option<String> {
        let mac = crate::format::metadata_mac(dek, self.object, &self.canonical(bucket, manifest)).ok()?;
        Some(BASE64.encode(mac))
    }

    /// Sets the MAC.
    pub(crate) fn authenticate(&mut self, dek: &SecretBytes, bucket: Id, manifest: Option<&ManifestDigest>) {
        self.mac = self.mac_under(dek, bucket, manifest).unwrap_or_default();
    }

    /// Whether the MAC holds.
    pub(crate) fn is_authentic(&self, dek: &SecretBytes, bucket: Id, manifest: Option<&ManifestDigest>) -> bool {
        let expected = self.mac_under(dek, bucket, manifest);
        expected.is_some_and(|mac| holdfast_crypto::secret::ct_eq(mac.as_bytes(), self.mac.as_bytes()))
    }

    /// The DEK that it is under, if the server holds one for it.
    pub(crate) fn dek(&self) -> Option<Id> {
        match &self.encryption {
            Encryption::Container { dek, .. } | Encryption::Object { dek, .. } => Some(*dek),
            Encryption::Customer { .. } | Encryption::Off => None,
        }
    }
}

/// SHA-256 of a manifest in base64: what an object's MAC has of it.
pub(crate) struct ManifestDigest(String);

impl ManifestDigest {
    pub(crate) fn of(manifest: &[u8]) -> Self {
        Self(BASE64.encode(holdfast_crypto::kdf::sha256(&[manifest])))
    }
}

/// One part in a manifest, in order.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ManifestPart {
    pub number: u16,
    pub stream: StreamRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<ChecksumRecord>,
}

/// A multipart upload.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct UploadRecord {
    pub v: u8,
    pub id: Id,
    pub key: String,
    pub object: Id,
    pub initiated: i64,
    pub encryption: Encryption,
    pub content: ContentHeaders,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum_algorithm: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checksum_full_object: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, String)>,
    /// What was the newest version of the key when the upload began: `""` if there was none. Not known of uploads from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_on: Option<String>,
    /// One more with each part that took its place.
    #[serde(default, skip_serializing_if = "is_zero_u64")]
    pub changes: u64,
}

/// An upload that was completed: what its answer was, in case that was lost and the request is sent again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct CompletedRecord {
    pub v: u8,
    pub completed: i64,
    /// SHA-256 of the list of parts, in base64: another list is another request.
    pub parts: String,
    pub etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kek: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bucket_key: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<ChecksumRecord>,
}

/// What is left behind by a change that moved on at once, to be cleared away piece by piece.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub(crate) enum Waste {
    /// The manifest of a discarded object, and the blobs in it.
    Manifest { v: u8 },
    /// The parts of an upload that is over; those in the manifest of `object` belong to it.
    Parts {
        v: u8,
        #[serde(skip_serializing_if = "Option::is_none")]
        object: Option<Id>,
    },
    /// The uploads in a bucket that is deleted.
    Uploads { v: u8 },
}

/// An uploaded part.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PartRecord {
    pub v: u8,
    pub number: u16,
    pub stream: StreamRecord,
    pub etag: String,
    pub modified: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<ChecksumRecord>,
}

/// A record with inline bytes behind it: length of the JSON (4 bytes), JSON, bytes.
pub(crate) fn encode(record: &impl Serialize, inline: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(record).unwrap_or_default();
    let mut out = Vec::with_capacity(4 + json.len() + inline.len());
    out.extend_from_slice(&(json.len() as u32).to_be_bytes());
    out.extend_from_slice(&json);
    out.extend_from_slice(inline);
    out
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Option<(T, &'a [u8])> {
    let (len, rest) = value.split_first_chunk::<4>()?;
    let (json, inline) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    Some((serde_json::from_slice(json).ok()?, inline))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by format 1; must be readable for ever.
    const BUCKET: &str = r#"{"v":1,"id":"00112233445566778899aabbccddeeff","name":"b","owner":"alice","created":1700000000000,"versioning":"enabled","default":{"kms":true,"kek":"https://hsm/keys/k","bucket_key":true},"deks":[{"id":"ffeeddccbbaa99887766554433221100","kek":"https://hsm/keys/k","envelope":{"v":1,"kek_url":"https://hsm/keys/k/0","alg":"RSA-OAEP-256","wrapped":"AAEC","created":1}}],"tags":[["a","b"]]}"#;
    const OBJECT: &str = r#"{"v":1,"key":"k/1","object":"00112233445566778899aabbccddeeff","version":"null","seq":9,"modified":1700000000000,"size":5,"etag":"5d41402abc4b2a76b9719d911017c592","listed":true,"encryption":{"mode":"object","dek":"ffeeddccbbaa99887766554433221100","kek":"https://hsm/keys/k","envelope":{"v":1,"kek_url":"https://hsm/keys/k/0","alg":"A256KW","wrapped":"AAEC","created":1}},"stream":{"id":"0123456789abcdef0123456789abcdef","size":5,"inline":true},"content":{"content_type":"text/plain","metadata":{"a":"b"}},"checksum":{"algorithm":"CRC32","value":"AAAAAA=="},"tags":[["t","u"]],"mac":"MAC"}"#;

    const UPLOAD: &str = r#"{"v":1,"id":"00112233445566778899aabbccddeeff","key":"k","object":"ffeeddccbbaa99887766554433221100","initiated":1,"encryption":{"mode":"off"},"content":{},"began_on":"","changes":3}"#;
    const COMPLETED: &str = r#"{"v":1,"completed":1,"parts":"AAEC","etag":"e-1","version":"0000000000000001.0000000000000002","sse":"aws:kms","kek":"https://hsm/keys/k","bucket_key":true,"checksum":{"algorithm":"CRC32","value":"AAAAAA=="}}"#;
    const WASTE: [&str; 4] = [
        r#"{"what":"manifest","v":1}"#,
        r#"{"what":"parts","v":1}"#,
        r#"{"what":"parts","v":1,"object":"00112233445566778899aabbccddeeff"}"#,
        r#"{"what":"uploads","v":1}"#,
    ];

    fn object() -> ObjectRecord {
        serde_json::from_str(OBJECT).unwrap()
    }

    #[test]
    fn golden_records_read_and_write_alike() {
        let bucket: BucketRecord = serde_json::from_str(BUCKET).unwrap();
        assert_eq!(serde_json::to_string(&bucket).unwrap(), BUCKET);
        assert_eq!(serde_json::to_string(&object()).unwrap(), OBJECT);
        let upload: UploadRecord = serde_json::from_str(UPLOAD).unwrap();
        assert_eq!(serde_json::to_string(&upload).unwrap(), UPLOAD);
        let completed: CompletedRecord = serde_json::from_str(COMPLETED).unwrap();
        assert_eq!(serde_json::to_string(&completed).unwrap(), COMPLETED);
        for json in WASTE {
            let waste: Waste = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&waste).unwrap(), json);
        }
        // From before they said what they began on.
        let before: UploadRecord = serde_json::from_str(&UPLOAD.replace(r#","began_on":"","changes":3"#, "")).unwrap();
        assert_eq!((before.began_on, before.changes), (None, 0));
        let (decoded, inline): (ObjectRecord, _) =
            decode(&encode(&object(), b"inline")).map(|(o, i)| (o, i.to_vec())).unwrap();
        assert_eq!((decoded, inline.as_slice()), (object(), b"inline".as_slice()));
    }

    #[test]
    fn the_mac_covers_what_it_says_and_no_more() {
        let dek = SecretBytes::copy_of(&[7; 32]);
        let bucket = Id([1; 16]);
        let mut good = object();
        good.authenticate(&dek, bucket, None);
        assert!(good.is_authentic(&dek, bucket, None));
        let changed = |change: &dyn Fn(&mut ObjectRecord)| {
            let mut record = good.clone();
            change(&mut record);
            record.is_authentic(&dek, bucket, None)
        };
        assert!(!changed(&|o| o.key.push('x')));
        assert!(!changed(&|o| o.size += 1));
        assert!(!changed(&|o| o.etag.clear()));
        assert!(!changed(&|o| o.modified += 1));
        assert!(!changed(&|o| o.version = "other".into()));
        assert!(!changed(&|o| o.object = Id([2; 16])));
        assert!(!changed(&|o| o.checksum = None));
        assert!(!changed(&|o| o.parts = 1));
        assert!(!changed(&|o| o.stream = None));
        assert!(!changed(&|o| o.content.content_type = None));
        assert!(!changed(&|o| {
            o.content.metadata.insert("a".into(), "c".into());
        }));
        assert!(changed(&|o| o.tags.clear()) && changed(&|o| o.seq += 1));
        assert!(
            !good.is_authentic(&dek, Id([9; 16]), None)
                && !good.is_authentic(&dek, bucket, Some(&ManifestDigest::of(b"[]")))
        );
        assert!(!good.is_authentic(&SecretBytes::copy_of(&[8; 32]), bucket, None));
    }
}

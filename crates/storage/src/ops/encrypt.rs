//! UpdateObjectEncryption: an object's DEK under another KEK, without moving data. The crate s3s does not know the
//! operation yet, so it is a route of our own: `PUT /BUCKET/KEY?encryption`.

use std::sync::Arc;

use holdfast_core::IndexWrite;
use s3s::{Body, S3ErrorCode, S3Request, S3Response, S3Result};
use serde::Deserialize;

use crate::{
    Storage,
    encryption::{CustomerKey, Key},
    error::{error, from_kek, invalid_request, not_implemented},
    record::{self, BucketRecord, Encryption, Envelope, Id},
    rows,
};

const BODY_BYTES_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
struct ObjectEncryption {
    #[serde(rename = "SSE-KMS", alias = "SSEKMS")]
    kms: Option<Kms>,
}

#[derive(Deserialize)]
struct Kms {
    #[serde(rename = "KMSKeyArn")]
    kek: String,
    #[serde(rename = "BucketKeyEnabled")]
    bucket_key: Option<bool>,
}

/// Bucket, key and version that a path and query name.
pub(crate) fn named(request: &S3Request<Body>) -> Option<(String, String, Option<String>)> {
    let decode = |text: &str| percent_decode(text);
    let path = request.uri.path().strip_prefix('/')?;
    let (bucket, key) = path.split_once('/')?;
    let version = request.uri.query()?.split('&').find_map(|pair| pair.strip_prefix("versionId=")).map(decode);
    Some((decode(bucket)?, decode(key)?, version.flatten()))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|digit| (digit as char).to_digit(16));
            out.push((digit()? << 4 | digit()?) as u8);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

pub(crate) async fn update_object_encryption(
    storage: &Arc<Storage>,
    mut request: S3Request<Body>,
) -> S3Result<S3Response<Body>> {
    let (bucket, key, version) = named(&request).ok_or_else(|| invalid_request("The path names no object"))?;
    let malformed = |_| error(S3ErrorCode::MalformedXML, "The XML you provided was not well-formed");
    let body = request.input.store_all_limited(BODY_BYTES_MAX).await.map_err(malformed)?;
    let text = std::str::from_utf8(&body).map_err(|error| malformed(Box::new(error)))?;
    let asked: ObjectEncryption = quick_xml::de::from_str(text).map_err(|error| malformed(Box::new(error)))?;
    let asked = asked.kms.ok_or_else(|| invalid_request("Only SSE-KMS can be asked for"))?;
    if asked.bucket_key == Some(true) {
        return Err(not_implemented("An object cannot be moved under a bucket key without encrypting it anew"));
    }
    storage.check_kek(&asked.kek)?;
    rewrap(storage, bucket, key, version, &asked.kek).await?;
    Ok(S3Response::new(Body::empty()))
}

/// Wraps the object's own key under `kek` and puts the envelope in the place of the old one.
async fn rewrap(
    storage: &Arc<Storage>,
    bucket: String,
    key: String,
    version: Option<String>,
    kek: &str,
) -> S3Result<()> {
    let (bucket, found) = storage.look(|view| {
        let bucket = view.bucket(&bucket)?;
        let found = view.object(&bucket, &key, version.as_deref())?;
        Ok((bucket, found))
    })?;
    let record = found.record;
    if matches!(record.encryption, Encryption::Customer { .. } | Encryption::Off) {
        return Err(invalid_request("The encryption of this object cannot be updated"));
    }
    let held = storage.key_for(&bucket, &record.encryption, record.object, CustomerKey::default()).await?;
    let dek = match &held {
        Key::Held { .. } => held.bytes(),
        Key::Customer(_) | Key::None => None,
    };
    let dek = dek.ok_or_else(|| invalid_request("The encryption of this object cannot be updated"))?;
    let wrapped = storage.deks.keks().wrap(kek, dek).await.map_err(from_kek)?;
    let dek_id = record.dek().unwrap_or(Id([0; 16]));
    let envelope = Envelope::new(&wrapped, storage.now_millis());
    let encryption = Encryption::Object { dek: dek_id, kek: kek.into(), envelope };
    storage.replace_encryption(bucket, record, encryption).await.map(|_| ())
}

impl Storage {
    /// Sets another envelope on one version, if it is still the object that was looked at. False: it is not.
    pub(crate) async fn replace_encryption(
        &self,
        bucket: BucketRecord,
        known: record::ObjectRecord,
        encryption: Encryption,
    ) -> S3Result<bool> {
        self.transact(move |view| {
            let mut writes = Vec::new();
            let mut set = |row: Vec<u8>, mut found: crate::view::Found| {
                found.record.encryption = encryption.clone();
                writes.push(IndexWrite::put(row, record::encode(&found.record, &found.inline)));
            };
            let same = |found: &crate::view::Found| {
                found.record.object == known.object && found.record.encryption == known.encryption
            };
            if known.listed
                && let Some(found) = view.listed(&bucket, &known.key, &known.version, Some(known.seq))?.filter(same)
            {
                set(rows::version(bucket.id, &known.key, found.record.seq), found);
            }
            if let Some(found) = view.current(bucket.id, &known.key)?.filter(same) {
                set(rows::object(bucket.id, &known.key), found);
            }
            Ok((!writes.is_empty(), writes))
        })
        .await
    }
}

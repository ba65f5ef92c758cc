//! UpdateObjectEncryption: an object's DEK under another KEK, without moving data. The crate s3s does not know the
//! operation yet, so its body is read here: `PUT /BUCKET/KEY?encryption`.

use std::sync::Arc;

use holdfast_core::IndexWrite;
use s3s::{Body, S3ErrorCode, S3Response, S3Result};
use serde::Deserialize;

use crate::{
    Storage,
    encryption::{CustomerKey, Key},
    error::{error, from_kek, invalid_request, not_implemented},
    record::{self, BucketRecord, Encryption, Envelope, Id},
    rows,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectEncryption {
    #[serde(rename = "@xmlns")]
    _namespace: Option<String>,
    #[serde(rename = "SSE-KMS", alias = "SSEKMS")]
    kms: Option<Kms>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kms {
    #[serde(rename = "@xmlns")]
    _namespace: Option<String>,
    #[serde(rename = "KMSKeyArn")]
    kek: String,
    #[serde(rename = "BucketKeyEnabled")]
    bucket_key: Option<bool>,
}

/// Of a bucket, a key and, if one is named, a version.
pub(crate) async fn update_object_encryption(
    storage: &Arc<Storage>,
    (bucket, key, version): (String, String, Option<String>),
    body: &str,
) -> S3Result<S3Response<Body>> {
    let malformed = |_| error(S3ErrorCode::MalformedXML, "The XML you provided was not well-formed");
    let asked: ObjectEncryption = quick_xml::de::from_str(body).map_err(malformed)?;
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

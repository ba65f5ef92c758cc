//! UpdateObjectEncryption: an object's DEK under another KEK, without moving data. The crate s3s does not know the
//! operation yet, so its body is read here: `PUT /BUCKET/KEY?encryption`.

use std::sync::Arc;

use holdfast_core::{Action, IndexWrite, StoreError};
use s3s::{Body, S3Response};
use serde::Deserialize;

use crate::{
    Storage,
    call::Call,
    encryption::{CustomerKey, Key},
    error::{Error, Result, from_kek, invalid_request, not_implemented},
    event::About,
    grant::{Change, Granted},
    record::{self, Encryption, Envelope, Id},
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

/// Of a version, if one is named.
pub(crate) async fn update_object_encryption(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    version: Option<String>,
    body: &str,
) -> Result<S3Response<Body>> {
    let malformed = |_| Error::MalformedXml("The XML you provided was not well-formed");
    let asked: ObjectEncryption = quick_xml::de::from_str(body).map_err(malformed)?;
    let asked = asked.kms.ok_or_else(|| invalid_request("Only SSE-KMS can be asked for"))?;
    if asked.bucket_key == Some(true) {
        return Err(not_implemented("An object cannot be moved under a bucket key without encrypting it anew"));
    }
    storage.check_kek(&asked.kek)?;
    rewrap(storage, call, version, &asked.kek).await?;
    Ok(S3Response::new(Body::empty()))
}

/// Wraps the object's own key under `kek` and puts the envelope in the place of the old one.
/// How often an object that somebody else changed meanwhile is looked at anew.
const ATTEMPTS_MAX: usize = 16;

async fn rewrap(storage: &Arc<Storage>, call: &Arc<Call>, version: Option<String>, kek: &str) -> Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        if rewrap_as_found(storage, call, version.as_deref(), kek).await? {
            return Ok(());
        }
    }
    Err(Error::Store(StoreError::Conflict))
}

/// False: what was found was changed meanwhile, and is as somebody else left it.
async fn rewrap_as_found(storage: &Storage, call: &Arc<Call>, version: Option<&str>, kek: &str) -> Result<bool> {
    let (bucket, found) = storage.look(|view| {
        let bucket = view.grant(call)?;
        let found = bucket.object(call.act().key.as_deref().unwrap_or_default(), version)?;
        Ok((bucket.known(), found))
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
    let call = Arc::clone(call);
    let done = storage.transact_if(move |view| {
        let bucket = view.grant_same(&call, &bucket)?;
        Ok(replace_encryption(bucket, Action::ObjectUpdate, &record, &encryption)?.map(|change| ((), change)))
    });
    Ok(done.await?.is_some())
}

/// Sets another envelope on one version, if it is still the object that was looked at. `None`: it is not, and nothing is told of what does not
/// happen.
pub(crate) fn replace_encryption(
    bucket: Granted<'_>,
    action: Action,
    known: &record::ObjectRecord,
    encryption: &Encryption,
) -> Result<Option<Change>> {
    let new = record::ObjectRecord { encryption: encryption.clone(), ..known.clone() };
    let mut about = About::object(&bucket, &new);
    if let Encryption::Object { envelope, .. } = &known.encryption {
        about = about.with("from_kek", &envelope.kek_url);
    }
    let mut writes = Vec::new();
    let mut set = |row: Vec<u8>, mut found: crate::view::Found| {
        found.record.encryption = encryption.clone();
        writes.push(IndexWrite::put(row, record::encode(&found.record, &found.inline)));
    };
    let same =
        |found: &crate::view::Found| found.record.object == known.object && found.record.encryption == known.encryption;
    if known.listed
        && let Some(found) = bucket.listed(&known.key, &known.version, Some(known.seq))?.filter(same)
    {
        set(rows::version(bucket.id, &known.key, found.record.seq), found);
    }
    if let Some(found) = bucket.current(&known.key)?.filter(same) {
        set(rows::object(bucket.id, &known.key), found);
    }
    if writes.is_empty() {
        return Ok(None);
    }
    bucket.change_object(action, &known.key, about, writes).map(Some)
}

//! What new objects of a bucket are encrypted with, and with what they may not be. On bodies as text: s3s 0.14 does not know
//! `BlockedEncryptionTypes`.

use std::sync::Arc;

use holdfast_core::{Action, IndexWrite};
use s3s::{Body, S3Request, S3Response, dto};
use serde::{Deserialize, Serialize};

use crate::{
    Storage,
    call::Call,
    error::{Error, Result, invalid_argument, not_implemented},
    event::About,
    record::{self, BucketRecord, DefaultEncryption},
    rows,
};

const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename = "ServerSideEncryptionConfiguration")]
struct Configuration {
    #[serde(rename = "@xmlns", default)]
    namespace: String,
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Rule {
    #[serde(skip_serializing_if = "Option::is_none")]
    apply_server_side_encryption_by_default: Option<ByDefault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket_key_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_encryption_types: Option<Blocked>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ByDefault {
    #[serde(rename = "SSEAlgorithm")]
    algorithm: String,
    #[serde(rename = "KMSMasterKeyID", skip_serializing_if = "Option::is_none")]
    kek: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Blocked {
    #[serde(rename = "EncryptionType", default)]
    types: Vec<String>,
}

impl Blocked {
    /// Whether SSE-C is blocked.
    fn customer_keys(&self) -> Result<bool> {
        match self.types.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["SSE-C"] => Ok(true),
            ["NONE"] => Ok(false),
            _ => Err(malformed("BlockedEncryptionTypes has one EncryptionType, SSE-C or NONE")),
        }
    }
}

fn malformed(message: &'static str) -> Error {
    Error::MalformedXml(message)
}

pub(crate) async fn put_bucket_encryption(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    body: &str,
) -> Result<S3Response<Body>> {
    let mut rules = quick_xml::de::from_str::<Configuration>(body)
        .map_err(|_| malformed("The XML you provided was not well-formed"))?
        .rules;
    if storage.config.encryption_off {
        return Err(not_implemented("Encryption is off on this server"));
    }
    let (Some(rule), true) = (rules.pop(), rules.is_empty()) else {
        return Err(malformed("The configuration has exactly one rule"));
    };
    let blocks = rule.blocked_encryption_types.as_ref().map(Blocked::customer_keys).transpose()?;
    let default = match rule.apply_server_side_encryption_by_default {
        Some(apply) => Some(storage.checked_default(apply, rule.bucket_key_enabled.unwrap_or(false))?),
        None if blocks.is_some() && rule.bucket_key_enabled.is_none() => None,
        None => return Err(malformed("The rule has no ApplyServerSideEncryptionByDefault")),
    };
    let change = move |bucket: &mut BucketRecord| {
        bucket.default = default.or(bucket.default.take());
        // A request that does not speak of it changes nothing in it.
        bucket.blocks_customer_keys = blocks.unwrap_or(bucket.blocks_customer_keys);
    };
    storage.change_bucket(call, change).await?;
    Ok(S3Response::new(Body::empty()))
}

impl Storage {
    /// Only the form is checked: whether the key can be used shows at the first write.
    fn checked_default(&self, apply: ByDefault, bucket_key: bool) -> Result<DefaultEncryption> {
        let kms = match apply.algorithm.as_str() {
            "AES256" => false,
            "aws:kms" => true,
            "aws:kms:dsse" => return Err(not_implemented("aws:kms:dsse is not supported")),
            _ => return Err(malformed("SSEAlgorithm is AES256 or aws:kms")),
        };
        match &apply.kek {
            Some(_) if !kms => {
                Err(invalid_argument("a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms"))
            }
            Some(kek) => self.check_kek(kek),
            None => Ok(()),
        }?;
        Ok(DefaultEncryption { kms, kek: apply.kek, bucket_key })
    }

    async fn change_bucket(
        &self,
        call: &Arc<Call>,
        change: impl FnOnce(&mut BucketRecord) + Send + 'static,
    ) -> Result<()> {
        let call = Arc::clone(call);
        self.transact(move |view| {
            let bucket = view.grant(&call)?;
            let mut record = bucket.record();
            change(&mut record);
            let row = IndexWrite::put(rows::bucket(&bucket.name), record::encode(&record, &[]));
            let default = record.default.as_ref();
            let about = About {
                mode: Some(if default.is_some_and(|default| default.kms) { "SSE-KMS" } else { "SSE-S3" }),
                kek: default.and_then(|default| default.kek.clone()),
                ..About::default()
            };
            let about = about.with("blocks_sse_c", record.blocks_customer_keys);
            Ok(((), bucket.change(Action::BucketUpdate, about, vec![row])?))
        })
        .await
    }
}

/// Goes back to SSE-S3. What is blocked stays blocked: nobody asked for it to be allowed.
pub(crate) async fn delete_bucket_encryption(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::DeleteBucketEncryptionInput>,
) -> Result<S3Response<dto::DeleteBucketEncryptionOutput>> {
    storage.change_bucket(call, |bucket| bucket.default = None).await?;
    Ok(S3Response::with_status(dto::DeleteBucketEncryptionOutput {}, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn get_bucket_encryption(storage: &Arc<Storage>, call: &Arc<Call>) -> Result<S3Response<Body>> {
    let bucket = storage.look(|view| view.grant(call)?.read(Action::BucketRead))?;
    if storage.config.encryption_off {
        return Err(Error::EncryptionNotFound);
    }
    let default = bucket.default.unwrap_or(DefaultEncryption { kms: false, kek: None, bucket_key: false });
    let algorithm = if default.kms { "aws:kms" } else { "AES256" };
    let rule = Rule {
        apply_server_side_encryption_by_default: Some(ByDefault { algorithm: algorithm.into(), kek: default.kek }),
        bucket_key_enabled: Some(default.bucket_key),
        blocked_encryption_types: bucket.blocks_customer_keys.then(|| Blocked { types: vec!["SSE-C".into()] }),
    };
    let told = Configuration { namespace: NAMESPACE.into(), rules: vec![rule] };
    let xml = quick_xml::se::to_string(&told)
        .map_err(|_| Error::Internal("We encountered an internal error. Please try again."))?;
    let mut response = S3Response::new(Body::from(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{xml}")));
    response.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    Ok(response)
}

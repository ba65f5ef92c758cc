//! Buckets (containers), and their default encryption.

use std::{ops::ControlFlow, sync::Arc};

use holdfast_core::IndexWrite;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer, caller,
    list::{invalid_value, read_token, token},
    owner, refuse_unkept, timestamp,
    versions::is_empty,
};
use crate::{
    Storage,
    error::{damaged, error, invalid_argument, not_implemented},
    record::{self, BucketRecord, DefaultEncryption, FORMAT, Id, Versioning, Waste},
    rows,
    view::waste,
};

pub(crate) async fn create_bucket(
    storage: &Arc<Storage>,
    request: S3Request<dto::CreateBucketInput>,
) -> S3Result<S3Response<dto::CreateBucketOutput>> {
    refuse_unkept(&request.headers)?;
    let owner = caller(&request);
    let input = request.input;
    if input.object_lock_enabled_for_bucket == Some(true) {
        return Err(not_implemented("Object lock is not supported"));
    }
    storage.must_have_room(0).await?;
    let location = dto::CreateBucketOutput { location: Some(format!("/{}", input.bucket)) };
    let known = storage.look(|view| view.find_bucket(&input.bucket))?;
    if let Some(known) = known {
        return if known.owner == owner {
            Err(error(S3ErrorCode::BucketAlreadyOwnedByYou, "You already own this bucket"))
        } else {
            Err(error(S3ErrorCode::BucketAlreadyExists, "The requested bucket name is not available"))
        };
    }
    // The container's DEK: drawn and wrapped before there is anything to encrypt.
    let deks = match storage.config.encryption_off {
        true => Vec::new(),
        false => vec![storage.new_container_dek(&storage.config.default_kek).await?],
    };
    let bucket = BucketRecord {
        v: FORMAT,
        id: Id::random(storage.ambient()),
        name: input.bucket,
        owner,
        created: storage.now_millis(),
        versioning: Versioning::Off,
        default: None,
        deks,
        tags: Vec::new(),
        nulls: true,
    };
    storage
        .transact(move |view| {
            if view.find_bucket(&bucket.name)?.is_some() {
                return Err(error(S3ErrorCode::BucketAlreadyExists, "The requested bucket name is not available"));
            }
            Ok(((), vec![IndexWrite::put(rows::bucket(&bucket.name), record::encode(&bucket, &[]))]))
        })
        .await?;
    answer(location)
}

pub(crate) async fn delete_bucket(
    storage: &Arc<Storage>,
    request: S3Request<dto::DeleteBucketInput>,
) -> S3Result<S3Response<dto::DeleteBucketOutput>> {
    let name = request.input.bucket;
    storage
        .transact(move |view| {
            let bucket = view.bucket(&name)?;
            if !is_empty(view, &bucket)? {
                return Err(error(S3ErrorCode::BucketNotEmpty, "The bucket you tried to delete is not empty"));
            }
            // Uploads under way end with it.
            let uploads = waste(bucket.id, &Waste::Uploads { v: FORMAT });
            Ok(((), vec![IndexWrite::remove(rows::bucket(&name)), uploads]))
        })
        .await?;
    Ok(S3Response::with_status(dto::DeleteBucketOutput {}, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn head_bucket(
    storage: &Arc<Storage>,
    request: S3Request<dto::HeadBucketInput>,
) -> S3Result<S3Response<dto::HeadBucketOutput>> {
    storage.look(|view| view.bucket(&request.input.bucket))?;
    answer(dto::HeadBucketOutput { bucket_region: Some(storage.config.region.clone()), ..Default::default() })
}

pub(crate) async fn get_bucket_location(
    storage: &Arc<Storage>,
    request: S3Request<dto::GetBucketLocationInput>,
) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
    storage.look(|view| view.bucket(&request.input.bucket))?;
    let region = storage.config.region.clone();
    // us-east-1 is told as nothing.
    let location_constraint = (region != "us-east-1").then(|| region.into());
    answer(dto::GetBucketLocationOutput { location_constraint })
}

/// Buckets of one page, as S3 has it.
const BUCKETS_MAX: i32 = 10_000;

pub(crate) async fn list_buckets(
    storage: &Arc<Storage>,
    request: S3Request<dto::ListBucketsInput>,
) -> S3Result<S3Response<dto::ListBucketsOutput>> {
    let who = caller(&request);
    let input = request.input;
    let max = input.max_buckets.unwrap_or(BUCKETS_MAX);
    if !(1..=BUCKETS_MAX).contains(&max) {
        return Err(invalid_value("max-buckets", "Argument max-buckets must be an integer between 1 and 10000"));
    }
    let prefix = input.prefix.unwrap_or_default();
    let after = read_token(input.continuation_token.as_deref().filter(|token| !token.is_empty()))?;
    let all = rows::bucket(&prefix);
    let from = after.map_or_else(|| all.clone(), |after| [rows::bucket(&after), vec![0]].concat().max(all.clone()));
    let elsewhere = input.bucket_region.is_some_and(|region| region != storage.config.region);
    let (mut buckets, mut more) = (Vec::new(), false);
    storage.look(|view| {
        view.scan(&from, &all, |_, value| {
            let (bucket, _): (BucketRecord, _) =
                record::decode(value).ok_or_else(|| damaged("a bucket", "unreadable"))?;
            if bucket.owner != who || elsewhere {
                return Ok(ControlFlow::Continue(()));
            }
            if buckets.len() == max as usize {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            buckets.push(dto::Bucket {
                name: Some(bucket.name),
                creation_date: Some(timestamp(bucket.created)),
                bucket_region: Some(storage.config.region.clone()),
            });
            Ok(ControlFlow::Continue(()))
        })
    })?;
    let last = buckets.last().and_then(|bucket| bucket.name.as_deref()).filter(|_| more);
    answer(dto::ListBucketsOutput {
        continuation_token: last.map(token),
        buckets: Some(buckets),
        owner: Some(owner(&who)),
        prefix: (!prefix.is_empty()).then_some(prefix),
    })
}

pub(crate) async fn put_bucket_encryption(
    storage: &Arc<Storage>,
    request: S3Request<dto::PutBucketEncryptionInput>,
) -> S3Result<S3Response<dto::PutBucketEncryptionOutput>> {
    let input = request.input;
    if storage.config.encryption_off {
        return Err(not_implemented("Encryption is off on this server"));
    }
    let mut rules = input.server_side_encryption_configuration.rules;
    let (Some(rule), true) = (rules.pop(), rules.is_empty()) else {
        return Err(error(S3ErrorCode::MalformedXML, "The configuration has exactly one rule"));
    };
    let missing = || error(S3ErrorCode::MalformedXML, "The rule has no ApplyServerSideEncryptionByDefault");
    let apply = rule.apply_server_side_encryption_by_default.ok_or_else(missing)?;
    let kms = match apply.sse_algorithm.as_str() {
        "AES256" => false,
        "aws:kms" => true,
        "aws:kms:dsse" => return Err(not_implemented("aws:kms:dsse is not supported")),
        _ => return Err(error(S3ErrorCode::MalformedXML, "SSEAlgorithm is AES256 or aws:kms")),
    };
    if !kms && apply.kms_master_key_id.is_some() {
        return Err(invalid_argument("a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms"));
    }
    // Only the form is checked: whether the key can be used shows at the first write.
    if let Some(kek) = &apply.kms_master_key_id {
        storage.check_kek(kek)?;
    }
    let default =
        DefaultEncryption { kms, kek: apply.kms_master_key_id, bucket_key: rule.bucket_key_enabled.unwrap_or(false) };
    set_default(storage, input.bucket, Some(default)).await?;
    answer(dto::PutBucketEncryptionOutput {})
}

async fn set_default(storage: &Arc<Storage>, bucket: String, default: Option<DefaultEncryption>) -> S3Result<()> {
    storage
        .transact(move |view| {
            let mut bucket = view.bucket(&bucket)?;
            bucket.default = default;
            Ok(((), vec![IndexWrite::put(rows::bucket(&bucket.name), record::encode(&bucket, &[]))]))
        })
        .await
}

pub(crate) async fn delete_bucket_encryption(
    storage: &Arc<Storage>,
    request: S3Request<dto::DeleteBucketEncryptionInput>,
) -> S3Result<S3Response<dto::DeleteBucketEncryptionOutput>> {
    set_default(storage, request.input.bucket, None).await?;
    Ok(S3Response::with_status(dto::DeleteBucketEncryptionOutput {}, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn get_bucket_encryption(
    storage: &Arc<Storage>,
    request: S3Request<dto::GetBucketEncryptionInput>,
) -> S3Result<S3Response<dto::GetBucketEncryptionOutput>> {
    let bucket = storage.look(|view| view.bucket(&request.input.bucket))?;
    if storage.config.encryption_off {
        let code = S3ErrorCode::ServerSideEncryptionConfigurationNotFoundError;
        return Err(error(code, "The server side encryption configuration was not found"));
    }
    let default = bucket.default.unwrap_or(DefaultEncryption { kms: false, kek: None, bucket_key: false });
    let algorithm = if default.kms { "aws:kms" } else { "AES256" };
    let rule = dto::ServerSideEncryptionRule {
        apply_server_side_encryption_by_default: Some(dto::ServerSideEncryptionByDefault {
            kms_master_key_id: default.kek,
            sse_algorithm: dto::ServerSideEncryption::from_static(algorithm),
        }),
        bucket_key_enabled: Some(default.bucket_key),
    };
    answer(dto::GetBucketEncryptionOutput {
        server_side_encryption_configuration: Some(dto::ServerSideEncryptionConfiguration { rules: vec![rule] }),
    })
}

//! Buckets (containers).

use std::{ops::ControlFlow, sync::Arc};

use holdfast_core::IndexWrite;
use http::{HeaderValue, header};
use s3s::{Body, S3ErrorCode, S3Request, S3Response, S3Result, dto};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    answer, caller,
    list::{invalid_value, read_token, token},
    owner, tagging, timestamp,
    versions::is_empty,
};
use crate::{
    Storage,
    error::{damaged, error, not_implemented},
    record::{self, BucketRecord, FORMAT, Id, Versioning, Waste},
    rows,
    view::waste,
};

/// What the body of CreateBucket says. s3s 0.14 does not know its tags.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct CreateBucketConfiguration {
    #[serde(rename = "@xmlns")]
    _namespace: Option<String>,
    location_constraint: Option<String>,
    location: Option<IgnoredAny>,
    bucket: Option<IgnoredAny>,
    tags: Option<tagging::TagSet>,
}

impl CreateBucketConfiguration {
    /// # Errors
    /// `MalformedXML`, or what S3 answers where a bucket is asked for elsewhere, or of another kind.
    fn parse(body: &str, region: &str) -> S3Result<Vec<(String, String)>> {
        let malformed = |_| error(S3ErrorCode::MalformedXML, "The XML you provided was not well-formed");
        let asked: Self =
            if body.is_empty() { Self::default() } else { quick_xml::de::from_str(body).map_err(malformed)? };
        if asked.location.is_some() || asked.bucket.is_some() {
            return Err(not_implemented("Directory buckets are not supported"));
        }
        let constraint = asked.location_constraint.as_deref().filter(|constraint| !constraint.is_empty());
        let constraint = constraint.map(|constraint| if constraint == "EU" { "eu-west-1" } else { constraint });
        if let Some(constraint) = constraint.filter(|constraint| *constraint != region) {
            let message = format!(
                "The {constraint} location constraint is incompatible for the region specific endpoint this request \
                 was sent to."
            );
            return Err(error(S3ErrorCode::IllegalLocationConstraintException, message));
        }
        asked.tags.map_or(Ok(Vec::new()), tagging::TagSet::of_bucket)
    }
}

/// CreateBucket, on the body as text.
pub(crate) async fn create_bucket(
    storage: &Arc<Storage>,
    owner: String,
    name: String,
    body: &str,
) -> S3Result<S3Response<Body>> {
    let tags = CreateBucketConfiguration::parse(body, &storage.config.region)?;
    storage.must_have_room(0).await?;
    let known = storage.look(|view| view.find_bucket(&name))?;
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
    let mut created = S3Response::new(Body::empty());
    if let Ok(location) = HeaderValue::try_from(format!("/{name}")) {
        created.headers.insert(header::LOCATION, location);
    }
    let bucket = BucketRecord {
        v: FORMAT,
        id: Id::random(storage.ambient()),
        name,
        owner,
        created: storage.now_millis(),
        versioning: Versioning::Off,
        default: None,
        blocks_customer_keys: storage.config.new_buckets_block_customer_keys,
        deks,
        tags,
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
    Ok(created)
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

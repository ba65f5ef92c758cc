//! Buckets (containers).

use std::{ops::ControlFlow, sync::Arc};

use holdfast_core::{Action, IndexWrite};
use http::{HeaderValue, header};
use s3s::{Body, S3Request, S3Response, dto};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    answer,
    list::{invalid_value, read_token, token},
    owner, tagging, timestamp,
    versions::is_empty,
};
use crate::{
    Storage,
    call::Call,
    error::{Error, Result, not_implemented},
    event::About,
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
    fn parse(body: &str, region: &str) -> Result<Vec<(String, String)>> {
        let malformed = |_| Error::MalformedXml("The XML you provided was not well-formed");
        let asked: Self =
            if body.is_empty() { Self::default() } else { quick_xml::de::from_str(body).map_err(malformed)? };
        if asked.location.is_some() || asked.bucket.is_some() {
            return Err(not_implemented("Directory buckets are not supported"));
        }
        let constraint = asked.location_constraint.as_deref().filter(|constraint| !constraint.is_empty());
        let constraint = constraint.map(|constraint| if constraint == "EU" { "eu-west-1" } else { constraint });
        if let Some(constraint) = constraint.filter(|constraint| *constraint != region) {
            return Err(Error::IllegalLocation(constraint.to_owned()));
        }
        asked.tags.map_or(Ok(Vec::new()), tagging::TagSet::of_bucket)
    }
}

/// CreateBucket, on the body as text.
pub(crate) async fn create_bucket(storage: &Arc<Storage>, call: &Arc<Call>, body: &str) -> Result<S3Response<Body>> {
    let tags = CreateBucketConfiguration::parse(body, &storage.config.region)?;
    storage.must_have_room(0).await?;
    let (name, owner) = storage.look(|view| view.vacant(call).map(|vacant| (vacant.name, vacant.owner)))?;
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
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let row = IndexWrite::put(rows::bucket(&bucket.name), record::encode(&bucket, &[]));
            let kek = bucket.deks.first().map(|dek| dek.envelope.kek_url.clone());
            let about = About { kek, ..About::default() };
            Ok(((), view.vacant(&call)?.change(about, vec![row])?))
        })
        .await?;
    Ok(created)
}

pub(crate) async fn delete_bucket(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::DeleteBucketInput>,
) -> Result<S3Response<dto::DeleteBucketOutput>> {
    let call = Arc::clone(call);
    storage
        .transact(move |view| {
            let bucket = view.grant(&call)?;
            if !is_empty(&bucket)? {
                return Err(Error::BucketNotEmpty);
            }
            // Uploads under way end with it.
            let uploads = waste(bucket.id, &Waste::Uploads { v: FORMAT });
            let row = IndexWrite::remove(rows::bucket(&bucket.name));
            Ok(((), bucket.change(Action::BucketDelete, About::default(), vec![row, uploads])?))
        })
        .await?;
    Ok(S3Response::with_status(dto::DeleteBucketOutput {}, http::StatusCode::NO_CONTENT))
}

pub(crate) async fn head_bucket(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::HeadBucketInput>,
) -> Result<S3Response<dto::HeadBucketOutput>> {
    storage.look(|view| view.grant(call)?.read(Action::BucketRead))?;
    answer(dto::HeadBucketOutput { bucket_region: Some(storage.config.region.clone()), ..Default::default() })
}

pub(crate) async fn get_bucket_location(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    _: S3Request<dto::GetBucketLocationInput>,
) -> Result<S3Response<dto::GetBucketLocationOutput>> {
    storage.look(|view| view.grant(call)?.read(Action::BucketRead))?;
    let region = storage.config.region.clone();
    // us-east-1 is told as nothing.
    let location_constraint = (region != "us-east-1").then(|| region.into());
    answer(dto::GetBucketLocationOutput { location_constraint })
}

/// Buckets of one page, as S3 has it.
const BUCKETS_MAX: i32 = 10_000;

pub(crate) async fn list_buckets(
    storage: &Arc<Storage>,
    call: &Arc<Call>,
    request: S3Request<dto::ListBucketsInput>,
) -> Result<S3Response<dto::ListBucketsOutput>> {
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
    let who = storage.look(|view| {
        let who = view.list_buckets(call)?;
        view.buckets_of(&who, &from, &all, |bucket| {
            if elsewhere {
                return ControlFlow::Continue(());
            }
            if buckets.len() == max as usize {
                more = true;
                return ControlFlow::Break(());
            }
            buckets.push(dto::Bucket {
                name: Some(bucket.name),
                creation_date: Some(timestamp(bucket.created)),
                bucket_region: Some(storage.config.region.clone()),
            });
            ControlFlow::Continue(())
        })?;
        Ok(who)
    })?;
    let last = buckets.last().and_then(|bucket| bucket.name.as_deref()).filter(|_| more);
    answer(dto::ListBucketsOutput {
        continuation_token: last.map(token),
        buckets: Some(buckets),
        owner: Some(owner(&who)),
        prefix: (!prefix.is_empty()).then_some(prefix),
    })
}

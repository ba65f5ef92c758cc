//! The S3 protocol, on the s3s crate: it reads requests, checks signatures and writes XML; what is done is in `ops`.

use std::{collections::HashMap, sync::Arc, time::Instant};

use async_trait::async_trait;
use http::{Extensions, HeaderMap, Method, Uri};
use metrics::{counter, histogram};
use s3s::{
    Body, S3, S3ErrorCode, S3Request, S3Response, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    config::{S3Config, StaticConfigProvider},
    dto::*,
    path::S3Path,
    route::S3Route,
    service::{S3Service, S3ServiceBuilder},
};

use crate::{Storage, error::error, ops};

/// A credential of the service.
pub struct AccessKey {
    /// As clients send it.
    pub id: String,
    /// The secret half.
    pub secret: String,
    /// Whose it is: buckets belong to principals, not to keys.
    pub principal: String,
}

/// Largest file of a POST form; it is held in memory.
const POST_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Largest XML body: DeleteObjects and CompleteMultipartUpload with their most entries.
const XML_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The service as hyper takes it.
#[must_use]
pub fn service(storage: &Arc<Storage>, keys: Vec<AccessKey>) -> S3Service {
    let keys: HashMap<String, AccessKey> = keys.into_iter().map(|key| (key.id.clone(), key)).collect();
    let keys = Arc::new(keys);
    let mut builder = S3ServiceBuilder::new(Door(Arc::clone(storage)));
    builder.set_auth(Keys(Arc::clone(&keys)));
    let owners = Arc::new(Owners { storage: Arc::clone(storage), keys });
    builder.set_access(OwnersOnly(Arc::clone(&owners)));
    builder.set_route(UpdateEncryption(owners));
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BYTES_MAX;
    config.post_object_max_file_size = POST_FILE_BYTES_MAX;
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.build()
}

struct Keys(Arc<HashMap<String, AccessKey>>);

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let known = self.0.get(access_key).ok_or_else(|| {
            error(S3ErrorCode::InvalidAccessKeyId, "The AWS access key ID you provided does not exist in our records.")
        })?;
        Ok(SecretKey::from(known.secret.as_str()))
    }
}

/// A bucket is its owner's, and nobody else's.
struct Owners {
    storage: Arc<Storage>,
    keys: Arc<HashMap<String, AccessKey>>,
}

impl Owners {
    fn check(&self, access_key: Option<&str>, bucket: Option<&str>) -> S3Result<String> {
        let denied = || error(S3ErrorCode::AccessDenied, "Access Denied");
        let key = access_key.and_then(|id| self.keys.get(id)).ok_or_else(denied)?;
        if let Some(bucket) = bucket
            && let Some(bucket) = self.storage.look(|view| view.find_bucket(bucket))?
            && bucket.owner != key.principal
        {
            return Err(denied());
        }
        Ok(key.principal.clone())
    }
}

/// The principal behind a request, put there by the access check.
#[derive(Clone)]
pub(crate) struct Caller(pub String);

struct OwnersOnly(Arc<Owners>);

#[async_trait]
impl S3Access for OwnersOnly {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let bucket = match context.s3_path() {
            S3Path::Root => None,
            S3Path::Bucket { bucket } | S3Path::Object { bucket, .. } => Some(bucket.to_string()),
        };
        // Creating answers for itself whose the name is.
        let bucket = bucket.filter(|_| context.s3_op().name() != "CreateBucket");
        let access_key = context.credentials().map(|credentials| credentials.access_key.clone());
        let principal = self.0.check(access_key.as_deref(), bucket.as_deref())?;
        if let Some(source) = context.headers().get("x-amz-copy-source").and_then(|value| value.to_str().ok())
            && let Ok(CopySource::Bucket { bucket, .. }) = CopySource::parse(source)
        {
            self.0.check(access_key.as_deref(), Some(&bucket))?;
        }
        ops::conditions::supported(context.s3_op().name(), context.method(), context.headers())?;
        context.extensions_mut().insert(Caller(principal));
        Ok(())
    }
}

struct UpdateEncryption(Arc<Owners>);

#[async_trait]
impl S3Route for UpdateEncryption {
    fn is_match(&self, method: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        let names_object = uri.path().trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
        let asks = |query: &str| query.split('&').any(|pair| pair == "encryption" || pair == "encryption=");
        method == Method::PUT && names_object && uri.query().is_some_and(asks)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let access_key = request.credentials.as_ref().map(|credentials| credentials.access_key.as_str());
        let bucket = ops::encrypt::named(request).map(|(bucket, ..)| bucket);
        self.0.check(access_key, bucket.as_deref()).map(|_| ())
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        measured("UpdateObjectEncryption", ops::encrypt::update_object_encryption(&self.0.storage, request)).await
    }
}

/// Counts and times an operation.
async fn measured<T>(operation: &'static str, work: impl Future<Output = S3Result<T>>) -> S3Result<T> {
    let started = Instant::now();
    let result = work.await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(error) if error.status_code().is_none_or(|status| status.is_server_error()) => "failed",
        Err(_) => "refused",
    };
    counter!("holdfast_storage_requests_total", "operation" => operation, "outcome" => outcome).increment(1);
    histogram!("holdfast_storage_request_duration_seconds", "operation" => operation)
        .record(started.elapsed().as_secs_f64());
    result
}

struct Door(Arc<Storage>);

macro_rules! operations {
    ($($name:ident($input:ident) -> $output:ident: $module:ident, $operation:literal;)*) => {
        #[async_trait]
        impl S3 for Door {
            $(async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                measured($operation, ops::$module::$name(&self.0, request)).await
            })*
        }
    };
}

operations! {
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput: multipart, "AbortMultipartUpload";
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput: complete, "CompleteMultipartUpload";
    copy_object(CopyObjectInput) -> CopyObjectOutput: copy, "CopyObject";
    create_bucket(CreateBucketInput) -> CreateBucketOutput: bucket, "CreateBucket";
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput: multipart, "CreateMultipartUpload";
    delete_bucket(DeleteBucketInput) -> DeleteBucketOutput: bucket, "DeleteBucket";
    delete_bucket_encryption(DeleteBucketEncryptionInput) -> DeleteBucketEncryptionOutput: bucket, "DeleteBucketEncryption";
    delete_bucket_tagging(DeleteBucketTaggingInput) -> DeleteBucketTaggingOutput: tagging, "DeleteBucketTagging";
    delete_object(DeleteObjectInput) -> DeleteObjectOutput: delete, "DeleteObject";
    delete_object_tagging(DeleteObjectTaggingInput) -> DeleteObjectTaggingOutput: tagging, "DeleteObjectTagging";
    delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput: delete, "DeleteObjects";
    get_bucket_encryption(GetBucketEncryptionInput) -> GetBucketEncryptionOutput: bucket, "GetBucketEncryption";
    get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput: bucket, "GetBucketLocation";
    get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput: tagging, "GetBucketTagging";
    get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput: versions, "GetBucketVersioning";
    get_object(GetObjectInput) -> GetObjectOutput: get, "GetObject";
    get_object_attributes(GetObjectAttributesInput) -> GetObjectAttributesOutput: get, "GetObjectAttributes";
    get_object_tagging(GetObjectTaggingInput) -> GetObjectTaggingOutput: tagging, "GetObjectTagging";
    head_bucket(HeadBucketInput) -> HeadBucketOutput: bucket, "HeadBucket";
    head_object(HeadObjectInput) -> HeadObjectOutput: get, "HeadObject";
    list_buckets(ListBucketsInput) -> ListBucketsOutput: bucket, "ListBuckets";
    list_multipart_uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput: uploads, "ListMultipartUploads";
    list_object_versions(ListObjectVersionsInput) -> ListObjectVersionsOutput: versions, "ListObjectVersions";
    list_objects(ListObjectsInput) -> ListObjectsOutput: list, "ListObjects";
    list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output: list, "ListObjectsV2";
    list_parts(ListPartsInput) -> ListPartsOutput: uploads, "ListParts";
    put_bucket_encryption(PutBucketEncryptionInput) -> PutBucketEncryptionOutput: bucket, "PutBucketEncryption";
    put_bucket_tagging(PutBucketTaggingInput) -> PutBucketTaggingOutput: tagging, "PutBucketTagging";
    put_bucket_versioning(PutBucketVersioningInput) -> PutBucketVersioningOutput: versions, "PutBucketVersioning";
    put_object(PutObjectInput) -> PutObjectOutput: put, "PutObject";
    put_object_tagging(PutObjectTaggingInput) -> PutObjectTaggingOutput: tagging, "PutObjectTagging";
    upload_part(UploadPartInput) -> UploadPartOutput: multipart, "UploadPart";
    upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput: copy, "UploadPartCopy";
}

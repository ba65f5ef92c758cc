//! The S3 protocol, on the s3s crate: it reads requests, checks signatures and writes XML; what is done is in `ops`.

mod dates;
mod form;
mod form_policy;
mod front;
mod headers;
mod operations;
mod scope;
mod xml;

use std::{collections::HashMap, sync::Arc, time::Instant};

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Method, header};
use metrics::{counter, histogram};
use s3s::{
    Body, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    config::{S3Config, StaticConfigProvider},
    dto::*,
    host::{S3Host, VirtualHost},
    path::S3Path,
    service::{S3Service, S3ServiceBuilder},
};

use crate::{
    Storage,
    error::{error, finished, not_implemented},
    ops,
    view::on_behalf,
};

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

/// Domains under which a bucket may be addressed as a host (`bucket.s3.example.com`); any other host is not looked at.
struct Hosts(Vec<String>);

impl Hosts {
    fn bucket(&self, host: &str) -> Option<String> {
        let host = host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
        let bucket = self.0.iter().find_map(|domain| host.strip_suffix(domain.as_str())?.strip_suffix('.'));
        bucket.filter(|bucket| !bucket.is_empty()).map(str::to_owned)
    }
}

struct HostParser(Arc<Hosts>);

impl S3Host for HostParser {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let named = VirtualHost::new(host);
        Ok(match self.0.bucket(host) {
            Some(bucket) => named.with_bucket(bucket),
            None => named,
        })
    }
}

/// The service: requests in, answers out.
pub struct S3 {
    outer: S3Service,
    /// The same for forms: these live as long as their policy says, however long ago it was signed.
    forms: S3Service,
    hosts: Arc<Hosts>,
    storage: Arc<Storage>,
}

impl S3 {
    /// The bucket that the address of a form names.
    fn bucket_of(&self, request: &http::Request<Body>) -> String {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let of_path = || request.uri().path().trim_matches('/').to_owned();
        self.hosts.bucket(host).unwrap_or_else(of_path)
    }

    /// Whether the host that a request names is a bucket: then every path is one of its objects.
    #[must_use]
    pub fn names_bucket(&self, headers: &HeaderMap) -> bool {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        host.is_some_and(|host| self.hosts.bucket(host).is_some())
    }

    /// What s3s does not see of a signature is seen here.
    fn prepared(&self, request: http::Request<Body>, now_secs: i64) -> S3Result<http::Request<Body>> {
        scope::check_region(request.uri(), request.headers(), &self.storage.config.region)?;
        scope::check_signed(request.uri(), request.headers())?;
        headers::check_lifetime(request.uri().query().unwrap_or_default(), now_secs)?;
        scope::with_covered_headers(request).and_then(|request| dates::prepared(request, now_secs))
    }

    /// Answers a request, whose id the answer tells.
    pub async fn call(&self, request: http::Request<Body>, request_id: &str) -> http::Response<Body> {
        let now_millis = self.storage.now_millis();
        let is_form = form::is_form(request.method(), request.headers());
        let prepared = if is_form {
            let bucket = self.bucket_of(&request);
            form::prepared(request, &bucket, now_millis).await
        } else {
            self.prepared(request, now_millis / 1000)
        };
        let answer = match prepared {
            Ok(request) if is_form => self.forms.call(request).await,
            Ok(request) => self.outer.call(request).await,
            Err(error) => Ok(refused(&error)),
        };
        let answer = answer.unwrap_or_else(|_| {
            refused(&error(S3ErrorCode::InternalError, "We encountered an internal error. Please try again."))
        });
        finished(answer, request_id)
    }
}

/// An error as s3s writes it.
fn refused(error: &S3Error) -> http::Response<Body> {
    use quick_xml::escape::partial_escape as escape;
    let (code, message) = (escape(error.code().as_str()), escape(error.message().unwrap_or_default()));
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let mut answer = http::Response::new(Body::from(body));
    *answer.status_mut() = error.status_code().unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    *answer.headers_mut() = error.headers().cloned().unwrap_or_default();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}

/// The service, over a storage and for those who have these keys.
#[must_use]
pub fn service(storage: &Arc<Storage>, keys: Vec<AccessKey>) -> S3 {
    let keys: HashMap<String, AccessKey> = keys.into_iter().map(|key| (key.id.clone(), key)).collect();
    let keys = Arc::new(keys);
    let hosts = Arc::new(Hosts(storage.config.host_domains.clone()));
    let builder = |config: S3Config| {
        let mut builder = S3ServiceBuilder::new(Door(Arc::clone(storage)));
        let mut config = config;
        config.xml_max_body_size = XML_BYTES_MAX;
        config.post_object_max_file_size = POST_FILE_BYTES_MAX;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        builder.set_host(HostParser(Arc::clone(&hosts)));
        builder
    };
    let owners = Arc::new(Owners { storage: Arc::clone(storage), keys: Arc::clone(&keys) });
    let mut of_any_age = S3Config::default();
    of_any_age.presigned_url_max_skew_time_secs = u32::MAX;
    let mut forms = builder(of_any_age);
    forms.set_auth(Keys(Arc::clone(&keys)));
    forms.set_access(FormsOnly(Arc::clone(&owners)));
    let mut outer = builder(S3Config::default());
    outer.set_auth(Keys(keys));
    // Nothing comes past the route.
    outer.set_access(FormsOnly(Arc::clone(&owners)));
    let inner = builder(S3Config::default()).build();
    outer.set_route(front::Front { owners, hosts: Arc::clone(&hosts), inner });
    S3 { outer: outer.build(), forms: forms.build(), hosts, storage: Arc::clone(storage) }
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

/// The principal behind a request.
#[derive(Clone)]
pub(crate) struct Caller(pub String);

fn denied() -> S3Error {
    error(S3ErrorCode::AccessDenied, "Access Denied")
}

/// A bucket is its owner's, and nobody else's.
struct Owners {
    storage: Arc<Storage>,
    keys: Arc<HashMap<String, AccessKey>>,
}

impl Owners {
    fn caller(&self, access_key: Option<&str>) -> S3Result<Caller> {
        let key = access_key.and_then(|id| self.keys.get(id)).ok_or_else(denied)?;
        Ok(Caller(key.principal.clone()))
    }

    /// A bucket that is there is the caller's, and of the owner that he expects.
    fn check_bucket(&self, caller: &Caller, bucket: &str, expected: Option<&HeaderValue>) -> S3Result<()> {
        let Some(bucket) = self.storage.look(|view| view.find_bucket(bucket))? else { return Ok(()) };
        if bucket.owner != caller.0 || expected.is_some_and(|expected| expected != bucket.owner.as_str()) {
            return Err(denied());
        }
        Ok(())
    }
}

/// POST forms are the one kind of request that s3s carries out without [`front::Front`].
struct FormsOnly(Arc<Owners>);

#[async_trait]
impl S3Access for FormsOnly {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let (S3Path::Bucket { bucket }, "PostObject") = (context.s3_path(), context.s3_op().name()) else {
            return Err(denied());
        };
        let bucket = bucket.to_string();
        let caller = self.0.caller(context.credentials().map(|credentials| credentials.access_key.as_str()))?;
        let fields: form::Fields = context.extensions_mut().remove().unwrap_or_default();
        fields.check()?;
        if let Some((region, service)) = fields.scope() {
            let wrong = scope::Wrong { presigned: false };
            wrong.check(Some(&region), Some(&service), &self.0.storage.config.region)?;
        }
        let form::Fields(fields) = fields;
        self.0.check_bucket(&caller, &bucket, fields.get("x-amz-expected-bucket-owner"))?;
        let operation = operations::resolve(&Method::PUT, operations::Place::Object, &[], &fields)
            .map_err(|unkept| headers::refusal(unkept, &Method::PUT))?;
        ops::conditions::supported(operation.name, &Method::PUT, &fields)?;
        headers::check(&fields)?;
        context.extensions_mut().insert(caller);
        context.extensions_mut().insert(form::Fields(fields));
        context.extensions_mut().insert(front::Resolved(operation.name));
        Ok(())
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
        impl s3s::S3 for Door {
            $(async fn $name(&self, mut request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                // s3s reads the request anew: what it takes it for must be what it was found to ask for.
                if request.extensions.get() != Some(&front::Resolved($operation)) {
                    return Err(not_implemented("This operation is not supported"));
                }
                request.trailing_headers = request.trailing_headers.or_else(|| request.extensions.remove());
                if let Some(fields) = request.extensions.remove::<form::Fields>() {
                    fields.add_claims(&mut request.headers);
                }
                let Caller(caller) = request.extensions.get().cloned().ok_or_else(denied)?;
                on_behalf(&caller, measured($operation, ops::$module::$name(&self.0, request))).await
            })*
        }
    };
}

operations! {
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput: multipart, "AbortMultipartUpload";
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput: complete, "CompleteMultipartUpload";
    copy_object(CopyObjectInput) -> CopyObjectOutput: copy, "CopyObject";
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput: multipart, "CreateMultipartUpload";
    delete_bucket(DeleteBucketInput) -> DeleteBucketOutput: bucket, "DeleteBucket";
    delete_bucket_encryption(DeleteBucketEncryptionInput) -> DeleteBucketEncryptionOutput: bucket_encryption, "DeleteBucketEncryption";
    delete_bucket_tagging(DeleteBucketTaggingInput) -> DeleteBucketTaggingOutput: tagging, "DeleteBucketTagging";
    delete_object(DeleteObjectInput) -> DeleteObjectOutput: delete, "DeleteObject";
    delete_object_tagging(DeleteObjectTaggingInput) -> DeleteObjectTaggingOutput: tagging, "DeleteObjectTagging";
    delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput: delete, "DeleteObjects";
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
    put_bucket_tagging(PutBucketTaggingInput) -> PutBucketTaggingOutput: tagging, "PutBucketTagging";
    put_bucket_versioning(PutBucketVersioningInput) -> PutBucketVersioningOutput: versions, "PutBucketVersioning";
    put_object(PutObjectInput) -> PutObjectOutput: put, "PutObject";
    put_object_tagging(PutObjectTaggingInput) -> PutObjectTaggingOutput: tagging, "PutObjectTagging";
    upload_part(UploadPartInput) -> UploadPartOutput: multipart, "UploadPart";
    upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput: copy, "UploadPartCopy";
}

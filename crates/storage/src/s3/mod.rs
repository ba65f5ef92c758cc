//! The S3 protocol, on the s3s crate: it reads requests, checks signatures and writes XML; what is done is in `ops`.

pub(crate) mod authn;
mod dates;
mod form;
mod form_policy;
mod front;
mod headers;
mod operations;
mod patience;
mod scope;
pub(crate) mod xml;

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use authn::{Directory, Secrets};
use bytes::Bytes;
use holdfast_core::Action;
use holdfast_service::{AuditDoor, SigningReaders, Spine};
use http::{HeaderMap, HeaderValue, Method, header};
use metrics::{counter, histogram};
use s3s::{
    Body, S3Request, S3Response, S3Result,
    access::{S3Access, S3AccessContext},
    config::{S3Config, StaticConfigProvider},
    dto::*,
    host::{S3Host, VirtualHost},
    path::S3Path,
    service::{S3Service, S3ServiceBuilder},
};
use serde::Deserialize;

use crate::{
    BODY_IDLE_TIMEOUT, Storage,
    call::{Act, Arrived, Call, Named},
    error::{Error, Result, not_implemented},
    event::UNRESOLVED,
    ops,
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
    directory: Arc<Directory>,
    hosts: Arc<Hosts>,
    storage: Arc<Storage>,
    /// Of requests for a copy of the audit log; all others go through s3s.
    spine: Spine,
}

impl S3 {
    /// Serves one request for a copy of the audit log, behind `door`: for `readers`, whom the configuration names.
    pub async fn handle_audit<B>(
        &self,
        door: &AuditDoor,
        readers: &SigningReaders,
        request: http::Request<B>,
        source: Option<SocketAddr>,
    ) -> http::Response<holdfast_service::Handed>
    where
        B: http_body::Body<Data = Bytes> + Send,
    {
        let (parts, body) = request.into_parts();
        self.spine.handle(&door.through(readers), parts, body, source).await
    }

    /// Those of `readers` who may take a copy of the log, by the names of their principals, among everybody who has a credential.
    #[must_use]
    pub fn audit_readers(&self, readers: &[String]) -> SigningReaders {
        SigningReaders::new(self.directory.signers(), readers.iter().cloned(), Arc::clone(&self.storage.ambient))
    }

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
    fn prepared(&self, request: http::Request<Body>, now_secs: i64) -> Result<http::Request<Body>> {
        scope::check_region(request.uri(), request.headers(), &self.storage.config.region)?;
        scope::check_signed(request.uri(), request.headers())?;
        headers::check_lifetime(request.uri().query().unwrap_or_default(), now_secs)?;
        scope::with_covered_headers(request).and_then(|request| dates::prepared(request, now_secs))
    }

    /// Answers a request, whose id the answer tells; `source` is where it came from.
    pub async fn call(
        &self,
        mut request: http::Request<Body>,
        request_id: &str,
        source: Option<SocketAddr>,
    ) -> http::Response<Body> {
        let ambient = self.storage.ambient();
        let arrived = Arrived::new(request_id, source, request.uri().path(), request.headers(), ambient);
        request.extensions_mut().insert(Arc::clone(&arrived));
        let idle = self.storage.config.body_idle_timeout.unwrap_or(BODY_IDLE_TIMEOUT);
        let request = request.map(|body| patience::bounded(body, &arrived, idle));
        let mut result = self.answer(request, &arrived).await;
        if result.is_err() && arrived.is_late() {
            // Whatever was made of a body that did not come: this is why.
            result = Err(Error::RequestTimeout);
        }
        let status = result.as_ref().map(|answer| answer.status().as_u16());
        let fails_anyway = matches!(&result, Err(error) if error.told().status.is_server_error());
        // What fails for another want is told for what it is; nothing else is answered without its event.
        if let Err(error) = self.storage.record(&arrived, status).await
            && !fails_anyway
        {
            result = Err(error);
        }
        let operation = arrived.call().map_or(UNRESOLVED, |call| call.act().operation);
        let mut answer = result.unwrap_or_else(|error| error.response(request_id));
        if let Ok(id) = HeaderValue::try_from(request_id) {
            answer.headers_mut().insert("x-amz-request-id", id);
        }
        let outcome = match answer.status() {
            status if status.is_success() => "ok",
            status if status.is_server_error() => "failed",
            _ => "refused",
        };
        counter!("holdfast_storage_requests_total", "operation" => operation, "outcome" => outcome).increment(1);
        histogram!("holdfast_storage_request_duration_seconds", "operation" => operation)
            .record(arrived.facts.began.elapsed().as_secs_f64());
        answer
    }

    async fn answer(&self, request: http::Request<Body>, arrived: &Arrived) -> Result<http::Response<Body>> {
        let now_millis = self.storage.now_millis();
        let answer = if form::is_form(request.method(), request.headers()) {
            let bucket = self.bucket_of(&request);
            let is_signed = |fields: &[(String, String)]| self.directory.signer(fields, arrived).is_some();
            arrived.asks_for(form_act(&bucket, None));
            self.forms.call(form::prepared(request, &bucket, now_millis, is_signed).await?).await
        } else {
            self.outer.call(self.prepared(request, now_millis / 1000)?).await
        };
        match (arrived.refused(), answer) {
            (Some(error), _) => Err(error),
            (None, Ok(answer)) if answer.status().is_success() => Ok(answer),
            (None, Ok(answer)) => Err(refused_by_s3s(&answer)),
            (None, Err(_)) => Err(Error::Internal(INTERNAL)),
        }
    }
}

const INTERNAL: &str = "We encountered an internal error. Please try again.";

/// What s3s says by itself of a request that it cannot read, or whose signature does not hold.
fn refused_by_s3s(answer: &http::Response<Body>) -> Error {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Body {
        code: String,
        message: String,
    }
    let body = answer.body().bytes().unwrap_or_default();
    let body: Body =
        std::str::from_utf8(&body).ok().and_then(|text| quick_xml::de::from_str(text).ok()).unwrap_or_default();
    Error::Protocol { code: body.code, status: answer.status(), message: body.message }
}

/// The service, over a storage and for those who have these keys.
#[must_use]
pub fn service(storage: &Arc<Storage>, keys: Vec<AccessKey>) -> S3 {
    let directory = Arc::new(Directory::new(keys));
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
    let forms_only = || FormsOnly { storage: Arc::clone(storage), directory: Arc::clone(&directory) };
    let mut of_any_age = S3Config::default();
    of_any_age.presigned_url_max_skew_time_secs = u32::MAX;
    let mut forms = builder(of_any_age);
    forms.set_auth(Secrets(Arc::clone(&directory)));
    forms.set_access(forms_only());
    let mut outer = builder(S3Config::default());
    outer.set_auth(Secrets(Arc::clone(&directory)));
    // Nothing comes past the route.
    outer.set_access(forms_only());
    let inner = builder(S3Config::default()).build();
    let storage = Arc::clone(storage);
    let front = front::Front {
        storage: Arc::clone(&storage),
        directory: Arc::clone(&directory),
        hosts: Arc::clone(&hosts),
        inner,
    };
    outer.set_route(front);
    let (audit, ambient) = (Arc::clone(&storage.audit), Arc::clone(&storage.ambient));
    let spine = Spine::beside(audit, ambient, Arc::clone(&storage.strangers));
    S3 { outer: outer.build(), forms: forms.build(), directory, hosts, storage, spine }
}

/// A first look at whose the buckets of a request are, which may refuse before a body is read. What counts is whose they are when they
/// are used.
fn first_look(storage: &Storage, call: &Call) -> Result<()> {
    // That a bucket is missing, the operation says in its own way.
    let refused = |granted: Result<crate::grant::Granted<'_>>| match granted {
        Ok(_) | Err(Error::NoSuchBucket) => Ok(()),
        Err(error) => Err(error),
    };
    storage.look(|view| {
        // Creating answers for itself whose the name is.
        if !call.act().bucket.bucket.is_empty() && call.act().action != Action::BucketCreate {
            refused(view.grant(call))?;
        }
        match call.act().source {
            Some(_) => refused(view.grant_source(call)),
            None => Ok(()),
        }
    })
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    // What cannot be read is the name of nobody.
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// What every form asks for. Its key s3s reads, with the rest of the form.
fn form_act(bucket: &str, owner: Option<String>) -> Act {
    Act {
        operation: "PutObject",
        action: Action::ObjectWrite,
        bucket: Named { bucket: bucket.to_owned(), owner },
        key: None,
        source: None,
    }
}

/// POST forms are the one kind of request that s3s carries out without [`front::Front`].
struct FormsOnly {
    storage: Arc<Storage>,
    directory: Arc<Directory>,
}

impl FormsOnly {
    fn admit(&self, context: &mut S3AccessContext<'_>, arrived: &Arrived) -> Result<()> {
        let (S3Path::Bucket { bucket }, "PostObject") = (context.s3_path(), context.s3_op().name()) else {
            return Err(Error::Denied);
        };
        let bucket = bucket.to_string();
        let caller = self.directory.caller(context.credentials(), arrived)?;
        let fields: form::Fields = context.extensions_mut().remove().unwrap_or_default();
        fields.check()?;
        if let Some((region, service)) = fields.scope() {
            let wrong = scope::Wrong { presigned: false };
            wrong.check(Some(&region), Some(&service), &self.storage.config.region)?;
        }
        let form::Fields(fields) = fields;
        let operation = operations::resolve(&Method::PUT, operations::Place::Object, &[], &fields);
        let call = Call::new(arrived, caller, form_act(&bucket, text_of(&fields, "x-amz-expected-bucket-owner")));
        first_look(&self.storage, &call)?;
        let operation = operation.map_err(|unkept| headers::refusal(unkept, &Method::PUT))?;
        if operation.name != call.act().operation {
            return Err(not_implemented("This operation is not supported"));
        }
        ops::conditions::supported(operation.name, &Method::PUT, &fields)?;
        headers::check(&fields)?;
        context.extensions_mut().insert(call);
        context.extensions_mut().insert(form::Fields(fields));
        Ok(())
    }
}

#[async_trait]
impl S3Access for FormsOnly {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let arrived: Arc<Arrived> = context.extensions_mut().get().cloned().ok_or_else(unattended)?;
        self.admit(context, &arrived).map_err(|error| arrived.refuse(error))
    }
}

/// A request that did not come through [`S3::call`].
fn unattended() -> s3s::S3Error {
    s3s::S3Error::with_message(s3s::S3ErrorCode::InternalError, INTERNAL)
}

struct Door(Arc<Storage>);

macro_rules! operations {
    ($($name:ident($input:ident) -> $output:ident: $module:ident, $operation:literal;)*) => {
        #[async_trait]
        impl s3s::S3 for Door {
            $(async fn $name(&self, mut request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                let arrived: Arc<Arrived> = request.extensions.get().cloned().ok_or_else(unattended)?;
                let work = async {
                    // s3s reads the request anew: what it takes it for must be what it was found to ask for.
                    let call: Option<Arc<Call>> = request.extensions.remove();
                    let call = call.filter(|call| call.act().operation == $operation);
                    let call = call.ok_or_else(|| not_implemented("This operation is not supported"))?;
                    request.trailing_headers = request.trailing_headers.or_else(|| request.extensions.remove());
                    if let Some(fields) = request.extensions.remove::<form::Fields>() {
                        fields.add_claims(&mut request.headers);
                    }
                    ops::$module::$name(&self.0, &call, request).await
                };
                work.await.map_err(|error| arrived.refuse(error))
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

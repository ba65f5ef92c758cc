//! What happens to a request between its signature and its operation.
//!
//! s3s is used twice. The outer one verifies the signature, over what was sent, and hands everything to [`Front`]. That settles what
//! is asked for (`operations`, `headers`), by whom and of whose bucket, and gives the inner one a request without a signature
//! which it reads and carries out: only what was resolved here runs, because an operation asks for the [`Resolved`] one.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_crypto::md5::Md5;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri, header, uri::PathAndQuery};
use s3s::{
    Body, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::CopySource,
    path::{S3Path, parse_virtual_hosted_style},
    route::S3Route,
    service::S3Service,
};

use super::{
    Caller, Hosts, Owners, XML_BYTES_MAX, headers, measured,
    operations::{self, Operation, Place},
    scope::Wrong,
    xml,
};
use crate::{
    body::{Claims, check_claims, hasher, incomplete},
    error::{error, invalid_argument, invalid_request},
    ops,
    view::on_behalf,
};

/// The operation that a request was found to ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Resolved(pub &'static str);

pub(super) struct Front {
    pub owners: Arc<Owners>,
    pub hosts: Arc<Hosts>,
    pub inner: S3Service,
}

/// Query names of a signature, lower case: they say who asks, not for what.
const SIGNATURE: &[&str] = &[
    "x-amz-algorithm",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signature",
    "x-amz-signedheaders",
    "awsaccesskeyid",
    "expires",
    "signature",
];

#[async_trait]
impl S3Route for Front {
    /// All but POST forms, whose body s3s has read by now: their fields are in `form`.
    fn is_match(&self, method: &Method, _: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        !super::form::is_form(method, headers)
    }

    /// Every request has a caller; what he may is asked in `call`, which knows the bucket.
    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let caller = self.owners.caller(request.credentials.as_ref().map(|known| known.access_key.as_str()))?;
        request.extensions.insert(caller);
        Ok(())
    }

    async fn call(&self, mut request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        self.check_scope(&request)?;
        let query = parsed(request.uri.query());
        let query = hoisted(query, &mut request.headers)?;
        let path = self.path(&request)?;
        let place = match &path {
            S3Path::Root => Place::Service,
            S3Path::Bucket { .. } => Place::Bucket,
            S3Path::Object { .. } => Place::Object,
        };
        let operation = operations::resolve(&request.method, place, &query, &request.headers)
            .map_err(|unkept| headers::refusal(unkept, &request.method))?;
        ops::conditions::supported(operation.name, &request.method, &request.headers)?;
        headers::check(&request.headers)?;
        if operation.marks.contains(&"list-type") && !query.iter().any(|pair| is(pair, "list-type", "2")) {
            return Err(invalid_argument("Invalid List Type specified in Request"));
        }
        // A first look, which may refuse before the body is read. What counts is whose the bucket is when it is used.
        self.owners.check(&request, operation, &path)?;
        drop_unreadable_conditions(&mut request);
        if let Some(expires) = request.headers.remove(header::EXPIRES) {
            let text = expires.to_str().map_err(|_| invalid_argument("The header Expires is not valid"))?;
            request.extensions.insert(ops::Expires(text.to_owned()));
        }
        if !operation.elements.is_empty() {
            read_xml(&mut request, operation).await?;
        }
        request.uri = unsigned(&request.uri, &query)?;
        let name = operation.name;
        let Caller(caller) = request.extensions.get().cloned().ok_or_else(super::denied)?;
        match self.own(operation, path, query, &request) {
            Some(work) => on_behalf(&caller, measured(name, work)).await,
            None => self.carry_out(operation, request).await,
        }
    }
}

fn is(pair: &(String, String), name: &str, value: &str) -> bool {
    pair.0 == name && pair.1 == value
}

fn parsed(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

/// The SDK for JavaScript presigns an upload, whose body it does not have, with the checksum of no body; of S3 such a URL takes
/// any body.
fn is_checksum_of_nothing(name: &str, value: &str) -> bool {
    matches!(
        (name, value),
        ("x-amz-checksum-crc32" | "x-amz-checksum-crc32c", "AAAAAA==")
            | ("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")
            | ("x-amz-checksum-sha1", "2jmj7l5rSw0yVb/vlWAYkK/YBwk=")
            | ("x-amz-checksum-sha256", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
    )
}

/// Moves headers that were presigned in the query to where the operation reads them: SDKs put all of `x-amz-*` there.
///
/// # Errors
/// A header that is there already, with another value.
fn hoisted(query: Vec<(String, String)>, headers: &mut HeaderMap) -> S3Result<Vec<(String, String)>> {
    let mut kept = Vec::with_capacity(query.len());
    let bodiless = query.iter().any(|(name, value)| is_checksum_of_nothing(&name.to_ascii_lowercase(), value));
    for (name, value) in query {
        let lower = name.to_ascii_lowercase();
        let unmeant = bodiless && (lower == "x-amz-sdk-checksum-algorithm" || is_checksum_of_nothing(&lower, &value));
        if SIGNATURE.contains(&lower.as_str()) || unmeant {
            continue;
        }
        if !lower.starts_with("x-amz-") {
            kept.push((name, value));
            continue;
        }
        let invalid = || invalid_argument("A header in the query of a presigned URL is not valid");
        let name = HeaderName::try_from(lower).map_err(|_| invalid())?;
        let value = HeaderValue::try_from(value).map_err(|_| invalid())?;
        if headers.get(&name).is_some_and(|there| there != value) {
            return Err(invalid_request("A header and the query of this request have different values for one name"));
        }
        headers.insert(name, value);
    }
    Ok(kept)
}

/// The address without the signature and without what was moved to the headers.
fn unsigned(uri: &Uri, query: &[(String, String)]) -> S3Result<Uri> {
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let address = if query.is_empty() { uri.path().to_owned() } else { format!("{}?{encoded}", uri.path()) };
    let invalid = |_| error(S3ErrorCode::InvalidURI, "Couldn't parse the specified URI");
    PathAndQuery::try_from(address).map(Uri::from).map_err(invalid)
}

/// A date or range that cannot be read asks for nothing (RFC 9110, sections 13.1.3 and 14.2), as of S3.
fn drop_unreadable_conditions(request: &mut S3Request<Body>) {
    if request.method != Method::GET && request.method != Method::HEAD {
        return;
    }
    let text = |name: HeaderName| request.headers.get(name).map(|value| value.to_str().unwrap_or_default().to_owned());
    let mut dropped = Vec::new();
    for name in [header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        let format = s3s::dto::TimestampFormat::HttpDate;
        if text(name.clone()).is_some_and(|date| s3s::dto::Timestamp::parse(format, &date).is_err()) {
            dropped.push(name);
        }
    }
    if text(header::RANGE).is_some_and(|range| s3s::dto::Range::parse(&range).is_err()) {
        dropped.push(header::RANGE);
    }
    for name in dropped {
        request.headers.remove(name);
    }
}

/// Reads a body of XML whole, checks what was claimed of it, and makes it what s3s reads.
async fn read_xml(request: &mut S3Request<Body>, operation: &Operation) -> S3Result<()> {
    let read = request.input.store_all_limited(XML_BYTES_MAX).await;
    let body = read.map_err(|cause| match cause.is::<s3s::S3Error>() {
        true => incomplete(cause),
        false => error(S3ErrorCode::MaxMessageLengthExceeded, "Your request was too big."),
    })?;
    // The checksums of this one are of the object that it makes.
    let claims = match operation.name {
        "CompleteMultipartUpload" => Claims::of_body_alone(&request.headers),
        _ => Claims::from_headers(&request.headers, request.trailing_headers.take())?,
    };
    if operation.name == "DeleteObjects" && claims.content_md5.is_none() && claims.checksum.is_none() {
        return Err(invalid_request("Missing required header for this request: Content-MD5"));
    }
    let md5 = claims.content_md5.is_some().then(|| Md5::digest(&body));
    let mut checksum = claims.checksum.as_ref().and_then(|(algorithm, _)| hasher(algorithm));
    if let Some(checksum) = &mut checksum {
        checksum.update(&body);
    }
    check_claims(&claims, md5.as_ref(), checksum)?;
    let malformed = || {
        let message = "The XML you provided was not well-formed or did not validate against our published schema";
        error(S3ErrorCode::MalformedXML, message)
    };
    let text = std::str::from_utf8(&body).map_err(|_| malformed())?;
    if !xml::has_only(text, operation.elements) {
        return Err(malformed());
    }
    let body = match xml::with_plain_characters(text).ok_or_else(malformed)? {
        std::borrow::Cow::Borrowed(_) => body,
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    };
    request.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    request.input = Body::from(body);
    Ok(())
}

impl Front {
    fn path(&self, request: &S3Request<Body>) -> S3Result<S3Path> {
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let invalid = |_| error(S3ErrorCode::InvalidURI, "Couldn't parse the specified URI");
        let decoded =
            percent_encoding::percent_decode_str(request.uri.path()).decode_utf8().map_err(|_| invalid(()))?;
        // The outer s3s has read this path already, and answered where it is none.
        parse_virtual_hosted_style(self.hosts.bucket(host).as_deref(), &decoded).map_err(|_| invalid(()))
    }

    /// The region and the service that were signed for are these. A wrong region is told with the right one, by which SDKs
    /// find it.
    fn check_scope(&self, request: &S3Request<Body>) -> S3Result<()> {
        let presigned = request.uri.query().is_some_and(|query| query.contains("X-Amz-Signature="));
        let region = request.region.as_ref().map(s3s::region::Region::as_str);
        Wrong { presigned }.check(region, request.service.as_deref(), &self.owners.storage.config.region)
    }

    /// Operations whose bodies s3s 0.14 does not know, or not all of; [`read_xml`] has read them.
    fn own<'a>(
        &'a self,
        operation: &Operation,
        path: S3Path,
        query: Vec<(String, String)>,
        request: &S3Request<Body>,
    ) -> Option<BoxFuture<'a, S3Result<S3Response<Body>>>> {
        let storage = &self.owners.storage;
        let body = request.input.bytes().unwrap_or_default();
        let text = move || std::str::from_utf8(&body).unwrap_or_default().to_owned();
        let Caller(caller) = request.extensions.get()?;
        let caller = caller.clone();
        match (operation.name, path) {
            ("CreateBucket", S3Path::Bucket { bucket }) => {
                Some(Box::pin(async move { ops::bucket::create_bucket(storage, caller, bucket.into(), &text()).await }))
            }
            ("PutBucketEncryption", S3Path::Bucket { bucket }) => Some(Box::pin(async move {
                ops::bucket_encryption::put_bucket_encryption(storage, bucket.into(), &text()).await
            })),
            ("GetBucketEncryption", S3Path::Bucket { bucket }) => {
                Some(Box::pin(ops::bucket_encryption::get_bucket_encryption(storage, bucket.into())))
            }
            ("UpdateObjectEncryption", S3Path::Object { bucket, key }) => Some(Box::pin(async move {
                let version = query.into_iter().find_map(|(name, value)| (name == "versionId").then_some(value));
                let what = (bucket.into(), key.into(), version);
                ops::encrypt::update_object_encryption(storage, what, &text()).await
            })),
            _ => None,
        }
    }

    async fn carry_out(&self, operation: &Operation, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let mut inner = http::Request::new(request.input);
        *inner.method_mut() = request.method;
        *inner.uri_mut() = request.uri;
        *inner.headers_mut() = request.headers;
        inner.headers_mut().remove(header::AUTHORIZATION);
        *inner.extensions_mut() = request.extensions;
        inner.extensions_mut().insert(Resolved(operation.name));
        if let Some(trailers) = request.trailing_headers {
            inner.extensions_mut().insert(trailers);
        }
        let failed = |_| error(S3ErrorCode::InternalError, "We encountered an internal error. Please try again.");
        let (parts, mut body) = self.inner.call(inner).await.map_err(failed)?.into_parts();
        // What lies ready is XML of s3s; objects are streams.
        if let Some(bytes) = body.bytes() {
            let bytes = match operation.name {
                "GetObjectAttributes" => xml::without_quotes(bytes),
                _ => bytes,
            };
            body = Body::from(xml::with_escaped_characters(bytes));
        }
        let mut response = S3Response::with_status(body, parts.status);
        response.headers = parts.headers;
        response.extensions = parts.extensions;
        Ok(response)
    }
}

impl Owners {
    /// Whether the bucket that a request names is the caller's, and the one that he expects; and so the source of a copy.
    fn check(&self, request: &S3Request<Body>, operation: &Operation, path: &S3Path) -> S3Result<()> {
        let Some(caller) = request.extensions.get::<Caller>() else { return Err(super::denied()) };
        // Creating answers for itself whose the name is.
        if let Some(bucket) = path.get_bucket_name()
            && operation.name != "CreateBucket"
        {
            self.check_bucket(caller, bucket, request.headers.get("x-amz-expected-bucket-owner"))?;
        }
        let Some(source) = request.headers.get("x-amz-copy-source").and_then(|value| value.to_str().ok()) else {
            return Ok(());
        };
        if let Ok(CopySource::Bucket { bucket, .. }) = CopySource::parse(source) {
            self.check_bucket(caller, &bucket, request.headers.get("x-amz-source-expected-bucket-owner"))?;
        }
        Ok(())
    }
}

//! What happens to a request between its signature and its operation.
//!
//! s3s is used twice. The outer one verifies the signature, over what was sent, and hands everything to [`Front`]. That settles what
//! is asked for (`operations`, `headers`), by whom and of whose bucket, and gives the inner one a request without a signature
//! which it reads and carries out: only what was resolved here runs, because an operation asks for the [`Call`] that was made here.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_crypto::md5::Md5;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri, header, uri::PathAndQuery};
use s3s::{
    Body, S3Request, S3Response, S3Result,
    dto::CopySource,
    path::{S3Path, parse_virtual_hosted_style},
    route::S3Route,
    service::S3Service,
};

use super::{
    Hosts, INTERNAL, XML_BYTES_MAX,
    authn::{Caller, Directory},
    first_look, headers,
    operations::{self, Operation, Place},
    scope::Wrong,
    text_of, unattended, xml,
};
use crate::{
    Storage,
    body::{Claims, check_claims, hasher, incomplete},
    call::{Act, Arrived, Call, Named},
    error::{Error, Result, invalid_argument, invalid_request},
    ops,
};

pub(super) struct Front {
    pub storage: Arc<Storage>,
    pub directory: Arc<Directory>,
    pub hosts: Arc<Hosts>,
    pub inner: S3Service,
}

/// Time for the whole of a body of XML, which is held in memory.
const XML_TIMEOUT: Duration = Duration::from_secs(60);

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
        let arrived: Arc<Arrived> = request.extensions.get().cloned().ok_or_else(unattended)?;
        let caller = self.directory.caller(request.credentials.as_ref(), &arrived);
        request.extensions.insert(caller.map_err(|error| arrived.refuse(error))?);
        Ok(())
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let arrived: Arc<Arrived> = request.extensions.get().cloned().ok_or_else(unattended)?;
        self.run(request, &arrived).await.map_err(|error| arrived.refuse(error))
    }
}

impl Front {
    async fn run(&self, mut request: S3Request<Body>, arrived: &Arrived) -> Result<S3Response<Body>> {
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
        let caller: Caller = request.extensions.remove().ok_or(Error::Denied)?;
        let call = Call::new(arrived, caller, act_of(operation, &path, &request.headers));
        ops::conditions::supported(operation.name, &request.method, &request.headers)?;
        headers::check(&request.headers)?;
        if operation.marks.contains(&"list-type") && !query.iter().any(|pair| is(pair, "list-type", "2")) {
            return Err(invalid_argument("Invalid List Type specified in Request"));
        }
        first_look(&self.storage, &call)?;
        drop_unreadable_conditions(&mut request);
        if let Some(expires) = request.headers.remove(header::EXPIRES) {
            let text = expires.to_str().map_err(|_| invalid_argument("The header Expires is not valid"))?;
            request.extensions.insert(ops::Expires(text.to_owned()));
        }
        if !operation.elements.is_empty() {
            read_xml(&mut request, operation).await?;
        }
        request.uri = unsigned(&request.uri, &query)?;
        match self.own(&call, query, &request) {
            Some(work) => work.await,
            None => self.carry_out(operation, call, request).await,
        }
    }
}

/// What a request was found to ask for.
fn act_of(operation: &Operation, path: &S3Path, headers: &HeaderMap) -> Act {
    let source = text_of(headers, "x-amz-copy-source").and_then(|source| match CopySource::parse(&source) {
        Ok(CopySource::Bucket { bucket, key, .. }) => {
            let owner = text_of(headers, "x-amz-source-expected-bucket-owner");
            Some((Named { bucket: bucket.into(), owner }, key.into()))
        }
        _ => None,
    });
    Act {
        operation: operation.name,
        action: operation.action,
        bucket: Named {
            bucket: path.get_bucket_name().unwrap_or_default().to_owned(),
            owner: text_of(headers, "x-amz-expected-bucket-owner"),
        },
        key: path.get_object_key().map(str::to_owned),
        source: source.filter(|_| operation.copies),
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
fn hoisted(query: Vec<(String, String)>, headers: &mut HeaderMap) -> Result<Vec<(String, String)>> {
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
fn unsigned(uri: &Uri, query: &[(String, String)]) -> Result<Uri> {
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let address = if query.is_empty() { uri.path().to_owned() } else { format!("{}?{encoded}", uri.path()) };
    let invalid = |_| Error::InvalidUri;
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
async fn read_xml(request: &mut S3Request<Body>, operation: &Operation) -> Result<()> {
    let read = tokio::time::timeout(XML_TIMEOUT, request.input.store_all_limited(XML_BYTES_MAX)).await;
    let body = read.map_err(|_| Error::RequestTimeout)?.map_err(|cause| match incomplete(cause) {
        // Of a body that is too long s3s says no more than that it is not to be had.
        Error::IncompleteBody(_) => Error::XmlTooLong,
        error => error,
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
        Error::MalformedXml(message)
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
    fn path(&self, request: &S3Request<Body>) -> Result<S3Path> {
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let invalid = |_| Error::InvalidUri;
        let decoded =
            percent_encoding::percent_decode_str(request.uri.path()).decode_utf8().map_err(|_| invalid(()))?;
        // The outer s3s has read this path already, and answered where it is none.
        parse_virtual_hosted_style(self.hosts.bucket(host).as_deref(), &decoded).map_err(|_| invalid(()))
    }

    /// The region and the service that were signed for are these. A wrong region is told with the right one, by which SDKs
    /// find it.
    fn check_scope(&self, request: &S3Request<Body>) -> Result<()> {
        let presigned = request.uri.query().is_some_and(|query| query.contains("X-Amz-Signature="));
        let region = request.region.as_ref().map(s3s::region::Region::as_str);
        Wrong { presigned }.check(region, request.service.as_deref(), &self.storage.config.region)
    }

    /// Operations whose bodies s3s 0.14 does not know, or not all of; [`read_xml`] has read them.
    fn own<'a>(
        &'a self,
        call: &Arc<Call>,
        query: Vec<(String, String)>,
        request: &S3Request<Body>,
    ) -> Option<BoxFuture<'a, Result<S3Response<Body>>>> {
        let (storage, call) = (&self.storage, Arc::clone(call));
        let body = request.input.bytes().unwrap_or_default();
        let text = move || std::str::from_utf8(&body).unwrap_or_default().to_owned();
        match call.act().operation {
            "CreateBucket" => Some(Box::pin(async move { ops::bucket::create_bucket(storage, &call, &text()).await })),
            "PutBucketEncryption" => {
                Some(Box::pin(
                    async move { ops::bucket_encryption::put_bucket_encryption(storage, &call, &text()).await },
                ))
            }
            "GetBucketEncryption" => {
                Some(Box::pin(async move { ops::bucket_encryption::get_bucket_encryption(storage, &call).await }))
            }
            "UpdateObjectEncryption" => Some(Box::pin(async move {
                let version = query.into_iter().find_map(|(name, value)| (name == "versionId").then_some(value));
                ops::encrypt::update_object_encryption(storage, &call, version, &text()).await
            })),
            _ => None,
        }
    }

    async fn carry_out(
        &self,
        operation: &Operation,
        call: Arc<Call>,
        request: S3Request<Body>,
    ) -> Result<S3Response<Body>> {
        let mut inner = http::Request::new(request.input);
        *inner.method_mut() = request.method;
        *inner.uri_mut() = request.uri;
        *inner.headers_mut() = request.headers;
        inner.headers_mut().remove(header::AUTHORIZATION);
        *inner.extensions_mut() = request.extensions;
        inner.extensions_mut().insert(call);
        if let Some(trailers) = request.trailing_headers {
            inner.extensions_mut().insert(trailers);
        }
        let failed = |_| Error::Internal(INTERNAL);
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

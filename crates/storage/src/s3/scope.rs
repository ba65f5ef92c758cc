//! What a signature was made for: this region and this service, and all that asks for something.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, uri::PathAndQuery};
use s3s::{Body, region::Region};

use crate::error::{Error, Result, invalid_argument, not_implemented};

/// A wrong region or service, said as S3 does where the signature stands in a header and where it stands in the query.
#[derive(Clone, Copy)]
pub(super) struct Wrong {
    pub presigned: bool,
}

impl Wrong {
    fn error(self, what: String, region: Option<&str>) -> Error {
        Error::AuthorizationScope { presigned: self.presigned, what, region: region.map(str::to_owned) }
    }

    /// Whether a signature was made for S3 in this region.
    pub(super) fn check(self, region: Option<&str>, service: Option<&str>, expected: &str) -> Result<()> {
        if let Some(service) = service.filter(|service| *service != "s3") {
            let what = format!("incorrect service \"{service}\". This endpoint belongs to \"s3\".");
            return Err(self.error(what, None));
        }
        match region.filter(|region| *region != expected) {
            None => Ok(()),
            Some(region) => Err(self.region(region, expected)),
        }
    }

    /// Tells the right region, too: SDKs learn it from here.
    fn region(self, region: &str, expected: &str) -> Error {
        self.error(format!("the region '{region}' is wrong; expecting '{expected}'"), Some(expected))
    }
}

/// Refuses what is no name of a region, such as the `US` that s3cmd begins with, before s3s does, which has another error for it.
/// A name that is one is looked at when the signature has been verified.
pub(super) fn check_region(uri: &Uri, headers: &HeaderMap, expected: &str) -> Result<()> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let of_header = authorization
        .and_then(|text| text.strip_prefix("AWS4-HMAC-SHA256"))
        .and_then(|text| text.split(',').find_map(|part| part.trim().strip_prefix("Credential=")))
        .map(Cow::Borrowed);
    let query = uri.query().unwrap_or_default();
    let of_query = || {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find_map(|(name, value)| (name == "X-Amz-Credential").then_some(value))
    };
    let presigned = of_header.is_none();
    let Some(credential) = of_header.or_else(of_query) else { return Ok(()) };
    // Key, date, region, service, `aws4_request`.
    let Some(region) = credential.rsplit('/').nth(2) else { return Ok(()) };
    match region.is_empty() || Region::new(region.into()).is_ok() {
        true => Ok(()),
        false => Err(Wrong { presigned }.region(region, expected)),
    }
}

/// Headers that a signature of version 4 need not cover: the hash of the body, which it is made of, and who wrote the client.
const UNSIGNED: &[&str] = &["x-amz-content-sha256", "x-amz-user-agent"];
/// Query names that make another operation of a request and that a signature of version 2 does not cover.
const UNCOVERED_MARKS: &[&str] = &["attributes", "encryption"];

/// Refuses a request with more than one signature, and headers that nobody signed: whoever has a presigned URL could ask for
/// something else by them.
pub(super) fn check_signed(uri: &Uri, headers: &HeaderMap) -> Result<()> {
    let query: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).collect();
    let value = |wanted: &str| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_ref());
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
    let kinds = [authorization.is_some(), value("X-Amz-Signature").is_some(), value("Signature").is_some()];
    if kinds.iter().filter(|there| **there).count() > 1 || headers.get_all(header::AUTHORIZATION).iter().count() > 1 {
        return Err(invalid_argument(
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter \
             or the Authorization header should be specified",
        ));
    }
    if value("Signature").is_some() && UNCOVERED_MARKS.iter().any(|mark| value(mark).is_some()) {
        return Err(not_implemented("This operation cannot be asked for by signature version 2"));
    }
    let of_header = authorization
        .filter(|text| text.starts_with("AWS4-HMAC-SHA256"))
        .and_then(|text| text.split([',', ' ']).find_map(|part| part.trim().strip_prefix("SignedHeaders=")));
    let Some(signed) = of_header.or_else(|| value("X-Amz-SignedHeaders")) else { return Ok(()) };
    let signed: Vec<&str> = signed.split(';').collect();
    let must = |name: &&str| *name == "host" || name.starts_with("x-amz-") && !UNSIGNED.contains(name);
    let unsigned: Vec<&str> =
        headers.keys().map(http::HeaderName::as_str).filter(must).filter(|name| !signed.contains(name)).collect();
    if unsigned.is_empty() {
        return Ok(());
    }
    Err(Error::HeadersNotSigned(unsigned.join(", ")))
}

/// Moves the headers that stand in the query of a URL presigned by version 2 to where its signature covers them.
pub(super) fn with_covered_headers(mut request: Request<Body>) -> Result<Request<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let is_header = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("x-amz-") || name == "content-md5" || name == "content-type"
    };
    if !pairs.iter().any(|(name, _)| name == "Signature") || !pairs.iter().any(|(name, _)| is_header(name)) {
        return Ok(request);
    }
    let invalid = || invalid_argument("A header in the query of a presigned URL is not valid");
    let (moved, kept): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(name, _)| is_header(name));
    for (name, value) in moved {
        let name = HeaderName::try_from(name.to_ascii_lowercase()).map_err(|_| invalid())?;
        let value = HeaderValue::try_from(value).map_err(|_| invalid())?;
        if request.headers().get(&name).is_some_and(|there| there != value) {
            return Err(invalid());
        }
        request.headers_mut().insert(name, value);
    }
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(kept).finish();
    let address = format!("{}?{encoded}", request.uri().path());
    *request.uri_mut() = PathAndQuery::try_from(address).map(Uri::from).map_err(|_| invalid())?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_is_no_name_is_told_the_right_one() {
        let refused = |uri: &str, authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            let checked = check_region(&uri.parse().unwrap(), &headers, "us-east-1");
            checked.err().map(|error| error.code().to_owned())
        };
        let header = |region: &str| {
            format!("AWS4-HMAC-SHA256 Credential=A/K/20261126/{region}/s3/aws4_request,SignedHeaders=host,Signature=0")
        };
        assert_eq!(refused("/b", &header("US")).as_deref(), Some("AuthorizationHeaderMalformed"));
        assert_eq!(refused("/b", &header("eu-west-1")), None);
        assert_eq!(refused("/b", "AWS AK:signature"), None);
        let query = "/b?X-Amz-Credential=AK%2F20261126%2FUS%2Fs3%2Faws4_request";
        assert_eq!(refused(query, "Bearer x").as_deref(), Some("AuthorizationQueryParametersError"));
    }
}

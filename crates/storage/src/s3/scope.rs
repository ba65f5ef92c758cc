//! What a signature was made for: this region and this service.

use std::borrow::Cow;

use http::{HeaderMap, StatusCode, Uri, header};
use s3s::{S3Error, S3Result, region::Region};

use crate::error::{custom, with_members};

/// A wrong region or service, said as S3 does where the signature stands in a header and where it stands in the query.
#[derive(Clone, Copy)]
pub(super) struct Wrong {
    pub presigned: bool,
}

impl Wrong {
    fn error(self, what: &str) -> S3Error {
        let (code, begin) = match self.presigned {
            true => ("AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential parameter"),
            false => ("AuthorizationHeaderMalformed", "The authorization header is malformed"),
        };
        custom(code, StatusCode::BAD_REQUEST, format!("{begin}; {what}"))
    }

    pub(super) fn service(self, service: &str) -> S3Error {
        self.error(&format!("incorrect service \"{service}\". This endpoint belongs to \"s3\"."))
    }

    /// Tells the right region, too: SDKs learn it from here.
    pub(super) fn region(self, region: &str, expected: &str) -> S3Error {
        let error = self.error(&format!("the region '{region}' is wrong; expecting '{expected}'"));
        with_members(error, &[("Region", expected)])
    }
}

/// Refuses what is no name of a region, such as the `US` that s3cmd begins with, before s3s does, which has another error for it.
/// A name that is one is looked at when the signature has been verified.
pub(super) fn check_region(uri: &Uri, headers: &HeaderMap, expected: &str) -> S3Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_is_no_name_is_told_the_right_one() {
        let refused = |uri: &str, authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            let checked = check_region(&uri.parse().unwrap(), &headers, "us-east-1");
            checked.err().map(|error| error.code().as_str().to_owned())
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

//! On whose behalf a service asks: `aws:SourceArn`.
//!
//! It comes in a header of the request. Only an identity that the configuration names as a service is believed, and only under its
//! signature; of anybody else the header is refused, since it would be passed over in silence.

use holdfast_wire::sigv4::Authorization;
use http::{header, request::Parts};

use super::Identity;
use crate::{code::Code, error::ApiError, names::is_account, wire::Violations};

const HEADER: &str = "x-amz-source-arn";
/// Lengths of the API's model, in characters.
const CHARS_MIN: usize = 20;
const CHARS_MAX: usize = 512;
const PATTERN: &str = "^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$";

/// Checks the ARN of a resource on whose behalf requests are made.
pub(crate) fn check_source_arn(violations: &mut Violations, arn: &str, member: &str) {
    violations.length(arn, member, CHARS_MIN, CHARS_MAX);
    let lower = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let holds = match parts.as_slice() {
        ["arn", partition, service, region, account, rest] => {
            partition.starts_with("aws")
                && lower(partition)
                && !service.is_empty()
                && lower(service)
                && lower(region)
                && is_account(account)
                && !rest.is_empty()
                && !rest.contains(['\n', '\r'])
        }
        _ => false,
    };
    violations.pattern(arn, member, holds, PATTERN);
}

/// What an authenticated request says.
///
/// # Errors
/// [`ApiError`] if it says what it may not.
pub(crate) fn source_arn<'a>(parts: &'a Parts, identity: &Identity) -> Result<Option<&'a str>, ApiError> {
    let mut values = parts.headers.get_all(HEADER).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let incomplete = |why: &str| ApiError::new(Code::IncompleteSignature, format!("{HEADER} {why}"));
    let (Ok(arn), None) = (first.to_str(), values.next()) else {
        return Err(incomplete("is there twice, or is not text"));
    };
    let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let signed = authorization.and_then(|value| Authorization::parse(value).ok());
    if !signed.is_some_and(|authorization| authorization.signed_headers.contains(&HEADER)) {
        return Err(incomplete("must be among the signed headers"));
    }
    if identity.service.is_none() {
        let message = format!("User: {} is no service, and only a service says on whose behalf it asks", identity.arn);
        return Err(ApiError::new(Code::AccessDenied, message));
    }
    let mut violations = Violations::default();
    check_source_arn(&mut violations, arn, HEADER);
    violations.finish()?;
    Ok(Some(arn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |arn: &str| {
            let mut violations = Violations::default();
            check_source_arn(&mut violations, arn, "sourceArn");
            violations.finish().is_ok()
        };
        for good in ["arn:aws:s3:us-east-1:111122223333:bucket/b", "arn:aws-cn:iam::111122223333:role/a b:c"] {
            assert!(check(good), "{good}");
        }
        let long = format!("arn:aws:s3::111122223333:{}", "b".repeat(CHARS_MAX));
        for bad in [
            "",
            "arn:aws:s3:::bucket-of-nobody",
            "arn:aws:s3:us-east-1:111122223333:",
            "arn:aws:S3:us-east-1:111122223333:b",
            "arn:aws::us-east-1:111122223333:bucket",
            "urn:aws:s3:us-east-1:111122223333:bucket",
            long.as_str(),
        ] {
            assert!(!check(bad), "{bad}");
        }
    }
}

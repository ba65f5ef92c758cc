//! Headers whose values ask for something: what is so anyway is taken, what is not kept is refused as S3 refuses it.

use http::{HeaderMap, Method};

use super::operations::Unkept;
use crate::error::{Error, Result, invalid_argument, invalid_request, not_implemented};

/// What is so anyway: a bucket and all in it are its owner's.
const OWNERS_ACLS: &[&[u8]] = &[b"private", b"bucket-owner-full-control", b"bucket-owner-read"];

/// Headers with the only values that are kept.
const KEPT: &[(&str, &[&[u8]])] = &[
    ("x-amz-bucket-namespace", &[b"global"]),
    ("x-amz-bucket-object-lock-enabled", &[b"false", b"False"]),
    ("x-amz-object-annotation-directive", &[b"COPY", b"EXCLUDE"]),
    ("x-amz-object-ownership", &[b"BucketOwnerEnforced"]),
    ("x-amz-request-payer", &[b"requester"]),
];

/// Algorithms of checksums that are kept.
const ALGORITHMS: &[&[u8]] = &[b"CRC32", b"CRC32C", b"CRC64NVME", b"SHA1", b"SHA256"];
/// Algorithms that S3 has besides.
const UNKEPT_ALGORITHMS: &[&[u8]] = &[b"MD5", b"SHA512", b"XXHASH128", b"XXHASH3", b"XXHASH64"];

const NOT_KEPT: &str = "A header you provided implies functionality that is not implemented";

/// Refuses values that promise what is not kept here.
///
/// # Errors
/// As a bucket of S3's answers that has no ACLs, no object lock, one storage class.
pub(super) fn check(headers: &HeaderMap) -> Result<()> {
    let named = |prefix: &str| headers.keys().any(|name| name.as_str().starts_with(prefix));
    let other =
        |name: &str, kept: &[&[u8]]| headers.get_all(name).iter().any(|value| !kept.contains(&value.as_bytes()));
    if other("x-amz-acl", OWNERS_ACLS) || named("x-amz-grant-") {
        return Err(Error::AclsNotSupported);
    }
    if named("x-amz-object-lock-") {
        return Err(invalid_request("Bucket is missing Object Lock Configuration"));
    }
    if other("x-amz-storage-class", &[b"STANDARD"]) {
        return Err(Error::InvalidStorageClass);
    }
    if other("x-amz-security-token", &[b""]) {
        return Err(Error::InvalidToken);
    }
    for name in ["x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"] {
        for algorithm in headers.get_all(name) {
            check_algorithm(algorithm.as_bytes())?;
        }
    }
    let customer = "x-amz-server-side-encryption-customer-";
    if headers.iter().any(|(name, value)| name.as_str().starts_with(customer) && value.is_empty()) {
        return Err(invalid_argument("A header of server side encryption with the customer's key has no value"));
    }
    if KEPT.iter().any(|(name, values)| other(name, values)) {
        return Err(not_implemented(NOT_KEPT));
    }
    Ok(())
}

fn check_algorithm(algorithm: &[u8]) -> Result<()> {
    let algorithm = algorithm.to_ascii_uppercase();
    if UNKEPT_ALGORITHMS.contains(&algorithm.as_slice()) {
        return Err(not_implemented(
            "The checksum algorithm is not supported; CRC32, CRC32C, CRC64NVME, SHA1 and SHA256 are",
        ));
    }
    if !ALGORITHMS.contains(&algorithm.as_slice()) {
        return Err(invalid_request(
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: \
             [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        ));
    }
    Ok(())
}

/// How a request that runs as no operation is refused.
pub(super) fn refusal(unkept: Unkept, method: &Method) -> Error {
    match unkept {
        Unkept::Operation
            if [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE].contains(method) =>
        {
            not_implemented("This operation is not supported")
        }
        Unkept::Operation => Error::MethodNotAllowed,
        Unkept::Query("versionId") => invalid_argument("This operation does not accept a version-id."),
        Unkept::Query(_) => not_implemented("A query parameter of this request is not supported for the operation"),
        Unkept::Header(name) => match name.strip_prefix("x-amz-server-side-encryption") {
            Some("" | "-aws-kms-key-id" | "-bucket-key-enabled" | "-context") => {
                invalid_argument(format!("{name} header is not supported for this operation."))
            }
            _ => not_implemented(NOT_KEPT),
        },
    }
}

/// The longest that a presigned URL lives: a week.
const PRESIGNED_SECS_MAX: i64 = 7 * 24 * 60 * 60;

/// Checks how long a presigned URL lives, before s3s, which has other errors for it.
///
/// # Errors
/// As S3's for `X-Amz-Expires`; signature version 2 has no bound there and gets the same here.
pub(super) fn check_lifetime(query: &str, now_secs: i64) -> Result<()> {
    let malformed = |message| Err(Error::AuthorizationQuery(message));
    let value = |name: &str| {
        form_urlencoded::parse(query.as_bytes()).find_map(|(known, value)| (known == name).then(|| value.into_owned()))
    };
    if value("X-Amz-Signature").is_some() {
        return match value("X-Amz-Expires").map(|secs| secs.parse::<i64>()) {
            Some(Ok(secs)) if secs < 0 => malformed("X-Amz-Expires must be non-negative"),
            Some(Ok(secs)) if secs > PRESIGNED_SECS_MAX => malformed(
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less \
                 than 604800 seconds",
            ),
            Some(Ok(_)) => Ok(()),
            Some(Err(_)) => malformed("X-Amz-Expires should be a number"),
            None => malformed("Query-string authentication version 4 requires the X-Amz-Expires parameter"),
        };
    }
    let expires = value("Signature").and(value("Expires")).and_then(|at| at.parse::<i64>().ok());
    if expires.is_some_and(|at| at.saturating_sub(now_secs) > PRESIGNED_SECS_MAX) {
        return malformed("A presigned URL must expire within a week");
    }
    Ok(())
}

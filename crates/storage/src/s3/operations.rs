//! The operations of S3 that are kept here, and the names that S3 gives a meaning to.
//!
//! A request runs as the one operation whose row it matches in every mark. What S3 gives a meaning to and the row does not
//! have is refused, so that a request for something else never runs as the plain operation beneath it. Source of the names: the
//! S3 model of botocore 1.44.8; `tests/s3/test_model.py` drives every operation and member of the model that is installed.

use holdfast_core::Action;
use http::Method;

/// What a path names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Service,
    Bucket,
    Object,
}

/// One operation that is kept.
#[derive(Debug)]
pub(super) struct Operation {
    pub name: &'static str,
    /// What a permit for it is for.
    pub action: Action,
    pub method: Method,
    pub place: Place,
    /// Query names of [`MARKS`] that the request has: these and no others.
    pub marks: &'static [&'static str],
    /// Whether it has the header `x-amz-copy-source`.
    pub copies: bool,
    /// Headers of [`HEADERS`] that it may have besides [`EVERYWHERE`].
    pub headers: &'static [&'static [&'static str]],
    /// Elements that its body of XML may have; none: its body is not XML.
    pub elements: &'static [&'static str],
}

/// Query names that make another operation of a request.
const MARKS: &[&str] = &[
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "annotation",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "list-type",
    "location",
    "logging",
    "metadataAnnotationTable",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "select-type",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versioning",
    "versions",
    "website",
];

/// Query names that say what a change is about: on an operation that does not have them, the change would be another one.
const NARROWING: &[&str] = &["annotationName", "id", "partNumber", "versionId"];

const CHECKSUMS: &[&str] = &[
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
];
const CUSTOMER_KEY: &[&str] = &[
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-md5",
];
const SOURCE: &[&str] = &[
    "x-amz-copy-source",
    "x-amz-copy-source-server-side-encryption-customer-algorithm",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key-md5",
    "x-amz-source-expected-bucket-owner",
];
/// Of a new object. `headers.rs` says which values are kept.
const OBJECT: &[&str] = &[
    "x-amz-acl",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write-acp",
    "x-amz-object-lock-event-hold",
    "x-amz-object-lock-event-hold-duration-days",
    "x-amz-object-lock-event-hold-duration-years",
    "x-amz-object-lock-legal-hold",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-bucket-key-enabled",
    "x-amz-server-side-encryption-context",
    "x-amz-storage-class",
    "x-amz-tagging",
    "x-amz-website-redirect-location",
];
/// Without a meaning where there is neither MFA nor a lock.
const DELETE: &[&str] = &["x-amz-bypass-governance-retention", "x-amz-mfa"];

/// Headers that every operation may have; SDKs name the algorithm where there is no body, too.
const EVERYWHERE: &[&str] = &["x-amz-expected-bucket-owner", "x-amz-request-payer", "x-amz-sdk-checksum-algorithm"];

/// Further headers that S3 gives a meaning to, on some operation; with those above, all of them.
const HEADERS: &[&str] = &[
    "content-range",
    "x-amz-bucket-namespace",
    "x-amz-bucket-object-lock-enabled",
    "x-amz-bucket-object-lock-token",
    "x-amz-checksum-algorithm",
    "x-amz-checksum-md5",
    "x-amz-checksum-sha512",
    "x-amz-checksum-type",
    "x-amz-checksum-xxhash128",
    "x-amz-checksum-xxhash3",
    "x-amz-checksum-xxhash64",
    "x-amz-client-token",
    "x-amz-confirm-remove-self-bucket-access",
    "x-amz-copy-source-range",
    "x-amz-create-session-mode",
    "x-amz-grant-write",
    "x-amz-metadata-directive",
    "x-amz-mp-object-size",
    "x-amz-object-annotation-directive",
    "x-amz-object-if-match",
    "x-amz-object-ownership",
    "x-amz-rename-source",
    "x-amz-rename-source-if-match",
    "x-amz-rename-source-if-modified-since",
    "x-amz-rename-source-if-none-match",
    "x-amz-rename-source-if-unmodified-since",
    "x-amz-skip-destination-validation",
    "x-amz-tagging-directive",
    "x-amz-transition-default-minimum-object-size",
    "x-amz-write-offset-bytes",
];

const fn row(
    name: &'static str,
    action: Action,
    method: Method,
    place: Place,
    marks: &'static [&'static str],
) -> Operation {
    Operation { name, action, method, place, marks, copies: false, headers: &[], elements: &[] }
}

impl Operation {
    const fn with(mut self, headers: &'static [&'static [&'static str]]) -> Self {
        self.headers = headers;
        self
    }

    const fn copying(mut self) -> Self {
        self.copies = true;
        self
    }

    const fn xml(mut self, elements: &'static [&'static str]) -> Self {
        self.elements = elements;
        self
    }
}

const CREATE_BUCKET: &[&str] = &[
    "CreateBucketConfiguration",
    "LocationConstraint",
    "Location",
    "Bucket",
    "DataRedundancy",
    "Type",
    "Name",
    "Tags",
    "Tag",
    "Key",
    "Value",
];
const ENCRYPTION: &[&str] = &[
    "ServerSideEncryptionConfiguration",
    "Rule",
    "ApplyServerSideEncryptionByDefault",
    "SSEAlgorithm",
    "KMSMasterKeyID",
    "BucketKeyEnabled",
    "BlockedEncryptionTypes",
    "EncryptionType",
];
const TAGGING: &[&str] = &["Tagging", "TagSet", "Tag", "Key", "Value"];
const DELETE_OBJECTS: &[&str] = &["Delete", "Object", "Key", "VersionId", "ETag", "LastModifiedTime", "Size", "Quiet"];
const COMPLETE: &[&str] = &[
    "CompleteMultipartUpload",
    "Part",
    "PartNumber",
    "ETag",
    "ChecksumCRC32",
    "ChecksumCRC32C",
    "ChecksumCRC64NVME",
    "ChecksumSHA1",
    "ChecksumSHA256",
];

/// Every operation that is kept.
static OPERATIONS: &[Operation] = &[
    row("ListBuckets", Action::BucketList, Method::GET, Place::Service, &[]),
    row("CreateBucket", Action::BucketCreate, Method::PUT, Place::Bucket, &[]).xml(CREATE_BUCKET).with(&[
        CHECKSUMS,
        &["x-amz-acl", "x-amz-grant-full-control", "x-amz-grant-read", "x-amz-grant-read-acp", "x-amz-grant-write"],
        &["x-amz-grant-write-acp", "x-amz-bucket-object-lock-enabled", "x-amz-object-ownership"],
        &["x-amz-bucket-namespace"],
    ]),
    row("DeleteBucket", Action::BucketDelete, Method::DELETE, Place::Bucket, &[]),
    row("HeadBucket", Action::BucketRead, Method::HEAD, Place::Bucket, &[]),
    row("ListObjects", Action::ObjectList, Method::GET, Place::Bucket, &[]),
    row("ListObjectsV2", Action::ObjectList, Method::GET, Place::Bucket, &["list-type"]),
    row("ListObjectVersions", Action::ObjectList, Method::GET, Place::Bucket, &["versions"]),
    row("ListMultipartUploads", Action::ObjectList, Method::GET, Place::Bucket, &["uploads"]),
    row("GetBucketLocation", Action::BucketRead, Method::GET, Place::Bucket, &["location"]),
    row("GetBucketVersioning", Action::BucketRead, Method::GET, Place::Bucket, &["versioning"]),
    row("PutBucketVersioning", Action::BucketUpdate, Method::PUT, Place::Bucket, &["versioning"])
        .xml(&["VersioningConfiguration", "Status", "MfaDelete"])
        .with(&[CHECKSUMS, &["x-amz-mfa"]]),
    row("GetBucketEncryption", Action::BucketRead, Method::GET, Place::Bucket, &["encryption"]),
    row("PutBucketEncryption", Action::BucketUpdate, Method::PUT, Place::Bucket, &["encryption"])
        .xml(ENCRYPTION)
        .with(&[CHECKSUMS]),
    row("DeleteBucketEncryption", Action::BucketUpdate, Method::DELETE, Place::Bucket, &["encryption"]),
    row("GetBucketTagging", Action::BucketRead, Method::GET, Place::Bucket, &["tagging"]),
    row("PutBucketTagging", Action::BucketUpdate, Method::PUT, Place::Bucket, &["tagging"])
        .xml(TAGGING)
        .with(&[CHECKSUMS]),
    row("DeleteBucketTagging", Action::BucketUpdate, Method::DELETE, Place::Bucket, &["tagging"]),
    row("DeleteObjects", Action::ObjectDelete, Method::POST, Place::Bucket, &["delete"])
        .xml(DELETE_OBJECTS)
        .with(&[CHECKSUMS, DELETE]),
    row("GetObject", Action::ObjectRead, Method::GET, Place::Object, &[]).with(&[CUSTOMER_KEY]),
    row("HeadObject", Action::ObjectRead, Method::HEAD, Place::Object, &[]).with(&[CUSTOMER_KEY]),
    row("GetObjectAttributes", Action::ObjectRead, Method::GET, Place::Object, &["attributes"]).with(&[CUSTOMER_KEY]),
    row("GetObjectTagging", Action::ObjectRead, Method::GET, Place::Object, &["tagging"]),
    row("PutObjectTagging", Action::ObjectUpdate, Method::PUT, Place::Object, &["tagging"])
        .xml(TAGGING)
        .with(&[CHECKSUMS]),
    row("DeleteObjectTagging", Action::ObjectUpdate, Method::DELETE, Place::Object, &["tagging"]),
    row("PutObject", Action::ObjectWrite, Method::PUT, Place::Object, &[]).with(&[CHECKSUMS, CUSTOMER_KEY, OBJECT]),
    row("CopyObject", Action::ObjectWrite, Method::PUT, Place::Object, &[]).copying().with(&[
        CUSTOMER_KEY,
        SOURCE,
        OBJECT,
        &["x-amz-checksum-algorithm", "x-amz-metadata-directive", "x-amz-tagging-directive"],
        &["x-amz-object-annotation-directive"],
    ]),
    row("DeleteObject", Action::ObjectDelete, Method::DELETE, Place::Object, &[]).with(&[DELETE]),
    row("UpdateObjectEncryption", Action::ObjectUpdate, Method::PUT, Place::Object, &["encryption"])
        .xml(&["ObjectEncryption", "SSE-KMS", "SSEKMS", "KMSKeyArn", "BucketKeyEnabled"])
        .with(&[CHECKSUMS]),
    row("CreateMultipartUpload", Action::ObjectWrite, Method::POST, Place::Object, &["uploads"]).with(&[
        CUSTOMER_KEY,
        OBJECT,
        &["x-amz-checksum-algorithm", "x-amz-checksum-type"],
    ]),
    row("UploadPart", Action::ObjectWrite, Method::PUT, Place::Object, &["uploadId"]).with(&[CHECKSUMS, CUSTOMER_KEY]),
    row("UploadPartCopy", Action::ObjectWrite, Method::PUT, Place::Object, &["uploadId"]).copying().with(&[
        CUSTOMER_KEY,
        SOURCE,
        &["x-amz-copy-source-range"],
    ]),
    row("CompleteMultipartUpload", Action::ObjectWrite, Method::POST, Place::Object, &["uploadId"])
        .xml(COMPLETE)
        .with(&[CHECKSUMS, CUSTOMER_KEY, &["x-amz-checksum-type", "x-amz-mp-object-size"]]),
    row("AbortMultipartUpload", Action::ObjectDelete, Method::DELETE, Place::Object, &["uploadId"]),
    row("ListParts", Action::ObjectList, Method::GET, Place::Object, &["uploadId"]).with(&[CUSTOMER_KEY]),
];

/// Query names of [`NARROWING`] that an operation has.
fn narrowed_by(operation: &str) -> &'static [&'static str] {
    match operation {
        "UploadPart" | "UploadPartCopy" => &["partNumber"],
        "DeleteObject" | "DeleteObjectTagging" | "PutObjectTagging" | "UpdateObjectEncryption" => &["versionId"],
        _ => &[],
    }
}

/// Why a request runs as no operation.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Unkept {
    /// An operation that is not kept, whether S3 has it or not.
    Operation,
    /// A query name that this operation does not have.
    Query(&'static str),
    /// A header that this operation does not have.
    Header(String),
}

/// The operation that a request asks for.
///
/// # Errors
/// [`Unkept`]: it asks for something that is not kept.
pub(super) fn resolve(
    method: &Method,
    place: Place,
    query: &[(String, String)],
    headers: &http::HeaderMap,
) -> Result<&'static Operation, Unkept> {
    let has = |name: &str| query.iter().any(|(known, _)| known == name);
    let copies = headers.contains_key("x-amz-copy-source");
    let fits = |operation: &&Operation| {
        operation.method == *method
            && operation.place == place
            && (operation.copies == copies || *method != Method::PUT)
            && MARKS.iter().all(|mark| has(mark) == operation.marks.contains(mark))
    };
    let operation = OPERATIONS.iter().find(fits).ok_or(Unkept::Operation)?;
    let reads = *method == Method::GET || *method == Method::HEAD;
    let narrowed = narrowed_by(operation.name);
    if let Some(name) = NARROWING.iter().find(|name| !reads && has(name) && !narrowed.contains(name)) {
        return Err(Unkept::Query(name));
    }
    if narrowed.contains(&"partNumber") && !has("partNumber") {
        return Err(Unkept::Operation);
    }
    let known = |name: &str| operation.headers.iter().any(|group| group.contains(&name)) || EVERYWHERE.contains(&name);
    let unkept = |name: &&str| !known(name) && has_meaning(name);
    match headers.keys().map(http::HeaderName::as_str).find(unkept) {
        Some(name) => Err(Unkept::Header(name.to_owned())),
        None => Ok(operation),
    }
}

/// Whether S3 gives a header a meaning, on some operation. Of preconditions `ops::conditions` knows.
fn has_meaning(name: &str) -> bool {
    // Families that S3 adds to: a new member asks for something that nobody here has heard of.
    name.starts_with("x-amz-server-side-encryption")
        || name.starts_with("x-amz-object-lock-")
        || name.starts_with("x-amz-grant-")
        || name.starts_with("x-amz-checksum-") && name != "x-amz-checksum-mode"
        || name.starts_with("x-amz-fwd-")
        || [HEADERS, SOURCE, OBJECT, CUSTOMER_KEY, DELETE, CHECKSUMS].iter().any(|group| group.contains(&name))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn resolved(
        method: Method,
        place: Place,
        query: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<&'static str, Unkept> {
        let query: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect();
        resolve(&method, place, &query, &headers).map(|operation| operation.name)
    }

    #[test]
    fn a_request_runs_as_what_it_asks_for_or_not_at_all() {
        use Place::{Bucket, Object, Service};
        let unkept = Err(Unkept::Operation);
        let source = ("x-amz-copy-source", "/b/k");
        for (method, place, query, headers, expected) in [
            (Method::GET, Service, "", vec![], Ok("ListBuckets")),
            (Method::GET, Bucket, "list-type=2&prefix=a", vec![], Ok("ListObjectsV2")),
            (Method::GET, Bucket, "x-id=ListObjects&foo=bar", vec![], Ok("ListObjects")),
            (Method::GET, Object, "versionId=1&partNumber=2", vec![], Ok("GetObject")),
            (Method::PUT, Object, "x-id=PutObject", vec![], Ok("PutObject")),
            (Method::PUT, Object, "", vec![source], Ok("CopyObject")),
            (Method::PUT, Object, "uploadId=u&partNumber=1", vec![source], Ok("UploadPartCopy")),
            (Method::PUT, Object, "uploadId=u", vec![], unkept),
            (Method::PUT, Object, "partNumber=1", vec![], Err(Unkept::Query("partNumber"))),
            (Method::PUT, Object, "versionId=1", vec![], Err(Unkept::Query("versionId"))),
            (Method::PUT, Object, "annotation&annotationName=n", vec![], Err(Unkept::Operation)),
            (Method::DELETE, Object, "annotation&annotationName=n", vec![], Err(Unkept::Operation)),
            (Method::DELETE, Bucket, "metadataConfiguration", vec![], Err(Unkept::Operation)),
            (Method::PUT, Object, "renameObject", vec![], Err(Unkept::Operation)),
            (Method::PUT, Object, "tagging&acl", vec![], Err(Unkept::Operation)),
            (Method::POST, Object, "restore", vec![], Err(Unkept::Operation)),
            (Method::PATCH, Object, "", vec![], Err(Unkept::Operation)),
            (Method::PUT, Object, "", vec![("x-amz-foo", "1"), ("x-amz-user-agent", "a")], Ok("PutObject")),
            (
                Method::GET,
                Object,
                "",
                vec![("x-amz-checksum-mode", "ENABLED"), ("if-none-match", "*")],
                Ok("GetObject"),
            ),
        ] {
            assert_eq!(resolved(method, place, query, &headers), expected, "{query} {headers:?}");
        }
        for header in [
            "x-amz-write-offset-bytes",
            "content-range",
            "x-amz-checksum-sha512",
            "x-amz-rename-source",
            "x-amz-server-side-encryption-of-tomorrow",
            "x-amz-metadata-directive",
        ] {
            let refused = resolved(Method::PUT, Place::Object, "", &[(header, "1")]);
            assert_eq!(refused, Err(Unkept::Header(header.to_owned())));
        }
    }

    #[test]
    fn no_two_rows_are_met_by_one_request() {
        for (at, one) in OPERATIONS.iter().enumerate() {
            let twin = OPERATIONS[at + 1..].iter().find(|other| {
                (&other.method, other.place, other.marks, other.copies)
                    == (&one.method, one.place, one.marks, one.copies)
            });
            assert!(twin.is_none(), "{} and {}", one.name, twin.map_or("", |twin| twin.name));
        }
    }
}

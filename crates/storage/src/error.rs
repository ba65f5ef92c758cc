//! Why a request is not carried out, and the one map of that into S3's code, status and sentence.
//!
//! Revoked is 4xx, which SDKs do not retry; unavailable is 503, which they do. The crate s3s has an error of its own; between it and
//! this one stands [`crate::call::Arrived::refuse`], and nothing else.

use std::borrow::Cow;

use holdfast_core::{AuditError, AuditOutcome, KekError, PermitMismatch, StoreError};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use s3s::{Body, S3Error};

use crate::s3::xml;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
/// A sentence for the caller.
pub(crate) type Text = Cow<'static, str>;

/// A delete marker, as an answer tells of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Marker {
    pub version: String,
    /// As HTTP has dates.
    pub modified: Option<String>,
}

/// Why a request is not carried out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}: {}", self.told().code, self.told().message)]
pub(crate) enum Error {
    AclsNotSupported,
    /// The log does not take the event of the request.
    AuditUnavailable,
    AuthorizationQuery(&'static str),
    /// A signature for another region or service, in the header or in the query, and the region that is right.
    AuthorizationScope {
        presigned: bool,
        what: String,
        region: Option<String>,
    },
    BadDigest(Text),
    BucketExists,
    BucketNotEmpty,
    BucketOwnedByYou,
    /// Somebody touched the key since the upload began.
    ConditionalConflict {
        condition: &'static str,
        key: String,
    },
    /// Data, or a record, is not what was written.
    Damaged,
    /// The version named is a delete marker.
    DeleteMarker(Marker),
    /// The caller may not. It is told no more than this.
    Denied,
    /// The caller may not, for a reason that is told.
    DeniedBecause(Text),
    EncryptionNotFound,
    /// A row of the index that this service did not write.
    Forged(String),
    HeadersNotSigned(String),
    IllegalLocation(String),
    IncompleteBody(&'static str),
    /// A fault of this service; the cause is in its own log.
    Internal(&'static str),
    InvalidArgument {
        message: Text,
        name: Option<&'static str>,
        value: Option<String>,
    },
    InvalidDigest,
    InvalidPart(&'static str),
    InvalidPartOrder,
    InvalidPolicyDocument(String),
    InvalidRange(&'static str),
    InvalidRequest(Text),
    InvalidStorageClass,
    InvalidTag(&'static str),
    InvalidToken,
    InvalidUri,
    /// The key service says no, or nothing.
    Kek(KekError),
    MalformedPost,
    MalformedTrailer,
    MalformedXml(&'static str),
    MetadataTooLarge,
    MethodNotAllowed,
    NoRoom,
    NoSuchBucket,
    NoSuchKey {
        key: String,
        marker: Option<Marker>,
    },
    NoSuchPartNumber,
    NoSuchTagSet,
    NoSuchUpload(String),
    NoSuchVersion {
        key: String,
        version: String,
    },
    /// A header, where one is to blame, and what is wrong with it.
    NotImplemented {
        message: Text,
        header: Option<&'static str>,
        more: Option<&'static str>,
    },
    /// With what the client needs to go on with its copy.
    NotModified(Box<HeaderMap>),
    PreconditionFailed(String),
    /// What s3s says of a request that it cannot read, or whose signature does not hold.
    Protocol {
        code: String,
        status: StatusCode,
        message: String,
    },
    RequestTimeTooSkewed,
    RequestTimeout,
    /// Of a chunk of a body.
    SignatureDoesNotMatch,
    /// The index or the blobs.
    Store(StoreError),
    TooLarge,
    TooManyTags(usize),
    TooSmall,
    UserKeyMissing,
    XmlTooLong,
}

/// An error as S3 tells it.
pub(crate) struct Told<'a> {
    pub code: Cow<'static, str>,
    pub status: StatusCode,
    pub message: Cow<'a, str>,
    /// Members of the body behind the message.
    pub members: Vec<(&'static str, Cow<'a, str>)>,
    pub marker: Option<&'a Marker>,
}

impl Error {
    pub(crate) fn told(&self) -> Told<'_> {
        if let Self::Protocol { code, status, message } = self {
            let code = code.clone().into();
            return Told { code, status: *status, message: message.into(), members: Vec::new(), marker: None };
        }
        let (code, status, message) = self.mapped();
        Told { code: code.into(), status, message, members: self.members(), marker: self.marker() }
    }

    /// The code, as the log has it.
    pub(crate) fn code(&self) -> &'static str {
        self.mapped().0
    }

    /// The map into S3's errors: code, status and sentence, all of them.
    fn mapped(&self) -> (&'static str, StatusCode, Cow<'_, str>) {
        let bad = StatusCode::BAD_REQUEST;
        match self {
            Self::AclsNotSupported => {
                ("AccessControlListNotSupported", bad, "The bucket does not allow ACLs".into())
            }
            Self::AuditUnavailable => (
                "ServiceUnavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "The audit log cannot be written; try again".into(),
            ),
            Self::AuthorizationQuery(message) => ("AuthorizationQueryParametersError", bad, (*message).into()),
            Self::AuthorizationScope { presigned: true, what, .. } => (
                "AuthorizationQueryParametersError",
                bad,
                format!("Error parsing the X-Amz-Credential parameter; {what}").into(),
            ),
            Self::AuthorizationScope { presigned: false, what, .. } => (
                "AuthorizationHeaderMalformed",
                bad,
                format!("The authorization header is malformed; {what}").into(),
            ),
            Self::BadDigest(message) => ("BadDigest", bad, message.as_ref().into()),
            Self::BucketExists => {
                ("BucketAlreadyExists", StatusCode::CONFLICT, "The requested bucket name is not available".into())
            }
            Self::BucketNotEmpty => {
                ("BucketNotEmpty", StatusCode::CONFLICT, "The bucket you tried to delete is not empty".into())
            }
            Self::BucketOwnedByYou => {
                ("BucketAlreadyOwnedByYou", StatusCode::CONFLICT, "You already own this bucket".into())
            }
            Self::ConditionalConflict { .. } => (
                "ConditionalRequestConflict",
                StatusCode::CONFLICT,
                "The conditional request cannot succeed due to a conflicting operation against this resource.".into(),
            ),
            Self::Damaged | Self::Forged(_) => (
                "InternalError",
                StatusCode::INTERNAL_SERVER_ERROR,
                "The stored data failed its integrity check".into(),
            ),
            Self::DeleteMarker(_) | Self::MethodNotAllowed => (
                "MethodNotAllowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "The specified method is not allowed against this resource.".into(),
            ),
            Self::Denied => ("AccessDenied", StatusCode::FORBIDDEN, "Access Denied".into()),
            Self::DeniedBecause(message) => ("AccessDenied", StatusCode::FORBIDDEN, message.as_ref().into()),
            Self::EncryptionNotFound => (
                "ServerSideEncryptionConfigurationNotFoundError",
                bad,
                "The server side encryption configuration was not found".into(),
            ),
            Self::HeadersNotSigned(_) => (
                "AccessDenied",
                StatusCode::FORBIDDEN,
                "There were headers present in the request which were not signed".into(),
            ),
            Self::IllegalLocation(constraint) => (
                "IllegalLocationConstraintException",
                bad,
                format!(
                    "The {constraint} location constraint is incompatible for the region specific endpoint this request \
                     was sent to."
                )
                .into(),
            ),
            Self::IncompleteBody(message) => ("IncompleteBody", bad, (*message).into()),
            Self::Internal(message) => ("InternalError", StatusCode::INTERNAL_SERVER_ERROR, (*message).into()),
            Self::InvalidArgument { message, .. } => ("InvalidArgument", bad, message.as_ref().into()),
            Self::InvalidDigest => ("InvalidDigest", bad, "The Content-MD5 you specified is not valid".into()),
            Self::InvalidPart(message) => ("InvalidPart", bad, (*message).into()),
            Self::InvalidPartOrder => {
                ("InvalidPartOrder", bad, "The list of parts was not in ascending order".into())
            }
            Self::InvalidPolicyDocument(message) => ("InvalidPolicyDocument", bad, message.into()),
            Self::InvalidRange(message) => ("InvalidRange", StatusCode::RANGE_NOT_SATISFIABLE, (*message).into()),
            Self::InvalidRequest(message) => ("InvalidRequest", bad, message.as_ref().into()),
            Self::InvalidStorageClass => {
                ("InvalidStorageClass", bad, "The storage class you specified is not valid".into())
            }
            Self::InvalidTag(message) => ("InvalidTag", bad, (*message).into()),
            Self::InvalidToken => ("InvalidToken", bad, "The provided token is malformed or otherwise invalid.".into()),
            Self::InvalidUri => ("InvalidURI", bad, "Couldn't parse the specified URI".into()),
            Self::Kek(error) => told_of_kek(error),
            Self::MalformedPost => {
                ("MalformedPOSTRequest", bad, "The body of your POST request is not well-formed".into())
            }
            Self::MalformedTrailer => (
                "MalformedTrailerError",
                bad,
                "The request contained trailing data that was not well-formed or did not conform to our published \
                 schema."
                    .into(),
            ),
            Self::MalformedXml(message) => ("MalformedXML", bad, (*message).into()),
            Self::MetadataTooLarge => (
                "MetadataTooLarge",
                bad,
                "Your metadata headers exceed the maximum allowed metadata size".into(),
            ),
            Self::NoRoom => (
                "InsufficientStorage",
                StatusCode::INSUFFICIENT_STORAGE,
                "The storage service has no room left for new data; delete something, or ask its operator".into(),
            ),
            Self::NoSuchBucket => {
                ("NoSuchBucket", StatusCode::NOT_FOUND, "The specified bucket does not exist".into())
            }
            Self::NoSuchKey { .. } => {
                ("NoSuchKey", StatusCode::NOT_FOUND, "The specified key does not exist.".into())
            }
            Self::NoSuchPartNumber => (
                "InvalidPartNumber",
                StatusCode::RANGE_NOT_SATISFIABLE,
                "The requested partnumber is not satisfiable".into(),
            ),
            Self::NoSuchTagSet => (
                "NoSuchTagSet",
                StatusCode::NOT_FOUND,
                "There is no tag set associated with the bucket.".into(),
            ),
            Self::NoSuchUpload(_) => (
                "NoSuchUpload",
                StatusCode::NOT_FOUND,
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted \
                 or completed."
                    .into(),
            ),
            Self::NoSuchVersion { .. } => {
                ("NoSuchVersion", StatusCode::NOT_FOUND, "The specified version does not exist.".into())
            }
            Self::NotImplemented { message, .. } => {
                ("NotImplemented", StatusCode::NOT_IMPLEMENTED, message.as_ref().into())
            }
            Self::NotModified(_) => ("NotModified", StatusCode::NOT_MODIFIED, "Not Modified".into()),
            Self::PreconditionFailed(_) => (
                "PreconditionFailed",
                StatusCode::PRECONDITION_FAILED,
                "At least one of the pre-conditions you specified did not hold".into(),
            ),
            Self::Protocol { code, status, message } => (code_of_s3s(code), *status, message.into()),
            Self::RequestTimeTooSkewed => (
                "RequestTimeTooSkewed",
                StatusCode::FORBIDDEN,
                "The difference between the request time and the current time is too large.".into(),
            ),
            Self::RequestTimeout => (
                "RequestTimeout",
                bad,
                "Your socket connection to the server was not read from or written to within the timeout period.".into(),
            ),
            Self::SignatureDoesNotMatch => (
                "SignatureDoesNotMatch",
                StatusCode::FORBIDDEN,
                "The request signature we calculated does not match the signature you provided. Check your key and signing \
                 method."
                    .into(),
            ),
            Self::Store(error) => told_of_store(error),
            Self::TooLarge => {
                ("EntityTooLarge", bad, "Your proposed upload exceeds the maximum allowed size".into())
            }
            Self::TooManyTags(max) => {
                ("BadRequest", bad, format!("Object tags cannot be greater than {max}").into())
            }
            Self::TooSmall => {
                ("EntityTooSmall", bad, "Your proposed upload is smaller than the minimum allowed size".into())
            }
            Self::UserKeyMissing => ("UserKeyMustBeSpecified", bad, "An object to be deleted has no key".into()),
            Self::XmlTooLong => ("MaxMessageLengthExceeded", bad, "Your request was too big.".into()),
        }
    }

    fn members(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let some = |name, value: &Option<String>| value.as_ref().map(|value| (name, Cow::from(value.clone())));
        match self {
            Self::AuthorizationScope { region, .. } => some("Region", region).into_iter().collect(),
            Self::ConditionalConflict { condition, key } => {
                vec![("Condition", (*condition).into()), ("Key", key.into())]
            }
            Self::DeleteMarker(_) => vec![("ResourceType", "DeleteMarker".into())],
            Self::HeadersNotSigned(names) => vec![("HeadersNotSigned", names.into())],
            Self::InvalidArgument { name, value, .. } => {
                let name = name.map(|name| ("ArgumentName", Cow::from(name)));
                name.into_iter().chain(some("ArgumentValue", value)).collect()
            }
            Self::NoSuchKey { key, .. } => vec![("Key", key.into())],
            Self::NoSuchUpload(upload) => vec![("UploadId", upload.into())],
            Self::NoSuchVersion { key, version } => {
                vec![("Key", key.into()), ("VersionId", version.into())]
            }
            Self::NotImplemented { header, more, .. } => {
                let header = header.map(|header| ("Header", Cow::from(header)));
                header.into_iter().chain(more.map(|more| ("additionalMessage", more.into()))).collect()
            }
            Self::PreconditionFailed(condition) => vec![("Condition", condition.into())],
            _ => Vec::new(),
        }
    }

    fn marker(&self) -> Option<&Marker> {
        match self {
            Self::DeleteMarker(marker) => Some(marker),
            Self::NoSuchKey { marker, .. } => marker.as_ref(),
            _ => None,
        }
    }

    /// How the audit log counts it: whether somebody may not, or something cannot be done.
    pub(crate) fn outcome(&self) -> AuditOutcome {
        match self {
            Self::Denied
            | Self::DeniedBecause(_)
            | Self::HeadersNotSigned(_)
            | Self::RequestTimeTooSkewed
            | Self::SignatureDoesNotMatch
            | Self::InvalidToken
            | Self::AuthorizationQuery(_)
            | Self::AuthorizationScope { .. }
            | Self::Kek(KekError::Denied(_)) => AuditOutcome::Denied,
            Self::Protocol { status, .. } if *status == StatusCode::FORBIDDEN => AuditOutcome::Denied,
            Self::NotModified(_) => AuditOutcome::Allowed,
            _ => AuditOutcome::Failed,
        }
    }

    /// For the audit log: what the caller is told, and what is not for it.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Kek(error) => error.to_string(),
            Self::Store(error) => error.to_string(),
            Self::Forged(row) => format!("the index's row was not written by this service: {row}"),
            other => other.told().message.into_owned(),
        }
    }

    /// The answer.
    pub(crate) fn response(&self, request_id: &str) -> Response<Body> {
        let told = self.told();
        let id: (&str, Cow<'_, str>) = ("RequestId", request_id.into());
        let lines = [("Code", told.code), ("Message", told.message)];
        let body = xml::element("Error", lines.into_iter().chain(told.members).chain([id]));
        let mut answer = Response::new(Body::from(body));
        *answer.status_mut() = told.status;
        let headers = answer.headers_mut();
        match self {
            Self::NotModified(kept) => headers.clone_from(kept),
            _ => drop(headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"))),
        }
        if let Some(marker) = told.marker {
            headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
            let told = [("x-amz-version-id", Some(&marker.version)), ("last-modified", marker.modified.as_ref())];
            for (name, value) in told {
                if let Some(value) = value.and_then(|value| HeaderValue::try_from(value.as_str()).ok()) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
        }
        answer
    }
}

fn told_of_kek(error: &KekError) -> (&'static str, StatusCode, Cow<'_, str>) {
    let bad = StatusCode::BAD_REQUEST;
    match error {
        KekError::Denied(_) => {
            ("AccessDenied", StatusCode::FORBIDDEN, "The storage service may not use the KMS key".into())
        }
        KekError::Disabled(_) => ("KMS.DisabledException", bad, "The KMS key is disabled".into()),
        KekError::NotFound(kek) => ("KMS.NotFoundException", bad, format!("The KMS key {kek} does not exist").into()),
        KekError::InvalidUsage(why) => ("KMS.KMSInvalidKeyUsageException", bad, why.into()),
        KekError::Rejected => {
            ("InternalError", StatusCode::INTERNAL_SERVER_ERROR, "The stored data failed its integrity check".into())
        }
        KekError::Throttled => {
            ("SlowDown", StatusCode::SERVICE_UNAVAILABLE, "The key service is busy; reduce your request rate".into())
        }
        KekError::Unclear(_) => (
            "ServiceUnavailable",
            StatusCode::SERVICE_UNAVAILABLE,
            "The key service gives no clear answer; try again".into(),
        ),
        KekError::Unavailable(_) => (
            "ServiceUnavailable",
            StatusCode::SERVICE_UNAVAILABLE,
            "The key service is not available; try again".into(),
        ),
    }
}

fn told_of_store(error: &StoreError) -> (&'static str, StatusCode, Cow<'static, str>) {
    match error {
        StoreError::Busy => ("SlowDown", StatusCode::SERVICE_UNAVAILABLE, "Reduce your request rate".into()),
        StoreError::Conflict | StoreError::Overtaken => {
            ("OperationAborted", StatusCode::CONFLICT, "A conflicting operation is in progress".into())
        }
        StoreError::Damaged
        | StoreError::Disordered
        | StoreError::Forged { .. }
        | StoreError::Gone { .. }
        | StoreError::NotWhole { .. } => {
            ("InternalError", StatusCode::INTERNAL_SERVER_ERROR, "The stored data failed its integrity check".into())
        }
        StoreError::Failed(_) | StoreError::Unavailable(_) => {
            ("ServiceUnavailable", StatusCode::SERVICE_UNAVAILABLE, "The store is not available; try again".into())
        }
        StoreError::Unrecorded { .. } => (
            "ServiceUnavailable",
            StatusCode::SERVICE_UNAVAILABLE,
            "The audit log cannot be written; nothing is changed without it".into(),
        ),
    }
}

/// Codes that s3s gives of its own. The log has no other words of it than these.
const CODES_OF_S3S: &[&str] = &[
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "BadRequest",
    "EntityTooLarge",
    "IncompleteBody",
    "InternalError",
    "InvalidAccessKeyId",
    "InvalidArgument",
    "InvalidBucketName",
    "InvalidRequest",
    "InvalidURI",
    "KeyTooLongError",
    "MalformedPOSTRequest",
    "MalformedXML",
    "MaxMessageLengthExceeded",
    "MethodNotAllowed",
    "MissingContentLength",
    "NotImplemented",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "XAmzContentSHA256Mismatch",
];

fn code_of_s3s(code: &str) -> &'static str {
    CODES_OF_S3S.iter().find(|known| **known == code).copied().unwrap_or("Other")
}

pub(crate) fn invalid_argument(message: impl Into<Text>) -> Error {
    Error::InvalidArgument { message: message.into(), name: None, value: None }
}

pub(crate) fn invalid_request(message: impl Into<Text>) -> Error {
    Error::InvalidRequest(message.into())
}

pub(crate) fn not_implemented(message: &'static str) -> Error {
    Error::NotImplemented { message: message.into(), header: None, more: None }
}

/// What was stored is not what comes back. The cause stays in the log.
pub(crate) fn damaged(what: &str, name: &str) -> Error {
    tracing::error!(what, name, "stored data is damaged or was tampered with");
    Error::Damaged
}

/// A row of the index was planted, changed, or moved from another name.
fn forged(row: &[u8]) -> Error {
    let row = crate::rows::described(row);
    tracing::error!(row, "a row of the index was not written by this service, and is refused");
    metrics::counter!("holdfast_storage_forged_rows_refused_total").increment(1);
    Error::Forged(row)
}

pub(crate) fn from_kek(error: KekError) -> Error {
    match &error {
        KekError::Rejected => return damaged("a wrapped DEK", "the KEK does not open it"),
        KekError::Unavailable(why) => tracing::warn!(why, "the key service is not available"),
        KekError::Unclear(why) => tracing::warn!(why, "the key service refuses, or its answer is not understood"),
        KekError::Denied(_)
        | KekError::Disabled(_)
        | KekError::NotFound(_)
        | KekError::InvalidUsage(_)
        | KekError::Throttled => {}
    }
    Error::Kek(error)
}

pub(crate) fn from_store(error: StoreError) -> Error {
    match &error {
        StoreError::Damaged | StoreError::Disordered | StoreError::NotWhole { .. } | StoreError::Gone { .. } => {
            return damaged("a blob", "missing");
        }
        StoreError::Forged { row } => return forged(row),
        StoreError::Failed(why) => tracing::error!(why, "the store failed"),
        // Their causes are told by whoever finds them, once, and with the health of the service.
        StoreError::Busy
        | StoreError::Conflict
        | StoreError::Overtaken
        | StoreError::Unavailable(_)
        | StoreError::Unrecorded { .. } => {}
    }
    Error::Store(error)
}

impl From<PermitMismatch> for Error {
    /// A defect of ours, never the caller's fault.
    fn from(mismatch: PermitMismatch) -> Self {
        tracing::error!(%mismatch, "a permit was presented for something else");
        Self::Internal("We encountered an internal error. Please try again.")
    }
}

impl From<AuditError> for Error {
    /// The log has said so itself, once and not for each request.
    fn from(_: AuditError) -> Self {
        Self::AuditUnavailable
    }
}

/// What s3s tells of a stream: chunk signatures and lengths that do not hold.
impl From<S3Error> for Error {
    fn from(error: S3Error) -> Self {
        Self::Protocol {
            code: error.code().as_str().to_owned(),
            status: error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: error.message().unwrap_or_default().to_owned(),
        }
    }
}

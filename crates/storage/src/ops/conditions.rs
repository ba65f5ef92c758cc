//! Preconditions (RFC 9110, section 13) on reading, copying, writing and deleting: which operation has which, as S3 has them for
//! its general purpose buckets, and whether they hold. What an operation does not have is refused, never passed over.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use s3s::dto;

use super::{http_date, timestamp};
use crate::{
    error::{Error, Result},
    record::ObjectRecord,
};

const READS: &[&str] = &["GetObject", "HeadObject"];
const WRITES: &[&str] = &["CompleteMultipartUpload", "CopyObject", "PutObject"];
const COPIES: &[&str] = &["CopyObject", "UploadPartCopy"];

/// Every header that makes a request conditional: as errors spell it, and who has it.
const HEADERS: [(&str, &[&[&str]]); 11] = [
    ("If-Match", &[READS, WRITES, &["DeleteObject"]]),
    ("If-None-Match", &[READS, WRITES]),
    ("If-Modified-Since", &[READS]),
    ("If-Unmodified-Since", &[READS]),
    ("x-amz-copy-source-If-Match", &[COPIES]),
    ("x-amz-copy-source-If-None-Match", &[COPIES]),
    ("x-amz-copy-source-If-Modified-Since", &[COPIES]),
    ("x-amz-copy-source-If-Unmodified-Since", &[COPIES]),
    // Of S3's directory buckets.
    ("x-amz-if-match-last-modified-time", &[&["DeleteObject"]]),
    ("x-amz-if-match-size", &[&["DeleteObject"]]),
    ("x-amz-if-match-initiated-time", &[&["AbortMultipartUpload"]]),
];

fn not_implemented(header: &'static str, more: Option<&'static str>) -> Error {
    let message = "A header you provided implies functionality that is not implemented".into();
    Error::NotImplemented { message, header: Some(header), more }
}

fn failed(condition: &str) -> Error {
    Error::PreconditionFailed(condition.to_owned())
}

/// Says by its headers which one the client has (RFC 9110, section 15.4.5).
fn not_modified(record: &ObjectRecord) -> Error {
    let mut headers = HeaderMap::new();
    let modified = http_date(timestamp(record.modified));
    let told = [
        (header::ETAG, Some(format!("\"{}\"", record.etag))),
        (header::LAST_MODIFIED, modified),
        (header::CACHE_CONTROL, record.content.cache_control.clone()),
        (header::EXPIRES, record.content.expires.clone()),
    ];
    for (name, value) in told {
        if let Some(value) = value.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
    Error::NotModified(Box::new(headers))
}

fn no_such_key(key: &str) -> Error {
    Error::NoSuchKey { key: key.to_owned(), marker: None }
}

/// Refuses conditions that the operation does not have, before anything else is done.
pub(crate) fn supported(operation: &str, method: &Method, headers: &HeaderMap) -> Result<()> {
    let reads = method == Method::GET || method == Method::HEAD;
    for (name, operations) in HEADERS {
        let mut values = headers.get_all(name).iter();
        if values.next().is_none() {
            continue;
        }
        let has = operations.iter().any(|operations| operations.contains(&operation));
        // A listing may be given whole to somebody who has a copy of it already.
        let harmless = reads && matches!(name, "If-None-Match" | "If-Modified-Since");
        if !has && !harmless {
            return Err(not_implemented(name, None));
        }
        if has && values.next().is_some() {
            return Err(not_implemented(name, Some(SEVERAL)));
        }
    }
    if WRITES.contains(&operation) {
        let (if_match, if_none_match) = (value(headers, "if-match"), value(headers, "if-none-match"));
        if if_match.is_some() && if_none_match.is_some() {
            return Err(not_implemented("If-Match,If-None-Match", Some(SEVERAL)));
        }
        if if_match.is_some_and(|value| value == b"*") {
            return Err(not_implemented(
                "If-Match",
                Some("We don't accept the provided value of If-Match header for this API"),
            ));
        }
        if if_none_match.is_some_and(|value| value != b"*") {
            let why = "We don't accept the provided value of If-None-Match header for this API";
            return Err(not_implemented("If-None-Match", Some(why)));
        }
    }
    Ok(())
}

const SEVERAL: &str = "Multiple conditional request headers present in the request";

fn value<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a [u8]> {
    headers.get(HeaderName::from_static(name)).map(|value| value.as_bytes().trim_ascii())
}

/// What a request demands of an object that it reads.
#[derive(Default)]
pub(crate) struct Conditions {
    pub if_match: Option<dto::ETagCondition>,
    pub if_none_match: Option<dto::ETagCondition>,
    pub if_modified_since: Option<dto::Timestamp>,
    pub if_unmodified_since: Option<dto::Timestamp>,
}

fn names(condition: &dto::ETagCondition, etag: &str) -> bool {
    condition.is_any() || condition.as_etag().is_some_and(|named| named.value() == etag)
}

impl Conditions {
    /// For GET and HEAD: 304 where the client has the object already, 412 otherwise.
    pub(crate) fn check_read(&self, record: &ObjectRecord, now: i64) -> Result<()> {
        self.check("", record, now, |_| not_modified(record))
    }

    /// For the source of a copy: 412.
    pub(crate) fn check_source(&self, record: &ObjectRecord, now: i64) -> Result<()> {
        self.check("x-amz-copy-source-", record, now, failed)
    }

    fn check(&self, prefix: &str, record: &ObjectRecord, now: i64, not_modified: impl Fn(&str) -> Error) -> Result<()> {
        let modified = timestamp(record.modified);
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !names(condition, &record.etag) => {
                return Err(failed(&format!("{prefix}If-Match")));
            }
            (None, Some(since)) if modified > *since => return Err(failed(&format!("{prefix}If-Unmodified-Since"))),
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) if names(condition, &record.etag) => {
                Err(not_modified(&format!("{prefix}If-None-Match")))
            }
            // A time that is still to come says nothing.
            (None, Some(since)) if modified <= *since && *since <= timestamp(now) => {
                Err(not_modified(&format!("{prefix}If-Modified-Since")))
            }
            _ => Ok(()),
        }
    }
}

/// An ETag as clients write it, with or without its quotes; `*` is any.
fn etag_of(text: &str) -> String {
    let text = text.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).to_owned()
}

/// What a write demands of the object that it replaces.
#[derive(Clone, Default)]
pub(crate) struct WriteConditions {
    if_match: Option<String>,
    absent: bool,
}

impl WriteConditions {
    /// [`supported`] has looked at the headers before.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let if_match = value(headers, "if-match").map(|etag| etag_of(&String::from_utf8_lossy(etag)));
        Self { if_match, absent: value(headers, "if-none-match").is_some() }
    }

    /// Against what is there at the moment of the commit, and before, so that nobody sends a body for nothing.
    pub(crate) fn check(&self, key: &str, current: Option<&ObjectRecord>) -> Result<()> {
        match (&self.if_match, current) {
            (Some(_), None) => Err(no_such_key(key)),
            (Some(etag), Some(current)) if *etag != current.etag => Err(failed("If-Match")),
            (None, Some(_)) if self.absent => Err(failed("If-None-Match")),
            _ => Ok(()),
        }
    }

    /// For completing an upload: whether the key was written or deleted since the upload began, which is another conflict.
    pub(crate) fn check_since(&self, key: &str, began_on: &str, newest: Option<&ObjectRecord>) -> Result<()> {
        let condition = match (&self.if_match, self.absent) {
            (Some(_), _) => "If-Match",
            (None, true) => "If-None-Match",
            (None, false) => return Ok(()),
        };
        if newest.map(|newest| newest.object.to_string()).unwrap_or_default() == began_on {
            return Ok(());
        }
        Err(Error::ConditionalConflict { condition, key: key.to_owned() })
    }
}

/// What a deletion demands of the object or version that it names.
#[derive(Clone, Default)]
pub(crate) struct DeleteConditions {
    etag: Option<String>,
    modified: Option<dto::Timestamp>,
    size: Option<i64>,
}

impl DeleteConditions {
    pub(crate) fn of(headers: &HeaderMap, modified: Option<dto::Timestamp>, size: Option<i64>) -> Self {
        let etag = value(headers, "if-match").map(|etag| etag_of(&String::from_utf8_lossy(etag)));
        Self { etag, modified, size }
    }

    /// Of an entry of DeleteObjects.
    pub(crate) fn of_entry(etag: Option<dto::ETag>, modified: Option<dto::Timestamp>, size: Option<i64>) -> Self {
        Self { etag: etag.map(|etag| etag_of(etag.value())), modified, size }
    }

    /// Against what is there at the moment of the commit: the version named, or the newest of the key, a delete marker perhaps.
    pub(crate) fn check(&self, key: &str, version: Option<&str>, found: Option<&ObjectRecord>) -> Result<()> {
        let Some(found) = found else {
            // Time and size are held by what is not there, as S3 has it; an ETag is not.
            return match (&self.etag, version) {
                (None, _) => Ok(()),
                (Some(_), None) => Err(no_such_key(key)),
                (Some(_), Some(version)) => {
                    Err(Error::NoSuchVersion { key: key.to_owned(), version: version.to_owned() })
                }
            };
        };
        let is = |etag: &String| !found.delete_marker && (etag == "*" || *etag == found.etag);
        if self.etag.as_ref().is_some_and(|etag| !is(etag)) {
            return Err(failed("If-Match"));
        }
        if self.modified.as_ref().is_some_and(|modified| *modified != timestamp(found.modified)) {
            return Err(failed("x-amz-if-match-last-modified-time"));
        }
        if self.size.is_some_and(|size| found.delete_marker || size != found.size as i64) {
            return Err(failed("x-amz-if-match-size"));
        }
        Ok(())
    }
}

/// For aborting an upload: whether it began at the time named.
pub(crate) fn check_initiated(initiated: i64, named: Option<&dto::Timestamp>) -> Result<()> {
    if named.is_some_and(|named| *named != timestamp(initiated)) {
        return Err(failed("x-amz-if-match-initiated-time"));
    }
    Ok(())
}

//! Preconditions (RFC 9110, section 13) on reading, copying and writing.

use s3s::{S3Error, S3ErrorCode, S3Result, dto};

use super::{timestamp, whole_seconds};
use crate::{error::error, record::ObjectRecord};

/// What a request demands of an object.
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

fn failed() -> S3Error {
    error(S3ErrorCode::PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

impl Conditions {
    /// For GET and HEAD: 304 where the client has the object already, 412 otherwise.
    pub(crate) fn check_read(&self, record: &ObjectRecord) -> S3Result<()> {
        self.check(record, || error(S3ErrorCode::NotModified, "Not Modified"))
    }

    /// For the source of a copy: 412.
    pub(crate) fn check_source(&self, record: &ObjectRecord) -> S3Result<()> {
        self.check(record, failed)
    }

    fn check(&self, record: &ObjectRecord, not_modified: impl Fn() -> S3Error) -> S3Result<()> {
        let modified = timestamp(whole_seconds(record.modified));
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !names(condition, &record.etag) => return Err(failed()),
            (None, Some(since)) if modified > *since => return Err(failed()),
            _ => {}
        }
        match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) if names(condition, &record.etag) => Err(not_modified()),
            (None, Some(since)) if modified <= *since => Err(not_modified()),
            _ => Ok(()),
        }
    }

    /// For writing: against what is there at the moment of the commit.
    pub(crate) fn check_write(&self, current: Option<&ObjectRecord>) -> S3Result<()> {
        if let Some(condition) = &self.if_none_match
            && current.is_some_and(|current| names(condition, &current.etag))
        {
            return Err(failed());
        }
        match (&self.if_match, current) {
            (Some(_), None) => Err(error(S3ErrorCode::NoSuchKey, "The specified key does not exist.")),
            (Some(condition), Some(current)) if !names(condition, &current.etag) => Err(failed()),
            _ => Ok(()),
        }
    }
}

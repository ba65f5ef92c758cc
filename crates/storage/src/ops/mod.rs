//! The operations, one file per group. They speak s3s's types, which are the wire's; records stay inside.

pub(crate) mod bucket;
pub(crate) mod bucket_encryption;
pub(crate) mod complete;
pub(crate) mod conditions;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod encrypt;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod multipart;
pub(crate) mod place;
pub(crate) mod put;
pub(crate) mod tagging;
pub(crate) mod uploads;
pub(crate) mod versions;

use std::time::{Duration, UNIX_EPOCH};

use s3s::{S3Response, dto};

use crate::error::{Error, Result, invalid_argument};

/// Longest key in bytes.
const KEY_BYTES_MAX: usize = 1024;

/// A moment as S3 tells it, and compares it: in whole seconds.
pub(crate) fn timestamp(millis: i64) -> dto::Timestamp {
    let since = Duration::from_secs(u64::try_from(millis.div_euclid(1000)).unwrap_or(0));
    dto::Timestamp::from(UNIX_EPOCH + since)
}

pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains('\0') {
        return Err(invalid_argument("A key has 1 to 1024 bytes of UTF-8 without NUL"));
    }
    Ok(())
}

pub(crate) fn answer<T>(output: T) -> Result<S3Response<T>> {
    Ok(S3Response::new(output))
}

pub(crate) fn owner(name: &str) -> dto::Owner {
    dto::Owner { display_name: Some(name.to_owned()), id: Some(name.to_owned()) }
}

/// The encryption headers of any operation that has them all.
macro_rules! asked {
    ($input:expr) => {
        $crate::encryption::Asked {
            sse: $input.server_side_encryption.take(),
            kek: $input.ssekms_key_id.take(),
            context: $input.ssekms_encryption_context.take(),
            bucket_key: $input.bucket_key_enabled.take(),
            customer: $crate::ops::customer!($input),
        }
    };
}
pub(crate) use asked;

/// The SSE-C headers of any operation that has them.
macro_rules! customer {
    ($input:expr) => {
        $crate::encryption::CustomerKey {
            algorithm: $input.sse_customer_algorithm.take(),
            key: $input.sse_customer_key.take(),
            key_md5: $input.sse_customer_key_md5.take(),
        }
    };
}
pub(crate) use customer;

/// The SSE-C headers for the source of a copy.
macro_rules! source_customer {
    ($input:expr) => {
        $crate::encryption::CustomerKey {
            algorithm: $input.copy_source_sse_customer_algorithm.take(),
            key: $input.copy_source_sse_customer_key.take(),
            key_md5: $input.copy_source_sse_customer_key_md5.take(),
        }
    };
}
pub(crate) use source_customer;

/// The headers of a new object that come back as they are.
macro_rules! content {
    ($input:expr, $extensions:expr) => {
        $crate::record::ContentHeaders {
            content_type: $input.content_type.take(),
            cache_control: $input.cache_control.take(),
            content_disposition: $input.content_disposition.take(),
            content_encoding: $crate::ops::without_aws_chunked($input.content_encoding.take()),
            content_language: $input.content_language.take(),
            expires: $crate::ops::expires(&$extensions)
                .or_else(|| $input.expires.take().and_then($crate::ops::http_date)),
            website_redirect: $input.website_redirect_location.take(),
            storage_class: $input.storage_class.take().map(|class| class.as_str().to_owned()),
            metadata: $input.metadata.take().unwrap_or_default().into_iter().collect(),
        }
    };
}
pub(crate) use content;

/// `aws-chunked` is how a body travels, not how it is.
pub(crate) fn without_aws_chunked(encoding: Option<String>) -> Option<String> {
    let encoding = encoding?;
    let kept: Vec<&str> = encoding.split(',').map(str::trim).filter(|part| *part != "aws-chunked").collect();
    match kept.len() {
        0 => None,
        // What else stands there stays as it was written.
        many if many == encoding.split(',').count() => Some(encoding),
        _ => Some(kept.join(",")),
    }
}

/// The header `Expires` as it was sent: S3 keeps it whether it is a date or not.
#[derive(Clone)]
pub(crate) struct Expires(pub String);

pub(crate) fn expires(extensions: &http::Extensions) -> Option<String> {
    extensions.get::<Expires>().map(|Expires(text)| text.clone())
}

pub(crate) fn http_date(moment: dto::Timestamp) -> Option<String> {
    let mut out = Vec::new();
    moment.format(dto::TimestampFormat::HttpDate, &mut out).ok()?;
    String::from_utf8(out).ok()
}

/// User metadata together, as S3 bounds it.
const METADATA_BYTES_MAX: usize = 2 * 1024;

pub(crate) fn check_content(content: &crate::record::ContentHeaders) -> Result<()> {
    let metadata: usize = content.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if metadata > METADATA_BYTES_MAX {
        return Err(Error::MetadataTooLarge);
    }
    // What cannot be a header could be stored, by a form, and never be answered.
    let is_name = |name: &String| http::HeaderName::try_from(format!("x-amz-meta-{name}")).is_ok();
    let is_value = |value: &String| http::HeaderValue::try_from(value).is_ok();
    let plain = [
        &content.content_type,
        &content.cache_control,
        &content.content_disposition,
        &content.content_encoding,
        &content.content_language,
        &content.expires,
        &content.website_redirect,
    ];
    let answerable = content.metadata.iter().all(|(name, value)| is_name(name) && !value.chars().any(char::is_control))
        && plain.into_iter().flatten().all(is_value);
    if !answerable {
        return Err(invalid_argument("A header or metadata of the object has characters that no header can have"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! From a request's words to a new version: spec, attributes, tags, release policy.

use holdfast_core::{KeyAttributes, KeyOperation, Timestamp};
use holdfast_crypto::{AesSize, KeySpec, RsaSize};

use crate::{
    error::ApiError,
    keys::{VersionEntry, policy_digest},
    release_policy,
    wire::{self, AttributesIn, CreateRequest, KeyType, ReleasePolicy, Tags},
};

const TAGS_MAX: usize = 15;
const TAG_CHARS_MAX: usize = 256;
/// Release policies are some hundred bytes of JSON; the real service's bound is not documented.
const RELEASE_POLICY_BYTES_MAX: usize = 8 * 1024;
const EXPONENT_F4: u32 = 65537;
/// Years 1 to 9999, in seconds since the epoch: what the calendars of .NET and Python can tell.
const READABLE_SECS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The kind of key that a create request names.
pub(super) fn requested_spec(request: &CreateRequest) -> Result<KeySpec, ApiError> {
    let size = |default| request.key_size.unwrap_or(default);
    match KeyType::parse(&request.kty)? {
        KeyType::Ec => wire::parse_curve(request.crv.as_deref()).map(KeySpec::Ec),
        KeyType::Oct => AesSize::from_bits(size(256))
            .map(KeySpec::Aes)
            .ok_or_else(|| ApiError::bad_parameter("Property key_size must be 128, 192 or 256 for oct-HSM")),
        KeyType::Rsa => {
            let size = RsaSize::from_bits(size(2048))
                .ok_or_else(|| ApiError::bad_parameter("Property key_size must be 2048, 3072 or 4096 for RSA-HSM"))?;
            let exponent = request.public_exponent.unwrap_or(EXPONENT_F4);
            if exponent < 3 || exponent.is_multiple_of(2) {
                return Err(ApiError::bad_parameter("Property public_exponent must be odd and at least 3"));
            }
            Ok(KeySpec::Rsa { size, exponent })
        }
    }
}

/// What a new version is described by, apart from its material.
pub(super) struct Description {
    pub attributes: KeyAttributes,
    pub tags: Option<Tags>,
    pub release_policy: Option<ReleasePolicy>,
}

impl Description {
    pub(super) fn new(
        spec: KeySpec,
        key_ops: Option<&[String]>,
        attributes: &AttributesIn,
        tags: Option<Tags>,
        release_policy: Option<ReleasePolicy>,
    ) -> Result<Self, ApiError> {
        check_tags(tags.as_ref())?;
        let exportable = attributes.exportable.unwrap_or(false);
        check_release_policy(exportable, release_policy.as_ref())?;
        let operations = wire::parse_operations(spec, key_ops)?;
        if operations.contains(KeyOperation::Export) && !exportable {
            return Err(ApiError::bad_parameter("Key operation export needs an exportable key"));
        }
        let described = KeyAttributes {
            spec,
            operations,
            enabled: attributes.enabled.unwrap_or(true),
            exportable,
            not_before: moment("nbf", attributes.nbf)?,
            expires: moment("exp", attributes.exp)?,
            release_policy_sha256: release_policy.as_ref().map(policy_digest),
        };
        check_window(&described)?;
        Ok(Self { attributes: described, tags, release_policy })
    }

    /// The version's entry, created now.
    pub(super) fn into_version(self, id: holdfast_core::KeyVersionId, now: Timestamp) -> VersionEntry {
        VersionEntry {
            id,
            created: now,
            updated: now,
            attributes: self.attributes,
            tags: self.tags.map(Box::new),
            release_policy: self.release_policy.map(Box::new),
            blob_version: 1,
        }
    }
}

/// A time of a request, in seconds since the epoch.
pub(super) fn moment(name: &str, secs: Option<i64>) -> Result<Option<Timestamp>, ApiError> {
    match secs {
        Some(secs) if !READABLE_SECS.contains(&secs) => Err(ApiError::bad_parameter(format!(
            "Property attributes.{name} has an invalid value: the year must be 1 to 9999"
        ))),
        secs => Ok(secs.map(Timestamp::from_unix_secs)),
    }
}

pub(super) fn check_window(attributes: &KeyAttributes) -> Result<(), ApiError> {
    match (attributes.not_before, attributes.expires) {
        (Some(from), Some(end)) if end <= from => Err(ApiError::bad_parameter("Attribute exp must be later than nbf")),
        _ => Ok(()),
    }
}

pub(super) fn check_tags(tags: Option<&Tags>) -> Result<(), ApiError> {
    let Some(tags) = tags else { return Ok(()) };
    if tags.len() > TAGS_MAX {
        return Err(ApiError::bad_parameter("A key has at most 15 tags"));
    }
    let too_long = |text: &String| text.chars().count() > TAG_CHARS_MAX;
    if tags.iter().any(|(name, value)| name.is_empty() || too_long(name) || too_long(value)) {
        return Err(ApiError::bad_parameter("Tag names have 1 to 256 characters, tag values at most 256"));
    }
    Ok(())
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// An exportable key has a release policy, and no other key has one.
pub(super) fn check_release_policy(exportable: bool, policy: Option<&ReleasePolicy>) -> Result<(), ApiError> {
    match (exportable, policy) {
        (true, None) => Err(ApiError::bad_parameter("An exportable key needs a release policy")),
        (false, Some(_)) => Err(ApiError::bad_parameter("A release policy needs an exportable key")),
        (true, Some(policy)) => {
            if policy.data.len() > RELEASE_POLICY_BYTES_MAX {
                return Err(ApiError::bad_parameter("The release policy is too long"));
            }
            if policy.content_type.as_deref().is_some_and(|kind| !is_json(kind)) {
                return Err(ApiError::bad_parameter("Property release_policy.contentType must be application/json"));
            }
            let text = wire::decode("release_policy.data", &policy.data)?;
            release_policy::check(&text).map_err(|why| {
                ApiError::bad_parameter(format!("Property release_policy.data is not a release policy: {why}"))
            })
        }
        (false, None) => Ok(()),
    }
}

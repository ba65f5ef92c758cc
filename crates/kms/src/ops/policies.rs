//! Key policies.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, change::change, changed, limit, nothing};
use crate::{
    action::KmsAction,
    call::{Call, With},
    code::Code,
    error::ApiError,
    keys::KeyEntry,
    policy::{POLICY_BYTES_MAX, PolicyDocument, PolicyKind, PrincipalPattern},
    wire,
};

/// The only policy that a key has.
const NAME: &str = "default";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    key_id: Option<String>,
    policy_name: Option<String>,
    policy: Option<String>,
    bypass_policy_lockout_safety_check: Option<bool>,
    limit: Option<i64>,
    marker: Option<String>,
}

fn check_name(name: Option<&str>) -> Result<(), ApiError> {
    match name {
        None | Some(NAME) => Ok(()),
        Some(other) => Err(ApiError::not_found(format!("No such policy exists: {other}; a key has one, {NAME:?}"))),
    }
}

/// What a key has whose maker says nothing: the account's own policies decide.
pub(super) fn default_for(account: &str) -> Result<PolicyDocument, ApiError> {
    let text = json!({
        "Version": "2012-10-17",
        "Id": "key-default-1",
        "Statement": [{
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": {"AWS": format!("arn:aws:iam::{account}:root")},
            "Action": "kms:*",
            "Resource": "*",
        }],
    });
    Ok(PolicyDocument::parse(PolicyKind::Key, &text.to_string())?)
}

/// Reads a policy; the principals of our accounts that it names must be there.
pub(super) fn checked(call: &Call<'_>, text: &str) -> Result<PolicyDocument, ApiError> {
    if text.len() > POLICY_BYTES_MAX {
        return Err(ApiError::new(Code::LimitExceeded, format!("A policy has at most {POLICY_BYTES_MAX} bytes")));
    }
    let policy = PolicyDocument::parse(PolicyKind::Key, text)?;
    for principal in policy.principals() {
        let PrincipalPattern::Arn(arn) = principal else { continue };
        let account = arn.split(':').nth(4).unwrap_or_default();
        if call.kms.directory.has_account(account) && call.kms.directory.identity(arn).is_none() {
            let message = format!("Policy contains a statement with one or more invalid principals: {arn}");
            return Err(ApiError::new(Code::MalformedPolicyDocument, message));
        }
    }
    Ok(policy)
}

/// Whoever sets a policy must be able to set another, or nobody may ever be. The default policy leaves it to the account, and needs
/// no such look.
pub(super) fn check_lockout(call: &Call<'_>, key: &KeyEntry, bypass: Option<bool>) -> Result<(), ApiError> {
    if bypass == Some(true) || call.may(KmsAction::PutKeyPolicy, key) {
        return Ok(());
    }
    Err(ApiError::new(
        Code::MalformedPolicyDocument,
        "The new key policy will not allow you to update the key policy in the future.",
    ))
}

pub(super) fn get(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    call.allowed(KmsAction::GetKeyPolicy, &key, With::default())?;
    check_name(request.policy_name.as_deref())?;
    wire::answer(&json!({"Policy": key.policy.text(), "PolicyName": NAME}))
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    limit(request.limit, 100, 1000)?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    call.allowed(KmsAction::ListKeyPolicies, &key, With::default())?;
    // There is one page, and so no marker. InvalidMarkerException is no error of this operation.
    if request.marker.is_some() {
        return Err(ApiError::validation("The marker is not one that this listing gave"));
    }
    wire::answer(&json!({"PolicyNames": [NAME], "Truncated": false}))
}

pub(super) async fn put(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let mut violations = wire::Violations::default();
    let text = violations.text(request.policy.as_deref(), "policy", 1, 131_072);
    violations.finish()?;
    let bypass = request.bypass_policy_lockout_safety_check;
    let facts = [("kms:bypasspolicylockoutsafetycheck", vec![bypass.unwrap_or_default().to_string()])];
    let with = With { more: &facts, ..With::default() };
    let (_, committed) = change(call, request.key_id.as_deref(), KmsAction::PutKeyPolicy, with, |call, key| {
        check_name(request.policy_name.as_deref())?;
        key.policy = Arc::new(checked(call, text)?);
        check_lockout(call, key, bypass)
    })
    .await?;
    changed(committed, nothing())
}

//! Aliases.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::Spent;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, changed, limit, marker::Listing, nothing};
use crate::{
    action::KmsAction,
    aliases::AliasName,
    call::{Call, With},
    code::Code,
    error::ApiError,
    keys::{KeyEntry, KeyRef, KeyState},
    names::alias_arn,
    operation::Operation,
    wire::{self, Violations, secs},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    alias_name: Option<String>,
    target_key_id: Option<String>,
    key_id: Option<String>,
    limit: Option<i64>,
    marker: Option<String>,
}

/// Name and ARN of the alias that a request is about, of the caller's account.
fn own_name(call: &Call<'_>, name: Option<&str>) -> Result<(AliasName, String), ApiError> {
    let mut violations = Violations::default();
    let text = violations.text(name, "aliasName", 1, 256);
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'/' | b'_' | b'-');
    violations.pattern(text, "aliasName", text.bytes().all(valid), "^[a-zA-Z0-9:/_-]+$");
    violations.finish()?;
    // In the words of the service, whose model allows more than it takes.
    let Some(own) = text.strip_prefix("alias/") else {
        return Err(ApiError::validation(
            "Alias must start with the prefix \"alias/\". Please see \
             https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html",
        ));
    };
    if own.contains(':') {
        return Err(ApiError::validation(format!("{text} contains invalid characters for an alias")));
    }
    if own.is_empty() && call.operation == Operation::CreateAlias {
        return Err(ApiError::new(Code::InvalidAliasName, "An alias has a name after the prefix \"alias/\""));
    }
    if text.starts_with("alias/aws/") {
        return Err(ApiError::new(Code::NotAuthorized, "Aliases that begin with alias/aws/ are reserved"));
    }
    let name =
        AliasName { account: Arc::clone(call.account()), region: Arc::clone(call.region), name: text.to_owned() };
    let arn = alias_arn(call.region, call.account(), text);
    Ok((name, arn))
}

/// A change of an alias must be allowed on the alias, by the caller's policies, and on the key.
fn allowed(call: &mut Call<'_>, action: KmsAction, arn: &str, key: &Arc<KeyEntry>) -> Result<Spent, ApiError> {
    call.allowed_apart(action, arn, With::default())?;
    call.allowed(action, key, With::default())
}

fn same_account(call: &Call<'_>, key: &KeyEntry) -> Result<(), ApiError> {
    if key.account == *call.account() {
        return Ok(());
    }
    Err(ApiError::not_found("An alias is of the same account and region as its key"))
}

pub(super) async fn create(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let (name, arn) = own_name(call, request.alias_name.as_deref())?;
    let aliases = &call.kms.aliases;
    let changing = aliases.changing().await;
    let key = call.named_without_alias("targetKeyId", request.target_key_id.as_deref())?;
    same_account(call, &key)?;
    let spent = allowed(call, KmsAction::CreateAlias, &arn, &key)?;
    call.must_not_be(&key, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
    if aliases.get(&name).is_some() {
        let message = format!("An alias with the name {arn} already exists");
        return Err(ApiError::new(Code::AlreadyExists, message));
    }
    let committed = aliases.put(&changing, name, key.id, call.now, call.decided(spent)?).await?;
    changed(committed, nothing())
}

fn existing(call: &Call<'_>, name: &AliasName, arn: &str) -> Result<Arc<crate::aliases::Alias>, ApiError> {
    call.kms.aliases.get(name).ok_or_else(|| ApiError::not_found(format!("Alias {arn} is not found.")))
}

pub(super) async fn update(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let (name, arn) = own_name(call, request.alias_name.as_deref())?;
    let aliases = &call.kms.aliases;
    let changing = aliases.changing().await;
    let alias = existing(call, &name, &arn)?;
    let old = call.kms.keys.entry(&KeyRef { region: Arc::clone(call.region), id: alias.target });
    let key = call.named_without_alias("targetKeyId", request.target_key_id.as_deref())?;
    same_account(call, &key)?;
    let spent = allowed(call, KmsAction::UpdateAlias, &arn, &key)?;
    if let Some(old) = old.filter(|old| old.id != key.id) {
        call.allowed(KmsAction::UpdateAlias, &old, With::default())?;
        if (old.usage, kind(&old)) != (key.usage, kind(&key)) {
            return Err(ApiError::validation("The new key must be of the same type and usage as the old one"));
        }
    }
    call.must_not_be(&key, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
    let committed = aliases.put(&changing, name, key.id, call.now, call.decided(spent)?).await?;
    changed(committed, nothing())
}

/// Symmetric, asymmetric, HMAC.
fn kind(key: &KeyEntry) -> u8 {
    use holdfast_crypto::KeySpec;
    match key.spec {
        KeySpec::Aes(_) => 0,
        KeySpec::Hmac(_) => 1,
        KeySpec::Ec(_) | KeySpec::Ed25519 | KeySpec::MlDsa(_) | KeySpec::MlKem(_) | KeySpec::Rsa { .. } => 2,
    }
}

pub(super) async fn delete(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let (name, arn) = own_name(call, request.alias_name.as_deref())?;
    let aliases = &call.kms.aliases;
    let changing = aliases.changing().await;
    let alias = existing(call, &name, &arn)?;
    let spent = match call.kms.keys.entry(&KeyRef { region: Arc::clone(call.region), id: alias.target }) {
        Some(key) => {
            call.told.key = Some(key.arn.clone());
            allowed(call, KmsAction::DeleteAlias, &arn, &key)?
        }
        None => call.allowed_apart(KmsAction::DeleteAlias, &arn, With::default())?,
    };
    let committed = aliases.remove(&changing, &name, &alias, call.decided(spent)?).await?;
    changed(committed, nothing())
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let count = limit(request.limit, 50, 100)?;
    call.allowed_apart(KmsAction::ListAliases, "*", With::default())?;
    let target = match request.key_id.as_deref() {
        None => None,
        Some(key_id) => Some(call.named_without_alias("keyId", Some(key_id))?.id),
    };
    let listing = Listing::of(call, &[&target.map(|target| target.to_string()).unwrap_or_default()]);
    let after = listing.after_text(request.marker.as_deref())?.unwrap_or_default();
    let (found, more) = call.kms.aliases.page(call.account(), call.region, target, &after, count);
    let aliases: Vec<_> = found
        .iter()
        .map(|(name, alias)| {
            json!({
                "AliasName": name,
                "AliasArn": alias_arn(call.region, call.account(), name),
                "TargetKeyId": alias.target.to_string(),
                "CreationDate": secs(alias.created),
                "LastUpdatedDate": secs(alias.updated),
            })
        })
        .collect();
    let mut answer = json!({"Aliases": aliases, "Truncated": more});
    if let Some((last, _)) = found.last().filter(|_| more) {
        answer["NextMarker"] = listing.next(last.as_bytes()).into();
    }
    wire::answer(&answer)
}

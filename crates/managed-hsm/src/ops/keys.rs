//! Create, import, get, update.

use holdfast_core::{KeyName, KeyOperation, KeyVersion, KeyVersionId, NewKey, Permit};
use holdfast_crypto::{AesSize, EncryptionPadding, KeySpec, RsaSize, transfer::Transfer};
use holdfast_service::Done;
use http::StatusCode;

use super::{
    Call, Reply,
    material::{Description, check_release_policy, check_tags, check_window, moment, requested_spec},
};
use crate::{
    error::ApiError,
    keys::{Draft, KeyEntry, VersionEntry, policy_digest},
    usable::{Used, asked, refused},
    wire::{self, CreateRequest, ImportRequest, KeyType, TransferBlob, UpdateRequest},
};

/// The key as it will be with one more version.
pub(super) fn append(name: &KeyName, old: Option<&KeyEntry>, version: VersionEntry, new: NewKey) -> Draft {
    let mut entry = old.cloned().unwrap_or_else(|| KeyEntry {
        name: name.clone(),
        record_version: 0,
        versions: Vec::with_capacity(1),
        rotation: None,
        deletion: None,
    });
    let blob = (version.id, 0, new.masked);
    entry.versions.push(version);
    Draft { entry, blobs: vec![blob] }
}

/// What a masked blob of a version that does not exist yet is bound to.
pub(super) fn bound(name: &KeyName, version: &VersionEntry) -> KeyVersion {
    KeyVersion { name: name.clone(), id: version.id, attributes: version.attributes.clone() }
}

/// The key that a new version joins, if there is one; a soft-deleted key blocks its name.
fn existing(call: &Call<'_>, name: &KeyName) -> Result<Option<std::sync::Arc<KeyEntry>>, ApiError> {
    let entry = call.hsm.keys.entry(name);
    if entry.as_ref().is_some_and(|entry| entry.deletion.is_some()) {
        return Err(ApiError::deleted_but_recoverable(name));
    }
    call.hsm.keys.check_room(entry.as_deref())?;
    Ok(entry)
}

pub(super) async fn create(call: &mut Call<'_>, permit: Permit, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let request: CreateRequest = wire::parse(call.body)?;
    let spec = requested_spec(&request)?;
    let description =
        Description::new(spec, request.key_ops.as_deref(), &request.attributes, request.tags, request.release_policy)?;
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let old = existing(call, name)?;
    let version = description.into_version(keys.new_version_id(), keys.now());
    call.facts.version = Some(version.id);
    let new = call.hsm.admin.generate(permit, &bound(name, &version)).await?;
    let public = new.public.clone();
    let draft = append(name, old.as_deref(), version, new);
    let current = draft.entry.current().ok_or_else(|| ApiError::internal("a key without versions"))?;
    let reply = Reply::ok(&call.bundle(&draft.entry, current, &public))?;
    let (committed, _) = keys.commit(&lock, draft, call.decided(StatusCode::OK)?).await?;
    Ok(Done::Changed(committed, reply))
}

pub(super) async fn import(call: &mut Call<'_>, permit: Permit, name: &KeyName) -> Result<Done<Reply>, ApiError> {
    let request: ImportRequest = wire::parse(call.body)?;
    // The key tells its own size; until it is read, any size of its kind stands in.
    let provisional = match KeyType::parse(&request.key.kty)? {
        KeyType::Ec => KeySpec::Ec(wire::parse_curve(request.key.crv.as_deref())?),
        KeyType::Oct => KeySpec::Aes(AesSize::Bits256),
        KeyType::Rsa => KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 },
    };
    let key_ops = request.key.key_ops.as_deref();
    let description =
        Description::new(provisional, key_ops, &request.attributes, request.tags, request.release_policy)?;
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let old = existing(call, name)?;
    let mut version = description.into_version(keys.new_version_id(), keys.now());
    call.facts.version = Some(version.id);
    let target = bound(name, &version);
    let new = match &request.key.key_hsm {
        Some(blob) => import_wrapped(call, permit, &target, blob).await?,
        None => call.hsm.admin.import(permit, &target, request.key.to_imported()?).await?,
    };
    version.attributes.spec = new.spec;
    let public = new.public.clone();
    let draft = append(name, old.as_deref(), version, new);
    let current = draft.entry.current().ok_or_else(|| ApiError::internal("a key without versions"))?;
    let reply = Reply::ok(&call.bundle(&draft.entry, current, &public))?;
    let (committed, _) = keys.commit(&lock, draft, call.decided(StatusCode::OK)?).await?;
    Ok(Done::Changed(committed, reply))
}

/// BYOK: the blob names the exchange key that it was wrapped under.
async fn import_wrapped(
    call: &mut Call<'_>,
    permit: Permit,
    target: &KeyVersion,
    blob: &str,
) -> Result<NewKey, ApiError> {
    let json = wire::decode("key_hsm", blob)?;
    let blob: TransferBlob = wire::parse(&json)?;
    if blob.header.enc != "CKM_RSA_AES_KEY_WRAP" {
        return Err(ApiError::bad_parameter("The transfer blob must be wrapped with CKM_RSA_AES_KEY_WRAP"));
    }
    let exchange_key = exchange_key_reference(&blob.header.kid)?;
    let located = call.hsm.keys.locate(&exchange_key.0, Some(exchange_key.1))?;
    call.facts.rests_on = Some(Used::to_import(&located));
    let exchange_version = located.entry.bound(located.version());
    if !exchange_version.attributes.operations.contains(KeyOperation::Import) {
        return Err(ApiError::bad_parameter("The key exchange key does not have the operation import"));
    }
    let masked = call.hsm.keys.masked(located.version()).await?;
    let wrapped = wire::decode("ciphertext", &blob.ciphertext)?;
    let transfer = Transfer::AesKeyWrap(EncryptionPadding::OaepSha1);
    let exchange = (asked(call.hsm, &located), &exchange_version, &masked);
    let imported = call.hsm.admin.import_wrapped(permit, target, exchange, transfer, &wrapped).await;
    imported.map_err(|error| refused(call.hsm, &located, error))
}

/// Name and version at the end of a key id.
fn exchange_key_reference(kid: &str) -> Result<(KeyName, KeyVersionId), ApiError> {
    let mut segments = kid.rsplit('/');
    let version = segments.next().and_then(KeyVersionId::parse);
    let name = segments.next().and_then(|name| KeyName::parse(name).ok());
    name.zip(version).ok_or_else(|| ApiError::bad_parameter("The transfer blob names no key exchange key with version"))
}

pub(super) async fn get(call: &mut Call<'_>, name: &KeyName, version: Option<KeyVersionId>) -> Result<Reply, ApiError> {
    let located = call.hsm.keys.locate(name, version)?;
    call.facts.version = Some(located.version().id);
    let public = call.hsm.keys.public(&located.entry, located.version()).await?;
    let used = Used::told(name, located.version().id);
    Ok(Reply::ok(&call.bundle(&located.entry, located.version(), &public))?.resting_on(used))
}

/// Unsent members stay; tags are replaced whole.
pub(super) async fn update(
    call: &mut Call<'_>,
    permit: Permit,
    name: &KeyName,
    version: Option<KeyVersionId>,
) -> Result<Done<Reply>, ApiError> {
    let request: UpdateRequest = wire::parse(call.body)?;
    let keys = &call.hsm.keys;
    let lock = keys.lock(name).await;
    let located = keys.locate(name, version)?;
    let old = located.version();
    call.facts.version = Some(old.id);
    let mut new = changed(old, request)?;
    new.updated = keys.now();
    let masked = keys.masked(old).await?;
    let (from, to) = (located.entry.bound(old), located.entry.bound(&new));
    let remasked = call.hsm.admin.remask(permit, &from, &masked, &to).await?;
    let blob = (new.id, old.blob_version, remasked);
    new.blob_version = old.blob_version + 1;
    let mut entry = (*located.entry).clone();
    let id = new.id;
    for version in entry.versions.iter_mut().filter(|version| version.id == id) {
        version.clone_from(&new);
    }
    let public = keys.public(&located.entry, old).await?;
    let reply = Reply::ok(&call.bundle(&entry, &new, &public))?;
    let (committed, _) = keys.commit(&lock, Draft { entry, blobs: vec![blob] }, call.decided(StatusCode::OK)?).await?;
    Ok(Done::Changed(committed, reply))
}

fn changed(old: &VersionEntry, request: UpdateRequest) -> Result<VersionEntry, ApiError> {
    check_tags(request.tags.as_ref())?;
    let mut new = old.clone();
    let attributes = &mut new.attributes;
    if let Some(names) = &request.key_ops {
        attributes.operations = wire::parse_operations(attributes.spec, Some(names))?;
        if attributes.operations.contains(KeyOperation::Export) && !attributes.exportable {
            return Err(ApiError::bad_parameter("Key operation export needs an exportable key"));
        }
    }
    if let Some(enabled) = request.attributes.enabled {
        attributes.enabled = enabled;
    }
    attributes.not_before = moment("nbf", request.attributes.nbf)?.or(attributes.not_before);
    attributes.expires = moment("exp", request.attributes.exp)?.or(attributes.expires);
    if request.attributes.exportable.is_some_and(|exportable| exportable != attributes.exportable) {
        return Err(ApiError::bad_parameter("Attribute exportable cannot be changed after the key was made"));
    }
    check_window(attributes)?;
    if let Some(policy) = request.release_policy {
        if old.release_policy.as_ref().is_some_and(|old| old.immutable && **old != policy) {
            return Err(ApiError::bad_parameter("The release policy is immutable"));
        }
        check_release_policy(attributes.exportable, Some(&policy))?;
        attributes.release_policy_sha256 = Some(policy_digest(&policy));
        new.release_policy = Some(Box::new(policy));
    }
    if let Some(tags) = request.tags {
        new.tags = Some(Box::new(tags));
    }
    Ok(new)
}

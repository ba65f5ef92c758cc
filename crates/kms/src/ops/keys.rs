//! CreateKey, DescribeKey, ListKeys, UpdateKeyDescription.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use holdfast_core::{KeyVersionId, Resource};
use holdfast_crypto::KeySpec;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, KeyWithTokens,
    change::change,
    changed, layers, limit,
    marker::{Listing, bad_marker},
    nothing, policies,
    rotation::material_of,
    tags,
};
use crate::{
    action::KmsAction,
    call::{Call, Named, With},
    code::Code,
    error::ApiError,
    keys::{self, Draft, KeyEntry, KeyState, Origin, Reference},
    names::{KeyId, key_arn},
    operation::Operation,
    spec::{self, KeyUsage, spec_name},
    stores::{About, Connection, KeyStore, StoreKind},
    wire::{self, Violations, secs},
};

const DESCRIPTION_CHARS_MAX: usize = 8192;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateRequest {
    policy: Option<String>,
    description: Option<String>,
    key_usage: Option<String>,
    customer_master_key_spec: Option<String>,
    key_spec: Option<String>,
    origin: Option<String>,
    custom_key_store_id: Option<String>,
    bypass_policy_lockout_safety_check: Option<bool>,
    tags: Option<Vec<tags::Tag>>,
    multi_region: Option<bool>,
    xks_key_id: Option<String>,
}

/// What a new key is to be.
struct Wanted {
    spec: KeySpec,
    usage: KeyUsage,
    origin: Origin,
    multi_region: bool,
    tags: BTreeMap<String, String>,
}

fn wanted(request: &CreateRequest) -> Result<Wanted, ApiError> {
    let spec_given = request.key_spec.as_deref().or(request.customer_master_key_spec.as_deref());
    let mut names: Vec<&str> = spec::SPECS.iter().map(|(name, _)| *name).collect();
    names.push("SM2");
    let mut violations = Violations::default();
    violations.one_of(spec_given, "keySpec", &names);
    violations.one_of(request.key_usage.as_deref(), "keyUsage", &KeyUsage::ALL.map(KeyUsage::name));
    violations.one_of(request.origin.as_deref(), "origin", &Origin::ALL.map(Origin::name));
    violations.length(request.description.as_deref().unwrap_or_default(), "description", 0, DESCRIPTION_CHARS_MAX);
    violations.finish()?;
    if request.key_spec.is_some() && request.customer_master_key_spec.is_some() {
        return Err(ApiError::validation("You cannot specify KeySpec and CustomerMasterKeySpec in the same request."));
    }
    let name = spec_given.unwrap_or("SYMMETRIC_DEFAULT");
    let spec = spec::parse_spec(name);
    let spec = spec.ok_or_else(|| ApiError::unsupported(format!("KeySpec {name} is not offered here")))?;
    let usage = match request.key_usage.as_deref().and_then(KeyUsage::parse) {
        Some(usage) => usage,
        None if spec == spec::SYMMETRIC_DEFAULT => KeyUsage::EncryptDecrypt,
        None => {
            return Err(ApiError::validation(
                "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
            ));
        }
    };
    if !spec::usages(spec).contains(&usage) {
        return Err(ApiError::validation(format!("KeyUsage {} is not compatible with KeySpec {name}", usage.name())));
    }
    let origin = request.origin.as_deref().and_then(Origin::parse).unwrap_or(Origin::AwsKms);
    let in_store = matches!(origin, Origin::AwsCloudHsm | Origin::ExternalKeyStore);
    let multi_region = request.multi_region == Some(true);
    if in_store && (spec != spec::SYMMETRIC_DEFAULT || multi_region) {
        return Err(ApiError::unsupported("Keys in a custom key store are symmetric and of one region"));
    }
    if in_store != request.custom_key_store_id.is_some() {
        return Err(ApiError::validation(
            "CustomKeyStoreId goes with Origin AWS_CLOUDHSM or EXTERNAL_KEY_STORE, and only with them",
        ));
    }
    if request.xks_key_id.is_some() != (origin == Origin::ExternalKeyStore) {
        return Err(ApiError::validation("XksKeyId goes with Origin EXTERNAL_KEY_STORE, and only with it"));
    }
    if origin == Origin::External && matches!(spec, KeySpec::MlKem(_)) {
        return Err(ApiError::unsupported("ML-KEM keys cannot be imported here"));
    }
    let tags = tags::checked(request.tags.as_deref())?;
    Ok(Wanted { spec, usage, origin, multi_region, tags })
}

pub(super) async fn create(call: &mut Call<'_>) -> Answer {
    let request: CreateRequest = call.parse()?;
    let wanted = wanted(&request)?;
    let facts = create_facts(&request, &wanted);
    let with = With { tags: Some(&wanted.tags), more: &facts, ..With::default() };
    if !wanted.tags.is_empty() {
        call.allowed_apart(KmsAction::TagResource, "*", with)?;
    }
    let id = KeyId::new(call.kms.ambient.random(), wanted.multi_region);
    let name = id.name().ok_or_else(|| ApiError::internal("a key id that is no name"))?;
    // One for the material, one for the record.
    let to_make = call.permit_new(KmsAction::CreateKey, &name, with)?;
    let to_store = call.permit_new(KmsAction::CreateKey, &name, with)?;
    let to_store = to_store.spend(KmsAction::CreateKey.core(), &Resource::Key(name.clone()))?;
    call.kms.keys.check_room()?;
    let policy = match &request.policy {
        Some(text) => policies::checked(call, text)?,
        None => policies::default_for(call.account())?,
    };
    let mut entry = KeyEntry {
        id,
        name,
        region: Arc::clone(call.region),
        account: Arc::clone(call.account()),
        arn: call.own_key_arn(id),
        record_version: 0,
        created: call.now,
        description: request.description.clone().unwrap_or_default(),
        usage: wanted.usage,
        spec: wanted.spec,
        origin: wanted.origin,
        enabled: true,
        deletion: None,
        deletion_after_replicas: None,
        policy: Arc::new(policy),
        tags: wanted.tags,
        rotation: None,
        rotations_on_demand: 0,
        materials: Vec::new(),
        reference: None,
        multi_region: wanted
            .multi_region
            .then(|| keys::MultiRegion { primary: Arc::clone(call.region), replicas: Vec::new() }),
    };
    call.told.key = Some(entry.arn.clone());
    if request.policy.is_some() {
        policies::check_lockout(call, &entry, request.bypass_policy_lockout_safety_check)?;
    }
    let kms = call.kms;
    let _stores = match &request.custom_key_store_id {
        None => None,
        Some(store) => {
            let reference = reference(call, &entry, store, request.xks_key_id.as_deref()).await?;
            // One external key serves one key of a store: looked at again, and entered, under one lock. It is not held while the
            // other side is asked, since a disconnection waits for nobody's network.
            let guard = kms.stores.changing.lock().await;
            check_reference(call, &entry, &reference)?;
            entry.reference = Some(reference);
            Some(guard)
        }
    };
    let mut blobs = Vec::new();
    if wanted.origin != Origin::External {
        let version = KeyVersionId::from_bytes(call.kms.ambient.random());
        let new = call.kms.admin.generate(to_make, &entry.bound(version)).await?;
        entry.materials.push(material_of(version, &new, call.now));
        blobs.push((version, 0, Some(new.masked)));
    }
    let lock = call.kms.keys.lock(id).await;
    let draft = Draft { blobs, ..Draft::of(entry) };
    let (made, committed) = call.kms.keys.commit(&lock, draft, call.decided(to_store)?).await?;
    let entry = made.first().ok_or_else(|| ApiError::internal("nothing was made"))?;
    changed(committed, wire::answer(&json!({"KeyMetadata": metadata(call, entry)})))
}

fn create_facts(request: &CreateRequest, wanted: &Wanted) -> Vec<(&'static str, Vec<String>)> {
    let one = |text: &str| vec![text.to_owned()];
    vec![
        ("kms:keyspec", one(spec_name(wanted.spec))),
        ("kms:customermasterkeyspec", one(spec_name(wanted.spec))),
        ("kms:keyusage", one(wanted.usage.name())),
        ("kms:customermasterkeyusage", one(wanted.usage.name())),
        ("kms:keyorigin", one(wanted.origin.name())),
        ("kms:multiregion", one(&wanted.multi_region.to_string())),
        (
            "kms:bypasspolicylockoutsafetycheck",
            one(&request.bypass_policy_lockout_safety_check.unwrap_or_default().to_string()),
        ),
    ]
}

/// The store of a reference must be connected, of the right kind, and the key there not taken.
fn check_reference(call: &Call<'_>, entry: &KeyEntry, reference: &Reference) -> Result<Arc<KeyStore>, ApiError> {
    let store = call.kms.stores.get(&reference.store);
    let store = store.filter(|store| store.account == *call.account() && store.region == *call.region);
    let store = store.ok_or_else(|| super::stores::not_found(&reference.store))?;
    let in_hsm = matches!(store.kind, StoreKind::Hsm { .. });
    if in_hsm != (entry.origin == Origin::AwsCloudHsm) {
        return Err(ApiError::validation("The Origin is not that of the custom key store"));
    }
    if store.connection != Connection::Connected {
        return Err(ApiError::new(
            Code::CustomKeyStoreInvalidState,
            format!("The custom key store is {}; it must be CONNECTED", store.connection.name()),
        ));
    }
    let taken = call.kms.keys.find(|other| other.reference.as_ref() == Some(reference));
    if taken.is_empty() {
        return Ok(store);
    }
    Err(ApiError::new(Code::XksKeyAlreadyInUse, "Another KMS key of the store is this external key"))
}

/// Looks a reference up, and the key on the other side.
async fn reference(
    call: &mut Call<'_>,
    entry: &KeyEntry,
    store_id: &str,
    xks_key: Option<&str>,
) -> Result<Reference, ApiError> {
    let key = match xks_key {
        None => entry.id.to_string(),
        Some(key) => {
            let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let mut violations = Violations::default();
            violations.length(key, "xksKeyId", 1, 128);
            violations.pattern(key, "xksKeyId", key.bytes().all(valid), "^[a-zA-Z0-9-_.]+$");
            violations.finish()?;
            key.to_owned()
        }
    };
    let reference = Reference { store: store_id.to_owned(), key };
    let store = check_reference(call, entry, &reference)?;
    let link = store.link.as_ref().ok_or_else(|| {
        crate::LinkFault::Unreachable("the configuration does not let the service connect there".into())
            .for_create_key(store_id)
    })?;
    let proof = link.wants_proof().then(|| layers::proof(call));
    let about = About {
        principal_arn: &call.identity.arn,
        key_arn: Some(&entry.arn),
        operation: Operation::CreateKey.name(),
        request_id: call.request_id,
        via_service: None,
        proof: proof.as_ref(),
    };
    let checked = link.check_key(&reference.key, about).await;
    call.told.context.push(("external-key-store", reference.store.clone()));
    call.told.context.push(("external-key", reference.key.clone()));
    checked.map_err(|fault| fault.for_create_key(store_id))?;
    Ok(reference)
}

/// `KeyMetadata`
pub(super) fn metadata(call: &Call<'_>, key: &KeyEntry) -> Value {
    let state = call.state(key);
    let mut out = json!({
        "AWSAccountId": *key.account,
        "KeyId": key.id.to_string(),
        "Arn": key.arn,
        "CreationDate": secs(key.created),
        "Enabled": state == KeyState::Enabled,
        "Description": key.description,
        "KeyUsage": key.usage.name(),
        "KeyState": state.name(),
        "Origin": key.origin.name(),
        "KeyManager": "CUSTOMER",
        "KeySpec": spec_name(key.spec),
        "MultiRegion": key.multi_region.is_some(),
    });
    let mut tell = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            out[name] = value;
        }
    };
    let (list, algorithms) = spec::algorithms(key.spec, key.usage);
    tell(list, Some(algorithms.into()));
    tell("CustomerMasterKeySpec", spec::has_old_name(key.spec).then(|| spec_name(key.spec).into()));
    tell("DeletionDate", key.deletion.map(|moment| secs(moment).into()));
    tell("PendingDeletionWindowInDays", key.deletion_after_replicas.map(Into::into));
    if key.origin == Origin::External
        && let Some(material) = key.current()
    {
        let expires = material.expires.is_some();
        let model = if expires { "KEY_MATERIAL_EXPIRES" } else { "KEY_MATERIAL_DOES_NOT_EXPIRE" };
        tell("ExpirationModel", material.is_present(call.now).then(|| model.into()));
        tell("ValidTo", material.expires.map(|moment| secs(moment).into()));
    }
    if let Some(reference) = &key.reference {
        tell("CustomKeyStoreId", Some(reference.store.clone().into()));
        let store = call.kms.stores.get(&reference.store);
        match store.as_deref().map(|store| &store.kind) {
            Some(StoreKind::Hsm { cluster }) => tell("CloudHsmClusterId", Some(cluster.clone().into())),
            _ => tell("XksKeyConfiguration", Some(json!({"Id": reference.key}))),
        }
    }
    if key.is_symmetric_encryption() && key.reference.is_none() {
        tell("CurrentKeyMaterialId", key.current().map(|material| material.wire_id().into()));
    }
    if let Some(multi) = &key.multi_region {
        let at = |region: &str| json!({"Arn": key_arn(region, &key.account, key.id), "Region": region});
        let replicas: Vec<_> = multi.replicas.iter().map(|region| at(region)).collect();
        let kind = if key.is_primary() { "PRIMARY" } else { "REPLICA" };
        let configuration =
            json!({"MultiRegionKeyType": kind, "PrimaryKey": at(&multi.primary), "ReplicaKeys": replicas});
        tell("MultiRegionConfiguration", Some(configuration));
    }
    out
}

pub(super) fn describe(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: KeyWithTokens = call.parse()?;
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    call.allowed_shown(&tokens, KmsAction::DescribeKey, &key, With { alias: alias.as_deref(), ..With::default() })?;
    wire::answer(&json!({"KeyMetadata": metadata(call, &key)}))
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        limit: Option<i64>,
        marker: Option<String>,
        resource_owners: Option<Vec<String>>,
    }
    let request: Request = call.parse()?;
    let count = limit(request.limit, 100, 1000)?;
    let mut violations = Violations::default();
    let owners = request.resource_owners.unwrap_or_else(|| vec!["SELF".into()]);
    for owner in &owners {
        violations.one_of(Some(owner), "resourceOwners", &["SELF", "OTHER_ACCOUNTS_VIA_RAM"]);
    }
    violations.finish()?;
    call.allowed_apart(KmsAction::ListKeys, "*", With::default())?;
    // Nothing is shared between accounts but by key policies, and those keys nobody lists.
    let own = owners.iter().any(|owner| owner == "SELF");
    let listing = Listing::of(call, &[if own { "SELF" } else { "" }]);
    let after = listing.after_text(request.marker.as_deref())?;
    let after = after.map(|id| KeyId::parse(&id).ok_or_else(bad_marker)).transpose()?;
    let (ids, more) =
        if own { call.kms.keys.page(call.account(), call.region, after, count) } else { (Vec::new(), false) };
    let keys: Vec<_> = ids.iter().map(|id| json!({"KeyId": id.to_string(), "KeyArn": call.own_key_arn(*id)})).collect();
    let mut answer = json!({"Keys": keys, "Truncated": more});
    if let Some(last) = ids.last().filter(|_| more) {
        answer["NextMarker"] = listing.next(last.to_string().as_bytes()).into();
    }
    wire::answer(&answer)
}

pub(super) async fn update_description(call: &mut Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        description: Option<String>,
    }
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    let description = violations.text(request.description.as_deref(), "description", 0, DESCRIPTION_CHARS_MAX);
    violations.finish()?;
    let (_, committed) =
        change(call, request.key_id.as_deref(), KmsAction::UpdateKeyDescription, With::default(), |call, key| {
            call.must_not_be(key, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
            key.description = description.to_owned();
            Ok(())
        })
        .await?;
    changed(committed, nothing())
}

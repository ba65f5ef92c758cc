//! New material for a key that stays what it is: automatic, on demand. Old material decrypts what it encrypted, for ever.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{AuditEvent, Committed, Decided, Itself, KeyVersionId, NewKey, Permit, Spent, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer,
    change::{change, current, key_only},
    changed, limit,
    marker::{Listing, bad_marker},
    nothing,
    state::after_days,
};
use crate::{
    Kms,
    action::KmsAction,
    call::{Call, With},
    code::Code,
    error::ApiError,
    keys::{Draft, KeyEntry, KeyRef, KeyState, Material, MaterialState, Origin, Rotation, RotationKind},
    usable::Enabled,
    wire::{self, Violations, secs},
};

const PERIOD_DAYS_DEFAULT: u32 = 365;
const ON_DEMAND_MAX: u32 = 25;

/// The first material of a key, or the next.
pub(super) fn material_of(id: KeyVersionId, new: &NewKey, now: Timestamp) -> Material {
    Material {
        id,
        check: new.check,
        created: now,
        rotated: None,
        state: MaterialState::Current,
        blob_version: Some(1),
        expires: None,
        description: None,
    }
}

fn must_rotate(key: &KeyEntry) -> Result<(), ApiError> {
    if key.can_rotate() {
        return Ok(());
    }
    Err(ApiError::unsupported(format!("{} cannot be rotated: only symmetric keys made here are.", key.arn)))
}

/// The key in every region that it is in, the given one among them.
pub(crate) fn family(kms: &Kms, key: &KeyEntry) -> Vec<KeyEntry> {
    let Some(multi) = &key.multi_region else { return vec![key.clone()] };
    let regions = multi.replicas.iter().chain([&multi.primary]);
    let entry = |region: &Arc<str>| kms.keys.entry(&KeyRef { region: Arc::clone(region), id: key.id });
    regions.filter_map(|region| entry(region).map(|entry| KeyEntry::clone(&entry))).collect()
}

/// Makes `material` the current one.
fn supersede(key: &mut KeyEntry, material: Material) {
    for old in &mut key.materials {
        if old.state == MaterialState::Current {
            old.state = MaterialState::NonCurrent;
        }
    }
    key.materials.retain(|old| old.id != material.id);
    key.materials.push(material);
}

/// Why a key is rotated.
enum Why<'k> {
    /// Somebody asks, and it is enabled.
    Asked(&'k Enabled<'k>),
    /// Its time has come.
    Due(&'k KeyEntry),
}

/// Makes new material for a key and all its replicas; `event` has the leave to store it. `None` if it is no longer wanted.
async fn new_material(
    kms: &Kms,
    to_make: Permit,
    why: Why<'_>,
    still_wanted: impl FnOnce(&KeyEntry) -> bool,
    event: impl FnOnce(KeyVersionId) -> Result<Decided, ApiError>,
) -> Result<Option<Committed>, ApiError> {
    let (key, kind): (&KeyEntry, _) = match why {
        Why::Asked(key) => (key, RotationKind::OnDemand),
        Why::Due(key) => (key, RotationKind::Automatic),
    };
    let lock = kms.keys.lock(key.id).await;
    let now = kms.keys.now();
    let Some(entry) = kms.keys.entry(&key.key_ref()).filter(|entry| still_wanted(entry)) else { return Ok(None) };
    let version = KeyVersionId::from_bytes(kms.ambient.random());
    let new = kms.admin.generate(to_make, &entry.bound(version)).await?;
    let material = Material { rotated: Some((now, kind)), ..material_of(version, &new, now) };
    let mut entries = family(kms, &entry);
    for entry in &mut entries {
        supersede(entry, material.clone());
        if kind == RotationKind::OnDemand {
            entry.rotations_on_demand += 1;
        } else if let Some(rotation) = &mut entry.rotation {
            rotation.next = after_days(now, rotation.period_days);
        }
    }
    let draft = Draft { entries, blobs: vec![(version, 0, Some(new.masked))], ..Draft::default() };
    let (_, committed) = kms.keys.commit(&lock, draft, event(version)?).await?;
    Ok(Some(committed))
}

pub(crate) fn is_due(key: &KeyEntry, now: Timestamp) -> bool {
    key.enabled
        && key.deletion.is_none()
        && key.deletion_after_replicas.is_none()
        && key.can_rotate()
        && (key.multi_region.is_none() || key.is_primary())
        && key.rotation.is_some_and(|rotation| rotation.next <= now)
}

/// Rotates a key whose time has come; for maintenance.
pub(crate) async fn rotate_by_itself(
    kms: &Kms,
    key: &KeyEntry,
    to_make: Permit,
    to_store: Spent,
    event: AuditEvent,
) -> Result<Option<Committed>, ApiError> {
    let now = kms.keys.now();
    let event = |version: KeyVersionId| {
        let event = AuditEvent { key_version: Some(version.to_string()), ..event };
        Ok(Decided::by_itself(event, Itself::Due(to_store)))
    };
    new_material(kms, to_make, Why::Due(key), |entry| is_due(entry, now), event).await
}

/// Only of an enabled key.
fn set_rotation(
    call: &Call<'_>,
    key: &mut KeyEntry,
    rotation: impl FnOnce(&Enabled<'_>) -> Option<Rotation>,
) -> Result<(), ApiError> {
    key.rotation = rotation(&call.enabled(key)?);
    Ok(())
}

pub(super) async fn enable(call: &mut Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        rotation_period_in_days: Option<i64>,
    }
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    violations.range(request.rotation_period_in_days, "rotationPeriodInDays", 90, 2560);
    violations.finish()?;
    let period_days = request.rotation_period_in_days.map_or(PERIOD_DAYS_DEFAULT, |days| days as u32);
    let facts = [("kms:rotationperiodindays", vec![period_days.to_string()])];
    let with = With { more: &facts, ..With::default() };
    let (_, committed) = change(call, request.key_id.as_deref(), KmsAction::EnableKeyRotation, with, |call, key| {
        must_rotate(key)?;
        set_rotation(call, key, |key| {
            let same = key.rotation.filter(|rotation| rotation.period_days == period_days);
            same.or_else(|| Some(Rotation { period_days, next: after_days(call.now, period_days) }))
        })
    })
    .await?;
    changed(committed, nothing())
}

pub(super) async fn disable(call: &mut Call<'_>) -> Answer {
    let key_id = key_only(call)?;
    let (_, committed) =
        change(call, key_id.as_deref(), KmsAction::DisableKeyRotation, With::default(), |call, key| {
            must_rotate(key)?;
            set_rotation(call, key, |_| None)
        })
        .await?;
    changed(committed, nothing())
}

pub(super) fn status(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let key_id = key_only(call)?;
    let key = call.named_without_alias("keyId", key_id.as_deref())?;
    call.allowed(KmsAction::GetKeyRotationStatus, &key, With::default())?;
    must_rotate(&key)?;
    let pending = matches!(call.state(&key), KeyState::PendingDeletion | KeyState::PendingReplicaDeletion);
    let rotation = key.rotation.filter(|_| !pending);
    let mut answer = json!({"KeyId": key.arn, "KeyRotationEnabled": rotation.is_some()});
    if let Some(rotation) = rotation {
        answer["RotationPeriodInDays"] = rotation.period_days.into();
        answer["NextRotationDate"] = secs(rotation.next).into();
    }
    wire::answer(&answer)
}

pub(super) async fn rotate_on_demand(call: &mut Call<'_>) -> Answer {
    let key_id = key_only(call)?;
    let key = call.named_without_alias("keyId", key_id.as_deref())?;
    let to_make = call.permit(KmsAction::RotateKeyOnDemand, &key, With::default())?;
    let to_store = call.allowed(KmsAction::RotateKeyOnDemand, &key, With::default())?;
    let imported = key.origin == Origin::External && key.is_symmetric_encryption();
    if !imported {
        must_rotate(&key)?;
    }
    let enabled = call.enabled(&key)?;
    if key.multi_region.is_some() && !key.is_primary() {
        return Err(ApiError::unsupported("A replica is rotated with its primary"));
    }
    if key.rotations_on_demand >= ON_DEMAND_MAX {
        let message = format!(
            "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed \
             for this key: {}",
            key.arn
        );
        return Err(ApiError::new(Code::LimitExceeded, message));
    }
    let committed = if imported {
        adopt_pending(call, to_store, &enabled).await?
    } else {
        // It may have changed while this request waited for its turn.
        let still_wanted =
            |entry: &KeyEntry| entry.enabled && entry.deletion.is_none() && entry.rotations_on_demand < ON_DEMAND_MAX;
        let kms = call.kms;
        let event = |version: KeyVersionId| {
            call.told.material = Some(version.to_string());
            call.decided(to_store)
        };
        let committed = new_material(kms, to_make, Why::Asked(&enabled), still_wanted, event).await?;
        committed.ok_or_else(|| ApiError::stale("the key was changed before it could be rotated"))?
    };
    changed(committed, wire::answer(&json!({"KeyId": key.id.to_string()})))
}

/// Imported material that waits becomes current.
async fn adopt_pending(call: &mut Call<'_>, to_store: Spent, key: &Enabled<'_>) -> Result<Committed, ApiError> {
    let lock = call.kms.keys.lock(key.id).await;
    let entry = current(call, key)?;
    let pending = entry.materials.iter().find(|material| material.state == MaterialState::PendingRotation);
    let pending = pending.filter(|material| material.is_present(call.now)).cloned();
    let mut pending = pending.ok_or_else(|| {
        ApiError::invalid_state(format!("No available key material pending rotation for the key: {}.", key.arn))
    })?;
    pending.state = MaterialState::Current;
    pending.rotated = Some((call.now, RotationKind::OnDemand));
    let mut entries = family(call.kms, &entry);
    for entry in &mut entries {
        supersede(entry, pending.clone());
        entry.rotations_on_demand += 1;
    }
    let draft = Draft { entries, ..Draft::default() };
    let (_, committed) = call.kms.keys.commit(&lock, draft, call.decided(to_store)?).await?;
    Ok(committed)
}

fn list_entry(key: &KeyEntry, material: &Material, now: Timestamp) -> Value {
    let mut out = json!({
        "KeyId": key.arn,
        "KeyMaterialId": material.wire_id(),
        "KeyMaterialState": material.state.name(),
    });
    if let Some((when, kind)) = material.rotated {
        out["RotationDate"] = secs(when).into();
        out["RotationType"] = kind.name().into();
    }
    if key.origin == Origin::External {
        out["ImportState"] = if material.is_present(now) { "IMPORTED" } else { "PENDING_IMPORT" }.into();
        let expires = material.expires.is_some();
        out["ExpirationModel"] = if expires { "KEY_MATERIAL_EXPIRES" } else { "KEY_MATERIAL_DOES_NOT_EXPIRE" }.into();
        if let Some(moment) = material.expires {
            out["ValidTo"] = secs(moment).into();
        }
        if let Some(description) = &material.description {
            out["KeyMaterialDescription"] = description.as_str().into();
        }
    }
    out
}

/// Where a material stands among those of its key: when it came, or became current, and its id.
fn place_of(material: &Material) -> [u8; 24] {
    let moment = material.rotated.map_or(material.created, |(when, _)| when);
    let mut place = [0; 24];
    place[..8].copy_from_slice(&moment.unix_millis().to_be_bytes());
    place[8..].copy_from_slice(material.id.as_bytes());
    place
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        include_key_material: Option<String>,
        limit: Option<i64>,
        marker: Option<String>,
    }
    let request: Request = call.parse()?;
    let count = limit(request.limit, 100, 1000)?;
    let mut violations = Violations::default();
    let include = request.include_key_material.as_deref();
    violations.one_of(include, "includeKeyMaterial", &["ALL_KEY_MATERIAL", "ROTATIONS_ONLY"]);
    violations.finish()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    call.allowed(KmsAction::ListKeyRotations, &key, With::default())?;
    if !(key.is_symmetric_encryption() && matches!(key.origin, Origin::AwsKms | Origin::External)) {
        return Err(ApiError::unsupported(format!("{} cannot be rotated.", key.arn)));
    }
    let all = include == Some("ALL_KEY_MATERIAL");
    let listing = Listing::of(call, &[&key.arn, if all { "ALL_KEY_MATERIAL" } else { "" }]);
    let after = listing.after(request.marker.as_deref())?;
    let after = after.map(|after| <[u8; 24]>::try_from(after).map_err(|_| bad_marker())).transpose()?;
    let mut rest: Vec<&Material> = key.materials.iter().filter(|material| all || material.rotated.is_some()).collect();
    rest.retain(|material| after.is_none_or(|after| place_of(material) > after));
    rest.sort_by_key(|material| place_of(material));
    let shown = &rest[..rest.len().min(count)];
    let list: Vec<_> = shown.iter().map(|material| list_entry(&key, material, call.now)).collect();
    let more = shown.len() < rest.len();
    let mut answer = json!({"Rotations": list, "Truncated": more});
    if let Some(last) = shown.last().filter(|_| more) {
        answer["NextMarker"] = listing.next(&place_of(last)).into();
    }
    wire::answer(&answer)
}

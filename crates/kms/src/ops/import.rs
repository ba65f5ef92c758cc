//! Key material that the customer brings: parameters, import, deletion.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{
    HsmError, KeyAttributes, KeyName, KeyOperation, KeyVersion, KeyVersionId, MaskedKey, NewKey, Timestamp,
};
use holdfast_crypto::{EncryptionPadding, KeySpec, RsaSize, transfer::Transfer};
use serde::Deserialize;
use serde_json::json;

use super::rotation::{family, material_of};
use super::{Answer, changed};
use crate::{
    action::KmsAction,
    call::{Call, With},
    code::Code,
    error::ApiError,
    keys::{Draft, KeyEntry, KeyState, Material, MaterialState, Origin},
    own::{self, Own},
    usable::wrapping,
    wire::{self, BlobMember, Violations, moment, secs},
};

const TOKEN_MAGIC: &[u8; 4] = b"HFI\x01";
const TOKEN_HOURS: i64 = 24;
const EXPIRY_DAYS_MAX: i64 = 365;
/// The first is meant where none is named.
const EXPIRATION_MODELS: [&str; 2] = ["KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"];
const NEW_KEY_MATERIAL: &str = "NEW_KEY_MATERIAL";
const WRAPPING_ALGORITHMS: &[&str] = &[
    "RSAES_PKCS1_V1_5",
    "RSAES_OAEP_SHA_1",
    "RSAES_OAEP_SHA_256",
    "RSA_AES_KEY_WRAP_SHA_1",
    "RSA_AES_KEY_WRAP_SHA_256",
    "SM2PKE",
];

fn must_be_imported(key: &KeyEntry) -> Result<(), ApiError> {
    if key.origin == Origin::External {
        return Ok(());
    }
    let message = format!("{} origin is {} which is not valid for this operation.", key.arn, key.origin.name());
    Err(ApiError::unsupported(message))
}

fn transfer(algorithm: &str) -> Option<Transfer> {
    Some(match algorithm {
        "RSAES_OAEP_SHA_1" => Transfer::Direct(EncryptionPadding::OaepSha1),
        "RSAES_OAEP_SHA_256" => Transfer::Direct(EncryptionPadding::OaepSha256),
        "RSA_AES_KEY_WRAP_SHA_1" => Transfer::AesKeyWrap(EncryptionPadding::OaepSha1),
        "RSA_AES_KEY_WRAP_SHA_256" => Transfer::AesKeyWrap(EncryptionPadding::OaepSha256),
        _ => return None,
    })
}

/// What an import token holds, sealed by the partition (`docs/formats/kms-records.md`): the wrapping key itself, masked, so that
/// nothing of an import is kept here before the material comes.
struct Token {
    expires: Timestamp,
    key: KeyName,
    algorithm: &'static str,
    wrapping: KeyVersion,
    masked: MaskedKey,
}

fn wrapping_version(key: &KeyName, id: KeyVersionId, size: RsaSize) -> Option<KeyVersion> {
    let name = KeyName::parse(&format!("import-{key}")).ok()?;
    let attributes = KeyAttributes {
        spec: KeySpec::Rsa { size, exponent: 65537 },
        operations: [KeyOperation::Import].into_iter().collect(),
        enabled: true,
        exportable: false,
        not_before: None,
        expires: None,
        release_policy_sha256: None,
    };
    Some(KeyVersion { name, id, attributes })
}

impl Token {
    /// Expiry, place of the algorithm, size of the wrapping key in bits, its version, length and bytes of the key's name, the masked
    /// wrapping key.
    fn encode(&self) -> Vec<u8> {
        let name = self.key.as_str().as_bytes();
        let algorithm = WRAPPING_ALGORITHMS.iter().position(|known| *known == self.algorithm).unwrap_or_default();
        let KeySpec::Rsa { size, .. } = self.wrapping.attributes.spec else { return Vec::new() };
        [
            TOKEN_MAGIC.as_slice(),
            &self.expires.unix_millis().to_be_bytes(),
            &[algorithm as u8],
            &(size.bits() as u16).to_be_bytes(),
            self.wrapping.id.as_bytes(),
            &[name.len() as u8],
            name,
            &self.masked.0,
        ]
        .concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(TOKEN_MAGIC)?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (algorithm, rest) = rest.split_first()?;
        let (bits, rest) = rest.split_first_chunk::<2>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (len, rest) = rest.split_first()?;
        let (name, masked) = rest.split_at_checked(usize::from(*len))?;
        let key = KeyName::parse(std::str::from_utf8(name).ok()?).ok()?;
        let size = RsaSize::from_bits(u16::from_be_bytes(*bits).into())?;
        Some(Self {
            expires: Timestamp::from_unix_millis(i64::from_be_bytes(*expires)),
            algorithm: WRAPPING_ALGORITHMS.get(usize::from(*algorithm))?,
            wrapping: wrapping_version(&key, KeyVersionId::from_bytes(*id), size)?,
            masked: MaskedKey(masked.into()),
            key,
        })
    }
}

pub(super) async fn parameters(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        wrapping_algorithm: Option<String>,
        wrapping_key_spec: Option<String>,
    }
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    let algorithm = violations.text(request.wrapping_algorithm.as_deref(), "wrappingAlgorithm", 0, 64).to_owned();
    violations.one_of(request.wrapping_algorithm.as_deref(), "wrappingAlgorithm", WRAPPING_ALGORITHMS);
    let spec = violations.text(request.wrapping_key_spec.as_deref(), "wrappingKeySpec", 0, 64).to_owned();
    let specs = ["RSA_2048", "RSA_3072", "RSA_4096", "SM2"];
    violations.one_of(request.wrapping_key_spec.as_deref(), "wrappingKeySpec", &specs);
    violations.finish()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let facts = [("kms:wrappingalgorithm", vec![algorithm.clone()]), ("kms:wrappingkeyspec", vec![spec.clone()])];
    call.allowed(KmsAction::GetParametersForImport, &key, With { more: &facts, ..With::default() })?;
    must_be_imported(&key)?;
    call.must_not_be(&key, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
    let known = WRAPPING_ALGORITHMS.iter().find(|known| **known == algorithm && transfer(known).is_some());
    let bits = spec.strip_prefix("RSA_").and_then(|bits| bits.parse().ok()).and_then(RsaSize::from_bits);
    let (Some(known), Some(size)) = (known, bits) else {
        return Err(ApiError::unsupported(format!("{algorithm} with {spec} is not offered")));
    };
    if matches!(key.spec, KeySpec::Rsa { .. }) && algorithm.starts_with("RSAES") {
        return Err(ApiError::unsupported("RSA private keys are wrapped by RSA_AES_KEY_WRAP_SHA_1 or ..._256"));
    }
    let id = KeyVersionId::from_bytes(call.kms.ambient.random());
    let wrapping =
        wrapping_version(&key.name, id, size).ok_or_else(|| ApiError::internal("the key's id is no name"))?;
    let new = call.kms.admin.generate(own::permit(Own::MakeImportKey, &wrapping.name)?, &wrapping).await?;
    let public = new.public.spki().ok_or_else(|| ApiError::internal("an RSA key without a public half"))?;
    let expires = Timestamp::from_unix_millis(call.now.unix_millis() + TOKEN_HOURS * 3_600_000);
    let token = Token { expires, key: key.name.clone(), algorithm: known, wrapping, masked: new.masked };
    let sealing = own::permit(Own::SealImportToken, &key.name)?;
    let sealed = call.kms.admin.seal_backup(sealing, &key.name, &token.encode()).await?;
    wire::answer(&json!({
        "KeyId": key.arn,
        "ImportToken": wire::encode(&sealed),
        "PublicKey": wire::encode(&public),
        "ParametersValidTo": secs(expires),
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImportRequest {
    key_id: Option<String>,
    import_token: Option<BlobMember>,
    encrypted_key_material: Option<BlobMember>,
    valid_to: Option<f64>,
    expiration_model: Option<String>,
    import_type: Option<String>,
    key_material_description: Option<String>,
    key_material_id: Option<String>,
}

fn expiry(call: &Call<'_>, request: &ImportRequest) -> Result<Option<Timestamp>, ApiError> {
    if request.expiration_model.as_deref() == Some(EXPIRATION_MODELS[1]) {
        return match request.valid_to {
            None => Ok(None),
            Some(_) => Err(ApiError::validation("ValidTo goes with KEY_MATERIAL_EXPIRES")),
        };
    }
    let Some(valid_to) = request.valid_to.map(moment) else {
        return Err(ApiError::validation("A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"));
    };
    let days = valid_to.unix_millis().saturating_sub(call.now.unix_millis()) / 86_400_000;
    if valid_to <= call.now || days > EXPIRY_DAYS_MAX {
        return Err(ApiError::validation(format!(
            "ValidTo must be in the future, at most {EXPIRY_DAYS_MAX} days from now"
        )));
    }
    Ok(Some(valid_to))
}

fn incorrect(why: &str) -> ApiError {
    ApiError::new(Code::IncorrectKeyMaterial, format!("The key material in the request is not right: {why}"))
}

/// Unwraps and masks the material as `version`. Each call takes a permit of its own.
async fn take_in(
    call: &mut Call<'_>,
    key: &Arc<KeyEntry>,
    version: KeyVersionId,
    token: &Token,
    wrapped: &[u8],
) -> Result<NewKey, ApiError> {
    let permit = call.permit(KmsAction::ImportKeyMaterial, key, With::default())?;
    let transfer = transfer(token.algorithm).ok_or_else(|| ApiError::internal("a token with no algorithm"))?;
    let exchange = (wrapping(call.kms, key, &token.wrapping), &token.wrapping, &token.masked);
    let new = call.kms.admin.import_wrapped(permit, &key.bound(version), exchange, transfer, wrapped).await;
    let new = new.map_err(|error| match error {
        HsmError::InvalidInput(why) => incorrect(why),
        other => other.into(),
    })?;
    if new.spec == key.spec { Ok(new) } else { Err(incorrect("it is not of the key's spec")) }
}

/// Token and wrapped material, once all members are known to be in bounds.
fn blobs(request: &ImportRequest) -> Result<(Vec<u8>, Vec<u8>), ApiError> {
    let token = request.import_token.as_ref().map(BlobMember::bytes);
    let wrapped = request.encrypted_key_material.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    let token = violations.blob(token, "importToken", 1, 6144).to_vec();
    let wrapped = violations.blob(wrapped, "encryptedKeyMaterial", 1, 6144).to_vec();
    violations.one_of(request.expiration_model.as_deref(), "expirationModel", &EXPIRATION_MODELS);
    let types = [NEW_KEY_MATERIAL, "EXISTING_KEY_MATERIAL"];
    violations.one_of(request.import_type.as_deref(), "importType", &types);
    let description = request.key_material_description.as_deref().unwrap_or_default();
    violations.length(description, "keyMaterialDescription", 0, 256);
    violations.finish()?;
    Ok((token, wrapped))
}

fn open_token(call: &Call<'_>, key: &KeyEntry, sealed: &[u8]) -> Result<Token, ApiError> {
    let invalid = || ApiError::new(Code::InvalidImportToken, "The import token is not one for this key");
    let token = call.kms.admin.open_backup(sealed).map_err(|_| invalid())?;
    let token = Token::decode(token.expose()).filter(|token| token.key == key.name).ok_or_else(invalid)?;
    if token.expires > call.now {
        return Ok(token);
    }
    Err(ApiError::new(Code::ExpiredImportToken, "The import token has expired; get another one"))
}

/// A masked key to be written: its version, the record's version now, content.
type BlobWrite = (KeyVersionId, u64, Option<MaskedKey>);

/// Takes the material in, and finds its place among those of the key.
async fn place(
    call: &mut Call<'_>,
    entry: &Arc<KeyEntry>,
    request: &ImportRequest,
    token: &Token,
    wrapped: &[u8],
    expires: Option<Timestamp>,
) -> Result<(Material, BlobWrite), ApiError> {
    let version = KeyVersionId::from_bytes(call.kms.ambient.random());
    let new = take_in(call, entry, version, token, wrapped).await?;
    let known = entry.materials.iter().find(|material| material.check == new.check).cloned();
    let new_wanted = request.import_type.as_deref() == Some(NEW_KEY_MATERIAL);
    let rotates = new_wanted && entry.is_symmetric_encryption();
    let fresh = Material { expires, ..material_of(version, &new, call.now) };
    let blob = (version, 0, Some(new.masked));
    match known {
        // The same again: under its old version, since ciphertexts name that.
        Some(_)
            if rotates
                && request.key_material_id.is_none()
                && entry.materials.iter().all(|m| m.is_present(call.now)) =>
        {
            Err(incorrect("it is key material that the key has already"))
        }
        Some(old) => {
            let again = take_in(call, entry, old.id, token, wrapped).await?;
            let before = old.blob_version.unwrap_or_default();
            let blob = (old.id, before, Some(again.masked));
            Ok((Material { blob_version: Some(before + 1), expires, ..old }, blob))
        }
        None if entry.materials.is_empty() => Ok((fresh, blob)),
        None if rotates => {
            let waits = entry.materials.iter().find(|material| material.state == MaterialState::PendingRotation);
            if let Some(waits) = waits {
                return Err(ApiError::invalid_state(format!(
                    "New key material (id: {}) cannot be imported into KMS key {}, because another key material (id: {}) is \
                     pending rotation.",
                    fresh.wire_id(),
                    entry.arn,
                    waits.wire_id(),
                )));
            }
            Ok((Material { state: MaterialState::PendingRotation, ..fresh }, blob))
        }
        None => Err(incorrect("it is not the key material that this key had")),
    }
}

pub(super) async fn import(call: &mut Call<'_>) -> Answer {
    let request: ImportRequest = call.parse()?;
    let (token, wrapped) = blobs(&request)?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let model = request.expiration_model.as_deref().unwrap_or(EXPIRATION_MODELS[0]);
    let mut facts = vec![("kms:expirationmodel", vec![model.to_owned()])];
    facts.extend(request.valid_to.map(|secs| ("kms:validto", vec![(secs as i64).to_string()])));
    let spent = call.allowed(KmsAction::ImportKeyMaterial, &key, With { more: &facts, ..With::default() })?;
    must_be_imported(&key)?;
    let expires = expiry(call, &request)?;
    let token = open_token(call, &key, &token)?;
    let kms = call.kms;
    let lock = kms.keys.lock(key.id).await;
    let entry = Arc::new(super::change::current(call, &key)?);
    call.must_not_be(&entry, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
    let (material, blob) = place(call, &entry, &request, &token, &wrapped, expires).await?;
    if request.key_material_id.as_deref().is_some_and(|id| id != material.wire_id()) {
        return Err(incorrect("its id is another one"));
    }
    let material = Material {
        description: request.key_material_description.clone().or_else(|| material.description.clone()),
        ..material
    };
    let mut entries = family(kms, &entry);
    for entry in &mut entries {
        match entry.materials.iter_mut().find(|old| old.id == material.id) {
            Some(old) => *old = material.clone(),
            None => entry.materials.push(material.clone()),
        }
        entry.enabled |= entry.materials.len() == 1;
    }
    call.told.material = Some(material.id.to_string());
    let draft = Draft { entries, blobs: vec![blob], ..Draft::default() };
    let (_, committed) = kms.keys.commit(&lock, draft, call.decided(spent)?).await?;
    changed(committed, wire::answer(&json!({"KeyId": key.arn, "KeyMaterialId": material.wire_id()})))
}

/// Takes material away from a key; the bytes may be imported again.
pub(crate) fn without(mut entries: Vec<KeyEntry>, material: &Material) -> Draft {
    for entry in &mut entries {
        for own in entry.materials.iter_mut().filter(|own| own.id == material.id) {
            own.blob_version = None;
        }
        // What never was current leaves no trace.
        entry.materials.retain(|own| own.blob_version.is_some() || own.state != MaterialState::PendingRotation);
    }
    let blobs = material.blob_version.map(|version| (material.id, version, None)).into_iter().collect();
    Draft { entries, blobs, ..Draft::default() }
}

pub(super) async fn delete(call: &mut Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        key_id: Option<String>,
        key_material_id: Option<String>,
    }
    let request: Request = call.parse()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let spent = call.allowed(KmsAction::DeleteImportedKeyMaterial, &key, With::default())?;
    must_be_imported(&key)?;
    let kms = call.kms;
    let lock = kms.keys.lock(key.id).await;
    let entry = super::change::current(call, &key)?;
    call.must_not_be(&entry, &[KeyState::PendingDeletion, KeyState::PendingReplicaDeletion])?;
    let material = match request.key_material_id.as_deref() {
        None => entry.current(),
        Some(id) => entry.materials.iter().find(|material| material.wire_id() == id),
    };
    let material = material.cloned();
    let Some(material) = material.filter(|material| material.blob_version.is_some()) else {
        // Nothing is there to be deleted, as far as memory knows: an import whose commit failed may be on disk all the same. So the key is written as
        // it is. That conflicts with such an import, comes after it, and fails while the store does.
        let (_, committed) = kms.keys.commit(&lock, Draft::of(entry), call.decided(spent)?).await?;
        return changed(committed, wire::answer(&json!({"KeyId": key.arn})));
    };
    let entries = family(kms, &Arc::new(entry));
    let (_, committed) = kms.keys.commit(&lock, without(entries, &material), call.decided(spent)?).await?;
    changed(committed, wire::answer(&json!({"KeyId": key.arn, "KeyMaterialId": material.wire_id()})))
}

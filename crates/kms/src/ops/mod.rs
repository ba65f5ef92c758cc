//! The operations. One file per group.

mod agree;
mod aliases;
mod change;
mod data_keys;
mod encrypt;
mod grants;
mod import;
mod keys;
mod layers;
mod marker;
mod policies;
mod recipient;
mod replicas;
mod rotation;
mod sign;
mod state;
mod stores;
mod tags;
mod usage;

use bytes::Bytes;
pub(crate) use import::without;
pub(crate) use rotation::{family, rotate_by_itself};
use serde::{Deserialize, Serialize};
pub(crate) use state::delete_by_itself;

use crate::{call::Call, error::ApiError, operation::Operation, wire};

/// Carries out a request.
pub(crate) async fn dispatch(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    match call.operation {
        Operation::CancelKeyDeletion => state::cancel_deletion(call).await,
        Operation::ConnectCustomKeyStore => stores::connect(call).await,
        Operation::CreateAlias => aliases::create(call).await,
        Operation::CreateCustomKeyStore => stores::create(call).await,
        Operation::CreateGrant => grants::create(call).await,
        Operation::CreateKey => keys::create(call).await,
        Operation::Decapsulate => agree::decapsulate(call).await,
        Operation::Decrypt => encrypt::decrypt(call).await,
        Operation::DeleteAlias => aliases::delete(call).await,
        Operation::DeleteCustomKeyStore => stores::delete(call).await,
        Operation::DeleteImportedKeyMaterial => import::delete(call).await,
        Operation::DeriveSharedSecret => agree::derive(call).await,
        Operation::DescribeCustomKeyStores => stores::describe(call),
        Operation::DescribeKey => keys::describe(call),
        Operation::DisableKey => state::set_enabled(call, false).await,
        Operation::DisableKeyRotation => rotation::disable(call).await,
        Operation::DisconnectCustomKeyStore => stores::disconnect(call).await,
        Operation::EnableKey => state::set_enabled(call, true).await,
        Operation::EnableKeyRotation => rotation::enable(call).await,
        Operation::Encapsulate => agree::encapsulate(call).await,
        Operation::Encrypt => encrypt::encrypt(call).await,
        Operation::GenerateDataKey => data_keys::data_key(call, true).await,
        Operation::GenerateDataKeyPair => data_keys::data_key_pair(call, true).await,
        Operation::GenerateDataKeyPairWithoutPlaintext => data_keys::data_key_pair(call, false).await,
        Operation::GenerateDataKeyWithoutPlaintext => data_keys::data_key(call, false).await,
        Operation::GenerateMac => sign::generate_mac(call).await,
        Operation::GenerateRandom => data_keys::random(call).await,
        Operation::GetKeyLastUsage => usage::last(call),
        Operation::GetKeyPolicy => policies::get(call),
        Operation::GetKeyRotationStatus => rotation::status(call),
        Operation::GetParametersForImport => import::parameters(call).await,
        Operation::GetPublicKey => sign::public_key(call).await,
        Operation::ImportKeyMaterial => import::import(call).await,
        Operation::ListAliases => aliases::list(call),
        Operation::ListGrants => grants::list(call),
        Operation::ListKeyPolicies => policies::list(call),
        Operation::ListKeyRotations => rotation::list(call),
        Operation::ListKeys => keys::list(call),
        Operation::ListResourceTags => tags::list(call),
        Operation::ListRetirableGrants => grants::list_retirable(call),
        Operation::PutKeyPolicy => policies::put(call).await,
        Operation::ReEncrypt => encrypt::re_encrypt(call).await,
        Operation::ReplicateKey => replicas::replicate(call).await,
        Operation::RetireGrant => grants::retire(call).await,
        Operation::RevokeGrant => grants::revoke(call).await,
        Operation::RotateKeyOnDemand => rotation::rotate_on_demand(call).await,
        Operation::ScheduleKeyDeletion => state::schedule_deletion(call).await,
        Operation::Sign => sign::sign(call).await,
        Operation::TagResource => tags::tag(call).await,
        Operation::UntagResource => tags::untag(call).await,
        Operation::UpdateAlias => aliases::update(call).await,
        Operation::UpdateCustomKeyStore => stores::update(call).await,
        Operation::UpdateKeyDescription => keys::update_description(call).await,
        Operation::UpdatePrimaryRegion => replicas::update_primary(call).await,
        Operation::Verify => sign::verify(call).await,
        Operation::VerifyMac => sign::verify_mac(call).await,
    }
}

/// The answer of operations that have nothing to say.
fn nothing() -> Result<Bytes, ApiError> {
    Ok(Bytes::from_static(b"{}"))
}

/// A request that names a key, and nothing else.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyOnly {
    key_id: Option<String>,
}

/// A request that names a key in any way, and shows grant tokens.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyWithTokens {
    key_id: Option<String>,
    grant_tokens: Option<Vec<String>>,
}

/// The members that answers of cryptographic operations have; each has some.
#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct CryptoAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<wire::SecretOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_for_recipient: Option<String>,
    key_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_material_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_algorithm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_algorithm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_valid: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_algorithm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_valid: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_secret: Option<wire::SecretOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_secret_ciphertext_blob: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encapsulation_algorithm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_agreement_algorithm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_origin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_ciphertext_blob: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_plaintext: Option<wire::SecretOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_pair_spec: Option<&'a str>,
}

/// `Limit` of a listing.
fn limit(limit: Option<i64>, default: usize, max: i64) -> Result<usize, ApiError> {
    let mut violations = wire::Violations::default();
    violations.range(limit, "limit", 1, max);
    violations.finish()?;
    Ok(limit.map_or(default, |limit| limit as usize))
}

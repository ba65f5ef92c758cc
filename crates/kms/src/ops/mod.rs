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
use holdfast_core::Committed;
use holdfast_service::Done;
pub(crate) use import::without;
pub(crate) use rotation::{family, is_due, rotate_by_itself};
use serde::{Deserialize, Serialize};
pub(crate) use state::delete_by_itself;

use crate::{call::Call, error::ApiError, operation::Operation, wire};

/// What an operation that may change something gives back.
type Answer = Result<Done<Bytes>, ApiError>;

/// Carries out a request.
pub(crate) async fn dispatch(call: &mut Call<'_>) -> Answer {
    match call.operation {
        Operation::CancelKeyDeletion => state::cancel_deletion(call).await,
        Operation::ConnectCustomKeyStore => stores::connect(call).await.map(Done::Told),
        Operation::CreateAlias => aliases::create(call).await,
        Operation::CreateCustomKeyStore => stores::create(call).await,
        Operation::CreateGrant => grants::create(call).await,
        Operation::CreateKey => keys::create(call).await,
        Operation::Decapsulate => agree::decapsulate(call).await.map(Done::Told),
        Operation::Decrypt => encrypt::decrypt(call).await.map(Done::Told),
        Operation::DeleteAlias => aliases::delete(call).await,
        Operation::DeleteCustomKeyStore => stores::delete(call).await,
        Operation::DeleteImportedKeyMaterial => import::delete(call).await,
        Operation::DeriveSharedSecret => agree::derive(call).await.map(Done::Told),
        Operation::DescribeCustomKeyStores => stores::describe(call).map(Done::Told),
        Operation::DescribeKey => keys::describe(call).map(Done::Told),
        Operation::DisableKey => state::set_enabled(call, false).await,
        Operation::DisableKeyRotation => rotation::disable(call).await,
        Operation::DisconnectCustomKeyStore => stores::disconnect(call).await,
        Operation::EnableKey => state::set_enabled(call, true).await,
        Operation::EnableKeyRotation => rotation::enable(call).await,
        Operation::Encapsulate => agree::encapsulate(call).await.map(Done::Told),
        Operation::Encrypt => encrypt::encrypt(call).await.map(Done::Told),
        Operation::GenerateDataKey => data_keys::data_key(call, true).await.map(Done::Told),
        Operation::GenerateDataKeyPair => data_keys::data_key_pair(call, true).await.map(Done::Told),
        Operation::GenerateDataKeyPairWithoutPlaintext => data_keys::data_key_pair(call, false).await.map(Done::Told),
        Operation::GenerateDataKeyWithoutPlaintext => data_keys::data_key(call, false).await.map(Done::Told),
        Operation::GenerateMac => sign::generate_mac(call).await.map(Done::Told),
        Operation::GenerateRandom => data_keys::random(call).await.map(Done::Told),
        Operation::GetKeyLastUsage => usage::last(call).map(Done::Told),
        Operation::GetKeyPolicy => policies::get(call).map(Done::Told),
        Operation::GetKeyRotationStatus => rotation::status(call).map(Done::Told),
        Operation::GetParametersForImport => import::parameters(call).await.map(Done::Told),
        Operation::GetPublicKey => sign::public_key(call).await.map(Done::Told),
        Operation::ImportKeyMaterial => import::import(call).await,
        Operation::ListAliases => aliases::list(call).map(Done::Told),
        Operation::ListGrants => grants::list(call).map(Done::Told),
        Operation::ListKeyPolicies => policies::list(call).map(Done::Told),
        Operation::ListKeyRotations => rotation::list(call).map(Done::Told),
        Operation::ListKeys => keys::list(call).map(Done::Told),
        Operation::ListResourceTags => tags::list(call).map(Done::Told),
        Operation::ListRetirableGrants => grants::list_retirable(call).map(Done::Told),
        Operation::PutKeyPolicy => policies::put(call).await,
        Operation::ReEncrypt => encrypt::re_encrypt(call).await.map(Done::Told),
        Operation::ReplicateKey => replicas::replicate(call).await,
        Operation::RetireGrant => grants::retire(call).await,
        Operation::RevokeGrant => grants::revoke(call).await,
        Operation::RotateKeyOnDemand => rotation::rotate_on_demand(call).await,
        Operation::ScheduleKeyDeletion => state::schedule_deletion(call).await,
        Operation::Sign => sign::sign(call).await.map(Done::Told),
        Operation::TagResource => tags::tag(call).await,
        Operation::UntagResource => tags::untag(call).await,
        Operation::UpdateAlias => aliases::update(call).await,
        Operation::UpdateCustomKeyStore => stores::update(call).await,
        Operation::UpdateKeyDescription => keys::update_description(call).await,
        Operation::UpdatePrimaryRegion => replicas::update_primary(call).await,
        Operation::Verify => sign::verify(call).await.map(Done::Told),
        Operation::VerifyMac => sign::verify_mac(call).await.map(Done::Told),
    }
}

/// The answer to a change.
fn changed(committed: Committed, body: Result<Bytes, ApiError>) -> Answer {
    Ok(Done::Changed(committed, body?))
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

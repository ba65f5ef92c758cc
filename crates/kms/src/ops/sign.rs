//! Signatures, message authentication codes, public keys.

use bytes::Bytes;
use holdfast_core::{Operation, Outcome, Permit};
use holdfast_crypto::{KeySpec, SignatureScheme, der};
use serde::Deserialize;

use super::{CryptoAnswer, KeyWithTokens};
use crate::{
    action::KmsAction,
    call::{Call, Named, With},
    code::Code,
    error::ApiError,
    keys::KeyEntry,
    spec::{self, KeyUsage, spec_name},
    usable::{self, Enabled, Usable},
    wire::{self, BlobMember, Violations},
};

const MESSAGE_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SignRequest {
    key_id: Option<String>,
    message: Option<BlobMember>,
    message_type: Option<String>,
    signature: Option<BlobMember>,
    signing_algorithm: Option<String>,
    grant_tokens: Option<Vec<String>>,
    dry_run: Option<bool>,
}

/// A checked request, ready to be carried out.
struct Prepared {
    key: Usable,
    permit: Permit,
    algorithm: String,
    scheme: SignatureScheme,
    /// What is signed: a digest, or the message where the scheme takes it whole.
    signed: Vec<u8>,
}

fn incompatible(key: &KeyEntry, algorithm: &str) -> ApiError {
    let message = format!("Algorithm {algorithm} is incompatible with key spec {}.", spec_name(key.spec));
    ApiError::new(Code::InvalidKeyUsage, message)
}

fn prepare(call: &mut Call<'_>, request: &SignRequest, action: KmsAction) -> Result<Prepared, ApiError> {
    let message = request.message.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    violations.text(request.key_id.as_deref(), "keyId", 1, 2048);
    let message = violations.blob(message, "message", 1, MESSAGE_BYTES_MAX).to_vec();
    let algorithm = violations.text(request.signing_algorithm.as_deref(), "signingAlgorithm", 0, 64);
    violations.one_of(request.signing_algorithm.as_deref(), "signingAlgorithm", spec::SIGNING_ALGORITHMS);
    violations.one_of(request.message_type.as_deref(), "messageType", &["RAW", "DIGEST", "EXTERNAL_MU"]);
    violations.finish()?;
    let message_type = request.message_type.as_deref().unwrap_or("RAW");
    call.told.algorithm = Some(algorithm.to_owned());
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let facts =
        [("kms:signingalgorithm", vec![algorithm.to_owned()]), ("kms:messagetype", vec![message_type.to_owned()])];
    let permit =
        call.permit_shown(&tokens, action, &key, With { alias: alias.as_deref(), more: &facts, ..With::default() })?;
    let key = call.usable(&key, KeyUsage::SignVerify)?;
    if matches!(algorithm, "ED25519_PH_SHA_512" | "SM2DSA") || message_type == "EXTERNAL_MU" {
        return Err(ApiError::unsupported(format!("{algorithm} with MessageType {message_type} is not offered here")));
    }
    let (scheme, hash) = spec::signature_scheme(algorithm, key.spec).ok_or_else(|| incompatible(&key, algorithm))?;
    let signed = match (message_type, hash) {
        ("DIGEST", Some(hash)) if message.len() == hash.len() => message,
        ("DIGEST", Some(_)) => {
            return Err(ApiError::validation(format!("Digest is invalid length for algorithm {algorithm}.")));
        }
        ("DIGEST", None) => {
            return Err(ApiError::validation(format!("Algorithm {algorithm} takes MessageType RAW.")));
        }
        (_, Some(hash)) => hash.digest(&message),
        (_, None) => message,
    };
    Ok(Prepared { permit, algorithm: algorithm.to_owned(), scheme, signed, key })
}

async fn perform(call: &mut Call<'_>, key: &Usable, permit: Permit, operation: Operation) -> Result<Outcome, ApiError> {
    let material = key.current_material()?;
    call.told.material = Some(material.id.to_string());
    usable::perform(call.kms, permit, key, material, operation).await
}

pub(super) async fn sign(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: SignRequest = call.parse()?;
    let Prepared { key, permit, algorithm, scheme, signed } = prepare(call, &request, KmsAction::Sign)?;
    call.unless_dry_run(request.dry_run)?;
    let outcome = perform(call, &key, permit, Operation::Sign { scheme, digest: signed }).await?;
    let Outcome::Signature(signature) = outcome else { return Err(ApiError::internal("the HSM did something else")) };
    let signature = match key.spec {
        KeySpec::Ec(_) => der::ecdsa_signature(&signature),
        _ => signature,
    };
    wire::answer(&CryptoAnswer {
        key_id: &key.arn,
        signature: Some(wire::encode(&signature)),
        signing_algorithm: Some(&algorithm),
        ..CryptoAnswer::default()
    })
}

pub(super) async fn verify(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let invalid = || ApiError::new(Code::KmsInvalidSignature, "The signature is not valid");
    let request: SignRequest = call.parse()?;
    let signature = request.signature.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    let signature = violations.blob(signature, "signature", 1, 6144).to_vec();
    violations.finish()?;
    let Prepared { key, permit, algorithm, scheme, signed } = prepare(call, &request, KmsAction::Verify)?;
    call.unless_dry_run(request.dry_run)?;
    let signature = match key.spec {
        KeySpec::Ec(curve) => der::ecdsa_signature_fixed(curve, &signature).map_err(|_| invalid())?,
        _ => signature,
    };
    let outcome = perform(call, &key, permit, Operation::Verify { scheme, digest: signed, signature }).await?;
    match outcome {
        Outcome::Verified(true) => wire::answer(&CryptoAnswer {
            key_id: &key.arn,
            signature_valid: Some(true),
            signing_algorithm: Some(&algorithm),
            ..CryptoAnswer::default()
        }),
        Outcome::Verified(false) => Err(invalid()),
        _ => Err(ApiError::internal("the HSM did something else")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MacRequest {
    key_id: Option<String>,
    message: Option<BlobMember>,
    mac: Option<BlobMember>,
    mac_algorithm: Option<String>,
    grant_tokens: Option<Vec<String>>,
    dry_run: Option<bool>,
}

fn prepare_mac(call: &mut Call<'_>, request: &MacRequest, action: KmsAction) -> Result<Prepared, ApiError> {
    let message = request.message.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    violations.text(request.key_id.as_deref(), "keyId", 1, 2048);
    let signed = violations.blob(message, "message", 1, MESSAGE_BYTES_MAX).to_vec();
    let algorithm = violations.text(request.mac_algorithm.as_deref(), "macAlgorithm", 0, 64).to_owned();
    violations.one_of(request.mac_algorithm.as_deref(), "macAlgorithm", spec::MAC_ALGORITHMS);
    violations.finish()?;
    call.told.algorithm = Some(algorithm.clone());
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let facts = [("kms:macalgorithm", vec![algorithm.clone()])];
    let permit =
        call.permit_shown(&tokens, action, &key, With { alias: alias.as_deref(), more: &facts, ..With::default() })?;
    let key = call.usable(&key, KeyUsage::GenerateVerifyMac)?;
    let KeySpec::Hmac(hash) = key.spec else { return Err(call.wrong_usage(&key)) };
    if !spec::algorithms(key.spec, key.usage).1.contains(&algorithm.as_str()) {
        return Err(incompatible(&key, &algorithm));
    }
    Ok(Prepared { permit, algorithm, scheme: SignatureScheme::Mac(hash), signed, key })
}

pub(super) async fn generate_mac(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: MacRequest = call.parse()?;
    let Prepared { key, permit, algorithm, scheme, signed } = prepare_mac(call, &request, KmsAction::GenerateMac)?;
    call.unless_dry_run(request.dry_run)?;
    let outcome = perform(call, &key, permit, Operation::Sign { scheme, digest: signed }).await?;
    let Outcome::Signature(mac) = outcome else { return Err(ApiError::internal("the HSM did something else")) };
    wire::answer(&CryptoAnswer {
        key_id: &key.arn,
        mac: Some(wire::encode(&mac)),
        mac_algorithm: Some(&algorithm),
        ..CryptoAnswer::default()
    })
}

pub(super) async fn verify_mac(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: MacRequest = call.parse()?;
    let mac = request.mac.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    let signature = violations.blob(mac, "mac", 1, 6144).to_vec();
    violations.finish()?;
    let Prepared { key, permit, algorithm, scheme, signed } = prepare_mac(call, &request, KmsAction::VerifyMac)?;
    call.unless_dry_run(request.dry_run)?;
    let outcome = perform(call, &key, permit, Operation::Verify { scheme, digest: signed, signature }).await?;
    match outcome {
        Outcome::Verified(true) => wire::answer(&CryptoAnswer {
            key_id: &key.arn,
            mac_valid: Some(true),
            mac_algorithm: Some(&algorithm),
            ..CryptoAnswer::default()
        }),
        Outcome::Verified(false) => Err(ApiError::new(Code::InvalidMac, "The MAC is not valid")),
        _ => Err(ApiError::internal("the HSM did something else")),
    }
}

/// Only of an enabled key.
async fn public_half(call: &Call<'_>, key: &Enabled<'_>) -> Result<Option<Vec<u8>>, ApiError> {
    match key.current() {
        Some(material) => Ok(call.kms.keys.public(key, material).await?.spki()),
        None => Ok(None),
    }
}

pub(super) async fn public_key(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: KeyWithTokens = call.parse()?;
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    call.allowed_shown(&tokens, KmsAction::GetPublicKey, &key, With { alias: alias.as_deref(), ..With::default() })?;
    let key = call.enabled(&key)?;
    let unsupported = || ApiError::unsupported(format!("{} has no public key.", key.arn));
    let public = public_half(call, &key).await?.ok_or_else(unsupported)?;
    let (list, algorithms) = spec::algorithms(key.spec, key.usage);
    let mut answer = serde_json::json!({
        "KeyId": key.arn,
        "PublicKey": wire::encode(&public),
        "KeySpec": spec_name(key.spec),
        "KeyUsage": key.usage.name(),
        list: algorithms,
    });
    if spec::has_old_name(key.spec) {
        answer["CustomerMasterKeySpec"] = spec_name(key.spec).into();
    }
    wire::answer(&answer)
}

//! Shared secrets: by agreement (ECDH), by encapsulation (ML-KEM).

use bytes::Bytes;
use holdfast_core::{Operation, Outcome};
use holdfast_crypto::SecretBytes;
use serde::Deserialize;

use super::{
    CryptoAnswer,
    recipient::{Recipient, Released, attested, release},
};
use crate::{
    action::KmsAction,
    call::{Call, Named, With},
    error::ApiError,
    facts::Attested,
    keys::KeyEntry,
    spec::KeyUsage,
    usable::{self, Usable},
    wire::{self, BlobMember, Violations},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    key_id: Option<String>,
    key_agreement_algorithm: Option<String>,
    encapsulation_algorithm: Option<String>,
    public_key: Option<BlobMember>,
    shared_secret_ciphertext_blob: Option<BlobMember>,
    grant_tokens: Option<Vec<String>>,
    recipient: Option<Recipient>,
    dry_run: Option<bool>,
}

struct Performed {
    key: Usable,
    outcome: Outcome,
    attested: Option<Attested>,
}

/// One use of a key: finds it, asks for the permit, checks state and usage, performs.
async fn perform(
    call: &mut Call<'_>,
    request: &Request,
    action: KmsAction,
    usage: KeyUsage,
    operation: Operation,
) -> Result<Performed, ApiError> {
    let attested = attested(call, request.recipient.as_ref())?;
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let facts = [("kms:keyagreementalgorithm", vec!["ECDH".to_owned()])];
    let more = if usage == KeyUsage::KeyAgreement { &facts[..] } else { &[] };
    let permit = call.permit_shown(
        &tokens,
        action,
        &key,
        With { alias: alias.as_deref(), attested: attested.as_ref(), more, ..With::default() },
    )?;
    let key = call.usable(&key, usage)?;
    call.unless_dry_run(request.dry_run)?;
    let material = key.current_material()?;
    call.told.material = Some(material.id.to_string());
    let outcome = usable::perform(call.kms, permit, &key, material, operation).await?;
    Ok(Performed { key, outcome, attested })
}

/// What every answer with a shared secret has.
fn shared<'a>(
    call: &Call<'_>,
    key: &'a KeyEntry,
    attested: Option<&Attested>,
    secret: &SecretBytes,
) -> Result<CryptoAnswer<'a>, ApiError> {
    let Released { plaintext, ciphertext_for_recipient } = release(call, attested, secret)?;
    Ok(CryptoAnswer { key_id: &key.arn, shared_secret: plaintext, ciphertext_for_recipient, ..CryptoAnswer::default() })
}

fn something_else() -> ApiError {
    ApiError::internal("the HSM did something else")
}

pub(super) async fn derive(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let peer = request.public_key.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    violations.text(request.key_agreement_algorithm.as_deref(), "keyAgreementAlgorithm", 0, 64);
    violations.one_of(request.key_agreement_algorithm.as_deref(), "keyAgreementAlgorithm", &["ECDH"]);
    let peer = violations.blob(peer, "publicKey", 1, 8192).to_vec();
    violations.finish()?;
    call.told.algorithm = Some("ECDH".into());
    let operation = Operation::Derive { peer };
    let usage = KeyUsage::KeyAgreement;
    let Performed { key, outcome, attested } =
        perform(call, &request, KmsAction::DeriveSharedSecret, usage, operation).await?;
    let Outcome::Plaintext(secret) = outcome else { return Err(something_else()) };
    wire::answer(&CryptoAnswer {
        key_agreement_algorithm: Some("ECDH"),
        key_origin: Some(key.origin.name()),
        ..shared(call, &key, attested.as_ref(), &secret)?
    })
}

fn check_kem(request: &Request, violations: &mut Violations) {
    violations.text(request.encapsulation_algorithm.as_deref(), "encapsulationAlgorithm", 0, 64);
    violations.one_of(request.encapsulation_algorithm.as_deref(), "encapsulationAlgorithm", &["ML_KEM"]);
}

pub(super) async fn encapsulate(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    check_kem(&request, &mut violations);
    violations.finish()?;
    let usage = KeyUsage::EncapsulateDecapsulate;
    let Performed { key, outcome, attested } =
        perform(call, &request, KmsAction::Encapsulate, usage, Operation::Encapsulate).await?;
    let Outcome::Encapsulated(ciphertext, secret) = outcome else { return Err(something_else()) };
    wire::answer(&CryptoAnswer {
        shared_secret_ciphertext_blob: Some(wire::encode(&ciphertext)),
        encapsulation_algorithm: Some("ML_KEM"),
        ..shared(call, &key, attested.as_ref(), &secret)?
    })
}

pub(super) async fn decapsulate(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let ciphertext = request.shared_secret_ciphertext_blob.as_ref().map(BlobMember::bytes);
    let mut violations = Violations::default();
    check_kem(&request, &mut violations);
    let ciphertext = violations.blob(ciphertext, "sharedSecretCiphertextBlob", 1, 6144).to_vec();
    violations.finish()?;
    let usage = KeyUsage::EncapsulateDecapsulate;
    let operation = Operation::Decapsulate { ciphertext };
    let Performed { key, outcome, attested } =
        perform(call, &request, KmsAction::Decapsulate, usage, operation).await?;
    let Outcome::Plaintext(secret) = outcome else { return Err(something_else()) };
    wire::answer(&CryptoAnswer {
        encapsulation_algorithm: Some("ML_KEM"),
        ..shared(call, &key, attested.as_ref(), &secret)?
    })
}

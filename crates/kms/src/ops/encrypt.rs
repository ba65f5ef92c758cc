//! Encrypt, Decrypt, ReEncrypt.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{CiphertextParts, EncryptionScheme, Operation, Outcome, Permit};
use holdfast_crypto::{EncryptionPadding, KeySpec, SecretBytes};
use serde::{Deserialize, Serialize};

use super::{
    CryptoAnswer, layers,
    recipient::{Recipient, Released, attested, release},
};
use crate::{
    action::KmsAction,
    blob::{BLOB_BYTES_MAX, Blob},
    call::{Call, Named, With, checked_context},
    context::EncryptionContext,
    error::ApiError,
    facts::Attested,
    keys::{KeyEntry, KeyRef},
    spec::{self, KeyUsage},
    wire::{self, BlobText, Violations},
};

/// Longest plaintext, in bytes.
pub(super) const PLAINTEXT_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EncryptRequest {
    key_id: Option<String>,
    plaintext: Option<BlobText>,
    encryption_context: Option<EncryptionContext>,
    encryption_algorithm: Option<String>,
    grant_tokens: Option<Vec<String>>,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptRequest {
    key_id: Option<String>,
    ciphertext_blob: Option<BlobText>,
    encryption_context: Option<EncryptionContext>,
    encryption_algorithm: Option<String>,
    grant_tokens: Option<Vec<String>>,
    recipient: Option<Recipient>,
    dry_run: Option<bool>,
    dry_run_modifiers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReEncryptRequest {
    ciphertext_blob: Option<BlobText>,
    source_encryption_context: Option<EncryptionContext>,
    source_key_id: Option<String>,
    destination_key_id: Option<String>,
    destination_encryption_context: Option<EncryptionContext>,
    source_encryption_algorithm: Option<String>,
    destination_encryption_algorithm: Option<String>,
    grant_tokens: Option<Vec<String>>,
    dry_run: Option<bool>,
    dry_run_modifiers: Option<Vec<String>>,
}

pub(super) fn must_encrypt(key: &KeyEntry) -> Result<(), ApiError> {
    if key.usage == KeyUsage::EncryptDecrypt {
        return Ok(());
    }
    Err(wrong_usage(key))
}

pub(super) fn wrong_usage(key: &KeyEntry) -> ApiError {
    let message = format!("{} key usage is {} which is not valid for this operation.", key.arn, key.usage.name());
    ApiError::new("InvalidKeyUsageException", message)
}

/// What an algorithm is for this key: `None` for the symmetric one.
fn padding(key: &KeyEntry, algorithm: &str) -> Result<Option<(EncryptionPadding, usize)>, ApiError> {
    match (key.spec, spec::rsa_padding(algorithm)) {
        (KeySpec::Rsa { size, .. }, Some(padding)) => Ok(Some((padding, spec::rsa_plaintext_max(size, padding)))),
        (KeySpec::Aes(_), None) if algorithm == "SYMMETRIC_DEFAULT" => Ok(None),
        _ => {
            let message = format!("Algorithm {algorithm} is incompatible with key spec {}.", spec::spec_name(key.spec));
            Err(ApiError::new("InvalidKeyUsageException", message))
        }
    }
}

fn no_context(context: &EncryptionContext) -> Result<(), ApiError> {
    if context.is_empty() {
        return Ok(());
    }
    Err(ApiError::validation("An encryption context is not supported with asymmetric keys"))
}

fn algorithm_facts(algorithm: &str) -> [(&'static str, Vec<String>); 1] {
    [("kms:encryptionalgorithm", vec![algorithm.to_owned()])]
}

fn check_algorithm(algorithm: Option<&str>, member: &str) -> Result<(), ApiError> {
    let mut violations = Violations::default();
    violations.one_of(algorithm, member, spec::ENCRYPTION_ALGORITHMS);
    violations.finish()
}

async fn asymmetric(
    call: &Call<'_>,
    permit: Permit,
    key: &KeyEntry,
    operation: Operation,
) -> Result<Outcome, ApiError> {
    let material = key.current().ok_or_else(|| ApiError::internal("an enabled key without material"))?;
    Ok(call.kms.keys.open_key(key, material).await?.perform(permit, operation).await?)
}

async fn encrypt_bytes(
    call: &mut Call<'_>,
    permit: Permit,
    key: &KeyEntry,
    algorithm: &str,
    plaintext: SecretBytes,
    context: &EncryptionContext,
) -> Result<(Vec<u8>, Option<String>), ApiError> {
    match padding(key, algorithm)? {
        None => {
            let sealed = layers::seal(call, permit, key, plaintext, context).await?;
            Ok((sealed.blob, Some(sealed.material_id)))
        }
        Some((padding, bytes_max)) => {
            if plaintext.len() > bytes_max {
                return Err(ApiError::validation(format!(
                    "Algorithm {algorithm} and key spec {} cannot encrypt data larger than {bytes_max} bytes.",
                    spec::spec_name(key.spec)
                )));
            }
            let operation = Operation::Encrypt {
                scheme: EncryptionScheme::Rsa(padding),
                plaintext,
                parts: CiphertextParts::default(),
            };
            match asymmetric(call, permit, key, operation).await? {
                Outcome::Ciphertext(ciphertext, _) => Ok((ciphertext, None)),
                _ => Err(ApiError::internal("the HSM did something else")),
            }
        }
    }
}

pub(super) async fn encrypt(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: EncryptRequest = call.parse()?;
    let plaintext = request.plaintext.as_ref().map(BlobText::decode).transpose()?.map(SecretBytes::take);
    let mut violations = Violations::default();
    violations.text(request.key_id.as_deref(), "keyId", 1, 2048);
    violations.blob(plaintext.as_ref().map(SecretBytes::expose), "plaintext", 1, PLAINTEXT_BYTES_MAX);
    violations.one_of(request.encryption_algorithm.as_deref(), "encryptionAlgorithm", spec::ENCRYPTION_ALGORITHMS);
    violations.finish()?;
    let plaintext = plaintext.unwrap_or_else(|| SecretBytes::zeroed(0));
    let context = checked_context(request.encryption_context)?;
    let algorithm = request.encryption_algorithm.as_deref().unwrap_or("SYMMETRIC_DEFAULT");
    call.told.algorithm = Some(algorithm.to_owned());
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    call.check_tokens(request.grant_tokens.as_deref())?;
    let facts = algorithm_facts(algorithm);
    let with = With { alias: alias.as_deref(), context: Some(&context), more: &facts, ..With::default() };
    let permit = call.permit(KmsAction::Encrypt, &key, with)?;
    call.must_be_enabled(&key)?;
    must_encrypt(&key)?;
    if padding(&key, algorithm)?.is_some() {
        no_context(&context)?;
    }
    call.unless_dry_run(request.dry_run)?;
    let (ciphertext, _) = encrypt_bytes(call, permit, &key, algorithm, plaintext, &context).await?;
    wire::answer(&CryptoAnswer {
        ciphertext_blob: Some(wire::encode(&ciphertext)),
        key_id: &key.arn,
        encryption_algorithm: Some(algorithm),
        ..CryptoAnswer::default()
    })
}

/// What is to be decrypted, and who named its key.
struct Source {
    named: Named,
    /// Whether the caller named the key, or only the blob does.
    by_blob: bool,
    algorithm: String,
    /// To be let go, and decrypted in vain, if only the permission is tried.
    ignored: bool,
}

/// Finds the key of a ciphertext. What is said of one that is not there does not tell whether it exists elsewhere.
fn source(
    call: &mut Call<'_>,
    member: &str,
    key_id: Option<&str>,
    algorithm: Option<&str>,
    ciphertext: &[u8],
    modifiers: Option<&[String]>,
    dry_run: Option<bool>,
) -> Result<Source, ApiError> {
    let ignored = modifiers.unwrap_or_default().iter().any(|modifier| modifier == "IGNORE_CIPHERTEXT");
    if ignored && dry_run != Some(true) {
        return Err(ApiError::validation("DryRunModifiers needs DryRun"));
    }
    if !ignored {
        let mut violations = Violations::default();
        violations.blob(Some(ciphertext), "ciphertextBlob", 1, BLOB_BYTES_MAX);
        violations.finish()?;
    }
    let algorithm = algorithm.unwrap_or("SYMMETRIC_DEFAULT").to_owned();
    if key_id.is_some() || ignored {
        let named = call.named(member, key_id)?;
        return Ok(Source { named, by_blob: false, algorithm, ignored });
    }
    if algorithm != "SYMMETRIC_DEFAULT" {
        return Err(ApiError::validation("KeyId is needed to decrypt under an asymmetric key"));
    }
    let blob = Blob::read(ciphertext).map_err(|_| ApiError::invalid_ciphertext())?;
    let key = call.kms.keys.entry(&KeyRef { region: Arc::clone(call.region), id: blob.key }).ok_or_else(not_allowed)?;
    call.told.key = Some(key.arn.clone());
    Ok(Source { named: Named { key, alias: None }, by_blob: true, algorithm, ignored })
}

fn not_allowed() -> ApiError {
    ApiError::new(
        "AccessDeniedException",
        "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not \
         allowed to access.",
    )
}

impl Source {
    fn permit(
        &self,
        call: &mut Call<'_>,
        action: KmsAction,
        context: &EncryptionContext,
        attested: Option<&Attested>,
        more: &[(&'static str, Vec<String>)],
    ) -> Result<Permit, ApiError> {
        let with =
            With { alias: self.named.alias.as_deref(), context: Some(context), attested, more, ..With::default() };
        call.permit(action, &self.named.key, with).map_err(|error| {
            if self.by_blob { not_allowed().because(error.reason.unwrap_or(error.message)) } else { error }
        })
    }

    async fn decrypt(
        &self,
        call: &mut Call<'_>,
        permit: Permit,
        ciphertext: &[u8],
        context: &EncryptionContext,
    ) -> Result<(SecretBytes, Option<String>), ApiError> {
        let key = &self.named.key;
        match padding(key, &self.algorithm)? {
            None => {
                let blob = Blob::read(ciphertext).map_err(|_| ApiError::invalid_ciphertext())?;
                if blob.key != key.id {
                    let message = "The key ID in the request does not identify a CMK that can perform this operation.";
                    return Err(ApiError::new("IncorrectKeyException", message));
                }
                let (plaintext, material) = layers::open(call, permit, key, &blob, context).await?;
                Ok((plaintext, Some(material)))
            }
            Some((padding, _)) => {
                let operation = Operation::Decrypt {
                    scheme: EncryptionScheme::Rsa(padding),
                    ciphertext: ciphertext.to_vec(),
                    parts: CiphertextParts::default(),
                };
                // A wrong length and a wrong padding are the same to the caller.
                let outcome = asymmetric(call, permit, key, operation).await;
                match outcome.map_err(|error| match error.code {
                    "ValidationException" => ApiError::invalid_ciphertext(),
                    _ => error,
                })? {
                    Outcome::Plaintext(plaintext) => Ok((plaintext, None)),
                    _ => Err(ApiError::internal("the HSM did something else")),
                }
            }
        }
    }
}

pub(super) async fn decrypt(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: DecryptRequest = call.parse()?;
    let attested = attested(call, request.recipient.as_ref())?;
    check_algorithm(request.encryption_algorithm.as_deref(), "encryptionAlgorithm")?;
    let ciphertext = request.ciphertext_blob.as_ref().map(BlobText::decode).transpose()?.unwrap_or_default();
    let context = checked_context(request.encryption_context)?;
    let source = source(
        call,
        "keyId",
        request.key_id.as_deref(),
        request.encryption_algorithm.as_deref(),
        &ciphertext,
        request.dry_run_modifiers.as_deref(),
        request.dry_run,
    )?;
    call.told.algorithm = Some(source.algorithm.clone());
    call.check_tokens(request.grant_tokens.as_deref())?;
    let facts = algorithm_facts(&source.algorithm);
    let permit = source.permit(call, KmsAction::Decrypt, &context, attested.as_ref(), &facts)?;
    let key = Arc::clone(&source.named.key);
    call.must_be_enabled(&key)?;
    must_encrypt(&key)?;
    if padding(&key, &source.algorithm)?.is_some() {
        no_context(&context)?;
    }
    if source.ignored {
        call.unless_dry_run(request.dry_run)?;
    }
    let (plaintext, material) = source.decrypt(call, permit, &ciphertext, &context).await?;
    call.unless_dry_run(request.dry_run)?;
    let Released { plaintext, ciphertext_for_recipient } = release(call, attested.as_ref(), &plaintext)?;
    wire::answer(&CryptoAnswer {
        plaintext,
        ciphertext_for_recipient,
        key_id: &key.arn,
        key_material_id: material.filter(|_| attested.is_none()),
        encryption_algorithm: Some(&source.algorithm),
        ..CryptoAnswer::default()
    })
}

pub(super) async fn re_encrypt(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer<'a> {
        ciphertext_blob: String,
        source_key_id: &'a str,
        key_id: &'a str,
        source_encryption_algorithm: &'a str,
        destination_encryption_algorithm: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        source_key_material_id: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        destination_key_material_id: Option<String>,
    }
    let request: ReEncryptRequest = call.parse()?;
    check_algorithm(request.source_encryption_algorithm.as_deref(), "sourceEncryptionAlgorithm")?;
    check_algorithm(request.destination_encryption_algorithm.as_deref(), "destinationEncryptionAlgorithm")?;
    let ciphertext = request.ciphertext_blob.as_ref().map(BlobText::decode).transpose()?.unwrap_or_default();
    let source_context = checked_context(request.source_encryption_context)?;
    let context = checked_context(request.destination_encryption_context)?;
    let algorithm = request.destination_encryption_algorithm.as_deref().unwrap_or("SYMMETRIC_DEFAULT");
    let source = source(
        call,
        "sourceKeyId",
        request.source_key_id.as_deref(),
        request.source_encryption_algorithm.as_deref(),
        &ciphertext,
        request.dry_run_modifiers.as_deref(),
        request.dry_run,
    )?;
    let from = Arc::clone(&source.named.key);
    let Named { key: to, alias } = call.named("destinationKeyId", request.destination_key_id.as_deref())?;
    call.told.context.push(("source-key", from.arn.clone()));
    call.check_tokens(request.grant_tokens.as_deref())?;
    let same = ("kms:reencryptonsamekey", vec![(from.id == to.id).to_string()]);
    let [source_algorithm] = algorithm_facts(&source.algorithm);
    let permit_from =
        source.permit(call, KmsAction::ReEncryptFrom, &source_context, None, &[source_algorithm, same.clone()])?;
    let [target_algorithm] = algorithm_facts(algorithm);
    let facts = [target_algorithm, same];
    let with = With { alias: alias.as_deref(), context: Some(&context), more: &facts, ..With::default() };
    let permit_to = call.permit(KmsAction::ReEncryptTo, &to, with)?;
    for (key, algorithm, context) in [(&from, source.algorithm.as_str(), &source_context), (&to, algorithm, &context)] {
        call.must_be_enabled(key)?;
        must_encrypt(key)?;
        if padding(key, algorithm)?.is_some() {
            no_context(context)?;
        }
    }
    if source.ignored {
        call.unless_dry_run(request.dry_run)?;
    }
    let (plaintext, source_material) = source.decrypt(call, permit_from, &ciphertext, &source_context).await?;
    call.unless_dry_run(request.dry_run)?;
    let (blob, material) = encrypt_bytes(call, permit_to, &to, algorithm, plaintext, &context).await?;
    wire::answer(&Answer {
        ciphertext_blob: wire::encode(&blob),
        source_key_id: &from.arn,
        key_id: &to.arn,
        source_encryption_algorithm: &source.algorithm,
        destination_encryption_algorithm: algorithm,
        source_key_material_id: source_material,
        destination_key_material_id: material,
    })
}

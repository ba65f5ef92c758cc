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
    call::{Call, GrantTokens, Named, With, checked_context},
    code::Code,
    context::EncryptionContext,
    error::ApiError,
    facts::Attested,
    keys::{KeyEntry, KeyRef},
    spec::{self, KeyUsage},
    usable::{Usable, perform},
    wire::{self, BlobMember, Violations},
};

/// Longest plaintext, in bytes.
pub(super) const PLAINTEXT_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EncryptRequest {
    key_id: Option<String>,
    plaintext: Option<BlobMember>,
    encryption_context: Option<EncryptionContext>,
    encryption_algorithm: Option<String>,
    grant_tokens: Option<Vec<String>>,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptRequest {
    key_id: Option<String>,
    ciphertext_blob: Option<BlobMember>,
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
    ciphertext_blob: Option<BlobMember>,
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

/// What an algorithm is for this key: `None` for the symmetric one.
fn padding(key: &KeyEntry, algorithm: &str) -> Result<Option<(EncryptionPadding, usize)>, ApiError> {
    match (key.spec, spec::rsa_padding(algorithm)) {
        (KeySpec::Rsa { size, .. }, Some(padding)) => Ok(Some((padding, spec::rsa_plaintext_max(size, padding)))),
        (KeySpec::Aes(_), None) if algorithm == "SYMMETRIC_DEFAULT" => Ok(None),
        _ => {
            let message = format!("Algorithm {algorithm} is incompatible with key spec {}.", spec::spec_name(key.spec));
            Err(ApiError::new(Code::InvalidKeyUsage, message))
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

async fn asymmetric(call: &Call<'_>, permit: Permit, key: &Usable, operation: Operation) -> Result<Outcome, ApiError> {
    perform(call.kms, permit, key, key.current_material()?, operation).await
}

async fn encrypt_bytes(
    call: &mut Call<'_>,
    permit: Permit,
    key: &Usable,
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
    let plaintext = request.plaintext.map(BlobMember::into_secret);
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
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let facts = algorithm_facts(algorithm);
    let with = With { alias: alias.as_deref(), context: Some(&context), more: &facts, ..With::default() };
    let permit = call.permit_shown(&tokens, KmsAction::Encrypt, &key, with)?;
    let key = call.usable(&key, KeyUsage::EncryptDecrypt)?;
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
    /// Empty if only the permission is tried.
    ciphertext: Vec<u8>,
    /// There is no ciphertext to be decrypted.
    ignored: bool,
}

/// The ciphertext of a request: empty, and true, if it is to be let go because only the permission is tried.
fn ciphertext(
    given: Option<&[u8]>,
    modifiers: Option<&[String]>,
    dry_run: Option<bool>,
) -> Result<(Vec<u8>, bool), ApiError> {
    let modifiers = modifiers.unwrap_or_default();
    let ignored = !modifiers.is_empty();
    let mut violations = Violations::default();
    for modifier in modifiers {
        violations.one_of(Some(modifier), "dryRunModifiers", &["IGNORE_CIPHERTEXT"]);
    }
    let ciphertext =
        if ignored { Vec::new() } else { violations.blob(given, "ciphertextBlob", 1, BLOB_BYTES_MAX).to_vec() };
    violations.finish()?;
    if ignored && dry_run != Some(true) {
        return Err(ApiError::validation("DryRunModifiers needs DryRun"));
    }
    Ok((ciphertext, ignored))
}

/// Finds the key of a ciphertext. What is said of one that is not there does not tell whether it exists elsewhere.
fn source(
    call: &mut Call<'_>,
    member: &str,
    key_id: Option<&str>,
    algorithm: Option<&str>,
    ciphertext: Vec<u8>,
    ignored: bool,
) -> Result<Source, ApiError> {
    let algorithm = algorithm.unwrap_or("SYMMETRIC_DEFAULT").to_owned();
    if key_id.is_some() || ignored {
        let named = call.named(member, key_id)?;
        return Ok(Source { named, by_blob: false, algorithm, ciphertext, ignored });
    }
    if algorithm != "SYMMETRIC_DEFAULT" {
        return Err(ApiError::validation("KeyId is needed to decrypt under an asymmetric key"));
    }
    let blob = Blob::read(&ciphertext).map_err(|_| ApiError::invalid_ciphertext())?;
    let key = call.kms.keys.entry(&KeyRef { region: Arc::clone(call.region), id: blob.key }).ok_or_else(not_allowed)?;
    call.told.key = Some(key.arn.clone());
    Ok(Source { named: Named { key, alias: None }, by_blob: true, algorithm, ciphertext, ignored })
}

fn not_allowed() -> ApiError {
    ApiError::new(
        Code::AccessDenied,
        "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not \
         allowed to access.",
    )
}

impl Source {
    fn permit(
        &self,
        call: &mut Call<'_>,
        tokens: &GrantTokens,
        action: KmsAction,
        context: &EncryptionContext,
        attested: Option<&Attested>,
        more: &[(&'static str, Vec<String>)],
    ) -> Result<Permit, ApiError> {
        let with =
            With { alias: self.named.alias.as_deref(), context: Some(context), attested, more, ..With::default() };
        call.permit_shown(tokens, action, &self.named.key, with).map_err(|error| {
            if self.by_blob { not_allowed().because(error.reason.unwrap_or(error.message)) } else { error }
        })
    }

    /// A ciphertext of ours names its key. Whatever that other one is that the caller names, and for what: it is not it.
    fn must_be_of_its_key(&self) -> Result<(), ApiError> {
        let symmetric = self.algorithm == "SYMMETRIC_DEFAULT" && !self.ignored;
        match Blob::read(&self.ciphertext) {
            Ok(blob) if symmetric && blob.key != self.named.key.id => Err(ApiError::new(
                Code::IncorrectKey,
                "The key ID in the request does not identify a CMK that can perform this operation.",
            )),
            _ => Ok(()),
        }
    }

    async fn decrypt(
        &self,
        call: &mut Call<'_>,
        permit: Permit,
        key: &Usable,
        context: &EncryptionContext,
    ) -> Result<(SecretBytes, Option<String>), ApiError> {
        match padding(key, &self.algorithm)? {
            None => {
                let blob = Blob::read(&self.ciphertext).map_err(|_| ApiError::invalid_ciphertext())?;
                let (plaintext, material) = layers::open(call, permit, key, &blob, context).await?;
                Ok((plaintext, Some(material)))
            }
            Some((padding, _)) => {
                let operation = Operation::Decrypt {
                    scheme: EncryptionScheme::Rsa(padding),
                    ciphertext: self.ciphertext.clone(),
                    parts: CiphertextParts::default(),
                };
                // A wrong length and a wrong padding are the same to the caller.
                let outcome = asymmetric(call, permit, key, operation).await;
                match outcome.map_err(|error| match error.code {
                    Code::Validation => ApiError::invalid_ciphertext(),
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
    check_algorithm(request.encryption_algorithm.as_deref(), "encryptionAlgorithm")?;
    let given = request.ciphertext_blob.as_ref().map(BlobMember::bytes);
    let (ciphertext, ignored) = ciphertext(given, request.dry_run_modifiers.as_deref(), request.dry_run)?;
    let context = checked_context(request.encryption_context)?;
    let attested = attested(call, request.recipient.as_ref())?;
    let algorithm = request.encryption_algorithm.as_deref();
    let source = source(call, "keyId", request.key_id.as_deref(), algorithm, ciphertext, ignored)?;
    call.told.algorithm = Some(source.algorithm.clone());
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let facts = algorithm_facts(&source.algorithm);
    let permit = source.permit(call, &tokens, KmsAction::Decrypt, &context, attested.as_ref(), &facts)?;
    source.must_be_of_its_key()?;
    let key = call.usable(&source.named.key, KeyUsage::EncryptDecrypt)?;
    if padding(&key, &source.algorithm)?.is_some() {
        no_context(&context)?;
    }
    if source.ignored {
        call.unless_dry_run(request.dry_run)?;
    }
    let (plaintext, material) = source.decrypt(call, permit, &key, &context).await?;
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
    let given = request.ciphertext_blob.as_ref().map(BlobMember::bytes);
    let (ciphertext, ignored) = ciphertext(given, request.dry_run_modifiers.as_deref(), request.dry_run)?;
    let source_context = checked_context(request.source_encryption_context)?;
    let context = checked_context(request.destination_encryption_context)?;
    let algorithm = request.destination_encryption_algorithm.as_deref().unwrap_or("SYMMETRIC_DEFAULT");
    let source_algorithm = request.source_encryption_algorithm.as_deref();
    let source = source(call, "sourceKeyId", request.source_key_id.as_deref(), source_algorithm, ciphertext, ignored)?;
    let from = Arc::clone(&source.named.key);
    let Named { key: to, alias } = call.named("destinationKeyId", request.destination_key_id.as_deref())?;
    call.told.context.push(("source-key", from.arn.clone()));
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let same = ("kms:reencryptonsamekey", vec![(from.id == to.id).to_string()]);
    let [source_algorithm] = algorithm_facts(&source.algorithm);
    let permit_from = source.permit(
        call,
        &tokens,
        KmsAction::ReEncryptFrom,
        &source_context,
        None,
        &[source_algorithm, same.clone()],
    )?;
    let [target_algorithm] = algorithm_facts(algorithm);
    let facts = [target_algorithm, same];
    let with = With { alias: alias.as_deref(), context: Some(&context), more: &facts, ..With::default() };
    let permit_to = call.permit_shown(&tokens, KmsAction::ReEncryptTo, &to, with)?;
    source.must_be_of_its_key()?;
    let check = |call: &Call<'_>, key: &Arc<KeyEntry>, algorithm: &str, context: &EncryptionContext| {
        let key = call.usable(key, KeyUsage::EncryptDecrypt)?;
        if padding(&key, algorithm)?.is_some() {
            no_context(context)?;
        }
        Ok::<_, ApiError>(key)
    };
    let from = check(call, &from, &source.algorithm, &source_context)?;
    let to = check(call, &to, algorithm, &context)?;
    if source.ignored {
        call.unless_dry_run(request.dry_run)?;
    }
    let (plaintext, source_material) = source.decrypt(call, permit_from, &from, &source_context).await?;
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

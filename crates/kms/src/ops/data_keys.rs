//! Data keys, data key pairs, random bytes.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_crypto::SecretBytes;
use serde::{Deserialize, Serialize};

use super::{
    CryptoAnswer, layers,
    recipient::{Recipient, Released, attested, release},
};
use crate::{
    action::KmsAction,
    call::{Call, Named, With, checked_context},
    code::Code,
    context::EncryptionContext,
    error::ApiError,
    keys::{KeyEntry, Origin},
    spec::{self, KeyUsage, spec_name},
    usable::Usable,
    wire::{self, SecretOut, Violations},
};

const PAIR_SPECS: &[&str] = &[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SM2",
    "ECC_NIST_EDWARDS25519",
    "ML_KEM_512",
    "ML_KEM_768",
    "ML_KEM_1024",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DataKeyRequest {
    key_id: Option<String>,
    encryption_context: Option<EncryptionContext>,
    number_of_bytes: Option<i64>,
    key_spec: Option<String>,
    key_pair_spec: Option<String>,
    grant_tokens: Option<Vec<String>>,
    recipient: Option<Recipient>,
    dry_run: Option<bool>,
}

/// Data keys are wrapped by symmetric keys.
fn wrapping(call: &Call<'_>, key: &Arc<KeyEntry>) -> Result<Usable, ApiError> {
    let key = call.usable(key, KeyUsage::EncryptDecrypt)?;
    if key.is_symmetric_encryption() {
        return Ok(key);
    }
    let (spec, operation) = (spec_name(key.spec), call.operation.name());
    let message = format!("{} key spec is {spec} which is not valid for {operation}.", key.arn);
    Err(ApiError::new(Code::InvalidKeyUsage, message))
}

pub(super) async fn data_key(call: &mut Call<'_>, with_plaintext: bool) -> Result<Bytes, ApiError> {
    let request: DataKeyRequest = call.parse()?;
    let mut violations = Violations::default();
    violations.text(request.key_id.as_deref(), "keyId", 1, 2048);
    violations.range(request.number_of_bytes, "numberOfBytes", 1, 1024);
    violations.one_of(request.key_spec.as_deref(), "keySpec", &["AES_256", "AES_128"]);
    violations.finish()?;
    let len = match (request.number_of_bytes, request.key_spec.as_deref()) {
        (Some(bytes), None) => bytes as usize,
        (None, Some("AES_128")) => 16,
        (None, Some(_)) => 32,
        _ => return Err(ApiError::validation("Please specify either number of bytes or key spec.")),
    };
    let context = checked_context(request.encryption_context)?;
    let attested = attested(call, request.recipient.as_ref())?;
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let with =
        With { alias: alias.as_deref(), context: Some(&context), attested: attested.as_ref(), ..With::default() };
    let action = if with_plaintext { KmsAction::GenerateDataKey } else { KmsAction::GenerateDataKeyWithoutPlaintext };
    let permit = call.permit_shown(&tokens, action, &key, with)?;
    let key = wrapping(call, &key)?;
    call.unless_dry_run(request.dry_run)?;
    let mut data_key = SecretBytes::zeroed(len);
    call.kms.ambient.fill(data_key.expose_mut());
    let released = with_plaintext.then(|| release(call, attested.as_ref(), &data_key)).transpose()?;
    let Released { plaintext, ciphertext_for_recipient } = released.unwrap_or_default();
    let sealed = layers::seal(call, permit, &key, data_key, &context).await?;
    wire::answer(&CryptoAnswer {
        ciphertext_blob: Some(wire::encode(&sealed.blob)),
        plaintext,
        ciphertext_for_recipient,
        key_id: &key.arn,
        key_material_id: Some(sealed.material_id).filter(|_| attested.is_none()),
        ..CryptoAnswer::default()
    })
}

pub(super) async fn data_key_pair(call: &mut Call<'_>, with_plaintext: bool) -> Result<Bytes, ApiError> {
    let request: DataKeyRequest = call.parse()?;
    let mut violations = Violations::default();
    violations.text(request.key_id.as_deref(), "keyId", 1, 2048);
    let name = violations.text(request.key_pair_spec.as_deref(), "keyPairSpec", 0, 64);
    violations.one_of(Some(name).filter(|name| !name.is_empty()), "keyPairSpec", PAIR_SPECS);
    violations.finish()?;
    let context = checked_context(request.encryption_context)?;
    let attested = attested(call, request.recipient.as_ref())?;
    let Named { key, alias } = call.named("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let facts = [("kms:datakeypairspec", vec![name.to_owned()])];
    let with = With {
        alias: alias.as_deref(),
        context: Some(&context),
        attested: attested.as_ref(),
        more: &facts,
        ..With::default()
    };
    let action =
        if with_plaintext { KmsAction::GenerateDataKeyPair } else { KmsAction::GenerateDataKeyPairWithoutPlaintext };
    let permit = call.permit_shown(&tokens, action, &key, with)?;
    let key = wrapping(call, &key)?;
    if !matches!(key.origin, Origin::AwsKms | Origin::External) {
        return Err(ApiError::unsupported("Data key pairs are not for keys in a custom key store"));
    }
    let pair = spec::parse_spec(name).filter(|_| !name.starts_with("ML_KEM"));
    let pair =
        pair.ok_or_else(|| ApiError::unsupported(format!("Data key pairs of spec {name} are not offered here")))?;
    call.unless_dry_run(request.dry_run)?;
    let (private, public) = call.kms.admin.data_key_pair(pair).await?;
    let public = public.spki().ok_or_else(|| ApiError::internal("a key pair without a public half"))?;
    let released = with_plaintext.then(|| release(call, attested.as_ref(), &private)).transpose()?;
    let Released { plaintext, ciphertext_for_recipient } = released.unwrap_or_default();
    let sealed = layers::seal(call, permit, &key, private, &context).await?;
    wire::answer(&CryptoAnswer {
        private_key_ciphertext_blob: Some(wire::encode(&sealed.blob)),
        private_key_plaintext: plaintext,
        ciphertext_for_recipient,
        public_key: Some(wire::encode(&public)),
        key_id: &key.arn,
        key_pair_spec: Some(name),
        key_material_id: Some(sealed.material_id).filter(|_| attested.is_none()),
        ..CryptoAnswer::default()
    })
}

pub(super) async fn random(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request {
        number_of_bytes: Option<i64>,
        custom_key_store_id: Option<String>,
        recipient: Option<Recipient>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(skip_serializing_if = "Option::is_none")]
        plaintext: Option<SecretOut>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ciphertext_for_recipient: Option<String>,
    }
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    violations.range(request.number_of_bytes, "numberOfBytes", 1, 1024);
    violations.finish()?;
    let Some(count) = request.number_of_bytes else {
        return Err(ApiError::validation("NumberOfBytes is required."));
    };
    let attested = attested(call, request.recipient.as_ref())?;
    let permit =
        call.permit_apart(KmsAction::GenerateRandom, "*", With { attested: attested.as_ref(), ..With::default() })?;
    if request.custom_key_store_id.is_some() {
        return Err(ApiError::unsupported("Random bytes are not drawn from custom key stores"));
    }
    let bytes = call.kms.hsm.random(permit, count as usize).await?;
    let Released { plaintext, ciphertext_for_recipient } = release(call, attested.as_ref(), &bytes)?;
    wire::answer(&Answer { plaintext, ciphertext_for_recipient })
}

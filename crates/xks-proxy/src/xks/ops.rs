//! The four operations.

use bytes::Bytes;
use holdfast_core::{ExternalKey, ExternalKeySpec, ExternalOperation, ExternalOutcome, KeyOperation};
use holdfast_crypto::SecretBytes;
use serde::Serialize;

use super::{
    bound,
    route::Operation,
    wire::{
        self, AAD_BYTES_MAX, DATA_BYTES_MAX, DecryptRequest, EkmFleetDetail, EncryptRequest, EncryptResponse,
        HealthResponse, METADATA_BYTES_MAX, MetadataOnlyRequest, MetadataResponse, RequestMetadata, TAG_BYTES, base64,
        encode, required, secret_base64,
    },
};
use crate::{
    authn::Proved,
    call::Call,
    error::Refusal,
    policy::{AadForm, Dialect, KeyStore},
};

/// More entries are not taken (XKS proxy API 1.0.3).
const FLEET_DETAILS_MAX: usize = 10;

/// What any request says of itself, if it can be read at all: for the log.
pub(crate) fn claims_of(body: &[u8]) -> RequestMetadata {
    wire::parse_metadata::<MetadataOnlyRequest>(body).and_then(|request| request.request_metadata).unwrap_or_default()
}

/// Does what an authenticated request asks.
pub(crate) async fn answer(call: &mut Call<'_>, operation: Operation) -> Result<Bytes, Refusal> {
    match operation {
        Operation::Decrypt => decrypt(call).await,
        Operation::Encrypt => encrypt(call).await,
        Operation::GetHealthStatus => health(call),
        Operation::GetKeyMetadata => key_metadata(call).await,
    }
}

fn json(answer: &impl Serialize) -> Result<Bytes, Refusal> {
    serde_json::to_vec(answer).map(Bytes::from).map_err(|error| Refusal::Internal(error.to_string()))
}

/// Members that must be there.
fn check_metadata(metadata: Option<RequestMetadata>, operation: Operation) -> Result<RequestMetadata, Refusal> {
    let metadata = required(metadata, "requestMetadata")?;
    let check = |value: &Option<String>, name: &str| match value {
        Some(text) if !text.is_empty() => Ok(()),
        _ => Err(Refusal::invalid(format!("requestMetadata.{name} is missing"))),
    };
    check(&metadata.kms_operation, "kmsOperation")?;
    check(&metadata.kms_request_id, "kmsRequestId")?;
    if operation != Operation::GetHealthStatus {
        check(&metadata.aws_principal_arn, "awsPrincipalArn")?;
    }
    if matches!(operation, Operation::Decrypt | Operation::Encrypt) {
        check(&metadata.kms_key_arn, "kmsKeyArn")?;
    }
    Ok(metadata)
}

fn check_algorithm(given: Option<&str>) -> Result<(), Refusal> {
    match given {
        Some("AES_GCM") => Ok(()),
        Some(_) => Err(Refusal::invalid("encryptionAlgorithm must be AES_GCM")),
        None => Err(Refusal::invalid("encryptionAlgorithm is missing")),
    }
}

fn aad_form(store: &KeyStore) -> AadForm {
    match store.dialect {
        Dialect::AwsXks { aad, .. } => aad,
        Dialect::AzureEkm { .. } => AadForm::Specification,
    }
}

async fn key_metadata(call: &mut Call<'_>) -> Result<Bytes, Refusal> {
    let request: MetadataOnlyRequest = wire::parse(call.body)?;
    let metadata = check_metadata(request.request_metadata, Operation::GetKeyMetadata)?;
    let key = call.key()?;
    let caller = Proved::behind(call, &metadata)?;
    let (version, object) = key.newest();
    let described = call.using(&key, caller, version).describe(object).await?;
    json(&MetadataResponse {
        key_spec: key_spec(&described),
        key_usage: key_usage(&described),
        // One that is disabled is refused before.
        key_status: "ENABLED",
    })
}

fn key_spec(key: &ExternalKey) -> String {
    match &key.spec {
        ExternalKeySpec::Aes(bits) => format!("AES_{bits}"),
        ExternalKeySpec::Rsa(public) => format!("RSA_{}", public.n.len() * 8),
        ExternalKeySpec::Other(words) => words.clone(),
    }
}

fn key_usage(key: &ExternalKey) -> Vec<&'static str> {
    let names = [
        (KeyOperation::Encrypt, "ENCRYPT"),
        (KeyOperation::Decrypt, "DECRYPT"),
        (KeyOperation::Sign, "SIGN"),
        (KeyOperation::Verify, "VERIFY"),
        (KeyOperation::WrapKey, "WRAP"),
        (KeyOperation::UnwrapKey, "UNWRAP"),
        (KeyOperation::Derive, "DERIVE"),
    ];
    names.iter().filter(|(operation, _)| key.usage.contains(*operation)).map(|(_, name)| *name).collect()
}

async fn encrypt(call: &mut Call<'_>) -> Result<Bytes, Refusal> {
    let request: EncryptRequest<'_> = wire::parse(call.body)?;
    let metadata = check_metadata(request.request_metadata, Operation::Encrypt)?;
    check_algorithm(request.encryption_algorithm.as_deref())?;
    let with_integrity = match request.ciphertext_data_integrity_value_algorithm.as_deref() {
        None => false,
        Some("SHA_256") => true,
        Some(_) => return Err(Refusal::invalid("ciphertextDataIntegrityValueAlgorithm must be SHA_256")),
    };
    let plaintext = secret_base64(required(request.plaintext.as_deref(), "plaintext")?, "plaintext", DATA_BYTES_MAX)?;
    let aad = optional_aad(request.additional_authenticated_data.as_deref())?;
    let key = call.key()?;
    let caller = Proved::behind(call, &metadata)?;
    let (version, object) = key.newest();
    let ciphertext_metadata = bound::metadata(version);
    let full_aad = bound::full_aad(aad_form(call.store), aad.as_deref(), &ciphertext_metadata);
    let prefix = with_integrity.then(|| [aad.as_deref().unwrap_or_default(), &ciphertext_metadata].concat());
    let outcome = call
        .using(&key, caller, version)
        .perform(object, || ExternalOperation::GcmEncrypt {
            plaintext: SecretBytes::copy_of(plaintext.expose()),
            aad: full_aad.clone(),
            integrity: prefix.clone(),
        })
        .await?;
    let ExternalOutcome::Ciphertext { iv, ciphertext, tag, integrity } = outcome else { return Err(other_outcome()) };
    json(&EncryptResponse {
        ciphertext: encode(&ciphertext),
        initialization_vector: encode(&iv),
        authentication_tag: encode(&tag),
        ciphertext_metadata: encode(&ciphertext_metadata),
        ciphertext_data_integrity_value: integrity.map(|value| encode(&value)),
    })
}

fn other_outcome() -> Refusal {
    Refusal::Internal("the HSM did something else".into())
}

fn optional_aad(text: Option<&str>) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    // The length has two bytes: more cannot be said, so it is the input that is wrong.
    if text.len() > AAD_BYTES_MAX.div_ceil(3) * 4 {
        return Err(Refusal::invalid(format!("additionalAuthenticatedData has at most {AAD_BYTES_MAX} bytes")));
    }
    base64(text, "additionalAuthenticatedData", AAD_BYTES_MAX).map(Some)
}

async fn decrypt(call: &mut Call<'_>) -> Result<Bytes, Refusal> {
    let request: DecryptRequest<'_> = wire::parse(call.body)?;
    let metadata = check_metadata(request.request_metadata, Operation::Decrypt)?;
    check_algorithm(request.encryption_algorithm.as_deref())?;
    let ciphertext = base64(required(request.ciphertext.as_deref(), "ciphertext")?, "ciphertext", DATA_BYTES_MAX)?;
    let exact = |value: Option<&str>, name: &str, sizes: &[usize]| -> Result<Vec<u8>, Refusal> {
        let bytes = base64(required(value, name)?, name, DATA_BYTES_MAX)?;
        if sizes.contains(&bytes.len()) {
            Ok(bytes)
        } else {
            Err(Refusal::invalid(format!("{name} has a wrong length")))
        }
    };
    let iv = exact(request.initialization_vector.as_deref(), "initializationVector", &[12, 16])?;
    let tag = exact(request.authentication_tag.as_deref(), "authenticationTag", &[TAG_BYTES])?;
    let ciphertext_metadata = match request.ciphertext_metadata.as_deref() {
        None => Vec::new(),
        Some(text) => base64(text, "ciphertextMetadata", DATA_BYTES_MAX)?,
    };
    if ciphertext_metadata.len() > METADATA_BYTES_MAX {
        return Err(Refusal::invalid(format!("ciphertextMetadata has at most {METADATA_BYTES_MAX} bytes")));
    }
    let aad = optional_aad(request.additional_authenticated_data.as_deref())?;
    let key = call.key()?;
    let caller = Proved::behind(call, &metadata)?;
    let form = aad_form(call.store);
    let (version, object) = match bound::key_version(&ciphertext_metadata) {
        Some(version) => key.version(version).map(|object| (version, object)),
        // Made by another proxy, before this one took the store over.
        None if ciphertext_metadata.is_empty() || form == AadForm::Sha256 => Some(key.oldest()),
        None => None,
    }
    .map_or_else(|| Err(Refusal::InvalidCiphertext), Ok)?;
    let full_aad = bound::full_aad(form, aad.as_deref(), &ciphertext_metadata);
    let outcome = call
        .using(&key, caller, version)
        .perform(object, || ExternalOperation::GcmDecrypt {
            iv: iv.clone(),
            aad: full_aad.clone(),
            ciphertext: ciphertext.clone(),
            tag: tag.clone(),
        })
        .await?;
    let ExternalOutcome::Plaintext(plaintext) = outcome else { return Err(other_outcome()) };
    Ok(plaintext_body(&plaintext))
}

/// `{"plaintext":"..."}`, built without leaving the plaintext behind in a buffer that grew.
fn plaintext_body(plaintext: &SecretBytes) -> Bytes {
    let encoded = encode(plaintext.expose());
    let mut body = Vec::with_capacity(encoded.len() + 16);
    body.extend_from_slice(b"{\"plaintext\":\"");
    body.extend_from_slice(encoded.as_bytes());
    body.extend_from_slice(b"\"}");
    let mut encoded = encoded.into_bytes();
    holdfast_crypto::secret::erase(&mut encoded);
    body.into()
}

fn health(call: &mut Call<'_>) -> Result<Bytes, Refusal> {
    let request: MetadataOnlyRequest = wire::parse(call.body)?;
    check_metadata(request.request_metadata, Operation::GetHealthStatus)?;
    let proxy = call.proxy;
    // Those that this store's keys lie in.
    let mut names: Vec<&str> = Vec::new();
    let keys = call.governed.policy.keys().filter(|key| call.store.offers(&key.id));
    for name in keys.flat_map(|key| &key.hsms) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut details: Vec<EkmFleetDetail> = Vec::new();
    let mut vendor = None;
    for name in names.iter().take(FLEET_DETAILS_MAX) {
        let health = proxy.health_of(name);
        vendor = vendor.or_else(|| health.model.split_whitespace().next().map(str::to_owned));
        let (id, model) = ((*name).to_owned(), health.model);
        details.push(EkmFleetDetail { id, model, health_status: health.state.as_str() });
    }
    if details.is_empty() {
        // At least one entry is wanted: a store without keys has nothing that could be ill.
        details.push(EkmFleetDetail { id: "none".into(), model: "none".into(), health_status: "ACTIVE" });
    }
    json(&HealthResponse {
        xks_proxy_fleet_size: proxy.fleet_size(),
        xks_proxy_vendor: "Holdfast",
        xks_proxy_model: concat!("Holdfast xks-proxy ", env!("CARGO_PKG_VERSION")),
        ekm_vendor: vendor.unwrap_or_else(|| "Holdfast".into()),
        ekm_fleet_details: details,
    })
}

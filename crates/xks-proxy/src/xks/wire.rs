//! Requests and answers in the protocol's own names. Unknown members are accepted: AWS reserves the right to add some.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_crypto::SecretBytes;
use holdfast_wire::JsonText;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{authn::CallerProofStatement, error::Refusal};

/// Longest plaintext or ciphertext in bytes; the protocol asks for 4300 at least.
pub(super) const DATA_BYTES_MAX: usize = 16 * 1024;
/// Longest additional authenticated data: its length has two bytes.
pub(super) const AAD_BYTES_MAX: usize = 65_535;
pub(super) const METADATA_BYTES_MAX: usize = 20;
pub(super) const TAG_BYTES: usize = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestMetadata {
    pub aws_principal_arn: Option<String>,
    pub aws_source_vpc: Option<String>,
    pub aws_source_vpce: Option<String>,
    pub kms_key_arn: Option<String>,
    pub kms_operation: Option<String>,
    pub kms_request_id: Option<String>,
    pub kms_via_service: Option<String>,
    /// Ours (`docs/formats/caller-proof.md`).
    pub holdfast_caller_proof: Option<CallerProofStatement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetadataOnlyRequest {
    pub request_metadata: Option<RequestMetadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EncryptRequest<'a> {
    pub request_metadata: Option<RequestMetadata>,
    #[serde(borrow)]
    pub plaintext: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub additional_authenticated_data: Option<JsonText<'a>>,
    pub encryption_algorithm: Option<String>,
    pub ciphertext_data_integrity_value_algorithm: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DecryptRequest<'a> {
    pub request_metadata: Option<RequestMetadata>,
    #[serde(borrow)]
    pub ciphertext: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub additional_authenticated_data: Option<JsonText<'a>>,
    pub encryption_algorithm: Option<String>,
    #[serde(borrow)]
    pub initialization_vector: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub authentication_tag: Option<JsonText<'a>>,
    #[serde(borrow)]
    pub ciphertext_metadata: Option<JsonText<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EncryptResponse {
    pub ciphertext: String,
    pub initialization_vector: String,
    pub authentication_tag: String,
    pub ciphertext_metadata: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ciphertext_data_integrity_value: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetadataResponse {
    pub key_spec: String,
    pub key_usage: Vec<&'static str>,
    pub key_status: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HealthResponse {
    pub xks_proxy_fleet_size: usize,
    pub xks_proxy_vendor: &'static str,
    pub xks_proxy_model: &'static str,
    pub ekm_vendor: String,
    pub ekm_fleet_details: Vec<EkmFleetDetail>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EkmFleetDetail {
    pub id: String,
    pub model: String,
    pub health_status: &'static str,
}

/// Reads a body.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        // The library's text may repeat what it read.
        Refusal::invalid(format!(
            "the body is not the JSON expected, at line {} column {}",
            error.line(),
            error.column()
        ))
    })
}

/// Only the metadata of any request: what is needed to log one that is refused for another reason.
pub(super) fn parse_metadata<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

pub(super) fn required<T>(value: Option<T>, name: &str) -> Result<T, Refusal> {
    value.ok_or_else(|| Refusal::invalid(format!("{name} is missing")))
}

fn checked_len(text: &str, name: &str, bytes_max: usize) -> Result<(), Refusal> {
    // Four characters for three bytes; what is longer cannot fit.
    if text.len() > bytes_max.div_ceil(3) * 4 {
        return Err(Refusal::Unsupported(format!("{name} is longer than {bytes_max} bytes, the most taken here")));
    }
    Ok(())
}

fn not_base64(name: &str) -> Refusal {
    Refusal::invalid(format!("{name} is not standard Base64 with padding"))
}

/// Standard Base64 with padding (RFC 4648, section 4), and nothing else.
pub(super) fn base64(text: &str, name: &str, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    checked_len(text, name, bytes_max)?;
    let bytes = STANDARD.decode(text).map_err(|_| not_base64(name))?;
    if bytes.len() > bytes_max {
        return Err(Refusal::Unsupported(format!("{name} is longer than {bytes_max} bytes, the most taken here")));
    }
    Ok(bytes)
}

/// The same for what is secret.
pub(super) fn secret_base64(text: &str, name: &str, bytes_max: usize) -> Result<SecretBytes, Refusal> {
    base64(text, name, bytes_max).map(SecretBytes::take)
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

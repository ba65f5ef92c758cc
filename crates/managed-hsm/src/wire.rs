//! Wire types: Key Vault's names, and nothing else's. Domain types stay inside.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD},
};
use holdfast_core::{EncryptionScheme, KeyOperation, KeyOperations, WrapScheme};
use holdfast_crypto::{
    AesSize, Curve, EncryptionPadding, HashAlgorithm, KeySpec, PublicKey, SecretBytes, SignatureScheme, WrapPadding,
};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// base64url; padding is not sent, and tolerated when it comes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes the member `name`.
pub(crate) fn decode(name: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    BASE64.decode(text).map_err(|_| ApiError::bad_parameter(format!("Property {name} is not valid base64url")))
}

fn decode_secret(name: &str, text: Option<&SecretText>) -> Result<SecretBytes, ApiError> {
    let text = text.ok_or_else(|| ApiError::bad_parameter(format!("Property {name} is missing")))?;
    decode(name, &text.0).map(SecretBytes::take)
}

/// Reads a JSON body; an absent body is an empty object.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_parameter(format!("The request body is not valid: {}", describe(&error))))
}

/// What is wrong and where, without repeating the client's values: they may be key material.
fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a property has the wrong type or is missing",
        serde_json::error::Category::Syntax => "malformed JSON",
        serde_json::error::Category::Eof | serde_json::error::Category::Io => "the JSON ends too early",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// A secret as base64url text in a request; erased with the request.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct SecretText(String);

impl SecretText {
    pub(crate) fn decode(&self, name: &str) -> Result<SecretBytes, ApiError> {
        decode(name, &self.0).map(SecretBytes::take)
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        drop(SecretBytes::take(std::mem::take(&mut self.0).into_bytes()));
    }
}

/// A member that is `null` counts as one that is absent, in every request.
pub(crate) fn absent_or<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Attributes in a request.
#[derive(Default, Deserialize)]
pub(crate) struct AttributesIn {
    pub enabled: Option<bool>,
    pub nbf: Option<i64>,
    pub exp: Option<i64>,
    pub exportable: Option<bool>,
}

/// Attributes in a reply.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttributesOut {
    pub enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    pub created: i64,
    pub updated: i64,
    pub exportable: bool,
    pub recoverable_days: u32,
    pub recovery_level: String,
}

/// A release policy, in and out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ReleasePolicy {
    #[serde(rename = "contentType", skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// base64url of the policy text.
    pub data: String,
    #[serde(default, deserialize_with = "absent_or")]
    pub immutable: bool,
}

pub(crate) type Tags = BTreeMap<String, String>;

#[derive(Deserialize)]
pub(crate) struct CreateRequest {
    pub kty: String,
    pub key_size: Option<u32>,
    pub public_exponent: Option<u32>,
    pub key_ops: Option<Vec<String>>,
    pub crv: Option<String>,
    #[serde(default, deserialize_with = "absent_or")]
    pub attributes: AttributesIn,
    pub tags: Option<Tags>,
    pub release_policy: Option<ReleasePolicy>,
}

#[derive(Deserialize)]
pub(crate) struct ImportRequest {
    pub key: JwkIn,
    #[serde(default, deserialize_with = "absent_or")]
    pub attributes: AttributesIn,
    pub tags: Option<Tags>,
    pub release_policy: Option<ReleasePolicy>,
}

/// A key for import (RFC 7518, section 6).
#[derive(Deserialize)]
pub(crate) struct JwkIn {
    pub kty: String,
    pub key_ops: Option<Vec<String>>,
    pub crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<SecretText>,
    p: Option<SecretText>,
    q: Option<SecretText>,
    dp: Option<SecretText>,
    dq: Option<SecretText>,
    qi: Option<SecretText>,
    k: Option<SecretText>,
    pub key_hsm: Option<String>,
}

impl JwkIn {
    pub(crate) fn to_imported(&self) -> Result<holdfast_crypto::ImportedKey, ApiError> {
        use holdfast_crypto::{EcPublicKey, ImportedKey, RsaPrivateComponents};
        let public = |name: &str, text: &Option<String>| {
            let text = text.as_ref().ok_or_else(|| ApiError::bad_parameter(format!("Property {name} is missing")))?;
            decode(name, text)
        };
        match KeyType::parse(&self.kty)? {
            KeyType::Oct => Ok(ImportedKey::Aes(decode_secret("k", self.k.as_ref())?)),
            KeyType::Ec => {
                let curve = parse_curve(self.crv.as_deref())?;
                let (x, y) = (public("x", &self.x)?, public("y", &self.y)?);
                let key = EcPublicKey::from_coordinates(curve, &x, &y).map_err(invalid_key)?;
                Ok(ImportedKey::Ec(key, decode_secret("d", self.d.as_ref())?))
            }
            KeyType::Rsa => Ok(ImportedKey::Rsa(Box::new(RsaPrivateComponents {
                n: public("n", &self.n)?,
                e: public("e", &self.e)?,
                d: decode_secret("d", self.d.as_ref())?,
                p: decode_secret("p", self.p.as_ref())?,
                q: decode_secret("q", self.q.as_ref())?,
                dp: decode_secret("dp", self.dp.as_ref())?,
                dq: decode_secret("dq", self.dq.as_ref())?,
                qi: decode_secret("qi", self.qi.as_ref())?,
            }))),
        }
    }
}

fn invalid_key(error: holdfast_crypto::CryptoError) -> ApiError {
    ApiError::bad_parameter(format!("The key cannot be imported: {error}"))
}

/// The BYOK transfer blob (`key_hsm`, itself base64url of this JSON).
#[derive(Deserialize)]
pub(crate) struct TransferBlob {
    pub header: TransferHeader,
    pub ciphertext: String,
}

#[derive(Deserialize)]
pub(crate) struct TransferHeader {
    pub kid: String,
    pub enc: String,
}

#[derive(Deserialize)]
pub(crate) struct UpdateRequest {
    pub key_ops: Option<Vec<String>>,
    #[serde(default, deserialize_with = "absent_or")]
    pub attributes: AttributesIn,
    pub tags: Option<Tags>,
    pub release_policy: Option<ReleasePolicy>,
}

#[derive(Deserialize)]
pub(crate) struct CryptoRequest {
    pub alg: String,
    pub value: SecretText,
    pub iv: Option<String>,
    pub aad: Option<String>,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct CryptoReply {
    pub kid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    pub value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct VerifyReply {
    pub value: bool,
}

#[derive(Deserialize)]
pub(crate) struct RandomRequest {
    pub count: u32,
}

/// A single base64url value, in (restore) and out (backup, random bytes).
#[derive(Deserialize, Serialize)]
pub(crate) struct Value {
    pub value: String,
}

/// A public key in a reply.
#[derive(Serialize)]
pub(crate) struct JwkOut {
    pub kid: String,
    pub kty: &'static str,
    pub key_ops: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl JwkOut {
    pub(crate) fn new(kid: String, operations: KeyOperations, public: &PublicKey) -> Self {
        let key_ops = operations.iter().map(operation_name).collect();
        let mut out = Self { kid, kty: "oct-HSM", key_ops, n: None, e: None, crv: None, x: None, y: None };
        match public {
            PublicKey::Aes => {}
            // Kinds that this dialect does not make.
            PublicKey::Ed25519(_) | PublicKey::Hmac | PublicKey::MlDsa(..) | PublicKey::MlKem(..) => {}
            PublicKey::Ec(key) => {
                let (x, y) = key.coordinates();
                out.kty = "EC-HSM";
                out.crv = Some(curve_name(key.curve));
                (out.x, out.y) = (Some(encode(x)), Some(encode(y)));
            }
            PublicKey::Rsa(key) => {
                out.kty = "RSA-HSM";
                (out.n, out.e) = (Some(encode(&key.n)), Some(encode(&key.e)));
            }
        }
        out
    }
}

#[derive(Serialize)]
pub(crate) struct KeyBundle {
    pub key: JwkOut,
    pub attributes: AttributesOut,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_policy: Option<ReleasePolicy>,
    #[serde(flatten)]
    pub deletion: Option<DeletionOut>,
}

/// What a deleted key's bundle or item has besides.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeletionOut {
    pub recovery_id: String,
    pub deleted_date: i64,
    pub scheduled_purge_date: i64,
}

#[derive(Serialize)]
pub(crate) struct KeyItem {
    pub kid: String,
    pub attributes: AttributesOut,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    #[serde(flatten)]
    pub deletion: Option<DeletionOut>,
}

#[derive(Serialize)]
pub(crate) struct Page<T> {
    pub value: Vec<T>,
    #[serde(rename = "nextLink", skip_serializing_if = "Option::is_none")]
    pub next_link: Option<String>,
}

/// A rotation policy, in and (with `id` and times) out.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RotationPolicyBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, deserialize_with = "absent_or")]
    pub lifetime_actions: Vec<LifetimeAction>,
    #[serde(default, deserialize_with = "absent_or")]
    pub attributes: RotationAttributes,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LifetimeAction {
    pub trigger: Trigger,
    pub action: ActionType,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Trigger {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_after_create: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_before_expiry: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ActionType {
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RotationAttributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated: Option<i64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyType {
    Ec,
    Oct,
    Rsa,
}

impl KeyType {
    /// Software kinds are taken too and become HSM keys: there is nothing else here.
    pub(crate) fn parse(kty: &str) -> Result<Self, ApiError> {
        match kty {
            "EC" | "EC-HSM" => Ok(Self::Ec),
            "RSA" | "RSA-HSM" => Ok(Self::Rsa),
            "oct" | "oct-HSM" => Ok(Self::Oct),
            _ => Err(ApiError::bad_parameter("Property kty must be one of RSA-HSM, EC-HSM, oct-HSM")),
        }
    }
}

pub(crate) fn parse_curve(crv: Option<&str>) -> Result<Curve, ApiError> {
    match crv.unwrap_or("P-256") {
        "P-256" => Ok(Curve::P256),
        "P-256K" | "SECP256K1" => Ok(Curve::P256K),
        "P-384" => Ok(Curve::P384),
        "P-521" => Ok(Curve::P521),
        _ => Err(ApiError::bad_parameter("Property crv must be one of P-256, P-256K, P-384, P-521")),
    }
}

pub(crate) fn curve_name(curve: Curve) -> &'static str {
    match curve {
        Curve::P256 => "P-256",
        Curve::P256K => "P-256K",
        Curve::P384 => "P-384",
        Curve::P521 => "P-521",
    }
}

pub(crate) fn operation_name(operation: KeyOperation) -> &'static str {
    match operation {
        KeyOperation::Decrypt => "decrypt",
        KeyOperation::Derive => "deriveKey",
        KeyOperation::Encrypt => "encrypt",
        KeyOperation::Export => "export",
        KeyOperation::Import => "import",
        KeyOperation::Sign => "sign",
        KeyOperation::UnwrapKey => "unwrapKey",
        KeyOperation::Verify => "verify",
        KeyOperation::WrapKey => "wrapKey",
    }
}

/// The operations named, or those a key of this kind has by default.
pub(crate) fn parse_operations(spec: KeySpec, names: Option<&[String]>) -> Result<KeyOperations, ApiError> {
    use KeyOperation as Op;
    let allowed: &[Op] = match spec {
        KeySpec::Aes(_) => &[Op::Encrypt, Op::Decrypt, Op::WrapKey, Op::UnwrapKey, Op::Sign, Op::Verify, Op::Export],
        KeySpec::Ec(_) => &[Op::Sign, Op::Verify, Op::Export],
        // Kinds that this dialect does not make.
        KeySpec::Ed25519 | KeySpec::Hmac(_) | KeySpec::MlDsa(_) | KeySpec::MlKem(_) => &[],
        KeySpec::Rsa { .. } => {
            &[Op::Encrypt, Op::Decrypt, Op::WrapKey, Op::UnwrapKey, Op::Sign, Op::Verify, Op::Import, Op::Export]
        }
    };
    let Some(names) = names else {
        let default: &[Op] = match spec {
            KeySpec::Aes(_) => &allowed[..4],
            KeySpec::Ec(_) => &allowed[..2],
            KeySpec::Ed25519 | KeySpec::Hmac(_) | KeySpec::MlDsa(_) | KeySpec::MlKem(_) => &[],
            KeySpec::Rsa { .. } => &allowed[..6],
        };
        return Ok(default.iter().copied().collect());
    };
    let mut operations = Vec::new();
    for name in names {
        let operation = Op::ALL.into_iter().find(|operation| operation_name(*operation).eq_ignore_ascii_case(name));
        match operation.filter(|operation| allowed.contains(operation)) {
            Some(operation) => operations.push(operation),
            None => {
                let name = crate::route::printable(name);
                return Err(ApiError::bad_parameter(format!("Key operation {name} does not fit the key type")));
            }
        }
    }
    if operations.contains(&Op::Import) && operations.len() > 1 {
        return Err(ApiError::bad_parameter("Key operation import excludes all others"));
    }
    Ok(operations.into_iter().collect())
}

/// How `alg` encrypts, if it is for keys of this spec.
pub(crate) fn encryption_scheme(alg: &str, spec: KeySpec) -> Result<EncryptionScheme, ApiError> {
    let scheme = match (alg, spec) {
        ("RSA1_5", KeySpec::Rsa { .. }) => EncryptionScheme::Rsa(EncryptionPadding::Pkcs1),
        ("RSA-OAEP", KeySpec::Rsa { .. }) => EncryptionScheme::Rsa(EncryptionPadding::OaepSha1),
        ("RSA-OAEP-256", KeySpec::Rsa { .. }) => EncryptionScheme::Rsa(EncryptionPadding::OaepSha256),
        (_, KeySpec::Aes(size)) => match sized(alg, size) {
            Some("GCM") => EncryptionScheme::AesGcm,
            Some("CBC") => EncryptionScheme::AesCbc { padded: false },
            Some("CBCPAD") => EncryptionScheme::AesCbc { padded: true },
            _ => return Err(unsupported(alg)),
        },
        _ => return Err(unsupported(alg)),
    };
    Ok(scheme)
}

/// How `alg` wraps, if it is for keys of this spec.
pub(crate) fn wrap_scheme(alg: &str, spec: KeySpec) -> Result<WrapScheme, ApiError> {
    let scheme = match (alg, spec) {
        ("CKM_AES_KEY_WRAP", KeySpec::Aes(_)) => WrapScheme::AesKeyWrap(WrapPadding::None),
        ("CKM_AES_KEY_WRAP_PAD", KeySpec::Aes(_)) => WrapScheme::AesKeyWrap(WrapPadding::Padded),
        (_, KeySpec::Aes(size)) if sized(alg, size) == Some("KW") => WrapScheme::AesKeyWrap(WrapPadding::None),
        ("RSA1_5", KeySpec::Rsa { .. }) => WrapScheme::Rsa(EncryptionPadding::Pkcs1),
        ("RSA-OAEP", KeySpec::Rsa { .. }) => WrapScheme::Rsa(EncryptionPadding::OaepSha1),
        ("RSA-OAEP-256", KeySpec::Rsa { .. }) => WrapScheme::Rsa(EncryptionPadding::OaepSha256),
        _ => return Err(unsupported(alg)),
    };
    Ok(scheme)
}

/// How `alg` signs, if it is for keys of this spec.
pub(crate) fn signature_scheme(alg: &str, spec: KeySpec) -> Result<SignatureScheme, ApiError> {
    use HashAlgorithm::{Sha256, Sha384, Sha512};
    let scheme = match (alg, spec) {
        ("ES256", KeySpec::Ec(Curve::P256))
        | ("ES256K", KeySpec::Ec(Curve::P256K))
        | ("ES384", KeySpec::Ec(Curve::P384))
        | ("ES512", KeySpec::Ec(Curve::P521)) => match spec {
            KeySpec::Ec(curve) => SignatureScheme::Ecdsa(curve),
            _ => return Err(unsupported(alg)),
        },
        ("HS256", KeySpec::Aes(_)) => SignatureScheme::Hmac(Sha256),
        ("HS384", KeySpec::Aes(_)) => SignatureScheme::Hmac(Sha384),
        ("HS512", KeySpec::Aes(_)) => SignatureScheme::Hmac(Sha512),
        ("PS256", KeySpec::Rsa { .. }) => SignatureScheme::RsaPss(Sha256),
        ("PS384", KeySpec::Rsa { .. }) => SignatureScheme::RsaPss(Sha384),
        ("PS512", KeySpec::Rsa { .. }) => SignatureScheme::RsaPss(Sha512),
        ("RS256", KeySpec::Rsa { .. }) => SignatureScheme::RsaPkcs1(Sha256),
        ("RS384", KeySpec::Rsa { .. }) => SignatureScheme::RsaPkcs1(Sha384),
        ("RS512", KeySpec::Rsa { .. }) => SignatureScheme::RsaPkcs1(Sha512),
        _ => return Err(unsupported(alg)),
    };
    Ok(scheme)
}

/// `A256GCM` and a 256-bit key give `GCM`.
fn sized(alg: &str, size: AesSize) -> Option<&str> {
    let (bits, mode) = alg.strip_prefix('A')?.split_at_checked(3)?;
    (bits.parse() == Ok(size.bits())).then_some(mode)
}

fn unsupported(alg: &str) -> ApiError {
    let alg = crate::route::printable(alg);
    ApiError::bad_parameter(format!("Algorithm {alg} is not supported for this key's type and size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithm_size_must_equal_key_size() {
        let aes = |size| KeySpec::Aes(size);
        assert!(encryption_scheme("A256GCM", aes(AesSize::Bits256)).is_ok());
        assert!(encryption_scheme("A128GCM", aes(AesSize::Bits256)).is_err());
        assert!(wrap_scheme("A192KW", aes(AesSize::Bits192)).is_ok());
        assert!(wrap_scheme("A192KW", aes(AesSize::Bits128)).is_err());
        for odd in ["A", "A256", "A25", "Ä256GCM", "", "A256KW"] {
            assert!(encryption_scheme(odd, aes(AesSize::Bits256)).is_err(), "{odd}");
        }
        assert!(signature_scheme("ES256", KeySpec::Ec(Curve::P256K)).is_err());
    }

    #[test]
    fn messages_do_not_repeat_values() {
        let error = parse::<CryptoRequest>(br#"{"alg":"x","value":12345678}"#).err().unwrap();
        assert!(!error.message.contains("12345678"), "{}", error.message);
    }
}

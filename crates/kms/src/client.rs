//! The dialect from the other side: KMS keys, of this service or the real one, behind the [`KekService`] seam.

use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holdfast_core::{Ambient, DekWrapAlgorithm, KekError, KekService, WrappedDek};
use holdfast_crypto::SecretBytes;
use holdfast_wire::{
    Exchange, ExchangeError,
    sigv4::{self, Scope, SigningSecret},
};
use http::{Request, header};
use serde::Deserialize;

use crate::{
    names::{KeyId, is_account},
    wire::{BlobMember, SecretOut},
};

/// Longest text of an error that is repeated.
const TOLD_CHARS_MAX: usize = 200;

/// What a service signs with.
pub struct KmsCredential {
    /// Not secret.
    pub access_key_id: String,
    /// Secret.
    pub secret: SecretBytes,
}

/// KEKs that are KMS keys, named by their ARNs.
pub struct KmsKekClient {
    exchange: Arc<dyn Exchange>,
    /// `https://HOST[:PORT]`
    url: String,
    region: String,
    access_key_id: String,
    secret: SigningSecret,
    ambient: Arc<dyn Ambient>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    plaintext: BlobMember,
}

#[derive(Default, Deserialize)]
struct Refused {
    #[serde(default, rename = "__type")]
    code: String,
    #[serde(default, alias = "Message")]
    message: String,
}

/// What a DEK under a KMS key is bound to: it serves nothing else.
fn context() -> serde_json::Value {
    serde_json::json!({"holdfast:purpose": "storage-dek"})
}

fn refusal(kek: &str, body: &[u8], status: http::StatusCode) -> KekError {
    let refused: Refused = serde_json::from_slice(body).unwrap_or_default();
    // Some servers put a namespace before the code.
    let code = refused.code.rsplit('#').next().unwrap_or_default();
    let why = holdfast_wire::printable(&refused.message, TOLD_CHARS_MAX);
    match code {
        "AccessDeniedException"
        | "ExpiredTokenException"
        | "IncompleteSignatureException"
        | "InvalidSignatureException"
        | "MissingAuthenticationTokenException"
        | "UnrecognizedClientException" => KekError::Denied(why),
        // What may pass once the other side of a reference key answers again is told by its words only.
        "KMSInvalidStateException" if why.contains("external key store proxy") && !is_decision(&why) => {
            KekError::Unavailable(why)
        }
        "DisabledException" | "KMSInvalidStateException" => KekError::Disabled(why),
        "NotFoundException" => KekError::NotFound(kek.to_owned()),
        "InvalidKeyUsageException"
        | "InvalidArnException"
        | "ValidationException"
        | "UnsupportedOperationException" => KekError::InvalidUsage(why),
        "IncorrectKeyException" | "InvalidCiphertextException" => KekError::Rejected,
        "ThrottlingException" | "LimitExceededException" => KekError::Throttled,
        _ => KekError::Unavailable(format!("the key service answered {status} {code}: {why}")),
    }
}

/// Whether a failure of an external key is somebody's decision, not an outage.
fn is_decision(why: &str) -> bool {
    ["denied access", "does not find the external key", "is disabled", "does not accept"]
        .iter()
        .any(|words| why.contains(words))
}

impl KmsKekClient {
    /// A client of the service at `url`.
    #[must_use]
    pub fn new(
        exchange: Arc<dyn Exchange>,
        url: &str,
        region: &str,
        credential: KmsCredential,
        ambient: Arc<dyn Ambient>,
    ) -> Self {
        let KmsCredential { access_key_id, secret } = credential;
        let url = url.trim_end_matches('/').to_owned();
        Self { exchange, url, region: region.to_owned(), access_key_id, secret: SigningSecret::new(secret), ambient }
    }

    /// Calls one operation; the answer as JSON.
    ///
    /// # Errors
    /// [`KekError`].
    pub async fn call(&self, operation: &str, body: Vec<u8>, kek: &str) -> Result<Bytes, KekError> {
        let unsendable = |error: &dyn std::fmt::Display| KekError::Unavailable(error.to_string());
        let host = self.url.trim_start_matches("https://");
        let request = Request::post(format!("{}/", self.url))
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/x-amz-json-1.1")
            .header("x-amz-target", format!("TrentService.{operation}"))
            .body(Bytes::from(body))
            .map_err(|error| unsendable(&error))?;
        let (mut parts, body) = request.into_parts();
        let scope = Scope { region: &self.region, service: "kms" };
        sigv4::sign(&mut parts, &body, scope, &self.access_key_id, &self.secret, self.ambient.now())
            .map_err(|error| unsendable(&error))?;
        let response = self.exchange.send(Request::from_parts(parts, body)).await;
        let response = response.map_err(|error: ExchangeError| unsendable(&error))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(refusal(kek, response.body(), response.status()))
    }

    fn full_arn<'a>(&self, kek: &'a str) -> Option<&'a str> {
        let parts: Vec<&str> = kek.splitn(6, ':').collect();
        let ["arn", "aws", "kms", region, account, rest] = parts.as_slice() else { return None };
        let named = rest.strip_prefix("key/").is_some_and(|id| KeyId::parse(id).is_some());
        (*region == self.region && is_account(account) && named).then_some(kek)
    }
}

#[async_trait]
impl KekService for KmsKekClient {
    async fn wrap(&self, kek_url: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError> {
        let kek = self.full_arn(kek_url).ok_or_else(|| KekError::NotFound(kek_url.into()))?;
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            key_id: &'a str,
            plaintext: SecretOut,
            encryption_context: serde_json::Value,
        }
        let body = Body { key_id: kek, plaintext: SecretOut::new(dek), encryption_context: context() };
        let body = serde_json::to_vec(&body).map_err(|error| KekError::Unavailable(error.to_string()))?;
        let answer = self.call("Encrypt", body, kek).await?;
        let answer: Encrypted = serde_json::from_slice(&answer)
            .map_err(|_| KekError::Unavailable("the key service's answer cannot be read".into()))?;
        if answer.key_id != kek {
            return Err(KekError::Unavailable("the key service names another key than was asked for".into()));
        }
        let wrapped = STANDARD.decode(&answer.ciphertext_blob);
        let wrapped = wrapped.map_err(|_| KekError::Unavailable("no ciphertext".into()))?;
        Ok(WrappedDek { kek_url: answer.key_id, algorithm: DekWrapAlgorithm::AwsKms, wrapped })
    }

    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        let kek = self.full_arn(&wrapped.kek_url).ok_or_else(|| KekError::NotFound(wrapped.kek_url.clone()))?;
        let body = serde_json::json!({
            "KeyId": kek,
            "CiphertextBlob": STANDARD.encode(&wrapped.wrapped),
            "EncryptionContext": context(),
        });
        let answer = self.call("Decrypt", body.to_string().into_bytes(), kek).await?;
        let answer: Decrypted = serde_json::from_slice(&answer)
            .map_err(|_| KekError::Unavailable("the key service's answer cannot be read".into()))?;
        let dek = answer.plaintext.into_secret();
        if dek.len() == 32 { Ok(dek) } else { Err(KekError::Rejected) }
    }

    /// A KMS key is rotated behind its ARN, and opens for ever what it closed: there is nothing to follow.
    async fn newest_version(&self, kek_url: &str) -> Result<String, KekError> {
        let kek = self.full_arn(kek_url).ok_or_else(|| KekError::NotFound(kek_url.into()))?;
        let body = serde_json::json!({"KeyId": kek}).to_string().into_bytes();
        self.call("DescribeKey", body, kek).await?;
        Ok(kek.to_owned())
    }

    fn knows(&self, kek_url: &str) -> bool {
        self.full_arn(kek_url).is_some()
    }

    fn without_version(&self, kek_url: &str) -> String {
        kek_url.to_owned()
    }
}

//! The dialect from the other side: KMS keys, of this service or the real one, behind the [`KekService`] seam.

use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holdfast_core::{Ambient, DekWrapAlgorithm, KekError, KekService, WrappedDek};
use holdfast_crypto::SecretBytes;
use holdfast_wire::{
    Cause, Exchange, ToldCause, printable,
    sigv4::{self, Scope, SigningSecret},
};
use http::{Request, StatusCode, header};
use serde::Deserialize;

use crate::{
    names::{KeyId, is_account},
    wire::{BlobMember, SecretOut},
};

/// Longest text of an error that is repeated, for people to read.
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
    #[serde(default, rename = "holdfastCause")]
    cause: ToldCause,
}

/// What a DEK under a KMS key is bound to: it serves nothing else.
fn context() -> serde_json::Value {
    serde_json::json!({"holdfast:purpose": "storage-dek"})
}

/// What an error means for whoever needs a DEK: code, status and what a service of ours says of its cause decide, and never words. What
/// is not known to be an outage counts as a refusal.
fn failure(kek: &str, body: &[u8], status: StatusCode) -> KekError {
    let refused: Refused = serde_json::from_slice(body).unwrap_or_default();
    // Some servers put a namespace before the code.
    let code = refused.code.rsplit('#').next().unwrap_or_default();
    let why = printable(&refused.message, TOLD_CHARS_MAX);
    let unclear = || KekError::Unclear(format!("it answered {status} {}: {why}", printable(code, TOLD_CHARS_MAX)));
    match (code, status.as_u16()) {
        (
            "AccessDeniedException"
            | "ExpiredTokenException"
            | "IncompleteSignatureException"
            | "InvalidSignatureException"
            | "MissingAuthenticationTokenException"
            | "UnrecognizedClientException",
            _,
        ) => KekError::Denied(why),
        // One code for whatever is wrong with the other side of a reference key: only a service of ours says which.
        ("KMSInvalidStateException", 400) => match refused.cause.0 {
            Some(Cause::Outage) => KekError::Unavailable(why),
            Some(Cause::Busy) => KekError::Throttled,
            Some(Cause::Refusal) | None => KekError::Disabled(why),
        },
        ("DisabledException" | "KMSInvalidStateException", _) => KekError::Disabled(why),
        ("NotFoundException", _) => KekError::NotFound(kek.to_owned()),
        (
            "InvalidKeyUsageException"
            | "InvalidArnException"
            | "ValidationException"
            | "UnsupportedOperationException",
            _,
        ) => KekError::InvalidUsage(why),
        ("IncorrectKeyException" | "InvalidCiphertextException", _) => KekError::Rejected,
        ("ThrottlingException", 400) | (_, 429) if refused.cause.bears_out(Cause::Busy) => KekError::Throttled,
        // The codes that the service has for its own faults; and what HTTP has for services that are away, whoever tells it.
        (
            "DependencyTimeoutException" | "InternalFailure" | "KMSInternalException" | "KeyUnavailableException",
            500,
        )
        | (_, 502..=504)
            if refused.cause.bears_out(Cause::Outage) =>
        {
            KekError::Unavailable(format!("the key service answered {status} {code}: {why}"))
        }
        _ => unclear(),
    }
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
        let unsendable = |error: &dyn std::fmt::Display| KekError::Unclear(error.to_string());
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
        let response = self.exchange.send(Request::from_parts(parts, body)).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(failure(kek, response.body(), response.status()))
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
        let body = serde_json::to_vec(&body).map_err(|error| KekError::Unclear(error.to_string()))?;
        let answer = self.call("Encrypt", body, kek).await?;
        let answer: Encrypted =
            serde_json::from_slice(&answer).map_err(|_| KekError::Unclear("the answer cannot be read".into()))?;
        if answer.key_id != kek {
            return Err(KekError::Unclear("it names another key than was asked for".into()));
        }
        let wrapped = STANDARD.decode(&answer.ciphertext_blob);
        let wrapped = wrapped.map_err(|_| KekError::Unclear("no ciphertext".into()))?;
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
        let answer: Decrypted =
            serde_json::from_slice(&answer).map_err(|_| KekError::Unclear("the answer cannot be read".into()))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    /// What the service says of an outage, word for word.
    const AWAY: &str =
        "AWS KMS cannot communicate with the external key store proxy. This might be a transient network issue.";
    const DENIED: &str = "The external key store proxy denied access to the operation.";

    fn told(status: u16, code: &str, message: &str, cause: Option<serde_json::Value>) -> KekError {
        let mut body = serde_json::json!({"__type": code, "message": message});
        if let Some(cause) = cause {
            body["holdfastCause"] = cause;
        }
        failure(ARN, body.to_string().as_bytes(), StatusCode::from_u16(status).unwrap())
    }

    #[test]
    fn words_decide_nothing() {
        for words in [AWAY, DENIED, "", "it is disabled, denied access, does not accept"] {
            let state = |cause| told(400, "KMSInvalidStateException", words, cause);
            assert!(matches!(state(None), KekError::Disabled(_)), "of a foreign service nobody knows: {words}");
            assert!(matches!(state(Some("outage".into())), KekError::Unavailable(_)), "{words}");
            assert_eq!(state(Some("busy".into())), KekError::Throttled, "{words}");
            for odd in [
                serde_json::json!("refusal"),
                "OUTAGE".into(),
                "".into(),
                serde_json::Value::Null,
                1.into(),
                serde_json::json!(["outage"]),
            ] {
                assert!(matches!(state(Some(odd.clone())), KekError::Disabled(_)), "{odd} {words}");
            }
        }
    }

    #[test]
    fn of_two_that_contradict_each_other_the_stricter_counts() {
        for code in [
            "AccessDeniedException",
            "DisabledException",
            "NotFoundException",
            "InvalidCiphertextException",
            "UnrecognizedClientException",
        ] {
            for status in [400, 500, 503] {
                assert!(told(status, code, AWAY, Some("outage".into())).is_refusal(), "{status} {code}");
            }
        }
        assert!(
            told(500, "KMSInvalidStateException", AWAY, Some("outage".into())).is_refusal(),
            "not the status that it has"
        );
        for (status, code) in [
            (500, "KMSInternalException"),
            (503, "DependencyTimeoutException"),
            (502, ""),
            (400, "ThrottlingException"),
            (429, ""),
        ] {
            assert!(!told(status, code, "", None).is_refusal(), "{status} {code}");
            assert!(!told(status, code, DENIED, Some("outage".into())).is_refusal(), "{status} {code}");
            assert!(told(status, code, AWAY, Some("refusal".into())).is_refusal(), "{status} {code}");
            assert!(told(status, code, AWAY, Some("perhaps".into())).is_refusal(), "{status} {code}");
        }
        for (status, code) in [
            (500, ""),
            (500, "Odd"),
            (501, "KMSInternalException"),
            (400, "KMSInternalException"),
            (418, "Odd"),
            (302, ""),
            (400, ""),
        ] {
            assert!(matches!(told(status, code, AWAY, Some("outage".into())), KekError::Unclear(_)), "{status} {code}");
        }
    }

    #[test]
    fn junk_is_no_outage() {
        for body in [&b""[..], b"<html>", b"null", b"[]", b"{\"__type\":1}", &[0xff; 9]] {
            assert!(failure(ARN, body, StatusCode::INTERNAL_SERVER_ERROR).is_refusal());
            assert!(failure(ARN, body, StatusCode::OK).is_refusal());
            assert!(
                !failure(ARN, body, StatusCode::BAD_GATEWAY).is_refusal(),
                "who stands before the service says that it is away"
            );
        }
    }
}

//! An external key store, as its client: the XKS proxy API 1.0.3 from the other side.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holdfast_core::Ambient;
use holdfast_crypto::{kdf, secret::ct_eq};
use holdfast_wire::{
    Cause, Exchange, ToldCause,
    sigv4::{self, Scope},
};
use http::{Request, Response, StatusCode, header};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{About, Link, LinkFault, ProxySecret, StoreLimits, XksConfig, breaker::Breaker};

const TAG_BYTES: usize = 16;
const METADATA_BYTES_MAX: usize = 20;
/// Longest error name that is kept of what a proxy says.
const TOLD_CHARS_MAX: usize = 64;

pub(super) struct XksLink {
    exchange: Arc<dyn Exchange>,
    /// Endpoint and path.
    base: String,
    /// What the Host header says.
    host: String,
    region: Arc<str>,
    access_key_id: String,
    secret: Arc<ProxySecret>,
    caller_proof: bool,
    limits: StoreLimits,
    places: Semaphore,
    breaker: Breaker,
    ambient: Arc<dyn Ambient>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EncryptAnswer {
    ciphertext: String,
    initialization_vector: String,
    authentication_tag: String,
    #[serde(default)]
    ciphertext_metadata: String,
    ciphertext_data_integrity_value: Option<String>,
}

#[derive(Deserialize)]
struct DecryptAnswer {
    plaintext: crate::wire::BlobMember,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetadataAnswer {
    key_spec: String,
    key_usage: Vec<String>,
    key_status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HealthAnswer {
    xks_proxy_fleet_size: i64,
    #[serde(rename = "xksProxyVendor")]
    _vendor: String,
    #[serde(rename = "xksProxyModel")]
    _model: String,
    #[serde(rename = "ekmVendor")]
    _ekm_vendor: String,
    ekm_fleet_details: Vec<Manager>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manager {
    health_status: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorAnswer {
    #[serde(default)]
    error_name: String,
    #[serde(default)]
    holdfast_cause: ToldCause,
}

fn invalid(what: impl Into<String>) -> LinkFault {
    LinkFault::InvalidResponse(what.into())
}

impl XksLink {
    pub(super) fn new(
        config: &XksConfig,
        region: &Arc<str>,
        exchange: Arc<dyn Exchange>,
        caller_proof: bool,
        limits: StoreLimits,
        ambient: Arc<dyn Ambient>,
    ) -> Self {
        Self {
            exchange,
            base: format!("{}{}", config.endpoint, config.path),
            host: config.endpoint.trim_start_matches("https://").to_owned(),
            region: Arc::clone(region),
            access_key_id: config.access_key_id.clone(),
            secret: Arc::clone(&config.secret),
            caller_proof,
            limits,
            places: Semaphore::new(limits.in_flight_max),
            breaker: Breaker::default(),
            ambient,
        }
    }

    /// One exchange within the budget. A connection that was kept and turns out to be closed is replaced below this; nothing else is
    /// tried again.
    async fn ask(&self, path: &str, body: String) -> Result<Response<Bytes>, LinkFault> {
        let _place = self.places.try_acquire().map_err(|_| LinkFault::Busy)?;
        if !self.breaker.admits(Instant::now()) {
            return Err(LinkFault::Unreachable("it has not answered lately, and is asked again in a moment".into()));
        }
        let request = self.request(path, body)?;
        let sent = tokio::time::timeout(self.limits.budget, self.exchange.send(request)).await;
        let result = sent.map_or(Err(LinkFault::TimedOut), |answer| answer.map_err(LinkFault::from));
        self.breaker.note(result.as_ref().is_err_and(LinkFault::is_away), Instant::now());
        result
    }

    fn request(&self, path: &str, body: String) -> Result<Request<Bytes>, LinkFault> {
        let unsendable = |error: &dyn std::fmt::Display| LinkFault::NotAsked(error.to_string());
        let request = Request::post(format!("{}/{path}", self.base))
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .map_err(|error| unsendable(&error))?;
        let (mut parts, body) = request.into_parts();
        let scope = Scope { region: &self.region, service: "kms-xks-proxy" };
        let now = self.ambient.now();
        sigv4::sign(&mut parts, &body, scope, &self.access_key_id, &self.secret.signing, now)
            .map_err(|error| unsendable(&error))?;
        Ok(Request::from_parts(parts, body))
    }

    async fn ask_for<T: for<'a> Deserialize<'a>>(&self, path: &str, body: String) -> Result<T, LinkFault> {
        let answer = self.ask(path, body).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(&answer));
        }
        serde_json::from_slice(answer.body()).map_err(|_| invalid("a member is missing or of another type"))
    }
}

/// What the caller asked for, in the protocol's own members.
fn metadata(about: About<'_>) -> serde_json::Value {
    let mut metadata = serde_json::json!({
        "awsPrincipalArn": about.principal_arn,
        "kmsOperation": about.operation,
        "kmsRequestId": about.request_id,
    });
    let mut tell = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            metadata[name] = value;
        }
    };
    tell("kmsKeyArn", about.key_arn.map(Into::into));
    tell("kmsViaService", about.via_service.map(Into::into));
    tell("holdfastCallerProof", about.proof.cloned());
    metadata
}

/// What an error of the proxy's means: status and name decide. A proxy of ours says more, and may say that what looks like an outage is
/// none.
fn refusal(answer: &Response<Bytes>) -> LinkFault {
    let told: ErrorAnswer = serde_json::from_slice(answer.body()).unwrap_or_default();
    let name = holdfast_wire::printable(&told.error_name, TOLD_CHARS_MAX);
    match (answer.status().as_u16(), name.as_str()) {
        (400, "InvalidCiphertextException") => LinkFault::InvalidCiphertext,
        (400, "InvalidStateException" | "InvalidKeyUsageException") => LinkFault::KeyUnusable(name),
        (401, _) => LinkFault::NotAuthenticated,
        (403, _) => LinkFault::Denied(name),
        (404, "KeyNotFoundException") => LinkFault::KeyNotFound,
        (404, "InvalidUriPathException") => LinkFault::NoSuchPath,
        (429, _) if told.holdfast_cause.bears_out(Cause::Busy) => LinkFault::Throttled,
        (503, "DependencyTimeoutException") if told.holdfast_cause.bears_out(Cause::Outage) => LinkFault::TimedOut,
        // The name that the protocol has for faults; and what HTTP has for services that are away, whoever tells it.
        (500, "InternalException") | (502..=504, _) if told.holdfast_cause.bears_out(Cause::Outage) => {
            LinkFault::Failed(format!("status {} {name}", answer.status()))
        }
        (status, _) => invalid(format!("status {status} {name}")),
    }
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>, LinkFault> {
    STANDARD.decode(text).map_err(|_| invalid(format!("{what} is not Base64")))
}

/// A proxy's ciphertext: length and bytes of the IV, the tag, length and bytes of the metadata, the ciphertext
/// (`docs/formats/kms-ciphertext.md`).
struct Outer {
    iv: Vec<u8>,
    tag: Vec<u8>,
    metadata: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl Outer {
    fn encode(&self) -> Vec<u8> {
        [
            &[self.iv.len() as u8],
            self.iv.as_slice(),
            &self.tag,
            &[self.metadata.len() as u8],
            &self.metadata,
            &self.ciphertext,
        ]
        .concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (iv_len, rest) = bytes.split_first()?;
        let (iv, rest) = rest.split_at_checked(usize::from(*iv_len))?;
        let (tag, rest) = rest.split_at_checked(TAG_BYTES)?;
        let (metadata_len, rest) = rest.split_first()?;
        let (metadata, ciphertext) = rest.split_at_checked(usize::from(*metadata_len))?;
        let fits = matches!(iv.len(), 12 | 16) && metadata.len() <= METADATA_BYTES_MAX;
        fits.then(|| Self {
            iv: iv.to_vec(),
            tag: tag.to_vec(),
            metadata: metadata.to_vec(),
            ciphertext: ciphertext.to_vec(),
        })
    }
}

/// Takes the proxy's word for nothing: lengths and the integrity value are checked before anything rests on the ciphertext.
fn check_encrypted(answer: &EncryptAnswer, inner_len: usize, aad: &[u8]) -> Result<Outer, LinkFault> {
    let outer = Outer {
        iv: decode(&answer.initialization_vector, "the IV")?,
        tag: decode(&answer.authentication_tag, "the tag")?,
        metadata: decode(&answer.ciphertext_metadata, "the metadata")?,
        ciphertext: decode(&answer.ciphertext, "the ciphertext")?,
    };
    if outer.ciphertext.len() != inner_len {
        return Err(invalid("the ciphertext is not as long as the plaintext"));
    }
    if !matches!(outer.iv.len(), 12 | 16) || outer.tag.len() != TAG_BYTES || outer.metadata.len() > METADATA_BYTES_MAX {
        return Err(invalid("IV, tag or metadata has a wrong length"));
    }
    let told = answer.ciphertext_data_integrity_value.as_deref();
    let told = decode(told.ok_or_else(|| invalid("the integrity value is missing"))?, "the integrity value")?;
    let reckoned = kdf::sha256(&[aad, &outer.metadata, &outer.iv, &outer.ciphertext, &outer.tag]);
    if !ct_eq(&told, &reckoned) {
        return Err(invalid("the integrity value is not that of the ciphertext"));
    }
    Ok(outer)
}

#[async_trait]
impl Link for XksLink {
    async fn health(&self, about: About<'_>) -> Result<(), LinkFault> {
        let body = serde_json::json!({
            "requestMetadata": {"kmsOperation": about.operation, "kmsRequestId": about.request_id},
        });
        let answer: HealthAnswer = self.ask_for("health", body.to_string()).await?;
        if answer.xks_proxy_fleet_size < 1 || !(1..=10).contains(&answer.ekm_fleet_details.len()) {
            return Err(invalid("the fleet is empty or too large"));
        }
        let known = ["ACTIVE", "DEGRADED", "UNAVAILABLE"];
        if answer.ekm_fleet_details.iter().any(|manager| !known.contains(&manager.health_status.as_str())) {
            return Err(invalid("a health status is not known"));
        }
        if answer.ekm_fleet_details.iter().all(|manager| manager.health_status == "UNAVAILABLE") {
            return Err(LinkFault::ManagersUnavailable);
        }
        Ok(())
    }

    async fn check_key(&self, key: &str, about: About<'_>) -> Result<(), LinkFault> {
        let body = serde_json::json!({"requestMetadata": metadata(about)});
        let answer: MetadataAnswer = self.ask_for(&format!("keys/{key}/metadata"), body.to_string()).await?;
        let unusable = |what: &str| Err(LinkFault::KeyUnusable(what.to_owned()));
        if answer.key_spec != "AES_256" {
            return unusable("it is no AES key of 256 bits");
        }
        if answer.key_status != "ENABLED" {
            return unusable("it is not enabled");
        }
        if !["ENCRYPT", "DECRYPT"].iter().all(|usage| answer.key_usage.iter().any(|known| known == usage)) {
            return unusable("it is not for ENCRYPT and DECRYPT");
        }
        Ok(())
    }

    async fn encrypt(&self, key: &str, inner: &[u8], aad: &[u8], about: About<'_>) -> Result<Vec<u8>, LinkFault> {
        let mut body = serde_json::json!({
            "requestMetadata": metadata(about),
            "plaintext": STANDARD.encode(inner),
            "encryptionAlgorithm": "AES_GCM",
            "ciphertextDataIntegrityValueAlgorithm": "SHA_256",
        });
        if !aad.is_empty() {
            body["additionalAuthenticatedData"] = STANDARD.encode(aad).into();
        }
        let answer: EncryptAnswer = self.ask_for(&format!("keys/{key}/encrypt"), body.to_string()).await?;
        check_encrypted(&answer, inner.len(), aad).map(|outer| outer.encode())
    }

    async fn decrypt(&self, key: &str, outer: &[u8], aad: &[u8], about: About<'_>) -> Result<Vec<u8>, LinkFault> {
        let outer = Outer::decode(outer).ok_or(LinkFault::InvalidCiphertext)?;
        let mut body = serde_json::json!({
            "requestMetadata": metadata(about),
            "ciphertext": STANDARD.encode(&outer.ciphertext),
            "initializationVector": STANDARD.encode(&outer.iv),
            "authenticationTag": STANDARD.encode(&outer.tag),
            "encryptionAlgorithm": "AES_GCM",
        });
        if !outer.metadata.is_empty() {
            body["ciphertextMetadata"] = STANDARD.encode(&outer.metadata).into();
        }
        if !aad.is_empty() {
            body["additionalAuthenticatedData"] = STANDARD.encode(aad).into();
        }
        let answer: DecryptAnswer = self.ask_for(&format!("keys/{key}/decrypt"), body.to_string()).await?;
        let inner = answer.plaintext.bytes();
        if inner.len() != outer.ciphertext.len() {
            return Err(invalid("the plaintext is not as long as the ciphertext"));
        }
        Ok(inner.to_vec())
    }

    fn wants_proof(&self) -> bool {
        self.caller_proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(iv: &[u8], ciphertext: &[u8], tag: &[u8], metadata: &[u8], aad: &[u8]) -> EncryptAnswer {
        let digest = kdf::sha256(&[aad, metadata, iv, ciphertext, tag]);
        EncryptAnswer {
            ciphertext: STANDARD.encode(ciphertext),
            initialization_vector: STANDARD.encode(iv),
            authentication_tag: STANDARD.encode(tag),
            ciphertext_metadata: STANDARD.encode(metadata),
            ciphertext_data_integrity_value: Some(STANDARD.encode(digest)),
        }
    }

    #[test]
    fn only_what_the_protocol_says_is_taken() {
        let good = || answer(&[1; 12], b"abc", &[2; 16], b"m", b"aad");
        let outer = check_encrypted(&good(), 3, b"aad").unwrap().encode();
        assert_eq!(outer, [&[12], [1; 12].as_slice(), &[2; 16], &[1], b"m", b"abc"].concat());
        let again = Outer::decode(&outer).unwrap();
        assert_eq!(
            (again.iv.len(), again.metadata.as_slice(), again.ciphertext.as_slice()),
            (12, &b"m"[..], &b"abc"[..])
        );
        let bad = [
            (answer(&[1; 11], b"abc", &[2; 16], b"m", b"aad"), 3, &b"aad"[..]),
            (answer(&[1; 12], b"abc", &[2; 15], b"m", b"aad"), 3, b"aad"),
            (answer(&[1; 12], b"abc", &[2; 16], &[0; 21], b"aad"), 3, b"aad"),
            (good(), 4, b"aad"),
            (good(), 3, b"other"),
            (EncryptAnswer { ciphertext_data_integrity_value: None, ..good() }, 3, b"aad"),
            (EncryptAnswer { ciphertext: "!".into(), ..good() }, 3, b"aad"),
        ];
        for (index, (answer, len, aad)) in bad.into_iter().enumerate() {
            assert!(matches!(check_encrypted(&answer, len, aad), Err(LinkFault::InvalidResponse(_))), "{index}");
        }
        for bytes in [&b""[..], &[12], &[13; 60], &[[12].as_slice(), &[0; 28], &[21], &[0; 30]].concat()] {
            assert!(Outer::decode(bytes).is_none());
        }
    }

    #[test]
    fn errors_by_name_and_status() {
        let fault = |status: u16, body: &'static str| {
            refusal(&Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap())
        };
        assert_eq!(fault(400, r#"{"errorName":"InvalidCiphertextException"}"#), LinkFault::InvalidCiphertext);
        assert_eq!(fault(401, ""), LinkFault::NotAuthenticated);
        assert_eq!(fault(404, r#"{"errorName":"KeyNotFoundException"}"#), LinkFault::KeyNotFound);
        assert_eq!(fault(404, r#"{"errorName":"InvalidUriPathException"}"#), LinkFault::NoSuchPath);
        assert!(matches!(fault(404, "<html>"), LinkFault::InvalidResponse(_)));
        assert!(matches!(fault(500, "null"), LinkFault::InvalidResponse(_)));
        assert_eq!(fault(429, r#"{"errorName":"ThrottlingException"}"#), LinkFault::Throttled);
        assert_eq!(fault(503, r#"{"errorName":"DependencyTimeoutException"}"#), LinkFault::TimedOut);
        assert_eq!(
            fault(503, r#"{"errorName":"DependencyTimeoutException","holdfastCause":"outage"}"#),
            LinkFault::TimedOut
        );
        assert!(matches!(fault(500, r#"{"errorName":"InternalException"}"#), LinkFault::Failed(_)));
        assert!(matches!(fault(502, "<html>"), LinkFault::Failed(_)));
        // A code makes nothing laxer, and a stricter one counts.
        for body in [
            r#"{"errorName":"InternalException","holdfastCause":"refusal"}"#,
            r#"{"errorName":"InternalException","holdfastCause":"?"}"#,
        ] {
            for status in [429, 500, 502, 503, 504] {
                assert_eq!(fault(status, body).cause(), Cause::Refusal, "{status} {body}");
            }
        }
        for (status, name) in
            [(400, "InvalidStateException"), (403, "AccessDeniedException"), (500, "Other"), (501, "InternalException")]
        {
            let body = format!(r#"{{"errorName":"{name}","holdfastCause":"outage","errorMessage":"unavailable"}}"#);
            let answer = Response::builder().status(status).body(Bytes::from(body)).unwrap();
            assert_eq!(refusal(&answer).cause(), Cause::Refusal, "{status} {name}");
        }
        assert!(matches!(fault(302, ""), LinkFault::InvalidResponse(_)), "redirects are not followed");
    }
}

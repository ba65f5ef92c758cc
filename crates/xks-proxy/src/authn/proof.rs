//! Proof of the original caller (`docs/formats/caller-proof.md`).
//!
//! The key service forwards the caller's own signed request: its headers, the hash of its body, its signature. The proxy
//! holds what the caller signs with, and so sees for itself that this caller asked for this operation, now. A key service
//! that invents callers has no such signature to show. Each statement is good for as many uses as its operation has.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::Timestamp;
use holdfast_crypto::{SecretBytes, kdf, secret::ct_eq};
use holdfast_wire::{
    hex::hex,
    sigv4::{Authorization, day_key, push_canonical, string_to_sign},
};
use serde::Deserialize;

use super::Rejection;

/// Statements remembered, so that none is used again; far more than come within the minutes that one is good for.
const REMEMBERED_MAX: usize = 200_000;
/// A statement is good for so long from its date, and so long before.
const GOOD_MILLIS: i64 = 5 * 60 * 1000;
const HEADERS_MAX: usize = 32;

/// A caller whose requests can be verified.
pub struct EnrolledCaller {
    /// Its ARN, as the key service names it.
    pub principal_arn: String,
    /// What it signs with.
    pub secret: SecretBytes,
}

impl EnrolledCaller {
    pub(crate) fn is_the_same_as(&self, other: &Self) -> bool {
        self.principal_arn == other.principal_arn && self.secret.ct_eq(other.secret.expose())
    }
}

/// The statement, as the key service sends it in `requestMetadata.holdfastCallerProof`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallerProofStatement {
    version: u32,
    method: String,
    path: String,
    /// Names in lower case, in the order of SignedHeaders.
    headers: Vec<(String, String)>,
    authorization: String,
    payload_sha256: String,
    /// The body, unless it holds what the proxy need not see.
    body: Option<String>,
}

/// What the key service says of the request, to be borne out by the statement.
pub(crate) struct ProofClaims<'a> {
    pub principal_arn: &'a str,
    pub operation: &'a str,
    pub kms_key_arn: Option<&'a str>,
}

/// Statements that were used.
#[derive(Default)]
pub struct ProofReplays(Mutex<HashMap<[u8; 32], (i64, u32)>>);

impl ProofReplays {
    /// Counts a use. False if there were `uses_max` before, or if nothing more can be remembered.
    fn count(&self, signature: [u8; 32], expires: i64, uses_max: u32, now: i64) -> bool {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= REMEMBERED_MAX {
            used.retain(|_, (expires, _)| *expires > now);
        }
        if used.len() >= REMEMBERED_MAX && !used.contains_key(&signature) {
            return false;
        }
        let (_, uses) = used.entry(signature).or_insert((expires, 0));
        *uses += 1;
        *uses <= uses_max
    }
}

/// Verifies a statement.
///
/// # Errors
/// [`Rejection`].
pub(crate) fn verify_proof(
    statement: &CallerProofStatement,
    claims: &ProofClaims<'_>,
    callers: &HashMap<String, EnrolledCaller>,
    replays: &ProofReplays,
    now: Timestamp,
) -> Result<(), Rejection> {
    if statement.version != 1 || statement.method != "POST" || statement.headers.len() > HEADERS_MAX {
        return Err(Rejection("the caller's proof is of an unknown version or form"));
    }
    let authorization = Authorization::parse(&statement.authorization)?;
    authorization.covers_enough()?;
    let named: Vec<&str> = statement.headers.iter().map(|(name, _)| name.as_str()).collect();
    if named != authorization.signed_headers {
        return Err(Rejection("the caller's proof does not show the headers that were signed"));
    }
    let header =
        |name: &str| statement.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let date = header("x-amz-date").unwrap_or_default();
    authorization.check_date(date, now)?;
    if authorization.service != "kms" {
        return Err(Rejection("the caller's proof is for another service"));
    }
    let target = header("x-amz-target").ok_or(Rejection("the caller did not sign x-amz-target"))?;
    if target.strip_prefix("TrentService.") != Some(claims.operation) {
        return Err(Rejection("the caller's proof is for another operation"));
    }
    let caller = callers.get(authorization.access_key_id).ok_or(Rejection("the caller is not enrolled"))?;
    let mut canonical = String::new();
    for (name, value) in &statement.headers {
        push_canonical(&mut canonical, name, value);
    }
    let to_sign =
        string_to_sign(&authorization, date, &statement.method, &statement.path, &canonical, &statement.payload_sha256);
    let key = day_key(&caller.secret, authorization.day, authorization.region, "kms");
    if !ct_eq(&key.sign(&[to_sign.as_bytes()]), &authorization.signature) {
        return Err(Rejection("the caller's signature does not match"));
    }
    // Only now is anything in the statement more than a claim.
    if caller.principal_arn != claims.principal_arn {
        return Err(Rejection("the caller's proof is another caller's"));
    }
    check_body(statement, claims)?;
    let expires = now.unix_millis() + 2 * GOOD_MILLIS;
    let uses_max = if claims.operation == "ReEncrypt" { 2 } else { 1 };
    if !replays.count(authorization.signature, expires, uses_max, now.unix_millis()) {
        return Err(Rejection("the caller's proof was used before"));
    }
    Ok(())
}

/// The body says which key was meant. Where it holds a plaintext it need not be shown: nothing is disclosed by encrypting.
fn check_body(statement: &CallerProofStatement, claims: &ProofClaims<'_>) -> Result<(), Rejection> {
    let Some(body) = &statement.body else {
        return match claims.operation {
            "Encrypt" => Ok(()),
            _ => Err(Rejection("the caller's proof does not show the body")),
        };
    };
    let body = STANDARD.decode(body).map_err(|_| Rejection("the body in the caller's proof is not Base64"))?;
    if hex(&kdf::sha256(&[&body])) != statement.payload_sha256 {
        return Err(Rejection("the body in the caller's proof is not the one that was signed"));
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body {
        key_id: Option<String>,
        destination_key_id: Option<String>,
    }
    let body: Body =
        serde_json::from_slice(&body).map_err(|_| Rejection("the body in the caller's proof is not JSON"))?;
    let named = [body.key_id, body.destination_key_id];
    let Some(arn) = claims.kms_key_arn else { return Ok(()) };
    let id = arn.rsplit('/').next().unwrap_or(arn);
    let mut any = false;
    for name in named.iter().flatten() {
        // An alias does not tell the key; the key service's own policy speaks of it.
        if name == arn || name == id || name.starts_with("alias/") || name.contains(":alias/") {
            return Ok(());
        }
        any = true;
    }
    if any { Err(Rejection("the caller meant another key")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:iam::111122223333:user/alice";
    const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234";
    /// 2026-11-25T12:00:00Z.
    const NOW: i64 = 1_795_608_000;

    fn callers() -> HashMap<String, EnrolledCaller> {
        let secret = SecretBytes::copy_of(b"secret");
        HashMap::from([("AKIA".to_owned(), EnrolledCaller { principal_arn: ARN.into(), secret })])
    }

    fn statement(operation: &str, body: &str) -> CallerProofStatement {
        let headers = [("host", "kms"), ("x-amz-date", "20261125T120000Z"), ("x-amz-target", operation)];
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut statement = CallerProofStatement {
            version: 1,
            method: "POST".into(),
            path: "/".into(),
            headers,
            authorization: String::new(),
            payload_sha256: hex(&kdf::sha256(&[body.as_bytes()])),
            body: Some(STANDARD.encode(body)),
        };
        let unsigned = format!(
            "AWS4-HMAC-SHA256 Credential=AKIA/20261125/us-east-1/kms/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-target, Signature={}",
            "0".repeat(64)
        );
        let authorization = Authorization::parse(&unsigned).unwrap();
        let mut canonical = String::new();
        for (name, value) in &statement.headers {
            push_canonical(&mut canonical, name, value);
        }
        let payload = statement.payload_sha256.clone();
        let to_sign = string_to_sign(&authorization, "20261125T120000Z", "POST", "/", &canonical, &payload);
        let key = day_key(&SecretBytes::copy_of(b"secret"), "20261125", "us-east-1", "kms");
        statement.authorization = unsigned.replace(&"0".repeat(64), &hex(&key.sign(&[to_sign.as_bytes()])));
        statement
    }

    fn verify(
        statement: &CallerProofStatement,
        claims: &ProofClaims<'_>,
        replays: &ProofReplays,
    ) -> Result<(), Rejection> {
        verify_proof(statement, claims, &callers(), replays, Timestamp::from_unix_secs(NOW))
    }

    #[test]
    fn a_callers_own_request_is_proof_once() {
        let statement = statement("TrentService.Decrypt", r#"{"CiphertextBlob":"","KeyId":"1234"}"#);
        let claims = ProofClaims { principal_arn: ARN, operation: "Decrypt", kms_key_arn: Some(KEY) };
        let replays = ProofReplays::default();
        assert_eq!(verify(&statement, &claims, &replays), Ok(()));
        assert_eq!(verify(&statement, &claims, &replays), Err(Rejection("the caller's proof was used before")));
    }

    #[test]
    fn invented_and_borrowed_statements_are_refused() {
        let good = || statement("TrentService.Decrypt", r#"{"CiphertextBlob":"","KeyId":"1234"}"#);
        let claims = ProofClaims { principal_arn: ARN, operation: "Decrypt", kms_key_arn: Some(KEY) };
        let refused = |statement: &CallerProofStatement, claims: &ProofClaims<'_>, why: &str| {
            let rejection = verify(statement, claims, &ProofReplays::default()).unwrap_err();
            assert!(rejection.0.contains(why), "{rejection} is not {why}");
        };
        refused(
            &good(),
            &ProofClaims { principal_arn: "arn:aws:iam::111122223333:user/bob", ..claims },
            "another caller",
        );
        refused(&good(), &ProofClaims { operation: "Encrypt", ..claims }, "another operation");
        let other = "arn:aws:kms:us-east-1:111122223333:key/9999";
        refused(&good(), &ProofClaims { kms_key_arn: Some(other), ..claims }, "another key");
        let claims = || ProofClaims { principal_arn: ARN, operation: "Decrypt", kms_key_arn: Some(KEY) };
        let mut swapped = good();
        swapped.body = Some(STANDARD.encode(r#"{"CiphertextBlob":"x","KeyId":"1234"}"#));
        refused(&swapped, &claims(), "not the one that was signed");
        let mut hidden = good();
        hidden.body = None;
        refused(&hidden, &claims(), "does not show the body");
        let mut retargeted = good();
        retargeted.headers[2].1 = "TrentService.Encrypt".into();
        refused(&retargeted, &ProofClaims { operation: "Encrypt", ..claims() }, "signature does not match");
        let mut unknown = good();
        unknown.authorization = unknown.authorization.replace("AKIA", "AKIB");
        refused(&unknown, &claims(), "not enrolled");
        let stale = verify_proof(
            &good(),
            &claims(),
            &callers(),
            &ProofReplays::default(),
            Timestamp::from_unix_secs(NOW + 301),
        );
        assert!(stale.unwrap_err().0.contains("five minutes"));
    }
}

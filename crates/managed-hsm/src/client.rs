//! The dialect from the other side: KEKs of a Managed HSM, this one or the real one, behind the [`KekService`] seam.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::{DekWrapAlgorithm, KekError, KekService, WrappedDek};
use holdfast_crypto::SecretBytes;
use holdfast_wire::{Cause, Exchange, ToldCause, printable};
use http::{Method, Request, Response, StatusCode, header};
use serde::Deserialize;

use crate::wire;

const API_VERSION: &str = "7.5";
/// A token is renewed this long before it expires.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// A token is renewed after a day, whatever its issuer says of it.
const TOKEN_SECS_MAX: u64 = 86_400;
/// Longest text of an error that is repeated, for people to read.
const TOLD_CHARS_MAX: usize = 200;

/// The identity with which a service asks: an application of the tenant, with its secret.
pub struct ServiceIdentity {
    /// `https://AUTHORITY/TENANT`
    pub authority: String,
    /// The application.
    pub client_id: String,
    /// Its secret.
    pub client_secret: SecretBytes,
    /// What tokens are for.
    pub audience: String,
}

struct Token {
    value: String,
    renew: Instant,
}

/// KEKs in Managed HSMs.
pub struct KekClient {
    exchange: Arc<dyn Exchange>,
    identity: ServiceIdentity,
    /// Base URLs of the HSMs that are asked. A KEK elsewhere is not known: whoever names a KEK must not be able to have
    /// our token sent to a host of his own.
    hsm_urls: Vec<String>,
    /// Base URLs that HSMs had before, and which of those above they have now.
    moved: Vec<(String, String)>,
    token: tokio::sync::Mutex<Option<Token>>,
    /// KEKs (without version) that turned out to be AES keys.
    aes: Mutex<HashMap<String, ()>>,
}

#[derive(Deserialize)]
struct CryptoAnswer {
    kid: String,
    value: wire::SecretText,
}

#[derive(Deserialize)]
struct KeyAnswer {
    key: Kid,
}

#[derive(Deserialize)]
struct Kid {
    kid: String,
}

#[derive(Default, Deserialize)]
struct ErrorAnswer {
    #[serde(default)]
    error: ErrorBody,
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    innererror: Option<Inner>,
    #[serde(default, rename = "holdfastCause")]
    cause: ToldCause,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    code: String,
}

impl KekClient {
    /// A client of the HSMs at `hsm_urls` (`https://HOST[:PORT]`).
    #[must_use]
    pub fn new(exchange: Arc<dyn Exchange>, identity: ServiceIdentity, hsm_urls: Vec<String>) -> Self {
        let hsm_urls = hsm_urls.into_iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let (token, aes) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { exchange, identity, hsm_urls, moved: Vec::new(), token, aes }
    }

    /// The same, for HSMs that were moved or renamed: from which base URL to which, of those that are asked. What names a KEK by the old one
    /// means the KEK of that name at the new one.
    #[must_use]
    pub fn with_moved(mut self, moved: impl IntoIterator<Item = (String, String)>) -> Self {
        let base = |url: String| url.trim_end_matches('/').to_owned();
        self.moved = moved.into_iter().map(|(old, new)| (base(old), base(new))).collect();
        self
    }

    /// Name and, if there is one, version of a KEK of ours.
    fn parse<'a>(&self, kek_url: &'a str) -> Option<(&'a str, Option<&'a str>)> {
        let path = self.hsm_urls.iter().find_map(|base| behind(kek_url, base))?.strip_prefix("/keys/")?;
        let (name, version) = path.split_once('/').map_or((path, None), |(name, version)| (name, Some(version)));
        let valid = holdfast_core::KeyName::parse(name).is_ok()
            && version.is_none_or(|version| holdfast_core::KeyVersionId::parse(version).is_some());
        valid.then_some((name, version))
    }

    /// Where a KEK is asked for. Adds the scheme that it may be named without: some clients fetch any parameter that looks like a URL.
    fn full_url(&self, kek_url: &str) -> String {
        let url = if kek_url.contains("://") { kek_url.to_owned() } else { format!("https://{kek_url}") };
        let moved = self.moved.iter().find_map(|(old, new)| {
            let path = behind(&url, old).filter(|path| path.starts_with("/keys/"))?;
            Some(format!("{new}{path}"))
        });
        moved.unwrap_or(url)
    }

    async fn token(&self, renew: bool) -> Result<String, KekError> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: String,
            expires_in: u64,
        }
        let mut held = self.token.lock().await;
        if let Some(token) = held.as_ref().filter(|token| !renew && Instant::now() < token.renew) {
            return Ok(token.value.clone());
        }
        let encode = |text: &[u8]| -> String {
            text.iter()
                .map(|byte| match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (*byte as char).to_string(),
                    _ => format!("%{byte:02X}"),
                })
                .collect()
        };
        let ServiceIdentity { authority, client_id, client_secret, audience } = &self.identity;
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
            encode(client_id.as_bytes()),
            encode(client_secret.expose()),
            encode(format!("{audience}/.default").as_bytes()),
        );
        let request = Request::post(format!("{authority}/oauth2/v2.0/token"))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(form))
            .map_err(|error| KekError::Unclear(error.to_string()))?;
        let response = self.exchange.send(request).await?;
        if !response.status().is_success() {
            return Err(no_token(&response));
        }
        let answer: Answer = serde_json::from_slice(response.body())
            .map_err(|_| KekError::Unclear("the issuer's answer cannot be read".into()))?;
        let lifetime = Duration::from_secs(answer.expires_in.min(TOKEN_SECS_MAX)).saturating_sub(TOKEN_MARGIN);
        *held = Some(Token { value: answer.access_token.clone(), renew: Instant::now() + lifetime });
        Ok(answer.access_token)
    }

    async fn call(&self, method: Method, url: &str, body: Option<String>) -> Result<Response<Bytes>, KekError> {
        let mut renew = false;
        loop {
            let token = self.token(renew).await?;
            let request = Request::builder()
                .method(method.clone())
                .uri(format!("{url}?api-version={API_VERSION}"))
                .header(header::AUTHORIZATION, format!("Bearer {token}"))
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.clone().map(Bytes::from).unwrap_or_default())
                .map_err(|error| KekError::Unclear(error.to_string()))?;
            let response = self.exchange.send(request).await?;
            // The token may have been revoked with the issuer's key: once more with a new one.
            if response.status() == StatusCode::UNAUTHORIZED && !renew {
                renew = true;
                continue;
            }
            return Ok(response);
        }
    }

    async fn crypto(
        &self,
        operation: &str,
        kek_url: &str,
        algorithm: DekWrapAlgorithm,
        value: &[u8],
    ) -> Result<CryptoAnswer, (StatusCode, KekError)> {
        let unknown = || (StatusCode::NOT_FOUND, KekError::NotFound(kek_url.into()));
        self.parse(kek_url).ok_or_else(unknown)?;
        let body = serde_json::json!({"alg": algorithm.as_str(), "value": wire::encode(value)}).to_string();
        let transport = |error| (StatusCode::SERVICE_UNAVAILABLE, error);
        let response =
            self.call(Method::POST, &format!("{kek_url}/{operation}"), Some(body)).await.map_err(transport)?;
        let status = response.status();
        if !status.is_success() {
            return Err((status, failure(kek_url, &response)));
        }
        serde_json::from_slice(response.body())
            .map_err(|_| (status, KekError::Unclear("the answer cannot be read".into())))
    }

    /// Makes an RSA key of `bits`, unless a key of this name exists. For `dev`, which brings its KEKs along.
    ///
    /// # Errors
    /// [`KekError`].
    pub async fn ensure_rsa_key(&self, kek_url: &str, bits: u32) -> Result<(), KekError> {
        match self.newest_version(kek_url).await {
            Err(KekError::NotFound(_)) => {}
            other => return other.map(|_| ()),
        }
        let body = serde_json::json!({"kty": "RSA-HSM", "key_size": bits, "key_ops": ["wrapKey", "unwrapKey"]});
        let response = self.call(Method::POST, &format!("{kek_url}/create"), Some(body.to_string())).await?;
        if response.status().is_success() { Ok(()) } else { Err(failure(kek_url, &response)) }
    }
}

/// What follows a base URL, in whatever case it is written.
fn behind<'a>(url: &'a str, base: &str) -> Option<&'a str> {
    let (start, rest) = url.split_at_checked(base.len())?;
    start.eq_ignore_ascii_case(base).then_some(rest)
}

/// Why the issuer gives no token (RFC 6749, section 5.2): it says no, unless it is known to be away.
fn no_token(response: &Response<Bytes>) -> KekError {
    #[derive(Default, Deserialize)]
    struct Refused {
        #[serde(default)]
        error: String,
    }
    let told: Refused = serde_json::from_slice(response.body()).unwrap_or_default();
    match (response.status().as_u16(), told.error.as_str()) {
        (429, _) => KekError::Throttled,
        (500, "server_error" | "temporarily_unavailable") | (502..=504, _) => {
            KekError::Unavailable(format!("the issuer answered {}", response.status()))
        }
        (400..=499, _) => KekError::Denied("the issuer gives this service no token".into()),
        _ => KekError::Unclear(format!("the issuer answered {}", response.status())),
    }
}

/// What an error of the HSM means for whoever needs a DEK: status, codes and what a service of ours says of its cause decide, and never
/// words. What is not known to be an outage counts as a refusal.
fn failure(kek_url: &str, response: &Response<Bytes>) -> KekError {
    let status = response.status();
    let answer: ErrorAnswer = serde_json::from_slice(response.body()).unwrap_or_default();
    let why = printable(&answer.error.message, TOLD_CHARS_MAX);
    let inner = answer.error.innererror.map(|inner| inner.code).unwrap_or_default();
    let cause = answer.error.cause;
    let unclear = || KekError::Unclear(format!("it answered {status}: {why}"));
    match status {
        StatusCode::UNAUTHORIZED => KekError::Denied(why),
        StatusCode::FORBIDDEN => match (answer.error.code.as_str(), inner.as_str()) {
            (_, "KeyDisabled" | "KeyExpired" | "KeyNotYetValid") => KekError::Disabled(why),
            (_, "KeyOperationForbidden") => KekError::InvalidUsage(why),
            _ => KekError::Denied(why),
        },
        StatusCode::NOT_FOUND => KekError::NotFound(kek_url.into()),
        StatusCode::TOO_MANY_REQUESTS if cause.bears_out(Cause::Busy) => KekError::Throttled,
        StatusCode::TOO_MANY_REQUESTS => unclear(),
        status if status.is_client_error() => KekError::InvalidUsage(why),
        // The codes that the service has for its own faults; and what HTTP has for services that are away, whoever tells it.
        status
            if cause.bears_out(Cause::Outage)
                && match status.as_u16() {
                    500 => {
                        matches!(answer.error.code.as_str(), "GeneralError" | "InternalError" | "InternalServerError")
                    }
                    status => matches!(status, 502..=504),
                } =>
        {
            KekError::Unavailable(format!("the HSM answered {status}: {why}"))
        }
        _ => unclear(),
    }
}

#[async_trait]
impl KekService for KekClient {
    /// RSA-OAEP-256 first; a KEK that refuses it is an AES key, and is remembered as one.
    async fn wrap(&self, kek_url: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError> {
        let kek_url = &self.full_url(kek_url);
        let name = self.without_version(kek_url);
        let known_aes = self.aes.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name);
        let mut algorithm = if known_aes { DekWrapAlgorithm::A256Kw } else { DekWrapAlgorithm::RsaOaep256 };
        let mut answer = self.crypto("wrapkey", kek_url, algorithm, dek.expose()).await;
        if matches!(answer, Err((StatusCode::BAD_REQUEST, _))) && !known_aes {
            algorithm = DekWrapAlgorithm::A256Kw;
            answer = self.crypto("wrapkey", kek_url, algorithm, dek.expose()).await;
            if answer.is_ok() {
                self.aes.lock().unwrap_or_else(PoisonError::into_inner).insert(name, ());
            }
        }
        let answer = answer.map_err(|(_, error)| error)?;
        let wrapped = answer.value.decode("value").map_err(|_| KekError::Unclear("no wrapped key".into()))?;
        // A version that is not of this KEK must not come to stand beside the data.
        if self.without_version(&answer.kid) != self.without_version(kek_url) {
            return Err(KekError::Unclear("it names another key than was asked for".into()));
        }
        Ok(WrappedDek { kek_url: answer.kid, algorithm, wrapped: wrapped.expose().to_vec() })
    }

    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        let kek_url = &self.full_url(&wrapped.kek_url);
        let answer = self.crypto("unwrapkey", kek_url, wrapped.algorithm, &wrapped.wrapped).await;
        let answer = answer.map_err(|(status, error)| match error {
            KekError::InvalidUsage(_) if status == StatusCode::BAD_REQUEST => KekError::Rejected,
            other => other,
        })?;
        let dek = answer.value.decode("value").map_err(|_| KekError::Unclear("no unwrapped key".into()))?;
        if dek.len() == 32 { Ok(dek) } else { Err(KekError::Rejected) }
    }

    async fn newest_version(&self, kek_url: &str) -> Result<String, KekError> {
        let kek_url = &self.full_url(kek_url);
        let (_, version) = self.parse(kek_url).ok_or_else(|| KekError::NotFound(kek_url.into()))?;
        if version.is_some() {
            return Ok(kek_url.into());
        }
        let response = self.call(Method::GET, kek_url, None).await?;
        if !response.status().is_success() {
            return Err(failure(kek_url, &response));
        }
        let answer: KeyAnswer = serde_json::from_slice(response.body())
            .map_err(|_| KekError::Unclear("the answer cannot be read".into()))?;
        Ok(answer.key.kid)
    }

    fn knows(&self, kek_url: &str) -> bool {
        self.parse(&self.full_url(kek_url)).is_some()
    }

    fn without_version(&self, kek_url: &str) -> String {
        let kek_url = &self.full_url(kek_url);
        match self.parse(kek_url) {
            Some((_, Some(version))) => kek_url[..kek_url.len() - version.len() - 1].to_ascii_lowercase(),
            _ => kek_url.to_ascii_lowercase(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use holdfast_wire::ExchangeError;

    struct Nobody;
    #[async_trait]
    impl Exchange for Nobody {
        async fn send(&self, _: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
            Err(ExchangeError::Unreachable("nobody is there".into()))
        }
    }

    #[test]
    fn only_keks_of_configured_hsms_are_known() {
        let identity = ServiceIdentity {
            authority: "https://login.example/t".into(),
            client_id: "c".into(),
            client_secret: SecretBytes::copy_of(b"s"),
            audience: "https://managedhsm.azure.net".into(),
        };
        let client = KekClient::new(Arc::new(Nobody), identity, vec!["https://hsm.example.com:8443/".into()]);
        let version = "0".repeat(32);
        assert!(client.knows("https://hsm.example.com:8443/keys/kek") && client.knows("hsm.example.com:8443/keys/kek"));
        assert!(client.knows(&format!("https://HSM.example.com:8443/keys/kek/{version}")));
        for foreign in [
            "https://hsm.example.com:8443.evil.com/keys/kek",
            "https://hsm.example.com:8443@evil.com/keys/kek",
            "https://evil.com/keys/kek",
            "https://hsm.example.com:8443/keys/../backup",
            "https://hsm.example.com:8443/keys/kek/1",
            "https://hsm.example.com:8443/keys/kek?x=",
            "alias/kek",
            "",
        ] {
            assert!(!client.knows(foreign), "{foreign}");
        }
        let client = client.with_moved([("https://old.example.com/".into(), "https://hsm.example.com:8443".into())]);
        let old = format!("https://OLD.example.com/keys/kek/{version}");
        assert_eq!(client.full_url(&old), format!("https://hsm.example.com:8443/keys/kek/{version}"));
        assert_eq!(client.without_version(&old), "https://hsm.example.com:8443/keys/kek");
        assert!(client.knows(&old) && client.knows("old.example.com/keys/kek"));
        for foreign in [
            "https://old.example.com.evil.com/keys/kek",
            "https://old.example.com/other",
            "https://old.example.com:1/keys/kek",
        ] {
            assert!(!client.knows(foreign), "{foreign}");
        }
        let with = format!("https://hsm.example.com:8443/keys/Kek/{version}");
        assert_eq!(client.without_version(&with), "https://hsm.example.com:8443/keys/kek");
    }

    fn told(status: u16, body: &str) -> KekError {
        let body = Bytes::copy_from_slice(body.as_bytes());
        failure("kek", &Response::builder().status(status).body(body).unwrap())
    }

    fn error(code: &str, inner: &str, cause: &str) -> String {
        format!(
            r#"{{"error":{{"code":"{code}","message":"{code} unavailable","innererror":{{"code":"{inner}"}}{cause}}}}}"#
        )
    }

    #[test]
    fn what_is_not_known_to_be_an_outage_is_a_refusal() {
        let outage = r#","holdfastCause":"outage""#;
        for (status, code) in
            [(429, "Throttled"), (500, "InternalError"), (503, "StoreUnavailable"), (502, ""), (504, "")]
        {
            assert!(!told(status, &error(code, "", "")).is_refusal(), "{status}");
            assert!(!told(status, &error(code, "", outage)).is_refusal(), "{status}");
            for strict in [r#","holdfastCause":"refusal""#, r#","holdfastCause":"?""#, r#","holdfastCause":null"#] {
                assert!(told(status, &error(code, "", strict)).is_refusal(), "{status} {strict}");
            }
        }
        for status in [302, 400, 401, 403, 404, 409, 418, 501] {
            assert!(told(status, &error("InternalError", "", outage)).is_refusal(), "{status}");
        }
        for junk in ["", "<html>", "null", r#"{"error":"unavailable"}"#, r#"{"error":{"code":1}}"#] {
            assert!(told(500, junk).is_refusal() && !told(503, junk).is_refusal(), "{junk}");
        }
        assert!(matches!(told(403, &error("Forbidden", "KeyDisabled", outage)), KekError::Disabled(_)));
    }

    #[test]
    fn an_issuer_says_no_unless_it_is_away() {
        let told = |status: u16, body: &'static str| {
            no_token(&Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap())
        };
        assert!(matches!(told(401, r#"{"error":"invalid_client"}"#), KekError::Denied(_)));
        assert!(matches!(told(400, "temporarily unavailable"), KekError::Denied(_)));
        assert!(matches!(told(500, "temporarily_unavailable"), KekError::Unclear(_)));
        assert!(matches!(told(302, ""), KekError::Unclear(_)));
        for (status, body) in [(500, r#"{"error":"server_error"}"#), (503, "")] {
            assert!(matches!(told(status, body), KekError::Unavailable(_)), "{status}");
        }
    }
}

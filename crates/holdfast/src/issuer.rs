//! An OIDC issuer small enough for one machine: discovery, keys, and tokens for clients with a secret.
//!
//! It speaks what azure-identity and `az login --service-principal` ask of Entra. It runs in `holdfast dev`, and
//! elsewhere only if the configuration names it.

mod keys;

use std::{collections::HashMap, sync::Arc};

use base64::Engine as _;
use bytes::Bytes;
use holdfast_core::{Ambient, Store, Trouble};
use holdfast_crypto::{SecretBytes, kdf, secret::ct_eq};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jsonwebtoken::{Algorithm, Header};
use keys::KeyKeeper;
use serde_json::json;

use crate::fault::Fault;

const TOKEN_SECS: i64 = 3600;
const FORM_BYTES_MAX: usize = 64 * 1024;

/// A client that may ask for tokens.
pub(crate) struct Client {
    pub object_id: String,
    /// SHA-256 of the secret; the secret itself is not kept.
    pub secret_sha256: [u8; 32],
}

/// The issuer.
pub(crate) struct Issuer {
    /// `https://HOST:PORT`
    url: String,
    tenant: String,
    clients: HashMap<String, Client>,
    keys: KeyKeeper,
    /// Of tending the keys.
    trouble: Trouble,
    ambient: Arc<dyn Ambient>,
}

impl Issuer {
    /// An issuer whose signing keys are kept in `store`; the first is made if there is none.
    pub(crate) async fn open(
        url: String,
        tenant: String,
        clients: HashMap<String, Client>,
        store: Arc<dyn Store>,
        ambient: Arc<dyn Ambient>,
    ) -> Result<Self, Fault> {
        let keys = KeyKeeper::open(store, Arc::clone(&ambient)).await?;
        Ok(Self { url, tenant, clients, keys, trouble: Trouble::default(), ambient })
    }

    /// Changes keys when it is time.
    pub(crate) async fn maintain(&self) {
        if !self.keys.is_due() {
            return;
        }
        match self.keys.tend().await {
            Ok(()) if self.trouble.ends() => tracing::info!("the issuer's keys are changed when it is time again"),
            Ok(()) => {}
            Err(error) if self.trouble.begins() => {
                tracing::error!(%error, "the issuer's keys could not be changed; the old ones stay");
            }
            Err(_) => {}
        }
    }

    fn issuer_url(&self) -> String {
        issuer_url(&self.url, &self.tenant)
    }

    /// Answers one request.
    pub(crate) async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let tenant_known = segments.first().is_some_and(|tenant| tenant.eq_ignore_ascii_case(&self.tenant));
        match (request.method(), segments.as_slice()) {
            (&Method::GET, ["common", "discovery", "instance"]) => self.instance_discovery(),
            (
                &Method::GET,
                [_, ".well-known", "openid-configuration"] | [_, "v2.0", ".well-known", "openid-configuration"],
            ) if tenant_known => self.discovery(),
            (&Method::GET, [_, "discovery", "v2.0", "keys"] | [_, "discovery", "keys"]) if tenant_known => {
                answer(StatusCode::OK, self.keys.now().jwks.clone())
            }
            (&Method::POST, [_, "oauth2", "v2.0", "token"] | [_, "oauth2", "token"]) if tenant_known => {
                self.token(request).await
            }
            // az asks Graph for the names of principals, and takes an empty list for an answer.
            (&Method::POST, ["v1.0", "directoryObjects", "getByIds"]) => answer(StatusCode::OK, r#"{"value":[]}"#),
            (_, [_, ".well-known", ..] | [_, "v2.0", ..] | [_, "oauth2", ..] | [_, "discovery", ..])
                if !tenant_known =>
            {
                refusal(StatusCode::BAD_REQUEST, "invalid_tenant", "AADSTS90002: Tenant not found")
            }
            _ => answer(StatusCode::NOT_FOUND, r#"{"error":{"code":"NotFound","message":"No such resource"}}"#),
        }
    }

    fn discovery(&self) -> Response<Full<Bytes>> {
        let base = format!("{}/{}", self.url, self.tenant);
        let document = json!({
            "issuer": self.issuer_url(),
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "device_authorization_endpoint": format!("{base}/oauth2/v2.0/devicecode"),
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
            "response_types_supported": ["code", "id_token", "token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
        });
        answer(StatusCode::OK, document.to_string())
    }

    /// MSAL's question whether this host is an authority; answered, so that it may ask.
    fn instance_discovery(&self) -> Response<Full<Bytes>> {
        let host = self.url.trim_start_matches("https://");
        let document = json!({
            "tenant_discovery_endpoint": format!("{}/{}/v2.0/.well-known/openid-configuration", self.url, self.tenant),
            "api-version": "1.1",
            "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
        });
        answer(StatusCode::OK, document.to_string())
    }

    async fn token(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let basic = request.headers().get(header::AUTHORIZATION).cloned();
        let Ok(body) = Limited::new(request.into_body(), FORM_BYTES_MAX).collect().await else {
            return refusal(StatusCode::BAD_REQUEST, "invalid_request", "the form could not be read");
        };
        // The form holds the client's secret.
        let body = SecretBytes::copy_of(&body.to_bytes());
        let form = parse_form(body.expose());
        let field = |name: &str| form.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        if field("grant_type") != Some("client_credentials") {
            return refusal(StatusCode::BAD_REQUEST, "unsupported_grant_type", "only client_credentials is offered");
        }
        let credentials = match basic.as_ref().and_then(basic_credentials) {
            Some(credentials) => Some(credentials),
            None => {
                field("client_id").zip(field("client_secret")).map(|(id, secret)| (id.to_owned(), secret.to_owned()))
            }
        };
        let Some((client_id, secret)) = credentials else {
            return refusal(StatusCode::UNAUTHORIZED, "invalid_client", "client_id and client_secret are needed");
        };
        let secret = SecretBytes::take(secret.into_bytes());
        let client_id = client_id.to_ascii_lowercase();
        let client = self.clients.get(&client_id);
        // Compared also for unknown clients: the answer's time tells nothing.
        let known = client.map_or([0; 32], |client| client.secret_sha256);
        let same = ct_eq(&kdf::sha256(&[secret.expose()]), &known);
        let Some(client) = client.filter(|_| same) else {
            return refusal(
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "AADSTS7000215: Invalid client secret provided",
            );
        };
        let Some(audience) = field("scope").and_then(audience).or_else(|| field("resource")) else {
            return refusal(StatusCode::BAD_REQUEST, "invalid_scope", "scope must be RESOURCE/.default");
        };
        match self.mint(&client_id, client, audience) {
            Ok(token) => {
                let reply = json!({"token_type": "Bearer", "expires_in": TOKEN_SECS, "ext_expires_in": TOKEN_SECS, "access_token": token});
                answer(StatusCode::OK, reply.to_string())
            }
            Err(error) => {
                tracing::error!(%error, "a token could not be signed");
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "the token could not be signed")
            }
        }
    }

    fn mint(&self, client_id: &str, client: &Client, audience: &str) -> Result<String, jsonwebtoken::errors::Error> {
        let now = self.ambient.now().unix_secs();
        let claims = json!({
            "aud": audience,
            "iss": self.issuer_url(),
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_SECS,
            "appid": client_id,
            "azp": client_id,
            "idtyp": "app",
            "oid": client.object_id,
            "sub": client.object_id,
            "tid": self.tenant,
            "ver": "2.0",
        });
        let keys = self.keys.now();
        let (key, id) = keys.signing();
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(id);
        jsonwebtoken::encode(&header, &claims, key)
    }
}

/// The value of `iss` of the issuer at this URL.
pub(crate) fn issuer_url(url: &str, tenant: &str) -> String {
    format!("{url}/{tenant}/v2.0")
}

/// `RESOURCE/.default`; several scopes are separated by spaces, and the first with `.default` counts.
fn audience(scope: &str) -> Option<&str> {
    scope.split(' ').find_map(|scope| scope.strip_suffix("/.default")).filter(|audience| !audience.is_empty())
}

fn basic_credentials(value: &HeaderValue) -> Option<(String, String)> {
    let encoded = value.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()?;
    decoded.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned()))
}

/// application/x-www-form-urlencoded.
fn parse_form(body: &[u8]) -> Vec<(String, String)> {
    let decode = |part: &[u8]| {
        let mut out = Vec::with_capacity(part.len());
        let mut rest = part;
        while let Some((byte, tail)) = rest.split_first() {
            rest = tail;
            let hex = |at: usize| tail.get(at).and_then(|digit| (*digit as char).to_digit(16));
            match (byte, hex(0), hex(1)) {
                (b'%', Some(high), Some(low)) => {
                    out.push((high << 4 | low) as u8);
                    rest = &tail[2..];
                }
                (b'+', ..) => out.push(b' '),
                _ => out.push(*byte),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    body.split(|byte| *byte == b'&')
        .map(|pair| {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            (decode(halves.next().unwrap_or_default()), decode(halves.next().unwrap_or_default()))
        })
        .collect()
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// RFC 6749, section 5.2.
fn refusal(status: StatusCode, error: &str, description: &str) -> Response<Full<Bytes>> {
    answer(status, json!({"error": error, "error_description": description}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_and_scopes() {
        let form = parse_form(b"a=b%3Dc+d&scope=https%3A%2F%2Fx%2F.default&%=%z&e");
        assert_eq!(form[0], ("a".into(), "b=c d".into()));
        assert_eq!(audience(&form[1].1), Some("https://x"));
        assert_eq!(form[2], ("%".into(), "%z".into()));
        assert_eq!(audience("openid https://y/.default"), Some("https://y"));
        assert_eq!(audience("https://y/read"), None);
    }
}

//! Azure's external key management proxy API, version `0.1-preview`, on the same keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use holdfast_core::{ExternalKeyId, ExternalKeySpec, ExternalOperation, ExternalOutcome, ExternalWrap};
use holdfast_crypto::{EncryptionPadding, RsaPublicKey, SecretBytes, WrapPadding};
use holdfast_wire::JsonText;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::{authn::Proved, call::Call, error::Refusal};

const API_VERSION: &str = "0.1-preview";
/// Longest key that is wrapped; nothing near it is a key.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Operation {
    Info,
    Metadata,
    UnwrapKey,
    WrapKey,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Metadata => "Metadata",
            Self::UnwrapKey => "UnwrapKey",
            Self::WrapKey => "WrapKey",
        }
    }

    /// The name that policies know.
    fn policy_name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Metadata => "metadata",
            Self::UnwrapKey => "unwrapkey",
            Self::WrapKey => "wrapkey",
        }
    }
}

/// A path, taken apart.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Target<'a> {
    pub prefix: &'a str,
    pub operation: Operation,
    pub key: Option<ExternalKeyId>,
}

/// Takes a path apart, from its right-hand end: a prefix may contain `/`, and a key may have the name `info`.
pub(crate) fn route(path: &str) -> Option<Target<'_>> {
    let (rest, last) = path.rsplit_once('/')?;
    let operation = match last {
        "info" => return Some(Target { prefix: rest, operation: Operation::Info, key: None }),
        "metadata" => Operation::Metadata,
        "unwrapkey" => Operation::UnwrapKey,
        "wrapkey" => Operation::WrapKey,
        _ => return None,
    };
    let (prefix, key) = rest.rsplit_once('/')?;
    Some(Target { prefix, operation, key: Some(ExternalKeyId::parse(key).ok()?) })
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct RequestContext {
    pub correlation_id: Option<String>,
    pub pool_name: Option<String>,
    pub request_id: Option<String>,
}

#[derive(Deserialize)]
struct Request<'a> {
    request_context: Option<RequestContext>,
    alg: Option<String>,
    #[serde(borrow)]
    value: Option<JsonText<'a>>,
}

/// What any request says of itself, if it can be read at all: for the log.
pub(crate) fn context_of(body: &[u8]) -> RequestContext {
    serde_json::from_slice::<Request<'_>>(body).ok().and_then(|request| request.request_context).unwrap_or_default()
}

/// Does what an authenticated request asks.
pub(crate) async fn answer(call: &mut Call<'_>, operation: Operation, query: Option<&str>) -> Result<Bytes, Refusal> {
    let version = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("api-version="));
    if version != Some(API_VERSION) {
        return Err(Refusal::invalid(format!("the api-version known here is {API_VERSION}")));
    }
    let request: Request<'_> = serde_json::from_slice(call.body).map_err(|error| {
        Refusal::invalid(format!("the body is not the JSON expected, at column {}", error.column()))
    })?;
    let context = request.request_context.as_ref();
    let named = |value: Option<&String>| value.is_some_and(|text| !text.is_empty());
    if !context.is_some_and(|context| named(context.correlation_id.as_ref()) && named(context.pool_name.as_ref())) {
        return Err(Refusal::invalid("request_context needs correlation_id and pool_name"));
    }
    let subject = call.principal_name();
    let caller = Proved::pool(call, &subject, operation.policy_name())?;
    match operation {
        Operation::Info => info(call),
        Operation::Metadata => metadata(call, caller).await,
        Operation::WrapKey => wrap(call, caller, &request).await,
        Operation::UnwrapKey => unwrap(call, caller, &request).await,
    }
}

fn json(answer: &impl Serialize) -> Result<Bytes, Refusal> {
    serde_json::to_vec(answer).map(Bytes::from).map_err(|error| Refusal::Internal(error.to_string()))
}

fn info(call: &Call<'_>) -> Result<Bytes, Refusal> {
    #[derive(Serialize)]
    struct Info {
        api_version: &'static str,
        proxy_vendor: &'static str,
        proxy_name: &'static str,
        ekm_vendor: String,
        ekm_product: String,
    }
    let mut names = call.governed.policy.keys().filter(|key| call.store.offers(&key.id)).flat_map(|key| &key.hsms);
    let model = names.next().map_or_else(|| "none".into(), |name| call.proxy.health_of(name).model);
    json(&Info {
        api_version: API_VERSION,
        proxy_vendor: "Holdfast",
        proxy_name: concat!("Holdfast xks-proxy ", env!("CARGO_PKG_VERSION")),
        ekm_vendor: model.split_whitespace().next().unwrap_or("none").to_owned(),
        ekm_product: model,
    })
}

async fn metadata(call: &mut Call<'_>, caller: Proved<'_>) -> Result<Bytes, Refusal> {
    #[derive(Serialize)]
    struct Metadata {
        key_type: &'static str,
        key_size: usize,
        key_ops: [&'static str; 2],
        #[serde(skip_serializing_if = "Option::is_none")]
        n: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        e: Option<String>,
    }
    let key = call.key()?;
    let (version, object) = key.newest();
    let described = call.using(&key, caller, version).describe(object).await?;
    let key_ops = ["wrapKey", "unwrapKey"];
    match &described.spec {
        ExternalKeySpec::Aes(256) => json(&Metadata { key_type: "oct", key_size: 256, key_ops, n: None, e: None }),
        ExternalKeySpec::Rsa(RsaPublicKey { n, e }) if matches!(n.len(), 256 | 384 | 512) => json(&Metadata {
            key_type: "RSA",
            key_size: n.len() * 8,
            key_ops,
            n: Some(URL_SAFE_NO_PAD.encode(n)),
            e: Some(URL_SAFE_NO_PAD.encode(e)),
        }),
        ExternalKeySpec::Aes(_) | ExternalKeySpec::Rsa(_) | ExternalKeySpec::Other(_) => Err(Refusal::KeyUsage),
    }
}

fn algorithm(request: &Request<'_>) -> Result<ExternalWrap, Refusal> {
    match request.alg.as_deref() {
        Some("A256KW") => Ok(ExternalWrap::Aes(WrapPadding::None)),
        Some("A256KWP") => Ok(ExternalWrap::Aes(WrapPadding::Padded)),
        Some("RSA-OAEP") => Ok(ExternalWrap::Rsa(EncryptionPadding::OaepSha1)),
        Some("RSA-OAEP-256") => Ok(ExternalWrap::Rsa(EncryptionPadding::OaepSha256)),
        Some(_) => Err(Refusal::invalid("alg is none of A256KW, A256KWP, RSA-OAEP, RSA-OAEP-256")),
        None => Err(Refusal::invalid("alg is missing")),
    }
}

fn value(request: &Request<'_>) -> Result<SecretBytes, Refusal> {
    let text = request.value.as_deref().ok_or_else(|| Refusal::invalid("value is missing"))?;
    if text.len() > VALUE_BYTES_MAX.div_ceil(3) * 4 {
        return Err(Refusal::invalid(format!("value has at most {VALUE_BYTES_MAX} bytes")));
    }
    let bytes = URL_SAFE_NO_PAD.decode(text);
    bytes.map(SecretBytes::take).map_err(|_| Refusal::invalid("value is not base64url without padding"))
}

/// RSA takes `modulus - 2 hash - 2` bytes (RFC 8017, section 7.1.1), key wrap whole blocks from two up (RFC 3394).
fn check_wrap_len(wrap: ExternalWrap, len: usize, spec: &ExternalKeySpec) -> Result<(), Refusal> {
    let fits = match (wrap, spec) {
        (ExternalWrap::Aes(WrapPadding::None), _) => len >= 16 && len.is_multiple_of(8),
        (ExternalWrap::Aes(WrapPadding::Padded), _) => len >= 1,
        (ExternalWrap::Rsa(padding), ExternalKeySpec::Rsa(public)) => {
            let hash = if padding == EncryptionPadding::OaepSha1 { 20 } else { 32 };
            len >= 1 && len + 2 * hash + 2 <= public.n.len()
        }
        (ExternalWrap::Rsa(_), _) => true,
    };
    if fits { Ok(()) } else { Err(Refusal::invalid("value has a length that the algorithm does not take")) }
}

fn check_unwrap_len(wrap: ExternalWrap, len: usize, spec: &ExternalKeySpec) -> Result<(), Refusal> {
    let fits = match (wrap, spec) {
        (ExternalWrap::Aes(WrapPadding::None), _) => len >= 24 && len.is_multiple_of(8),
        (ExternalWrap::Aes(WrapPadding::Padded), _) => len >= 16 && len.is_multiple_of(8),
        (ExternalWrap::Rsa(_), ExternalKeySpec::Rsa(public)) => len == public.n.len(),
        (ExternalWrap::Rsa(_), _) => true,
    };
    if fits { Ok(()) } else { Err(Refusal::InvalidCiphertext) }
}

async fn wrap(call: &mut Call<'_>, caller: Proved<'_>, request: &Request<'_>) -> Result<Bytes, Refusal> {
    let (wrap, secret) = (algorithm(request)?, value(request)?);
    let key = call.key()?;
    let (version, object) = key.newest();
    let mut using = call.using(&key, caller, version);
    let described = using.describe(object).await?;
    check_wrap_len(wrap, secret.len(), &described.spec)?;
    let make = || ExternalOperation::Wrap { wrap, key: SecretBytes::copy_of(secret.expose()) };
    match using.perform(object, make).await? {
        ExternalOutcome::Wrapped(wrapped) => value_body(&wrapped),
        _ => Err(Refusal::Internal("the HSM did something else".into())),
    }
}

async fn unwrap(call: &mut Call<'_>, caller: Proved<'_>, request: &Request<'_>) -> Result<Bytes, Refusal> {
    let (wrap, wrapped) = (algorithm(request)?, value(request)?);
    let key = call.key()?;
    let (version, object) = key.newest();
    let mut using = call.using(&key, caller, version);
    let described = using.describe(object).await?;
    check_unwrap_len(wrap, wrapped.len(), &described.spec)?;
    let make = || ExternalOperation::Unwrap { wrap, wrapped: wrapped.expose().to_vec() };
    match using.perform(object, make).await? {
        ExternalOutcome::Plaintext(key) => value_body(key.expose()),
        _ => Err(Refusal::Internal("the HSM did something else".into())),
    }
}

fn value_body(value: &[u8]) -> Result<Bytes, Refusal> {
    #[derive(Serialize)]
    struct Value {
        value: String,
    }
    json(&Value { value: URL_SAFE_NO_PAD.encode(value) })
}

/// Status, code and body of a refusal.
pub(crate) fn error_body(refusal: &Refusal) -> (StatusCode, &'static str, Bytes) {
    let (status, code) = match refusal {
        Refusal::InvalidInput(_) | Refusal::InvalidCiphertext | Refusal::Unsupported(_) => {
            (StatusCode::BAD_REQUEST, "BadRequest")
        }
        Refusal::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        Refusal::Blocked(_) => (StatusCode::FORBIDDEN, "KeyDisabled"),
        Refusal::Denied(_) => (StatusCode::FORBIDDEN, "Forbidden"),
        Refusal::KeyUsage => (StatusCode::FORBIDDEN, "OperationNotAllowed"),
        Refusal::KeyNotFound => (StatusCode::NOT_FOUND, "KeyNotFound"),
        Refusal::UnknownPath => (StatusCode::NOT_FOUND, "NotFound"),
        Refusal::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        Refusal::TimedOut(_) => (StatusCode::REQUEST_TIMEOUT, "RequestTimeout"),
        Refusal::Dependency(_) | Refusal::Unserved => (StatusCode::BAD_GATEWAY, "BadGateway"),
        Refusal::Throttled(_) => (StatusCode::TOO_MANY_REQUESTS, "Throttled"),
        Refusal::Failed(_) | Refusal::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
    };
    #[derive(Serialize)]
    struct Body<'a> {
        code: &'a str,
        message: String,
    }
    let message = match refusal {
        Refusal::Unauthenticated(_) => "the client certificate is not the one this pool is known by".into(),
        Refusal::Denied(_) => "the policy of the proxy denies it".into(),
        Refusal::Failed(_) | Refusal::Internal(_) => "the proxy failed; its log says why".into(),
        other => other.to_string(),
    };
    (status, code, serde_json::to_vec(&Body { code, message }).unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_the_right() {
        let target = route("/a/b/info/wrapkey").unwrap();
        assert_eq!(
            (target.prefix, target.operation, target.key.unwrap().as_str()),
            ("/a/b", Operation::WrapKey, "info")
        );
        assert_eq!(route("/a/info").unwrap(), Target { prefix: "/a", operation: Operation::Info, key: None });
        assert_eq!(route("/info").unwrap().prefix, "");
        for bad in ["/", "", "/wrapkey", "/a/k/unwrap", "/a/k!/wrapkey"] {
            assert_eq!(route(bad), None, "{bad}");
        }
    }
}

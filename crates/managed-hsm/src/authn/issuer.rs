//! An issuer's keys: found by discovery, cached, refreshed when a key is unknown.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use holdfast_core::{Ambient, Timestamp, Trouble};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::Fetch;

/// An unknown key id causes a fetch at most this often.
const REFRESH_INTERVAL_SECS: i64 = 10;
/// Keys older than this are fetched again at the next chance.
const KEYS_STALE_SECS: i64 = 3600;
/// Keys older than this are not used, though the issuer be away.
const KEYS_EXPIRE_SECS: i64 = 24 * 3600;
/// Keys taken from one document.
const KEYS_MAX: usize = 100;

/// An issuer whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// The issuer's URL; discovery is at `URL/.well-known/openid-configuration`.
    pub url: String,
    /// Further values of `iss` that it uses (Entra's v1 tokens name `https://sts.windows.net/TENANT/`).
    pub aliases: Vec<String>,
    /// The tenant that tokens must name in `tid`.
    pub tenant: String,
}

impl IssuerConfig {
    pub(super) fn names(&self, issuer: &str) -> bool {
        self.url == issuer || self.aliases.iter().any(|alias| alias == issuer)
    }
}

pub(super) enum IssuerError {
    UnknownKey,
    Unavailable(String),
}

/// A key and the one algorithm it may verify.
pub(super) struct IssuerKey {
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

#[derive(Default)]
struct KeySet {
    keys: HashMap<String, Arc<IssuerKey>>,
    fetched: Option<Timestamp>,
}

pub(super) struct Issuer {
    config: IssuerConfig,
    fetch: Arc<dyn Fetch>,
    ambient: Arc<dyn Ambient>,
    keys: ArcSwap<KeySet>,
    /// Moves when a key disappears, so that remembered tokens are verified again.
    generation: AtomicU64,
    /// When a fetch was last tried. One at a time.
    tried: Mutex<Option<Timestamp>>,
    trouble: Trouble,
}

impl Issuer {
    pub(super) fn new(config: IssuerConfig, fetch: Arc<dyn Fetch>, ambient: Arc<dyn Ambient>) -> Self {
        let keys = ArcSwap::default();
        Self {
            config,
            fetch,
            ambient,
            keys,
            generation: AtomicU64::new(0),
            tried: Mutex::new(None),
            trouble: Trouble::default(),
        }
    }

    pub(super) fn config(&self) -> &IssuerConfig {
        &self.config
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The key `id`, with the generation of the set it is from.
    pub(super) async fn key(&self, id: &str) -> Result<(Arc<IssuerKey>, u64), IssuerError> {
        let generation = self.generation();
        let age = self.age_secs();
        if age.is_some_and(|age| age < KEYS_STALE_SECS)
            && let Some(key) = self.keys.load().keys.get(id)
        {
            return Ok((Arc::clone(key), generation));
        }
        let refreshed = self.refresh().await;
        let usable = self.age_secs().is_some_and(|age| age < KEYS_EXPIRE_SECS);
        if !usable {
            return Err(IssuerError::Unavailable(refreshed.err().unwrap_or_else(|| "not fetched yet".into())));
        }
        let generation = self.generation();
        self.keys.load().keys.get(id).cloned().map(|key| (key, generation)).ok_or(IssuerError::UnknownKey)
    }

    fn age_secs(&self) -> Option<i64> {
        self.keys.load().fetched.map(|fetched| self.ambient.now().unix_secs() - fetched.unix_secs())
    }

    async fn refresh(&self) -> Result<(), String> {
        let mut tried = self.tried.lock().await;
        let now = self.ambient.now();
        if tried.is_some_and(|last| (0..REFRESH_INTERVAL_SECS).contains(&(now.unix_secs() - last.unix_secs()))) {
            return Err("tried a moment ago".into());
        }
        *tried = Some(now);
        let keys = self.fetch_keys().await.inspect_err(|error| {
            if self.trouble.begins() {
                tracing::warn!(issuer = %self.config.url, %error, "the issuer's keys could not be fetched");
            }
        })?;
        if self.trouble.ends() {
            tracing::info!(issuer = %self.config.url, "the issuer's keys are fetched again");
        }
        let lost = self.keys.load().keys.keys().any(|id| !keys.contains_key(id));
        self.keys.store(Arc::new(KeySet { keys, fetched: Some(now) }));
        if lost {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    async fn fetch_keys(&self) -> Result<HashMap<String, Arc<IssuerKey>>, String> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let url = format!("{}/.well-known/openid-configuration", self.config.url.trim_end_matches('/'));
        let discovery: Discovery = read_json(&self.fetch.get(&url).await?)?;
        if !self.config.names(&discovery.issuer) {
            return Err(format!("discovery names another issuer, {}", crate::route::printable(&discovery.issuer)));
        }
        if !discovery.jwks_uri.starts_with("https://") {
            return Err("discovery names keys without TLS".into());
        }
        parse_keys(&self.fetch.get(&discovery.jwks_uri).await?)
    }
}

fn read_json<'a, T: Deserialize<'a>>(document: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(document).map_err(|error| format!("the issuer's document is not valid: {error}"))
}

/// Reads a JWK set (RFC 7517, section 5). Keys of other kinds or uses are passed over.
pub(super) fn parse_keys(document: &[u8]) -> Result<HashMap<String, Arc<IssuerKey>>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = read_json(document)?;
    if set.keys.len() > KEYS_MAX {
        return Err(format!("the issuer has more than {KEYS_MAX} keys"));
    }
    let mut keys = HashMap::new();
    for value in set.keys {
        let Some((id, key)) = parse_key(&value) else { continue };
        if keys.insert(id.clone(), Arc::new(key)).is_some() {
            return Err(format!("two keys of the issuer have the id {}", crate::route::printable(&id)));
        }
    }
    Ok(keys)
}

fn parse_key(value: &serde_json::Value) -> Option<(String, IssuerKey)> {
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    if text("use").is_some_and(|usage| usage != "sig") {
        return None;
    }
    let declared = text("alg");
    let (algorithm, key) = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let algorithm = match declared {
                None | Some("RS256") => Algorithm::RS256,
                Some("RS384") => Algorithm::RS384,
                Some("RS512") => Algorithm::RS512,
                Some("PS256") => Algorithm::PS256,
                Some("PS384") => Algorithm::PS384,
                Some("PS512") => Algorithm::PS512,
                Some(_) => return None,
            };
            (algorithm, DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?)
        }
        ("EC", Some("P-256")) if declared.is_none_or(|alg| alg == "ES256") => {
            (Algorithm::ES256, DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
        }
        ("EC", Some("P-384")) if declared.is_none_or(|alg| alg == "ES384") => {
            (Algorithm::ES384, DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
        }
        _ => return None,
    };
    Some((text("kid")?.to_owned(), IssuerKey { algorithm, key }))
}

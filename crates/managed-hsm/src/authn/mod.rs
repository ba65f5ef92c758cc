//! Who calls: OIDC access tokens become [`Principal`]s, everybody else gets the challenge.

mod challenge;
mod issuer;
mod token;

use std::sync::Arc;

use async_trait::async_trait;
pub use challenge::{HostNames, HostPort};
use holdfast_core::{Ambient, Holds, Principal, Timestamp};
use holdfast_crypto::kdf;
pub use issuer::IssuerConfig;
use issuer::{Issuer, IssuerError};
use quick_cache::sync::Cache;

/// Longest token looked at, in bytes. Entra's are 1 to 4 KB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Verified tokens remembered.
const VERIFIED_TOKENS: usize = 10_000;

/// Fetches an issuer's documents. The binary gives it TLS and limits.
#[async_trait]
pub trait Fetch: Send + Sync {
    /// GETs a document of at most 256 KiB over HTTPS.
    ///
    /// # Errors
    /// What went wrong, for the log.
    async fn get(&self, url: &str) -> Result<Vec<u8>, String>;
}

/// Why a caller was not authenticated. The text is for the audit log, except where [`Rejection::message`] repeats it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("no bearer token")]
    NoToken,
    #[error("{0}")]
    BadToken(String),
    #[error("token for audience {found}")]
    WrongAudience { found: String, expected: String },
    #[error("the issuer's keys cannot be had: {0}")]
    IssuerUnavailable(String),
}

impl Rejection {
    /// What the caller is told.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::NoToken => "AKV10000: Request is missing a Bearer or PoP token.".into(),
            Self::BadToken(_) => "AKV10022: The token is not valid here".into(),
            Self::WrongAudience { found, expected } => {
                format!("Found token with aud={found}, but expected aud={expected}")
            }
            Self::IssuerUnavailable(_) => "The identity provider cannot be reached to verify the token".into(),
        }
    }
}

struct Verified {
    principal: Principal,
    not_before: Timestamp,
    expires: Timestamp,
    /// Of the issuer's key set, when the token was verified.
    generation: u64,
    issuer: usize,
}

/// A token that was verified, and may have ended since.
pub(crate) struct Presented(Arc<Verified>);

impl Presented {
    /// Whom it named when it was verified.
    pub(crate) fn principal(&self) -> &Principal {
        &self.0.principal
    }
}

/// Verifies access tokens of configured issuers.
pub struct Authenticator {
    issuers: Vec<Issuer>,
    audiences: Vec<String>,
    verified: Cache<[u8; 32], Arc<Verified>>,
    ambient: Arc<dyn Ambient>,
}

impl Authenticator {
    /// Accepts tokens of `issuers` for `audiences`.
    #[must_use]
    pub fn new(
        issuers: Vec<IssuerConfig>,
        audiences: Vec<String>,
        fetch: Arc<dyn Fetch>,
        ambient: Arc<dyn Ambient>,
    ) -> Self {
        let issuers =
            issuers.into_iter().map(|config| Issuer::new(config, Arc::clone(&fetch), Arc::clone(&ambient))).collect();
        Self { issuers, audiences, verified: Cache::new(VERIFIED_TOKENS), ambient }
    }

    /// A token that was verified a while ago: it may have expired since, or its issuer have withdrawn the key.
    pub(crate) async fn confirm(
        &self,
        presented: Presented,
        header: Option<&http::HeaderValue>,
    ) -> Result<Presented, Rejection> {
        self.still_valid(&presented)?;
        if presented.0.generation == self.issuers[presented.0.issuer].generation() {
            return Ok(presented);
        }
        self.authenticate(header).await
    }

    /// Refuses a token that has expired since it was verified.
    pub(crate) fn still_valid(&self, presented: &Presented) -> Result<(), Rejection> {
        token::check_times(presented.0.not_before, presented.0.expires, self.ambient.now())
    }

    /// The same, to be asked again by whoever does not have this authenticator at hand.
    pub(crate) fn validity(&self, presented: &Presented) -> Holds {
        let (verified, ambient) = (Arc::clone(&presented.0), Arc::clone(&self.ambient));
        Box::new(move || token::check_times(verified.not_before, verified.expires, ambient.now()).is_ok())
    }

    /// Verifies the value of an `Authorization` header.
    pub(crate) async fn authenticate(&self, header: Option<&http::HeaderValue>) -> Result<Presented, Rejection> {
        let header = header.ok_or(Rejection::NoToken)?.to_str().map_err(|_| bad("the header is not ASCII"))?;
        let (scheme, token) = header.split_once(' ').ok_or(Rejection::NoToken)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Rejection::NoToken);
        }
        let token = token.trim_start_matches(' ');
        if token.len() > TOKEN_BYTES_MAX {
            return Err(bad("the token is too long"));
        }
        let fingerprint = kdf::sha256(&[token.as_bytes()]);
        let now = self.ambient.now();
        if let Some(known) = self.verified.get(&fingerprint) {
            token::check_times(known.not_before, known.expires, now)?;
            if known.generation == self.issuers[known.issuer].generation() {
                return Ok(Presented(known));
            }
        }
        let verified = Arc::new(self.verify(token, now).await?);
        self.verified.insert(fingerprint, Arc::clone(&verified));
        Ok(Presented(verified))
    }

    async fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, Rejection> {
        let unverified = token::read_unverified(token)?;
        let found = self.issuers.iter().enumerate().find(|(_, issuer)| issuer.config().names(&unverified.issuer));
        let (index, issuer) = found.ok_or_else(|| bad("the issuer is not trusted here"))?;
        let (key, generation) = issuer.key(&unverified.key_id).await.map_err(|error| match error {
            IssuerError::UnknownKey => bad("the issuer has no such key"),
            IssuerError::Unavailable(why) => Rejection::IssuerUnavailable(why),
        })?;
        let claims = token::verify(token, &key)?;
        token::check_times(claims.not_before, claims.expires, now)?;
        if claims.issuer != unverified.issuer {
            return Err(bad("the issuer is not trusted here"));
        }
        if !claims.audiences.iter().any(|found| self.audiences.iter().any(|known| same_audience(known, found))) {
            let found = claims.audiences.first().map_or_else(String::new, |aud| crate::route::printable(aud));
            let expected = self.audiences.first().cloned().unwrap_or_default();
            return Err(Rejection::WrongAudience { found, expected });
        }
        let tenant = &issuer.config().tenant;
        if claims.tenant.as_ref().is_none_or(|found| !found.eq_ignore_ascii_case(tenant)) {
            return Err(bad("the token is of another tenant"));
        }
        let principal = claims.principal(tenant)?;
        let (not_before, expires) = (claims.not_before, claims.expires);
        Ok(Verified { principal, not_before, expires, generation, issuer: index })
    }
}

fn bad(why: impl Into<String>) -> Rejection {
    Rejection::BadToken(why.into())
}

/// Audiences are URLs; a trailing slash makes no difference (clients differ in it).
fn same_audience(known: &str, found: &str) -> bool {
    known.trim_end_matches('/') == found.trim_end_matches('/')
}

/// Reads a token and a key set, as they come from outside.
#[cfg(fuzzing)]
pub(crate) fn fuzz(token: &str, key_set: &[u8]) {
    let keys = issuer::parse_keys(key_set);
    if let (Ok(unverified), Ok(keys)) = (token::read_unverified(token), keys)
        && let Some(key) = keys.get(&unverified.key_id)
        && let Ok(claims) = token::verify(token, key)
    {
        let _ = claims.principal("tenant");
    }
}

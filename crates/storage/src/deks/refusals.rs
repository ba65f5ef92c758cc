//! What the key service said no to, whoever asked: no grace lasts longer than that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use holdfast_core::{KekError, KekService, WrappedDek};
use holdfast_crypto::SecretBytes;

/// KEKs remembered. With more, no KEK at all has grace for what was unwrapped before.
const KEKS_MAX: usize = 10_000;

#[derive(Default)]
struct Heard {
    /// By the KEK without its version: when it was last refused.
    of: HashMap<String, Instant>,
    /// When there were too many to remember them one by one.
    of_all: Option<Instant>,
}

/// The key service, with an ear for its refusals.
pub(super) struct Refusals {
    keks: Arc<dyn KekService>,
    heard: Mutex<Heard>,
}

impl Refusals {
    pub(super) fn of(keks: Arc<dyn KekService>) -> Self {
        Self { keks, heard: Mutex::default() }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the KEK was refused since `asked`.
    pub(super) fn since(&self, kek_url: &str, asked: Instant) -> bool {
        let heard = self.heard();
        let of_it = heard.of.get(&self.keks.without_version(kek_url)).copied();
        of_it.max(heard.of_all).is_some_and(|refused| refused >= asked)
    }

    /// Lets go what is older than any DEK that may still be in use.
    pub(super) fn sweep(&self, age_max: Duration) {
        self.heard().of.retain(|_, refused| refused.elapsed() <= age_max);
    }

    fn hear<T>(&self, kek_url: &str, result: Result<T, KekError>) -> Result<T, KekError> {
        let refused = match &result {
            Ok(_) => false,
            // It is one DEK that was refused.
            Err(KekError::Rejected) => false,
            Err(error) => error.is_refusal(),
        };
        if refused {
            let kek = self.keks.without_version(kek_url);
            let mut heard = self.heard();
            if heard.of.len() >= KEKS_MAX && !heard.of.contains_key(&kek) {
                *heard = Heard { of_all: Some(Instant::now()), ..Heard::default() };
            }
            heard.of.insert(kek, Instant::now());
        }
        result
    }
}

#[async_trait]
impl KekService for Refusals {
    async fn wrap(&self, kek_url: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError> {
        self.hear(kek_url, self.keks.wrap(kek_url, dek).await)
    }

    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        self.hear(&wrapped.kek_url, self.keks.unwrap(wrapped).await)
    }

    async fn newest_version(&self, kek_url: &str) -> Result<String, KekError> {
        self.hear(kek_url, self.keks.newest_version(kek_url).await)
    }

    fn knows(&self, kek_url: &str) -> bool {
        self.keks.knows(kek_url)
    }

    fn without_version(&self, kek_url: &str) -> String {
        self.keks.without_version(kek_url)
    }
}

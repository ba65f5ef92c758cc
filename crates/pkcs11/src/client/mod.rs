//! The proxy's end: one HSM user behind the [`ExternalHsm`] seam.

mod link;
mod supervise;

use std::{
    collections::HashMap,
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use holdfast_core::{
    ExternalHsm, ExternalKey, ExternalKeyId, ExternalKeySpec, ExternalOperation, ExternalOutcome, ExternalWrap,
    HsmError, HsmHealth, HsmState, KeyOperations, Permit, Resource, TokenObject,
};
use holdfast_crypto::{CryptoError, ImportedKey, SecretBytes};
use link::Link;
use tokio::sync::{Notify, watch};

use crate::{
    Pkcs11Config,
    message::{Answer, Call, words},
    names,
};

/// Keys whose description is remembered.
const KNOWN_MAX: usize = 100_000;

/// How a host is started: program and arguments. Its standard input is the socket.
#[derive(Clone, Debug)]
pub struct HostCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A PIN, as far as one is known.
pub type Pin = Option<Arc<SecretBytes>>;

/// One user of one token, in a process of its own.
pub struct Pkcs11Hsm {
    config: Pkcs11Config,
    link: ArcSwapOption<Link>,
    health: Mutex<HsmHealth>,
    known: Mutex<HashMap<TokenObject, Known>>,
    listing: tokio::sync::Mutex<()>,
    listed: Mutex<Option<Listed>>,
    /// A host has just got ready.
    ready: Arc<Notify>,
}

/// The last listing, and when it was made.
type Listed = (Instant, Arc<Vec<(TokenObject, ExternalKey)>>);

/// What was last seen of a key.
struct Known {
    result: Result<Arc<ExternalKey>, HsmError>,
    seen: Instant,
}

impl Pkcs11Hsm {
    /// Starts a host for `config` and watches over it for as long as the answer lives. Without a PIN, and after a wrong one,
    /// nothing is tried until `pin` changes.
    #[must_use]
    pub fn start(config: Pkcs11Config, command: HostCommand, pin: watch::Receiver<Pin>) -> Arc<Self> {
        let health = HsmHealth { state: HsmState::Unavailable, model: "unknown".into(), detail: "not started".into() };
        let hsm = Arc::new(Self {
            config,
            link: ArcSwapOption::empty(),
            health: Mutex::new(health),
            known: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            listed: Mutex::default(),
            ready: Arc::default(),
        });
        tokio::spawn(supervise::supervise(Arc::downgrade(&hsm), command, pin));
        tokio::spawn(relist(Arc::downgrade(&hsm)));
        hsm
    }

    fn set_health(&self, state: HsmState, model: Option<&str>, detail: impl Into<String>) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = detail.into();
        if health.state != state || health.detail != detail {
            let name = &self.config.name;
            match state {
                HsmState::Active => tracing::info!(hsm = name, "the HSM is active"),
                HsmState::Degraded => tracing::warn!(hsm = name, detail, "the HSM is degraded"),
                HsmState::Unavailable => tracing::warn!(hsm = name, detail, "the HSM is unavailable"),
            }
        }
        health.state = state;
        health.detail = detail;
        if let Some(model) = model {
            model.clone_into(&mut health.model);
        }
    }

    async fn call(&self, call: Call, budget: Duration) -> Result<Answer, HsmError> {
        let link = self.link.load_full();
        let link = link.ok_or_else(|| HsmError::Unavailable(self.health().detail))?;
        match link.call(call, budget).await? {
            Answer::Failed(error) => Err(error),
            answer => Ok(answer),
        }
    }

    async fn describe_now(&self, object: &TokenObject, budget: Duration) -> Result<Arc<ExternalKey>, HsmError> {
        let result = match self.call(Call::Describe { object: object.clone() }, budget).await {
            Ok(Answer::Key(key)) => Ok(Arc::new(key)),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(error),
        };
        // What is known stays known while the HSM is away: it cannot be used meanwhile.
        if matches!(result, Ok(_) | Err(HsmError::NotFound | HsmError::InvalidInput(_))) {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() < KNOWN_MAX || known.contains_key(object) {
                known.insert(object.clone(), Known { result: result.clone(), seen: Instant::now() });
            }
        }
        result
    }
}

fn unexpected() -> HsmError {
    HsmError::Unavailable("the HSM host answered something else".into())
}

/// Lists the token's keys again and again, so that requests need not look.
async fn relist(hsm: std::sync::Weak<Pkcs11Hsm>) {
    loop {
        let Some(strong) = hsm.upgrade() else { return };
        let interval = strong.config.relist_interval;
        let well = match strong.list_now(interval).await {
            Ok(keys) => {
                strong.take_listing(keys);
                true
            }
            Err(error) => {
                tracing::debug!(hsm = strong.config.name, %error, "the keys could not be listed");
                false
            }
        };
        let ready = Arc::clone(&strong.ready);
        drop(strong);
        // Soon again if the HSM was away; at once when a host gets ready.
        let wait = if well { interval / 2 } else { (interval / 2).min(Duration::from_secs(1)) };
        let _ = tokio::time::timeout(wait, ready.notified()).await;
    }
}

impl Pkcs11Hsm {
    /// Looks at every key in the token.
    async fn list_now(&self, budget: Duration) -> Result<Vec<(TokenObject, ExternalKey)>, HsmError> {
        // One at a time: the host keeps one listing.
        let _turn = self.listing.lock().await;
        let (mut all, mut page) = (Vec::new(), 0);
        loop {
            let Answer::Keys { keys, more } = self.call(Call::List { page }, budget).await? else {
                return Err(unexpected());
            };
            all.extend(keys);
            if !more {
                return Ok(all);
            }
            page += 1;
        }
    }

    /// Replaces what is known by what is there now.
    fn take_listing(&self, keys: Vec<(TokenObject, ExternalKey)>) {
        let seen = Instant::now();
        let arcs = keys.iter().map(|(object, key)| (object.clone(), Arc::new(key.clone())));
        let index = names::index(arcs);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (object, before) in known.iter() {
            let after = index.get(object).and_then(Option::as_deref);
            if before.result.as_deref().ok().is_some_and(|before| Some(before) != after) {
                tracing::warn!(hsm = self.config.name, %object, "a key was changed in the HSM");
            }
        }
        let entries = index.into_iter().take(KNOWN_MAX).map(|(object, key)| {
            let result = key.ok_or(HsmError::InvalidInput(words::AMBIGUOUS));
            (object, Known { result, seen })
        });
        *known = entries.collect();
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some((seen, Arc::new(keys)));
    }
}

#[async_trait]
impl ExternalHsm for Pkcs11Hsm {
    async fn describe(&self, object: &TokenObject, budget: Duration) -> Result<Arc<ExternalKey>, HsmError> {
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            // Found keys are kept up to date in the background; what was not found may come at any time.
            let fresh = |known: &&Known| {
                let age = known.seen.elapsed();
                age <= self.config.relist_interval && (known.result.is_ok() || age < Duration::from_secs(1))
            };
            if let Some(known) = known.get(object).filter(fresh) {
                return known.result.clone();
            }
        }
        self.describe_now(object, budget).await
    }

    async fn perform(
        &self,
        permit: Permit,
        key: &ExternalKeyId,
        object: &TokenObject,
        operation: ExternalOperation,
        budget: Duration,
    ) -> Result<ExternalOutcome, HsmError> {
        permit.spend(operation.action(), &Resource::ExternalKey(key.clone()))?;
        let object = object.clone();
        let call = match operation {
            ExternalOperation::GcmDecrypt { iv, aad, ciphertext, tag } => {
                Call::Decrypt { object, iv, aad, ciphertext, tag }
            }
            ExternalOperation::GcmEncrypt { plaintext, aad, integrity } => {
                Call::Encrypt { object, plaintext, aad, integrity }
            }
            ExternalOperation::Unwrap { wrap, wrapped } => Call::Unwrap { object, wrap, wrapped },
            ExternalOperation::Wrap { wrap: ExternalWrap::Rsa(padding), key } => {
                let described = self.describe(&object, budget).await?;
                let ExternalKeySpec::Rsa(public) = &described.spec else {
                    return Err(HsmError::InvalidInput("the algorithm does not fit the key"));
                };
                return public.encrypt(padding, key.expose()).map(ExternalOutcome::Wrapped).map_err(refuse);
            }
            ExternalOperation::Wrap { wrap, key } => Call::Wrap { object, wrap, key },
        };
        match self.call(call, budget).await? {
            Answer::Ciphertext { iv, ciphertext, tag, integrity } => {
                Ok(ExternalOutcome::Ciphertext { iv, ciphertext, tag, integrity })
            }
            Answer::Plaintext(plaintext) => Ok(ExternalOutcome::Plaintext(plaintext)),
            Answer::Wrapped(wrapped) => Ok(ExternalOutcome::Wrapped(wrapped)),
            Answer::Done | Answer::Failed(_) | Answer::Key(_) | Answer::Keys { .. } => Err(unexpected()),
        }
    }

    async fn list(&self, budget: Duration) -> Result<Vec<(TokenObject, ExternalKey)>, HsmError> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match listed {
            Some((seen, keys)) if seen.elapsed() <= self.config.relist_interval => Ok(keys.as_ref().clone()),
            _ => self.list_now(budget).await,
        }
    }

    async fn create(
        &self,
        permit: Permit,
        key: &ExternalKeyId,
        object: &TokenObject,
        usage: KeyOperations,
        import: Option<ImportedKey>,
        budget: Duration,
    ) -> Result<(), HsmError> {
        let action = if import.is_some() { holdfast_core::Action::KeyImport } else { holdfast_core::Action::KeyCreate };
        permit.spend(action, &Resource::ExternalKey(key.clone()))?;
        let value = match import {
            None => None,
            Some(ImportedKey::Aes(value)) => Some(value),
            Some(_) => return Err(HsmError::InvalidInput("only AES keys are imported")),
        };
        let call = Call::Create { object: object.clone(), usage, value };
        match self.call(call, budget).await? {
            Answer::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    fn health(&self) -> HsmHealth {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn refuse(error: CryptoError) -> HsmError {
    match error {
        CryptoError::InvalidInput(why) | CryptoError::InvalidKey(why) => HsmError::InvalidInput(why),
        _ => HsmError::Failed("RSA encryption"),
    }
}

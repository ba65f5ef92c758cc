//! Unwrapped DEKs, for a bounded time.
//!
//! The time runs from the unwrap and use never extends it. One unwrap serves all who wait for it. A refusal drops the
//! entry at once, and ends the grace of all that its KEK wraps; a key service that is away drops nothing. Values are zeroed when the last user lets go.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::{KekError, KekService, WrappedDek};
use holdfast_crypto::{SecretBytes, kdf};
use metrics::{counter, gauge};
use refusals::Refusals;

mod refusals;

/// Bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct DekCacheLimits {
    /// How long a DEK is used after its unwrap. Zero: each use unwraps.
    pub ttl: Duration,
    /// How much longer it is used while the key service is away, and only then. Zero: no longer.
    pub outage_grace: Duration,
    /// DEKs held.
    pub entries_max: usize,
}

impl Default for DekCacheLimits {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), outage_grace: Duration::ZERO, entries_max: 100_000 }
    }
}

/// A DEK in use. Good until `expires`; then it must be asked for again.
pub(crate) struct Dek {
    pub key: SecretBytes,
    pub expires: Instant,
    asked: Instant,
    generation: u64,
}

type Name = [u8; 32];

#[derive(Default)]
struct Entry {
    dek: Option<Arc<Dek>>,
    /// Held by the one who unwraps.
    gate: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Held {
    entries: HashMap<Name, Entry>,
    /// Moves when everything is forgotten, so that no unwrap in flight brings something back.
    generation: u64,
}

/// The cache.
pub(crate) struct DekCache {
    keks: Refusals,
    limits: DekCacheLimits,
    held: Mutex<Held>,
}

fn name(wrapped: &WrappedDek) -> Name {
    kdf::sha256(&[wrapped.kek_url.as_bytes(), &[0], wrapped.algorithm.as_str().as_bytes(), &[0], &wrapped.wrapped])
}

impl DekCache {
    pub(crate) fn new(keks: Arc<dyn KekService>, limits: DekCacheLimits) -> Self {
        Self { keks: Refusals::of(keks), limits, held: Mutex::default() }
    }

    /// Without a cache a use that lasts is checked each second.
    fn lifetime(&self) -> Duration {
        if self.limits.ttl.is_zero() { Duration::from_secs(1) } else { self.limits.ttl }
    }

    pub(crate) fn keks(&self) -> &dyn KekService {
        &self.keks
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The DEK, from the cache or by an unwrap.
    pub(crate) async fn unwrap(&self, wrapped: &WrappedDek) -> Result<Arc<Dek>, KekError> {
        let name = name(wrapped);
        let gate = {
            let mut held = self.held();
            if let Some(dek) = fresh(&held, &name) {
                counter!("holdfast_storage_dek_cache_hits_total").increment(1);
                return Ok(dek);
            }
            Arc::clone(&held.entries.entry(name).or_default().gate)
        };
        let _turn = gate.lock().await;
        let generation = {
            let held = self.held();
            // Somebody unwrapped while we waited. With a TTL of zero everybody unwraps for himself.
            if let Some(dek) = fresh(&held, &name) {
                counter!("holdfast_storage_dek_cache_hits_total").increment(1);
                return Ok(dek);
            }
            held.generation
        };
        counter!("holdfast_storage_unwraps_total").increment(1);
        // From before the unwrap: a slow answer does not lengthen the time.
        let asked = Instant::now();
        match self.keks.unwrap(wrapped).await {
            Ok(key) => {
                let dek = Arc::new(Dek { key, expires: asked + self.lifetime(), asked, generation });
                self.keep(name, &dek);
                Ok(dek)
            }
            Err(error) if error.is_refusal() => {
                self.held().entries.remove(&name);
                Err(error)
            }
            Err(error) => self.through_outage(&name, &wrapped.kek_url, asked).ok_or(error),
        }
    }

    /// Takes in a DEK that was just made and wrapped.
    pub(crate) fn insert(&self, wrapped: &WrappedDek, key: SecretBytes, asked: Instant) -> Arc<Dek> {
        let generation = self.held().generation;
        let dek = Arc::new(Dek { key, expires: asked + self.lifetime(), asked, generation });
        self.keep(name(wrapped), &dek);
        dek
    }

    fn keep(&self, name: Name, dek: &Arc<Dek>) {
        if self.limits.ttl.is_zero() {
            return;
        }
        let mut held = self.held();
        if held.generation != dek.generation {
            return;
        }
        if held.entries.len() > self.limits.entries_max {
            let others = held.entries.iter().filter(|(known, _)| **known != name);
            let oldest = others.filter_map(|(known, entry)| Some((entry.dek.as_ref()?.expires, *known))).min();
            if let Some((_, oldest)) = oldest {
                held.entries.remove(&oldest);
            }
        }
        held.entries.entry(name).or_default().dek = Some(Arc::clone(dek));
        gauge!("holdfast_storage_dek_cache_entries").set(held.entries.len() as f64);
    }

    /// Opt-in: an expired DEK goes on for a while if the key service is away; never after a refusal of it, which removed it, or of
    /// anything else under its KEK.
    fn through_outage(&self, name: &Name, kek_url: &str, now: Instant) -> Option<Arc<Dek>> {
        let held = self.held();
        let dek = held.entries.get(name)?.dek.as_ref()?;
        let grace_end = dek.expires + self.limits.outage_grace;
        let in_grace = !self.limits.outage_grace.is_zero() && now < grace_end;
        (in_grace && !self.keks.since(kek_url, dek.asked)).then(|| {
            counter!("holdfast_storage_outage_grace_uses_total").increment(1);
            Arc::clone(dek)
        })
    }

    /// Whether a use under way may go on with `dek` without asking again: its time is not over, and nobody said to forget.
    pub(crate) fn is_good(&self, dek: &Dek) -> bool {
        Instant::now() < dek.expires && dek.generation == self.held().generation
    }

    /// Drops everything at once, and ends what is in use at its next piece; says how many there were.
    pub(crate) fn forget(&self) -> usize {
        let mut held = self.held();
        held.generation += 1;
        let count = held.entries.values().filter(|entry| entry.dek.is_some()).count();
        held.entries.clear();
        gauge!("holdfast_storage_dek_cache_entries").set(0.0);
        count
    }

    /// Drops what has expired; called now and then, so that nothing lies longer than needed for want of use.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut held = self.held();
        let keep = self.limits.outage_grace;
        self.keks.sweep(self.lifetime() + keep);
        held.entries.retain(|_, entry| match &entry.dek {
            Some(dek) => now < dek.expires + keep,
            None => Arc::strong_count(&entry.gate) > 1,
        });
        gauge!("holdfast_storage_dek_cache_entries").set(held.entries.len() as f64);
    }
}

fn fresh(held: &Held, name: &Name) -> Option<Arc<Dek>> {
    held.entries.get(name)?.dek.as_ref().filter(|dek| Instant::now() < dek.expires).cloned()
}

#[cfg(test)]
mod tests;

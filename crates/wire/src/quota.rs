//! Quotas: so many requests a second for each store, and what is over is refused at once.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// So much of a second's quota may come at once.
const BURST_SECS: f64 = 0.25;
const BURST_MIN: f64 = 32.0;

struct Bucket {
    tokens: f64,
    filled: Instant,
    refused: u64,
}

/// The stores' quotas as far as they are used up.
#[derive(Default)]
pub struct Quotas(Mutex<HashMap<String, Bucket>>);

impl Quotas {
    /// Takes one request out of a store's quota. False if there is none left.
    #[must_use]
    pub fn admit(&self, store: &str, per_sec: u32, now: Instant) -> bool {
        let burst = (f64::from(per_sec) * BURST_SECS).max(BURST_MIN);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(store) {
            buckets.insert(store.to_owned(), Bucket { tokens: burst, filled: now, refused: 0 });
        }
        let Some(bucket) = buckets.get_mut(store) else { return true };
        let elapsed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.filled = now;
        bucket.tokens = (bucket.tokens + elapsed * f64::from(per_sec)).min(burst);
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// Counts a request that was refused, by its quota or for want of room.
    pub fn refused(&self, store: &str) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(store) {
            bucket.refused += 1;
        } else {
            let bucket = Bucket { tokens: BURST_MIN, filled: Instant::now(), refused: 1 };
            buckets.insert(store.to_owned(), bucket);
        }
    }

    /// How many each store was refused since the last time this was asked.
    #[must_use]
    pub fn take_refused(&self) -> Vec<(String, u64)> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = buckets.iter_mut().filter(|(_, bucket)| bucket.refused > 0);
        refused.map(|(store, bucket)| (store.clone(), std::mem::take(&mut bucket.refused))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_over_the_quota_is_refused() {
        let quotas = Quotas::default();
        let start = Instant::now();
        let admitted = (0..200).filter(|_| quotas.admit("a", 200, start)).count();
        assert_eq!(admitted, 50);
        assert!(quotas.admit("b", 1, start), "stores do not share");
        let later = start + Duration::from_millis(100);
        assert_eq!((0..200).filter(|_| quotas.admit("a", 200, later)).count(), 20);
        quotas.refused("a");
        quotas.refused("a");
        assert_eq!(quotas.take_refused(), [("a".to_owned(), 2)]);
        assert_eq!(quotas.take_refused(), []);
    }
}

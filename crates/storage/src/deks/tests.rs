use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use holdfast_core::DekWrapAlgorithm;

use super::*;

/// Unwraps to the wrapped bytes; counts, and fails as told.
#[derive(Default)]
struct Scripted {
    unwraps: AtomicUsize,
    failure: Mutex<Option<KekError>>,
}

#[async_trait]
impl KekService for Scripted {
    async fn wrap(&self, kek_url: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError> {
        Ok(WrappedDek { kek_url: kek_url.into(), algorithm: DekWrapAlgorithm::A256Kw, wrapped: dek.expose().to_vec() })
    }
    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        match self.failure.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => Ok(SecretBytes::copy_of(&wrapped.wrapped)),
        }
    }
    async fn newest_version(&self, kek_url: &str) -> Result<String, KekError> {
        Ok(kek_url.into())
    }
    fn knows(&self, _: &str) -> bool {
        true
    }
    fn without_version(&self, kek_url: &str) -> String {
        kek_url.into()
    }
}

fn wrapped(byte: u8) -> WrappedDek {
    WrappedDek { kek_url: "kek/1".into(), algorithm: DekWrapAlgorithm::A256Kw, wrapped: vec![byte; 32] }
}

fn cache(ttl_ms: u64, grace_ms: u64) -> (Arc<Scripted>, Arc<DekCache>) {
    let keks = Arc::new(Scripted::default());
    let limits = DekCacheLimits {
        ttl: Duration::from_millis(ttl_ms),
        outage_grace: Duration::from_millis(grace_ms),
        entries_max: 3,
    };
    (Arc::clone(&keks), Arc::new(DekCache::new(keks, limits)))
}

fn unwraps(keks: &Scripted) -> usize {
    keks.unwraps.load(Ordering::SeqCst)
}

#[tokio::test]
async fn one_unwrap_serves_all_who_wait() {
    let (keks, cache) = cache(60_000, 0);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { cache.unwrap(&wrapped(1)).await.map(|dek| dek.key.expose().to_vec()) })
        })
        .collect();
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap().unwrap(), [1; 32]);
    }
    assert_eq!(unwraps(&keks), 1);
}

#[tokio::test]
async fn use_does_not_extend_the_time() {
    let (keks, cache) = cache(60, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(90) {
        cache.unwrap(&wrapped(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(unwraps(&keks), 2);
}

#[tokio::test]
async fn a_refusal_drops_at_once_and_an_outage_drops_nothing() {
    let (keks, cache) = cache(10, 0);
    cache.unwrap(&wrapped(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(12)).await;
    *keks.failure.lock().unwrap() = Some(KekError::Unavailable("away".into()));
    assert!(matches!(cache.unwrap(&wrapped(1)).await, Err(KekError::Unavailable(_))));
    assert_eq!(cache.held().entries.len(), 1);
    *keks.failure.lock().unwrap() = Some(KekError::Disabled("off".into()));
    assert!(matches!(cache.unwrap(&wrapped(1)).await, Err(KekError::Disabled(_))));
    assert_eq!(cache.held().entries.len(), 0);
}

#[tokio::test]
async fn grace_lasts_through_an_outage_and_never_after_a_refusal() {
    let (keks, cache) = cache(10, 10_000);
    cache.unwrap(&wrapped(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(12)).await;
    *keks.failure.lock().unwrap() = Some(KekError::Unavailable("away".into()));
    assert!(cache.unwrap(&wrapped(1)).await.is_ok(), "grace");
    *keks.failure.lock().unwrap() = Some(KekError::Denied("role removed".into()));
    assert!(cache.unwrap(&wrapped(1)).await.is_err());
    *keks.failure.lock().unwrap() = Some(KekError::Unavailable("away".into()));
    assert!(cache.unwrap(&wrapped(1)).await.is_err(), "the refusal ended the grace");
}

#[tokio::test]
async fn zero_is_off_and_the_bound_holds() {
    let (keks, off) = cache(0, 0);
    off.unwrap(&wrapped(1)).await.unwrap();
    off.unwrap(&wrapped(1)).await.unwrap();
    assert_eq!(unwraps(&keks), 2);
    let (_, bounded) = cache(60_000, 0);
    for byte in 0..20 {
        bounded.unwrap(&wrapped(byte)).await.unwrap();
    }
    assert!(bounded.held().entries.len() <= 3);
}

#[tokio::test]
async fn forgetting_reaches_unwraps_in_flight() {
    let (keks, cache) = cache(60_000, 0);
    let flying = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { cache.unwrap(&wrapped(1)).await.map(|_| ()) }
    });
    while unwraps(&keks) == 0 {
        tokio::task::yield_now().await;
    }
    let held = cache.insert(&wrapped(2), SecretBytes::copy_of(&[2; 32]), Instant::now());
    assert!(cache.is_good(&held));
    cache.forget();
    assert!(!cache.is_good(&held), "a use under way must ask again");
    flying.await.unwrap().unwrap();
    cache.unwrap(&wrapped(1)).await.unwrap();
    assert_eq!(unwraps(&keks), 2);
}

#[tokio::test]
async fn a_refusal_ends_the_grace_of_all_that_its_kek_wraps() {
    let (keks, cache) = cache(10, 10_000);
    let fail = |error| *keks.failure.lock().unwrap() = Some(error);
    let away = || KekError::Unavailable("away".into());
    for refusal in [KekError::Denied("no".into()), KekError::Unclear("junk".into())] {
        *keks.failure.lock().unwrap() = None;
        cache.unwrap(&wrapped(1)).await.unwrap();
        cache.unwrap(&wrapped(2)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(12)).await;
        fail(away());
        assert!(cache.unwrap(&wrapped(1)).await.is_ok() && cache.unwrap(&wrapped(2)).await.is_ok(), "grace");
        // One DEK that does not open is no word on its KEK.
        fail(KekError::Rejected);
        assert!(cache.unwrap(&wrapped(3)).await.is_err());
        fail(away());
        assert!(cache.unwrap(&wrapped(2)).await.is_ok(), "grace");
        fail(refusal);
        assert!(cache.unwrap(&wrapped(1)).await.is_err());
        fail(away());
        assert!(cache.unwrap(&wrapped(2)).await.is_err(), "the KEK was refused");
        let another = WrappedDek { kek_url: "kek/2".into(), ..wrapped(2) };
        *keks.failure.lock().unwrap() = None;
        cache.unwrap(&another).await.unwrap();
        tokio::time::sleep(Duration::from_millis(12)).await;
        fail(away());
        assert!(cache.unwrap(&another).await.is_ok(), "another KEK was not");
    }
}

#[tokio::test]
async fn refusals_are_bounded() {
    let (keks, cache) = cache(10, 10_000);
    cache.unwrap(&wrapped(1)).await.unwrap();
    *keks.failure.lock().unwrap() = Some(KekError::Denied("no".into()));
    let asked = (0..=10_000).map(|number| WrappedDek { kek_url: format!("other/{number}"), ..wrapped(1) });
    let asked: Vec<_> = asked
        .map(|wrapped| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { cache.unwrap(&wrapped).await.map(|_| ()) })
        })
        .collect();
    for asked in asked {
        assert!(asked.await.unwrap().is_err());
    }
    tokio::time::sleep(Duration::from_millis(12)).await;
    *keks.failure.lock().unwrap() = Some(KekError::Unavailable("away".into()));
    assert!(cache.unwrap(&wrapped(1)).await.is_err(), "what cannot be remembered counts for all");
}

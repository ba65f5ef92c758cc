//! Who reads his answers, by address: a change waits once for somebody who does not, and then no more for a while, however many connections he opens.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::Reader;
use holdfast_service::counted_as;

/// Addresses that are told apart; all others are one.
const ADDRESSES_MAX: usize = 4096;

/// The time since some moment.
type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The readers of one listener.
pub(super) struct Readers {
    known: Mutex<HashMap<IpAddr, Arc<Reader>>>,
    others: Arc<Reader>,
    clock: Clock,
}

fn reader(clock: &Clock) -> Arc<Reader> {
    let clock = Arc::clone(clock);
    Arc::new(Reader::new(move || clock()))
}

impl Readers {
    pub(super) fn new() -> Self {
        let start = Instant::now();
        Self::by(Arc::new(move || start.elapsed()))
    }

    fn by(clock: Clock) -> Self {
        Self { known: Mutex::default(), others: reader(&clock), clock }
    }

    /// Who is at this address.
    pub(super) fn at(&self, address: SocketAddr) -> Arc<Reader> {
        let address = counted_as(address);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES_MAX && !known.contains_key(&address) {
            // One that is held is at the end of a connection.
            known.retain(|_, reader| reader.kept_waiting() || Arc::strong_count(reader) > 1);
            if known.len() >= ADDRESSES_MAX {
                return Arc::clone(&self.others);
            }
        }
        Arc::clone(known.entry(address).or_insert_with(|| reader(&self.clock)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use holdfast_core::{Gate, REMEMBERED};

    use super::*;

    fn address(number: u32) -> SocketAddr {
        (IpAddr::V4(number.into()), 1).into()
    }

    /// Readers by a clock that is set, in seconds.
    fn readers() -> (Readers, Arc<AtomicU64>) {
        let secs = Arc::<AtomicU64>::default();
        let clock = Arc::clone(&secs);
        (Readers::by(Arc::new(move || Duration::from_secs(clock.load(SeqCst)))), secs)
    }

    async fn keeps_waiting(reader: &Arc<Reader>) {
        let gate = Gate::new();
        let pass = gate.enter();
        pass.stalls(reader);
        gate.clear(std::future::ready(())).await;
    }

    #[tokio::test]
    async fn an_address_is_remembered_for_a_while() {
        let (readers, secs) = readers();
        let connected = readers.at(address(7));
        keeps_waiting(&connected).await;
        for _ in 0..2 {
            assert!(readers.at(address(7)).kept_waiting());
            assert!(!readers.at(address(8)).kept_waiting());
            secs.fetch_add(REMEMBERED.as_secs() - 1, SeqCst);
            assert!(readers.at(address(7)).kept_waiting());
            secs.fetch_add(1, SeqCst);
            assert!(!connected.kept_waiting(), "though he opens no other connection");
            keeps_waiting(&readers.at(address(7))).await;
        }
    }

    #[tokio::test]
    async fn many_addresses_take_a_bounded_place() {
        let (readers, secs) = readers();
        let held: Vec<_> = (0..ADDRESSES_MAX as u32).map(|number| readers.at(address(number))).collect();
        let (one, other) = (readers.at(address(9_000)), readers.at(address(9_001)));
        assert!(Arc::ptr_eq(&one, &other));
        keeps_waiting(&one).await;
        assert!(other.kept_waiting());
        secs.fetch_add(REMEMBERED.as_secs(), SeqCst);
        assert!(!other.kept_waiting(), "they are remembered no longer than those who are told apart");
        keeps_waiting(&held[0]).await;
        drop((held, one, other));
        assert!(!readers.at(address(9_000)).kept_waiting());
        assert_eq!(
            readers.known.lock().unwrap().len(),
            2,
            "those who are gone are forgotten, but the one who kept a change waiting"
        );
        assert!(readers.at(address(0)).kept_waiting());
    }
}

//! Who reads his answers, by address: a change waits once for somebody who does not, and then no more for a while, however many connections he opens.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::Reader;
use holdfast_service::counted_as;

/// How long it is remembered that somebody has kept a change waiting.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Addresses that are told apart; all others are one.
const ADDRESSES_MAX: usize = 4096;

/// The readers of one listener.
#[derive(Default)]
pub(super) struct Readers(Mutex<HashMap<IpAddr, Known>>, Arc<Reader>);

struct Known {
    reader: Arc<Reader>,
    /// When it was seen that he kept a change waiting.
    since: Option<Instant>,
}

impl Known {
    /// Forgives him in time. Whether there is nothing to remember.
    fn settle(&mut self, now: Instant) -> bool {
        if self.reader.kept_waiting() {
            let since = *self.since.get_or_insert(now);
            if now.duration_since(since) >= REMEMBERED {
                self.reader.forgive();
                self.since = None;
            }
        }
        // One that is held is at the end of a connection.
        self.since.is_none() && Arc::strong_count(&self.reader) == 1
    }
}

impl Readers {
    /// Who is at this address.
    pub(super) fn at(&self, address: SocketAddr) -> Arc<Reader> {
        self.at_moment(address, Instant::now())
    }

    fn at_moment(&self, address: SocketAddr, now: Instant) -> Arc<Reader> {
        let address = counted_as(address);
        let Self(known, others) = self;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES_MAX && !known.contains_key(&address) {
            known.retain(|_, known| !known.settle(now));
            if known.len() >= ADDRESSES_MAX {
                return Arc::clone(others);
            }
        }
        let known = known.entry(address).or_insert_with(|| Known { reader: Arc::default(), since: None });
        known.settle(now);
        Arc::clone(&known.reader)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::Gate;

    use super::*;

    fn address(number: u32) -> SocketAddr {
        (IpAddr::V4(number.into()), 1).into()
    }

    async fn keeps_waiting(reader: &Arc<Reader>) {
        let gate = Gate::new();
        let pass = gate.enter();
        pass.stalls(reader);
        gate.clear(std::future::ready(())).await;
    }

    #[tokio::test]
    async fn an_address_is_remembered_for_a_while() {
        let (readers, start) = (Readers::default(), Instant::now());
        keeps_waiting(&readers.at_moment(address(7), start)).await;
        assert!(readers.at_moment(address(7), start).kept_waiting());
        assert!(!readers.at_moment(address(8), start).kept_waiting());
        let later = start + REMEMBERED - Duration::from_millis(1);
        assert!(readers.at_moment(address(7), later).kept_waiting());
        assert!(!readers.at_moment(address(7), start + REMEMBERED).kept_waiting());
        keeps_waiting(&readers.at_moment(address(7), later)).await;
        assert!(readers.at_moment(address(7), start + REMEMBERED * 2).kept_waiting());
    }

    #[tokio::test]
    async fn many_addresses_take_a_bounded_place() {
        let (readers, now) = (Readers::default(), Instant::now());
        let held: Vec<_> = (0..ADDRESSES_MAX as u32).map(|number| readers.at_moment(address(number), now)).collect();
        let (one, other) = (readers.at_moment(address(9_000), now), readers.at_moment(address(9_001), now));
        assert!(Arc::ptr_eq(&one, &other));
        keeps_waiting(&held[0]).await;
        drop((held, one, other));
        assert!(!readers.at_moment(address(9_000), now).kept_waiting());
        let known = readers.0.lock().unwrap();
        assert_eq!(known.len(), 2, "those who are gone are forgotten, but the one who kept a change waiting");
        drop(known);
        assert!(readers.at_moment(address(0), now).kept_waiting());
    }
}

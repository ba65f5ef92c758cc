//! Callers who are nobody that is known: what they are refused is told to the log, but they do not fill the disk.
//!
//! Within a second the first refusal of a kind (address, operation, code) is written at once. What repeats is counted, and told
//! in one event when the second is over: the last of its kind, with `count` in its context. What the log does not take is counted on. The number of events of a kind is thus the sum
//! of their counts, 1 where there is none. Somebody who varies what he asks is counted by address; many addresses are counted together.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use holdfast_core::{AuditEvent, AuditSink, Trouble};

/// How long refusals are counted together.
const WINDOW: Duration = Duration::from_secs(1);
/// Kinds that are told apart within a window, all addresses together: what it holds in memory, and the events that it makes at most.
const KINDS_MAX: usize = 128;
/// Kinds that are told apart of one address.
const KINDS_OF_ADDRESS_MAX: usize = 32;

/// Refusals that are counted together.
#[derive(Eq, Hash, PartialEq)]
struct Kind {
    /// `None`: of many.
    address: Option<IpAddr>,
    /// `None`: of several kinds.
    what: Option<(&'static str, Option<&'static str>)>,
}

struct Counted {
    count: u64,
    last: AuditEvent,
}

#[derive(Default)]
struct Window {
    began: Option<Instant>,
    /// `None`: written at once, and not repeated so far.
    kinds: HashMap<Kind, Option<Counted>>,
    of_address: HashMap<Option<IpAddr>, usize>,
    /// Somebody tells the log when the window is over.
    awaited: bool,
}

/// Refusals of this second.
pub struct Strangers {
    audit: Arc<dyn AuditSink>,
    window: Mutex<Window>,
    /// Held by whoever tells the log what was counted.
    telling: tokio::sync::Mutex<()>,
    trouble: Trouble,
}

/// An address as it is counted: who has one of IPv6 has a network of them.
#[must_use]
pub fn counted_as(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

impl Window {
    /// Gives the event back if it is to be written at once. The other: whether the log is now to be told later.
    fn note(&mut self, event: AuditEvent, source: Option<SocketAddr>, now: Instant) -> (Option<AuditEvent>, bool) {
        // What is counted is told by whoever waits for the end of the window, who then begins a new one.
        if !self.awaited && self.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            *self = Self { began: Some(now), ..Self::default() };
        }
        let address = source.map(counted_as);
        let kind = Kind { address, what: Some((event.operation, event.error_code)) };
        if !self.kinds.contains_key(&kind) {
            let of_address = self.of_address.get(&address).copied().unwrap_or_default();
            if self.kinds.len() < KINDS_MAX && of_address < KINDS_OF_ADDRESS_MAX {
                self.of_address.insert(address, of_address + 1);
                self.kinds.insert(kind, None);
                return (Some(event), false);
            }
        }
        self.count(kind, event);
        (None, !std::mem::replace(&mut self.awaited, true))
    }

    fn count(&mut self, kind: Kind, mut event: AuditEvent) {
        let of_several = Kind { address: kind.address, what: None };
        let kind = if self.kinds.contains_key(&kind) {
            kind
        } else if self.of_address.get(&kind.address).is_some_and(|kinds| *kinds > 0) {
            of_several
        } else {
            event.source = None;
            Kind { address: None, what: None }
        };
        let counted = self.kinds.entry(kind).or_default();
        let count = counted.as_ref().map_or(1, |counted| counted.count + 1);
        *counted = Some(Counted { count, last: event });
    }
}

impl Window {
    /// What the log did not take, beside what was counted meanwhile. Where there is no place for its kind any more, it is counted with others. Whether
    /// the log is now to be told later.
    fn put_back(&mut self, kind: Kind, Counted { count, mut last }: Counted) -> bool {
        let kind = if self.kinds.contains_key(&kind) || self.kinds.len() < KINDS_MAX {
            kind
        } else {
            last.source = None;
            Kind { address: None, what: None }
        };
        let there = self.kinds.entry(kind).or_default();
        let (more, newer) = there.take().map_or((0, None), |there| (there.count, Some(there.last)));
        *there = Some(Counted { count: count + more, last: newer.unwrap_or(last) });
        !std::mem::replace(&mut self.awaited, true)
    }
}

impl Strangers {
    /// Those of one role, for its log.
    #[must_use]
    pub fn new(audit: Arc<dyn AuditSink>) -> Arc<Self> {
        Arc::new(Self {
            audit,
            window: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            trouble: Trouble::default(),
        })
    }

    /// Counts a refusal. Gives it back if it is to be written at once.
    pub fn note(self: &Arc<Self>, event: AuditEvent, source: Option<SocketAddr>) -> Option<AuditEvent> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let (event, later) = window.note(event, source, Instant::now());
        drop(window);
        if later {
            self.tell_later();
        }
        event
    }

    /// Tells the log what was counted; also for the end of a service, before its log is closed.
    pub async fn flush(self: &Arc<Self>) {
        // Whoever is about to close the log waits for what is being told.
        let _telling = self.telling.lock().await;
        let window = std::mem::take(&mut *self.window.lock().unwrap_or_else(PoisonError::into_inner));
        let counted = window.kinds.into_iter().filter_map(|(kind, counted)| Some((kind, counted?)));
        let (mut fault, mut later) = (None, false);
        for (kind, Counted { count, last }) in counted {
            if fault.is_none() {
                let mut event = last.clone();
                event.context.push(("count", count.to_string()));
                fault = self.audit.append(event).await.err();
            }
            if fault.is_some() {
                let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
                later |= window.put_back(kind, Counted { count, last });
            }
        }
        match fault {
            None => {
                self.trouble.ends();
            }
            Some(error) if self.trouble.begins() => {
                tracing::warn!(%error, "the audit log does not take refusals of callers who are not known: they are counted on");
            }
            Some(_) => {}
        }
        if later {
            self.tell_later();
        }
    }

    fn tell_later(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(WINDOW).await;
            this.flush().await;
        });
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::{AuditOutcome, Timestamp};
    use http::StatusCode;

    use super::*;
    use crate::{Told, Trace};

    #[derive(Clone, Default)]
    struct Nothing;

    impl Told for Nothing {
        fn tell(&mut self, _: &mut AuditEvent) {}
    }

    /// A refusal of an operation that is called so.
    fn refusal(operation: &str) -> AuditEvent {
        let operation: &'static str = Box::leak(operation.to_owned().into_boxed_str());
        let trace = Trace::automatic("id".into(), operation, "/");
        let mut event = trace.event(Timestamp::default(), &Nothing, StatusCode::UNAUTHORIZED);
        event.outcome = AuditOutcome::Denied;
        event
    }

    fn from(address: [u8; 4]) -> Option<SocketAddr> {
        Some(SocketAddr::from((address, 9)))
    }

    #[test]
    fn however_much_it_varies_it_is_bounded_and_counted() {
        let (mut window, now) = (Window::default(), Instant::now());
        let (mut at_once, mut asked) = (0, 0);
        for address in 0..=255 {
            for reason in 0..100 {
                asked += 1;
                at_once +=
                    usize::from(window.note(refusal(&reason.to_string()), from([10, 0, 0, address]), now).0.is_some());
            }
        }
        assert!((KINDS_MAX / 2..=KINDS_MAX).contains(&at_once), "{at_once}");
        assert!(window.of_address.len() <= KINDS_MAX, "{}", window.of_address.len());
        assert!(window.kinds.len() <= KINDS_MAX + 1 + KINDS_MAX / KINDS_OF_ADDRESS_MAX, "{}", window.kinds.len());
        let counted: u64 = window.kinds.values().flatten().map(|counted| counted.count).sum();
        assert_eq!(at_once as u64 + counted, asked);
    }

    #[test]
    fn a_second_is_over_when_it_is_over() {
        let (mut window, now) = (Window::default(), Instant::now());
        assert!(window.note(refusal("a"), from([1; 4]), now).0.is_some());
        assert!(window.note(refusal("b"), from([1; 4]), now).0.is_some(), "another operation is another kind");
        let mut other = refusal("a");
        other.reason = Some("in other words".into());
        assert!(
            window.note(other, from([1; 4]), now).0.is_none(),
            "whoever varies what he sends makes no kinds of his own"
        );
        window = Window { began: Some(now), ..Window::default() };
        assert!(window.note(refusal("a"), from([1; 4]), now).0.is_some());
        assert!(window.note(refusal("a"), from([1; 4]), now + WINDOW).0.is_some(), "nothing waits to be told");
        let (event, later) = window.note(refusal("a"), from([1; 4]), now + WINDOW);
        assert!(event.is_none() && later);
        let (event, later) = window.note(refusal("a"), from([1; 4]), now + WINDOW * 3);
        assert!(event.is_none() && !later, "it is told already that something is to be told");
    }

    /// A log that takes its time.
    struct Slow(tokio::sync::Semaphore, Mutex<Vec<AuditEvent>>);

    #[async_trait::async_trait]
    impl AuditSink for Slow {
        async fn append(&self, event: AuditEvent) -> Result<(), holdfast_core::AuditError> {
            let _durable = self.0.acquire().await;
            self.1.lock().unwrap().push(event);
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_end_waits_for_what_is_being_told() {
        let slow = Arc::new(Slow(tokio::sync::Semaphore::new(0), Mutex::default()));
        let strangers = Strangers::new(Arc::clone(&slow) as Arc<dyn AuditSink>);
        assert!(strangers.note(refusal("a"), from([1; 4])).is_some());
        assert!(strangers.note(refusal("a"), from([1; 4])).is_none());
        let telling = tokio::spawn({
            let strangers = Arc::clone(&strangers);
            async move { strangers.flush().await }
        });
        while !strangers.window.lock().unwrap().kinds.is_empty() {
            tokio::task::yield_now().await;
        }
        let end = strangers.flush();
        let mut end = std::pin::pin!(end);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), end.as_mut()).await.is_err(),
            "the log would be closed"
        );
        slow.0.add_permits(1);
        end.await;
        assert_eq!(slow.1.lock().unwrap().len(), 1);
        telling.await.unwrap();
    }

    /// A log that takes nothing for a while.
    #[derive(Default)]
    struct Full(std::sync::atomic::AtomicBool, Mutex<Vec<AuditEvent>>);

    #[async_trait::async_trait]
    impl AuditSink for Full {
        async fn append(&self, event: AuditEvent) -> Result<(), holdfast_core::AuditError> {
            if self.0.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(holdfast_core::AuditError("full".into()));
            }
            self.1.lock().unwrap().push(event);
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_the_log_does_not_take_is_counted_on() {
        let full = Arc::new(Full::default());
        let strangers = Strangers::new(Arc::clone(&full) as Arc<dyn AuditSink>);
        full.0.store(true, std::sync::atomic::Ordering::SeqCst);
        let mut told = 0;
        for _ in 0..3 {
            for (operation, address) in [("a", [1; 4]), ("a", [1; 4]), ("b", [2; 4]), ("b", [2; 4])] {
                told += usize::from(strangers.note(refusal(operation), from(address)).is_some());
            }
            strangers.flush().await;
        }
        full.0.store(false, std::sync::atomic::Ordering::SeqCst);
        strangers.flush().await;
        let events = full.1.lock().unwrap();
        let mut counts: Vec<_> = events.iter().flat_map(|event| event.context.clone()).collect();
        counts.sort();
        assert!(counts.iter().all(|(name, _)| *name == "count"), "{counts:?}");
        let counted: usize = counts.iter().map(|(_, count)| count.parse::<usize>().unwrap()).sum();
        assert_eq!((counted + told, told), (12, 2), "{counts:?}");
    }

    #[test]
    fn a_network_is_one_address() {
        let parse = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(parse("[2001:db8::1]:1"), parse("[2001:db8::ffff:2]:2"));
        assert_ne!(parse("[2001:db8::1]:1"), parse("[2001:db8:0:1::1]:1"));
        assert_eq!(parse("[::ffff:10.0.0.1]:1"), parse("10.0.0.1:7"));
    }
}

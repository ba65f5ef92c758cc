//! Callers without valid credentials: what they are refused is told to the log, but they do not fill the disk.
//!
//! Within a second the first refusal of an address by a code is written at once, before it is answered. What repeats is counted, and told in one event when the
//! second is over, with `count` in its context: the refusals of a second are one for each event without a count, and the sum of the counts. Addresses beyond
//! the bound are counted together.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_core::{AuditError, AuditEvent, AuditSink};

/// How long refusals are counted together.
const WINDOW: Duration = Duration::from_secs(1);
/// Addresses and codes that are told apart within a second: what it holds in memory, and twice the events that it makes at most.
const KINDS_MAX: usize = 128;

/// Refusals that are counted together: an address, `None` for all beyond the bound, and a code.
type Kind = (Option<IpAddr>, Option<&'static str>);

/// What repeats, with how often it does.
#[derive(Default)]
struct Repeated {
    count: u64,
    last: Option<AuditEvent>,
}

/// Refusals of this second.
pub(crate) struct Strangers {
    audit: Arc<dyn AuditSink>,
    kinds: Mutex<HashMap<Kind, Repeated>>,
    /// Held by whoever tells the log what was counted.
    telling: tokio::sync::Mutex<()>,
}

/// An address as it is counted: who has one of IPv6 has a network of them.
fn counted_as(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

impl Strangers {
    pub(crate) fn new(audit: Arc<dyn AuditSink>) -> Arc<Self> {
        Arc::new(Self { audit, kinds: Mutex::default(), telling: tokio::sync::Mutex::default() })
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<Kind, Repeated>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the log of a refusal, now or when the second is over.
    ///
    /// # Errors
    /// The log cannot be written.
    pub(crate) async fn tell(
        self: &Arc<Self>,
        event: AuditEvent,
        source: Option<SocketAddr>,
    ) -> Result<(), AuditError> {
        let Some(event) = self.count(event, source) else { return Ok(()) };
        self.audit.append(event).await
    }

    /// Gives the event back if it is the first of its kind.
    fn count(self: &Arc<Self>, mut event: AuditEvent, source: Option<SocketAddr>) -> Option<AuditEvent> {
        let mut kinds = self.kinds();
        if kinds.is_empty() {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(WINDOW).await;
                this.flush().await;
            });
        }
        let mut kind = (source.map(counted_as), event.error_code);
        if !kinds.contains_key(&kind) && kinds.len() >= KINDS_MAX {
            kind = (None, None);
            event.source = None;
        }
        match kinds.get_mut(&kind) {
            Some(repeated) => {
                repeated.count += 1;
                repeated.last = Some(event);
                None
            }
            None => {
                kinds.insert(kind, Repeated::default());
                Some(event)
            }
        }
    }

    /// Tells the log what was counted; a new second begins.
    pub(crate) async fn flush(&self) {
        // Whoever is about to close the log waits for what is being told.
        let _telling = self.telling.lock().await;
        let kinds = std::mem::take(&mut *self.kinds());
        for Repeated { count, last } in kinds.into_values() {
            let Some(mut event) = last else { continue };
            event.context.push(("count", count.to_string()));
            if let Err(error) = self.audit.append(event).await {
                tracing::error!(%error, count, "refusals of callers who are not known are missing from the audit log");
            }
        }
    }
}

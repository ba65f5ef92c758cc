//! A socket to one host, and the calls that are on their way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use holdfast_core::HsmError;
use holdfast_crypto::SecretBytes;
use tokio::{net::UnixDatagram, sync::oneshot};

use crate::{
    host::monotonic_nanos,
    message::{Answer, Call, PACKET_BYTES_MAX, Request},
};

/// Calls on their way to one host.
pub(super) struct Link {
    socket: UnixDatagram,
    pending: Mutex<HashMap<u64, Pending>>,
    next: AtomicU64,
    /// Sessions and places in the queue.
    room: usize,
}

struct Pending {
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Gives the place of a call back, unless it was sent.
struct Unsent<'a> {
    link: &'a Link,
    id: Option<u64>,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.link.pending().remove(&id);
        }
    }
}

impl Link {
    pub(super) fn new(socket: UnixDatagram, room: usize) -> Self {
        Self { socket, pending: Mutex::default(), next: AtomicU64::new(0), room }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that were sent this long ago and have no answer yet: sessions that hang.
    pub(super) fn older_than(&self, age: Duration) -> usize {
        self.pending().values().filter(|pending| pending.since.elapsed() >= age).count()
    }

    /// Asks the host, and waits at most `budget`. A call that nobody waits for any more still holds its place until the host
    /// answers, since it still holds a session.
    pub(super) async fn call(&self, call: Call, budget: Duration) -> Result<Answer, HsmError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        {
            let mut pending = self.pending();
            if pending.len() >= self.room {
                return Err(HsmError::Busy);
            }
            pending.insert(id, Pending { since: Instant::now(), answer });
        }
        let deadline = monotonic_nanos().saturating_add(u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX));
        let packet = Request { id, deadline, call }.encode();
        let exchange = async {
            // A call that was not sent, be it that time ran out meanwhile, has no answer to come: its place is free again.
            let mut unsent = Unsent { link: self, id: Some(id) };
            self.send(&packet).await?;
            unsent.id = None;
            drop(packet);
            receiver.await.map_err(|_| HsmError::Unavailable("the HSM host ended in the middle of the call".into()))
        };
        tokio::time::timeout(budget, exchange).await.unwrap_or(Err(HsmError::TimedOut))
    }

    async fn send(&self, packet: &SecretBytes) -> Result<(), HsmError> {
        let packet = packet.expose();
        if packet.len() > PACKET_BYTES_MAX {
            return Err(HsmError::InvalidInput("the input is too long"));
        }
        let sent = self.socket.send(packet).await;
        sent.map(|_| ()).map_err(|_| HsmError::Unavailable("the HSM host has ended".into()))
    }

    /// Hands answers to those who wait, until the host ends.
    pub(super) async fn receive(self: Arc<Self>) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        // Nothing received: the other side is gone.
        while let Ok(len @ 1..) = self.socket.recv(&mut buffer).await {
            let answer = Answer::decode(&buffer[..len]);
            holdfast_crypto::secret::erase(&mut buffer[..len]);
            let Ok((id, answer)) = answer else { break };
            if let Some(pending) = self.pending().remove(&id) {
                // Nobody may wait any more.
                let _ = pending.answer.send(answer);
            }
        }
        // Nobody will answer any more: those who wait are told by the end of their channel.
        self.pending().clear();
    }
}

//! Events that are about to come, for whose company a sync is worth waiting.
//!
//! A sync costs as much CPU as a third of an RSA operation, and with private keys at work each event would get one of its own: they come in one
//! after the other, as fast as a sync is. So while such work is under way the writer waits a moment for those that are about to end. Light
//! work does not announce itself: its events come together by themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long a sync waits for company: less than one RSA-2048 operation.
const WAIT: Duration = Duration::from_micros(200);

/// How much work is under way that will end with an event.
#[derive(Debug, Default)]
pub struct Company(AtomicUsize);

/// One such work. Dropping it says that it has ended.
#[derive(Debug)]
pub struct Announced(Arc<Company>);

impl Company {
    /// Says that an event is about to come.
    #[must_use]
    pub fn announce(self: &Arc<Self>) -> Announced {
        self.0.fetch_add(1, Ordering::Relaxed);
        Announced(Arc::clone(self))
    }

    /// Waits for them a moment, if there are any.
    pub(super) fn wait(&self) {
        if self.0.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(WAIT);
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

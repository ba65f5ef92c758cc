//! A breaker for each store: once the other side seems to be away, requests fail at once, but for one a second that looks.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Outages in a row that open it.
const OUTAGES_MAX: u32 = 5;
/// How long it stays open before one request may look.
const OPEN_FOR: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    outages: u32,
    /// When the next request may look; `None` while closed.
    probe: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Breaker(Mutex<State>);

impl Breaker {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request may go out now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.probe {
            None => true,
            Some(probe) if now >= probe => {
                state.probe = Some(now + OPEN_FOR);
                true
            }
            Some(_) => false,
        }
    }

    /// Is told how one went.
    pub(super) fn note(&self, outage: bool, now: Instant) {
        let mut state = self.lock();
        if !outage {
            *state = State::default();
            return;
        }
        state.outages = state.outages.saturating_add(1);
        if state.outages >= OUTAGES_MAX {
            state.probe = Some(now + OPEN_FOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_outages_and_closes_after_one_good_answer() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..OUTAGES_MAX {
            assert!(breaker.admits(start));
            breaker.note(true, start);
        }
        assert!(!breaker.admits(start));
        let later = start + OPEN_FOR;
        assert!(breaker.admits(later), "one looks");
        assert!(!breaker.admits(later), "and only one");
        breaker.note(true, later);
        assert!(!breaker.admits(later + OPEN_FOR / 2));
        assert!(breaker.admits(later + OPEN_FOR));
        breaker.note(false, later + OPEN_FOR);
        assert!((0..10).all(|_| breaker.admits(later + OPEN_FOR)));
    }
}

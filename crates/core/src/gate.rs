//! Where a revocation waits for what was allowed before it.
//!
//! A use enters the gate, and only then looks whether it is still allowed; it holds its [`Pass`] until the key is put down, an answer until its
//! last byte is with the socket. A change that is in memory clears the gate: it waits for every pass given before, for a bounded time, and
//! revokes those that are left. So whoever has cleared it knows: what goes on from here has seen the change, and the rest has come to its end or
//! never will. Entering costs two short locks; nobody who enters waits for anybody.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

/// How long a change waits for passes. Operations in memory take microseconds, those with private keys some milliseconds; what takes longer is an
/// answer that its client does not read.
pub const CLEAR_WAIT_MAX: Duration = Duration::from_millis(100);

/// One for each role and instance.
#[derive(Default)]
pub struct Gate(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    /// Number of the next pass.
    next: u64,
    /// Number of the newest who waits.
    next_clearing: u64,
    passes: BTreeMap<u64, Arc<Revocable>>,
    /// Those who wait until no pass below a number is left, each under a number of its own.
    clearing: BTreeMap<u64, (u64, Waker)>,
}

/// Whether a pass still holds.
#[derive(Debug, Default)]
struct Revocable(Mutex<bool>);

/// Leave to go on with what was looked at after it was given. Dropping it gives it back.
#[must_use = "a pass that is dropped is given back"]
pub struct Pass {
    gate: Arc<Gate>,
    number: u64,
    state: Arc<Revocable>,
    /// What ends by itself, and not by a change.
    holds: Option<Holds>,
}

/// Whether something that ends by itself still holds: the time of a credential.
pub type Holds = Box<dyn Fn() -> bool + Send + Sync>;

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate with nobody inside.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters. What is looked at after this is seen by whoever clears the gate later, or has seen him.
    pub fn enter(self: &Arc<Self>) -> Pass {
        let state = Arc::<Revocable>::default();
        let mut inside = self.lock();
        let number = inside.next;
        inside.next += 1;
        inside.passes.insert(number, Arc::clone(&state));
        drop(inside);
        Pass { gate: Arc::clone(self), number, state, holds: None }
    }

    /// Waits until every pass that was given before is back, or until `bound` ends (a timer of [`CLEAR_WAIT_MAX`]); then revokes those that are not.
    pub async fn clear(&self, bound: impl Future<Output = ()>) {
        let until = self.lock().next;
        self.wait(until, bound).await;
        let late: Vec<_> = self.lock().passes.range(..until).map(|(_, state)| Arc::clone(state)).collect();
        if late.is_empty() {
            return;
        }
        for state in late {
            *state.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
        // Nothing can be done by leave of them any more: the next change does not wait for them again, however long they are held.
        let mut inside = self.lock();
        inside.passes = inside.passes.split_off(&until);
        Inside::wake(inside);
    }

    async fn wait(&self, until: u64, bound: impl Future<Output = ()>) {
        let number = {
            let mut inside = self.lock();
            inside.next_clearing += 1;
            inside.next_clearing
        };
        let _clearing = Clearing { gate: self, number };
        let mut bound = pin!(bound);
        std::future::poll_fn(|context| {
            let mut inside = self.lock();
            if inside.is_clear(until) {
                return Poll::Ready(());
            }
            inside.clearing.insert(number, (until, context.waker().clone()));
            drop(inside);
            bound.as_mut().poll(context)
        })
        .await;
    }
}

/// Somebody who waits. He is forgotten when he goes, whoever is still inside.
struct Clearing<'a> {
    gate: &'a Gate,
    number: u64,
}

impl Drop for Clearing<'_> {
    fn drop(&mut self) {
        self.gate.lock().clearing.remove(&self.number);
    }
}

impl Inside {
    fn is_clear(&self, until: u64) -> bool {
        self.passes.first_key_value().is_none_or(|(number, _)| *number >= until)
    }

    /// Wakes those for whom the gate is clear now.
    fn wake(mut inside: MutexGuard<'_, Self>) {
        let Self { passes, clearing, .. } = &mut *inside;
        if clearing.is_empty() {
            return;
        }
        let first = passes.first_key_value().map(|(number, _)| *number);
        let done: Vec<_> = clearing.extract_if(.., |_, (until, _)| first.is_none_or(|first| first >= *until)).collect();
        drop(inside);
        for (_, (_, waker)) in done {
            waker.wake();
        }
    }
}

impl Pass {
    /// The same for as long as `holds` says so: it is asked before each step.
    pub fn as_long_as(mut self, holds: Option<Holds>) -> Self {
        self.holds = holds;
        self
    }

    /// Does one step by leave of the pass: while it runs the pass is not revoked. `None`: it was, or does not hold any more.
    pub fn step<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        if self.holds.as_ref().is_some_and(|holds| !holds()) {
            return None;
        }
        let revoked = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *revoked { None } else { Some(step()) }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        inside.passes.remove(&self.number);
        Inside::wake(inside);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        task::{Context, Wake},
        thread,
    };

    use super::*;

    struct Thread(thread::Thread);

    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on(future: impl Future<Output = ()>) {
        let waker = Arc::new(Thread(thread::current())).into();
        let mut future = pin!(future);
        while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            thread::park();
        }
    }

    #[test]
    fn a_pass_holds_no_longer_than_what_it_rests_on() {
        let gate = Gate::new();
        let holds = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&holds);
        let (timed, other) = (gate.enter().as_long_as(Some(Box::new(move || asked.load(SeqCst)))), gate.enter());
        assert_eq!((timed.step(|| 1), other.step(|| 1)), (Some(1), Some(1)));
        holds.store(false, SeqCst);
        assert_eq!((timed.step(|| 1), other.step(|| 1)), (None, Some(1)));
    }

    #[test]
    fn clearing_waits_for_those_inside_and_for_nobody_later() {
        let gate = Gate::new();
        let before = gate.enter();
        let mut clearing = Box::pin(gate.clear(pending()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(clearing.as_mut().poll(&mut context).is_pending());
        let after = gate.enter();
        drop(before);
        assert!(clearing.as_mut().poll(&mut context).is_ready());
        assert_eq!(after.step(|| 7), Some(7));
    }

    #[test]
    fn who_does_not_leave_in_time_is_revoked() {
        let gate = Gate::new();
        let slow = gate.enter();
        assert_eq!(slow.step(|| 7), Some(7));
        block_on(gate.clear(ready(())));
        assert_eq!(slow.step(|| 7), None);
        drop(slow);
        block_on(gate.clear(pending()));
    }

    #[test]
    fn who_does_not_leave_is_waited_for_once_and_nothing_is_kept_of_who_waited() {
        let gate = Gate::new();
        let _never_left = gate.enter();
        for _ in 0..3 {
            block_on(gate.clear(ready(())));
        }
        let inside = gate.lock();
        assert!(inside.clearing.is_empty() && inside.passes.is_empty());
        drop(inside);
        // The bound never ends: it is not needed any more.
        block_on(gate.clear(pending()));
        let before = gate.enter();
        let mut two = [Box::pin(gate.clear(pending())), Box::pin(gate.clear(pending()))];
        let mut context = Context::from_waker(Waker::noop());
        for clearing in &mut two {
            assert!(clearing.as_mut().poll(&mut context).is_pending());
            assert!(clearing.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(gate.lock().clearing.len(), 2);
        block_on(gate.clear(ready(())));
        for clearing in &mut two {
            assert!(clearing.as_mut().poll(&mut context).is_ready(), "what another change has revoked is revoked");
        }
        drop(before);
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn who_waits_is_woken_when_his_passes_are_back_and_not_before() {
        let gate = Gate::new();
        let (early, late) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        let woken = || (early.0.load(SeqCst), late.0.load(SeqCst));
        let (early_waker, late_waker) = (Arc::clone(&early).into(), Arc::clone(&late).into());
        let first = gate.enter();
        let mut before = Box::pin(gate.clear(pending()));
        assert!(before.as_mut().poll(&mut Context::from_waker(&early_waker)).is_pending());
        let second = gate.enter();
        let mut after = Box::pin(gate.clear(pending()));
        assert!(after.as_mut().poll(&mut Context::from_waker(&late_waker)).is_pending());
        drop(first);
        assert_eq!(woken(), (1, 0));
        assert!(before.as_mut().poll(&mut Context::from_waker(&early_waker)).is_ready());
        drop(second);
        assert_eq!(woken(), (1, 1));
        assert!(after.as_mut().poll(&mut Context::from_waker(&late_waker)).is_ready());
    }

    #[test]
    fn nothing_is_kept_of_who_gave_up_waiting() {
        let gate = Gate::new();
        let pass = gate.enter();
        let mut clearing = Box::pin(gate.clear(pending()));
        assert!(clearing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(gate.lock().clearing.len(), 1);
        drop(clearing);
        assert!(gate.lock().clearing.is_empty());
        assert_eq!(pass.step(|| 7), Some(7), "nobody revoked it");
        assert_eq!(format!("{pass:?}"), "Pass { number: 0, .. }");
    }

    /// Four threads that use something until it is forbidden, and one that forbids it. How often something was used after that returned.
    fn used_after(clears: bool) -> usize {
        let (gate, allowed, forbidden) = (Gate::new(), AtomicBool::new(true), AtomicBool::new(false));
        let late = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let pass = gate.enter();
                        if !allowed.load(SeqCst) {
                            return;
                        }
                        thread::yield_now();
                        late.fetch_add(usize::from(forbidden.load(SeqCst)), SeqCst);
                        drop(pass);
                    }
                });
            }
            thread::yield_now();
            allowed.store(false, SeqCst);
            if clears {
                block_on(gate.clear(pending()));
            }
            forbidden.store(true, SeqCst);
        });
        late.into_inner()
    }

    /// Whoever looks after entering either sees the change or is waited for. The control: who does not clear the gate has late uses.
    #[test]
    fn nothing_goes_on_that_a_change_forbids() {
        assert_eq!((0..500).map(|_| used_after(true)).sum::<usize>(), 0);
        assert!((0..5_000).any(|_| used_after(false) > 0));
    }
}

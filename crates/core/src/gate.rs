//! Where a revocation waits for what was allowed before it.
//!
//! A use enters the gate, and only then looks whether it is still allowed; it holds its [`Pass`] until the key is put down, an answer until its
//! last byte is with the socket. A change that is in memory clears the gate: it waits for every pass given before, for a bounded time, and
//! revokes those that are left. So whoever has cleared it knows: what goes on from here has seen the change, and the rest has come to its end or
//! never will. Entering costs two short locks; nobody who enters waits for anybody.
//!
//! A change holds a pass, too, from the look until it is in memory. Whoever commits it says so first ([`Pass::commits`]): one whose pass was revoked
//! is not made, and one that is being made is waited for as long as its disk takes, since it cannot be called back.
//!
//! An answer that its client does not read is waited for, once. After that nobody waits for what that [`Reader`] does not read: see [`Pass::stalls`].

use std::{
    collections::BTreeMap,
    future::pending,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

/// How long a change waits for passes. Operations in memory take microseconds, those with private keys some milliseconds; what takes longer is an
/// answer that its client does not read.
pub const CLEAR_WAIT_MAX: Duration = Duration::from_millis(100);

/// How long it is remembered that somebody has kept a change waiting.
pub const REMEMBERED: Duration = Duration::from_secs(60);

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
    /// Those that nobody waits for: their readers have kept a change waiting before, and do not read.
    stalled: BTreeMap<u64, Arc<Revocable>>,
    /// Those who wait until no pass below a number is left, each under a number of its own.
    clearing: BTreeMap<u64, (u64, Waker)>,
}

/// Whether a pass still holds.
#[derive(Debug, Default)]
struct Revocable(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    fate: Fate,
    /// Who does not read what is handed to him by leave of the pass.
    stalls: Option<Arc<Reader>>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Fate {
    #[default]
    Holds,
    /// What it is for is being made durable, and cannot be called back.
    Commits,
    Revoked,
}

impl Revocable {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: what is being made durable goes on.
    fn revoke(&self) -> bool {
        let mut state = self.lock();
        if state.fate == Fate::Commits {
            return false;
        }
        state.fate = Fate::Revoked;
        if let Some(reader) = &state.stalls {
            reader.keeps_waiting();
        }
        true
    }
}

/// Somebody to whom answers are handed: by address, say.
pub struct Reader {
    /// The time since some moment.
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    /// When he kept a change waiting.
    since: Mutex<Option<Duration>>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Reader {
    /// One who has kept nobody waiting. The clock tells the time since some moment, and never goes back.
    pub fn new(clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { clock: Box::new(clock), since: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Duration>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a change had to wait for an answer that he did not read, not longer than [`REMEMBERED`] ago.
    #[must_use]
    pub fn kept_waiting(&self) -> bool {
        let mut since = self.lock();
        if since.is_some_and(|moment| (self.clock)().saturating_sub(moment) >= REMEMBERED) {
            *since = None;
        }
        since.is_some()
    }

    /// From the first time on: what is revoked while nobody waits for him does not count.
    fn keeps_waiting(&self) {
        if !self.kept_waiting() {
            *self.lock() = Some((self.clock)());
        }
    }
}

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
    /// Waits on for those whose change is being made durable. Whether it waited for somebody until `bound` ended.
    pub async fn clear(&self, bound: impl Future<Output = ()>) -> bool {
        let until = self.lock().next;
        self.wait(until, bound).await;
        let (late, kept_waiting) = self.late(until);
        if late.is_empty() {
            return false;
        }
        self.revoke(late);
        self.wait(until, pending()).await;
        kept_waiting
    }

    /// Those that were given before and are not back; and whether one of them is waited for.
    fn late(&self, until: u64) -> (Vec<(u64, Arc<Revocable>)>, bool) {
        let inside = self.lock();
        let all = inside.passes.range(..until).chain(inside.stalled.range(..until));
        (all.map(|(number, held)| (*number, Arc::clone(held))).collect(), !inside.is_clear(until))
    }

    fn revoke(&self, mut late: Vec<(u64, Arc<Revocable>)>) {
        late.retain(|(_, held)| held.revoke());
        // Nothing can be done by leave of them any more: the next change does not wait for them again, however long they are held.
        let mut inside = self.lock();
        for (number, _) in late {
            inside.forget(number);
        }
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
    fn forget(&mut self, number: u64) {
        self.stalled.remove(&number);
        self.passes.remove(&number);
    }

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
        let state = self.state.lock();
        if state.fate == Fate::Revoked { None } else { Some(step()) }
    }

    /// What was looked at under the pass is made durable now, in its place among all changes. False: the pass was revoked, and it must not be.
    #[must_use]
    pub fn commits(&self) -> bool {
        let mut state = self.state.lock();
        if state.fate == Fate::Holds {
            state.fate = Fate::Commits;
        }
        state.fate == Fate::Commits
    }

    /// What is handed over by leave of the pass is not read now. A change waits for that; but not for a reader who has kept one waiting before.
    pub fn stalls(&self, reader: &Arc<Reader>) {
        let mut state = self.state.lock();
        if state.fate != Fate::Holds {
            return;
        }
        state.stalls = Some(Arc::clone(reader));
        drop(state);
        if !reader.kept_waiting() {
            return;
        }
        let mut inside = self.gate.lock();
        if let Some(held) = inside.passes.remove(&self.number) {
            inside.stalled.insert(self.number, held);
            Inside::wake(inside);
        }
    }

    /// It is read again.
    pub fn moves(&self) {
        self.state.lock().stalls = None;
        let mut inside = self.gate.lock();
        if let Some(held) = inside.stalled.remove(&self.number) {
            inside.passes.insert(self.number, held);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let stalls = self.state.lock().stalls.take();
        let mut inside = self.gate.lock();
        let is_waited_for = inside.clearing.values().any(|(until, _)| self.number < *until);
        let held = inside.passes.remove(&self.number).is_some();
        inside.stalled.remove(&self.number);
        if let Some(reader) = stalls.filter(|_| held && is_waited_for) {
            // He goes before his time is over, and a change has waited all the same.
            reader.keeps_waiting();
        }
        Inside::wake(inside);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::ready,
        sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
        task::{Context, Wake},
        thread,
    };

    use super::*;

    impl Default for Reader {
        fn default() -> Self {
            Self::new(|| Duration::ZERO)
        }
    }

    struct Thread(thread::Thread);

    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let waker = Arc::new(Thread(thread::current())).into();
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return done;
            }
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

    #[test]
    fn a_change_that_is_being_made_is_waited_for_and_one_that_is_not_begun_is_not_made() {
        let gate = Gate::new();
        let (begun, waits) = (gate.enter(), gate.enter());
        assert!(begun.commits());
        let mut clearing = Box::pin(gate.clear(ready(())));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(
                clearing.as_mut().poll(&mut context).is_pending(),
                "its bound is over, and the change is not in memory"
            );
        }
        assert!(!waits.commits() && waits.step(|| 7).is_none());
        assert!(begun.commits() && begun.step(|| 7).is_some());
        drop(begun);
        assert!(clearing.as_mut().poll(&mut context).is_ready());
        // The control: where nobody says that it is being made, it is not waited for.
        let unsaid = gate.enter();
        block_on(gate.clear(ready(())));
        assert!(!unsaid.commits());
    }

    /// Whether a change would wait for what is held now.
    fn waits(gate: &Gate) -> bool {
        let mut clearing = Box::pin(gate.clear(pending()));
        clearing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[test]
    fn who_does_not_read_keeps_one_change_waiting_and_no_other() {
        let gate = Gate::new();
        let reader = Arc::<Reader>::default();
        let first = gate.enter();
        first.stalls(&reader);
        assert!(waits(&gate) && !reader.kept_waiting(), "whoever waits is gone, and he may still read");
        assert!(block_on(gate.clear(ready(()))));
        assert!(reader.kept_waiting() && first.step(|| 7).is_none());
        for _ in 0..3 {
            // Each of them is new, and stalls before the change comes, or while it waits.
            let next = gate.enter();
            let mut clearing = Box::pin(gate.clear(pending()));
            let mut context = Context::from_waker(Waker::noop());
            assert!(clearing.as_mut().poll(&mut context).is_pending(), "it may be on its way");
            next.stalls(&reader);
            assert!(clearing.as_mut().poll(&mut context).is_ready());
            assert!(next.step(|| 7).is_none(), "and is revoked");
            let next = gate.enter();
            next.stalls(&reader);
            assert!(!block_on(gate.clear(pending())));
            assert!(next.step(|| 7).is_none());
        }
        // The control: one that is not known for it is waited for, and so is this one when he reads, or is forgiven.
        let (other, moving, forgiven) = (gate.enter(), gate.enter(), gate.enter());
        other.stalls(&Arc::default());
        assert!(waits(&gate));
        drop(other);
        moving.stalls(&reader);
        moving.moves();
        assert!(waits(&gate));
        drop(moving);
        *reader.lock() = None;
        forgiven.stalls(&reader);
        assert!(waits(&gate));
    }

    #[test]
    fn it_is_remembered_for_a_minute_from_the_first_time_on() {
        let (gate, secs) = (Gate::new(), Arc::new(AtomicU64::new(7)));
        let clock = Arc::clone(&secs);
        let reader = Arc::new(Reader::new(move || Duration::from_secs(clock.load(SeqCst))));
        let keeps_waiting = || {
            let pass = gate.enter();
            pass.stalls(&reader);
            block_on(gate.clear(ready(())))
        };
        for _ in 0..2 {
            assert!(!reader.kept_waiting() && keeps_waiting() && reader.kept_waiting());
            secs.fetch_add(REMEMBERED.as_secs() - 1, SeqCst);
            assert!(!keeps_waiting() && reader.kept_waiting(), "he is revoked at once, which does not make it longer");
            secs.fetch_add(1, SeqCst);
        }
        assert!(!reader.kept_waiting());
    }

    #[test]
    fn who_hangs_up_just_before_his_time_is_over_is_known_for_it_too() {
        let gate = Gate::new();
        let (reader, quick) = (Arc::<Reader>::default(), Arc::<Reader>::default());
        let pass = gate.enter();
        pass.stalls(&reader);
        let mut clearing = Box::pin(gate.clear(pending()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(clearing.as_mut().poll(&mut context).is_pending());
        drop(pass);
        assert!(clearing.as_mut().poll(&mut context).is_ready() && reader.kept_waiting());
        let pass = gate.enter();
        pass.stalls(&quick);
        drop(pass);
        assert!(!quick.kept_waiting(), "nobody waited");
        let inside = gate.lock();
        assert!(inside.passes.is_empty() && inside.stalled.is_empty() && inside.clearing.is_empty());
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

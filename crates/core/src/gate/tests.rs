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

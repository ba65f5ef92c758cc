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
    /// Whether it was given by this gate: nobody who clears another one waits for it.
    #[must_use]
    pub fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.gate, gate)
    }

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
mod tests;

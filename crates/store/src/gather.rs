//! The queue to a thread that makes things durable. What has gathered is taken at once, for all of it shares one sync; and where that has paid, the
//! thread waits a moment for company first.
//!
//! A sync costs more CPU than most requests do, and requests that run side by side end one after the other: the first would have a sync for itself, and
//! the others the next. Whether a wait pays depends on what is under way, and nobody needs to tell: the queue learns it from how many came
//! during earlier waits. Somebody who is alone waits for nobody, but for one wait in [`PROBE_GROUPS`]. A group that is as large as those before ends
//! the wait at once.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a group waits for company at most: about as long as a sync, less than an operation with an RSA key.
const COMPANY_WAIT: Duration = Duration::from_micros(200);
/// A wait pays if it brings at least this much company in the mean, in [`ONE`]ths of a job: a quarter.
const WORTH: u32 = ONE / 4;
/// One job.
const ONE: u32 = 256;
/// How many groups may go without a wait before one is tried again.
const PROBE_GROUPS: u32 = 64;
/// How many waits have to end with a whole group before a larger one is hoped for.
const GROW_AFTER: u32 = 8;
/// More company than this in one wait teaches nothing more.
const COMPANY_MAX: usize = 64;

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    /// As many wait as may.
    Full,
    /// Nobody takes them any more.
    Closed,
}

/// The end of the queue at which jobs are handed in.
pub(crate) struct Gather<J> {
    room: usize,
    state: Mutex<State<J>>,
    arrived: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    closed: bool,
    /// The thread sleeps until so many jobs are there; 0 while it is awake.
    awaited: usize,
    company: Company,
}

/// What the thread was given.
pub(crate) enum Taken<J> {
    /// All that had gathered; nothing if its patience ended first.
    Jobs(Vec<J>),
    /// The queue is closed, and empty.
    Closed,
}

/// The thread's end. When the thread ends, however it ends, nobody waits for it: what is left in the queue is dropped.
pub(crate) struct Taker<J>(Arc<Gather<J>>);

impl<J> Drop for Taker<J> {
    fn drop(&mut self) {
        self.0.close();
        let left = std::mem::take(&mut self.0.state().jobs);
        drop(left);
    }
}

impl<J> Taker<J> {
    /// Waits for a job, up to `patience`, and perhaps for its company, and takes up to `most`.
    pub(crate) fn take(&self, most: usize, patience: Duration) -> Taken<J> {
        self.0.take(most, patience)
    }
}

impl<J> Gather<J> {
    /// A queue in which `room` jobs may wait, and its other end.
    pub(crate) fn start(room: usize) -> (Arc<Self>, Taker<J>) {
        let state = State { jobs: VecDeque::new(), closed: false, awaited: 0, company: Company::default() };
        let queue = Arc::new(Self { room, state: Mutex::new(state), arrived: Condvar::new() });
        let taker = Taker(Arc::clone(&queue));
        (queue, taker)
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a job in.
    ///
    /// # Errors
    /// [`Refused`]: it was not taken.
    pub(crate) fn push(&self, job: J) -> Result<(), Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.jobs.len() >= self.room {
            return Err(Refused::Full);
        }
        state.jobs.push_back(job);
        let wake = state.awaited > 0 && state.jobs.len() >= state.awaited;
        if wake {
            state.awaited = 0;
        }
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Takes no more jobs. Those that are there are still given out.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.awaited = 0;
        drop(state);
        self.arrived.notify_one();
    }

    fn take(&self, most: usize, patience: Duration) -> Taken<J> {
        let mut state = self.sleep(self.state(), 1, patience);
        if state.jobs.is_empty() {
            return if state.closed { Taken::Closed } else { Taken::Jobs(Vec::new()) };
        }
        let before = state.jobs.len();
        if let Some(wanted) = state.company.wanted(before) {
            state = self.sleep(state, wanted.min(most), COMPANY_WAIT);
            let after = state.jobs.len();
            state.company.learn(before, after, after >= wanted);
        }
        let count = state.jobs.len().min(most);
        Taken::Jobs(state.jobs.drain(..count).collect())
    }

    /// Sleeps until `count` jobs are there, the queue is closed, or the time is over.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State<J>>,
        count: usize,
        patience: Duration,
    ) -> MutexGuard<'a, State<J>> {
        let begun = Instant::now();
        while state.jobs.len() < count && !state.closed {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            state.awaited = count;
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.awaited = 0;
        state
    }
}

/// Whether it pays to wait, learned from what waits have brought.
#[derive(Default)]
struct Company {
    /// How many came during a wait: a mean in which the last eight or so count, in [`ONE`]ths.
    brought: u32,
    /// Groups since the last wait.
    since: u32,
    /// A group of this size is taken to be whole.
    whole: usize,
    /// Waits that ended with a whole group, since it last grew.
    full: u32,
}

impl Company {
    /// How large a group is waited for, if a wait pays now.
    fn wanted(&mut self, there: usize) -> Option<usize> {
        self.since += 1;
        let whole = self.whole.max(2);
        let pays = self.brought >= WORTH && there < whole;
        (pays || self.since >= PROBE_GROUPS).then(|| whole.max(there + 1))
    }

    fn learn(&mut self, before: usize, after: usize, whole: bool) {
        let came = u32::try_from(after.saturating_sub(before).min(COMPANY_MAX)).unwrap_or(u32::MAX);
        self.brought = (self.brought * 7 + came * ONE) / 8;
        self.since = 0;
        if !whole {
            self.whole = after;
            self.full = 0;
            return;
        }
        self.full += 1;
        if self.full >= GROW_AFTER {
            self.whole = after + after / 4 + 1;
            self.full = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn jobs(taken: Taken<u32>) -> Vec<u32> {
        match taken {
            Taken::Jobs(jobs) => jobs,
            Taken::Closed => panic!("closed"),
        }
    }

    #[test]
    fn what_has_gathered_is_taken_in_order_up_to_the_most() {
        let (queue, taker) = Gather::start(3);
        for job in 0..3 {
            queue.push(job).unwrap();
        }
        assert_eq!(queue.push(9), Err(Refused::Full));
        assert_eq!(jobs(taker.take(2, LONG)), [0, 1]);
        assert_eq!(jobs(taker.take(2, LONG)), [2]);
        assert!(jobs(taker.take(2, Duration::from_millis(1))).is_empty());
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_has_and_takes_nothing() {
        let (queue, taker) = Gather::start(3);
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(Refused::Closed));
        assert_eq!(jobs(taker.take(9, LONG)), [1]);
        assert!(matches!(taker.take(9, LONG), Taken::Closed));
    }

    #[test]
    fn whoever_waits_is_woken_by_a_job_and_by_the_end() {
        let (queue, taker) = Gather::start(3);
        let waiter = thread::spawn(move || (jobs(taker.take(9, LONG)), matches!(taker.take(9, LONG), Taken::Closed)));
        queue.push(7).unwrap();
        thread::sleep(Duration::from_millis(20));
        queue.close();
        assert_eq!(waiter.join().unwrap(), (vec![7], true));
    }

    #[test]
    fn what_a_thread_leaves_behind_is_dropped() {
        let (queue, taker) = Gather::start(3);
        let job = Arc::new(());
        queue.push(Arc::clone(&job)).unwrap();
        drop(taker);
        assert_eq!(queue.push(Arc::clone(&job)), Err(Refused::Closed));
        assert_eq!(Arc::strong_count(&job), 1);
    }

    #[test]
    fn who_is_alone_waits_for_nobody_but_for_a_probe() {
        let mut company = Company::default();
        let mut waits = 0;
        for _ in 0..10 * PROBE_GROUPS {
            if company.wanted(1).is_some() {
                waits += 1;
                company.learn(1, 1, false);
            }
        }
        assert_eq!(waits, 10);
    }

    #[test]
    fn a_wait_that_brings_company_is_repeated_until_it_brings_none() {
        let mut company = Company::default();
        for _ in 1..PROBE_GROUPS {
            assert_eq!(company.wanted(1), None);
        }
        assert_eq!(company.wanted(1), Some(2), "a probe");
        company.learn(1, 31, true);
        assert_eq!(company.wanted(1), Some(2));
        company.learn(1, 31, false);
        // A group as large as the last one is whole.
        assert_eq!(company.wanted(31), None);
        assert_eq!(company.wanted(5), Some(31));
        for _ in 0..40 {
            company.wanted(1);
            company.learn(1, 1, false);
        }
        assert_eq!(company.wanted(1), None);
    }

    #[test]
    fn whole_groups_make_it_hope_for_larger_ones_now_and_then() {
        let mut company = Company { brought: ONE, whole: 8, ..Company::default() };
        for _ in 0..GROW_AFTER {
            assert_eq!(company.wanted(1), Some(8));
            company.learn(1, 8, true);
        }
        assert_eq!(company.wanted(1), Some(11));
    }
}

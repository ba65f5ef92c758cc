//! Group commit: one thread drains a queue into one transaction; all who wait for it share one sync.
//!
//! It is also the thread that finds out that a database takes no more commits, and that mends it: see [`Target::mend`]. While it is ill, jobs are
//! refused at once, and nobody waits.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use holdfast_core::StoreError;
use tokio::sync::oneshot;

use crate::{
    condition::Condition,
    gather::{Gather, Refused, Taken, Taker},
};

/// Jobs that may wait. More is refused at once.
const QUEUE_JOBS: usize = 4096;
/// Jobs that share one sync at most.
const GROUP_JOBS: usize = 512;
/// When to try to mend it again, at first...
const MEND_INTERVAL_MIN: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 250 });
/// ...and, doubled with each attempt, at last: an attempt reads the whole file.
const MEND_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// If it fails again so soon after it was mended, the intervals go on growing.
const STEADY_AFTER: Duration = Duration::from_secs(30);
/// When to look again if there is nothing to do; a job ends the wait.
const IDLE_INTERVAL: Duration = Duration::from_secs(3600);

/// What a group writer writes to.
pub(crate) trait Target: Send + 'static {
    /// What is asked.
    type Job: Send + 'static;
    /// What comes of it.
    type Done: Send + 'static;

    /// For people, and of the thread.
    fn name(&self) -> &'static str;

    /// Makes a group durable and says how each job fared. The outer error means that it is not known whether anything of the group was written:
    /// [`StoreError::Failed`] if that is the database's fault, which must be mended then.
    fn write(&mut self, jobs: Vec<Self::Job>) -> Fared<Self::Done>;

    /// Whether there is room for a commit.
    fn has_room(&self) -> bool;

    /// Whether the database works, as far as can be seen without a job.
    fn look(&self) -> Result<(), StoreError>;

    /// Opens the database anew, and sees that it is the one that was there before the failure. If a group failed, and what became of it was not
    /// known: finds out, tells memory and outbox if it did happen, and gives how its jobs fared. `None`: nothing of it was written.
    fn mend(&mut self) -> Result<Mended<Self::Done>, StoreError>;
}

/// How each job of a group fared.
pub(crate) type Fared<D> = Result<Vec<Result<D, StoreError>>, StoreError>;

/// What became of the group that failed last.
pub(crate) enum Mended<D> {
    /// It was written: how its jobs fared.
    Happened(Vec<Result<D, StoreError>>),
    /// Nothing of it was written.
    Nothing,
}

/// What the thread is asked.
enum Ask<J, D> {
    /// Look whether all is well: a reader has doubts.
    Look,
    Write {
        job: J,
        reply: oneshot::Sender<Result<D, StoreError>>,
    },
}

/// The queue to a writer thread.
pub(crate) struct GroupWriter<J, D> {
    queue: Arc<Gather<Ask<J, D>>>,
    condition: Condition,
}

impl<J, D> Drop for GroupWriter<J, D> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<J: Send + 'static, D: Send + 'static> GroupWriter<J, D> {
    /// Starts the thread.
    pub(crate) fn over<T: Target<Job = J, Done = D>>(target: T, condition: Condition) -> Result<Self, StoreError> {
        let (queue, asked) = Gather::start(QUEUE_JOBS);
        let name = target.name();
        let told = condition.clone();
        let writer = Writer { target, name, condition: told, illness: None, attempts: 0, mended: None };
        thread::Builder::new().name(name.into()).spawn(move || writer.run(&asked)).map_err(failed)?;
        Ok(Self { queue, condition })
    }

    /// Whether jobs are done.
    pub(crate) fn condition(&self) -> Condition {
        self.condition.clone()
    }

    /// Hands a job in, and returns when its group is durable.
    ///
    /// # Errors
    /// What the job gave; [`StoreError::Busy`] if the queue is full; [`StoreError::Unavailable`], [`StoreError::Failed`].
    pub(crate) async fn write(&self, job: J) -> Result<D, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Ask::Write { job, reply }).map_err(|refused| match refused {
            Refused::Full => StoreError::Busy,
            Refused::Closed => failed("the writer has stopped"),
        })?;
        answer.await.map_err(|_| failed("the writer has stopped"))?
    }

    /// What a reader saw makes it doubt the database.
    pub(crate) fn look(&self) {
        // A full queue needs none: its jobs find out.
        let _ = self.queue.push(Ask::Look);
    }
}

/// Why nothing is written.
enum Illness {
    /// The disk has no room: whoever comes next looks again.
    Full,
    /// The database has failed: it is tried again at this moment.
    Failed { again: Instant },
}

struct Writer<T> {
    target: T,
    name: &'static str,
    condition: Condition,
    illness: Option<Illness>,
    /// To mend it, since it was well for a while.
    attempts: u32,
    mended: Option<Instant>,
}

impl<T: Target> Writer<T> {
    fn run(mut self, asked: &Taker<Ask<T::Job, T::Done>>) {
        while let Taken::Jobs(group) = asked.take(GROUP_JOBS, self.patience()) {
            let (mut jobs, mut replies, mut doubted) = (Vec::new(), Vec::new(), false);
            for ask in group {
                match ask {
                    Ask::Look => doubted = true,
                    Ask::Write { job, reply } => {
                        jobs.push(job);
                        replies.push(reply);
                    }
                }
            }
            self.try_again();
            if doubted && self.illness.is_none() {
                self.doubt();
            }
            if jobs.is_empty() {
                continue;
            }
            let count = jobs.len();
            let results = self.write(jobs).unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect());
            for (reply, result) in replies.into_iter().zip(results) {
                // A waiter that went away does not change what was written.
                let _ = reply.send(result);
            }
        }
    }

    fn patience(&self) -> Duration {
        match &self.illness {
            None => IDLE_INTERVAL,
            Some(Illness::Full) => MEND_INTERVAL_MIN,
            Some(Illness::Failed { again }) => again.saturating_duration_since(Instant::now()),
        }
    }

    fn write(&mut self, jobs: Vec<T::Job>) -> Fared<T::Done> {
        if self.illness.is_none() && !self.target.has_room() {
            self.condition.ill(self.name, FULL);
            self.illness = Some(Illness::Full);
        }
        if self.illness.is_some() {
            return Err(StoreError::Unavailable(self.condition.fault().unwrap_or_default()));
        }
        let target = &mut self.target;
        let written = catch_unwind(AssertUnwindSafe(|| target.write(jobs)));
        let why = match written.unwrap_or_else(|_| Err(failed("the database gave up"))) {
            Err(StoreError::Failed(why)) => why,
            Ok(results) => {
                self.condition.well(self.name);
                return Ok(results);
            }
            other => return other,
        };
        // At once, before those who wait are answered: it may be well again, and what became of the group is known then.
        match self.fail(&why) {
            Some(Mended::Happened(results)) => Ok(results),
            Some(Mended::Nothing) => Err(StoreError::Unavailable(why)),
            None => Err(StoreError::Failed(why)),
        }
    }

    fn doubt(&mut self) {
        if let Err(error) = self.target.look() {
            self.fail(&error.to_string());
        }
    }

    /// The database has failed.
    fn fail(&mut self, why: &str) -> Option<Mended<T::Done>> {
        self.condition.ill(self.name, why);
        if self.mended.is_none_or(|mended| mended.elapsed() >= STEADY_AFTER) {
            self.attempts = 0;
        }
        if self.attempts == 0 {
            return self.mend();
        }
        self.wait();
        None
    }

    /// Where it is ill, and the time has come.
    fn try_again(&mut self) {
        match &self.illness {
            Some(Illness::Full) if self.target.has_room() => {
                self.illness = None;
                self.condition.well(self.name);
            }
            Some(Illness::Failed { again }) if *again <= Instant::now() => {
                self.mend();
            }
            None | Some(Illness::Full | Illness::Failed { .. }) => {}
        }
    }

    fn mend(&mut self) -> Option<Mended<T::Done>> {
        self.attempts = self.attempts.saturating_add(1);
        let target = &mut self.target;
        let mended = match target.has_room() {
            false => Err(StoreError::Failed(FULL.into())),
            // A damaged file may make the library panic.
            true => catch_unwind(AssertUnwindSafe(|| target.mend())).unwrap_or_else(|_| Err(failed("it gave up"))),
        };
        match mended {
            Ok(mended) => {
                self.illness = None;
                self.mended = Some(Instant::now());
                self.condition.well(self.name);
                self.condition.was_reopened();
                Some(mended)
            }
            Err(error) => {
                let why = match error {
                    StoreError::Failed(why) => why,
                    other => other.to_string(),
                };
                self.condition.ill(self.name, &why);
                self.wait();
                None
            }
        }
    }

    fn wait(&mut self) {
        let doubled = MEND_INTERVAL_MIN.saturating_mul(1 << self.attempts.saturating_sub(1).min(16));
        self.illness = Some(Illness::Failed { again: Instant::now() + doubled.min(MEND_INTERVAL_MAX) });
    }
}

/// Says so of a disk.
const FULL: &str = "its disk is full";

pub(crate) fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

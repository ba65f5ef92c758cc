//! Group commit: one thread drains a queue into one transaction; all who wait for it share one sync.

use std::thread;

use holdfast_core::StoreError;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait. More is refused at once.
const QUEUE_JOBS: usize = 4096;
/// Jobs that share one sync at most.
const GROUP_JOBS: usize = 512;

struct Waiting<J, R> {
    job: J,
    reply: oneshot::Sender<Result<R, StoreError>>,
}

/// The queue to a writer thread.
pub(crate) struct GroupWriter<J, R>(mpsc::Sender<Waiting<J, R>>);

impl<J: Send + 'static, R: Send + 'static> GroupWriter<J, R> {
    /// Starts the thread. `write` makes a group durable and says how each job fared; its outer error means that nothing
    /// of the group is known to be written.
    pub(crate) fn start(
        name: &str,
        write: impl Fn(Vec<J>) -> Result<Vec<Result<R, StoreError>>, StoreError> + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (queue, mut jobs) = mpsc::channel::<Waiting<J, R>>(QUEUE_JOBS);
        let work = move || {
            while let Some(first) = jobs.blocking_recv() {
                let mut group = vec![first];
                while group.len() < GROUP_JOBS
                    && let Ok(next) = jobs.try_recv()
                {
                    group.push(next);
                }
                let (jobs, replies): (Vec<_>, Vec<_>) =
                    group.into_iter().map(|waiting| (waiting.job, waiting.reply)).unzip();
                let results = write(jobs).unwrap_or_else(|error| replies.iter().map(|_| Err(error.clone())).collect());
                for (reply, result) in replies.into_iter().zip(results) {
                    // A waiter that went away does not change what was written.
                    let _ = reply.send(result);
                }
            }
        };
        thread::Builder::new().name(name.into()).spawn(work).map_err(failed)?;
        Ok(Self(queue))
    }

    /// Hands a job in, and returns when its group is durable.
    ///
    /// # Errors
    /// What the job gave; [`StoreError::Busy`] if the queue is full; [`StoreError::Failed`].
    pub(crate) async fn write(&self, job: J) -> Result<R, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Waiting { job, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => failed("the writer has stopped"),
        })?;
        answer.await.map_err(|_| failed("the writer has stopped"))?
    }
}

pub(crate) fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

//! Threads for expensive cryptography, with admission control.
//!
//! Private-key work runs here and nowhere else, so that a few RSA callers never delay AES callers. The queue is
//! bounded: over capacity the answer is [`HsmError::Busy`] at once.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use holdfast_core::HsmError;
use metrics::{counter, gauge};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fixed number of threads behind a bounded queue.
pub(crate) struct CryptoPool {
    name: &'static str,
    shared: Arc<Shared>,
    queue_max: usize,
}

impl CryptoPool {
    pub(crate) fn start(name: &'static str, threads: usize, queue_max: usize) -> io::Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::with_capacity(queue_max), closed: false });
        let shared = Arc::new(Shared { queue, arrived: Condvar::new() });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(name.into()).spawn(move || work(&shared))?;
        }
        Ok(Self { name, shared, queue_max })
    }

    /// Runs `job` on the pool.
    ///
    /// # Errors
    /// [`HsmError::Busy`] if the queue is full.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, HsmError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.shared.lock();
            if queue.jobs.len() >= self.queue_max {
                counter!("holdfast_crypto_pool_refused_total", "pool" => self.name).increment(1);
                return Err(HsmError::Busy);
            }
            queue.jobs.push_back(Box::new(move || {
                // A caller that went away no longer needs the work done.
                if !reply.is_closed() {
                    let _ = reply.send(job());
                }
            }));
            gauge!("holdfast_crypto_pool_queue_length", "pool" => self.name).set(queue.jobs.len() as f64);
        }
        self.shared.arrived.notify_one();
        answer.await.map_err(|_| HsmError::Failed("a crypto thread stopped"))
    }
}

impl Drop for CryptoPool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }
}

fn work(shared: &Shared) {
    // Callers of light operations wait for microseconds, callers of these for milliseconds: let the former go first.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 5) {
        tracing::debug!(%error, "a crypto thread keeps its priority");
    }
    loop {
        let job = {
            let mut queue = shared.lock();
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                queue = shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        job();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let pool = Arc::new(CryptoPool::start("test", 1, 1).unwrap());
        let (started, running) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move {
                pool.run(move || {
                    started.send(()).unwrap();
                    held.recv().unwrap();
                })
                .await
            }
        });
        tokio::task::spawn_blocking(move || running.recv().unwrap()).await.unwrap();
        let second = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run(|| 2).await }
        });
        while pool.shared.lock().jobs.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|| 3).await, Err(HsmError::Busy));
        release.send(()).unwrap();
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(()), Ok(2)));
    }
}

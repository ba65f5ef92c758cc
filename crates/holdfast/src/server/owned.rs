//! A process owns its requests: who hangs up ends his wait, and not the work.
//!
//! A request is polled where its connection is polled, which costs no wake-up of its own. If the connection goes away first, the
//! unfinished future moves to the runtime and goes on to its end there: a change that is half done is never left so. It keeps its
//! place among the connections meanwhile, so that hanging up buys nobody more work, and the stop of a listener waits for it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use metrics::{counter, gauge};
use tokio::{
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    task::JoinSet,
    time::{Instant, timeout_at},
};

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The works of one listener that nobody waits for any more.
pub(crate) struct Abandoned {
    listener: &'static str,
    /// None: the listener has stopped, and takes none any more.
    works: Mutex<Option<JoinSet<()>>>,
}

impl Abandoned {
    pub(crate) fn new(listener: &'static str) -> Arc<Self> {
        Arc::new(Self { listener, works: Mutex::new(Some(JoinSet::new())) })
    }

    /// Lets `work` go on to its end on the runtime. After the listener has stopped it ends here, as the process is about to.
    fn take_over<T: Send + 'static>(&self, work: Work<T>, place: Arc<Place>) {
        counter!("holdfast_requests_abandoned_total", "listener" => self.listener).increment(1);
        // Without a runtime nothing can go on: the process is at its end.
        let Ok(runtime) = Handle::try_current() else { return };
        let going_on = GoingOn::new(self.listener);
        let whole = async move {
            let _held = (place, going_on);
            let _ = work.await;
        };
        self.spawn(whole, &runtime);
    }

    /// Runs `work` on the runtime, whoever waits for it; the stop of the listener waits for it, too.
    pub(crate) fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(work, &Handle::current());
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        let mut works = self.works.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(works) = works.as_mut() else { return };
        // Those that have ended: as many as there are places at most.
        while works.try_join_next().is_some() {}
        works.spawn_on(work, runtime);
    }

    /// Waits for all works until `deadline`, then ends what is left. False if something was left. No work is taken any more.
    pub(crate) async fn drain(&self, deadline: Instant) -> bool {
        let works = self.works.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut works) = works else { return true };
        let drained = timeout_at(deadline, async { while works.join_next().await.is_some() {} }).await;
        // When this returns nothing is at work any more, so that nothing is told to a log that is closed.
        works.shutdown().await;
        drained.is_ok()
    }
}

/// Counts a work for as long as it lasts.
struct GoingOn(&'static str);

impl GoingOn {
    fn new(listener: &'static str) -> Self {
        gauge!("holdfast_requests_abandoned", "listener" => listener).increment(1.0);
        Self(listener)
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        gauge!("holdfast_requests_abandoned", "listener" => self.0).decrement(1.0);
    }
}

/// A connection's place among the connections, held by it and by the work that it leaves.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    abandoned: Arc<Abandoned>,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, abandoned: Arc<Abandoned>) -> Arc<Self> {
        Arc::new(Self { _permit: permit, abandoned })
    }
}

/// A request at work.
pub(super) struct OwnedRequest<T: Send + 'static> {
    /// None while it is polled, and once it has ended: a work that panics is dropped with the poll, and not taken over.
    work: Option<Work<T>>,
    place: Arc<Place>,
}

impl<T: Send + 'static> OwnedRequest<T> {
    pub(super) fn new(work: Work<T>, place: &Arc<Place>) -> Self {
        Self { work: Some(work), place: Arc::clone(place) }
    }
}

impl<T: Send + 'static> Future for OwnedRequest<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for OwnedRequest<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.place.abandoned.take_over(work, Arc::clone(&self.place));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    /// A work of two steps; the second waits until it is let go.
    struct Controlled {
        steps: Arc<AtomicUsize>,
        go: Option<oneshot::Sender<()>>,
        places: Arc<Semaphore>,
        abandoned: Arc<Abandoned>,
    }

    impl Controlled {
        fn start() -> (Self, Work<()>, Arc<Place>) {
            let (go, held) = oneshot::channel();
            let steps = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&steps);
            let work = Box::pin(async move {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = held.await;
                counted.fetch_add(1, Ordering::SeqCst);
            });
            let places = Arc::new(Semaphore::new(1));
            let permit = Arc::clone(&places).try_acquire_owned().unwrap();
            let abandoned = Abandoned::new("test");
            let place = Place::new(permit, Arc::clone(&abandoned));
            (Self { steps, go: Some(go), places, abandoned }, work, place)
        }

        fn steps(&self) -> usize {
            self.steps.load(Ordering::SeqCst)
        }

        fn let_go(&mut self) {
            let _ = self.go.take().unwrap().send(());
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    async fn poll_once<F: Future + Unpin>(work: &mut F) -> bool {
        std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *work).poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn who_hangs_up_ends_his_wait_and_not_the_work() {
        let (mut control, work, place) = Controlled::start();
        let mut request = OwnedRequest::new(work, &place);
        assert!(!poll_once(&mut request).await);
        drop((request, place));
        assert_eq!(control.places.available_permits(), 0, "its place is held as long as it lasts");
        control.let_go();
        assert!(control.abandoned.drain(soon()).await);
        assert_eq!((control.steps(), control.places.available_permits()), (2, 1));
    }

    /// The positive control: a future that is not owned ends with its connection.
    #[tokio::test]
    async fn a_work_that_is_not_owned_is_lost() {
        let (mut control, mut work, place) = Controlled::start();
        assert!(!poll_once(&mut work).await);
        drop((work, place));
        control.let_go();
        assert!(control.abandoned.drain(soon()).await);
        assert_eq!((control.steps(), control.places.available_permits()), (1, 1));
    }

    #[tokio::test]
    async fn a_request_that_was_never_polled_is_carried_out() {
        let (mut control, work, place) = Controlled::start();
        drop((OwnedRequest::new(work, &place), place));
        control.let_go();
        assert!(control.abandoned.drain(soon()).await);
        assert_eq!(control.steps(), 2);
    }

    #[tokio::test]
    async fn what_has_ended_does_not_run_again() {
        let (mut control, work, place) = Controlled::start();
        let mut request = OwnedRequest::new(work, &place);
        control.let_go();
        (&mut request).await;
        drop((request, place));
        assert!(control.abandoned.drain(soon()).await);
        assert_eq!((control.steps(), control.places.available_permits()), (2, 1));
    }

    #[tokio::test]
    async fn a_work_that_panics_is_not_taken_over() {
        let (control, _, place) = Controlled::start();
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let work: Work<()> = Box::pin(async move {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("a defect");
        });
        let request = OwnedRequest::new(work, &place);
        drop(place);
        assert!(tokio::spawn(request).await.unwrap_err().is_panic());
        assert!(control.abandoned.drain(soon()).await);
        assert_eq!((polls.load(Ordering::SeqCst), control.places.available_permits()), (1, 1));
    }

    #[tokio::test]
    async fn a_stop_waits_within_its_bound() {
        let (control, work, place) = Controlled::start();
        let later = OwnedRequest::new(Box::pin(async {}), &place);
        drop(OwnedRequest::new(work, &place));
        assert!(!control.abandoned.drain(Instant::now() + Duration::from_millis(20)).await, "it waits for ever");
        assert!(control.steps() <= 1);
        drop((later, place));
        assert_eq!(control.places.available_permits(), 1, "after the stop no work is taken over");
    }
}

//! Whether an engine takes changes, and why not: for whoever tells of the health of a role.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Whether an engine takes changes. Clones tell of the same engine.
#[derive(Clone, Default)]
pub struct Condition(Arc<Told>);

#[derive(Default)]
struct Told {
    fault: Mutex<Option<String>>,
    reopened: Notify,
}

impl Condition {
    fn state(&self) -> MutexGuard<'_, Option<String>> {
        self.0.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it takes no changes, while it takes none. It tries again by itself.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.state().clone()
    }

    /// Waits until its file was opened anew after a failure; at once, if that was since somebody waited last. For one who waits.
    pub async fn reopened(&self) {
        self.0.reopened.notified().await;
    }

    /// Its file was opened anew.
    pub(crate) fn was_reopened(&self) {
        self.0.reopened.notify_one();
    }

    /// It takes no changes. Said once for each cause, and not with each attempt.
    pub(crate) fn ill(&self, engine: &str, why: &str) {
        let before = self.state().replace(why.to_owned());
        if before.as_deref() != Some(why) {
            tracing::error!(engine, why, "the store takes no changes until this is mended; it tries again by itself");
        }
    }

    /// It takes changes.
    pub(crate) fn well(&self, engine: &str) {
        if self.state().take().is_some() {
            tracing::warn!(engine, "the store takes changes again");
        }
    }
}

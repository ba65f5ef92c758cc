//! Whether an engine takes changes, and why not: for whoever tells of the health of a role.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether an engine takes changes. Clones tell of the same engine.
#[derive(Clone, Default)]
pub struct Condition(Arc<Mutex<Option<String>>>);

impl Condition {
    fn state(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it takes no changes, while it takes none. It tries again by itself.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.state().clone()
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

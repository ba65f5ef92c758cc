//! Who reads what. The blobs of an object that was discarded go when its last reader has ended, and no later: a reader that stands
//! still is taken to have ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{error::Result, record::Id};

/// A client that takes nothing for so long does not keep what was discarded on the disk.
const STILL_MAX: Duration = Duration::from_secs(15 * 60);

/// The readers of one object.
struct Held {
    readers: usize,
    /// When one of them came, or took something.
    moved: Instant,
}

/// The readers of this process; there is no other that has the index open.
#[derive(Default)]
pub(crate) struct Readers {
    held: Mutex<HashMap<Id, Held>>,
    /// Shared by those who are finding something to read.
    finding: RwLock<()>,
    /// Told when an object has no reader any more.
    ended: Notify,
}

/// Keeps the blobs of one object, as long as it lives.
pub(crate) struct Hold {
    readers: Arc<Readers>,
    object: Id,
}

impl Hold {
    /// The reader has taken something.
    pub(crate) fn moved(&self) {
        let now = Instant::now();
        let mut all = self.readers.held();
        let Some(held) = all.get_mut(&self.object) else { return };
        if now.duration_since(held.moved) > STILL_MAX {
            tracing::info!("a reader stood still for long; if its object was discarded, what it reads may be gone");
        }
        held.moved = now;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.readers.held();
        if let Some(held) = all.get_mut(&self.object) {
            held.readers -= 1;
            if held.readers == 0 {
                all.remove(&self.object);
                drop(all);
                self.readers.ended.notify_one();
            }
        }
    }
}

impl Readers {
    fn held(&self) -> MutexGuard<'_, HashMap<Id, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for an object and holds it. To the collector this is one step: see [`Readers::settle`].
    pub(crate) fn find<T>(
        self: &Arc<Self>,
        look: impl FnOnce() -> Result<T>,
        object: impl FnOnce(&T) -> Id,
    ) -> Result<(T, Arc<Hold>)> {
        let _finding = self.finding.read().unwrap_or_else(PoisonError::into_inner);
        let found = look()?;
        let object = object(&found);
        let now = Instant::now();
        let mut all = self.held();
        let held = all.entry(object).or_insert(Held { readers: 0, moved: now });
        (held.readers, held.moved) = (held.readers + 1, now);
        drop(all);
        Ok((found, Arc::new(Hold { readers: Arc::clone(self), object })))
    }

    /// Returns when everybody who began to look before now holds what he found. What the index named as garbage before is
    /// found by nobody after.
    pub(crate) fn settle(&self) {
        drop(self.finding.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether somebody still reads an object.
    pub(crate) fn holds(&self, object: Id) -> bool {
        self.holds_at(object, Instant::now())
    }

    pub(crate) fn holds_at(&self, object: Id, now: Instant) -> bool {
        self.held().get(&object).is_some_and(|held| now.duration_since(held.moved) <= STILL_MAX)
    }

    /// Waits until an object has lost its last reader, or has since this was last asked.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_stands_still_holds_nothing() {
        let readers = Arc::new(Readers::default());
        let object = Id([1; 16]);
        let (_, one) = readers.find(|| Ok(object), |object| *object).unwrap();
        let begun = Instant::now();
        assert!(readers.holds_at(object, begun + STILL_MAX - Duration::from_secs(1)));
        assert!(!readers.holds_at(object, begun + STILL_MAX + Duration::from_secs(1)));
        one.moved();
        let (_, two) = readers.find(|| Ok(object), |object| *object).unwrap();
        drop(one);
        assert!(readers.holds(object) && !readers.holds(Id([2; 16])));
        drop(two);
        assert!(!readers.holds(object));
    }
}

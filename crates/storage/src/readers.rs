//! Who reads what. The blobs of an object that was discarded go when its last reader has ended, and no later.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use s3s::S3Result;
use tokio::sync::Notify;

use crate::record::Id;

/// The readers of this process; there is no other that has the index open.
#[derive(Default)]
pub(crate) struct Readers {
    held: Mutex<HashMap<Id, usize>>,
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

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.readers.held();
        if let Some(count) = held.get_mut(&self.object) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.object);
                drop(held);
                self.readers.ended.notify_one();
            }
        }
    }
}

impl Readers {
    fn held(&self) -> MutexGuard<'_, HashMap<Id, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for an object and holds it. To the collector this is one step: see [`Readers::settle`].
    pub(crate) fn find<T>(
        self: &Arc<Self>,
        look: impl FnOnce() -> S3Result<T>,
        object: impl FnOnce(&T) -> Id,
    ) -> S3Result<(T, Arc<Hold>)> {
        let _finding = self.finding.read().unwrap_or_else(PoisonError::into_inner);
        let found = look()?;
        let object = object(&found);
        *self.held().entry(object).or_default() += 1;
        Ok((found, Arc::new(Hold { readers: Arc::clone(self), object })))
    }

    /// Returns when everybody who began to look before now holds what he found. What the index named as garbage before is
    /// found by nobody after.
    pub(crate) fn settle(&self) {
        drop(self.finding.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn holds(&self, object: Id) -> bool {
        self.held().contains_key(&object)
    }

    /// Waits until an object has lost its last reader, or has since this was last asked.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }
}

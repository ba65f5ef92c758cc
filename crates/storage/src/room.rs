//! A disk that fills is told before it is full: new data gets none of the reserve, which is for what makes room (deletions), and for
//! what must be noted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    Storage,
    error::{Error, Result},
};

/// What is left of the place that is written to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RoomLeft {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes of them that new data does not get.
    pub reserve: u64,
}

impl RoomLeft {
    /// Whether so many bytes of new data may be written; of 0, whether any may.
    #[must_use]
    pub fn has(self, bytes: u64) -> bool {
        self.free > self.reserve.saturating_add(bytes)
    }
}

/// Where index and blobs lie.
pub trait Room: Send + Sync {
    /// What is left now, of the place that has least.
    fn left(&self) -> RoomLeft;
}

/// Bytes that are on their way to the disk, so that many writers do not each see the same room.
pub(crate) struct Promise {
    promised: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Storage {
    /// What is left for new data.
    #[must_use]
    pub fn room_left(&self) -> RoomLeft {
        self.room.left()
    }

    /// Refuses new data that would not fit. 507 is an answer that SDKs do not retry at once.
    pub(crate) async fn must_have_room(&self, bytes: u64) -> Result<()> {
        let has = || self.room_left().has(self.promised.load(Ordering::Acquire).saturating_add(bytes));
        if has() {
            return Ok(());
        }
        // What was deleted a moment ago may still lie there.
        self.collect().await;
        if has() {
            return Ok(());
        }
        metrics::counter!("holdfast_storage_refused_for_room_total").increment(1);
        Err(Error::NoRoom)
    }

    /// Room for bytes that are about to be written, for as long as the promise is held.
    pub(crate) async fn promise_room(&self, bytes: usize) -> Result<Promise> {
        let bytes = bytes as u64;
        self.promised.fetch_add(bytes, Ordering::AcqRel);
        let promise = Promise { promised: Arc::clone(&self.promised), bytes };
        self.must_have_room(0).await?;
        Ok(promise)
    }
}

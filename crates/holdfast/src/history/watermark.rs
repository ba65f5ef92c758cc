//! How far the audit log had come, kept a second time: apart from the store that has the mark, so that store and log cannot be put back as a pair.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::{Ambient, PartitionId, StoreError, Trouble};
use holdfast_crypto::SecretBytes;
use holdfast_store::{SlotFile, SlotLayout, audit::Checkpoint};

use super::{decode_mark, encode_mark};

/// Two records, written in turn: a crash tears one of them at most.
const LAYOUT: SlotLayout = SlotLayout { purpose: "holdfast watermarks v1", slots: 2, slot_bytes: 512 };
pub(crate) const FILE: &str = "watermark.slots";
/// How often it is written. The mark in the store is newer: this one is for the case that the store is put back.
const INTERVAL: Duration = Duration::from_secs(60);

/// The place of an instance's one log.
pub(crate) const RECORDS: &str = "records";

fn slots(
    directory: &Path,
    instance: PartitionId,
    database_key: &SecretBytes,
    place: &str,
    ambient: &Arc<dyn Ambient>,
) -> Result<SlotFile, StoreError> {
    SlotFile::new(&directory.join(FILE), LAYOUT, database_key, instance, place, Arc::clone(ambient))
        .map_err(|error| StoreError::Failed(error.to_string()))
}

/// The file of one log.
pub(crate) struct Watermark {
    slots: SlotFile,
    number: u64,
    /// What it says.
    pub reached: Option<Checkpoint>,
    written: Instant,
    trouble: Trouble,
}

impl Watermark {
    /// Reads what is in `directory`; `place` tells apart the logs of an instance.
    pub(crate) fn open(
        directory: &Path,
        instance: PartitionId,
        database_key: &SecretBytes,
        place: &str,
        ambient: &Arc<dyn Ambient>,
    ) -> Result<Self, StoreError> {
        let slots = slots(directory, instance, database_key, place, ambient)?;
        let last = slots.read()?.pop();
        let number = last.as_ref().map_or(0, |record| record.number);
        let reached = last.and_then(|record| decode_mark(&record.value));
        Ok(Self { slots, number, reached, written: Instant::now(), trouble: Trouble::default() })
    }

    /// What a file says of an instance's one log, if it has this content.
    pub(crate) fn reached_in(
        content: &[u8],
        instance: PartitionId,
        database_key: &SecretBytes,
        ambient: &Arc<dyn Ambient>,
    ) -> Result<Option<Checkpoint>, StoreError> {
        let slots = slots(Path::new(""), instance, database_key, RECORDS, ambient)?;
        Ok(slots.records_in(content).pop().and_then(|record| decode_mark(&record.value)))
    }

    /// Writes how far the log has come; whether that is durable. A disk without room for it stops nothing.
    pub(crate) fn write(&mut self, reached: &Checkpoint) -> bool {
        self.written = Instant::now();
        if self.reached.as_ref() == Some(reached) {
            return true;
        }
        let (number, value) = (self.number + 1, encode_mark(reached));
        let written = self.slots.prepare().and_then(|()| self.slots.write(number, &value));
        match written {
            Ok(()) => {
                (self.number, self.reached) = (number, Some(*reached));
                self.trouble.ends();
            }
            Err(error) if self.trouble.begins() => {
                tracing::warn!(%error, "the audit log's progress could not be remembered a second time");
            }
            Err(_) => {}
        }
        self.reached.as_ref() == Some(reached)
    }

    pub(crate) fn is_due(&self) -> bool {
        self.written.elapsed() >= INTERVAL
    }
}

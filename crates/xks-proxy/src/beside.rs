//! What lies beside the shared state: what each process has seen of it, sealed, and the road of kills, which needs neither the
//! state's lock nor room on the disk.

use std::collections::BTreeMap;

use holdfast_core::StoreError;

use crate::state::{KillSwitch, OperatorsRecord};

/// Up to which number the state has taken each process's kills in. Later ones are in force beside it.
pub type Heard = BTreeMap<String, u64>;

/// A kill as one process wrote it down.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PulledKill {
    /// Which process.
    pub process: String,
    /// Its number among that process's kills; from 1, without gaps.
    pub number: u64,
    /// The switch.
    pub kill: KillSwitch,
}

/// The seam to it. Every call may wait for the disk, and for nobody else.
pub trait Beside: Send + Sync {
    /// How many changes the stored state has seen.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if it is older than one that is known of; [`StoreError::Damaged`].
    fn generation(&self) -> Result<u64, StoreError>;

    /// Remembers that the state of this generation was seen, and who governs it: durably, before it is in force.
    ///
    /// # Errors
    /// [`StoreError`].
    fn saw(&self, generation: u64, operators: &OperatorsRecord) -> Result<(), StoreError>;

    /// The name of this process.
    fn process(&self) -> &str;

    /// Writes a kill of this process down, durably; gives its number. `heard`: which of them the state has taken in.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if too many wait to be taken in; [`StoreError::Failed`].
    fn pull(&self, heard: u64, kill: &KillSwitch) -> Result<u64, StoreError>;

    /// All kills that the state has not taken in.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if one that is known of is missing.
    fn pulled(&self, heard: &Heard) -> Result<Vec<PulledKill>, StoreError>;

    /// Whether it is for this process to see that the kills of `process` get into the log and the state: they are its own, or of
    /// a process that does not run.
    fn is_ours(&self, process: &str) -> bool;

    /// Up to which number the events of a process's kills are in its log, each of them; later ones may be, too.
    fn told_up_to(&self, process: &str) -> u64;

    /// Remembers that the events of this process's kills up to `number` are in its log, each of them.
    ///
    /// # Errors
    /// [`StoreError`].
    fn told(&self, number: u64) -> Result<(), StoreError>;
}

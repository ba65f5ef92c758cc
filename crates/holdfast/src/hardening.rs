//! Keeping secrets out of core dumps and swap.

use std::sync::OnceLock;

use rustix::{
    fs::Mode,
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};

/// What new files were open to when the program was started.
static UMASK_BEFORE: OnceLock<u32> = OnceLock::new();

/// From now on files are their owner's alone, unless somebody sets their mode.
pub(crate) fn keep_files_private() {
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let _ = UMASK_BEFORE.set(before.bits());
}

/// For children that have their own way with files.
pub(crate) fn umask_before() -> u32 {
    UMASK_BEFORE.get().copied().unwrap_or(0o077)
}

/// Turns core dumps and ptrace by others off, and locks memory where the system allows.
pub(crate) fn apply() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be turned off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process could not be made undumpable");
    }
    // Under a limit, locking everything would make later allocations fail; secrets may then reach swap, and we say so.
    let unlimited = getrlimit(Resource::Memlock).current.is_none() || rustix::process::geteuid().is_root();
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let locked = unlimited && mlockall(flags).is_ok();
    if locked {
        tracing::debug!("memory is locked");
    } else {
        tracing::warn!("memory is not locked and may reach swap; set LimitMEMLOCK=infinity (ulimit -l unlimited)");
    }
}

//! Keeping secrets out of core dumps and swap.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};

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

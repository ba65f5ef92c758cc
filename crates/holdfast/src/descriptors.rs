//! File descriptors: as many as the system allows, and no more connections than they are enough for. A service that runs out of them cannot write its
//! log any more; one connection less is the smaller loss.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{fault::Fault, server::ConnectionLimits};

/// What a process has open beside its connections: stores, log, terminals, connections that it keeps to others.
const OWN: u64 = 256;
/// For each connection: itself, and a file or a connection to somebody else that its request needs.
const EACH: u64 = 2;
/// A listener with fewer connections serves nobody.
const CONNECTIONS_MIN: u64 = 16;
/// More than all listeners together may need; an endless table costs whoever looks through it.
const RAISED_MAX: u64 = 1 << 20;

/// Raises the limit to what the system allows at most.
pub(crate) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(RAISED_MAX).min(RAISED_MAX);
    if current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of file descriptors could not be raised");
        }
    }
}

/// Lowers the number of connections to what there are file descriptors for; `listeners` share them.
pub(crate) fn fit(limits: &mut ConnectionLimits, listeners: usize) -> Result<(), Fault> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(allowed) = current else { return Ok(()) };
    let listeners = listeners as u64;
    let asked = limits.connections_max as u64;
    let needed = OWN + EACH * listeners * asked;
    let Some(fits) = fitting(allowed, listeners, asked) else {
        let why = format!(
            "the process may have {allowed} file descriptors (RLIMIT_NOFILE), and limits.connections = {asked} on each of {listeners} listeners needs \
             {needed}; not even {CONNECTIONS_MIN} fit"
        );
        return Err(Fault::new(why).hint(hint(needed, maximum)));
    };
    if fits < asked {
        tracing::warn!(
            allowed,
            needed,
            connections = fits,
            "there are {allowed} file descriptors (RLIMIT_NOFILE), and limits.connections = {asked} on each of {listeners} listeners needs {needed}: \
             each takes {fits} connections; {}",
            hint(needed, maximum)
        );
        limits.connections_max = fits as usize;
    }
    Ok(())
}

fn hint(needed: u64, maximum: Option<u64>) -> String {
    let hard = maximum.map_or_else(|| "unlimited".into(), |maximum| maximum.to_string());
    format!(
        "the hard limit is {hard}: set LimitNOFILE={needed} in the unit (ulimit -Hn {needed}), or lower limits.connections"
    )
}

/// How many connections of the `asked` ones fit. `None`: too few.
fn fitting(allowed: u64, listeners: u64, asked: u64) -> Option<u64> {
    let fits = allowed.saturating_sub(OWN) / (EACH * listeners.max(1));
    if fits >= asked { Some(asked) } else { Some(fits).filter(|fits| *fits >= CONNECTIONS_MIN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_what_descriptors_are_enough_for() {
        assert_eq!(fitting(1024, 2, 4096), Some(192));
        assert_eq!(fitting(1_048_576, 3, 4096), Some(4096));
        assert_eq!(fitting(256 + 2 * 2 * 100, 2, 100), Some(100));
        assert_eq!(fitting(256 + 2 * 2 * 100 - 1, 2, 100), Some(99));
        assert_eq!(fitting(256 + 2 * 16, 1, 4096), Some(16));
        assert_eq!(fitting(256 + 2 * 16 - 1, 1, 4096), None);
        assert_eq!(fitting(64, 1, 1), None);
        assert_eq!(fitting(258, 1, 1), Some(1), "who asks for fewer than that gets them");
    }
}

//! The operating system's clock and entropy.

use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_core::{Ambient, Timestamp};

/// The real world.
pub(crate) struct OsAmbient;

impl Ambient for OsAmbient {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    #[expect(clippy::expect_used, reason = "without entropy nothing may go on; the kernel's call fails only at boot")]
    fn fill(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system gives entropy");
    }
}

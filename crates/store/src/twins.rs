//! For tests: what stands in the place of the outside.

use holdfast_core::{Ambient, Timestamp};

/// The same moment and the same bytes each time: what a golden file needs.
pub(crate) struct Fixed;

impl Ambient for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn fill(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
}

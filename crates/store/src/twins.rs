//! For tests: what stands in the place of the outside.

use holdfast_core::{Ambient, AuditEvent, Timestamp};

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

/// An event of a success that says little more than its request's id.
pub(crate) fn event(request_id: &str) -> AuditEvent {
    let event = AuditEvent::allowed(Timestamp::from_unix_millis(1_800_000_000_123), "Test", request_id);
    AuditEvent { path: "/".into(), ..event }
}

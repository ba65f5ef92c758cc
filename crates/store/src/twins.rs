//! For tests: what stands in the place of the outside.

use holdfast_core::{Ambient, AuditEvent, AuditOutcome, Timestamp};

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
    AuditEvent {
        time: Timestamp::from_unix_millis(1_800_000_000_123),
        operation: "Test",
        principal: None,
        key: None,
        key_version: None,
        algorithm: None,
        outcome: AuditOutcome::Allowed,
        status: 200,
        error_code: None,
        reason: None,
        request_id: request_id.into(),
        client_request_id: None,
        source: None,
        user_agent: None,
        context: Vec::new(),
        path: "/".into(),
        duration_us: 0,
    }
}

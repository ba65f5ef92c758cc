//! The audit log: JSON lines, hash-chained, in segments, with signed checkpoints (`docs/formats/audit-log.md`).
//!
//! Each line ends with `"prev"`, the SHA-256 of the line before; so a line is proof of all lines before it. A checkpoint
//! line carries a signature, by a key born in the instance, over its place in the chain.

mod anchor;
mod archive;
mod aside;
mod chain;
mod line;
mod log;
mod reader;
mod segment;
mod tail;
mod verify;
mod writer;

pub use anchor::{ANCHOR_FILE, Anchor, HAND_OVER};
pub use archive::{Archiver, list_archived, read_archived_lines, remove_handed_over};
pub use chain::{ChainChecker, LogKey, line_hash};
use holdfast_core::{AuditEvent, StoreError};
pub use line::{Checkpoint, LineError, LineMac, ParsedLine, parse_line};
pub use log::{AuditKeys, AuditLog, AuditLogConfig, AuditOpenError, LogExtent, RestoredStore};
pub use segment::{list_segments, read_lines};
pub use tail::{end_of_earlier_format, end_of_log};
pub use verify::{Finding, Report, Verification, verify, verify_with};

/// What the line of an event says, without its place in the chain: what an outbox keeps.
pub(crate) fn event_body(event: &AuditEvent) -> Result<String, StoreError> {
    line::event_body(event).map_err(|error| StoreError::Failed(error.to_string()))
}

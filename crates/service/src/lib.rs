//! The life of a request, written once for all dialects that read whole bodies.
//!
//! ```text
//! head ─> route ─> early look ─> body within bounds ─> place ─> caller ─> act ─> leave ─> performed ─> recorded ─> confirmed ─> answer
//! ```
//!
//! Each stage is a type that only the stage before it can make: a [`Request`] is there only when its body is, so whoever is recognized
//! and whatever is allowed rests on the moment after the body, and on what names mean then; an answer is made only of what was
//! [`Confirmed`]: its event is durable, and what it rests on was looked at once more, under a pass that is held until its last byte is with the
//! socket ([`Handed`]). A [`Dialect`] writes what is its own. Limits, the request's id, events, metrics, logs of failures and counting of strangers
//! are the [`Spine`]'s. The caller of [`Spine::handle`] owns the future and lets it run to its end, whoever hangs up.

mod audit_door;
mod codes;
mod dialect;
mod measure;
mod spine;
mod stages;
mod strangers;
#[cfg(test)]
mod tests;
mod trace;

pub use audit_door::{AuditDoor, Readers, SigningReaders, Stranger, pull_intent};
pub use dialect::{Dialect, Failure, Fault, Written};
/// What a role whose callers sign knows of each of them.
pub use holdfast_wire::sigv4::SigningSecret;
pub use measure::{Ended, measure_requests};
pub use spine::Spine;
pub use stages::{Confirmed, Done, Handed, Head, Request};
pub use strangers::{Strangers, counted_as};
pub use trace::{Client, Told, Trace};

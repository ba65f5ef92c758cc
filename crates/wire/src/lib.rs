//! What dialects over HTTP share: bodies within bounds, AWS Signature Version 4 from both sides, the seam by which a role
//! sends requests of its own, causes of errors as codes, secrets in JSON.

pub mod audit_pull;
pub mod body;
mod cause;
mod exchange;
pub mod hex;
mod json;
mod quota;
pub mod sigv4;

pub use cause::{CAUSE_MEMBER, Cause, ToldCause};
pub use exchange::{Exchange, ExchangeError};
pub use json::JsonText;
pub use quota::Quotas;

/// `text` with at most `chars_max` characters, and nothing that a terminal could take for a command.
#[must_use]
pub fn printable(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|c| if c.is_control() { '?' } else { c }).collect()
}

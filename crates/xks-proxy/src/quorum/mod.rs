//! Changes by quorum: an exact request that expires, signed by m of n operators, then carried out once.

mod act;
mod execute;
mod proposal;

pub use act::{Act, KeyUse};
pub use execute::BlindedSecret;
pub(crate) use execute::{check, heard_key, kill_key, operators_key, proposal_key, secret_key};
pub(crate) use proposal::{Approved, Refused, Tally, Word};
pub use proposal::{Proposal, Request, Status, Verdict, statement};

//! AWS's external key store proxy API, version 1.0.3.

mod bound;
mod error;
mod ops;
mod route;
mod wire;

pub(crate) use error::error_body;
pub(crate) use ops::{answer, claims_of};
pub(crate) use route::{Operation, route};
pub(crate) use wire::RequestMetadata;
#[cfg(fuzzing)]
pub(crate) use wire::{DecryptRequest, EncryptRequest, parse};

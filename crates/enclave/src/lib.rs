//! Sealing, and the secrets of an instance.
//!
//! Only a 32-byte root is sealed to the silicon; the instance's secrets lie in one file, encrypted under the root
//! (`docs/formats/instance-state.md`). Without the silicon the file, and with it the whole data directory, is closed.
//!
//! [`NitroVerifier`] verifies the evidence of others: pure, over bytes.

mod file;
mod founded;
mod instance;
mod nitro;
mod software;

pub use file::lock;
pub use founded::{Founded, FoundedError, FoundedList};
pub use instance::{InstanceError, InstanceSecrets};
pub use nitro::NitroVerifier;
#[cfg(fuzzing)]
pub use nitro::claims_of as nitro_claims;
pub use software::{SiliconError, SoftwareSilicon};

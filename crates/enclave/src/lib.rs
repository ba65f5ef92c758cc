//! Sealing, and the secrets of an instance.
//!
//! Only a 32-byte root is sealed to the silicon; the instance's secrets lie in one file, encrypted under the root
//! (`docs/formats/instance-state.md`). Without the silicon the file, and with it the whole data directory, is closed.

mod file;
mod instance;
mod software;

pub use instance::{InstanceError, InstanceSecrets};
pub use software::{SiliconError, SoftwareSilicon};

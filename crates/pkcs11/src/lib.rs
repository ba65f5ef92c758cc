//! External HSMs by PKCS #11 (v2.40 and 3.x).
//!
//! Each user of each token has a process of its own, a *host*, which loads the vendor's library, logs in and holds the
//! sessions. So a library that crashes or hangs takes nothing with it but its own calls, several users of one token work at
//! once (the standard knows one login a process), and no process can use all keys. [`Pkcs11Hsm`] is the other end: it
//! starts the host, watches over it, starts it anew, and implements [`holdfast_core::ExternalHsm`].
//!
//! Between the two lies one socket that keeps message boundaries (SOCK_SEQPACKET). Every thread of the host owns one session
//! and waits in `recv` for the next request, so the kernel's queue is the only one; blocking calls block a thread of the
//! host and nothing else.

mod client;
mod host;
mod message;
mod names;
mod profile;

use std::{ffi::CString, path::PathBuf, time::Duration};

pub use client::{HostCommand, Pin, Pkcs11Hsm};
pub use host::run as run_host;
pub use profile::{InvalidProfile, Profile};

/// Which token, out of those that the module shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenSelector {
    /// CK_TOKEN_INFO's label.
    Label(String),
    /// Its serial number.
    Serial(String),
}

/// One user of one token.
#[derive(Clone, Debug)]
pub struct Pkcs11Config {
    /// Its name here.
    pub name: String,
    /// The vendor's library.
    pub module: PathBuf,
    /// Which token.
    pub token: TokenSelector,
    /// Variables that the vendor's library wants.
    pub environment: Vec<(String, String)>,
    /// A string that the vendor's library wants at its start, in C_Initialize's `pReserved`.
    pub library_parameters: Option<CString>,
    /// The vendor's peculiarities; chosen by what the library and the token say of themselves if not given.
    pub profile: Option<Profile>,
    /// Sessions, each with a thread: how many calls the HSM is given at once.
    pub sessions: u16,
    /// Calls that may wait for a session. More is [`holdfast_core::HsmError::Busy`].
    pub queue_max: u16,
    /// After at most this time a key that was changed or deleted in the token is seen to be.
    pub relist_interval: Duration,
    /// A call that takes longer counts as hung; when every session is, the host is killed and started anew.
    pub hang_timeout: Duration,
}

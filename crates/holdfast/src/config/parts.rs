//! What the configurations of several roles have in common.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::Audit;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAudit {
    segment_mib: Option<u64>,
    segment_minutes: Option<u64>,
    #[serde(default)]
    accept_loss: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLog {
    #[serde(default)]
    pub json: bool,
}

/// A socket address, or an error that names the field.
pub(crate) fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{name} = {text:?} is not a socket address (like 0.0.0.0:8443)"))
}

/// Refuses bounds that would turn the service off or let it run out of everything.
pub(crate) fn within<T: PartialOrd + std::fmt::Display + Copy>(
    name: &str,
    value: Option<T>,
    default: T,
    min: T,
    max: T,
) -> Result<T, String> {
    let value = value.unwrap_or(default);
    if value < min || value > max { Err(format!("{name} = {value} must be {min} to {max}")) } else { Ok(value) }
}

impl RawAudit {
    pub(crate) fn check(self) -> Result<Audit, String> {
        Ok(Audit {
            segment_bytes_max: within("audit.segment_mib", self.segment_mib, 64, 1, 4096)? << 20,
            segment_age_max: Duration::from_secs(
                60 * within("audit.segment_minutes", self.segment_minutes, 60, 1, 60 * 24 * 7)?,
            ),
            accept_loss: self.accept_loss,
        })
    }
}

//! One TOML file: read raw, checked into [`Config`]. Unknown fields are refused; secrets come by file.

pub(crate) mod parts;
mod raw;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_crypto::Rsa1_5Policy;
use holdfast_managed_hsm::{HostPort, IssuerConfig, Limits};

use crate::{fault::Fault, hsm::HsmThreads, server::ConnectionLimits};

/// The commented example: `holdfast config example`.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// Everything checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub listen: Listen,
    pub hsm: HsmConfig,
    pub silicon_root: PathBuf,
    pub tls_certificate_file: Option<PathBuf>,
    pub identity: Identity,
    pub embedded_issuer: Option<EmbeddedIssuer>,
    pub audit: Audit,
    pub connections: ConnectionLimits,
    pub limits: Limits,
    pub threads: HsmThreads,
    pub log_json: bool,
}

#[derive(Debug)]
pub(crate) struct Listen {
    pub address: SocketAddr,
    pub metrics_address: Option<SocketAddr>,
    pub host_names: Vec<HostPort>,
}

#[derive(Debug)]
pub(crate) struct HsmConfig {
    pub data_dir: PathBuf,
    pub soft_delete_retention_days: u32,
    pub purge_protection: bool,
    pub initial_administrators: Vec<String>,
    pub rsa1_5: Rsa1_5Policy,
}

#[derive(Debug)]
pub(crate) struct Identity {
    /// `https://AUTHORITY/TENANT`, told in the challenge.
    pub authority: String,
    pub audience: String,
    pub issuers: Vec<IssuerSource>,
}

#[derive(Debug)]
pub(crate) struct IssuerSource {
    pub config: IssuerConfig,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug)]
pub(crate) struct EmbeddedIssuer {
    pub address: SocketAddr,
    /// `https://HOST:PORT` as clients reach it.
    pub url: String,
    pub tenant: String,
    pub clients: Vec<EmbeddedClient>,
}

#[derive(Debug)]
pub(crate) struct EmbeddedClient {
    pub client_id: String,
    pub object_id: String,
    pub secret_file: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct Audit {
    pub segment_bytes_max: u64,
    pub segment_age_max: Duration,
    pub accept_loss: bool,
}

impl Default for Audit {
    fn default() -> Self {
        Self { segment_bytes_max: 64 * 1024 * 1024, segment_age_max: Duration::from_secs(3600), accept_loss: false }
    }
}

/// As many private-key threads as cores; over 256 waiting the answer is 429.
pub(crate) fn default_threads() -> HsmThreads {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    HsmThreads { private_key: cores, queue_max: 256 }
}

/// The audience of the real service; always accepted.
pub(crate) const DEFAULT_AUDIENCE: &str = "https://managedhsm.azure.net";

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, Fault> {
        parts::load(path, "> holdfast.toml", Self::parse)
    }

    /// Reads and checks the text of a file.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let raw: raw::Config = toml::from_str(text).map_err(|error| error.to_string())?;
        raw.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.listen.host_names[0].base_url(), "https://hsm1.example.com");
        assert_eq!(config.hsm.soft_delete_retention_days, 90);
    }

    #[test]
    fn unknown_fields_and_nonsense_are_refused() {
        for (from, to, why) in [
            ("purge_protection", "purge_protectoin", "unknown field"),
            ("address = \"0.0.0.0:8443\"", "address = \"nowhere\"", "socket address"),
            ("soft_delete_retention_days = 90", "soft_delete_retention_days = 6", "7 to 90"),
            ("https://login.microsoftonline.com", "http://login.microsoftonline.com", "https"),
            ("kind = \"software-insecure\"", "kind = \"tpm\"", "software-insecure"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Config::parse(&EXAMPLE.replace(from, to)).unwrap_err();
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}

//! The configuration file of `holdfast xks serve`: read raw, checked, unknown fields refused.

use std::{
    collections::BTreeMap,
    ffi::CString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_core::TokenObject;
use holdfast_crypto::SecretBytes;
use holdfast_pkcs11::{Pkcs11Config, Profile, TokenSelector};
use holdfast_xks_proxy::{Limits, is_access_key_id, state::OperatorsRecord};
use serde::Deserialize;

use crate::{
    config::{
        Audit,
        parts::{self, RawAudit, RawLog, RawSilicon, address, read_secret, within},
    },
    fault::Fault,
    server::ConnectionLimits,
};

/// The commented example: `holdfast config example --role xks`.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// Everything checked.
pub(crate) struct Config {
    pub address: SocketAddr,
    pub ekm_address: Option<SocketAddr>,
    pub metrics_address: Option<SocketAddr>,
    pub host_names: Vec<String>,
    pub tls: Tls,
    pub state_dir: PathBuf,
    pub process: String,
    pub silicon_root: PathBuf,
    pub quorum: Option<OperatorsRecord>,
    pub hsms: Vec<HsmUser>,
    pub audit: Audit,
    pub audit_readers: Vec<Reader>,
    pub connections: ConnectionLimits,
    pub limits: Limits,
    pub log_json: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub certificate_file: Option<PathBuf>,
    pub client_ca_file: Option<PathBuf>,
    #[serde(default)]
    pub client_subjects: Vec<String>,
    pub ekm_client_ca_file: Option<PathBuf>,
}

/// One HSM user.
pub(crate) struct HsmUser {
    pub name: String,
    pub kind: HsmKind,
    pub health_key: Option<TokenObject>,
    pub own_keys_only: bool,
}

/// What is behind it.
pub(crate) enum HsmKind {
    /// Somebody's HSM.
    Pkcs11(Box<Pkcs11Config>),
    /// Ours.
    Software,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: RawListen,
    #[serde(default)]
    tls: Tls,
    state: RawState,
    silicon: RawSilicon,
    quorum: Option<OperatorsRecord>,
    hsms: Vec<RawHsm>,
    #[serde(default)]
    audit: RawAudit,
    #[serde(default)]
    audit_pull: RawReaders,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    address: String,
    ekm_address: Option<String>,
    metrics_address: Option<String>,
    host_names: Vec<String>,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawState {
    directory: PathBuf,
    process: String,
}

/// Those who may take copies of the audit log, each with a credential of his own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReaders {
    #[serde(default)]
    readers: Vec<Reader>,
}

/// Somebody who may take copies of the audit log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reader {
    name: String,
    access_key_id: String,
    secret_file: PathBuf,
}

impl RawReaders {
    fn check(self) -> Result<Vec<Reader>, String> {
        for (at, reader) in self.readers.iter().enumerate() {
            if !is_name(&reader.name) {
                return Err("audit_pull.readers: a name has up to 64 letters, digits, '-' and '_'".into());
            }
            if !is_access_key_id(&reader.access_key_id) {
                return Err("audit_pull.readers: access_key_id has 20 to 30 of A-Z and 2-7".into());
            }
            let same = |other: &Reader| other.name == reader.name || other.access_key_id == reader.access_key_id;
            if self.readers[..at].iter().any(same) {
                return Err(format!("audit_pull.readers: {:?} is there twice", reader.name));
            }
        }
        Ok(self.readers)
    }
}

impl Reader {
    /// Name, access key id, secret.
    pub(crate) fn credential(&self) -> Result<(String, String, SecretBytes), Fault> {
        Ok((self.name.clone(), self.access_key_id.clone(), read_secret(&self.secret_file)?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHsm {
    name: String,
    module: Option<PathBuf>,
    token_label: Option<String>,
    token_serial: Option<String>,
    profile: Option<String>,
    profile_file: Option<PathBuf>,
    sessions: Option<u16>,
    queue: Option<u16>,
    relist_secs: Option<u64>,
    hang_secs: Option<u64>,
    health_key: Option<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    library_parameters: Option<String>,
    #[serde(default)]
    software_insecure: bool,
    #[serde(default)]
    own_keys_only: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<usize>,
    in_flight: Option<usize>,
    answer_millis: Option<u64>,
    hsm_millis: Option<u64>,
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Self, Fault> {
        parts::load(path, "--role xks > xks.toml", Self::parse)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string())?;
        let optional = |name, text: Option<String>| text.map(|text| address(name, &text)).transpose();
        if raw.listen.host_names.is_empty() {
            return Err("listen.host_names must name at least one host".into());
        }
        let silicon_root = raw.silicon.check()?;
        if !is_name(&raw.state.process) || super::COMMANDS.contains(&raw.state.process.as_str()) {
            return Err("state.process has up to 64 letters, digits, '-' and '_', and is not \"command\" nor \"command-2\" to \"command-4\"".into());
        }
        let ekm_address = optional("listen.ekm_address", raw.listen.ekm_address)?;
        if ekm_address.is_some() != raw.tls.ekm_client_ca_file.is_some() {
            return Err("listen.ekm_address and tls.ekm_client_ca_file belong together".into());
        }
        if !raw.tls.client_subjects.is_empty() && raw.tls.client_ca_file.is_none() {
            return Err("tls.client_subjects needs tls.client_ca_file".into());
        }
        if let Some(quorum) = &raw.quorum {
            quorum.check().map_err(|error| format!("quorum: {error}"))?;
        }
        let hsms: Vec<HsmUser> = raw.hsms.into_iter().map(RawHsm::check).collect::<Result<_, _>>()?;
        if hsms.iter().enumerate().any(|(at, hsm)| hsms[..at].iter().any(|other| other.name == hsm.name)) {
            return Err("two hsms have the same name".into());
        }
        let limits = raw.limits;
        let defaults = Limits::default();
        let answer = within("limits.answer_millis", limits.answer_millis, 200, 20, 10_000)?;
        let hsm = within("limits.hsm_millis", limits.hsm_millis, 150.min(answer), 10, answer)?;
        Ok(Self {
            address: address("listen.address", &raw.listen.address)?,
            ekm_address,
            metrics_address: optional("listen.metrics_address", raw.listen.metrics_address)?,
            host_names: raw.listen.host_names,
            tls: raw.tls,
            state_dir: raw.state.directory,
            process: raw.state.process,
            silicon_root,
            quorum: raw.quorum,
            hsms,
            audit: raw.audit.check()?,
            audit_readers: raw.audit_pull.check()?,
            connections: parts::connections(limits.connections, &raw.listen.proxy_protocol_from)?,
            limits: Limits {
                in_flight_max: within("limits.in_flight", limits.in_flight, defaults.in_flight_max, 1, 100_000)?,
                answer_budget: Duration::from_millis(answer),
                hsm_budget: Duration::from_millis(hsm),
                ..defaults
            },
            log_json: raw.log.json,
        })
    }
}

impl RawHsm {
    fn check(self) -> Result<HsmUser, String> {
        let what = format!("hsms {:?}", self.name);
        if !is_name(&self.name) {
            return Err(format!("{what}: a name has up to 64 letters, digits, '-' and '_'"));
        }
        let health_key = self.health_key.as_deref().map(TokenObject::labelled);
        let own_keys_only = self.own_keys_only;
        if self.software_insecure {
            return match self.module {
                None => Ok(HsmUser { name: self.name, kind: HsmKind::Software, health_key, own_keys_only }),
                Some(_) => Err(format!("{what}: a software HSM has no module")),
            };
        }
        let module = self.module.ok_or_else(|| format!("{what}: module is missing"))?;
        let token = match (self.token_label, self.token_serial) {
            (Some(label), None) => TokenSelector::Label(label),
            (None, Some(serial)) => TokenSelector::Serial(serial),
            _ => return Err(format!("{what}: needs either token_label or token_serial")),
        };
        let profile = match (self.profile, self.profile_file) {
            (None, None) => None,
            (Some(name), None) => {
                Some(Profile::built_in(&name).ok_or_else(|| format!("{what}: there is no profile {name:?}"))?)
            }
            (None, Some(file)) => {
                let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
                Some(Profile::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?)
            }
            (Some(_), Some(_)) => return Err(format!("{what}: either profile or profile_file")),
        };
        let library_parameters = self.library_parameters.map(CString::new).transpose();
        let library_parameters =
            library_parameters.map_err(|_| format!("{what}: library_parameters has a zero byte"))?;
        let secs = |name: &str, value, default, max| within(&format!("{what} {name}"), value, default, 1, max);
        let config = Pkcs11Config {
            name: self.name.clone(),
            module,
            token,
            environment: self.environment.into_iter().collect(),
            library_parameters,
            profile,
            sessions: within(&format!("{what} sessions"), self.sessions, 8, 1, 512)?,
            queue_max: within(&format!("{what} queue"), self.queue, 64, 0, 4096)?,
            relist_interval: Duration::from_secs(secs("relist_secs", self.relist_secs, 30, 86_400)?),
            hang_timeout: Duration::from_secs(secs("hang_secs", self.hang_secs, 5, 600)?),
        };
        Ok(HsmUser { name: self.name, kind: HsmKind::Pkcs11(Box::new(config)), health_key, own_keys_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid_and_mistakes_are_refused() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!((config.limits.in_flight_max, config.hsms.len()), (512, 1));
        for (from, to, why) in [
            ("sessions = 8", "sesions = 8", "unknown field"),
            ("sessions = 8", "sessions = 0", "must be"),
            ("token_label = \"east\"", "# token_label", "token_label"),
            ("threshold = 2", "threshold = 3", "threshold"),
            ("# profile = \"luna\"", "profile = \"moon\"", "moon"),
            ("kind = \"software-insecure\"", "kind = \"tpm\"", "software-insecure"),
            ("# ekm_address", "ekm_address", "belong together"),
            ("hsm_millis = 150", "hsm_millis = 300", "must be"),
            ("process = \"a\"", "process = \"../a\"", "process"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = Config::parse(&EXAMPLE.replacen(from, to, 1)).err().unwrap();
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}

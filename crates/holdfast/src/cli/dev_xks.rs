//! The external key store proxy of `holdfast dev`: a software HSM, one key, one store, one operator whose word is enough.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_crypto::PersonalKey;
use holdfast_xks_proxy::{
    Limits, XksProxy,
    quorum::{Act, BlindedSecret, KeyUse, Request, Status},
    state::{OperatorRecord, OperatorsRecord},
};
use metrics_exporter_prometheus::PrometheusHandle;

use super::{
    dev_kms::DevProxy,
    env_file::{beside, path_text},
    operator_key,
    quorum::new_credential,
};
use crate::{
    ambient::OsAmbient,
    config::Audit,
    fault::Fault,
    founding::MayFound,
    server::{ConnectionLimits, tls::TlsIdentity},
    xks::{
        self, Running, Sockets,
        config::{Config, HsmKind, HsmUser, Tls},
    },
};

const OPERATOR: &str = "dev";
const HSM: &str = "soft";
const KEY: &str = "dev";
const STORE: &str = "dev";
const PREFIX: &str = "/dev";

/// What starting the proxy takes.
pub(super) struct DevXks<'a> {
    pub data_dir: &'a Path,
    pub silicon: &'a Path,
    pub port: u16,
    pub region: &'a str,
    pub identity: Arc<TlsIdentity>,
    pub metrics: PrometheusHandle,
}

impl DevXks<'_> {
    fn state_dir(&self) -> PathBuf {
        self.data_dir.join("xks")
    }

    /// The operator's key; made on first start, beside the state: it is a person's, and a copy of the state alone must hold no secret.
    fn operator_key(&self) -> Result<(PathBuf, PersonalKey), Fault> {
        let path = beside(self.data_dir, "operator.key");
        if !path.exists() {
            operator_key::generate(&path)?;
        }
        let key = operator_key::load(&path)?;
        Ok((path, key))
    }

    fn config(&self, operator: &PersonalKey) -> Result<Config, Fault> {
        let public_key = STANDARD.encode(operator.spki().map_err(Fault::new)?);
        let operator = OperatorRecord { name: OPERATOR.into(), public_key };
        Ok(Config {
            audit_readers: Vec::new(),
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port),
            ekm_address: None,
            metrics_address: None,
            host_names: vec!["localhost".into()],
            tls: Tls::default(),
            state_dir: self.state_dir(),
            process: "dev".into(),
            silicon_root: self.silicon.into(),
            quorum: Some(OperatorsRecord { threshold: 1, operators: vec![operator] }),
            hsms: vec![HsmUser { name: HSM.into(), kind: HsmKind::Software, health_key: None, own_keys_only: false }],
            audit: Audit::default(),
            connections: ConnectionLimits::default(),
            limits: Limits::default(),
            log_json: false,
        })
    }

    /// Starts the proxy and makes its key, its store and a fresh credential. Gives its variables, and how it is reached.
    pub(super) async fn start(self) -> Result<(Running, Vec<(String, String)>, DevProxy), Fault> {
        let (key_file, key) = self.operator_key()?;
        let config = self.config(&key)?;
        let state = xks::open_state(&config, MayFound::Untold).await?;
        let sockets = Sockets::bind(&config).await?;
        let identity = Some(Arc::clone(&self.identity));
        let running = state.run(&config, sockets, self.metrics.clone(), identity).await?;
        let proxy = &running.proxy;
        if proxy.governed().policy.stores().is_empty() {
            let usage = KeyUse::Data;
            change(proxy, &key, Act::KeyCreate { key: KEY.into(), hsm: HSM.into(), label: KEY.into(), usage }, None)
                .await?;
            let text = format!(
                "version = 1\n\n[[stores]]\nname = {STORE:?}\npath_prefix = {PREFIX:?}\nregion = {:?}\n\
                 mode = \"trust-provider\"\nrequests_per_sec = 100000\nkeys = [{KEY:?}]\n\n[[keys]]\nid = {KEY:?}\n\
                 hsms = [{HSM:?}]\nlabel = {KEY:?}\n",
                self.region
            );
            change(proxy, &key, Act::Policy { text }, None).await?;
        }
        // The secret lives as long as this process: the old one goes.
        for old in proxy.governed().credentials_of(STORE) {
            let access_key_id = old.access_key_id.clone();
            change(proxy, &key, Act::CredentialRemove { store: STORE.into(), access_key_id }, None).await?;
        }
        let (access_key_id, secret) = new_credential();
        let secret_text = String::from_utf8_lossy(secret.expose()).into_owned();
        let secret = BlindedSecret::new(secret, &OsAmbient);
        let commitment = secret.commitment();
        let add = Act::CredentialAdd { store: STORE.into(), access_key_id: access_key_id.clone(), commitment };
        change(proxy, &key, add, Some(secret)).await?;
        let reached = DevProxy {
            endpoint: format!("https://localhost:{}", self.port),
            path: format!("{PREFIX}/kms/xks/v1"),
            access_key_id: access_key_id.clone(),
            secret: secret_text.clone(),
            key: KEY.to_owned(),
        };
        let pairs = [
            ("HOLDFAST_XKS_URL", format!("https://localhost:{}", self.port)),
            ("HOLDFAST_XKS_PREFIX", PREFIX.to_owned()),
            ("HOLDFAST_XKS_REGION", self.region.to_owned()),
            ("HOLDFAST_XKS_ACCESS_KEY_ID", access_key_id),
            ("HOLDFAST_XKS_SECRET_ACCESS_KEY", secret_text),
            ("HOLDFAST_XKS_KEY_ID", KEY.to_owned()),
            ("HOLDFAST_XKS_STATE_DIR", path_text(&self.state_dir())?),
            ("HOLDFAST_XKS_OPERATOR", OPERATOR.to_owned()),
            ("HOLDFAST_XKS_OPERATOR_KEY", path_text(&key_file)?),
        ];
        let variables = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok((running, variables, reached))
    }
}

/// Asks for a change as the one operator, which carries it out.
async fn change(proxy: &XksProxy, key: &PersonalKey, change: Act, secret: Option<BlindedSecret>) -> Result<(), Fault> {
    let request = Request::new(&proxy.instance_id(), OPERATOR, change, 60, &OsAmbient);
    let (text, signature) = request.sign(key).map_err(Fault::new)?;
    let done = proxy.propose(text, &signature, secret).await.map_err(Fault::new)?;
    match done.status {
        Status::Executed => Ok(()),
        _ => Err(Fault::new(format!("{}: {}", done.request().change.summary(), done.outcome.unwrap_or_default()))),
    }
}

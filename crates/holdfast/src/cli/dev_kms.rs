//! The key management service of `holdfast dev`: one account, one hosted key, one key in the external key store beside it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use holdfast_core::{Ambient, KekError};
use holdfast_crypto::SecretBytes;
use holdfast_kms::{
    CredentialConfig, Directory, IdentityConfig, KmsConfig, KmsCredential, KmsKekClient, Limits, ProxyAccess,
    StoreLimits,
};
use holdfast_wire::{Exchange, hex::hex};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use super::env_file::path_text;
use crate::{
    ambient::OsAmbient,
    config::{Audit, default_threads},
    fault::Fault,
    founding::MayFound,
    instance,
    kms::{self, KmsSetup, Running, config::PROXY_IDLE_MAX},
    server::{
        ConnectionLimits,
        client::{HttpsClient, PooledClient},
        tls::TlsIdentity,
    },
};

const ACCOUNT: &str = "111122223333";
const STORE: &str = "dev";
/// How long a store may take to connect.
const CONNECT_TRIES: u32 = 200;

/// The access key of the person who tries things: of S3, and of the account's root here.
#[derive(Clone)]
pub(super) struct DevAccessKey {
    pub id: String,
    pub secret: String,
}

impl DevAccessKey {
    /// A fresh one, which lives as long as this process.
    pub(super) fn new() -> Self {
        let mut random = [0; 36];
        OsAmbient.fill(&mut random);
        let hex = hex(&random);
        Self { id: format!("HFDEV{}", &hex[..15].to_ascii_uppercase()), secret: hex[16..].to_owned() }
    }
}

/// How the external key store is reached.
pub(super) struct DevProxy {
    pub endpoint: String,
    pub path: String,
    pub access_key_id: String,
    pub secret: String,
    pub key: String,
}

/// What starting the service takes.
pub(super) struct DevKms<'a> {
    pub data_dir: &'a Path,
    pub silicon: &'a Path,
    pub port: u16,
    pub region: &'a str,
    pub identity: Arc<TlsIdentity>,
    pub root: &'a DevAccessKey,
    pub proxy: DevProxy,
    pub store_budget: Duration,
    pub metrics: PrometheusHandle,
}

/// What is started, and what others need of it.
pub(super) struct Started {
    pub running: Running,
    pub variables: Vec<(String, String)>,
    /// For storage: its KEKs here, asked for under an identity of its own.
    pub keks: KmsKekClient,
}

impl DevKms<'_> {
    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn exchange(&self) -> Result<Arc<dyn Exchange>, Fault> {
        let client = HttpsClient::trusting(self.identity.authority_pem().as_bytes())?;
        Ok(Arc::new(PooledClient::new(Vec::new(), client).keeping(PROXY_IDLE_MAX)))
    }

    fn client(&self, exchange: &Arc<dyn Exchange>, key: &DevAccessKey) -> KmsKekClient {
        let secret = SecretBytes::copy_of(key.secret.as_bytes());
        let credential = KmsCredential { access_key_id: key.id.clone(), secret };
        KmsKekClient::new(Arc::clone(exchange), &self.url(), self.region, credential, Arc::new(OsAmbient))
    }

    fn directory(&self, storage: &DevAccessKey) -> Result<Directory, Fault> {
        let arn = |name: &str| format!("arn:aws:iam::{ACCOUNT}:{name}");
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Sid": "StorageKeks",
                "Effect": "Allow",
                "Action": ["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"],
                "Resource": "*",
            }],
        });
        let root = IdentityConfig { arn: arn("root"), service: None, tags: BTreeMap::new(), policies: Vec::new() };
        let role = IdentityConfig {
            arn: arn("role/storage"),
            service: Some("s3".into()),
            tags: BTreeMap::new(),
            policies: vec![("storage".into(), policy.to_string())],
        };
        let credential = |key: &DevAccessKey, name: &str| CredentialConfig {
            access_key_id: key.id.clone(),
            secret: SecretBytes::copy_of(key.secret.as_bytes()),
            principal: arn(name),
        };
        let credentials = vec![credential(self.root, "root"), credential(storage, "role/storage")];
        Directory::new(vec![root, role], credentials).map_err(Fault::new)
    }

    /// Starts the service and makes its keys.
    pub(super) async fn start(self) -> Result<Started, Fault> {
        let data_dir = self.data_dir.join("kms");
        let opened = kms::open(&data_dir, self.silicon, MayFound::Untold)?;
        let exchange = self.exchange()?;
        let storage = DevAccessKey::new();
        let stores = StoreLimits { budget: self.store_budget, requests_per_sec: 1_000_000, ..StoreLimits::default() };
        let role = KmsConfig {
            regions: vec![self.region.to_owned(), "us-west-2".to_owned()],
            directory: self.directory(&storage)?,
            proxies: vec![ProxyAccess {
                endpoint: self.proxy.endpoint.clone(),
                exchange: Arc::clone(&exchange),
                caller_proof: false,
            }],
            clusters: Vec::new(),
            evidence: None,
            limits: Limits { stores, ..Limits::default() },
        };
        let setup = KmsSetup {
            audit_readers: vec![format!("arn:aws:iam::{ACCOUNT}:root")],
            role,
            audit: Audit::default(),
            connections: ConnectionLimits::default(),
            threads: default_threads(),
            socket: instance::listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port)).await?,
            metrics_socket: None,
            host_names: Vec::new(),
            certificate_file: None,
            identity: Some(Arc::clone(&self.identity)),
            metrics: self.metrics.clone(),
        };
        let running = kms::run(opened, setup).await?;
        let root = self.client(&exchange, self.root);
        let hosted = ensure_key(&root, "alias/hosted", json!({"Description": "made by holdfast dev"})).await?;
        let store = self.ensure_store(&root).await?;
        let external = json!({
            "Origin": "EXTERNAL_KEY_STORE",
            "CustomKeyStoreId": store,
            "XksKeyId": self.proxy.key,
            "Description": "made by holdfast dev",
        });
        let external = ensure_key(&root, "alias/external", external).await?;
        let pairs = [
            ("HOLDFAST_KMS_URL", self.url()),
            ("HOLDFAST_KMS_HOSTED_KEY", hosted),
            ("HOLDFAST_KMS_EXTERNAL_KEY", external),
            ("HOLDFAST_KMS_STORE", store),
            ("HOLDFAST_KMS_DIR", path_text(&data_dir)?),
        ];
        let variables = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let keks = self.client(&exchange, &storage);
        Ok(Started { running, variables, keks })
    }

    /// The external key store, connected. One of an earlier run gets the proxy's new credential.
    async fn ensure_store(&self, root: &KmsKekClient) -> Result<String, Fault> {
        let DevProxy { endpoint, path, access_key_id, secret, .. } = &self.proxy;
        let credential = json!({"AccessKeyId": access_key_id, "RawSecretAccessKey": secret});
        let known = call(root, "DescribeCustomKeyStores", json!({})).await?;
        let known = known["CustomKeyStores"][0]["CustomKeyStoreId"].as_str().map(str::to_owned);
        let id = match known {
            Some(id) => {
                call(root, "DisconnectCustomKeyStore", json!({"CustomKeyStoreId": id})).await?;
                let update = json!({
                    "CustomKeyStoreId": id,
                    "XksProxyUriEndpoint": endpoint,
                    "XksProxyUriPath": path,
                    "XksProxyAuthenticationCredential": credential,
                });
                call(root, "UpdateCustomKeyStore", update).await?;
                id
            }
            None => {
                let create = json!({
                    "CustomKeyStoreName": STORE,
                    "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
                    "XksProxyConnectivity": "PUBLIC_ENDPOINT",
                    "XksProxyUriEndpoint": endpoint,
                    "XksProxyUriPath": path,
                    "XksProxyAuthenticationCredential": credential,
                });
                let made = call(root, "CreateCustomKeyStore", create).await?;
                made["CustomKeyStoreId"].as_str().unwrap_or_default().to_owned()
            }
        };
        call(root, "ConnectCustomKeyStore", json!({"CustomKeyStoreId": id})).await?;
        for _ in 0..CONNECT_TRIES {
            let now = call(root, "DescribeCustomKeyStores", json!({"CustomKeyStoreId": id})).await?;
            match now["CustomKeyStores"][0]["ConnectionState"].as_str() {
                Some("CONNECTED") => return Ok(id),
                Some("CONNECTING") => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => return Err(Fault::new(format!("the external key store did not connect: {now}"))),
            }
        }
        Err(Fault::new("the external key store did not connect in time"))
    }
}

async fn call(client: &KmsKekClient, operation: &str, body: Value) -> Result<Value, Fault> {
    let answer = client.call(operation, body.to_string().into_bytes(), operation).await;
    let answer = answer.map_err(|error| Fault::new(format!("{operation}: {error}")))?;
    serde_json::from_slice(&answer).map_err(Fault::new)
}

/// ARN of the key behind an alias; made with it if there is none.
async fn ensure_key(client: &KmsKekClient, alias: &str, wanted: Value) -> Result<String, Fault> {
    let described = json!({"KeyId": alias}).to_string().into_bytes();
    let metadata = match client.call("DescribeKey", described, alias).await {
        Ok(answer) => serde_json::from_slice::<Value>(&answer).map_err(Fault::new)?,
        Err(KekError::NotFound(_)) => {
            let made = call(client, "CreateKey", wanted).await?;
            let target = &made["KeyMetadata"]["KeyId"];
            call(client, "CreateAlias", json!({"AliasName": alias, "TargetKeyId": target})).await?;
            made
        }
        Err(error) => return Err(Fault::new(format!("{alias}: {error}"))),
    };
    Ok(metadata["KeyMetadata"]["Arn"].as_str().unwrap_or_default().to_owned())
}

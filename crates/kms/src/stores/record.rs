//! Stored form of a custom key store (`docs/formats/kms-records.md`).

use std::sync::Arc;

use holdfast_core::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Connection, KeyStore, ProxySecret, StoreKind, XksConfig, fault::CONNECTION_ERROR_CODES};
use crate::wire::SecretOut;

const FORMAT: u8 = 1;

/// A store in JSON. The proxy's credential is in it: the record is encrypted.
#[derive(Serialize)]
pub(crate) struct StoredStoreOut {
    v: u8,
    id: String,
    name: String,
    account: String,
    region: String,
    created: i64,
    connection: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xks: Option<StoredXksOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

#[derive(Serialize)]
struct StoredXksOut {
    endpoint: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vpc_service: Option<String>,
    access_key_id: String,
    secret: SecretOut,
}

#[derive(Deserialize)]
pub(crate) struct StoredStore {
    v: u8,
    id: String,
    name: String,
    account: String,
    region: String,
    created: i64,
    connection: String,
    error: Option<String>,
    xks: Option<StoredXks>,
    cluster: Option<String>,
}

#[derive(Deserialize)]
struct StoredXks {
    endpoint: String,
    path: String,
    vpc_service: Option<String>,
    access_key_id: String,
    secret: crate::wire::BlobMember,
}

impl StoredStore {
    pub(crate) fn of(store: &KeyStore) -> StoredStoreOut {
        let (xks, cluster) = match &store.kind {
            StoreKind::Hsm { cluster } => (None, Some(cluster.clone())),
            StoreKind::Xks(config) => {
                let xks = StoredXksOut {
                    endpoint: config.endpoint.clone(),
                    path: config.path.clone(),
                    vpc_service: config.vpc_service.clone(),
                    access_key_id: config.access_key_id.clone(),
                    secret: SecretOut::new(&config.secret.raw),
                };
                (Some(xks), None)
            }
        };
        let error = match store.connection {
            Connection::Failed(code) => Some(code),
            Connection::Connected | Connection::Connecting | Connection::Disconnected => None,
        };
        StoredStoreOut {
            v: FORMAT,
            id: store.id.clone(),
            name: store.name.clone(),
            account: store.account.to_string(),
            region: store.region.to_string(),
            created: store.created.unix_millis(),
            connection: store.connection.name(),
            error,
            xks,
            cluster,
        }
    }

    /// `None` if it cannot be read.
    pub(crate) fn into_store(self, record_version: u64) -> Option<KeyStore> {
        let kind = match (self.xks, self.cluster) {
            (Some(xks), None) => StoreKind::Xks(XksConfig {
                endpoint: xks.endpoint,
                path: xks.path,
                vpc_service: xks.vpc_service,
                access_key_id: xks.access_key_id,
                secret: Arc::new(ProxySecret::new(xks.secret.bytes())),
            }),
            (None, Some(cluster)) => StoreKind::Hsm { cluster },
            _ => return None,
        };
        let connection = match (self.connection.as_str(), self.error) {
            ("CONNECTED", None) => Connection::Connected,
            ("DISCONNECTED", None) => Connection::Disconnected,
            ("FAILED", Some(code)) => {
                Connection::Failed(CONNECTION_ERROR_CODES.into_iter().find(|known| *known == code)?)
            }
            _ => return None,
        };
        (self.v == FORMAT).then_some(KeyStore {
            id: self.id,
            name: self.name,
            account: self.account.into(),
            region: self.region.into(),
            created: Timestamp::from_unix_millis(self.created),
            kind,
            connection,
            record_version,
            link: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by format 1; must be readable for ever.
    const GOLDEN: &str = r#"{"v":1,"id":"cks-0123456789abcdef0","name":"n","account":"111122223333","region":"us-east-1","created":1700000000123,"connection":"FAILED","error":"XKS_PROXY_TIMED_OUT","xks":{"endpoint":"https://proxy.example","path":"/a/kms/xks/v1","access_key_id":"ABC","secret":"c2VjcmV0"}}"#;

    #[test]
    fn golden_record_reads_and_writes_alike() {
        let store = serde_json::from_str::<StoredStore>(GOLDEN).unwrap().into_store(3).unwrap();
        assert_eq!((store.record_version, store.connection), (3, Connection::Failed("XKS_PROXY_TIMED_OUT")));
        assert_eq!(serde_json::to_string(&StoredStore::of(&store)).unwrap(), GOLDEN);
        for (from, to) in [(r#""v":1"#, r#""v":2"#), ("FAILED", "LOST"), ("TIMED_OUT", "TIRED_OUT")] {
            let stored = serde_json::from_str::<StoredStore>(&GOLDEN.replace(from, to)).unwrap();
            assert!(stored.into_store(1).is_none(), "{to}");
        }
    }
}

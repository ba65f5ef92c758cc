//! Custom key stores: making, changing, connecting, disconnecting.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{Ambient, Decided, Itself, Spent};
use holdfast_service::Trace;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, limit, marker::Listing, nothing};
use crate::{
    action::KmsAction,
    call::{Call, Told, With},
    code::Code,
    error::ApiError,
    stores::{About, Connection, KeyStore, KeyStores, ProxySecret, StoreKind, XksConfig, connection_error_code},
    wire::{self, Violations, secs},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credential {
    access_key_id: Option<String>,
    raw_secret_access_key: Option<SecretText>,
}

/// A secret in a request; erased with it.
#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(String);

impl Drop for SecretText {
    fn drop(&mut self) {
        drop(holdfast_crypto::SecretBytes::take(std::mem::take(&mut self.0).into_bytes()));
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    custom_key_store_id: Option<String>,
    custom_key_store_name: Option<String>,
    new_custom_key_store_name: Option<String>,
    custom_key_store_type: Option<String>,
    cloud_hsm_cluster_id: Option<String>,
    xks_proxy_uri_endpoint: Option<String>,
    xks_proxy_uri_path: Option<String>,
    xks_proxy_vpc_endpoint_service_name: Option<String>,
    xks_proxy_authentication_credential: Option<Credential>,
    xks_proxy_connectivity: Option<String>,
    limit: Option<i64>,
    marker: Option<String>,
}

pub(super) fn not_found(id: &str) -> ApiError {
    ApiError::new(Code::CustomKeyStoreNotFound, format!("There is no custom key store {id}"))
}

fn invalid_state(store: &KeyStore, wanted: &str) -> ApiError {
    let message = format!("The custom key store is {}; it must be {wanted}", store.connection.name());
    ApiError::new(Code::CustomKeyStoreInvalidState, message)
}

/// The store that a request names, of the caller's account and region.
fn named(call: &mut Call<'_>, id: Option<&str>) -> Result<Arc<KeyStore>, ApiError> {
    let mut violations = Violations::default();
    let id = violations.text(id, "customKeyStoreId", 1, 64);
    violations.finish()?;
    call.told.context.push(("custom-key-store", holdfast_wire::printable(id, 64)));
    let store = call.kms.stores.get(id);
    let store = store.filter(|store| store.account == *call.account() && store.region == *call.region);
    store.ok_or_else(|| not_found(id))
}

/// The members that say how a proxy is reached.
fn check_proxy(request: &Request) -> Result<(), ApiError> {
    let mut violations = Violations::default();
    if let Some(endpoint) = &request.xks_proxy_uri_endpoint {
        violations.length(endpoint, "xksProxyUriEndpoint", 10, 128);
        // The service itself knows port 443 alone; a proxy of one's own may listen elsewhere.
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
        let holds = endpoint.strip_prefix("https://").is_some_and(|host| !host.is_empty() && host.bytes().all(valid));
        violations.pattern(endpoint, "xksProxyUriEndpoint", holds, "^https://[a-zA-Z0-9.-]+(:[0-9]+)?$");
    }
    if let Some(path) = &request.xks_proxy_uri_path {
        violations.length(path, "xksProxyUriPath", 10, 128);
        let holds = path.rsplit_once("/kms/xks/v").is_some_and(|(prefix, version)| {
            let digits = (1..=2).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_digit());
            let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-');
            digits && prefix.bytes().all(valid) && (prefix.is_empty() || prefix.starts_with('/'))
        });
        violations.pattern(path, "xksProxyUriPath", holds, "^(/[a-zA-Z0-9\\/_-]+)?/kms/xks/v\\d{1,2}$");
    }
    let connectivities = ["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"];
    violations.one_of(request.xks_proxy_connectivity.as_deref(), "xksProxyConnectivity", &connectivities);
    violations.finish()
}

fn credential(credential: Option<&Credential>) -> Result<Option<(String, Arc<ProxySecret>)>, ApiError> {
    let Some(credential) = credential else { return Ok(None) };
    let mut violations = Violations::default();
    let member = |name: &str| format!("xksProxyAuthenticationCredential.{name}");
    let id_member = member("accessKeyId");
    let id = violations.text(credential.access_key_id.as_deref(), &id_member, 20, 30);
    let base32 = |b: u8| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b);
    violations.pattern(id, &id_member, id.bytes().all(base32), "^[A-Z2-7]+$");
    let secret = credential.raw_secret_access_key.as_ref().map(|secret| secret.0.as_bytes());
    let secret_member = member("rawSecretAccessKey");
    let secret = violations.blob(secret, &secret_member, 43, 64);
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'+' | b'=');
    violations.secret_pattern(&secret_member, secret.iter().all(base64), "^[a-zA-Z0-9\\/+=]+$");
    violations.finish()?;
    Ok(Some((id.to_owned(), Arc::new(ProxySecret::new(secret)))))
}

fn about<'a>(call: &'a Call<'_>) -> About<'a> {
    About {
        principal_arn: &call.identity.arn,
        key_arn: None,
        operation: call.operation.name(),
        request_id: call.request_id,
        via_service: None,
        proof: None,
    }
}

/// Looks whether the other side of a store that is to be is there and takes us.
async fn probe(call: &Call<'_>, store: &KeyStore) -> Result<(), ApiError> {
    let Some(link) = &store.link else {
        let why = "the service's configuration does not let it connect there";
        return Err(crate::LinkFault::Unreachable(why.into()).for_store(&store.id));
    };
    link.health(about(call)).await.map_err(|fault| fault.for_store(&store.id))
}

/// Names, and endpoint with path, are unique in an account and region.
fn check_unique(call: &Call<'_>, store: &KeyStore) -> Result<(), ApiError> {
    for other in call.kms.stores.of(&store.account, &store.region) {
        if other.id == store.id {
            continue;
        }
        if other.name == store.name {
            return Err(ApiError::new(Code::CustomKeyStoreNameInUse, format!("{} is taken", store.name)));
        }
        match (&other.kind, &store.kind) {
            (StoreKind::Xks(other), StoreKind::Xks(own))
                if (&other.endpoint, &other.path) == (&own.endpoint, &own.path) =>
            {
                return Err(ApiError::new(Code::XksProxyUriInUse, "Another store leads to this endpoint and path"));
            }
            (StoreKind::Hsm { cluster: other }, StoreKind::Hsm { cluster: own }) if other == own => {
                return Err(ApiError::new(Code::CloudHsmClusterInUse, "Another store is this cluster"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A cluster must be one of the configuration's.
fn check_cluster(store: &KeyStore) -> Result<(), ApiError> {
    match &store.kind {
        StoreKind::Hsm { cluster } if store.link.is_none() => {
            let message = format!("The service's configuration knows no cluster {cluster}");
            Err(ApiError::new(Code::CloudHsmClusterNotFound, message))
        }
        StoreKind::Hsm { .. } | StoreKind::Xks(_) => Ok(()),
    }
}

/// Whether there is room for a new store.
fn check_place(call: &Call<'_>, store: &KeyStore) -> Result<(), ApiError> {
    check_unique(call, store)?;
    let stores = &call.kms.stores;
    if stores.of(&store.account, &store.region).len() < stores.limits().stores_max {
        return Ok(());
    }
    Err(ApiError::new(Code::LimitExceeded, "There are as many custom key stores as there may be"))
}

pub(super) async fn create(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let mut violations = Violations::default();
    let name = violations.text(request.custom_key_store_name.as_deref(), "customKeyStoreName", 1, 256).to_owned();
    let types = ["AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"];
    violations.one_of(request.custom_key_store_type.as_deref(), "customKeyStoreType", &types);
    violations.finish()?;
    check_proxy(&request)?;
    let credential = credential(request.xks_proxy_authentication_credential.as_ref())?;
    let spent = allowed(call, KmsAction::CreateCustomKeyStore)?;
    let kind = if request.custom_key_store_type.as_deref() == Some("EXTERNAL_KEY_STORE") {
        let (Some(endpoint), Some(path), Some((access_key_id, secret)), Some(connectivity)) = (
            request.xks_proxy_uri_endpoint.clone(),
            request.xks_proxy_uri_path.clone(),
            credential,
            request.xks_proxy_connectivity.as_deref(),
        ) else {
            return Err(ApiError::validation(
                "An external key store needs XksProxyUriEndpoint, XksProxyUriPath, XksProxyAuthenticationCredential and \
                 XksProxyConnectivity",
            ));
        };
        let vpc_service = request.xks_proxy_vpc_endpoint_service_name.clone();
        if vpc_service.is_some() != (connectivity == "VPC_ENDPOINT_SERVICE") {
            return Err(ApiError::validation("XksProxyVpcEndpointServiceName goes with VPC_ENDPOINT_SERVICE"));
        }
        StoreKind::Xks(XksConfig { endpoint, path, vpc_service, access_key_id, secret })
    } else {
        let cluster = request.cloud_hsm_cluster_id.clone();
        StoreKind::Hsm { cluster: cluster.ok_or_else(|| ApiError::validation("CloudHsmClusterId is needed"))? }
    };
    let id = format!("cks-{}", &holdfast_wire::hex::hex(&call.kms.ambient.random::<9>())[..17]);
    let stores = &call.kms.stores;
    let store = KeyStore {
        id: id.clone(),
        name,
        account: Arc::clone(call.account()),
        region: Arc::clone(call.region),
        created: call.now,
        link: stores.link(&kind, call.region),
        kind,
        connection: Connection::Disconnected,
        record_version: 0,
    };
    call.told.context.push(("custom-key-store", id.clone()));
    check_place(call, &store)?;
    check_cluster(&store)?;
    // Through a VPC it is looked at when the store is connected.
    if matches!(&store.kind, StoreKind::Xks(config) if config.vpc_service.is_none()) {
        probe(call, &store).await?;
    }
    // Not before the other side has answered: a disconnection waits for nobody's network.
    let _changing = stores.changing.lock().await;
    check_place(call, &store)?;
    let committed = stores.put(&store, call.decided(spent)?).await?;
    super::changed(committed, wire::answer(&json!({"CustomKeyStoreId": id})))
}

/// A store as a request wants it, if its state lets it change so.
fn changed(
    call: &Call<'_>,
    request: &Request,
    credential: Option<&(String, Arc<ProxySecret>)>,
    old: &KeyStore,
) -> Result<KeyStore, ApiError> {
    let mut store = KeyStore::clone(old);
    let assign = |slot: &mut String, value: &Option<String>| {
        if let Some(value) = value {
            slot.clone_from(value);
        }
    };
    assign(&mut store.name, &request.new_custom_key_store_name);
    let endpoint_changes = request.xks_proxy_uri_endpoint.is_some() || request.xks_proxy_connectivity.is_some();
    match &mut store.kind {
        StoreKind::Xks(config) => {
            // What proves itself by a look at the other side may change while the store is in use.
            let may = match old.connection {
                Connection::Disconnected => true,
                Connection::Connected => !endpoint_changes,
                Connection::Connecting | Connection::Failed(_) => false,
            };
            if !may {
                return Err(invalid_state(old, "DISCONNECTED"));
            }
            assign(&mut config.endpoint, &request.xks_proxy_uri_endpoint);
            assign(&mut config.path, &request.xks_proxy_uri_path);
            if request.xks_proxy_connectivity.is_some() {
                config.vpc_service.clone_from(&request.xks_proxy_vpc_endpoint_service_name);
            }
            if let Some((access_key_id, secret)) = credential {
                config.access_key_id.clone_from(access_key_id);
                config.secret = Arc::clone(secret);
            }
        }
        StoreKind::Hsm { cluster } => {
            if request.cloud_hsm_cluster_id.is_some() && old.connection != Connection::Disconnected {
                return Err(invalid_state(old, "DISCONNECTED"));
            }
            assign(cluster, &request.cloud_hsm_cluster_id);
        }
    }
    store.link = call.kms.stores.link(&store.kind, &store.region);
    check_unique(call, &store)?;
    if request.cloud_hsm_cluster_id.is_some() {
        check_cluster(&store)?;
    }
    Ok(store)
}

/// How the other side of a store is to be asked before it may change so; `None`: not at all.
fn to_be_asked(store: &KeyStore) -> Option<&XksConfig> {
    let StoreKind::Xks(config) = &store.kind else { return None };
    (config.vpc_service.is_none() || store.connection == Connection::Connected).then_some(config)
}

pub(super) async fn update(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    check_proxy(&request)?;
    let mut violations = Violations::default();
    violations.length(request.new_custom_key_store_name.as_deref().unwrap_or("-"), "newCustomKeyStoreName", 1, 256);
    violations.finish()?;
    let credential = credential(request.xks_proxy_authentication_credential.as_ref())?;
    let spent = allowed(call, KmsAction::UpdateCustomKeyStore)?;
    let stores = &call.kms.stores;
    let old = named(call, request.custom_key_store_id.as_deref())?;
    let asked = changed(call, &request, credential.as_ref(), &old)?;
    if to_be_asked(&asked).is_some() {
        probe(call, &asked).await?;
    }
    // A disconnection waits for nobody's network; so what is changed is the store as it is now.
    let _changing = stores.changing.lock().await;
    let now = named(call, request.custom_key_store_id.as_deref())?;
    let store = changed(call, &request, credential.as_ref(), &now)?;
    if let Some(config) = to_be_asked(&store)
        && !to_be_asked(&asked).is_some_and(|asked| asked.is_same(config))
    {
        return Err(ApiError::stale("the custom key store was changed while the other side was asked"));
    }
    let committed = stores.put(&store, call.decided(spent)?).await?;
    super::changed(committed, nothing())
}

fn allowed(call: &mut Call<'_>, action: KmsAction) -> Result<Spent, ApiError> {
    call.allowed_apart(action, "*", With::default())
}

pub(super) async fn delete(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let spent = allowed(call, KmsAction::DeleteCustomKeyStore)?;
    let stores = &call.kms.stores;
    let _changing = stores.changing.lock().await;
    let store = named(call, request.custom_key_store_id.as_deref())?;
    if store.connection != Connection::Disconnected {
        return Err(invalid_state(&store, "DISCONNECTED"));
    }
    // Those pending deletion count: they may be wanted back.
    let keys = call.kms.keys.find(|key| key.reference.as_ref().is_some_and(|reference| reference.store == store.id));
    if !keys.is_empty() {
        let message = format!("The custom key store holds {} keys", keys.len());
        return Err(ApiError::new(Code::CustomKeyStoreHasKeys, message));
    }
    let committed = stores.remove(&store, call.decided(spent)?).await?;
    super::changed(committed, nothing())
}

fn entry(store: &KeyStore) -> Value {
    let mut out = json!({
        "CustomKeyStoreId": store.id,
        "CustomKeyStoreName": store.name,
        "ConnectionState": store.connection.name(),
        "CreationDate": secs(store.created),
    });
    if let Connection::Failed(code) = store.connection {
        out["ConnectionErrorCode"] = code.into();
    }
    match &store.kind {
        StoreKind::Hsm { cluster } => {
            out["CustomKeyStoreType"] = "AWS_CLOUDHSM".into();
            out["CloudHsmClusterId"] = cluster.as_str().into();
        }
        StoreKind::Xks(config) => {
            out["CustomKeyStoreType"] = "EXTERNAL_KEY_STORE".into();
            let connectivity = if config.vpc_service.is_some() { "VPC_ENDPOINT_SERVICE" } else { "PUBLIC_ENDPOINT" };
            let mut proxy = json!({
                "Connectivity": connectivity,
                "AccessKeyId": config.access_key_id,
                "UriEndpoint": config.endpoint,
                "UriPath": config.path,
            });
            if let Some(service) = &config.vpc_service {
                proxy["VpcEndpointServiceName"] = service.as_str().into();
            }
            out["XksProxyConfiguration"] = proxy;
        }
    }
    out
}

pub(super) fn describe(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let count = limit(request.limit, 100, 1000)?;
    if request.custom_key_store_id.is_some() && request.custom_key_store_name.is_some() {
        return Err(ApiError::validation("Give CustomKeyStoreId or CustomKeyStoreName, not both"));
    }
    allowed(call, KmsAction::DescribeCustomKeyStores)?;
    let mut found = call.kms.stores.of(call.account(), call.region);
    if let Some(id) = &request.custom_key_store_id {
        found.retain(|store| store.id == *id);
        if found.is_empty() {
            return Err(not_found(id));
        }
    }
    if let Some(name) = &request.custom_key_store_name {
        found.retain(|store| store.name == *name);
        if found.is_empty() {
            return Err(not_found(name));
        }
    }
    let text = |member: &Option<String>| member.clone().unwrap_or_default();
    let chosen = [text(&request.custom_key_store_id), text(&request.custom_key_store_name)];
    let listing = Listing::of(call, &[&chosen[0], &chosen[1]]);
    if let Some(after) = listing.after_text(request.marker.as_deref())? {
        found.retain(|store| store.id > after);
    }
    let more = found.len() > count;
    found.truncate(count);
    let list: Vec<_> = found.iter().map(|store| entry(store)).collect();
    let mut answer = json!({"CustomKeyStores": list, "Truncated": more});
    if let Some(last) = found.last().filter(|_| more) {
        answer["NextMarker"] = listing.next(last.id.as_bytes()).into();
    }
    wire::answer(&answer)
}

/// Answers at once; the look at the other side goes on behind.
pub(super) async fn connect(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: Request = call.parse()?;
    let spent = allowed(call, KmsAction::ConnectCustomKeyStore)?;
    let stores = Arc::clone(&call.kms.stores);
    let _changing = stores.changing.lock().await;
    let store = named(call, request.custom_key_store_id.as_deref())?;
    if store.connection != Connection::Disconnected {
        return Err(invalid_state(&store, "DISCONNECTED"));
    }
    let mut connecting = KeyStore::clone(&store);
    connecting.connection = Connection::Connecting;
    if !stores.show(connecting.clone()) {
        return Err(ApiError::stale("the custom key store was changed meanwhile"));
    }
    let (arn, request_id) = (call.identity.arn.clone(), call.request_id.to_owned());
    let ambient = Arc::clone(&call.kms.ambient);
    let asked = Connecting { store: connecting, spent, arn, request_id };
    tokio::spawn(finish_connecting(Arc::clone(&stores), ambient, asked));
    nothing()
}

/// A connection that somebody asked for, and was permitted to.
struct Connecting {
    store: KeyStore,
    spent: Spent,
    /// Who.
    arn: String,
    /// By which request.
    request_id: String,
}

/// The second half of a connection: an act of the service's own, under the id of the request that began it.
async fn finish_connecting(stores: Arc<KeyStores>, ambient: Arc<dyn Ambient>, asked: Connecting) {
    let Connecting { mut store, spent, arn, request_id } = asked;
    let about = About {
        principal_arn: &arn,
        key_arn: None,
        operation: "ConnectCustomKeyStore",
        request_id: &request_id,
        via_service: None,
        proof: None,
    };
    let result = match &store.link {
        Some(link) => link.health(about).await,
        None => Err(crate::LinkFault::Unreachable("the configuration does not let the service connect there".into())),
    };
    store.connection = match &result {
        Ok(()) => Connection::Connected,
        Err(fault) => {
            tracing::warn!(store = store.id, %fault, "a custom key store could not be connected");
            Connection::Failed(connection_error_code(fault))
        }
    };
    let _changing = stores.changing.lock().await;
    // It may have been disconnected meanwhile, and even connected anew: then this attempt is over.
    let still = stores
        .get(&store.id)
        .is_some_and(|now| now.connection == Connection::Connecting && now.record_version == store.record_version);
    if !still {
        return;
    }
    let told = Told {
        rule: Some(store.connection.name().to_owned()),
        context: vec![("custom-key-store", store.id.clone())],
        ..Told::default()
    };
    let trace = Trace::automatic(request_id, "FinishConnectCustomKeyStore", "/");
    let event = Decided::by_itself(trace.event(ambient.now(), &told, StatusCode::OK), Itself::Answered(spent));
    if let Err(error) = stores.put(&store, event).await {
        tracing::error!(store = store.id, error.message, "the state of a custom key store could not be kept");
        store.connection = Connection::Disconnected;
        if !stores.show(store) {
            tracing::warn!("the custom key store is as its newest record says");
        }
    }
}

/// In force when it returns, and kept over restarts.
pub(super) async fn disconnect(call: &mut Call<'_>) -> Answer {
    let request: Request = call.parse()?;
    let spent = allowed(call, KmsAction::DisconnectCustomKeyStore)?;
    let stores = &call.kms.stores;
    let _changing = stores.changing.lock().await;
    let store = named(call, request.custom_key_store_id.as_deref())?;
    // Also one that is disconnected as far as memory knows: a connection whose commit failed may be on disk all the same. This one conflicts with
    // it, comes after it, and fails while the store does.
    let disconnected = KeyStore { connection: Connection::Disconnected, ..KeyStore::clone(&store) };
    let committed = stores.put(&disconnected, call.decided(spent)?).await?;
    super::changed(committed, nothing())
}

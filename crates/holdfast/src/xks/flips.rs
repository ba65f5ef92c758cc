//! Flipped bits of a proxy: the shared state, what each process has beside it, its log.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_crypto::PersonalKey;
use holdfast_xks_proxy::{
    Limits,
    quorum::{Act, KeyUse, Request as Asked, Status},
    state::{KillScope, OperatorRecord, OperatorsRecord},
};

use super::{
    config::{HsmUser, Tls},
    *,
};
use crate::{
    ambient::OsAmbient,
    config::Audit,
    founding::MayFound,
    history::flips::{self, Tells},
    server::ConnectionLimits,
};

const POLICY: &str = "version = 1\n[[stores]]\nname = \"one\"\npath_prefix = \"/one\"\nregion = \"us-east-1\"\nmode = \"trust-provider\"\n\
                      requests_per_sec = 100\nkeys = [\"key\"]\n[[keys]]\nid = \"key\"\nhsms = [\"soft\"]\nlabel = \"key\"\n";

fn config(place: &Path, operator: &PersonalKey) -> Config {
    let operator = OperatorRecord { name: "ann".into(), public_key: STANDARD.encode(operator.spki().unwrap()) };
    Config {
        audit_readers: Vec::new(),
        address: "127.0.0.1:0".parse().unwrap(),
        ekm_address: None,
        metrics_address: None,
        host_names: vec!["localhost".into()],
        tls: Tls::default(),
        state_dir: place.join("state"),
        process: "a".into(),
        silicon_root: place.join("silicon"),
        quorum: Some(OperatorsRecord { threshold: 1, operators: vec![operator] }),
        hsms: vec![HsmUser { name: "soft".into(), kind: HsmKind::Software, health_key: None, own_keys_only: false }],
        audit: Audit::default(),
        connections: ConnectionLimits::default(),
        limits: Limits::default(),
        log_json: false,
    }
}

async fn open(place: &Path, operator: &PersonalKey) -> Result<Running, Fault> {
    let config = config(place, operator);
    let state = open_state(&config, MayFound::WhereNew).await?;
    let sockets = Sockets::bind(&config).await?;
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    state.run(&config, sockets, metrics, None).await
}

async fn change(proxy: &XksProxy, key: &PersonalKey, act: Act) {
    let (text, signature) = Asked::new(&proxy.instance_id(), "ann", act, 60, &OsAmbient).sign(key).unwrap();
    assert_eq!(proxy.propose(text, &signature, None).await.unwrap().status, Status::Executed);
}

async fn opened(place: &Path, operator: &PersonalKey) -> Result<Tells, String> {
    let running = open(place, operator).await.map_err(|fault| fault.to_string())?;
    let governed = running.proxy.governed();
    let mut told = Tells::default();
    let mut tell = |asked: &str, answer: String| told.content.insert(asked.into(), Some(answer.into_bytes()));
    tell("policy", format!("{:?}", governed.policy));
    tell("kills", governed.kills.iter().map(|kill| kill.scope.to_string()).collect());
    let operators = &governed.operators;
    tell(
        "operators",
        format!("{} of {:?}", operators.threshold, operators.operators.iter().map(|one| &one.name).collect::<Vec<_>>()),
    );
    drop(governed);
    change(&running.proxy, operator, Act::Policy { text: "version = 1\n".into() }).await;
    running.stop().await;
    Ok(told)
}

async fn flip_bits(part: u64) {
    let made = flips::place();
    let operator = PersonalKey::from_pkcs8(&PersonalKey::generate_ed25519().unwrap()).unwrap();
    let running = open(made.path(), &operator).await.unwrap();
    let key = Act::KeyCreate { key: "key".into(), hsm: "soft".into(), label: "key".into(), usage: KeyUse::Data };
    change(&running.proxy, &operator, key).await;
    change(&running.proxy, &operator, Act::Policy { text: POLICY.into() }).await;
    running.proxy.kill(KillScope::Key("key".into()), "ann", "for the test").await.unwrap();
    running.stop().await;
    flips::flips("xks-proxy", part, 175, made.path(), async |place: &Path| opened(place, &operator).await).await;
}

#[tokio::test]
async fn a_flipped_bit_of_a_proxy_is_refused_by_name_or_makes_no_difference() {
    flip_bits(20).await;
}

#[tokio::test]
async fn a_flipped_bit_of_a_proxy_is_refused_by_name_or_makes_no_difference_2() {
    flip_bits(21).await;
}

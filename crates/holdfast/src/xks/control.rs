//! What operators ask of a running proxy, by its control socket.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::ExternalKeyId;
use holdfast_crypto::SecretBytes;
use holdfast_xks_proxy::{
    AdminError, XksProxy,
    policy::Question,
    quorum::{BlindedSecret, Proposal},
    state::KillScope,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{backup::live::Asked, hand_over::HandOvers};

/// What can be asked.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub(crate) enum ControlRequest {
    /// Say yes or no to a proposal.
    Decide { id: String, operator: String, approve: bool, signature: String },
    /// Who may do what.
    Explain(Explain),
    /// Which instance and which process this is.
    Hello,
    /// How the HSMs hold the keys of the policy.
    Keys,
    /// Pull a kill switch.
    Kill { scope: KillScope, reason: String },
    /// The policy in force.
    Policy,
    /// Ask for a change.
    Propose { text: String, signature: String, secret: Option<ControlSecret> },
    /// All proposals.
    Proposals,
    /// Take the stored state into force now; the answer comes when no request is at work under the old one.
    Reload,
    /// How things are.
    Status,
    /// What every role is asked.
    #[serde(untagged)]
    Common(Asked),
}

/// A secret on its way into the sealed state, Base64.
#[derive(Deserialize, Serialize)]
pub(crate) struct ControlSecret {
    pub blind: String,
    pub secret: String,
}

/// A question to the policy.
#[derive(Deserialize, Serialize)]
pub(crate) struct Explain {
    pub store: String,
    pub key: String,
    pub principal: String,
    pub operation: String,
    pub kms_key: Option<String>,
    pub via_service: Option<String>,
    pub source_vpc: Option<String>,
    pub source_vpce: Option<String>,
}

impl Explain {
    pub(crate) fn question(&self) -> Question<'_> {
        Question {
            principal: &self.principal,
            operation: &self.operation,
            kms_key: self.kms_key.as_deref(),
            via_service: self.via_service.as_deref(),
            source_vpc: self.source_vpc.as_deref(),
            source_vpce: self.source_vpce.as_deref(),
        }
    }

    /// Asks `policy`.
    pub(crate) fn ask(&self, policy: &holdfast_xks_proxy::policy::Policy) -> Value {
        match ExternalKeyId::parse(&self.key) {
            Err(error) => json!({"done": false, "error": error.to_string()}),
            Ok(key) => {
                let explanation = policy.explain(&self.store, &key, &self.question());
                json!({"done": true, "allowed": explanation.allowed, "reason": explanation.reason})
            }
        }
    }
}

/// Does what is asked. `uid` is the user at the other end.
pub(crate) async fn carry_out(
    proxy: Arc<XksProxy>,
    hand_overs: Arc<HandOvers>,
    process: String,
    request: ControlRequest,
    uid: u32,
) -> Value {
    let result = match request {
        ControlRequest::Common(Asked::HandOver { segment, line, hash, archive }) => {
            Ok(hand_overs.carry_out(segment, (line, &hash), archive, uid).await)
        }
        ControlRequest::Common(Asked::Backup) => {
            Ok(json!({"done": false, "error": "a proxy is not asked for backups: they are read from its files"}))
        }
        ControlRequest::Hello => Ok(json!({"done": true, "instance": proxy.instance_id(), "process": process})),
        ControlRequest::Reload => proxy.reload().await.map(|()| json!({"done": true, "process": process})),
        ControlRequest::Kill { scope, reason } => {
            let by = format!("local user {uid}");
            proxy.kill(scope, &by, &reason).await.map(|()| json!({"done": true, "process": process}))
        }
        ControlRequest::Propose { text, signature, secret } => propose(&proxy, text, &signature, secret).await,
        ControlRequest::Decide { id, operator, approve, signature } => {
            let signature = STANDARD.decode(&signature).unwrap_or_default();
            proxy.decide(&id, &operator, approve, &signature).await.map(|proposal| told(&proxy, &proposal))
        }
        ControlRequest::Proposals => {
            let governed = proxy.governed();
            let proposals: Vec<Value> = governed.proposals.iter().map(|proposal| show(&proxy, proposal)).collect();
            Ok(json!({"done": true, "proposals": proposals}))
        }
        ControlRequest::Explain(explain) => Ok(explain.ask(&proxy.governed().policy)),
        ControlRequest::Policy => Ok(json!({"done": true, "text": proxy.governed().policy.text()})),
        ControlRequest::Keys => Ok(keys(&proxy).await),
        ControlRequest::Status => Ok(status(&proxy)),
    };
    result.unwrap_or_else(|error| {
        // Who asked may ask another process of something that this one cannot do.
        let unavailable = matches!(error, AdminError::Store(_) | AdminError::Record(_));
        let denied = matches!(error, AdminError::Denied(_));
        json!({"done": false, "error": error.to_string(), "denied": denied, "unavailable": unavailable})
    })
}

async fn propose(
    proxy: &XksProxy,
    text: String,
    signature: &str,
    secret: Option<ControlSecret>,
) -> Result<Value, AdminError> {
    let bad = |what: &str| AdminError::Invalid(format!("{what} is not Base64"));
    let signature = STANDARD.decode(signature).map_err(|_| bad("the signature"))?;
    let secret = match secret {
        None => None,
        Some(ControlSecret { blind, secret }) => {
            let blind = STANDARD.decode(&blind).map_err(|_| bad("the blind"))?;
            let plain = SecretBytes::take(STANDARD.decode(&secret).map_err(|_| bad("the secret"))?);
            holdfast_crypto::secret::erase(&mut secret.into_bytes());
            Some(BlindedSecret { blind, secret: plain })
        }
    };
    proxy.propose(text, &signature, secret).await.map(|proposal| told(proxy, &proposal))
}

fn told(proxy: &XksProxy, proposal: &Proposal) -> Value {
    json!({"done": true, "proposal": show(proxy, proposal)})
}

fn show(proxy: &XksProxy, proposal: &Proposal) -> Value {
    let governed = proxy.governed();
    let (yes, no) = proposal.count(&governed.operators);
    json!({
        "id": proposal.id(),
        "status": proposal.status,
        "summary": proposal.request().change.summary(),
        "text": proposal.text(),
        "approvals": yes,
        "rejections": no,
        "threshold": governed.operators.threshold,
        "verdicts": proposal.verdicts,
        "expires": proposal.request().expires,
        "outcome": proposal.outcome,
    })
}

async fn keys(proxy: &XksProxy) -> Value {
    let reports: Vec<Value> = proxy
        .inspect_keys()
        .await
        .into_iter()
        .map(|report| {
            json!({
                "key": report.key, "version": report.version, "hsm": report.hsm, "object": report.object,
                "problem": report.problem, "accepted": report.accepted,
            })
        })
        .collect();
    let foreign: serde_json::Map<String, Value> =
        proxy.foreign_keys().await.into_iter().map(|(hsm, keys)| (hsm, keys.into())).collect();
    json!({"done": true, "keys": reports, "foreign_keys": foreign})
}

/// How things are. Holds no secret.
pub(crate) fn status(proxy: &XksProxy) -> Value {
    let governed = proxy.governed();
    let hsms: serde_json::Map<String, Value> = proxy
        .hsms()
        .keys()
        .map(|name| {
            let health = proxy.health_of(name);
            let state = json!({"state": health.state.as_str(), "model": health.model, "detail": health.detail});
            (name.clone(), state)
        })
        .collect();
    let stores: Vec<Value> = governed
        .policy
        .stores()
        .iter()
        .map(|store| {
            let credentials: Vec<&str> = governed
                .credentials_of(&store.name)
                .iter()
                .map(|credential| credential.access_key_id.as_str())
                .collect();
            json!({"name": store.name, "path_prefix": store.path_prefix, "credentials": credentials})
        })
        .collect();
    let kills: Vec<Value> = governed
        .kills
        .iter()
        .map(|kill| json!({"scope": kill.scope.to_string(), "by": kill.by, "reason": kill.reason, "time": kill.time}))
        .collect();
    let operators: Vec<&str> = governed.operators.operators.iter().map(|operator| operator.name.as_str()).collect();
    json!({
        "done": true, "role": "xks-proxy", "version": env!("CARGO_PKG_VERSION"), "instance": proxy.instance_id(),
        "processes": proxy.fleet_size(), "hsms": hsms, "stores": stores, "kill_switches": kills,
        "operators": operators, "threshold": governed.operators.threshold,
        "state": {
            "generation": governed.generation, "remembered": proxy.remembered(), "kills_to_take_in": governed.pulled.len(),
            "events_to_tell": governed.events_to_tell(),
            "distrusted": proxy.distrusted().map(|why| why.to_string()),
        },
    })
}

/// Directories of the processes that run on a state.
pub(crate) fn running(state_dir: &Path) -> Vec<std::path::PathBuf> {
    super::watch_state::alive(&state_dir.join("processes"))
}

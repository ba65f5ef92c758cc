//! What an operator asks of a running key management service.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use holdfast_kms::{ExplainQuestion, Kms};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    backup::live::{Asked, Backups},
    control::Progress,
};

/// What can be asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub(crate) enum AdminRequest {
    /// Which statement decides.
    Explain {
        principal: String,
        action: String,
        key: Option<String>,
        region: Option<String>,
        context: BTreeMap<String, String>,
        source: Option<IpAddr>,
        source_arn: Option<String>,
    },
    /// What every role is asked.
    #[serde(untagged)]
    Common(Asked),
}

/// Does what is asked.
pub(crate) async fn carry_out(
    kms: Arc<Kms>,
    backups: Arc<Backups>,
    request: AdminRequest,
    uid: u32,
    lines: Progress,
) -> Value {
    match request {
        AdminRequest::Common(asked) => backups.carry_out(asked, uid, lines).await,
        AdminRequest::Explain { principal, action, key, region, context, source, source_arn } => {
            match kms.explain(&ExplainQuestion { principal, action, key, region, context, source, source_arn }) {
                Ok(explanation) => {
                    json!({"done": true, "allowed": explanation.allowed, "lines": explanation.lines})
                }
                Err(error) => json!({"done": false, "error": error}),
            }
        }
    }
}

//! What an operator asks of a running storage service.

use std::sync::Arc;

use holdfast_storage::{RewrapReport, Storage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::Progress;

/// What can be asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub(crate) enum AdminRequest {
    /// Which KEK wraps a DEK.
    Envelope { dek: String, object: String },
    /// Drop all unwrapped DEKs.
    Forget,
    /// Move container DEKs to the newest version of their KEK.
    RewrapContainers,
    /// Move the DEKs of objects.
    RewrapObjects { bucket: String, prefix: String },
    /// What depends on each version of each KEK.
    Uses,
}

/// Does what is asked.
pub(crate) async fn carry_out(storage: Arc<Storage>, request: AdminRequest, uid: u32, lines: Progress) -> Value {
    let progress = |bucket: &str, report: &RewrapReport| {
        // A reader that is slow misses some progress, and nothing else.
        let _ = lines.try_send(json!({"bucket": bucket, "seen": report.seen, "moved": report.moved}));
    };
    let (operation, context) = match &request {
        // A look at what lies there in clear is no act.
        AdminRequest::Envelope { .. } => ("", Vec::new()),
        AdminRequest::Forget => ("ForgetDataKeys", Vec::new()),
        AdminRequest::RewrapContainers => ("RewrapBuckets", Vec::new()),
        AdminRequest::RewrapObjects { bucket, prefix } => {
            ("RewrapObjects", vec![("bucket", bucket.clone()), ("prefix", prefix.clone())])
        }
        AdminRequest::Uses => ("CountKekUses", Vec::new()),
    };
    let answer = answer_to(&storage, request, progress).await;
    if operation.is_empty() {
        return answer;
    }
    // What is asked for stops the use of keys: it is done first, whatever becomes of the log.
    let mut context = context;
    context.push(("uid", uid.to_string()));
    for name in ["forgotten", "seen", "moved"] {
        context.extend(answer.get(name).map(|value| (name, value.to_string())));
    }
    let failed = match &answer["done"] {
        Value::Bool(true) => None,
        _ => Some(answer.get("error").or(answer.get("failed")).map(Value::to_string).unwrap_or_default()),
    };
    match storage.record_own(operation, context, failed).await {
        Ok(()) => answer,
        Err(error) => json!({"done": false, "error": format!("it was done, but {error}")}),
    }
}

async fn answer_to(storage: &Storage, request: AdminRequest, progress: impl FnMut(&str, &RewrapReport)) -> Value {
    let report = |result: Result<RewrapReport, String>| match result {
        Ok(RewrapReport { seen, moved, failed }) => {
            json!({"done": failed.is_empty(), "seen": seen, "moved": moved, "failed": failed})
        }
        Err(error) => json!({"done": false, "error": error}),
    };
    match request {
        AdminRequest::Envelope { dek, object } => {
            let envelope = storage.envelope_of(&dek, &object);
            let envelope = envelope.and_then(|json| serde_json::from_str::<Value>(&json).ok());
            json!({"done": envelope.is_some(), "envelope": envelope})
        }
        AdminRequest::Forget => json!({"done": true, "forgotten": storage.forget()}),
        AdminRequest::RewrapContainers => report(storage.rewrap_containers(progress).await),
        AdminRequest::RewrapObjects { bucket, prefix } => {
            report(storage.rewrap_objects(&bucket, &prefix, progress).await)
        }
        AdminRequest::Uses => match storage.kek_uses() {
            Ok(uses) => {
                let uses: serde_json::Map<_, _> = uses
                    .into_iter()
                    .map(|(url, kek)| (url, json!({"containers": kek.containers, "objects": kek.objects})))
                    .collect();
                json!({"done": true, "uses": uses})
            }
            Err(error) => json!({"done": false, "error": error}),
        },
    }
}

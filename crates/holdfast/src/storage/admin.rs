//! What an operator asks of a running storage service.

use std::sync::Arc;

use holdfast_storage::{RewrapReport, Storage};
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
    /// Whether rows of the index are what was committed.
    Verify { bucket: Option<String>, blobs: bool },
    /// Take a set of rows for what it is from now on.
    AcceptRows { set: String },
    /// What every role is asked.
    #[serde(untagged)]
    Common(Asked),
}

/// Does what is asked.
pub(crate) async fn carry_out(
    storage: Arc<Storage>,
    backups: Arc<Backups>,
    request: AdminRequest,
    uid: u32,
    lines: Progress,
) -> Value {
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
        AdminRequest::Verify { bucket, blobs } => {
            let mut context = vec![("blobs", blobs.to_string())];
            context.extend(bucket.clone().map(|bucket| ("bucket", bucket)));
            ("VerifyIndex", context)
        }
        // Its event is one with the change; what every role is asked is told there.
        AdminRequest::AcceptRows { .. } | AdminRequest::Common(_) => ("", Vec::new()),
    };
    let answer = match request {
        AdminRequest::Common(asked) => backups.carry_out(asked, uid, lines).await,
        AdminRequest::Verify { bucket, blobs } => verify(&storage, bucket.as_deref(), blobs, &lines).await,
        AdminRequest::AcceptRows { set } => match storage.accept_set(&set, uid).await {
            Ok(report) => json!({"done": true, "accepted": report}),
            Err(error) => json!({"done": false, "error": error}),
        },
        request => answer_to(&storage, request, progress).await,
    };
    if operation.is_empty() {
        return answer;
    }
    // What is asked for stops the use of keys: it is done first, whatever becomes of the log.
    let mut context = context;
    context.push(("uid", uid.to_string()));
    for name in ["forgotten", "seen", "moved", "sets", "rows", "bad"] {
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

async fn verify(storage: &Arc<Storage>, bucket: Option<&str>, blobs: bool, lines: &Progress) -> Value {
    let hear = |report: holdfast_storage::SetReport| async {
        // Who does not listen any more misses it; the verification goes on.
        let _ = lines.send(serde_json::to_value(report).unwrap_or_default()).await;
    };
    match storage.verify(bucket, blobs, hear).await {
        Ok(report) => {
            let bad = report.bad.len();
            json!({"done": bad == 0, "sets": report.sets, "rows": report.rows, "bad": report.bad})
        }
        Err(error) => json!({"done": false, "error": error}),
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
        AdminRequest::Common(_) | AdminRequest::Verify { .. } | AdminRequest::AcceptRows { .. } => {
            json!({"done": false})
        }
    }
}

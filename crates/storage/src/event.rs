//! What the audit log tells of requests, and of what the service does by itself. Never a key, a signature, or a byte of an object.

use std::time::Instant;

use holdfast_core::{AuditEvent, AuditOutcome, PartitionId, Principal, Timestamp};

use crate::{
    Storage,
    call::{Act, Arrived, Call, Facts},
    error::{Error, Result},
    record::{BucketRecord, Encryption, ObjectRecord, UploadRecord},
    s3::authn::Caller,
};

/// Longest text of a caller's that an event takes over, in bytes: the longest key there is.
const TEXT_BYTES_MAX: usize = 1024;
/// Longest path: such a key with every byte escaped, and the bucket.
const PATH_BYTES_MAX: usize = 4096;
/// The operation of a request that was refused before anybody knew what it asks for.
pub(crate) const UNRESOLVED: &str = "unresolved";

/// What a request turned out to be about, besides what it names.
#[derive(Clone, Default)]
pub(crate) struct About {
    /// The object, where the request names several or none.
    pub key: Option<String>,
    pub version: Option<String>,
    /// `SSE-S3`, `SSE-KMS`, `SSE-C`, `none`.
    pub mode: Option<&'static str>,
    /// With its version.
    pub kek: Option<String>,
    pub more: Vec<(&'static str, String)>,
}

impl About {
    /// One version of an object.
    pub(crate) fn object(bucket: &BucketRecord, record: &ObjectRecord) -> Self {
        let about = Self { key: Some(record.key.clone()), version: Some(record.version.clone()), ..Self::default() };
        match record.delete_marker {
            true => about.with("delete_marker", "true"),
            false => about.under(bucket, &record.encryption).with("size", record.size),
        }
    }

    /// An upload under way.
    pub(crate) fn upload(bucket: &BucketRecord, upload: &UploadRecord) -> Self {
        let about = Self { key: Some(upload.key.clone()), ..Self::default() };
        about.under(bucket, &upload.encryption).with("upload", upload.id)
    }

    fn under(mut self, bucket: &BucketRecord, encryption: &Encryption) -> Self {
        let container = |id| bucket.deks.iter().find(|dek| dek.id == id).map(|dek| dek.envelope.kek_url.clone());
        (self.mode, self.kek) = match encryption {
            Encryption::Container { dek, kms: false } => (Some("SSE-S3"), container(*dek)),
            Encryption::Container { dek, kms: true } => (Some("SSE-KMS"), container(*dek)),
            Encryption::Object { envelope, .. } => (Some("SSE-KMS"), Some(envelope.kek_url.clone())),
            Encryption::Customer { .. } => (Some("SSE-C"), None),
            Encryption::Off => (Some("none"), None),
        };
        self
    }

    pub(crate) fn kek(kek: &str) -> Self {
        Self { kek: Some(kek.to_owned()), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.more.push((name, value.to_string()));
        self
    }
}

/// The beginning of a text, at most so many bytes of it.
fn bounded(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

/// How a request ended.
struct End {
    outcome: AuditOutcome,
    status: u16,
    error_code: Option<&'static str>,
    reason: Option<String>,
}

impl End {
    fn of(error: &Error) -> Self {
        Self {
            outcome: error.outcome(),
            status: error.told().status.as_u16(),
            error_code: Some(error.code()),
            reason: Some(bounded(&error.reason(), TEXT_BYTES_MAX)),
        }
    }

    fn allowed(status: u16, rule: &str) -> Self {
        Self { outcome: AuditOutcome::Allowed, status, error_code: None, reason: Some(rule.to_owned()) }
    }
}

fn event(
    request: &Facts,
    operation: &'static str,
    caller: Option<&Caller>,
    act: Option<&Act>,
    about: About,
    end: End,
) -> AuditEvent {
    let mut context = Vec::new();
    let mut tell = |name, value: Option<&str>| {
        context.extend(value.filter(|value| !value.is_empty()).map(|value| (name, bounded(value, TEXT_BYTES_MAX))));
    };
    tell("access_key", caller.map(Caller::access_key));
    tell("bucket", act.map(|act| act.bucket.bucket.as_str()));
    tell("key", about.key.as_deref().or(act.and_then(|act| act.key.as_deref())));
    tell("version", about.version.as_deref());
    tell("mode", about.mode);
    tell("kek", about.kek.as_deref());
    if let Some((source, key)) = act.and_then(|act| act.source.as_ref()) {
        tell("source_bucket", Some(&source.bucket));
        tell("source_key", Some(key));
    }
    for (name, value) in &about.more {
        tell(name, Some(value));
    }
    let passed = request.began.elapsed();
    AuditEvent {
        time: later(request.at, request.began),
        operation,
        principal: caller.map(|caller| caller.principal().clone()),
        key: None,
        key_version: None,
        algorithm: None,
        outcome: end.outcome,
        status: end.status,
        error_code: end.error_code,
        reason: end.reason,
        request_id: request.id.clone(),
        client_request_id: request.client_id.as_deref().map(|id| bounded(id, TEXT_BYTES_MAX)),
        source: request.source.map(|source| source.to_string()),
        user_agent: request.user_agent.as_deref().map(|agent| bounded(agent, TEXT_BYTES_MAX)),
        context,
        path: bounded(&request.path, PATH_BYTES_MAX),
        duration_us: u64::try_from(passed.as_micros()).unwrap_or(u64::MAX),
    }
}

fn later(at: Timestamp, began: Instant) -> Timestamp {
    let passed = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_unix_millis(at.unix_millis().saturating_add(passed))
}

impl Call {
    /// The event of a change that is about to be committed. `aside`: something else that had to be changed on the way.
    pub(crate) fn changed(&self, rule: &str, aside: Option<&'static str>, about: About) -> AuditEvent {
        let operation = aside.unwrap_or(self.act().operation);
        let end = End::allowed(status_of(self.act().operation), rule);
        event(self.caller().request(), operation, Some(self.caller()), Some(self.act()), about, end)
    }

    /// The event of one part of a request that was refused, where the others were not.
    fn part_refused(&self, about: About, error: &Error) -> AuditEvent {
        let request = self.caller().request();
        event(request, self.act().operation, Some(self.caller()), Some(self.act()), about, End::of(error))
    }
}

/// The status of the answer to a change that is carried out.
fn status_of(operation: &str) -> u16 {
    match operation {
        "AbortMultipartUpload"
        | "DeleteBucket"
        | "DeleteBucketEncryption"
        | "DeleteBucketTagging"
        | "DeleteObject"
        | "DeleteObjectTagging" => 204,
        _ => 200,
    }
}

/// The event of something that the service does by itself, or that its operator asks of it.
pub(crate) fn of_service(
    at: Timestamp,
    operation: &'static str,
    context: Vec<(&'static str, String)>,
    failed: Option<String>,
) -> AuditEvent {
    AuditEvent {
        time: at,
        operation,
        principal: Some(Principal::system()),
        key: None,
        key_version: None,
        algorithm: None,
        outcome: if failed.is_some() { AuditOutcome::Failed } else { AuditOutcome::Allowed },
        status: if failed.is_some() { 500 } else { 200 },
        error_code: None,
        reason: failed.map(|why| bounded(&why, TEXT_BYTES_MAX)),
        request_id: String::new(),
        client_request_id: None,
        source: None,
        user_agent: None,
        context: context.into_iter().map(|(name, value)| (name, bounded(&value, TEXT_BYTES_MAX))).collect(),
        path: String::new(),
        duration_us: 0,
    }
}

/// What the log tells when an index from before there were instances is taken over.
#[must_use]
pub fn founding_event(at: Timestamp, instance: PartitionId) -> AuditEvent {
    of_service(at, "FoundInstance", vec![("instance", instance.to_string())], None)
}

/// What the log tells when rows of an earlier version of the index are taken over.
#[must_use]
pub fn upgraded_event(at: Timestamp, rows: u64) -> AuditEvent {
    let mut event = of_service(at, "StateUpgrade", vec![("rows", rows.to_string())], None);
    let told =
        "the index was upgraded to version 2, each row of which has a MAC: nothing of version 1 is taken any more";
    event.reason = Some(told.into());
    event
}

impl Storage {
    /// Makes the event of a request durable, if it is to have one and has none yet.
    ///
    /// # Errors
    /// The log cannot be written: then there is no other answer.
    pub(crate) async fn record(&self, arrived: &Arrived, status: Result<u16, &Error>) -> Result<()> {
        let call = arrived.call();
        if status.is_ok() && call.as_ref().is_some_and(|call| call.is_settled()) {
            return Ok(());
        }
        let end = match status {
            Ok(status) => End::allowed(status, "owner"),
            Err(error) => End::of(error),
        };
        let reads = call.as_ref().is_some_and(|call| call.act().reads());
        let always = end.outcome == AuditOutcome::Denied || matches!(status, Err(Error::Damaged | Error::Forged(_)));
        if reads && !self.config.audit_reads && !always {
            return Ok(());
        }
        let Some(caller) = arrived.caller() else {
            let event = event(&arrived.facts, UNRESOLVED, None, None, About::default(), end);
            // What repeats is counted.
            return match self.strangers.note(event, arrived.facts.source) {
                Some(event) => Ok(self.audit.append(event).await?),
                None => Ok(()),
            };
        };
        let about = call.as_ref().map(|call| call.about()).unwrap_or_default();
        let act = arrived.act();
        let operation = act.as_ref().map_or(UNRESOLVED, |act| act.operation);
        Ok(self.audit.append(event(&arrived.facts, operation, Some(&caller), act.as_ref(), about, end)).await?)
    }

    /// The same for one of the many things that a request asks for.
    pub(crate) async fn record_part(&self, call: &Call, about: About, error: &Error) -> Result<()> {
        Ok(self.audit.append(call.part_refused(about, error)).await?)
    }

    /// Makes the event of an operator's act durable.
    ///
    /// # Errors
    /// The log cannot be written.
    pub async fn record_own(
        &self,
        operation: &'static str,
        context: Vec<(&'static str, String)>,
        failed: Option<String>,
    ) -> Result<(), holdfast_core::AuditError> {
        self.audit.append(of_service(self.ambient.now(), operation, context, failed)).await
    }
}

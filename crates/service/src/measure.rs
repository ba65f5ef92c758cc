//! How a request ended, for metrics and for the process's own log.

use std::time::Duration;

use holdfast_core::AuditOutcome;
use http::StatusCode;
use metrics::{counter, histogram};

/// How a request ended.
pub struct Ended<'a, T> {
    /// Our id of the request.
    pub request_id: &'a str,
    /// The operation, in the dialect's own word.
    pub operation: &'static str,
    /// As the log has it.
    pub outcome: AuditOutcome,
    /// As the client hears it.
    pub status: StatusCode,
    /// The error's code, if it did not succeed.
    pub error: Option<&'static str>,
    /// Why it did not succeed.
    pub reason: Option<&'a str>,
    /// Whether it was counted only, and has no line of its own in the audit log.
    pub counted: bool,
    /// What else the dialect knows of it.
    pub told: &'a T,
    /// Time from the head to the answer.
    pub elapsed: Duration,
}

impl<T> Ended<'_, T> {
    /// Whether something broke here. What is not kept yet is no fault.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED
    }

    /// Tells the process's log of a fault.
    pub fn log_fault(&self) {
        if self.is_fault() {
            let (request_id, operation, status) = (self.request_id, self.operation, self.status.as_u16());
            let reason = self.reason.unwrap_or_default();
            tracing::error!(%request_id, operation, status, reason, "request failed");
        }
    }
}

/// Counts a request by operation and outcome in `requests`, and how long it took in `duration`.
pub fn measure_requests<T>(requests: &'static str, duration: &'static str, ended: &Ended<'_, T>) {
    let operation = ended.operation;
    counter!(requests, "operation" => operation, "outcome" => ended.outcome.as_str()).increment(1);
    histogram!(duration, "operation" => operation).record(ended.elapsed.as_secs_f64());
}

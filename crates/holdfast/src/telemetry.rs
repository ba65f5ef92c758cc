//! Logs to standard error, metrics for Prometheus.

use std::io::IsTerminal;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::fault::Fault;

/// Bucket bounds in seconds: 50 us to 1 s.
const BUCKETS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Where the library for PKCS #11 says of every mechanism, attribute and code of a token that it does not know it, as an error: some
/// thirty lines at each start that is well. What matters of them is an error of the call, too.
const CHATTER: [&str; 3] = ["cryptoki::error=off", "cryptoki::mechanism=off", "cryptoki::object=off"];

/// Starts logging; the level is `RUST_LOG`'s, or `info`.
pub(crate) fn start_logging(json: bool) {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // s3s logs whole requests, customers' keys among their headers: whatever the level asked for, it stays silent.
    if let Ok(silent) = "s3s=off".parse() {
        filter = filter.add_directive(silent);
    }
    if !filter.to_string().contains("cryptoki") {
        filter = CHATTER.iter().filter_map(|quiet| quiet.parse().ok()).fold(filter, EnvFilter::add_directive);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Where the disk with the log is full, saying so on the same stream would be a panic of the request that is at work.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second call, in tests, leaves the first in force.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}

/// Starts metrics; the handle renders them.
pub(crate) fn start_metrics() -> Result<PrometheusHandle, Fault> {
    let handle =
        PrometheusBuilder::new().set_buckets(BUCKETS).map_err(Fault::new)?.install_recorder().map_err(Fault::new)?;
    describe_counter!(
        "holdfast_hsm_requests_total",
        "Requests by operation and outcome (allowed, denied, failed, withheld)"
    );
    describe_histogram!(
        "holdfast_hsm_request_duration_seconds",
        Unit::Seconds,
        "From the request's header to the answer, audit included"
    );
    describe_counter!("holdfast_storage_requests_total", "S3 requests by operation and outcome (ok, refused, failed)");
    describe_histogram!(
        "holdfast_storage_request_duration_seconds",
        Unit::Seconds,
        "Until the answer's head; bodies follow"
    );
    describe_counter!("holdfast_storage_unwraps_total", "DEKs unwrapped by the key service");
    describe_counter!("holdfast_storage_dek_cache_hits_total", "DEKs found unwrapped in the cache");
    describe_gauge!("holdfast_storage_dek_cache_entries", "DEKs held unwrapped");
    describe_counter!(
        "holdfast_storage_outage_grace_uses_total",
        "Uses of an expired DEK while the key service was away"
    );
    describe_counter!("holdfast_storage_bodies_cut_total", "Bodies cut in the middle: revoked, unavailable or damaged");
    describe_histogram!(
        "holdfast_xks_proxy_latency_seconds",
        Unit::Seconds,
        "From a request's head to its answer, audit included, by store and operation (XksProxyLatency)"
    );
    describe_counter!(
        "holdfast_xks_proxy_errors_total",
        "Errors answered, by store, operation and name (XksProxyErrors)"
    );
    describe_counter!(
        "holdfast_external_key_store_throttle_total",
        "Requests throttled, by store and operation (ExternalKeyStoreThrottle)"
    );
    describe_gauge!("holdfast_certificate_days_to_expire", "Days that the certificate shown at a door is still valid");
    describe_gauge!(
        "holdfast_xks_proxy_certificate_days_to_expire",
        "Days that the proxy's certificate is still valid (XksProxyCertificateDaysToExpire)"
    );
    describe_gauge!(
        "holdfast_xks_proxy_credential_age_days",
        "Age of a store's newest credential (XksProxyCredentialAge)"
    );
    describe_gauge!(
        "holdfast_xks_external_key_manager_states",
        "1 for the state that an HSM user is in: active, degraded, unavailable (XksExternalKeyManagerStates)"
    );
    describe_gauge!("holdfast_xks_kill_switches", "Kill switches that are pulled");
    describe_counter!("holdfast_hsm_host_starts_total", "Processes started for an HSM user");
    describe_gauge!("holdfast_connections", "Open connections");
    describe_counter!(
        "holdfast_answers_cut_total",
        "Answers cut off: what allowed them ended before their client read them"
    );
    describe_counter!(
        "holdfast_answers_not_read_total",
        "Connections ended since their client read nothing for a minute"
    );
    describe_counter!(
        "holdfast_changes_kept_waiting_total",
        "Changes that waited as long as they may for answers under way or uses, and revoked them"
    );
    describe_counter!("holdfast_connections_refused_total", "Connections closed for want of room");
    describe_counter!(
        "holdfast_proxy_headers_refused_total",
        "Connections of balancers closed that did not begin with a PROXY header"
    );
    describe_gauge!("holdfast_crypto_pool_queue_length", "Private-key operations that wait for a thread");
    describe_counter!("holdfast_crypto_pool_refused_total", "Private-key operations refused for want of room");
    describe_gauge!("holdfast_hsm_keys", "Keys, soft-deleted ones included");
    describe_gauge!("holdfast_audit_faulty", "1 while the audit log cannot be written");
    describe_gauge!("holdfast_audit_waiting", "Events of changes that are in the store and not yet in the audit log");
    describe_gauge!("holdfast_store_faulty", "1 while a store takes no changes");
    describe_gauge!("holdfast_audit_lines", "Number of the last durable line of the audit log");
    Ok(handle)
}

#![allow(dead_code, reason = "each test takes what it needs")]
//! Logs of one instance with small segments, and their events.

use std::{fs, path::Path, sync::Arc, time::Duration};

use holdfast_core::{AuditEvent, PartitionId};
use holdfast_store::audit::{AuditLog, AuditLogConfig, AuditOpenError, list_segments};

use crate::common::{self, Fixed, keys};

pub(crate) fn config(directory: &Path) -> AuditLogConfig {
    AuditLogConfig {
        directory: directory.into(),
        segment_bytes_max: 2000,
        segment_age_max: Duration::from_secs(3600),
        checkpoint_interval: Duration::from_millis(1),
        expected: None,
        expected_has_macs: false,
        floor: 0,
        accept_loss: false,
        restored: None,
        notes: Vec::new(),
        accepted: Vec::new(),
    }
}

pub(crate) fn open(config: AuditLogConfig) -> Result<AuditLog, AuditOpenError> {
    AuditLog::open(config, PartitionId::from_bytes([7; 16]), keys(), Arc::new(Fixed), Arc::default())
}

pub(crate) fn event(number: usize) -> AuditEvent {
    AuditEvent {
        key: Some("kek".into()),
        algorithm: Some("A256KW".into()),
        reason: Some("a \"quoted\" rule\nof two lines".into()),
        source: Some("127.0.0.1:1".into()),
        context: vec![("kmsOperation", "Encrypt".into())],
        path: "/keys/kek/wrapkey".into(),
        duration_us: 12,
        ..common::event("KeyWrap", &format!("request-{number}"))
    }
}

pub(crate) fn copy_of(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (_, path) in list_segments(directory).unwrap() {
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

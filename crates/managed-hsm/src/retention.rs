//! Soft delete: how long, and whether it can be cut short. Fixed when the instance is made.

use holdfast_core::{AuditEvent, Change, Decided, Itself, RecordKey, Store, Timestamp, Write};
use serde::{Deserialize, Serialize};

use crate::{OpenError, rbac, records};

const FORMAT: u8 = 1;
const SECS_PER_DAY: i64 = 86_400;

/// The retention in force.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Retention {
    pub days: u32,
    pub purge_protection: bool,
}

impl Retention {
    pub(crate) fn recovery_level(self) -> String {
        let base = if self.days == 90 { "Recoverable" } else { "CustomizedRecoverable" };
        if self.purge_protection { base.to_owned() } else { format!("{base}+Purgeable") }
    }

    pub(crate) fn end(self, deleted: Timestamp) -> Timestamp {
        Timestamp::from_unix_secs(deleted.unix_secs() + i64::from(self.days) * SECS_PER_DAY)
    }
}

#[derive(Deserialize, Serialize)]
struct StoredInstance {
    v: u8,
    created: i64,
    retention_days: u32,
    purge_protection: bool,
}

fn record_key() -> RecordKey {
    RecordKey::new(records::INSTANCE, Vec::new())
}

/// Reads what was fixed when the instance was made; on first start fixes it, and makes the first role assignments in
/// the same batch. Purge protection can be turned on later, never off.
pub(crate) async fn open(
    store: &dyn Store,
    wanted: Retention,
    now: Timestamp,
    first_assignments: &[rbac::RoleAssignment],
    event: impl FnOnce(&'static str) -> AuditEvent,
) -> Result<Retention, OpenError> {
    let configured = |operation| Decided::by_itself(event(operation), Itself::Configured);
    let encode = |retention: Retention, created| {
        let stored = StoredInstance {
            v: FORMAT,
            created,
            retention_days: retention.days,
            purge_protection: retention.purge_protection,
        };
        serde_json::to_vec(&stored).map_err(|error| OpenError::Record(error.to_string()))
    };
    let Some(record) = store.read(&record_key()).await? else {
        if first_assignments.is_empty() {
            return Err(OpenError::NoAdministrator);
        }
        let value = Some(encode(wanted, now.unix_millis())?);
        let mut batch = vec![Write { key: record_key(), expected_version: 0, value }];
        for assignment in first_assignments {
            batch.push(rbac::assignment_write(assignment, 0).map_err(|error| OpenError::Record(error.message))?);
        }
        let founded = store.commit(Change { writes: batch, event: configured("InstanceFound") }).await?;
        tracing::debug!(revision = %founded.revision(), "what is fixed for ever is written");
        return Ok(wanted);
    };
    let stored: StoredInstance =
        serde_json::from_slice(&record.value).map_err(|error| OpenError::Record(error.to_string()))?;
    if stored.v != FORMAT {
        return Err(OpenError::Record(format!("the instance record has format {}, which is not known", stored.v)));
    }
    let mut retention = Retention { days: stored.retention_days, purge_protection: stored.purge_protection };
    if wanted.days != retention.days {
        tracing::warn!(days = retention.days, "soft-delete retention was fixed when the instance was made and stays");
    }
    if retention.purge_protection && !wanted.purge_protection {
        tracing::warn!("purge protection is on and cannot be turned off");
    }
    if wanted.purge_protection && !retention.purge_protection {
        retention.purge_protection = true;
        let value = Some(encode(retention, stored.created)?);
        let writes = vec![Write { key: record_key(), expected_version: record.version, value }];
        let changed = store.commit(Change { writes, event: configured("PurgeProtectionOn") }).await?;
        tracing::info!(revision = %changed.revision(), "purge protection is on from now on");
    }
    Ok(retention)
}

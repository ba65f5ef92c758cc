//! Settings. The service has exactly one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use holdfast_core::{
    Action, Change, Changed, Committed, Decided, Projection, RecordKey, Resource, Store, StoreError, Write,
};
use holdfast_service::Done;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{Call, Reply};
use crate::{code::Code, error::ApiError, records, wire};

const ALLOW_ARM: &str = "AllowKeyManagementOperationsThroughARM";

/// The settings in memory.
struct Held {
    allow_arm: AtomicBool,
    /// Version of the record; 0 while the default holds.
    version: AtomicU64,
}

impl Projection for Held {
    fn apply(&self, changes: &[Changed]) {
        let key = record_key();
        for changed in changes.iter().filter(|changed| changed.key == key) {
            self.allow_arm.store(changed.value.as_deref() == Some(b"true"), Ordering::Release);
            self.version.store(changed.version, Ordering::Release);
        }
    }
}

/// The settings in force.
pub(crate) struct Settings {
    held: Arc<Held>,
    /// Held by whoever changes one.
    changing: Mutex<()>,
}

fn record_key() -> RecordKey {
    RecordKey::new(records::SETTING, ALLOW_ARM.as_bytes())
}

impl Settings {
    pub(crate) async fn open(store: &dyn Store) -> Result<Self, StoreError> {
        let record = store.read(&record_key()).await?;
        let (value, version) = record.map_or((false, 0), |record| (record.value == b"true", record.version));
        let held = Arc::new(Held { allow_arm: AtomicBool::new(value), version: AtomicU64::new(version) });
        let watching = Arc::downgrade(&held);
        store.watch(watching);
        Ok(Self { held, changing: Mutex::default() })
    }

    async fn set(
        &self,
        store: &dyn Store,
        value: bool,
        event: impl FnOnce() -> Result<Decided, ApiError>,
    ) -> Result<Committed, ApiError> {
        let _changing = self.changing.lock().await;
        let text = if value { "true" } else { "false" };
        let expected_version = self.held.version.load(Ordering::Acquire);
        let writes = vec![Write { key: record_key(), expected_version, value: Some(text.into()) }];
        let event = event()?;
        event.by_leave_of(&[Action::SettingWrite], &Resource::Instance)?;
        Ok(store.commit(Change { writes, event }).await?)
    }
}

#[derive(Serialize)]
struct Setting {
    name: &'static str,
    value: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
}

fn current(call: &Call<'_>) -> Setting {
    let value = if call.hsm.settings.held.allow_arm.load(Ordering::Acquire) { "true" } else { "false" };
    Setting { name: ALLOW_ARM, value, kind: "boolean" }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name == ALLOW_ARM {
        return Ok(());
    }
    Err(ApiError::not_found(Code::SettingNotFound, format!("Setting not found: {}", crate::route::printable(name))))
}

pub(super) fn list(call: &Call<'_>) -> Result<Reply, ApiError> {
    #[derive(Serialize)]
    struct List {
        settings: [Setting; 1],
    }
    Reply::ok(&List { settings: [current(call)] })
}

pub(super) fn get(call: &Call<'_>, name: &str) -> Result<Reply, ApiError> {
    check_name(name)?;
    Reply::ok(&current(call))
}

pub(super) async fn patch(call: &Call<'_>, name: &str) -> Result<Done<Reply>, ApiError> {
    #[derive(Deserialize)]
    struct Patch {
        value: String,
    }
    check_name(name)?;
    let value = match wire::parse::<Patch>(call.body)?.value.as_str() {
        "true" => true,
        "false" => false,
        _ => return Err(ApiError::bad_parameter("Property value must be \"true\" or \"false\"")),
    };
    let committed = call.hsm.settings.set(call.hsm.store.as_ref(), value, || call.decided(StatusCode::OK)).await?;
    Ok(Done::Changed(committed, Reply::ok(&current(call))?))
}

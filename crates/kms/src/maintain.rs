//! What the service does by itself: rotate keys, end those whose deletion window is over, erase imported material that has expired.

use std::sync::Arc;

use holdfast_core::{Committed, Decided, Itself, Trouble, Troubles};
use metrics::gauge;

use crate::{
    Kms,
    error::ApiError,
    keys::{Draft, KeyEntry},
    ops,
    own::{Own, due, permit},
    stores::{About, Connection},
};

/// What is tried again and again, and told when it begins to fail.
#[derive(Default)]
pub(crate) struct Efforts {
    /// Writing down when keys were last used.
    usage: Trouble,
    /// The other sides of custom key stores, by store.
    stores: Troubles,
    /// Automatic acts, by name and key.
    acts: Troubles,
}

impl Kms {
    /// Does what is due. Each act is an event of its own, with the change; one that fails is tried again, and its failure is told once.
    pub async fn maintain(&self) {
        self.efforts.acts.round();
        let now = self.keys.now();
        for key in self.keys.find(|key| ops::is_due(key, now)) {
            self.ended("RotateKeyAutomatic", &key, self.rotate(&key).await).await;
        }
        let expired = |key: &KeyEntry| {
            key.materials.iter().any(|m| m.blob_version.is_some() && m.expires.is_some_and(|moment| moment <= now))
        };
        for key in self.keys.find(expired) {
            self.ended("DeleteExpiredKeyMaterial", &key, self.erase_expired(&key).await).await;
        }
        for key in self.keys.find(|key| key.deletion.is_some_and(|moment| moment <= now)) {
            let event = self.event_by_itself("DeleteKey", &key.arn, "the deletion window is over");
            let result = match due(Own::Delete, &key.name) {
                Ok(spent) => ops::delete_by_itself(self, spent, &key, event).await,
                Err(error) => Err(error),
            };
            self.ended("DeleteKey", &key, result).await;
        }
        self.write_usage().await;
        self.watch_stores().await;
    }

    /// Writes down when keys were last used.
    pub(crate) async fn write_usage(&self) {
        let trouble = &self.efforts.usage;
        match self.usage.flush().await {
            Ok(()) => {
                trouble.ends();
            }
            Err(error) if trouble.begins() => {
                tracing::warn!(%error, "the last use of keys could not be written; it is tried again");
            }
            Err(_) => {}
        }
    }

    /// Looks at the other side of each store in use. What is found is shown in metrics; the state of the store stays as its owner set it.
    async fn watch_stores(&self) {
        self.efforts.stores.round();
        for store in self.stores.all() {
            let Some(link) = store.link.as_ref().filter(|_| store.connection == Connection::Connected) else {
                continue;
            };
            let request_id = self.new_uuid();
            let about = About {
                principal_arn: "AWS Internal",
                key_arn: None,
                operation: "KmsHealthCheck",
                request_id: &request_id,
                via_service: None,
                proof: None,
            };
            let health = link.health(about).await;
            if let Err(fault) = &health
                && self.efforts.stores.begins(&store.id)
            {
                tracing::warn!(store = store.id, %fault, "the other side of a custom key store is not well");
            }
            let well = if health.is_ok() { 1.0 } else { 0.0 };
            gauge!("holdfast_external_key_store_well", "store" => store.id.clone()).set(well);
        }
    }

    /// What was done has its event; what failed gets one here.
    async fn ended(&self, operation: &'static str, key: &KeyEntry, result: Result<Option<Committed>, ApiError>) {
        let name = format!("{operation} {}", key.arn);
        match result {
            Ok(None) => {}
            Ok(Some(committed)) => tracing::info!(operation, key = key.arn, revision = %committed.revision(), "done"),
            // Told when it begins to fail, and not with each attempt.
            Err(_) if !self.efforts.acts.begins(&name) => {}
            Err(error) => {
                let reason = error.reason.as_deref().unwrap_or(&error.message);
                tracing::error!(operation, key = key.arn, reason, "an automatic act failed");
                if !self.record_failure(operation, &key.arn, error).await {
                    self.efforts.acts.untold(&name);
                }
            }
        }
    }

    async fn rotate(&self, key: &Arc<KeyEntry>) -> Result<Option<Committed>, ApiError> {
        let (to_make, to_store) = (permit(Own::Rotate, &key.name)?, due(Own::Rotate, &key.name)?);
        let event = self.event_by_itself("RotateKeyAutomatic", &key.arn, "rotated");
        ops::rotate_by_itself(self, key, to_make, to_store, event).await
    }

    async fn erase_expired(&self, key: &KeyEntry) -> Result<Option<Committed>, ApiError> {
        let lock = self.keys.lock(key.id).await;
        let now = self.keys.now();
        let Some(entry) = self.keys.entry(&key.key_ref()) else { return Ok(None) };
        let expired = entry.materials.iter().filter(|m| m.blob_version.is_some() && !m.is_present(now));
        let mut draft = Draft { entries: ops::family(self, &entry), ..Draft::default() };
        for material in expired {
            let more = ops::without(draft.entries, material);
            draft.entries = more.entries;
            draft.blobs.extend(more.blobs);
        }
        let spent = due(Own::EraseMaterial, &entry.name)?;
        let event = self.event_by_itself("DeleteExpiredKeyMaterial", &entry.arn, "erased");
        let (_, committed) = self.keys.commit(&lock, draft, Decided::by_itself(event, Itself::Due(spent))).await?;
        Ok(Some(committed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use async_trait::async_trait;
    use holdfast_core::{AuditError, AuditEvent, AuditSink};

    use super::*;
    use crate::{
        Directory,
        usable::tests::{key_of, service_told},
    };

    const ANYBODY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*"}]}"#;

    /// A log that takes nothing the first two times.
    #[derive(Default)]
    struct FullAtFirst {
        asked: AtomicUsize,
    }

    #[async_trait]
    impl AuditSink for FullAtFirst {
        async fn append(&self, _: AuditEvent) -> Result<(), AuditError> {
            if self.asked.fetch_add(1, SeqCst) < 2 { Err(AuditError("full".into())) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn a_failure_that_the_log_did_not_take_is_told_by_the_next_round() {
        let log = Arc::<FullAtFirst>::default();
        let told = Arc::clone(&log);
        let kms = service_told(Directory::new(Vec::new(), Vec::new()).unwrap(), told).await;
        let key = key_of(&kms, ANYBODY).await;
        for asked in [1, 2, 3, 3, 3] {
            kms.efforts.acts.round();
            kms.ended("RotateKeyAutomatic", &key, Err(ApiError::internal("it fails"))).await;
            assert_eq!(log.asked.load(SeqCst), asked, "until it is told, and once");
        }
    }
}

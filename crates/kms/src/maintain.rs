//! What the service does by itself: rotate keys, end those whose deletion window is over, erase imported material that has expired.

use std::sync::Arc;

use metrics::gauge;

use crate::{
    Kms,
    error::ApiError,
    keys::{Draft, KeyEntry},
    ops,
    own::{Own, permit},
    stores::{About, Connection},
};

impl Kms {
    /// Does what is due. Each act is an event of its own.
    pub async fn maintain(&self) {
        let now = self.keys.now();
        for key in self.keys.find(|key| key.rotation.is_some_and(|rotation| rotation.next <= now)) {
            match self.rotate(&key).await {
                Ok(false) => {}
                Ok(true) => self.record("RotateKeyAutomatic", &key, Ok("rotated".into())).await,
                Err(error) => self.record("RotateKeyAutomatic", &key, Err(error)).await,
            }
        }
        let expired = |key: &KeyEntry| {
            key.materials.iter().any(|m| m.blob_version.is_some() && m.expires.is_some_and(|moment| moment <= now))
        };
        for key in self.keys.find(expired) {
            let result = self.erase_expired(&key).await;
            self.record("DeleteExpiredKeyMaterial", &key, result.map(|()| "erased".into())).await;
        }
        for key in self.keys.find(|key| key.deletion.is_some_and(|moment| moment <= now)) {
            let result = match permit(Own::Delete, &key.name) {
                Ok(permit) => ops::delete_by_itself(self, permit, &key).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(false) => {}
                Ok(true) => self.record("DeleteKey", &key, Ok("the deletion window is over".into())).await,
                Err(error) => self.record("DeleteKey", &key, Err(error)).await,
            }
        }
        self.write_usage().await;
        self.watch_stores().await;
    }

    /// Writes down when keys were last used.
    pub(crate) async fn write_usage(&self) {
        if let Err(error) = self.usage.flush().await {
            tracing::warn!(%error, "the last use of keys could not be written; it is tried again");
        }
    }

    /// Looks at the other side of each store in use. What is found is shown in metrics; the state of the store stays as its owner set it.
    async fn watch_stores(&self) {
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
            if let Err(fault) = &health {
                tracing::warn!(store = store.id, %fault, "the other side of a custom key store is not well");
            }
            let well = if health.is_ok() { 1.0 } else { 0.0 };
            gauge!("holdfast_external_key_store_well", "store" => store.id.clone()).set(well);
        }
    }

    async fn record(&self, operation: &'static str, key: &KeyEntry, result: Result<String, ApiError>) {
        if let Err(error) = &result {
            let reason = error.reason.as_deref().unwrap_or(&error.message);
            tracing::error!(operation, key = key.arn, reason, "an automatic act failed");
        }
        self.record_by_itself(operation, &key.arn, result).await;
    }

    async fn rotate(&self, key: &Arc<KeyEntry>) -> Result<bool, ApiError> {
        if !ops::rotate_by_itself(self, key, None).await? {
            return Ok(false);
        }
        let permits = (permit(Own::Rotate, &key.name)?, permit(Own::Rotate, &key.name)?);
        ops::rotate_by_itself(self, key, Some(permits)).await
    }

    async fn erase_expired(&self, key: &KeyEntry) -> Result<(), ApiError> {
        let lock = self.keys.lock(key.id).await;
        let now = self.keys.now();
        let Some(entry) = self.keys.entry(&key.key_ref()) else { return Ok(()) };
        let expired = entry.materials.iter().filter(|m| m.blob_version.is_some() && !m.is_present(now));
        let mut draft = Draft { entries: ops::family(self, &entry), ..Draft::default() };
        for material in expired {
            let more = ops::without(draft.entries, material);
            draft.entries = more.entries;
            draft.blobs.extend(more.blobs);
        }
        self.keys.commit(&lock, permit(Own::EraseMaterial, &entry.name)?, draft).await?;
        Ok(())
    }
}

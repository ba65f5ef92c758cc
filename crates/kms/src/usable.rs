//! A key that may be used now, and its way into the partition: two lines of defence.
//!
//! The role looks at state and usage; only that makes a [`Usable`], which everything that uses a key demands beside the permit. The
//! partition cannot see what the role keeps of a key, so it is told the key as it is at the moment of the use ([`perform`]), by the index
//! and not by what the request found before it waited for somebody. Neither line knows of the other.

use std::{ops::Deref, sync::Arc};

use holdfast_core::{KeyOperation, KeyOperations, KeyVersion, KeyVersionId, Operation, Outcome, Permit, Timestamp};

use crate::{
    Kms,
    call::Call,
    error::ApiError,
    keys::{KeyEntry, KeyState, Material, MaterialState},
    spec::KeyUsage,
};

/// A key that was enabled when its request looked: what operations on a key that is not used for cryptography demand.
pub(crate) struct Enabled<'k>(&'k KeyEntry);

/// A key that was enabled when its request looked, and is for what it is wanted for.
pub(crate) struct Usable {
    key: Arc<KeyEntry>,
}

impl Deref for Enabled<'_> {
    type Target = KeyEntry;

    fn deref(&self) -> &KeyEntry {
        self.0
    }
}

impl Deref for Usable {
    type Target = KeyEntry;

    fn deref(&self) -> &KeyEntry {
        &self.key
    }
}

impl Call<'_> {
    /// Refuses a key that is not enabled.
    pub(crate) fn enabled<'k>(&self, key: &'k KeyEntry) -> Result<Enabled<'k>, ApiError> {
        match self.state(key) {
            KeyState::Enabled => Ok(Enabled(key)),
            KeyState::Disabled => Err(ApiError::new("DisabledException", format!("{} is disabled.", key.arn))),
            other => Err(crate::call::wrong_state(key, other)),
        }
    }

    /// Refuses a key that is not enabled, then one that is for something else.
    pub(crate) fn usable(&self, key: &Arc<KeyEntry>, usage: KeyUsage) -> Result<Usable, ApiError> {
        let Enabled(enabled) = self.enabled(key)?;
        if enabled.usage == usage {
            return Ok(Usable { key: Arc::clone(key) });
        }
        Err(self.wrong_usage(key))
    }

    /// The key is for something else than this operation.
    pub(crate) fn wrong_usage(&self, key: &KeyEntry) -> ApiError {
        let (usage, operation) = (key.usage.name(), self.operation.name());
        let message = format!("{} key usage is {usage} which is not valid for {operation}.", key.arn);
        ApiError::new("InvalidKeyUsageException", message)
    }
}

impl Usable {
    /// The material that encrypts and signs.
    pub(crate) fn current_material(&self) -> Result<&Material, ApiError> {
        self.current().ok_or_else(|| ApiError::internal("an enabled key without material"))
    }

    /// The first line taken away: what a test of the second one attacks with.
    #[cfg(test)]
    fn unchecked(key: Arc<KeyEntry>) -> Self {
        Self { key }
    }
}

/// What the partition is told of a material: the key version with the attributes that it has now.
fn as_it_is(kms: &Kms, key: &KeyEntry, material: KeyVersionId, now: Timestamp) -> KeyVersion {
    let mut version = key.bound(material);
    let entry = kms.keys.entry(&key.key_ref());
    let in_use = |entry: &KeyEntry| entry.reference.as_ref().is_none_or(|other| kms.stores.is_in_use(&other.store));
    let entry = entry.filter(|entry| entry.state(now, in_use(entry)) == KeyState::Enabled);
    let material = entry.as_ref().and_then(|entry| entry.material(material)).filter(|found| found.is_present(now));
    let allowed = |state: MaterialState, operation: KeyOperation| match state {
        MaterialState::Current => true,
        MaterialState::NonCurrent => operation == KeyOperation::Decrypt,
        MaterialState::PendingRotation => false,
    };
    let attributes = &mut version.attributes;
    attributes.enabled = material.is_some();
    attributes.operations = match (&entry, material) {
        (Some(entry), Some(material)) => {
            attributes.expires = material.expires;
            entry.usage.operations().iter().filter(|operation| allowed(material.state, *operation)).collect()
        }
        _ => KeyOperations::default(),
    };
    version
}

/// Refuses a key that was taken out of use while a request waited for somebody after its use: the request is decided anew, and hears why.
pub(crate) fn still_usable(kms: &Kms, key: &Usable, material: &Material) -> Result<(), ApiError> {
    if as_it_is(kms, key, material.id, kms.keys.now()).attributes.enabled {
        return Ok(());
    }
    Err(ApiError::stale("the key was taken out of use while another service was asked"))
}

/// Uses a key: the one way into the partition.
pub(crate) async fn perform(
    kms: &Kms,
    permit: Permit,
    key: &Usable,
    material: &Material,
    operation: Operation,
) -> Result<Outcome, ApiError> {
    let open = kms.keys.open_key(key, material).await?;
    // After the last wait of the request before the use.
    let now = as_it_is(kms, key, material.id, kms.keys.now());
    Ok(open.perform(permit, &now, operation).await?)
}

#[cfg(test)]
mod tests;

//! A key that may be used now, and its way into the partition: two lines of defence.
//!
//! The role looks at state and usage; only that makes a [`Usable`], which everything that uses a key demands beside the permit. The
//! partition cannot see what the role keeps of a key, so it is told the key as it is at the moment of the use ([`perform`]), by the index
//! and not by what the request found before it waited for somebody. Neither line knows of the other.

use std::{ops::Deref, sync::Arc};

use holdfast_core::{
    AtThisMoment, Gate, HsmError, KeyOperation, KeyOperations, KeyVersion, KeyVersionId, Operation, Outcome, Pass,
    Permit, Timestamp,
};

use crate::{
    Kms,
    call::Call,
    code::Code,
    error::ApiError,
    keys::{KeyEntry, KeyRing, KeyState, Material, MaterialState},
    spec::KeyUsage,
    stores::KeyStores,
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
        must_be_enabled(self.kms, key, self.now).map(|()| Enabled(key))
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
        ApiError::new(Code::InvalidKeyUsage, message)
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

/// Refuses a key that is not enabled.
pub(crate) fn must_be_enabled(kms: &Kms, key: &KeyEntry, now: Timestamp) -> Result<(), ApiError> {
    let in_use = key.reference.as_ref().is_none_or(|reference| kms.stores.is_in_use(&reference.store));
    match key.state(now, in_use) {
        KeyState::Enabled => Ok(()),
        KeyState::Disabled => Err(ApiError::new(Code::Disabled, format!("{} is disabled.", key.arn))),
        other => Err(crate::call::wrong_state(key, other)),
    }
}

/// A material of a key, asked for by the partition at the moment of its use: after the last wait of the request.
struct Asked {
    keys: Arc<KeyRing>,
    stores: Arc<KeyStores>,
    gate: Arc<Gate>,
    key: Arc<KeyEntry>,
    material: KeyVersionId,
}

impl Asked {
    fn about(kms: &Kms, key: &Arc<KeyEntry>, material: KeyVersionId) -> Arc<dyn AtThisMoment> {
        Arc::new(Self {
            keys: Arc::clone(&kms.keys),
            stores: Arc::clone(&kms.stores),
            gate: Arc::clone(kms.store.gate()),
            key: Arc::clone(key),
            material,
        })
    }
}

impl AtThisMoment for Asked {
    fn look(&self) -> Result<(Pass, KeyVersion), HsmError> {
        // First the pass, then the look: a change that it does not see waits for it.
        let pass = self.gate.enter();
        Ok((pass, as_it_is(&self.keys, &self.stores, &self.key, self.material)))
    }
}

/// The wrapping key of an import, of which nothing is kept here: it is as good as the key is there that the material is for.
struct Wrapping {
    keys: Arc<KeyRing>,
    gate: Arc<Gate>,
    key: Arc<KeyEntry>,
    wrapping: KeyVersion,
}

impl AtThisMoment for Wrapping {
    fn look(&self) -> Result<(Pass, KeyVersion), HsmError> {
        let pass = self.gate.enter();
        let mut wrapping = self.wrapping.clone();
        wrapping.attributes.enabled =
            self.keys.entry(&self.key.key_ref()).is_some_and(|entry| entry.deletion.is_none());
        Ok((pass, wrapping))
    }
}

/// What the partition asks of a key that material was wrapped under, at the moment of its use.
pub(crate) fn wrapping(kms: &Kms, key: &Arc<KeyEntry>, wrapping: &KeyVersion) -> Arc<dyn AtThisMoment> {
    Arc::new(Wrapping {
        keys: Arc::clone(&kms.keys),
        gate: Arc::clone(kms.store.gate()),
        key: Arc::clone(key),
        wrapping: wrapping.clone(),
    })
}

/// What the partition is told of a material: the key version with the attributes that it has now.
fn as_it_is(keys: &KeyRing, stores: &KeyStores, key: &KeyEntry, material: KeyVersionId) -> KeyVersion {
    let mut version = key.bound(material);
    let (now, entry) = (keys.now(), keys.entry(&key.key_ref()));
    let in_use = |entry: &KeyEntry| entry.reference.as_ref().is_none_or(|other| stores.is_in_use(&other.store));
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
    if as_it_is(&kms.keys, &kms.stores, key, material.id).attributes.enabled {
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
    let asked = Asked::about(kms, &key.key, material.id);
    Ok(open.perform(permit, asked, operation).await?)
}

#[cfg(test)]
pub(crate) mod tests;

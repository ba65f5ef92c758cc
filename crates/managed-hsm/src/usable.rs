//! A key version that may be used now, and its way into the partition: two lines of defence.
//!
//! The role looks at the attributes that it keeps; only that makes a [`Usable`], which every use demands beside the permit. The partition
//! looks at the attributes that the blob is bound to, and at those that the role tells it at the moment of the use. Neither line knows
//! of the other.

use std::sync::Arc;

use holdfast_core::{
    AtThisMoment, Gate, HsmError, KeyAttributes, KeyName, KeyOperation, KeyVersion, KeyVersionId, Need, Operation,
    Outcome, Pass, Permit, Timestamp,
};

use crate::{
    ManagedHsm,
    error::ApiError,
    keys::{KeyRing, Located},
};

/// A key version whose attributes let it be used for one operation, when its request looked.
pub(crate) struct Usable<'l> {
    located: &'l Located,
    operation: Operation,
}

impl<'l> Usable<'l> {
    /// Refuses a version that is disabled, outside its validity, or for something else.
    pub(crate) fn check(hsm: &ManagedHsm, located: &'l Located, operation: Operation) -> Result<Self, ApiError> {
        located.version().attributes.allow(hsm.keys.now(), operation.need())?;
        Ok(Self { located, operation })
    }

    /// What the answer will rest on.
    pub(crate) fn used(&self) -> Used {
        let version = self.located.version();
        Used { name: self.located.entry.name.clone(), version: version.id, how: How::By(self.operation.need()) }
    }
}

/// A key version that was used: what the answer rests on besides the caller's roles.
#[derive(Clone)]
pub(crate) struct Used {
    name: KeyName,
    version: KeyVersionId,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    /// By an operation.
    By(Need),
    /// To take in a key that was wrapped for it.
    ToImport,
    /// It is told of: it must be there.
    Told,
}

impl Used {
    /// What is told of a key version, or a copy of it.
    pub(crate) fn told(name: &KeyName, version: KeyVersionId) -> Self {
        Self { name: name.clone(), version, how: How::Told }
    }

    /// A key that another was wrapped for.
    pub(crate) fn to_import(located: &Located) -> Self {
        Self { name: located.entry.name.clone(), version: located.version().id, how: How::ToImport }
    }

    /// Whether it could still be used so.
    pub(crate) fn still_usable(&self, hsm: &ManagedHsm) -> Result<(), ApiError> {
        let located = hsm.keys.locate(&self.name, Some(self.version))?;
        Ok(self.how.holds(&located.version().attributes, hsm.keys.now())?)
    }
}

impl How {
    /// Whether a version with these attributes may be used so at this moment.
    fn holds(self, attributes: &KeyAttributes, now: Timestamp) -> Result<(), HsmError> {
        match self {
            Self::By(need) => attributes.allow(now, need),
            Self::ToImport if !attributes.enabled => Err(HsmError::Disabled),
            Self::ToImport if !attributes.operations.contains(KeyOperation::Import) => {
                Err(HsmError::OperationNotAllowed)
            }
            Self::ToImport | Self::Told => Ok(()),
        }
    }
}

/// A version, asked for by the partition at the moment of its use: after the last wait of the request.
struct Asked {
    keys: Arc<KeyRing>,
    gate: Arc<Gate>,
    name: KeyName,
    version: KeyVersionId,
}

impl AtThisMoment for Asked {
    fn look(&self) -> Result<(Pass, KeyVersion), HsmError> {
        // First the pass, then the look: a change that it does not see waits for it.
        let pass = self.gate.enter();
        // A version of a key that was deleted meanwhile is not there.
        let now = self.keys.locate(&self.name, Some(self.version)).map_err(|_| HsmError::NotFound)?;
        Ok((pass, now.entry.bound(now.version())))
    }
}

/// What the partition asks at the moment of its use.
pub(crate) fn asked(hsm: &ManagedHsm, located: &Located) -> Arc<dyn AtThisMoment> {
    Arc::new(Asked {
        keys: Arc::clone(&hsm.keys),
        gate: Arc::clone(hsm.store.gate()),
        name: located.entry.name.clone(),
        version: located.version().id,
    })
}

/// Uses a key: the one way into the partition.
pub(crate) async fn perform(hsm: &ManagedHsm, permit: Permit, usable: Usable<'_>) -> Result<Outcome, ApiError> {
    let Usable { located, operation } = usable;
    let open = hsm.keys.open_key(located).await?;
    open.perform(permit, asked(hsm, located), operation).await.map_err(|error| refused(hsm, located, error))
}

/// What is told of a key that was there when the request looked.
pub(crate) fn refused(hsm: &ManagedHsm, located: &Located, error: HsmError) -> ApiError {
    if error != HsmError::NotFound {
        return error.into();
    }
    match hsm.keys.locate(&located.entry.name, Some(located.version().id)) {
        Err(error) => error,
        Ok(_) => HsmError::NotFound.into(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::{CiphertextParts, EncryptionScheme, KeyOperations};
    use holdfast_crypto::{AesSize, KeySpec, SecretBytes};

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_millis(1_800_000_000_000);

    fn attributes(operations: &[KeyOperation], enabled: bool) -> KeyAttributes {
        KeyAttributes {
            spec: KeySpec::Aes(AesSize::Bits256),
            operations: operations.iter().copied().collect::<KeyOperations>(),
            enabled,
            exportable: false,
            not_before: None,
            expires: None,
            release_policy_sha256: None,
        }
    }

    #[test]
    fn an_answer_rests_on_how_the_key_was_used() {
        let import = [KeyOperation::Import];
        assert_eq!(How::ToImport.holds(&attributes(&import, true), NOW), Ok(()));
        assert_eq!(How::ToImport.holds(&attributes(&import, false), NOW), Err(HsmError::Disabled));
        let other = attributes(&[KeyOperation::Encrypt], true);
        assert_eq!(How::ToImport.holds(&other, NOW), Err(HsmError::OperationNotAllowed));
        assert_eq!(How::Told.holds(&attributes(&[], false), NOW), Ok(()), "it is there");
        let encrypt = Operation::Encrypt {
            scheme: EncryptionScheme::AesGcm,
            plaintext: SecretBytes::copy_of(b""),
            parts: CiphertextParts::default(),
        };
        let by = How::By(encrypt.need());
        assert_eq!(by.holds(&other, NOW), Ok(()));
        assert_eq!(by.holds(&attributes(&[KeyOperation::Encrypt], false), NOW), Err(HsmError::Disabled));
    }
}

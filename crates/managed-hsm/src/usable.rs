//! A key version that may be used now, and its way into the partition: two lines of defence.
//!
//! The role looks at the attributes that it keeps; only that makes a [`Usable`], which every use demands beside the permit. The partition
//! looks at the attributes that the blob is bound to, and at those that the role tells it at the moment of the use. Neither line knows
//! of the other.

use holdfast_core::{Operation, Outcome, Permit};

use crate::{ManagedHsm, error::ApiError, keys::Located};

/// A key version whose attributes let it be used for one operation, when its request looked.
pub(crate) struct Usable<'l> {
    located: &'l Located,
    operation: Operation,
}

impl<'l> Usable<'l> {
    /// Refuses a version that is disabled, outside its validity, or for something else.
    pub(crate) fn check(hsm: &ManagedHsm, located: &'l Located, operation: Operation) -> Result<Self, ApiError> {
        located.version().attributes.allow(hsm.keys.now(), &operation)?;
        Ok(Self { located, operation })
    }
}

/// Uses a key: the one way into the partition.
pub(crate) async fn perform(hsm: &ManagedHsm, permit: Permit, usable: Usable<'_>) -> Result<Outcome, ApiError> {
    let Usable { located, operation } = usable;
    let open = hsm.keys.open_key(located).await?;
    // After the last wait of the request before the use: a version of a key that was deleted meanwhile is not there.
    let now = hsm.keys.locate(&located.entry.name, Some(located.version().id))?;
    Ok(open.perform(permit, &now.entry.bound(now.version()), operation).await?)
}

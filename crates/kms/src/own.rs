//! Acts of the service's own, and their permits.

use holdfast_core::{
    Action, Decision, Intent, KeyName, Permit, Policy, Principal, PrincipalKind, Resource, Spent, authorize,
};

use crate::error::ApiError;

/// An act of the service's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Own {
    Delete,
    EraseMaterial,
    /// A key that others wrap key material under, after the caller's permit for that was spent.
    MakeImportKey,
    Rotate,
    SealImportToken,
}

struct OwnPolicy(Own);

impl Own {
    fn action(self) -> Action {
        match self {
            Self::Delete => Action::KeyDelete,
            Self::EraseMaterial => Action::KeyUpdate,
            Self::MakeImportKey => Action::KeyCreate,
            Self::Rotate => Action::KeyRotate,
            Self::SealImportToken => Action::KeyBackup,
        }
    }
}

impl Policy for OwnPolicy {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        let of_import = matches!(&intent.resource, Resource::Key(name) if name.as_str().starts_with("import-"));
        if principal.kind() == PrincipalKind::System
            && intent.action == self.0.action()
            && of_import == (self.0 == Own::MakeImportKey)
        {
            Decision::Allow("the key's own settings".into())
        } else {
            Decision::Deny("the service does nothing else by itself".into())
        }
    }
}

/// Leave for a change of one key whose time has come.
pub(crate) fn due(act: Own, name: &KeyName) -> Result<Spent, ApiError> {
    Ok(permit(act, name)?.spend(act.action(), &Resource::Key(name.clone()))?)
}

/// A permit for an act of the service's own on one key.
pub(crate) fn permit(act: Own, name: &KeyName) -> Result<Permit, ApiError> {
    let intent = Intent { action: act.action(), resource: Resource::Key(name.clone()) };
    authorize(&OwnPolicy(act), &Principal::system(), intent).map_err(|denial| ApiError::internal(denial.to_string()))
}

#[cfg(test)]
pub(crate) fn policy(act: Own) -> impl Policy {
    OwnPolicy(act)
}

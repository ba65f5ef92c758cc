//! What is asked, and the proof that it is allowed.
//!
//! [`authorize`] is the only road to a [`Permit`]; a permit stands for one action on one resource and is used up by the
//! call that spends it. A handler that forgets to authorize has no permit to give and does not compile:
//!
//! ```compile_fail
//! let permit = holdfast_core::Permit { action: holdfast_core::Action::KeySign, resource: holdfast_core::Resource::Instance };
//! ```
//! ```compile_fail,E0382
//! fn twice(permit: holdfast_core::Permit) {
//!     let action = permit.action();
//!     let _ = permit.spend(action, &holdfast_core::Resource::Instance);
//!     let _ = permit.spend(action, &holdfast_core::Resource::Instance); // it was used up
//! }
//! ```

use std::fmt;

use crate::{ExternalKeyId, KeyName, Principal};

/// Something a principal may want to do. Each dialect maps its own names onto these, exhaustively.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Action {
    /// Take a copy of the audit log.
    AuditLogPull,
    /// Read the state of a full backup.
    BackupRead,
    /// Start a full backup.
    BackupStart,
    /// Delete a soft-deleted key for good.
    DeletedKeyPurge,
    /// See soft-deleted keys.
    DeletedKeyRead,
    /// Bring a soft-deleted key back.
    DeletedKeyRecover,
    /// Read the connection to an external key manager.
    ExternalKeyManagerRead,
    /// Change the connection to an external key manager.
    ExternalKeyManagerWrite,
    /// Export one key as a masked blob.
    KeyBackup,
    /// Make a key.
    KeyCreate,
    /// Decrypt data.
    KeyDecrypt,
    /// Soft-delete a key.
    KeyDelete,
    /// Derive a key.
    KeyDerive,
    /// Encrypt data.
    KeyEncrypt,
    /// Export a key in clear; no operation does so.
    KeyExport,
    /// Import a key.
    KeyImport,
    /// Read a key's public part and attributes.
    KeyRead,
    /// Release a key to an attested environment.
    KeyRelease,
    /// Restore a key from its backup.
    KeyRestore,
    /// Make a new version of a key.
    KeyRotate,
    /// Sign a digest.
    KeySign,
    /// Unwrap a key.
    KeyUnwrap,
    /// Change a key's attributes.
    KeyUpdate,
    /// Verify a signature.
    KeyVerify,
    /// Wrap a key.
    KeyWrap,
    /// Get random bytes.
    RandomRead,
    /// Read the state of a restore.
    RestoreRead,
    /// Start a restore.
    RestoreStart,
    /// Remove a role assignment.
    RoleAssignmentDelete,
    /// See role assignments.
    RoleAssignmentRead,
    /// Assign a role.
    RoleAssignmentWrite,
    /// Remove a custom role.
    RoleDefinitionDelete,
    /// See roles.
    RoleDefinitionRead,
    /// Define a custom role.
    RoleDefinitionWrite,
    /// Download the security domain.
    SecurityDomainDownload,
    /// Read the state of a security domain download.
    SecurityDomainDownloadRead,
    /// Get the key that a security domain upload is encrypted to.
    SecurityDomainTransferKeyRead,
    /// Upload a security domain.
    SecurityDomainUpload,
    /// Read the state of a security domain upload.
    SecurityDomainUploadRead,
    /// See settings.
    SettingRead,
    /// Change a setting.
    SettingWrite,
    /// Make a bucket.
    BucketCreate,
    /// Delete a bucket.
    BucketDelete,
    /// See one's buckets.
    BucketList,
    /// Read what is set for a bucket.
    BucketRead,
    /// Change what is set for a bucket.
    BucketUpdate,
    /// Give the data keys of a bucket, or of its objects, to another key or version of it.
    DataKeyRewrap,
    /// Delete an object, a version of one, or an upload.
    ObjectDelete,
    /// See which objects, versions, uploads or parts there are.
    ObjectList,
    /// Read an object or what is known of it.
    ObjectRead,
    /// Change what is kept beside an object's data: tags, the key that it is under.
    ObjectUpdate,
    /// Write an object, or a part of one.
    ObjectWrite,
}

/// What an action is done to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Resource {
    /// One bucket, as long as it has this id: a bucket that is made again by the same name is another one.
    Bucket(BucketId),
    /// All buckets.
    Buckets,
    /// One key in an external HSM.
    ExternalKey(ExternalKeyId),
    /// The whole instance.
    Instance,
    /// One key, all its versions.
    Key(KeyName),
    /// All keys.
    Keys,
    /// One object of a bucket, all its versions.
    Object(BucketId, String),
    /// All objects of a bucket.
    Objects(BucketId),
}

/// What names a bucket for ever: 16 random bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct BucketId(pub [u8; 16]);

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::BlobId(self.0).fmt(f)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bucket(id) => write!(f, "/buckets/{id}"),
            Self::Buckets => f.write_str("/buckets"),
            Self::Object(bucket, key) => write!(f, "/buckets/{bucket}/objects/{key}"),
            Self::Objects(bucket) => write!(f, "/buckets/{bucket}/objects"),
            Self::ExternalKey(id) => write!(f, "/external/{id}"),
            Self::Instance => f.write_str("/"),
            Self::Keys => f.write_str("/keys"),
            Self::Key(name) => write!(f, "/keys/{name}"),
        }
    }
}

/// One action on one resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Intent {
    /// What.
    pub action: Action,
    /// On what.
    pub resource: Resource,
}

/// What a policy says of an intent. The text is for the audit log, not for the caller.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Allowed, by the rule named.
    Allow(String),
    /// Denied, for the reason given.
    Deny(String),
}

/// Decides who may do what. Pure: it looks at nothing but its own rules.
pub trait Policy {
    /// Decides one intent of one principal. Anything not explicitly allowed is denied.
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision;
}

/// Proof that one action on one resource was allowed.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use holdfast_core::{Denial, Intent, Policy, Principal, authorize};
/// fn asked_in_vain(policy: &dyn Policy, who: &Principal, intent: Intent) -> Result<(), Denial> {
///     authorize(policy, who, intent)?;
///     Ok(())
/// }
/// ```
/// The same with the permit taken:
/// ```
/// #![deny(unused_must_use)]
/// # use holdfast_core::{Denial, Intent, Policy, Principal, authorize};
/// fn asked(policy: &dyn Policy, who: &Principal, intent: Intent) -> Result<(), Denial> {
///     let _permit = authorize(policy, who, intent)?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "a permit that nothing is done with was asked for in vain, or what it is for is done without it"]
pub struct Permit {
    action: Action,
    resource: Resource,
    rule: String,
}

/// Proof that a permit was used up, for what it was given: what is done by leave of it demands this.
///
/// ```compile_fail
/// let spent = holdfast_core::Spent { action: holdfast_core::Action::KeySign, resource: holdfast_core::Resource::Instance };
/// ```
/// ```compile_fail,E0599
/// fn twice(spent: holdfast_core::Spent) -> (holdfast_core::Spent, holdfast_core::Spent) {
///     (spent.clone(), spent) // one permit is one proof
/// }
/// ```
#[derive(Debug)]
pub struct Spent {
    action: Action,
    resource: Resource,
}

impl Spent {
    /// The action that was allowed.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// What it was allowed on.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Whether it is of a permit for one of `actions` on `resource`.
    #[must_use]
    pub fn is_for(&self, actions: &[Action], resource: &Resource) -> bool {
        actions.contains(&self.action) && self.resource == *resource
    }
}

/// A refusal; its reason goes to the audit log.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("denied: {reason}")]
pub struct Denial {
    /// What was asked.
    pub intent: Intent,
    /// Why it was refused.
    pub reason: String,
}

/// A permit was presented for something else than it was given for: a defect, never a caller's fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a permit for {permitted:?} was presented for something else on {resource}")]
pub struct PermitMismatch {
    /// `None`: there was no permit at all.
    permitted: Option<Action>,
    resource: String,
}

impl PermitMismatch {
    pub(crate) fn new(permitted: Option<Action>, resource: &Resource) -> Self {
        Self { permitted, resource: resource.to_string() }
    }
}

/// Asks `policy`.
///
/// # Errors
/// The [`Denial`].
pub fn authorize(policy: &dyn Policy, principal: &Principal, intent: Intent) -> Result<Permit, Denial> {
    match policy.decide(principal, &intent) {
        Decision::Allow(rule) => Ok(Permit { action: intent.action, resource: intent.resource, rule }),
        Decision::Deny(reason) => Err(Denial { intent, reason }),
    }
}

impl Permit {
    /// The action it allows.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// The rule that allowed it.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Uses the permit up for `action` on `resource`.
    ///
    /// # Errors
    /// [`PermitMismatch`] if it was given for anything else.
    pub fn spend(self, action: Action, resource: &Resource) -> Result<Spent, PermitMismatch> {
        self.spend_any(&[action], resource)
    }

    /// Uses the permit up for whichever of `actions` it was given for; the proof says which.
    ///
    /// # Errors
    /// [`PermitMismatch`] if it was given for none of them, or for another resource.
    pub fn spend_any(self, actions: &[Action], resource: &Resource) -> Result<Spent, PermitMismatch> {
        if actions.contains(&self.action) && self.resource == *resource {
            Ok(Spent { action: self.action, resource: self.resource })
        } else {
            Err(PermitMismatch::new(Some(self.action), resource))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything;
    impl Policy for Everything {
        fn decide(&self, _: &Principal, _: &Intent) -> Decision {
            Decision::Allow("test".into())
        }
    }

    #[test]
    fn a_permit_is_for_one_action_on_one_resource() {
        let key = |name| Resource::Key(KeyName::parse(name).unwrap());
        let permit = || {
            let intent = Intent { action: Action::KeyWrap, resource: key("a") };
            authorize(&Everything, &Principal::system(), intent).unwrap()
        };
        assert!(permit().spend(Action::KeyWrap, &key("A")).is_ok(), "key names ignore case");
        assert!(permit().spend(Action::KeyUnwrap, &key("a")).is_err());
        assert!(permit().spend(Action::KeyWrap, &key("b")).is_err());
        assert!(permit().spend(Action::KeyWrap, &Resource::Keys).is_err());
    }

    #[test]
    fn a_permit_says_by_which_rule_and_is_spent_for_what_it_was_given() {
        let intent = || Intent { action: Action::KeyRotate, resource: Resource::Keys };
        let permit = || authorize(&Everything, &Principal::system(), intent()).unwrap();
        assert_eq!((permit().rule(), permit().action()), ("test", Action::KeyRotate));
        let spent = permit().spend_any(&[Action::KeyCreate, Action::KeyRotate], &Resource::Keys).unwrap();
        assert_eq!((spent.action(), spent.resource()), (Action::KeyRotate, &Resource::Keys));
        assert!(spent.is_for(&[Action::KeyCreate, Action::KeyRotate], &Resource::Keys));
        assert!(!spent.is_for(&[Action::KeyCreate], &Resource::Keys));
        assert!(!spent.is_for(&[Action::KeyRotate], &Resource::Instance));
        let mismatch = permit().spend(Action::KeyRotate, &Resource::Instance).unwrap_err();
        assert_eq!(mismatch.to_string(), "a permit for Some(KeyRotate) was presented for something else on /");
    }

    #[test]
    fn resources_by_their_paths() {
        let bucket = BucketId([0xab; 16]);
        let hex = "ab".repeat(16);
        let paths = [
            (Resource::Bucket(bucket), format!("/buckets/{hex}")),
            (Resource::Buckets, "/buckets".into()),
            (Resource::ExternalKey(ExternalKeyId::parse("mail").unwrap()), "/external/mail".into()),
            (Resource::Instance, "/".into()),
            (Resource::Key(KeyName::parse("k").unwrap()), "/keys/k".into()),
            (Resource::Keys, "/keys".into()),
            (Resource::Object(bucket, "a/b".into()), format!("/buckets/{hex}/objects/a/b")),
            (Resource::Objects(bucket), format!("/buckets/{hex}/objects")),
        ];
        for (resource, path) in paths {
            assert_eq!(resource.to_string(), path);
        }
    }
}

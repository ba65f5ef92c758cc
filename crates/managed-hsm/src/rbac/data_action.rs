//! Key Vault's names for actions, both ways.

use holdfast_core::Action;

const PREFIX: &str = "Microsoft.KeyVault/managedHsm/";
/// What the real service does not have is named otherwise, so that no pattern written for the real service (`Microsoft.KeyVault/managedHsm/*`)
/// grants it.
const AUDIT_LOG_PULL: &str = "Holdfast/managedHsm/auditLog/pull/action";

/// Every action a role can grant.
const ALL: &[Action] = &[
    Action::AuditLogPull,
    Action::BackupRead,
    Action::BackupStart,
    Action::DeletedKeyPurge,
    Action::DeletedKeyRead,
    Action::DeletedKeyRecover,
    Action::ExternalKeyManagerRead,
    Action::ExternalKeyManagerWrite,
    Action::KeyBackup,
    Action::KeyCreate,
    Action::KeyDecrypt,
    Action::KeyDelete,
    Action::KeyDerive,
    Action::KeyEncrypt,
    Action::KeyExport,
    Action::KeyImport,
    Action::KeyRead,
    Action::KeyRelease,
    Action::KeyRestore,
    Action::KeyRotate,
    Action::KeySign,
    Action::KeyUnwrap,
    Action::KeyUpdate,
    Action::KeyVerify,
    Action::KeyWrap,
    Action::RandomRead,
    Action::RestoreRead,
    Action::RestoreStart,
    Action::RoleAssignmentDelete,
    Action::RoleAssignmentRead,
    Action::RoleAssignmentWrite,
    Action::RoleDefinitionDelete,
    Action::RoleDefinitionRead,
    Action::RoleDefinitionWrite,
    Action::SecurityDomainDownload,
    Action::SecurityDomainDownloadRead,
    Action::SecurityDomainTransferKeyRead,
    Action::SecurityDomainUpload,
    Action::SecurityDomainUploadRead,
    Action::SettingRead,
    Action::SettingWrite,
];

/// The action's name without its prefix. The suffixes are as inconsistent as the service's own.
fn short_name(action: Action) -> &'static str {
    match action {
        Action::AuditLogPull => "auditLog/pull/action",
        Action::BackupRead => "backup/status/action",
        Action::BackupStart => "backup/start/action",
        Action::DeletedKeyPurge => "keys/deletedKeys/delete",
        Action::DeletedKeyRead => "keys/deletedKeys/read/action",
        Action::DeletedKeyRecover => "keys/deletedKeys/recover/action",
        Action::ExternalKeyManagerRead => "ekm/read/action",
        Action::ExternalKeyManagerWrite => "ekm/write/action",
        Action::KeyBackup => "keys/backup/action",
        Action::KeyCreate => "keys/create",
        Action::KeyDecrypt => "keys/decrypt/action",
        Action::KeyDelete => "keys/delete",
        Action::KeyDerive => "keys/derive/action",
        Action::KeyEncrypt => "keys/encrypt/action",
        Action::KeyExport => "keys/export/action",
        Action::KeyImport => "keys/import/action",
        Action::KeyRead => "keys/read/action",
        Action::KeyRelease => "keys/release/action",
        Action::KeyRestore => "keys/restore/action",
        Action::KeyRotate => "keys/rotate/action",
        Action::KeySign => "keys/sign/action",
        Action::KeyUnwrap => "keys/unwrap/action",
        Action::KeyUpdate => "keys/write/action",
        Action::KeyVerify => "keys/verify/action",
        Action::KeyWrap => "keys/wrap/action",
        Action::RandomRead => "rng/action",
        Action::RestoreRead => "restore/status/action",
        Action::RestoreStart => "restore/start/action",
        Action::RoleAssignmentDelete => "roleAssignments/delete/action",
        Action::RoleAssignmentRead => "roleAssignments/read/action",
        Action::RoleAssignmentWrite => "roleAssignments/write/action",
        Action::RoleDefinitionDelete => "roleDefinitions/delete/action",
        Action::RoleDefinitionRead => "roleDefinitions/read/action",
        Action::RoleDefinitionWrite => "roleDefinitions/write/action",
        Action::SecurityDomainDownload => "securitydomain/download/action",
        Action::SecurityDomainDownloadRead => "securitydomain/download/read",
        Action::SecurityDomainTransferKeyRead => "securitydomain/transferkey/read",
        Action::SecurityDomainUpload => "securitydomain/upload/action",
        Action::SecurityDomainUploadRead => "securitydomain/upload/read",
        Action::SettingRead => "settings/read/action",
        Action::SettingWrite => "settings/write/action",
        // Of another role: none of [`ALL`], so that no definition of a role can grant them.
        Action::BucketCreate
        | Action::BucketDelete
        | Action::BucketList
        | Action::BucketRead
        | Action::BucketUpdate
        | Action::DataKeyRewrap
        | Action::ObjectDelete
        | Action::ObjectList
        | Action::ObjectRead
        | Action::ObjectUpdate
        | Action::ObjectWrite => "none",
    }
}

/// The action's full name.
pub(crate) fn data_action_name(action: Action) -> String {
    if action == Action::AuditLogPull {
        return AUDIT_LOG_PULL.to_owned();
    }
    format!("{PREFIX}{}", short_name(action))
}

/// A set of actions, small enough to decide in a few instructions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct ActionSet(u64);

impl ActionSet {
    pub(crate) fn contains(self, action: Action) -> bool {
        self.0 & 1 << action as u64 != 0
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The actions a pattern names: a full name, or a prefix and `*`. `None` if it names none. Case makes no
    /// difference.
    pub(crate) fn matching(pattern: &str) -> Option<Self> {
        let pattern = pattern.to_ascii_lowercase();
        let matches = |action: &&Action| {
            let name = data_action_name(**action).to_ascii_lowercase();
            // Nor does `*`, which whoever wrote it took for all of the real service's.
            let named = **action != Action::AuditLogPull || pattern.starts_with("holdfast/");
            named && pattern.strip_suffix('*').map_or_else(|| name == pattern, |prefix| name.starts_with(prefix))
        };
        let set: Self = ALL.iter().filter(matches).copied().collect();
        (set.0 != 0).then_some(set)
    }
}

impl FromIterator<Action> for ActionSet {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Self {
        Self(actions.into_iter().fold(0, |bits, action| bits | 1 << action as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_two_sets_or_twice_in_one_is_in_their_union() {
        let set = |actions: &[Action]| actions.iter().copied().collect::<ActionSet>();
        let twice = set(&[Action::KeySign, Action::KeySign]);
        assert_eq!(twice, set(&[Action::KeySign]));
        let both = set(&[Action::KeySign, Action::KeyWrap]);
        assert_eq!(both.union(twice), both);
        assert_eq!(both.without(twice), set(&[Action::KeyWrap]));
    }

    #[test]
    fn names_are_distinct_and_found_again() {
        for action in ALL {
            let set = ActionSet::matching(&data_action_name(*action)).unwrap();
            assert_eq!(set, [*action].into_iter().collect());
        }
        assert!(ActionSet::matching("Microsoft.KeyVault/managedHsm/keys/nothing").is_none());
        let real = ActionSet::matching("Microsoft.KeyVault/managedHsm/*").unwrap();
        assert!(!real.contains(Action::AuditLogPull), "a role of the real service grants it");
        assert!(!ActionSet::matching("*").unwrap().contains(Action::AuditLogPull));
        assert!(ActionSet::matching("holdfast/*").unwrap().contains(Action::AuditLogPull));
        let keys = ActionSet::matching("microsoft.keyvault/managedhsm/keys/*").unwrap();
        assert!(keys.contains(Action::KeyWrap) && !keys.contains(Action::RandomRead));
    }
}

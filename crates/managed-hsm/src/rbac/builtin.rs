//! The built-in roles, under the GUIDs and with the actions of the real service.

use holdfast_core::Action;

use super::{data_action::data_action_name, state::RoleDefinition};

/// "Managed HSM Administrator".
pub const ADMINISTRATOR: &str = "a290e904-7015-4bba-90c8-60543313cdb4";
/// "Managed HSM Crypto Officer".
pub const CRYPTO_OFFICER: &str = "515eb02d-2335-4d2d-92f2-b1cbdf9c3778";
/// "Managed HSM Crypto Service Encryption User": what a storage service needs of its KEKs.
pub const CRYPTO_SERVICE_ENCRYPTION_USER: &str = "33413926-3206-4cdd-b39a-83574fe37a17";
/// "Managed HSM Crypto User".
pub const CRYPTO_USER: &str = "21dbd100-6940-42c2-9190-5d6cb909625b";

/// "Holdfast Managed HSM Audit Reader": takes copies of the audit log, and nothing else. The real service has no such role, and no other role
/// contains it.
pub const AUDIT_READER: &str = "6f1d2c6a-6f0b-4a57-9c53-8d2f3f6b7a10";

const ROLE_MANAGEMENT: &[&str] = &[
    "roleAssignments/read/action",
    "roleAssignments/write/action",
    "roleAssignments/delete/action",
    "roleDefinitions/read/action",
    "roleDefinitions/write/action",
    "roleDefinitions/delete/action",
];

/// Name, GUID, actions without their prefix.
const ROLES: &[(&str, &str, &[&[&str]])] = &[
    (
        "Managed HSM Administrator",
        ADMINISTRATOR,
        &[
            ROLE_MANAGEMENT,
            &[
                "securitydomain/download/action",
                "securitydomain/download/read",
                "securitydomain/upload/action",
                "securitydomain/upload/read",
                "securitydomain/transferkey/read",
                "backup/start/action",
                "restore/start/action",
                "backup/status/action",
                "restore/status/action",
                // Not in the service's own listing, which leaves settings and EKM to the administrator unsaid.
                "settings/read/action",
                "settings/write/action",
                "ekm/read/action",
                "ekm/write/action",
            ],
        ],
    ),
    (
        "Managed HSM Crypto Officer",
        CRYPTO_OFFICER,
        &[
            ROLE_MANAGEMENT,
            &[
                "keys/deletedKeys/read/action",
                "keys/deletedKeys/delete",
                "keys/deletedKeys/recover/action",
                "keys/export/action",
            ],
        ],
    ),
    (
        "Managed HSM Crypto User",
        CRYPTO_USER,
        &[&[
            "roleDefinitions/read/action",
            "roleAssignments/read/action",
            "keys/read/action",
            "keys/write/action",
            "keys/delete",
            "keys/create",
            "keys/rotate/action",
            "keys/import/action",
            "keys/release/action",
            "keys/backup/action",
            "keys/restore/action",
            "keys/encrypt/action",
            "keys/decrypt/action",
            "keys/wrap/action",
            "keys/unwrap/action",
            "keys/sign/action",
            "keys/verify/action",
            "keys/derive/action",
            "rng/action",
        ]],
    ),
    ("Managed HSM Policy Administrator", "4bd23610-cdcf-4971-bdee-bdc562cc28e4", &[ROLE_MANAGEMENT]),
    (
        "Managed HSM Crypto Auditor",
        "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3",
        &[&[
            "roleAssignments/read/action",
            "roleDefinitions/read/action",
            "keys/read/action",
            "keys/deletedKeys/read/action",
        ]],
    ),
    (
        "Managed HSM Crypto Service Encryption User",
        CRYPTO_SERVICE_ENCRYPTION_USER,
        &[&["keys/read/action", "keys/wrap/action", "keys/unwrap/action"]],
    ),
    ("Managed HSM Crypto Service Release User", "21dbd100-6940-42c2-9190-5d6cb909625c", &[&["keys/release/action"]]),
    (
        "Managed HSM Backup User",
        "7b127d3c-77bd-4e3e-bbe0-dbb8971fa7f8",
        &[&["backup/start/action", "backup/status/action", "keys/backup/action"]],
    ),
    (
        "Managed HSM Restore User",
        "6efe6056-5259-49d2-8b3d-d3d73544b20b",
        &[&["restore/start/action", "restore/status/action", "keys/restore/action"]],
    ),
];

/// All built-in roles.
pub(crate) fn built_in_definitions() -> impl Iterator<Item = RoleDefinition> {
    let real = ROLES.iter().map(|(name, id, groups)| {
        let actions = groups.iter().copied().flatten();
        RoleDefinition {
            id: (*id).to_owned(),
            role_name: (*name).to_owned(),
            description: String::new(),
            built_in: true,
            data_actions: actions.map(|action| format!("Microsoft.KeyVault/managedHsm/{action}")).collect(),
            not_data_actions: Vec::new(),
        }
    });
    let audit_reader = RoleDefinition {
        id: AUDIT_READER.to_owned(),
        role_name: "Holdfast Managed HSM Audit Reader".to_owned(),
        description: "Takes copies of the audit log".to_owned(),
        built_in: true,
        data_actions: vec![data_action_name(Action::AuditLogPull)],
        not_data_actions: Vec::new(),
    };
    real.chain([audit_reader])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rbac::ActionSet;

    #[test]
    fn every_action_is_known() {
        for role in built_in_definitions() {
            for action in &role.data_actions {
                assert!(ActionSet::matching(action).is_some(), "{} has {action}", role.role_name);
            }
        }
    }

    #[test]
    fn no_other_role_reads_the_log() {
        for role in built_in_definitions() {
            let grants =
                |action: &String| ActionSet::matching(action).is_some_and(|set| set.contains(Action::AuditLogPull));
            assert_eq!(role.data_actions.iter().any(grants), role.id == AUDIT_READER, "{}", role.role_name);
        }
    }
}

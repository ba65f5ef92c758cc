//! Local RBAC: who may do what here, apart from any control plane.

mod builtin;
mod data_action;
mod state;
mod store;

pub(crate) use builtin::built_in_definitions;
pub use builtin::{ADMINISTRATOR, AUDIT_READER, CRYPTO_OFFICER, CRYPTO_SERVICE_ENCRYPTION_USER, CRYPTO_USER};
pub(crate) use data_action::{ActionSet, data_action_name};
pub(crate) use state::{RbacState, RoleAssignment, RoleDefinition};
pub(crate) use store::{Rbac, assignment_not_found, assignment_write, definition_not_found};

//! Role definitions and assignments.

use holdfast_service::Done;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    Call, Reply,
    filter::{Filter, Member},
};
use crate::{
    code::Code,
    error::ApiError,
    rbac::{ActionSet, RbacState, RoleAssignment, RoleDefinition, assignment_not_found, definition_not_found},
    route::Scope,
    wire::{self, Page},
};

const DEFINITION_ID_PREFIX: &str = "Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/";
const CUSTOM_DEFINITIONS_MAX: usize = 50;
/// Assignments at the top, and at one key; the real service's limits are 50 and 10.
const ASSIGNMENTS_MAX: usize = 1000;
const TEXT_BYTES_MAX: usize = 1024;
const PERMISSIONS_MAX: usize = 100;

#[derive(Serialize)]
struct DefinitionOut<'a> {
    id: String,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    properties: DefinitionProperties<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionProperties<'a> {
    role_name: &'a str,
    description: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    assignable_scopes: [&'static str; 1],
    permissions: [PermissionOut<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PermissionOut<'a> {
    actions: [&'a str; 0],
    not_actions: [&'a str; 0],
    data_actions: &'a [String],
    not_data_actions: &'a [String],
}

fn kind_of(definition: &RoleDefinition) -> &'static str {
    if definition.built_in { "AKVBuiltInRole" } else { "CustomRole" }
}

fn definition_out(definition: &RoleDefinition) -> DefinitionOut<'_> {
    DefinitionOut {
        id: format!("{DEFINITION_ID_PREFIX}{}", definition.id),
        name: &definition.id,
        kind: "Microsoft.Authorization/roleDefinitions",
        properties: DefinitionProperties {
            role_name: &definition.role_name,
            description: &definition.description,
            kind: kind_of(definition),
            assignable_scopes: ["/"],
            permissions: [PermissionOut {
                actions: [],
                not_actions: [],
                data_actions: &definition.data_actions,
                not_data_actions: &definition.not_data_actions,
            }],
        },
    }
}

#[derive(Serialize)]
struct AssignmentOut<'a> {
    id: String,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    properties: AssignmentProperties<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AssignmentProperties<'a> {
    principal_id: &'a str,
    role_definition_id: String,
    scope: String,
}

fn assignment_out(assignment: &RoleAssignment) -> AssignmentOut<'_> {
    let scope = assignment.scope.to_wire();
    AssignmentOut {
        id: format!(
            "{}/providers/Microsoft.Authorization/roleAssignments/{}",
            scope.trim_end_matches('/'),
            assignment.id
        ),
        name: &assignment.id,
        kind: "Microsoft.Authorization/roleAssignments",
        properties: AssignmentProperties {
            principal_id: &assignment.principal_id,
            role_definition_id: format!("{DEFINITION_ID_PREFIX}{}", assignment.definition_id),
            scope,
        },
    }
}

/// 8-4-4-4-12 hex digits.
pub(super) fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(position, byte)| match position {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn check_guid(what: &str, text: &str) -> Result<(), ApiError> {
    if is_guid(text) { Ok(()) } else { Err(ApiError::bad_parameter(format!("The {what} must be a GUID"))) }
}

pub(super) fn list_definitions(call: &Call<'_>) -> Result<Reply, ApiError> {
    let filter = Filter::of(call)?;
    let wanted = |found: &&RoleDefinition| match &filter {
        // All of them are made at the top.
        Filter::All | Filter::AtScope | Filter::AtScopeAndBelow => true,
        Filter::Equals(Member::RoleName, name) => found.role_name == *name,
        Filter::Equals(Member::Type, kind) => kind_of(found) == kind,
        Filter::Equals(Member::PrincipalId, _) => false,
    };
    if matches!(filter, Filter::Equals(Member::PrincipalId, _)) {
        return Err(Filter::unsupported());
    }
    let state = call.hsm.rbac.state();
    let value: Vec<_> = state.definitions().filter(wanted).map(definition_out).collect();
    Reply::ok(&Page { value, next_link: None })
}

pub(super) fn get_definition(call: &Call<'_>, id: &str) -> Result<Reply, ApiError> {
    let state = call.hsm.rbac.state();
    Reply::ok(&definition_out(state.definition(id).ok_or_else(|| definition_not_found(id))?))
}

#[derive(Deserialize)]
struct DefinitionPut {
    #[serde(default, deserialize_with = "wire::absent_or")]
    properties: DefinitionIn,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionIn {
    role_name: Option<String>,
    description: Option<String>,
    #[serde(default, deserialize_with = "wire::absent_or")]
    permissions: Vec<PermissionIn>,
    assignable_scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PermissionIn {
    #[serde(default)]
    data_actions: Option<Vec<String>>,
    #[serde(default)]
    not_data_actions: Option<Vec<String>>,
}

/// Creates or replaces: what is not sent becomes empty, as in the real service.
pub(super) async fn put_definition(call: &Call<'_>, scope: &Scope, id: &str) -> Result<Done<Reply>, ApiError> {
    check_guid("role definition name", id)?;
    check_scope(scope)?;
    let DefinitionIn { role_name, description, permissions, assignable_scopes } =
        wire::parse::<DefinitionPut>(call.body)?.properties;
    // "/" and "/keys" both mean all keys, and are answered "/". A single key would be a bound that is not kept.
    let whole = |scope: &String| matches!(Scope::from_wire(scope), Some(Scope::Instance | Scope::Keys));
    if !assignable_scopes.iter().flatten().all(whole) {
        return Err(ApiError::bad_parameter("assignableScopes must be [\"/\"]"));
    }
    let (mut data_actions, mut not_data_actions) = (Vec::new(), Vec::new());
    for permission in permissions {
        data_actions.extend(permission.data_actions.unwrap_or_default());
        not_data_actions.extend(permission.not_data_actions.unwrap_or_default());
    }
    let definition = RoleDefinition {
        id: id.to_owned(),
        role_name: role_name.unwrap_or_default(),
        description: description.unwrap_or_default(),
        built_in: false,
        data_actions,
        not_data_actions,
    };
    check_definition(&definition)?;
    let (rbac, store) = (&call.hsm.rbac, call.hsm.store.as_ref());
    let check = |state: &RbacState| room_for_definition(state, &definition);
    let committed =
        rbac.put_definition(store, || call.decided(StatusCode::CREATED), scope, definition.clone(), check).await?;
    Ok(Done::Changed(committed, Reply::created(&definition_out(&definition))?))
}

/// Roles are of the whole HSM: whoever may change the roles of one key would change those of all.
fn check_scope(scope: &Scope) -> Result<(), ApiError> {
    if matches!(scope, Scope::Key(_)) {
        return Err(ApiError::bad_parameter("Role definitions are made and deleted at scope /"));
    }
    Ok(())
}

fn check_definition(definition: &RoleDefinition) -> Result<(), ApiError> {
    if definition.role_name.len() > TEXT_BYTES_MAX || definition.description.len() > TEXT_BYTES_MAX {
        return Err(ApiError::bad_parameter("roleName and description have at most 1024 bytes"));
    }
    let patterns = || definition.data_actions.iter().chain(&definition.not_data_actions);
    if patterns().count() > PERMISSIONS_MAX {
        return Err(ApiError::bad_parameter("A role has at most 100 data actions"));
    }
    match patterns().find(|pattern| ActionSet::matching(pattern).is_none()) {
        None => Ok(()),
        Some(unknown) => {
            let unknown = crate::route::printable(unknown);
            Err(ApiError::bad_parameter(format!("{unknown} is not a data action of Managed HSM")))
        }
    }
}

fn room_for_definition(state: &RbacState, definition: &RoleDefinition) -> Result<(), ApiError> {
    match state.definition(&definition.id) {
        Some(old) if old.built_in => return Err(ApiError::not_permitted("A built-in role cannot be changed")),
        Some(_) => {}
        None if state.definitions().filter(|known| !known.built_in).count() >= CUSTOM_DEFINITIONS_MAX => {
            return Err(ApiError::not_permitted("The HSM already has 50 custom roles"));
        }
        None => {}
    }
    let same_name = |known: &&RoleDefinition| known.id != definition.id && known.role_name == definition.role_name;
    if !definition.role_name.is_empty() && state.definitions().any(|known| same_name(&known)) {
        return Err(ApiError::conflict(Code::RoleDefinitionWithSameNameExists, "A role of this name exists already"));
    }
    Ok(())
}

pub(super) async fn delete_definition(call: &Call<'_>, scope: &Scope, id: &str) -> Result<Done<Reply>, ApiError> {
    check_scope(scope)?;
    let event = || call.decided(StatusCode::OK);
    let (committed, removed) = call.hsm.rbac.remove_definition(call.hsm.store.as_ref(), event, scope, id).await?;
    Ok(Done::Changed(committed, Reply::ok(&definition_out(&removed))?))
}

/// At `/` and `/keys`: assignments made at the top. At a key: those on that key. A filter may ask for more.
pub(super) fn list_assignments(call: &Call<'_>, scope: &Scope) -> Result<Reply, ApiError> {
    let filter = Filter::of(call)?;
    let top = |scope: &Scope| !matches!(scope, Scope::Key(_));
    let at = |found: &Scope| if top(scope) { top(found) } else { found == scope };
    let wanted = |found: &&RoleAssignment| match &filter {
        Filter::All => at(&found.scope),
        Filter::AtScope => at(&found.scope) || top(&found.scope),
        // At, above and below.
        Filter::Equals(Member::PrincipalId, id) => {
            let related = top(scope) || top(&found.scope) || found.scope == *scope;
            related && found.principal_id.eq_ignore_ascii_case(id)
        }
        Filter::AtScopeAndBelow | Filter::Equals(..) => false,
    };
    if matches!(filter, Filter::AtScopeAndBelow | Filter::Equals(Member::RoleName | Member::Type, _)) {
        return Err(Filter::unsupported());
    }
    let state = call.hsm.rbac.state();
    let value: Vec<_> = state.assignments().filter(wanted).map(assignment_out).collect();
    Reply::ok(&Page { value, next_link: None })
}

pub(super) fn get_assignment(call: &Call<'_>, scope: &Scope, id: &str) -> Result<Reply, ApiError> {
    let state = call.hsm.rbac.state();
    let found = state.assignment(id).filter(|found| found.scope == *scope);
    Reply::ok(&assignment_out(found.ok_or_else(|| assignment_not_found(id))?))
}

#[derive(Deserialize)]
struct AssignmentPut {
    properties: AssignmentIn,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AssignmentIn {
    role_definition_id: String,
    principal_id: String,
}

pub(super) async fn put_assignment(call: &Call<'_>, scope: &Scope, id: &str) -> Result<Done<Reply>, ApiError> {
    check_guid("role assignment name", id)?;
    let request = wire::parse::<AssignmentPut>(call.body)?.properties;
    let definition_id = request.role_definition_id.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    check_guid("roleDefinitionId", &definition_id)?;
    check_guid("principalId", &request.principal_id)?;
    let assignment = RoleAssignment {
        id: id.to_owned(),
        principal_id: request.principal_id.to_ascii_lowercase(),
        definition_id,
        scope: scope.clone(),
    };
    let (rbac, store) = (&call.hsm.rbac, call.hsm.store.as_ref());
    let check = |state: &RbacState| room_for_assignment(state, &assignment);
    let committed = rbac.put_assignment(store, || call.decided(StatusCode::CREATED), assignment.clone(), check).await?;
    Ok(Done::Changed(committed, Reply::created(&assignment_out(&assignment))?))
}

fn room_for_assignment(state: &RbacState, assignment: &RoleAssignment) -> Result<(), ApiError> {
    if state.definition(&assignment.definition_id).is_none() {
        return Err(definition_not_found(&assignment.definition_id));
    }
    if state.assignment(&assignment.id).is_some() {
        return Err(ApiError::conflict(Code::RoleAssignmentExists, "A role assignment of this name exists already"));
    }
    let same = |known: &RoleAssignment| {
        known.principal_id == assignment.principal_id
            && known.definition_id == assignment.definition_id
            && known.scope == assignment.scope
    };
    if state.assignments().any(same) {
        return Err(ApiError::conflict(Code::RoleAssignmentExists, "The role is assigned to this principal already"));
    }
    if state.assignments().count() >= ASSIGNMENTS_MAX {
        return Err(ApiError::not_permitted("The HSM already has 1000 role assignments"));
    }
    Ok(())
}

pub(super) async fn delete_assignment(call: &Call<'_>, scope: &Scope, id: &str) -> Result<Done<Reply>, ApiError> {
    let event = || call.decided(StatusCode::OK);
    let (committed, removed) = call.hsm.rbac.remove_assignment(call.hsm.store.as_ref(), event, id, scope).await?;
    Ok(Done::Changed(committed, Reply::ok(&assignment_out(&removed))?))
}

#[cfg(test)]
mod tests {
    use super::is_guid;

    #[test]
    fn guids() {
        assert!(is_guid("a290e904-7015-4bba-90c8-60543313cdb4"));
        for bad in [
            "",
            "a290e904-7015-4bba-90c8-60543313cdb",
            "a290e904x7015-4bba-90c8-60543313cdb4",
            "../../../../../../../../../../../../",
        ] {
            assert!(!is_guid(bad), "{bad}");
        }
    }
}

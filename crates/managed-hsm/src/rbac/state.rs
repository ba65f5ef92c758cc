//! Roles and assignments in force, and the decision.

use std::collections::{BTreeMap, HashMap};

use holdfast_core::{Decision, Intent, Policy, Principal, PrincipalKind, Resource};

use super::{ActionSet, built_in_definitions};
use crate::route::Scope;

/// A role: a named set of actions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RoleDefinition {
    /// GUID, lower case.
    pub id: String,
    pub role_name: String,
    pub description: String,
    pub built_in: bool,
    pub data_actions: Vec<String>,
    pub not_data_actions: Vec<String>,
}

impl RoleDefinition {
    /// The actions it grants. Patterns that name nothing grant nothing; they are refused when a role is defined.
    fn granted(&self) -> ActionSet {
        let set = |patterns: &[String]| {
            patterns.iter().filter_map(|p| ActionSet::matching(p)).fold(ActionSet::default(), ActionSet::union)
        };
        set(&self.data_actions).without(set(&self.not_data_actions))
    }
}

/// A role given to a principal at a scope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RoleAssignment {
    /// GUID, lower case.
    pub id: String,
    pub principal_id: String,
    pub definition_id: String,
    pub scope: Scope,
}

impl RoleAssignment {
    /// `/` and `/keys` both cover everything; `/keys/NAME` covers that key.
    fn covers(&self, resource: &Resource) -> bool {
        match &self.scope {
            Scope::Instance | Scope::Keys => true,
            Scope::Key(name) => matches!(resource, Resource::Key(key) if key == name),
        }
    }
}

/// Everything that decides access, as one immutable value.
#[derive(Clone)]
pub(crate) struct RbacState {
    definitions: BTreeMap<String, RoleDefinition>,
    assignments: BTreeMap<String, RoleAssignment>,
    granted: HashMap<String, ActionSet>,
    by_principal: HashMap<String, Vec<String>>,
}

impl RbacState {
    pub(crate) fn new(
        custom: impl IntoIterator<Item = RoleDefinition>,
        assignments: impl IntoIterator<Item = RoleAssignment>,
    ) -> Self {
        let definitions: BTreeMap<_, _> =
            built_in_definitions().chain(custom).map(|definition| (definition.id.clone(), definition)).collect();
        let assignments: BTreeMap<_, _> =
            assignments.into_iter().map(|assignment| (assignment.id.clone(), assignment)).collect();
        let granted = definitions.values().map(|definition| (definition.id.clone(), definition.granted())).collect();
        let mut by_principal: HashMap<String, Vec<String>> = HashMap::new();
        for assignment in assignments.values() {
            by_principal.entry(assignment.principal_id.clone()).or_default().push(assignment.id.clone());
        }
        Self { definitions, assignments, granted, by_principal }
    }

    /// The same with a definition or assignment put or removed.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        Self::new(next.definitions.into_values().filter(|d| !d.built_in), next.assignments.into_values())
    }

    pub(crate) fn put_definition(&mut self, definition: RoleDefinition) {
        self.definitions.insert(definition.id.clone(), definition);
    }

    pub(crate) fn remove_definition(&mut self, id: &str) {
        self.definitions.remove(id);
    }

    pub(crate) fn put_assignment(&mut self, assignment: RoleAssignment) {
        self.assignments.insert(assignment.id.clone(), assignment);
    }

    pub(crate) fn remove_assignment(&mut self, id: &str) {
        self.assignments.remove(id);
    }

    pub(crate) fn definition(&self, id: &str) -> Option<&RoleDefinition> {
        self.definitions.get(id)
    }

    pub(crate) fn definitions(&self) -> impl Iterator<Item = &RoleDefinition> {
        self.definitions.values()
    }

    pub(crate) fn assignment(&self, id: &str) -> Option<&RoleAssignment> {
        self.assignments.get(id)
    }

    pub(crate) fn assignments(&self) -> impl Iterator<Item = &RoleAssignment> {
        self.assignments.values()
    }

    fn rule_for(&self, id: &str, intent: &Intent) -> Option<String> {
        self.by_principal.get(id)?.iter().find_map(|assignment| {
            let assignment = self.assignments.get(assignment)?;
            // A deleted role leaves its assignments dead.
            let granted = self.granted.get(&assignment.definition_id)?;
            let allows = granted.contains(intent.action) && assignment.covers(&intent.resource);
            allows.then(|| format!("role assignment {}", assignment.id))
        })
    }
}

impl Policy for RbacState {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        // Groups count for people only, as in the real service.
        let groups = if principal.kind() == PrincipalKind::User { principal.groups() } else { &[] };
        let rule = std::iter::once(principal.object_id())
            .chain(groups.iter().map(String::as_str))
            .find_map(|id| self.rule_for(id, intent));
        rule.map_or_else(
            || {
                let (action, resource) = (intent.action, &intent.resource);
                Decision::Deny(format!("no role of {principal} grants {action:?} on {resource}"))
            },
            Decision::Allow,
        )
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::{Action, KeyName, authorize};

    use super::*;

    fn key(name: &str) -> Resource {
        Resource::Key(KeyName::parse(name).unwrap())
    }

    fn principal(kind: PrincipalKind, oid: &str, groups: &[&str]) -> Principal {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        Principal::verified(kind, "t", oid, None, None, &groups)
    }

    fn assign(principal: &str, role: &str, scope: Scope) -> RoleAssignment {
        RoleAssignment {
            id: format!("{principal}-{role}"),
            principal_id: principal.into(),
            definition_id: role.into(),
            scope,
        }
    }

    fn allowed(state: &RbacState, who: &Principal, action: Action, resource: Resource) -> bool {
        authorize(state, who, Intent { action, resource }).is_ok()
    }

    /// Every built-in role against every scope and resource: exactly the table, and nothing else.
    #[test]
    fn matrix_of_built_in_roles() {
        let who = principal(PrincipalKind::Service, "p", &[]);
        let scopes = [Scope::Instance, Scope::Keys, Scope::Key(KeyName::parse("mine").unwrap())];
        let actions = [
            Action::KeyWrap,
            Action::KeyUnwrap,
            Action::KeyCreate,
            Action::KeyDelete,
            Action::DeletedKeyPurge,
            Action::RoleAssignmentWrite,
            Action::KeyRead,
            Action::RandomRead,
            Action::BackupStart,
            Action::SettingWrite,
        ];
        for role in built_in_definitions() {
            for scope in &scopes {
                let state = RbacState::new([], [assign("p", &role.id, scope.clone())]);
                for action in actions {
                    let granted = role.data_actions.contains(&super::super::data_action_name(action));
                    let whole = !matches!(scope, Scope::Key(_));
                    assert_eq!(allowed(&state, &who, action, key("MINE")), granted, "{} {action:?}", role.role_name);
                    assert_eq!(allowed(&state, &who, action, key("other")), granted && whole);
                    assert_eq!(allowed(&state, &who, action, Resource::Keys), granted && whole);
                    assert_eq!(allowed(&state, &who, action, Resource::Instance), granted && whole);
                }
            }
        }
    }

    #[test]
    fn a_change_keeps_what_it_is_not_about() {
        let signer = RoleDefinition {
            id: "signer".into(),
            role_name: "signer".into(),
            description: String::new(),
            built_in: false,
            data_actions: vec!["Microsoft.KeyVault/managedHsm/keys/sign/action".into()],
            not_data_actions: Vec::new(),
        };
        let who = principal(PrincipalKind::Service, "p", &[]);
        let may = |state: &RbacState| allowed(state, &who, Action::KeySign, key("k"));
        let nobody = RbacState::new([], []);
        let built_in = built_in_definitions().count();
        let defined = nobody.changed(|state| state.put_definition(signer.clone()));
        assert_eq!(defined.definition("signer"), Some(&signer));
        assert_eq!((defined.definitions().count(), may(&defined)), (built_in + 1, false));
        let assigned = defined.changed(|state| state.put_assignment(assign("p", "signer", Scope::Keys)));
        assert!(may(&assigned), "the role is still there");
        assert_eq!(assigned.assignment("p-signer"), Some(&assign("p", "signer", Scope::Keys)));
        assert_eq!(assigned.assignments().count(), 1);
        let removed = assigned.changed(|state| state.remove_assignment("p-signer"));
        assert!(!may(&removed) && removed.assignments().next().is_none());
        assert_eq!(removed.definitions().count(), built_in + 1);
        assert!(removed.definition("signer").is_some() && removed.definition("nothing").is_none());
    }

    #[test]
    fn groups_count_for_users_only() {
        let state = RbacState::new([], [assign("g", "21dbd100-6940-42c2-9190-5d6cb909625b", Scope::Instance)]);
        assert!(allowed(&state, &principal(PrincipalKind::User, "u", &["G"]), Action::KeyWrap, key("k")));
        assert!(!allowed(&state, &principal(PrincipalKind::Service, "s", &["G"]), Action::KeyWrap, key("k")));
    }

    #[test]
    fn not_data_actions_subtract_within_their_role_only() {
        let custom = |id: &str, allow: &str, deny: &[&str]| RoleDefinition {
            id: id.into(),
            role_name: id.into(),
            description: String::new(),
            built_in: false,
            data_actions: vec![allow.into()],
            not_data_actions: deny.iter().map(|action| (*action).to_owned()).collect(),
        };
        let sign = "Microsoft.KeyVault/managedHsm/keys/sign/action";
        let all = custom("all", "Microsoft.KeyVault/managedHsm/keys/*", &[sign]);
        let who = principal(PrincipalKind::Service, "p", &[]);
        let state = RbacState::new([all.clone()], [assign("p", "all", Scope::Keys)]);
        assert!(allowed(&state, &who, Action::KeyWrap, key("k")) && !allowed(&state, &who, Action::KeySign, key("k")));
        let both = [assign("p", "all", Scope::Keys), assign("p", "signer", Scope::Keys)];
        let state = RbacState::new([all, custom("signer", sign, &[])], both);
        assert!(allowed(&state, &who, Action::KeySign, key("k")));
        let dead = state.changed(|state| state.remove_definition("signer"));
        assert!(!allowed(&dead, &who, Action::KeySign, key("k")), "a deleted role's assignments are dead");
    }
}

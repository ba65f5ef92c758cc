//! Roles and assignments, durable.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use arc_swap::ArcSwap;
use holdfast_core::{
    Action, Change, Changed, Committed, Decided, KeyName, Projection, RecordKey, Store, StoreError, Write,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use super::{RbacState, RoleAssignment, RoleDefinition};
use crate::{
    code::Code,
    error::ApiError,
    records::{ROLE_ASSIGNMENT, ROLE_DEFINITION},
    route::Scope,
};

const FORMAT: u8 = 1;

#[derive(Deserialize, Serialize)]
struct StoredDefinition {
    v: u8,
    id: String,
    name: String,
    description: String,
    data_actions: Vec<String>,
    not_data_actions: Vec<String>,
}

#[derive(Deserialize, Serialize)]
struct StoredAssignment {
    v: u8,
    id: String,
    principal: String,
    role: String,
    /// `/`, `/keys` or `/keys/NAME`.
    scope: String,
}

/// The record of an assignment, for the batch that founds an instance.
pub(crate) fn assignment_write(assignment: &RoleAssignment, expected_version: u64) -> Result<Write, ApiError> {
    let stored = StoredAssignment {
        v: FORMAT,
        id: assignment.id.clone(),
        principal: assignment.principal_id.clone(),
        role: assignment.definition_id.clone(),
        scope: assignment.scope.to_wire(),
    };
    let key = assignment_key(&assignment.id);
    Ok(Write { key, expected_version, value: Some(to_json(&stored)?) })
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))
}

/// The access rules in memory.
struct Held {
    state: ArcSwap<RbacState>,
    /// Versions of the records.
    versions: RwLock<HashMap<RecordKey, u64>>,
}

impl Held {
    fn version(&self, key: &RecordKey) -> u64 {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(0)
    }
}

impl Projection for Held {
    fn apply(&self, changes: &[Changed]) {
        let ours = |changed: &&Changed| [ROLE_DEFINITION, ROLE_ASSIGNMENT].contains(&changed.key.kind);
        if !changes.iter().any(|changed| ours(&changed)) {
            return;
        }
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        let next = self.state.load().changed(|state| {
            for changed in changes.iter().filter(ours) {
                if !take(state, changed) {
                    tracing::error!("a role record that was just written cannot be read");
                }
                match changed.version {
                    0 => versions.remove(&changed.key),
                    version => versions.insert(changed.key.clone(), version),
                };
            }
        });
        self.state.store(Arc::new(next));
    }
}

/// Takes one record into the rules; false if it cannot be read.
fn take(state: &mut RbacState, changed: &Changed) -> bool {
    let id = String::from_utf8_lossy(&changed.key.id);
    match (changed.key.kind, &changed.value) {
        (ROLE_DEFINITION, None) => state.remove_definition(&id),
        (_, None) => state.remove_assignment(&id),
        (ROLE_DEFINITION, Some(value)) => match read_definition(value) {
            Some(definition) => state.put_definition(definition),
            None => return false,
        },
        (_, Some(value)) => match read_assignment(value) {
            Some(assignment) => state.put_assignment(assignment),
            None => return false,
        },
    }
    true
}

/// The access rules in force, and their records.
pub(crate) struct Rbac {
    held: Arc<Held>,
    /// Whoever holds it may change rules.
    changing: Mutex<()>,
}

impl Rbac {
    pub(crate) async fn open(store: &dyn Store) -> Result<Self, StoreError> {
        let mut versions = HashMap::new();
        let mut definitions = Vec::new();
        let mut assignments = Vec::new();
        let mut unreadable = false;
        for kind in [ROLE_DEFINITION, ROLE_ASSIGNMENT] {
            let visit = &mut |record: holdfast_core::Record| {
                let read = if kind == ROLE_DEFINITION {
                    read_definition(&record.value).map(|definition| definitions.push(definition))
                } else {
                    read_assignment(&record.value).map(|assignment| assignments.push(assignment))
                };
                unreadable |= read.is_none();
                versions.insert(record.key, record.version);
            };
            store.scan(kind, visit).await?;
        }
        if unreadable {
            return Err(StoreError::Failed("a role record cannot be read".into()));
        }
        let held = Arc::new(Held {
            state: ArcSwap::from_pointee(RbacState::new(definitions, assignments)),
            versions: RwLock::new(versions),
        });
        let watching = Arc::downgrade(&held);
        store.watch(watching);
        Ok(Self { held, changing: Mutex::default() })
    }

    /// The rules in force now.
    pub(crate) fn state(&self) -> arc_swap::Guard<Arc<RbacState>> {
        self.held.state.load()
    }

    /// Changes the rules: `decide` looks at them and says what to write.
    async fn change(
        &self,
        store: &dyn Store,
        event: impl FnOnce() -> Result<Decided, ApiError>,
        (action, scope): (Action, &Scope),
        key: RecordKey,
        decide: impl FnOnce(&RbacState) -> Result<Option<Vec<u8>>, ApiError>,
    ) -> Result<Committed, ApiError> {
        let _changing = self.changing.lock().await;
        let value = decide(&self.state())?;
        let expected_version = self.held.version(&key);
        let writes = vec![Write { key, expected_version, value }];
        let event = event()?;
        event.by_leave_of(&[action], &scope.resource())?;
        Ok(store.commit(Change { writes, event }).await?)
    }

    pub(crate) async fn put_definition(
        &self,
        store: &dyn Store,
        event: impl FnOnce() -> Result<Decided, ApiError>,
        scope: &Scope,
        definition: RoleDefinition,
        check: impl FnOnce(&RbacState) -> Result<(), ApiError>,
    ) -> Result<Committed, ApiError> {
        let stored = StoredDefinition {
            v: FORMAT,
            id: definition.id.clone(),
            name: definition.role_name.clone(),
            description: definition.description.clone(),
            data_actions: definition.data_actions.clone(),
            not_data_actions: definition.not_data_actions.clone(),
        };
        let key = RecordKey::new(ROLE_DEFINITION, definition.id.as_bytes());
        let value = to_json(&stored)?;
        self.change(store, event, (Action::RoleDefinitionWrite, scope), key, |state| {
            check(state)?;
            Ok(Some(value))
        })
        .await
    }

    pub(crate) async fn remove_definition(
        &self,
        store: &dyn Store,
        event: impl FnOnce() -> Result<Decided, ApiError>,
        scope: &Scope,
        id: &str,
    ) -> Result<(Committed, RoleDefinition), ApiError> {
        let key = RecordKey::new(ROLE_DEFINITION, id.as_bytes());
        let mut removed = None;
        let committed = self
            .change(store, event, (Action::RoleDefinitionDelete, scope), key, |state| {
                let found = state.definition(id).ok_or_else(|| definition_not_found(id))?;
                if found.built_in {
                    return Err(ApiError::not_permitted("A built-in role cannot be deleted"));
                }
                removed = Some(found.clone());
                Ok(None)
            })
            .await?;
        Ok((committed, removed.ok_or_else(|| definition_not_found(id))?))
    }

    pub(crate) async fn put_assignment(
        &self,
        store: &dyn Store,
        event: impl FnOnce() -> Result<Decided, ApiError>,
        assignment: RoleAssignment,
        check: impl FnOnce(&RbacState) -> Result<(), ApiError>,
    ) -> Result<Committed, ApiError> {
        let write = assignment_write(&assignment, 0)?;
        self.change(store, event, (Action::RoleAssignmentWrite, &assignment.scope), write.key, |state| {
            check(state)?;
            Ok(write.value)
        })
        .await
    }

    /// Begins to end every assignment whose scope is this key.
    pub(crate) async fn end_assignments_on(&self, name: &KeyName) -> Ending<'_> {
        let changing = self.changing.lock().await;
        let on_key = |found: &&RoleAssignment| matches!(&found.scope, Scope::Key(key) if key == name);
        let write = |found: &RoleAssignment| {
            let key = assignment_key(&found.id);
            let expected_version = self.held.version(&key);
            Write { key, expected_version, value: None }
        };
        let writes = self.state().assignments().filter(on_key).map(write).collect();
        Ending { _changing: changing, writes }
    }

    pub(crate) async fn remove_assignment(
        &self,
        store: &dyn Store,
        event: impl FnOnce() -> Result<Decided, ApiError>,
        id: &str,
        scope: &Scope,
    ) -> Result<(Committed, RoleAssignment), ApiError> {
        let mut removed = None;
        let committed = self
            .change(store, event, (Action::RoleAssignmentDelete, scope), assignment_key(id), |state| {
                let found = state.assignment(id).filter(|found| found.scope == *scope);
                removed = Some(found.ok_or_else(|| assignment_not_found(id))?.clone());
                Ok(None)
            })
            .await?;
        Ok((committed, removed.ok_or_else(|| assignment_not_found(id))?))
    }
}

/// Assignments that are about to end with their key. Nobody else changes rules while it lives.
pub(crate) struct Ending<'a> {
    _changing: MutexGuard<'a, ()>,
    /// What removes their records.
    pub writes: Vec<Write>,
}

fn assignment_key(id: &str) -> RecordKey {
    RecordKey::new(ROLE_ASSIGNMENT, id.as_bytes())
}

pub(crate) fn definition_not_found(id: &str) -> ApiError {
    let id = crate::route::printable(id);
    ApiError::not_found(Code::RoleDefinitionNotFound, format!("Requested role definition not found: {id}"))
}

pub(crate) fn assignment_not_found(id: &str) -> ApiError {
    let id = crate::route::printable(id);
    ApiError::not_found(Code::RoleAssignmentNotFound, format!("Requested role assignment not found: {id}"))
}

fn read_definition(value: &[u8]) -> Option<RoleDefinition> {
    let stored: StoredDefinition =
        serde_json::from_slice(value).ok().filter(|stored: &StoredDefinition| stored.v == FORMAT)?;
    Some(RoleDefinition {
        id: stored.id,
        role_name: stored.name,
        description: stored.description,
        built_in: false,
        data_actions: stored.data_actions,
        not_data_actions: stored.not_data_actions,
    })
}

fn read_assignment(value: &[u8]) -> Option<RoleAssignment> {
    let stored: StoredAssignment =
        serde_json::from_slice(value).ok().filter(|stored: &StoredAssignment| stored.v == FORMAT)?;
    Some(RoleAssignment {
        scope: Scope::from_wire(&stored.scope)?,
        id: stored.id,
        principal_id: stored.principal,
        definition_id: stored.role,
    })
}

#[cfg(test)]
mod tests {
    use holdfast_core::{
        Ambient, AuditEvent, Decision, Intent, Itself, PartitionId, Policy, Principal, Resource, Timestamp, authorize,
    };
    use holdfast_crypto::SecretBytes;
    use holdfast_store::{MemoryEngine, SealedStore};

    use super::*;

    struct Fixed;
    impl Ambient for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_secs(1_800_000_000)
        }
        fn fill(&self, out: &mut [u8]) {
            out.fill(1);
        }
    }

    struct Everything;
    impl Policy for Everything {
        fn decide(&self, _: &Principal, _: &Intent) -> Decision {
            Decision::Allow("test".into())
        }
    }

    fn leave(action: Action, resource: &Resource) -> Decided {
        let intent = Intent { action, resource: resource.clone() };
        let permit = authorize(&Everything, &Principal::system(), intent).unwrap();
        let event = AuditEvent::allowed(Fixed.now(), "Test", "");
        Decided::by_itself(event, Itself::Due(permit.spend(action, resource).unwrap()))
    }

    /// What was permitted at another scope, or is another act, changes no rule.
    #[tokio::test]
    async fn rules_are_changed_by_leave_of_that_act_at_their_scope_alone() {
        let secret = SecretBytes::copy_of(&[2; 32]);
        let partition = PartitionId::from_bytes([1; 16]);
        let engine = MemoryEngine::default();
        let store = SealedStore::open(engine, partition, &secret, Arc::new(Fixed), false).await.unwrap();
        let rbac = Rbac::open(&store).await.unwrap();
        let role = RoleDefinition {
            id: "11111111-1111-4111-8111-111111111111".into(),
            role_name: "r".into(),
            description: String::new(),
            built_in: false,
            data_actions: Vec::new(),
            not_data_actions: Vec::new(),
        };
        let assigned = RoleAssignment {
            id: "22222222-2222-4222-8222-222222222222".into(),
            principal_id: "33333333-3333-4333-8333-333333333333".into(),
            definition_id: role.id.clone(),
            scope: Scope::Keys,
        };
        let (all, keys) = (Scope::Instance, Scope::Keys);
        let others = [Action::SettingWrite, Action::RoleAssignmentRead];
        let wrong = |right: Action, scope: &Scope| {
            let elsewhere = if *scope == Scope::Keys { Resource::Instance } else { Resource::Keys };
            others.map(|action| (action, scope.resource())).into_iter().chain([(right, elsewhere)]).collect::<Vec<_>>()
        };
        for (action, resource) in wrong(Action::RoleDefinitionWrite, &all) {
            let event = || Ok(leave(action, &resource));
            assert!(rbac.put_definition(&store, event, &all, role.clone(), |_| Ok(())).await.is_err());
        }
        let event = || Ok(leave(Action::RoleDefinitionWrite, &Resource::Instance));
        drop(rbac.put_definition(&store, event, &all, role.clone(), |_| Ok(())).await.unwrap());
        for (action, resource) in wrong(Action::RoleAssignmentWrite, &keys) {
            let event = || Ok(leave(action, &resource));
            assert!(rbac.put_assignment(&store, event, assigned.clone(), |_| Ok(())).await.is_err());
        }
        let event = || Ok(leave(Action::RoleAssignmentWrite, &Resource::Keys));
        drop(rbac.put_assignment(&store, event, assigned.clone(), |_| Ok(())).await.unwrap());
        for (action, resource) in wrong(Action::RoleAssignmentDelete, &keys) {
            let event = || Ok(leave(action, &resource));
            assert!(rbac.remove_assignment(&store, event, &assigned.id, &keys).await.is_err());
        }
        for (action, resource) in wrong(Action::RoleDefinitionDelete, &all) {
            let event = || Ok(leave(action, &resource));
            assert!(rbac.remove_definition(&store, event, &all, &role.id).await.is_err());
        }
        assert!(rbac.state().definition(&role.id).is_some() && rbac.state().assignment(&assigned.id).is_some());
        let event = || Ok(leave(Action::RoleAssignmentDelete, &Resource::Keys));
        drop(rbac.remove_assignment(&store, event, &assigned.id, &keys).await.unwrap());
        let event = || Ok(leave(Action::RoleDefinitionDelete, &Resource::Instance));
        drop(rbac.remove_definition(&store, event, &all, &role.id).await.unwrap());
    }
}

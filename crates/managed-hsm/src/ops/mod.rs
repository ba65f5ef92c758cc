//! The operations. One file per group; each takes a permit and gives a reply.

mod backup;
mod bundle;
mod crypto;
mod deleted;
mod filter;
mod keys;
mod list;
mod material;
mod roles;
mod rotate;
mod settings;

use bytes::Bytes;
pub(crate) use deleted::purge_for_good;
use holdfast_core::{AuditEvent, Decided, KeyVersionId, Permit, Spent};
use holdfast_service::{Done, Told, Trace};
use http::StatusCode;
pub(crate) use rotate::rotate_by_itself;
use serde::Serialize;
pub(crate) use settings::Settings;

use crate::{ManagedHsm, dialect::Asked, error::ApiError, query::Query, route::Route, usable::Used};

/// A request, apart from the permit to carry it out, which is used up on the way.
pub(crate) struct Call<'a> {
    pub hsm: &'a ManagedHsm,
    pub body: &'a [u8],
    pub query: &'a Query,
    /// `https://HOST[:PORT]` of the name the client used.
    pub base_url: &'a str,
    pub trace: &'a Trace,
    /// Who asks, and for what.
    pub asked: Asked<'a>,
    pub facts: &'a mut Facts,
}

impl Call<'_> {
    /// The event of this request's success, for whoever commits it together with what it changes: at the last moment before that. The permit that it
    /// is by leave of is asked for now, after all waits (for a lock, for the making of a key).
    pub(crate) fn decided(&self, status: StatusCode) -> Result<Decided, ApiError> {
        // First the pass, then the look: a change that it does not see waits for it.
        let pass = self.hsm.store.gate().enter();
        let spent = self.hsm.allowed_now(self.asked)?;
        self.facts.rests_on.as_ref().map_or(Ok(()), |used| used.still_usable(self.hsm))?;
        Ok(Decided::asked(self.trace.event(self.hsm.ambient.now(), self.facts, status), spent, pass))
    }
}

/// What is learnt of a request that the audit log wants.
#[derive(Clone, Default)]
pub(crate) struct Facts {
    pub key: Option<String>,
    pub version: Option<KeyVersionId>,
    pub algorithm: Option<String>,
    pub rule: Option<String>,
    /// The key version that a change rests on besides the caller's roles, or by which something is not valid, which may be told only while it holds.
    pub rests_on: Option<Used>,
}

impl Told for Facts {
    fn tell(&mut self, event: &mut AuditEvent) {
        event.key = self.key.take();
        event.key_version = self.version.map(|version| version.to_string());
        event.algorithm = self.algorithm.take();
        event.reason = self.rule.take();
    }
}

/// A successful answer.
pub(crate) struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    /// The key version that was used for it.
    pub used: Option<Used>,
}

impl Reply {
    fn resting_on(self, used: Used) -> Self {
        Self { used: Some(used), ..self }
    }

    fn json(status: StatusCode, value: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(Self { status, body: body.into(), used: None })
    }

    fn ok(value: &impl Serialize) -> Result<Self, ApiError> {
        Self::json(StatusCode::OK, value)
    }

    fn created(value: &impl Serialize) -> Result<Self, ApiError> {
        Self::json(StatusCode::CREATED, value)
    }

    fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: Bytes::new(), used: None }
    }
}

/// Uses a permit up for the route's own intent: for operations that no call to the HSM stands behind.
fn spend(permit: Permit, route: &Route) -> Result<Spent, ApiError> {
    let intent = route.intent();
    Ok(permit.spend(intent.action, &intent.resource)?)
}

/// Carries out a permitted request.
pub(crate) async fn dispatch(route: &Route, permit: Permit, call: &mut Call<'_>) -> Result<Done<Reply>, ApiError> {
    match route {
        Route::Backup(name) => backup::backup(call, permit, name).await.map(Done::Told),
        Route::Closed(_, what, ..) => spend(permit, route).and_then(|_| Err(ApiError::closed(what))),
        Route::Create(name) => keys::create(call, permit, name).await,
        Route::Crypto(operation, name, version) => {
            crypto::perform(call, permit, *operation, name, *version).await.map(Done::Told)
        }
        Route::Import(name) => keys::import(call, permit, name).await,
        Route::Random => crypto::random(call, permit).await.map(Done::Told),
        Route::Rotate(name) => rotate::rotate(call, permit, name).await,
        Route::Update(name, version) => keys::update(call, permit, name, *version).await,
        other => dispatch_local(other, &spend(permit, other)?, call).await,
    }
}

/// Operations that the HSM itself has no part in, by leave of a permit that has been used up.
async fn dispatch_local(route: &Route, _spent: &Spent, call: &mut Call<'_>) -> Result<Done<Reply>, ApiError> {
    match route {
        Route::Delete(name) => deleted::delete(call, name).await,
        Route::Get(name, version) => keys::get(call, name, *version).await.map(Done::Told),
        Route::GetDeleted(name) => deleted::get(call, name).await.map(Done::Told),
        Route::GetRotationPolicy(name) => rotate::get_policy(call, name).map(Done::Told),
        Route::List => list::active(call).map(Done::Told),
        Route::ListDeleted => list::deleted(call).map(Done::Told),
        Route::ListVersions(name) => list::versions(call, name).map(Done::Told),
        Route::Purge(name) => deleted::purge(call, name).await,
        Route::PutRotationPolicy(name) => rotate::put_policy(call, name).await,
        Route::Recover(name) => deleted::recover(call, name).await,
        Route::Restore => backup::restore(call).await,
        Route::RoleAssignmentDelete(scope, id) => roles::delete_assignment(call, scope, id).await,
        Route::RoleAssignmentGet(scope, id) => roles::get_assignment(call, scope, id).map(Done::Told),
        Route::RoleAssignmentList(scope) => roles::list_assignments(call, scope).map(Done::Told),
        Route::RoleAssignmentPut(scope, id) => roles::put_assignment(call, scope, id).await,
        Route::RoleDefinitionDelete(scope, id) => roles::delete_definition(call, scope, id).await,
        Route::RoleDefinitionGet(_, id) => roles::get_definition(call, id).map(Done::Told),
        Route::RoleDefinitionList(_) => roles::list_definitions(call).map(Done::Told),
        Route::RoleDefinitionPut(scope, id) => roles::put_definition(call, scope, id).await,
        Route::SettingGet(name) => settings::get(call, name).map(Done::Told),
        Route::SettingList => settings::list(call).map(Done::Told),
        Route::SettingPatch(name) => settings::patch(call, name).await,
        Route::Backup(_)
        | Route::Closed(..)
        | Route::Create(_)
        | Route::Crypto(..)
        | Route::Import(_)
        | Route::Random
        | Route::Rotate(_)
        | Route::Update(..) => Err(ApiError::internal("an operation of the HSM was dispatched without its permit")),
    }
}

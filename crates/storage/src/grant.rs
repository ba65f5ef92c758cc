//! Who may act on a bucket, seen in the very state of the index that is read or changed.
//!
//! A [`Granted`] bucket is the only way to its objects, and to a [`Change`]. It borrows from the [`View`] that it was granted in, so that
//! it can leave neither the look nor the commit: what is found in a look says nothing of the state that a commit changes, and a
//! bucket that was deleted meanwhile, and made again by somebody else, has another id. What is carried from a look to a commit is
//! [`Known`], which has no rights.

use std::{
    ops::Deref,
    sync::{Arc, atomic::AtomicBool},
};

use holdfast_core::{
    Action, AuditEvent, BucketId, Decision, IndexChange, IndexWrite, Intent, Permit, Policy, Principal, Resource,
    Spent, Timestamp, authorize,
};

use crate::{
    call::{Call, Named},
    error::{Error, Result},
    event::{self, About},
    record::{BucketRecord, Id},
    view::View,
};

/// A bucket is its owner's, and nobody else's.
struct Ownership<'a> {
    bucket: &'a BucketRecord,
    expected: Option<&'a str>,
}

impl Policy for Ownership<'_> {
    fn decide(&self, principal: &Principal, _: &Intent) -> Decision {
        if principal.object_id() != self.bucket.owner {
            return Decision::Deny("the bucket is somebody else's".into());
        }
        match self.expected {
            Some(expected) if expected != self.bucket.owner => {
                Decision::Deny("the bucket is not of the owner that is expected".into())
            }
            _ => Decision::Allow("owner".into()),
        }
    }
}

/// Everybody may have buckets of his own.
struct Anybody;

impl Policy for Anybody {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        Decision::Allow("a bucket of one's own".into())
    }
}

/// What the service does by itself or for its operator: data keys follow their KEKs, what is discarded is cleared away.
struct Itself;

impl Policy for Itself {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        let own = matches!(intent.action, Action::DataKeyRewrap | Action::ObjectDelete);
        match principal == &Principal::system() && own {
            true => Decision::Allow("the service itself".into()),
            false => Decision::Deny("the service does nothing else by itself".into()),
        }
    }
}

fn id_of(bucket: &BucketRecord) -> BucketId {
    BucketId(bucket.id.0)
}

/// Rows to be written, which somebody was permitted to write. [`crate::Storage::transact`] takes nothing else.
#[must_use]
pub(crate) struct Change {
    writes: Vec<IndexWrite>,
    event: Option<AuditEvent>,
    settles: Option<Arc<AtomicBool>>,
}

impl Change {
    /// Only somebody's leave makes one.
    fn by_leave(
        _: Spent,
        writes: Vec<IndexWrite>,
        event: Option<AuditEvent>,
        settles: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self { writes, event, settles }
    }

    /// What the index takes (who clears away what was deleted before tells the log nothing more), and what is set when it is durable: then the request
    /// needs no other event.
    pub(crate) fn into_parts(self) -> (IndexChange, Option<Arc<AtomicBool>>) {
        (IndexChange { writes: self.writes, event: self.event }, self.settles)
    }
}

/// On whose behalf a bucket is granted.
#[derive(Clone, Copy)]
enum Behalf<'v> {
    Caller(&'v Call),
    /// The service's own: by this name, and at this moment, the log tells of it.
    Itself(&'static str, Timestamp),
}

/// A bucket as somebody who may act on it has seen it. It has no rights: see [`View::grant_same`].
#[derive(Clone)]
pub(crate) struct Known(BucketRecord);

impl Deref for Known {
    type Target = BucketRecord;

    fn deref(&self) -> &BucketRecord {
        &self.0
    }
}

/// A bucket that somebody may act on, in the view that this is of.
pub(crate) struct Granted<'v> {
    pub(crate) view: &'v View<'v>,
    bucket: BucketRecord,
    resource: Resource,
    permit: Permit,
    behalf: Behalf<'v>,
}

impl Deref for Granted<'_> {
    type Target = BucketRecord;

    fn deref(&self) -> &BucketRecord {
        &self.bucket
    }
}

/// What a permit for `action` is about.
fn resource(action: Action, bucket: &BucketRecord, key: Option<&str>) -> Resource {
    match (action, key) {
        (_, Some(key)) => Resource::Object(id_of(bucket), key.to_owned()),
        (
            Action::ObjectDelete
            | Action::ObjectList
            | Action::ObjectRead
            | Action::ObjectUpdate
            | Action::ObjectWrite
            | Action::DataKeyRewrap,
            None,
        ) => Resource::Objects(id_of(bucket)),
        _ => Resource::Bucket(id_of(bucket)),
    }
}

impl View<'_> {
    /// The bucket that a request is about, if its caller may do there what it asks for.
    ///
    /// # Errors
    /// `NoSuchBucket`, `AccessDenied`.
    pub(crate) fn grant<'v>(&'v self, call: &'v Call) -> Result<Granted<'v>> {
        self.granted(call, call.act().action, &call.act().bucket, call.act().key.as_deref())
    }

    /// The same, if it is still the bucket that was looked at before.
    ///
    /// # Errors
    /// As those of [`View::grant`]; `NoSuchBucket` for another one of that name.
    pub(crate) fn grant_same<'v>(&'v self, call: &'v Call, known: &Known) -> Result<Granted<'v>> {
        let bucket = self.grant(call)?;
        if bucket.id == known.id { Ok(bucket) } else { Err(Error::NoSuchBucket) }
    }

    /// The bucket that a request copies from.
    ///
    /// # Errors
    /// As those of [`View::grant`].
    pub(crate) fn grant_source<'v>(&'v self, call: &'v Call) -> Result<Granted<'v>> {
        let (bucket, key) = call.act().source.as_ref().ok_or(Error::Internal("a copy without a source"))?;
        self.granted(call, Action::ObjectRead, bucket, Some(key))
    }

    fn granted<'v>(&'v self, call: &'v Call, action: Action, named: &Named, key: Option<&str>) -> Result<Granted<'v>> {
        let bucket = self.find_bucket(&named.bucket)?.ok_or(Error::NoSuchBucket)?;
        let resource = resource(action, &bucket, key);
        let policy = Ownership { bucket: &bucket, expected: named.owner.as_deref() };
        let intent = Intent { action, resource: resource.clone() };
        let permit = authorize(&policy, call.caller().principal(), intent).map_err(|_| Error::Denied)?;
        Ok(Granted { view: self, bucket, resource, permit, behalf: Behalf::Caller(call) })
    }

    /// A bucket for what the service does by itself, if it is still there.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub(crate) fn grant_itself(
        &self,
        (operation, at): (&'static str, Timestamp),
        name: &str,
        id: Id,
    ) -> Result<Option<Granted<'_>>> {
        let Some(bucket) = self.find_bucket(name)?.filter(|bucket| bucket.id == id) else { return Ok(None) };
        let resource = resource(Action::DataKeyRewrap, &bucket, None);
        let intent = Intent { action: Action::DataKeyRewrap, resource: resource.clone() };
        let permit = authorize(&Itself, &Principal::system(), intent).map_err(|_| Error::Denied)?;
        Ok(Some(Granted { view: self, bucket, resource, permit, behalf: Behalf::Itself(operation, at) }))
    }

    /// The name of a request's bucket, if nobody has it.
    ///
    /// # Errors
    /// `BucketAlreadyOwnedByYou`, `BucketAlreadyExists`.
    pub(crate) fn vacant<'v>(&self, call: &'v Call) -> Result<Vacant<'v>> {
        let name = call.act().bucket.bucket.clone();
        if let Some(known) = self.find_bucket(&name)? {
            let own = known.owner == call.caller().name();
            return Err(if own { Error::BucketOwnedByYou } else { Error::BucketExists });
        }
        let permit = on_buckets(call)?;
        Ok(Vacant { name, owner: call.caller().name().to_owned(), call, permit })
    }

    /// Leave to see which buckets a caller has.
    ///
    /// # Errors
    /// A request that is about something else.
    pub(crate) fn list_buckets(&self, call: &Call) -> Result<String> {
        on_buckets(call)?.spend(Action::BucketList, &Resource::Buckets)?;
        Ok(call.caller().name().to_owned())
    }
}

fn on_buckets(call: &Call) -> Result<Permit> {
    let intent = Intent { action: call.act().action, resource: Resource::Buckets };
    authorize(&Anybody, call.caller().principal(), intent).map_err(|_| Error::Denied)
}

/// A name that no bucket has, in the view that it was looked for in.
pub(crate) struct Vacant<'v> {
    pub name: String,
    pub owner: String,
    call: &'v Call,
    permit: Permit,
}

impl Vacant<'_> {
    /// What makes the bucket.
    pub(crate) fn change(self, about: About, writes: Vec<IndexWrite>) -> Result<Change> {
        let event = self.call.changed(self.permit.rule(), None, about);
        let spent = self.permit.spend(Action::BucketCreate, &Resource::Buckets)?;
        Ok(Change::by_leave(spent, writes, Some(event), Some(self.call.settled())))
    }
}

impl Granted<'_> {
    /// What is carried out of the look.
    pub(crate) fn known(&self) -> Known {
        Known(self.bucket.clone())
    }

    /// The bucket's record, to be changed and written.
    pub(crate) fn record(&self) -> BucketRecord {
        self.bucket.clone()
    }

    /// Uses up the permit, for reading.
    pub(crate) fn read(self, action: Action) -> Result<BucketRecord> {
        self.permit.spend(action, &self.resource)?;
        Ok(self.bucket)
    }

    /// Uses up the permit for a change of the bucket, or of what is in it.
    pub(crate) fn change(self, action: Action, about: About, writes: Vec<IndexWrite>) -> Result<Change> {
        let resource = self.resource.clone();
        self.spend(action, &resource, None, about, writes)
    }

    /// Uses up the permit for something that must be changed before the request can do what it is for: the log tells of it by this name.
    pub(crate) fn change_aside(
        self,
        aside: &'static str,
        action: Action,
        about: About,
        writes: Vec<IndexWrite>,
    ) -> Result<Change> {
        let resource = self.resource.clone();
        self.spend(action, &resource, Some(aside), about, writes)
    }

    /// Uses up the permit for a change of one object: it must be the one that the request was found to be about, if it names one alone.
    pub(crate) fn change_object(
        self,
        action: Action,
        key: &str,
        mut about: About,
        writes: Vec<IndexWrite>,
    ) -> Result<Change> {
        let resource = match &self.resource {
            Resource::Object(bucket, _) => Resource::Object(*bucket, key.to_owned()),
            whole => whole.clone(),
        };
        about.key.get_or_insert_with(|| key.to_owned());
        self.spend(action, &resource, None, about, writes)
    }

    fn spend(
        self,
        action: Action,
        resource: &Resource,
        aside: Option<&'static str>,
        about: About,
        writes: Vec<IndexWrite>,
    ) -> Result<Change> {
        let (event, settles) = match self.behalf {
            // What had to be changed on the way, and was changed by somebody else meanwhile, did not happen.
            Behalf::Caller(_) if aside.is_some() && writes.is_empty() => (None, None),
            Behalf::Caller(call) => {
                let event = call.changed(self.permit.rule(), aside, about);
                (Some(event), aside.is_none().then(|| call.settled()))
            }
            Behalf::Itself(..) if writes.is_empty() => (None, None),
            Behalf::Itself(operation, at) => {
                let mut context = vec![("bucket", self.bucket.name.clone())];
                let told = [("key", about.key), ("version", about.version), ("kek", about.kek)];
                context.extend(told.into_iter().filter_map(|(name, value)| Some((name, value?))));
                context.extend(about.more);
                (Some(event::of_service(at, operation, context, None)), None)
            }
        };
        Ok(Change::by_leave(self.permit.spend(action, resource)?, writes, event, settles))
    }
}

/// Leave for what the service does by itself over all buckets: it clears away what was discarded, and counts.
pub(crate) struct Upkeep(Permit);

impl Upkeep {
    pub(crate) fn begin() -> Result<Self> {
        let intent = Intent { action: Action::ObjectDelete, resource: Resource::Buckets };
        authorize(&Itself, &Principal::system(), intent).map(Self).map_err(|_| Error::Denied)
    }

    pub(crate) fn change(self, writes: Vec<IndexWrite>) -> Result<Change> {
        let Self(permit) = self;
        Ok(Change::by_leave(permit.spend(Action::ObjectDelete, &Resource::Buckets)?, writes, None, None))
    }
}

/// The whole index, of every bucket: for the service itself.
pub(crate) struct Whole<'v>(&'v View<'v>);

impl<'v> Whole<'v> {
    /// For upkeep, which has leave of its own for each change.
    pub(crate) fn of_itself(view: &'v View<'v>, leave: Upkeep) -> Result<Self> {
        let Upkeep(permit) = leave;
        permit.spend(Action::ObjectDelete, &Resource::Buckets)?;
        Ok(Self(view))
    }

    /// For who looks at an index that no service runs on: nothing but the rows lets him.
    pub(crate) fn of_stopped(view: &'v View<'v>) -> Self {
        Self(view)
    }

    pub(crate) fn view(&self) -> &'v View<'v> {
        self.0
    }
}

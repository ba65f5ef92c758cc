//! Aliases: other names of keys, one account and region each.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use holdfast_core::{
    Action, Change, Changed, Committed, Decided, Projection, Record, RecordKey, Resource, Store, StoreError, Timestamp,
    Write,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use crate::{code::Code, error::ApiError, names::KeyId, records};

const FORMAT: u8 = 1;
/// Aliases of one key.
const PER_KEY_MAX: usize = 50;

/// Whose and where.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct AliasName {
    pub account: Arc<str>,
    pub region: Arc<str>,
    /// With `alias/`.
    pub name: String,
}

/// An alias.
#[derive(Clone, Debug)]
pub(crate) struct Alias {
    pub target: KeyId,
    pub created: Timestamp,
    pub updated: Timestamp,
    record_version: u64,
}

#[derive(Deserialize, Serialize)]
struct StoredAlias {
    v: u8,
    account: String,
    region: String,
    name: String,
    target: String,
    created: i64,
    updated: i64,
}

impl StoredAlias {
    fn read(value: &[u8], record_version: u64) -> Option<(AliasName, Arc<Alias>)> {
        let stored: Self = serde_json::from_slice(value).ok().filter(|stored: &Self| stored.v == FORMAT)?;
        let alias = Alias {
            target: KeyId::parse(&stored.target)?,
            created: Timestamp::from_unix_millis(stored.created),
            updated: Timestamp::from_unix_millis(stored.updated),
            record_version,
        };
        let name = AliasName { account: stored.account.into(), region: stored.region.into(), name: stored.name };
        Some((name, Arc::new(alias)))
    }
}

/// The aliases in memory.
#[derive(Default)]
struct Index(RwLock<BTreeMap<AliasName, Arc<Alias>>>);

impl Projection for Index {
    fn apply(&self, changes: &[Changed]) {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for changed in changes.iter().filter(|changed| changed.key.kind == records::ALIAS) {
            match &changed.value {
                None => drop(name_of(&changed.key).and_then(|name| index.remove(&name))),
                Some(value) => match StoredAlias::read(value, changed.version) {
                    Some((name, alias)) => drop(index.insert(name, alias)),
                    None => tracing::error!("an alias that was just written cannot be read"),
                },
            }
        }
    }
}

/// All aliases.
pub(crate) struct Aliases {
    index: Arc<Index>,
    /// Held by whoever changes them: few do.
    changing: Mutex<()>,
    store: Arc<dyn Store>,
}

/// The right to change aliases. Who holds it looks at them, decides and changes; others wait.
pub(crate) struct Changing<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

fn record(name: &AliasName) -> RecordKey {
    RecordKey::new(records::ALIAS, format!("{}/{}/{}", name.account, name.region, name.name))
}

fn name_of(key: &RecordKey) -> Option<AliasName> {
    let mut parts = std::str::from_utf8(&key.id).ok()?.splitn(3, '/');
    let mut next = || parts.next();
    Some(AliasName { account: next()?.into(), region: next()?.into(), name: next()?.to_owned() })
}

impl Aliases {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let index = Arc::new(Index::default());
        let mut found = BTreeMap::new();
        let mut unreadable = false;
        store
            .scan(records::ALIAS, &mut |Record { value, version, .. }| match StoredAlias::read(&value, version) {
                Some((name, alias)) => drop(found.insert(name, alias)),
                None => unreadable = true,
            })
            .await?;
        if unreadable {
            return Err(StoreError::Failed("an alias cannot be read".into()));
        }
        *index.0.write().unwrap_or_else(PoisonError::into_inner) = found;
        let watching = Arc::downgrade(&index);
        store.watch(watching);
        Ok(Self { index, changing: Mutex::default(), store })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<AliasName, Arc<Alias>>> {
        self.index.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &AliasName) -> Option<Arc<Alias>> {
        self.read().get(name).cloned()
    }

    /// Those of an account and region from `after` on.
    pub(crate) fn page(
        &self,
        account: &Arc<str>,
        region: &Arc<str>,
        target: Option<KeyId>,
        after: &str,
        count: usize,
    ) -> (Vec<(String, Arc<Alias>)>, bool) {
        let start = AliasName { account: Arc::clone(account), region: Arc::clone(region), name: after.to_owned() };
        let index = self.read();
        let mut found: Vec<_> = index
            .range((Bound::Excluded(start), Bound::Unbounded))
            .take_while(|(name, _)| name.account == *account && name.region == *region)
            .filter(|(_, alias)| target.is_none_or(|target| alias.target == target))
            .take(count.saturating_add(1))
            .map(|(name, alias)| (name.name.clone(), Arc::clone(alias)))
            .collect();
        let more = found.len() > count;
        found.truncate(count);
        (found, more)
    }

    /// Names of a key's aliases.
    pub(crate) fn of_key(&self, account: &Arc<str>, region: &Arc<str>, target: KeyId) -> Vec<String> {
        self.page(account, region, Some(target), "", usize::MAX).0.into_iter().map(|(name, _)| name).collect()
    }

    pub(crate) async fn changing(&self) -> Changing<'_> {
        Changing(self.changing.lock().await)
    }

    /// Makes one, or points the one of that name elsewhere. That to the same key moves the date, too: some clients keep their keys
    /// alive so.
    pub(crate) async fn put(
        &self,
        _changing: &Changing<'_>,
        name: AliasName,
        target: KeyId,
        now: Timestamp,
        event: Decided,
    ) -> Result<Committed, ApiError> {
        let old = self.get(&name);
        let old = old.as_deref();
        if old.is_none_or(|old| old.target != target)
            && self.of_key(&name.account, &name.region, target).len() >= PER_KEY_MAX
        {
            return Err(ApiError::new(Code::LimitExceeded, format!("A key has at most {PER_KEY_MAX} aliases")));
        }
        let record_version = old.map_or(0, |old| old.record_version);
        let created = old.map_or(now, |old| old.created);
        let stored = StoredAlias {
            v: FORMAT,
            account: name.account.to_string(),
            region: name.region.to_string(),
            name: name.name.clone(),
            target: target.to_string(),
            created: created.unix_millis(),
            updated: now.unix_millis(),
        };
        let value = serde_json::to_vec(&stored).map_err(|error| ApiError::internal(error.to_string()))?;
        event.by_leave_of(&[Action::KeyUpdate], &target.resource().unwrap_or(Resource::Keys))?;
        let write = Write { key: record(&name), expected_version: record_version, value: Some(value) };
        Ok(self.store.commit(Change { writes: vec![write], event }).await?)
    }

    pub(crate) async fn remove(
        &self,
        _changing: &Changing<'_>,
        name: &AliasName,
        old: &Alias,
        event: Decided,
    ) -> Result<Committed, ApiError> {
        // The alias of a key that is gone is removed by leave of what is about no key.
        let on_key = event.by_leave_of(&[Action::KeyUpdate], &old.target.resource().unwrap_or(Resource::Keys));
        on_key.or_else(|_| event.by_leave_of(&[Action::KeyUpdate], &Resource::Keys))?;
        let write = Write { key: record(name), expected_version: old.record_version, value: None };
        Ok(self.store.commit(Change { writes: vec![write], event }).await?)
    }

    /// Writes that remove a key's aliases, to go with the key.
    pub(crate) fn removal(
        &self,
        _changing: &Changing<'_>,
        account: &Arc<str>,
        region: &Arc<str>,
        target: KeyId,
    ) -> Vec<Write> {
        let (found, _) = self.page(account, region, Some(target), "", usize::MAX);
        let write = |(name, alias): (String, Arc<Alias>)| {
            let name = AliasName { account: Arc::clone(account), region: Arc::clone(region), name };
            Write { key: record(&name), expected_version: alias.record_version, value: None }
        };
        found.into_iter().map(write).collect()
    }
}

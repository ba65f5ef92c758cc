//! Kill switches: one key, one store, or everything.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{decode, encode};
use crate::error::AdminError;

/// What a kill switch stops.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "name")]
pub enum KillScope {
    /// Everything.
    All,
    /// One key, in all stores.
    Key(String),
    /// One store.
    Store(String),
}

impl fmt::Display for KillScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Key(key) => write!(f, "key {key:?}"),
            Self::Store(store) => write!(f, "store {store:?}"),
        }
    }
}

/// A kill switch that is pulled.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KillSwitch {
    /// What it stops.
    pub scope: KillScope,
    /// Who pulled it.
    pub by: String,
    /// Why, in that person's words.
    pub reason: String,
    /// When; Unix milliseconds.
    pub time: i64,
}

impl KillSwitch {
    /// As it is stored.
    ///
    /// # Errors
    /// [`AdminError::Record`].
    pub fn encode(&self) -> Result<Vec<u8>, AdminError> {
        encode(self)
    }

    /// As it was stored.
    ///
    /// # Errors
    /// [`AdminError::Record`].
    pub fn decode(value: &[u8]) -> Result<Self, AdminError> {
        decode(value)
    }
}

/// All that are pulled.
#[derive(Default)]
pub struct Kills(BTreeMap<KillScope, KillSwitch>);

impl Kills {
    pub(crate) fn insert(&mut self, kill: KillSwitch) {
        self.0.insert(kill.scope.clone(), kill);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &KillSwitch> {
        self.0.values()
    }

    /// Whether this very switch is pulled.
    #[must_use]
    pub fn contains(&self, scope: &KillScope) -> bool {
        self.0.contains_key(scope)
    }

    /// The switch that stops a store, if one does.
    pub(crate) fn of_store(&self, store: &str) -> Option<&KillSwitch> {
        // The usual case costs nothing.
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&KillScope::All).or_else(|| self.0.get(&KillScope::Store(store.to_owned())))
    }

    /// The switch that stops a key, if one does.
    pub(crate) fn of_key(&self, key: &str) -> Option<&KillSwitch> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&KillScope::Key(key.to_owned()))
    }
}

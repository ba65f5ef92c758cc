//! Who may use which external key, through which HSM user: one TOML document, changed by quorum only.
//!
//! A *store* is what one provider's key service sees under one path prefix. A *key* is named by its external id and lies in
//! one or more HSM users' tokens. A *rule* allows or denies callers. Anything that nothing allows is denied, and a rule that
//! denies wins over all that allow. `docs/policy.md` is the manual.

mod decide;
mod pattern;
mod raw;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

pub use decide::{Explanation, Question};
use holdfast_core::{ExternalKeyId, KeyFinding, TokenObject};
use pattern::Pattern;

/// Longest policy in bytes.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;

/// A checked policy.
#[derive(Debug, Default)]
pub struct Policy {
    text: String,
    stores: Vec<Arc<KeyStore>>,
    by_prefix: HashMap<String, Arc<KeyStore>>,
    keys: BTreeMap<ExternalKeyId, Arc<PolicyKey>>,
}

/// What one provider's key service sees under one path prefix.
#[derive(Debug)]
pub struct KeyStore {
    /// Its name here.
    pub name: String,
    /// Begins with `/`, or is empty.
    pub path_prefix: String,
    /// Which protocol it speaks.
    pub dialect: Dialect,
    /// How callers are judged.
    pub mode: Mode,
    /// Requests a second before callers are throttled.
    pub requests_per_sec: u32,
    keys: HashSet<ExternalKeyId>,
    rules: Vec<Rule>,
}

/// Which protocol a store speaks.
#[derive(Debug)]
pub enum Dialect {
    /// AWS external key store proxy API.
    AwsXks {
        /// The region that signs.
        region: String,
        /// What of the AAD the HSM sees.
        aad: AadForm,
        /// Whether a caller must be proved, whatever the mode.
        caller_proof: CallerProof,
    },
    /// Azure external key management proxy API.
    AzureEkm {
        /// Common name of the client certificate.
        client_subject: String,
        /// SHA-256 of the certificate of the CA that must have issued it.
        client_ca_sha256: [u8; 32],
    },
}

/// What of the additional authenticated data the HSM sees (XKS proxy API 1.0.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AadForm {
    /// The data itself.
    Specification,
    /// Its SHA-256, as AWS's sample proxy has it: for ciphertext that was made by one.
    Sha256,
}

/// What is asked of statements that prove the caller (`docs/formats/caller-proof.md`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallerProof {
    /// None is looked at.
    Off,
    /// One that is there must be right.
    Checked,
    /// There must be one, and it must be right.
    Required,
}

/// How callers are judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// A rule must allow the caller; it may use patterns.
    Patterns,
    /// A rule must allow the caller by its exact name.
    Strict,
    /// Whoever the provider lets through may pass, unless a rule denies.
    TrustProvider,
}

/// An external key.
#[derive(Debug)]
pub struct PolicyKey {
    /// Its id.
    pub id: ExternalKeyId,
    /// HSM users that have it, in the order in which they are asked.
    pub hsms: Vec<String>,
    /// Faults in how the HSM holds it that are accepted.
    pub accept: Vec<KeyFinding>,
    /// Objects by version, ascending; the last one encrypts.
    versions: Vec<(u32, TokenObject)>,
    /// What stores use it for: data, keys, or both.
    pub purpose: holdfast_core::KeyOperations,
}

/// Allows or denies callers.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    denies: bool,
    keys: Option<HashSet<ExternalKeyId>>,
    principals: Option<Vec<Pattern>>,
    accounts: Option<Vec<Pattern>>,
    kms_keys: Option<Vec<Pattern>>,
    via_services: Option<Vec<Pattern>>,
    source_vpcs: Option<Vec<Pattern>>,
    source_vpces: Option<Vec<Pattern>>,
    operations: Option<Vec<Pattern>>,
}

/// Why a text is not a policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPolicy(pub String);

impl Policy {
    /// Reads and checks a policy.
    ///
    /// # Errors
    /// [`InvalidPolicy`], naming what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        raw::parse(text)
    }

    /// The text it was read from.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All stores.
    #[must_use]
    pub fn stores(&self) -> &[Arc<KeyStore>] {
        &self.stores
    }

    /// The store under a path prefix.
    #[must_use]
    pub fn store_at(&self, prefix: &str) -> Option<&Arc<KeyStore>> {
        self.by_prefix.get(prefix)
    }

    /// The store of a name.
    #[must_use]
    pub fn store(&self, name: &str) -> Option<&Arc<KeyStore>> {
        self.stores.iter().find(|store| store.name == name)
    }

    /// The key of an id.
    #[must_use]
    pub fn key(&self, id: &ExternalKeyId) -> Option<&Arc<PolicyKey>> {
        self.keys.get(id)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<PolicyKey>> {
        self.keys.values()
    }
}

impl KeyStore {
    /// Whether the store offers a key.
    #[must_use]
    pub fn offers(&self, key: &ExternalKeyId) -> bool {
        self.keys.contains(key)
    }

    /// Whether it speaks AWS's protocol.
    #[must_use]
    pub fn is_xks(&self) -> bool {
        matches!(self.dialect, Dialect::AwsXks { .. })
    }
}

impl PolicyKey {
    /// The version that encrypts.
    #[must_use]
    pub fn newest(&self) -> (u32, &TokenObject) {
        // Parsing refuses a key without versions.
        self.versions.last().map_or((0, &NOWHERE), |(number, object)| (*number, object))
    }

    /// The object of a version.
    #[must_use]
    pub fn version(&self, number: u32) -> Option<&TokenObject> {
        self.versions.iter().find(|(known, _)| *known == number).map(|(_, object)| object)
    }

    /// The oldest version: what ciphertext without metadata was made by.
    #[must_use]
    pub fn oldest(&self) -> (u32, &TokenObject) {
        self.versions.first().map_or((0, &NOWHERE), |(number, object)| (*number, object))
    }

    /// All versions.
    #[must_use]
    pub fn versions(&self) -> &[(u32, TokenObject)] {
        &self.versions
    }
}

static NOWHERE: TokenObject = TokenObject { label: None, id: None };

#[cfg(test)]
mod tests;

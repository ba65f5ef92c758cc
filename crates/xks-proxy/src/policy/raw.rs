//! The policy as written, checked.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use holdfast_core::{ExternalKeyId, KeyFinding, KeyOperation, KeyOperations, TokenObject};
use serde::Deserialize;

use super::{
    AadForm, CallerProof, Dialect, InvalidPolicy, KeyStore, Mode, POLICY_BYTES_MAX, Pattern, Policy, PolicyKey, Rule,
};
use holdfast_wire::hex::unhex;

/// `/kms/xks/v1` of an external key store; with the prefix at most 128 characters (XKS proxy API 1.0.3).
const XKS_PREFIX_BYTES_MAX: usize = 117;
const EKM_PREFIX_BYTES_MAX: usize = 64;
const EKM_KEY_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    version: u32,
    #[serde(default)]
    stores: Vec<RawStore>,
    #[serde(default)]
    keys: Vec<RawKey>,
    #[serde(default)]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    name: String,
    #[serde(default)]
    path_prefix: String,
    #[serde(default = "aws_xks")]
    dialect: String,
    region: Option<String>,
    mode: String,
    aad: Option<String>,
    caller_proof: Option<String>,
    client_subject: Option<String>,
    client_ca_sha256: Option<String>,
    requests_per_sec: Option<u32>,
    keys: Vec<String>,
}

fn aws_xks() -> String {
    "aws-xks".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    id: String,
    hsms: Vec<String>,
    label: Option<String>,
    object_id: Option<String>,
    #[serde(default)]
    versions: Vec<RawVersion>,
    #[serde(default)]
    accept: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVersion {
    number: u32,
    label: Option<String>,
    object_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    effect: String,
    stores: Option<Vec<String>>,
    keys: Option<Vec<String>>,
    principals: Option<Vec<String>>,
    accounts: Option<Vec<String>>,
    kms_keys: Option<Vec<String>>,
    via_services: Option<Vec<String>>,
    source_vpcs: Option<Vec<String>>,
    source_vpces: Option<Vec<String>>,
    operations: Option<Vec<String>>,
}

type Checked<T> = Result<T, InvalidPolicy>;

fn wrong<T>(why: String) -> Checked<T> {
    Err(InvalidPolicy(why))
}

pub(super) fn parse(text: &str) -> Checked<Policy> {
    if text.len() > POLICY_BYTES_MAX {
        return wrong(format!("a policy has at most {POLICY_BYTES_MAX} bytes"));
    }
    let raw: RawPolicy = toml::from_str(text).map_err(|error| InvalidPolicy(error.to_string()))?;
    if raw.version != 1 {
        return wrong(format!("version = {}: this program knows version 1", raw.version));
    }
    let mut purposes: HashMap<&str, KeyOperations> = HashMap::new();
    for store in &raw.stores {
        let operations = match store.dialect.as_str() {
            "azure-ekm" => [KeyOperation::WrapKey, KeyOperation::UnwrapKey],
            _ => [KeyOperation::Encrypt, KeyOperation::Decrypt],
        };
        for key in &store.keys {
            let purpose = purposes.entry(key).or_default();
            *purpose = purpose.iter().chain(operations).collect();
        }
    }
    let mut keys = BTreeMap::new();
    for key in &raw.keys {
        let purpose = purposes.get(key.id.as_str()).copied().unwrap_or_default();
        let key = key.check(purpose)?;
        if keys.insert(key.id.clone(), Arc::new(key)).is_some() {
            return wrong("two keys have the same id".into());
        }
    }
    check_rules(&raw, &keys)?;
    let mut policy = Policy { text: text.to_owned(), keys, ..Policy::default() };
    for store in &raw.stores {
        let store = Arc::new(store.check(&policy.keys, &raw.rules)?);
        if policy.stores.iter().any(|known| known.name == store.name) {
            return wrong(format!("two stores have the name {:?}", store.name));
        }
        if policy.by_prefix.insert(store.path_prefix.clone(), Arc::clone(&store)).is_some() {
            return wrong(format!("two stores have the path_prefix {:?}", store.path_prefix));
        }
        policy.stores.push(store);
    }
    Ok(policy)
}

fn check_rules(raw: &RawPolicy, keys: &BTreeMap<ExternalKeyId, Arc<PolicyKey>>) -> Checked<()> {
    let mut names = BTreeSet::new();
    for rule in &raw.rules {
        let name = &rule.name;
        if name.is_empty() || !names.insert(name) {
            return wrong(format!("rule {name:?}: every rule has a name of its own"));
        }
        if !matches!(rule.effect.as_str(), "allow" | "deny") {
            return wrong(format!("rule {name:?}: effect is \"allow\" or \"deny\""));
        }
        for store in rule.stores.iter().flatten() {
            if !raw.stores.iter().any(|known| known.name == *store) {
                return wrong(format!("rule {name:?}: there is no store {store:?}"));
            }
        }
        for key in rule.keys.iter().flatten() {
            if !ExternalKeyId::parse(key).is_ok_and(|key| keys.contains_key(&key)) {
                return wrong(format!("rule {name:?}: there is no key {key:?}"));
            }
        }
        let lists = [&rule.principals, &rule.accounts, &rule.kms_keys, &rule.via_services];
        let more = [&rule.source_vpcs, &rule.source_vpces, &rule.operations, &rule.keys];
        if lists.iter().chain(&more).any(|list| list.as_ref().is_some_and(Vec::is_empty)) {
            return wrong(format!("rule {name:?}: an empty list matches nothing; leave it out to match anything"));
        }
    }
    Ok(())
}

fn token_object(what: &str, label: Option<&String>, id: Option<&String>) -> Checked<TokenObject> {
    let id = match id {
        None => None,
        Some(hex) => Some(
            unhex(hex).filter(|id| !id.is_empty()).ok_or_else(|| InvalidPolicy(format!("{what}: object_id is hex")))?,
        ),
    };
    if label.is_none() && id.is_none() {
        return wrong(format!("{what}: needs label, object_id, or both"));
    }
    Ok(TokenObject { label: label.cloned(), id })
}

impl RawKey {
    fn check(&self, purpose: KeyOperations) -> Checked<PolicyKey> {
        let what = format!("key {:?}", self.id);
        let id = ExternalKeyId::parse(&self.id).map_err(|error| InvalidPolicy(format!("{what}: {error}")))?;
        if self.hsms.is_empty() {
            return wrong(format!("{what}: hsms names at least one HSM user"));
        }
        let mut versions = Vec::new();
        if self.label.is_some() || self.object_id.is_some() {
            if !self.versions.is_empty() {
                return wrong(format!("{what}: label and object_id are for keys without versions"));
            }
            versions.push((1, token_object(&what, self.label.as_ref(), self.object_id.as_ref())?));
        }
        for version in &self.versions {
            let object = token_object(&what, version.label.as_ref(), version.object_id.as_ref())?;
            versions.push((version.number, object));
        }
        let ascending = versions.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if versions.is_empty() || !ascending || versions[0].0 == 0 {
            return wrong(format!("{what}: versions are numbered from 1 upwards, in order"));
        }
        let accept = self.accept.iter().map(|name| {
            let known = KeyFinding::ALL.map(KeyFinding::as_str).join(", ");
            KeyFinding::parse(name).ok_or_else(|| InvalidPolicy(format!("{what}: accept knows {known}; not {name:?}")))
        });
        Ok(PolicyKey { id, hsms: self.hsms.clone(), accept: accept.collect::<Checked<_>>()?, versions, purpose })
    }
}

impl RawStore {
    fn check(&self, keys: &BTreeMap<ExternalKeyId, Arc<PolicyKey>>, rules: &[RawRule]) -> Checked<KeyStore> {
        let what = format!("store {:?}", self.name);
        if self.name.is_empty() || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return wrong(format!("{what}: a name has letters, digits, '-' and '_'"));
        }
        let mode = match self.mode.as_str() {
            "patterns" => Mode::Patterns,
            "strict" => Mode::Strict,
            "trust-provider" => Mode::TrustProvider,
            other => return wrong(format!("{what}: mode {other:?} is none of trust-provider, patterns, strict")),
        };
        let dialect = self.check_dialect(&what, mode)?;
        self.check_prefix(&what, matches!(dialect, Dialect::AwsXks { .. }))?;
        let mut offered = HashSet::new();
        for key in &self.keys {
            let id = ExternalKeyId::parse(key).ok().filter(|id| keys.contains_key(id));
            let id = id.ok_or_else(|| InvalidPolicy(format!("{what}: there is no key {key:?}")))?;
            let ekm_name =
                key.len() <= EKM_KEY_BYTES_MAX && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if matches!(dialect, Dialect::AzureEkm { .. }) && !ekm_name {
                return wrong(format!("{what}: {key:?} has a name that Azure does not know: 64 letters, digits, '-'"));
            }
            // Nothing that travels with the ciphertext tells which version it was.
            if matches!(dialect, Dialect::AzureEkm { .. }) && keys.get(&id).is_some_and(|key| key.versions.len() > 1) {
                return wrong(format!("{what}: {key:?} has versions, for which Azure wants an id each"));
            }
            offered.insert(id);
        }
        let of_this = rules.iter().filter(|rule| rule.stores.as_ref().is_none_or(|list| list.contains(&self.name)));
        Ok(KeyStore {
            rules: of_this.map(|rule| rule.check(mode)).collect::<Checked<_>>()?,
            requests_per_sec: self.requests_per_sec.unwrap_or(1800).max(1),
            name: self.name.clone(),
            path_prefix: self.path_prefix.clone(),
            dialect,
            mode,
            keys: offered,
        })
    }

    fn check_prefix(&self, what: &str, xks: bool) -> Checked<()> {
        let prefix = &self.path_prefix;
        let longest = if xks { XKS_PREFIX_BYTES_MAX } else { EKM_PREFIX_BYTES_MAX };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-') || (xks && b == b'_');
        let formed = prefix.is_empty() || (prefix.starts_with('/') && !prefix.ends_with('/') && !prefix.contains("//"));
        if formed && prefix.len() <= longest && prefix.bytes().all(allowed) {
            return Ok(());
        }
        wrong(format!("{what}: path_prefix is empty or begins with '/', up to {longest} letters, digits, '/', '-'"))
    }

    fn check_dialect(&self, what: &str, mode: Mode) -> Checked<Dialect> {
        match self.dialect.as_str() {
            "aws-xks" => {
                if self.client_subject.is_some() || self.client_ca_sha256.is_some() {
                    return wrong(format!("{what}: client_subject and client_ca_sha256 are of azure-ekm"));
                }
                let Some(region) = &self.region else { return wrong(format!("{what}: region is missing")) };
                let aad = match self.aad.as_deref() {
                    None | Some("specification") => AadForm::Specification,
                    Some("sha256") => AadForm::Sha256,
                    Some(other) => return wrong(format!("{what}: aad {other:?} is not specification or sha256")),
                };
                let caller_proof = match self.caller_proof.as_deref() {
                    None | Some("off") => CallerProof::Off,
                    // Strict mode asks for what others only check.
                    Some("checked") if mode == Mode::Strict => CallerProof::Required,
                    Some("checked") => CallerProof::Checked,
                    Some("required") => CallerProof::Required,
                    Some(other) => {
                        return wrong(format!("{what}: caller_proof {other:?} is not off, checked, required"));
                    }
                };
                Ok(Dialect::AwsXks { region: region.clone(), aad, caller_proof })
            }
            "azure-ekm" => {
                if self.region.is_some() || self.aad.is_some() || self.caller_proof.is_some() {
                    return wrong(format!("{what}: region, aad and caller_proof are of aws-xks"));
                }
                let ca = self.client_ca_sha256.as_deref().and_then(unhex).and_then(|ca| ca.try_into().ok());
                match (&self.client_subject, ca) {
                    (Some(subject), Some(client_ca_sha256)) => {
                        Ok(Dialect::AzureEkm { client_subject: subject.clone(), client_ca_sha256 })
                    }
                    _ => wrong(format!("{what}: azure-ekm needs client_subject and client_ca_sha256 (64 hex digits)")),
                }
            }
            other => wrong(format!("{what}: dialect {other:?} is neither aws-xks nor azure-ekm")),
        }
    }
}

impl RawRule {
    fn check(&self, mode: Mode) -> Checked<Rule> {
        let list = |list: &Option<Vec<String>>| -> Option<Vec<Pattern>> {
            list.as_ref().map(|list| list.iter().map(|text| Pattern::new(text)).collect())
        };
        let denies = self.effect == "deny";
        let rule = Rule {
            name: self.name.clone(),
            denies,
            keys: self.keys.as_ref().map(|keys| keys.iter().filter_map(|key| ExternalKeyId::parse(key).ok()).collect()),
            principals: list(&self.principals),
            accounts: list(&self.accounts),
            kms_keys: list(&self.kms_keys),
            via_services: list(&self.via_services),
            source_vpcs: list(&self.source_vpcs),
            source_vpces: list(&self.source_vpces),
            operations: list(&self.operations),
        };
        if mode == Mode::Strict && !denies {
            let exact = rule.principals.as_ref().is_some_and(|list| list.iter().all(Pattern::is_exact));
            if !exact || rule.keys.is_none() {
                return wrong(format!(
                    "rule {:?}: in a strict store a rule that allows names its principals, without wildcards, and its keys",
                    self.name
                ));
            }
        }
        Ok(rule)
    }
}

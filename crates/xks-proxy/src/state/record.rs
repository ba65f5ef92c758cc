//! Records as stored: a JSON object of version 1; where there is a secret, it follows after a newline.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_crypto::{SecretBytes, VerifyingKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Heard, error::AdminError};

/// The envelope of every record's JSON.
#[derive(Deserialize, Serialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    content: T,
}

const VERSION: u32 = 1;

fn malformed(error: impl std::fmt::Display) -> AdminError {
    AdminError::Record(error.to_string())
}

pub(crate) fn encode(content: &impl Serialize) -> Result<Vec<u8>, AdminError> {
    serde_json::to_vec(&Versioned { v: VERSION, content }).map_err(malformed)
}

pub(crate) fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, AdminError> {
    let record: Versioned<T> = serde_json::from_slice(value).map_err(malformed)?;
    if record.v != VERSION {
        return Err(malformed(format!("version {} is not known", record.v)));
    }
    Ok(record.content)
}

pub(crate) fn encode_with_secret(content: &impl Serialize, secret: &SecretBytes) -> Result<Vec<u8>, AdminError> {
    let json = encode(content)?;
    let mut out = Vec::with_capacity(json.len() + 1 + secret.len());
    out.extend_from_slice(&json);
    out.push(b'\n');
    out.extend_from_slice(secret.expose());
    Ok(out)
}

pub(crate) fn split_secret<T: DeserializeOwned>(value: &[u8]) -> Result<(T, SecretBytes), AdminError> {
    // JSON text of serde_json has no newline of its own.
    let at = value.iter().position(|byte| *byte == b'\n').ok_or_else(|| malformed("the secret is missing"))?;
    Ok((decode(&value[..at])?, SecretBytes::copy_of(&value[at + 1..])))
}

#[derive(Deserialize, Serialize)]
pub(crate) struct PolicyRecord {
    pub text: String,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct CredentialMeta {
    pub store: String,
    pub access_key_id: String,
    /// Unix seconds.
    pub created: i64,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct PinMeta {
    pub hsm: String,
}

/// Up to which number each process's kills are in the state.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct HeardRecord {
    pub heard: Heard,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct CallerMeta {
    pub access_key_id: String,
    pub principal_arn: String,
}

/// The operators, as written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OperatorsRecord {
    /// How many must approve.
    pub threshold: usize,
    /// Who may.
    pub operators: Vec<OperatorRecord>,
}

/// One operator, as written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OperatorRecord {
    /// A name for people.
    pub name: String,
    /// SubjectPublicKeyInfo, Base64: what stands between the lines of a PEM file.
    pub public_key: String,
}

/// Who approves changes, checked.
#[derive(Default)]
pub struct Operators {
    /// How many must approve.
    pub threshold: usize,
    /// Who may.
    pub operators: Vec<Operator>,
}

/// One operator.
pub struct Operator {
    /// A name for people.
    pub name: String,
    /// Verifies what they sign.
    pub key: VerifyingKey,
}

/// More would be a crowd, and each approval is verified in turn.
const OPERATORS_MAX: usize = 32;

impl OperatorsRecord {
    /// Checks names, keys and threshold.
    ///
    /// # Errors
    /// [`AdminError::Invalid`].
    pub fn check(&self) -> Result<Operators, AdminError> {
        let invalid = |why: String| Err(AdminError::Invalid(why));
        if self.operators.is_empty() || self.operators.len() > OPERATORS_MAX {
            return invalid(format!("there are 1 to {OPERATORS_MAX} operators"));
        }
        if self.threshold == 0 || self.threshold > self.operators.len() {
            return invalid(format!("the threshold is 1 to {}, the number of operators", self.operators.len()));
        }
        let mut operators: Vec<Operator> = Vec::new();
        for record in &self.operators {
            let name = &record.name;
            let spki = STANDARD.decode(&record.public_key).ok();
            let key = spki.and_then(|spki| VerifyingKey::from_spki(&spki).ok());
            let Some(key) = key else {
                return invalid(format!("operator {name:?}: public_key is not an Ed25519 or P-256 key (SPKI, Base64)"));
            };
            // One person with two keys would be a quorum alone.
            if operators.iter().any(|known| known.name == *name || known.key.spki() == key.spki()) {
                return invalid(format!("operator {name:?} is there twice"));
            }
            operators.push(Operator { name: name.clone(), key });
        }
        Ok(Operators { threshold: self.threshold, operators })
    }
}

impl Operators {
    /// As they are written.
    #[must_use]
    pub fn record(&self) -> OperatorsRecord {
        let written = |operator: &Operator| OperatorRecord {
            name: operator.name.clone(),
            public_key: STANDARD.encode(operator.key.spki()),
        };
        OperatorsRecord { threshold: self.threshold, operators: self.operators.iter().map(written).collect() }
    }

    /// The operator of a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Operator> {
        self.operators.iter().find(|operator| operator.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_others_are_refused() {
        let meta = CredentialMeta { store: "s".into(), access_key_id: "A".into(), created: 7 };
        let record = encode_with_secret(&meta, &SecretBytes::copy_of(b"se\ncret")).unwrap();
        let (again, secret) = split_secret::<CredentialMeta>(&record).unwrap();
        assert_eq!((again.store.as_str(), again.created), ("s", 7));
        assert!(secret.ct_eq(b"se\ncret"));
        // Golden: what version 1 wrote must be readable for ever.
        assert_eq!(record, b"{\"v\":1,\"store\":\"s\",\"access_key_id\":\"A\",\"created\":7}\nse\ncret");
        assert!(decode::<PolicyRecord>(br#"{"v":2,"text":""}"#).is_err());
        assert!(decode::<PolicyRecord>(br#"{"text":""}"#).is_err());
        assert!(split_secret::<PinMeta>(br#"{"v":1,"hsm":"h"}"#).is_err());
    }

    #[test]
    fn golden_kill_switch() {
        let golden = br#"{"v":1,"scope":{"kind":"store","name":"s"},"by":"local user 0","reason":"drill","time":7}"#;
        let kill: crate::state::KillSwitch = decode(golden).unwrap();
        assert_eq!(kill.scope, crate::state::KillScope::Store("s".into()));
        assert_eq!(encode(&kill).unwrap(), golden);
    }

    #[test]
    fn golden_heard() {
        let golden = br#"{"v":1,"heard":{"a":3,"command":1}}"#;
        let record: HeardRecord = decode(golden).unwrap();
        assert_eq!(record.heard, Heard::from([("a".into(), 3), ("command".into(), 1)]));
        assert_eq!(encode(&record).unwrap(), golden);
    }

    #[test]
    fn operators_are_distinct_people() {
        let key = |number: u8| {
            let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
            STANDARD.encode([prefix.as_slice(), &[number; 32]].concat())
        };
        let record = |name: &str, number| OperatorRecord { name: name.into(), public_key: key(number) };
        let check = |threshold, operators| OperatorsRecord { threshold, operators }.check().is_ok();
        assert!(check(2, vec![record("a", 1), record("b", 2)]));
        assert!(!check(3, vec![record("a", 1), record("b", 2)]));
        assert!(!check(0, vec![record("a", 1)]));
        assert!(!check(1, vec![]));
        assert!(!check(2, vec![record("a", 1), record("a", 2)]));
        assert!(!check(2, vec![record("a", 1), record("b", 1)]));
    }
}

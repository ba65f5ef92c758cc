//! A request, what was said of it, and where it stands.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::{Ambient, Timestamp};
use holdfast_crypto::{PersonalKey, kdf};
use serde::{Deserialize, Serialize};

use super::Act;
use crate::{
    error::AdminError,
    state::{Operators, encode},
};
use holdfast_wire::hex::hex;

/// Longest time from proposal to the last approval: a week.
const LIFE_SECS_MAX: i64 = 7 * 24 * 3600;
/// A proposer's clock may be off by so much.
const CLOCK_SKEW_SECS: i64 = 300;

/// What is asked for, exactly. Its text is signed; a different text is a different request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The instance it is for, hex.
    pub instance: String,
    /// Who asks.
    pub proposer: String,
    /// When; Unix seconds.
    pub created: i64,
    /// Until when it can be approved; Unix seconds.
    pub expires: i64,
    /// Random, so that asking for the same again is another request.
    pub nonce: String,
    /// What.
    pub change: Act,
}

/// Where a proposal stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// More approvals are needed.
    Open,
    /// An HSM is at work on it.
    Executing,
    /// Carried out.
    Executed,
    /// It was approved, and could not be carried out.
    Failed,
    /// So many reject it that it cannot be approved any more.
    Rejected,
}

/// What one operator says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Verdict {
    /// Who.
    pub operator: String,
    /// Yes or no.
    pub approve: bool,
    /// Over [`statement`]; Base64.
    pub signature: String,
    /// When; Unix seconds.
    pub time: i64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Stored {
    v: u32,
    text: String,
    status: Status,
    verdicts: Vec<Verdict>,
    outcome: Option<String>,
}

/// A request with what was said of it.
#[derive(Clone, Debug)]
pub struct Proposal {
    text: String,
    request: Request,
    /// Where it stands.
    pub status: Status,
    /// What operators said.
    pub verdicts: Vec<Verdict>,
    /// What came of it.
    pub outcome: Option<String>,
}

/// What an operator signs to approve or reject the request of this text.
#[must_use]
pub fn statement(text: &str, approve: bool) -> String {
    let verdict = if approve { "approve" } else { "reject" };
    format!("holdfast quorum v1\n{verdict}\n{}\n", hex(&kdf::sha256(&[text.as_bytes()])))
}

/// An operator's word on a proposal, whose signature holds. [`Proposal::hear`] makes it.
#[must_use]
pub(crate) struct Word {
    proposal: String,
}

/// Enough of today's operators approve: their signatures were counted. [`Proposal::tally`] makes it.
#[must_use]
pub(crate) struct Approved {
    proposal: String,
}

/// So many reject it that it cannot be approved any more. [`Proposal::tally`] makes it.
#[must_use]
pub(crate) struct Refused {
    proposal: String,
}

/// What the words on a proposal come to.
pub(crate) enum Tally {
    Approved(Approved),
    Open,
    Refused(Refused),
}

impl Word {
    /// On which proposal.
    pub(crate) fn proposal(&self) -> &str {
        &self.proposal
    }
}

impl Approved {
    /// Which proposal.
    pub(crate) fn proposal(&self) -> &str {
        &self.proposal
    }
}

impl Refused {
    /// Which proposal.
    pub(crate) fn proposal(&self) -> &str {
        &self.proposal
    }
}

impl Request {
    /// A request of `proposer` to the instance of this hex id, open for `life_secs`.
    #[must_use]
    pub fn new(instance: &str, proposer: &str, change: Act, life_secs: i64, ambient: &dyn Ambient) -> Self {
        let created = ambient.now().unix_secs();
        let nonce: [u8; 16] = ambient.random();
        Self {
            instance: instance.to_owned(),
            proposer: proposer.to_owned(),
            created,
            expires: created + life_secs,
            nonce: hex(&nonce),
            change,
        }
    }

    /// Its text, and its proposer's approval of exactly that.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] if it cannot be written or signed.
    pub fn sign(&self, key: &PersonalKey) -> Result<(String, Vec<u8>), AdminError> {
        let failed = |error: &dyn std::fmt::Display| AdminError::Invalid(error.to_string());
        let text = serde_json::to_string(self).map_err(|error| failed(&error))?;
        let signature = key.sign(statement(&text, true).as_bytes()).map_err(|error| failed(&error))?;
        Ok((text, signature))
    }
}

impl Proposal {
    /// A new request, from its exact text.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] if it is malformed, for another instance, expired, or would live too long.
    pub fn new(text: String, instance: &str, now: Timestamp) -> Result<Self, AdminError> {
        let invalid = |why: String| AdminError::Invalid(why);
        let request: Request = serde_json::from_str(&text).map_err(|error| invalid(format!("the request: {error}")))?;
        let now = now.unix_secs();
        if request.instance != instance {
            return Err(invalid("the request is for another instance".into()));
        }
        if request.expires <= now || request.expires - request.created > LIFE_SECS_MAX {
            return Err(invalid("the request has expired, or would live for more than a week".into()));
        }
        if (request.created - now).abs() > CLOCK_SKEW_SECS {
            return Err(invalid("the request's time is more than five minutes off".into()));
        }
        Ok(Self { text, request, status: Status::Open, verdicts: Vec::new(), outcome: None })
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, AdminError> {
        let malformed = |error: serde_json::Error| AdminError::Record(format!("a proposal: {error}"));
        let stored: Stored = serde_json::from_slice(value).map_err(malformed)?;
        if stored.v != 1 {
            return Err(AdminError::Record(format!("a proposal: version {} is not known", stored.v)));
        }
        let request = serde_json::from_str(&stored.text).map_err(malformed)?;
        let Stored { text, status, verdicts, outcome, .. } = stored;
        Ok(Self { text, request, status, verdicts, outcome })
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, AdminError> {
        #[derive(Serialize)]
        struct Content<'a> {
            text: &'a str,
            status: Status,
            verdicts: &'a [Verdict],
            outcome: &'a Option<String>,
        }
        let Self { text, status, verdicts, outcome, .. } = self;
        encode(&Content { text, status: *status, verdicts, outcome })
    }

    /// Its short name: 16 hex digits of the hash of its text.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&kdf::sha256(&[self.text.as_bytes()])[..8])
    }

    /// The exact text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text, read.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Whether it can still be approved.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.status == Status::Open && now.unix_secs() < self.request.expires
    }

    /// Takes what an operator says in; the last word of each counts.
    ///
    /// # Errors
    /// [`AdminError::Denied`] if the signature is not that operator's over exactly this; [`AdminError::Invalid`] if it is too late.
    pub(crate) fn hear(
        &mut self,
        operator: &str,
        approve: bool,
        signature: &[u8],
        operators: &Operators,
        now: Timestamp,
    ) -> Result<Word, AdminError> {
        if !self.is_open(now) {
            let why = if self.status == Status::Open { "it has expired" } else { "it is decided already" };
            return Err(AdminError::Invalid(format!("proposal {}: {why}", self.id())));
        }
        let known = operators.named(operator);
        let known = known.ok_or_else(|| AdminError::Denied(format!("{operator:?} is not an operator")))?;
        if !known.key.verify(statement(&self.text, approve).as_bytes(), signature) {
            return Err(AdminError::Denied(format!(
                "the signature is not one of {operator:?} over this request; was it changed?"
            )));
        }
        self.verdicts.retain(|verdict| verdict.operator != operator);
        self.verdicts.push(Verdict {
            operator: operator.to_owned(),
            approve,
            signature: STANDARD.encode(signature),
            time: now.unix_secs(),
        });
        Ok(Word { proposal: self.id() })
    }

    /// What the words heard so far come to.
    pub(crate) fn tally(&self, operators: &Operators) -> Tally {
        let (yes, no) = self.count(operators);
        let proposal = self.id();
        if yes >= operators.threshold {
            Tally::Approved(Approved { proposal })
        } else if operators.operators.len().saturating_sub(no) < operators.threshold {
            Tally::Refused(Refused { proposal })
        } else {
            Tally::Open
        }
    }

    /// How many of today's operators approve, and how many reject. Each signature is verified again: who is no longer an operator
    /// no longer counts.
    #[must_use]
    pub fn count(&self, operators: &Operators) -> (usize, usize) {
        let holds = |verdict: &&Verdict| {
            let key = operators.named(&verdict.operator).map(|operator| &operator.key);
            let signature = STANDARD.decode(&verdict.signature).unwrap_or_default();
            key.is_some_and(|key| key.verify(statement(&self.text, verdict.approve).as_bytes(), &signature))
        };
        let (yes, no): (Vec<_>, Vec<_>) = self.verdicts.iter().filter(holds).partition(|verdict| verdict.approve);
        (yes.len(), no.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 wrote must be readable for ever.
    #[test]
    fn golden_record() {
        let text = r#"{"instance":"00","proposer":"ann","created":1,"expires":2,"nonce":"n","change":{"act":"lift","scope":{"kind":"all"}}}"#;
        let golden = serde_json::json!({"v": 1, "text": text, "status": "open",
            "verdicts": [{"operator": "ann", "approve": true, "signature": "AA==", "time": 1}], "outcome": null});
        let proposal = Proposal::decode(golden.to_string().as_bytes()).unwrap();
        assert_eq!(proposal.id(), "dc10499f62512a7b");
        assert_eq!(proposal.request().change, Act::Lift { scope: crate::state::KillScope::All });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&proposal.encode().unwrap()).unwrap(), golden);
        // The text is signed to the letter: reading and writing it must not change it.
        assert_eq!(serde_json::to_string(proposal.request()).unwrap(), text);
        assert!(Proposal::decode(golden.to_string().replace("\"v\":1", "\"v\":2").as_bytes()).is_err());
    }
}

//! Events of changes: each is a row of the commit that makes the change, and leaves the state once it is in a log. So there is no change
//! without its event, whatever crashes. The process that made the change tells it; if that one is gone, another. A crash in between may
//! tell it twice, in two logs: the id says that it is one.

use std::{
    collections::VecDeque,
    sync::{MutexGuard, PoisonError},
};

use holdfast_core::{AuditError, AuditOutcome, Principal, RecordKey, StoreError, Timestamp, Write};
use serde::{Deserialize, Serialize};

use crate::{
    XksProxy,
    authn::person,
    commit::Itself,
    error::AdminError,
    quorum::Proposal,
    state::{OperatorsRecord, encode, kind},
};

/// Events that may wait for a log that cannot be written. Then changes are refused before they commit; kills are not.
const UNTOLD_MAX: usize = 256;
/// Ids of events that are remembered as told: longer than anybody still means to tell them.
const TOLD_MAX: usize = 4 * UNTOLD_MAX;

/// What a change was, by a stable word.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    Approve,
    Begin,
    Execute,
    Found,
    Propose,
    Reject,
    Rejected,
}

impl Change {
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Approve => "QuorumApprove",
            Self::Begin => "QuorumBegin",
            Self::Execute => "QuorumExecute",
            Self::Found => "Found",
            Self::Propose => "QuorumPropose",
            Self::Reject => "QuorumReject",
            Self::Rejected => "QuorumRejected",
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Allowed,
    Denied,
    Failed,
}

/// An event as it lies in the state.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Untold {
    /// The event's `request_id`, and the row's name.
    pub id: String,
    /// Whose change it was.
    pub process: String,
    /// Unix milliseconds.
    time: i64,
    change: Change,
    outcome: Outcome,
    /// Who did it; nobody: the proxy itself.
    operator: Option<String>,
    reason: Option<String>,
    proposal: Option<String>,
    proposer: Option<String>,
    operators: Option<String>,
    threshold: Option<usize>,
}

impl Untold {
    fn key(&self) -> RecordKey {
        RecordKey::new(kind::UNTOLD, self.id.clone().into_bytes())
    }

    /// The row that carries it: a part of the change's own commit.
    pub(crate) fn write(&self) -> Result<Write, AdminError> {
        Ok(Write { key: self.key(), expected_version: 0, value: Some(encode(self)?) })
    }

    /// The proposal that it is about.
    pub(crate) fn proposal(&self) -> Option<&String> {
        self.proposal.as_ref()
    }

    fn context(&self) -> Vec<(&'static str, String)> {
        let threshold = self.threshold.map(|threshold| threshold.to_string());
        let named = [
            ("proposal", &self.proposal),
            ("proposer", &self.proposer),
            ("operators", &self.operators),
            ("threshold", &threshold),
        ];
        let mut context: Vec<_> =
            named.into_iter().filter_map(|(name, value)| value.clone().map(|value| (name, value))).collect();
        context.push(("process", self.process.clone()));
        context
    }
}

impl XksProxy {
    fn blank(&self, change: Change) -> Untold {
        Untold {
            id: self.request_id(),
            process: self.beside.process().to_owned(),
            time: self.ambient.now().unix_millis(),
            change,
            outcome: Outcome::Allowed,
            operator: None,
            reason: None,
            proposal: None,
            proposer: None,
            operators: None,
            threshold: None,
        }
    }

    /// The event of the founding.
    pub(crate) fn founding(&self, operators: &OperatorsRecord) -> Untold {
        let who = operators.operators.iter().map(|operator| operator.name.as_str()).collect::<Vec<_>>().join(", ");
        Untold { operators: Some(who), threshold: Some(operators.threshold), ..self.blank(Change::Found) }
    }

    /// The event of an operator's word.
    pub(crate) fn word(&self, change: Change, operator: &str, proposal: &Proposal) -> Untold {
        Untold {
            operator: Some(operator.to_owned()),
            reason: Some(proposal.request().change.summary()),
            ..self.about(self.blank(change), proposal)
        }
    }

    /// The event of what came of a proposal.
    pub(crate) fn result(&self, change: Change, proposal: &Proposal) -> Untold {
        let outcome = match (change, &proposal.outcome) {
            (Change::Rejected, _) => Outcome::Denied,
            (_, Some(_)) => Outcome::Failed,
            (_, None) => Outcome::Allowed,
        };
        let reason = proposal.outcome.clone().unwrap_or_else(|| proposal.request().change.summary());
        Untold { outcome, reason: Some(reason), ..self.about(self.blank(change), proposal) }
    }

    #[expect(clippy::unused_self, reason = "one of the family above")]
    fn about(&self, untold: Untold, proposal: &Proposal) -> Untold {
        let proposer = proposal.request().proposer.clone();
        Untold { proposal: Some(proposal.id()), proposer: Some(proposer), ..untold }
    }

    /// Refuses a change while too many events wait for the log.
    pub(crate) fn room_for_events(&self) -> Result<(), AdminError> {
        let waiting = self.governed().untold.len();
        if waiting < UNTOLD_MAX {
            return Ok(());
        }
        Err(AuditError(format!("{waiting} events of changes wait for it")).into())
    }

    fn told(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the event of a change that is committed. If the log cannot be written, it stays in the state and is tried again each second.
    pub(crate) async fn tell(&self, untold: &Untold) {
        let outcome = match untold.outcome {
            Outcome::Allowed => AuditOutcome::Allowed,
            Outcome::Denied => AuditOutcome::Denied,
            Outcome::Failed => AuditOutcome::Failed,
        };
        let who = match (&untold.operator, untold.change) {
            (Some(operator), _) => Some(person("operators", operator)),
            (None, Change::Found) => None,
            (None, _) => Some(Principal::system()),
        };
        let mut event = self.event(untold.change.operation(), who, outcome, untold.reason.clone(), untold.context());
        event.time = Timestamp::from_unix_millis(untold.time);
        event.request_id.clone_from(&untold.id);
        // Whoever made the change and whoever looks for what is left may come at once: it is told by one.
        let _telling = self.telling_changes.lock().await;
        if self.told().contains(&untold.id) {
            return;
        }
        match self.audit.append(event).await {
            Ok(()) => {
                let mut told = self.told();
                told.push_back(untold.id.clone());
                if told.len() > TOLD_MAX {
                    told.pop_front();
                }
                drop(told);
                if self.efforts.telling.ends() {
                    tracing::info!("the audit log takes events of changes again");
                }
            }
            Err(_) if !self.efforts.telling.begins() => {}
            Err(error) => {
                let operation = untold.change.operation();
                tracing::error!(%error, operation, id = untold.id, "a change is done, and its event waits for the audit log");
            }
        }
    }

    /// Tells what is left to tell, and lets go of what is told.
    pub(crate) async fn tell_left(&self) -> Result<(), AdminError> {
        // Not held while others wait: a reload waits for those who hold an old state.
        let mut left = self.governed().untold.clone();
        left.retain(|untold| self.beside.is_ours(&untold.process));
        if left.is_empty() {
            return Ok(());
        }
        left.sort_by_key(|untold| untold.time);
        for untold in &left {
            self.tell(untold).await;
        }
        left.retain(|untold| self.told().contains(&untold.id));
        let forget = |untold: &Untold| Write { key: untold.key(), expected_version: 1, value: None };
        let forget: Vec<Write> = left.iter().map(forget).collect();
        if forget.is_empty() {
            return Ok(());
        }
        match self.commit_by_itself(Itself::EventsTold, forget).await {
            // On a conflict another process was faster with some of them: looked at again in a second.
            Ok(()) | Err(AdminError::Store(StoreError::Conflict)) => self.reload().await,
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::decode;

    #[test]
    fn golden_event() {
        let golden = br#"{"v":1,"id":"00","process":"a","time":7,"change":"approve","outcome":"allowed","operator":"ann","reason":"why","proposal":"p","proposer":"ben","operators":null,"threshold":null}"#;
        let untold: Untold = decode(golden).unwrap();
        assert_eq!((untold.change, untold.operator.as_deref()), (Change::Approve, Some("ann")));
        assert_eq!(encode(&untold).unwrap(), golden);
        assert!(
            decode::<Untold>(&String::from_utf8_lossy(golden).replace("approve", "unheard-of").into_bytes()).is_err()
        );
    }
}

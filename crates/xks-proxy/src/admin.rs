//! What operators ask: proposals and verdicts; kill switches are in `plug`. Every one of them is an event.

use holdfast_core::{AuditEvent, AuditOutcome, Principal, StoreError, Write};
use holdfast_crypto::secret::erase;

use crate::{
    XksProxy,
    commit::{Itself, Leave, Look},
    error::AdminError,
    quorum::{self, Act, BlindedSecret, Proposal, Status, Tally, operators_key, proposal_key, secret_key},
    state::{OperatorsRecord, encode, put},
    untold::{Change, Untold},
};

/// More open proposals are a mistake, or an attack.
const OPEN_PROPOSALS_MAX: usize = 64;
/// Expired proposals are kept as long as there are fewer; the audit log has them all.
const PROPOSALS_KEPT: usize = 256;
/// Times that a change is tried when others change the same.
pub(crate) const ATTEMPTS: usize = 8;

impl XksProxy {
    /// The first operators, if there are none yet. True if they were put in.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn found(&self, operators: &OperatorsRecord) -> Result<bool, AdminError> {
        operators.check()?;
        let write = Write { key: operators_key(), expected_version: 0, value: Some(encode(operators)?) };
        let event = self.founding(operators);
        match self.commit_by_itself(Itself::Founding(&event), vec![write]).await {
            Ok(()) => {}
            Err(AdminError::Store(StoreError::Conflict)) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.reload().await?;
        self.tell(&event).await;
        Ok(true)
    }

    /// The event of a start: it tells the log which state was found.
    ///
    /// # Errors
    /// [`AdminError::Audit`].
    pub async fn tell_start(&self) -> Result<(), AdminError> {
        self.note("StateOpen", Some(Principal::system()), AuditOutcome::Allowed, None, Vec::new()).await
    }

    /// Hex id of the instance: every request names it.
    #[must_use]
    pub fn instance_id(&self) -> String {
        self.instance.to_string()
    }

    /// Takes a request in, with its proposer's approval. It is carried out at once if that is enough.
    ///
    /// # Errors
    /// [`AdminError`]; refusals are events, too.
    pub async fn propose(
        &self,
        text: String,
        signature: &[u8],
        secret: Option<BlindedSecret>,
    ) -> Result<Proposal, AdminError> {
        let proposal = Proposal::new(text, &self.instance_id(), self.ambient.now());
        let proposal = match proposal {
            Ok(proposal) => proposal,
            Err(error) => return self.refuse("QuorumPropose", None, error).await,
        };
        let result = self.try_propose(proposal.clone(), signature, secret).await;
        match result {
            Err(error) => self.refuse("QuorumPropose", Some(&proposal), error).await,
            Ok((proposal, event)) => self.settle(&event, proposal).await,
        }
    }

    async fn try_propose(
        &self,
        mut proposal: Proposal,
        signature: &[u8],
        secret: Option<BlindedSecret>,
    ) -> Result<(Proposal, Untold), AdminError> {
        self.room_for_events()?;
        let governed = self.governed();
        let now = self.ambient.now();
        let proposer = proposal.request().proposer.clone();
        // Who asks comes first: nobody else learns what would be accepted.
        let word = proposal.hear(&proposer, true, signature, &governed.operators, now)?;
        quorum::check(self, &governed, &proposal.request().change, secret.as_ref())?;
        let open = governed.proposals.iter().filter(|known| known.is_open(now)).count();
        if open >= OPEN_PROPOSALS_MAX {
            return Err(AdminError::Invalid("too many proposals are open".into()));
        }
        let id = proposal.id();
        let event = self.word(Change::Propose, &proposer, &proposal);
        let mut batch = vec![Write { key: proposal_key(&id), expected_version: 0, value: Some(proposal.encode()?) }];
        if let Some(secret) = &secret {
            let value = [secret.blind.as_slice(), secret.secret.expose()].concat();
            batch.push(put(&self.store, secret_key(&id), Some(value)).await?);
        }
        // What has expired makes room. What has not must stay, though it is decided: its signatures would be good for it once more.
        let expired: Vec<&Proposal> =
            governed.proposals.iter().filter(|known| known.request().expires <= now.unix_secs()).collect();
        for old in expired.iter().take(expired.len().saturating_sub(PROPOSALS_KEPT)) {
            batch.push(put(&self.store, proposal_key(&old.id()), None).await?);
        }
        for expired in governed.proposals.iter().filter(|known| known.status == Status::Open && !known.is_open(now)) {
            if self.read_secret(&expired.id()).await?.is_some() {
                batch.push(put(&self.store, secret_key(&expired.id()), None).await?);
            }
        }
        let committed = self.commit(Leave::Word(&word), batch.clone(), &event).await;
        for write in &mut batch {
            if let Some(value) = &mut write.value {
                erase(value);
            }
        }
        match committed {
            Ok(()) => Ok((proposal, event)),
            Err(AdminError::Store(StoreError::Conflict)) => {
                Err(AdminError::Invalid("the same request was made already".into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes an operator's word on a proposal. It is carried out at once if that is enough.
    ///
    /// # Errors
    /// [`AdminError`]; refusals are events, too.
    pub async fn decide(
        &self,
        id: &str,
        operator: &str,
        approve: bool,
        signature: &[u8],
    ) -> Result<Proposal, AdminError> {
        let change = if approve { Change::Approve } else { Change::Reject };
        let operation = change.operation();
        self.room_for_events()?;
        for _ in 0..ATTEMPTS {
            let Some(record) = self.store.read(&proposal_key(id)).await? else {
                let error = AdminError::Invalid(format!("there is no proposal {id:?}"));
                return self.refuse(operation, None, error).await;
            };
            let mut proposal = Proposal::decode(&record.value)?;
            let now = self.ambient.now();
            // Not held beyond this statement: a reload waits for those who hold an old state.
            let heard = proposal.hear(operator, approve, signature, &self.governed().operators, now);
            let word = match heard {
                Ok(word) => word,
                Err(error) => return self.refuse(operation, Some(&proposal), error).await,
            };
            let value = Some(proposal.encode()?);
            let write = Write { key: proposal_key(id), expected_version: record.version, value };
            let event = self.word(change, operator, &proposal);
            match self.commit(Leave::Word(&word), vec![write], &event).await {
                Ok(()) => return self.settle(&event, proposal).await,
                // Another operator was a moment faster.
                Err(AdminError::Store(StoreError::Conflict)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(AdminError::Store(StoreError::Conflict))
    }

    /// After a word was heard: tells it, and does what follows from it.
    async fn settle(&self, event: &Untold, proposal: Proposal) -> Result<Proposal, AdminError> {
        self.tell(event).await;
        let mut settled = Err(AdminError::Store(StoreError::Conflict));
        for _ in 0..ATTEMPTS {
            settled = self.count_and_carry_out(&proposal).await;
            // Another change was a moment faster; an approved one must not be left lying for that.
            if !matches!(settled, Err(AdminError::Store(StoreError::Conflict))) {
                break;
            }
        }
        // In force before it is told.
        self.reload().await?;
        let (done, event) = settled?;
        if let Some(event) = event {
            self.tell(&event).await;
        }
        Ok(done)
    }

    /// Does what the words heard so far amount to, and gives the event if it did anything: more words may be needed, or another process
    /// may have done it.
    async fn count_and_carry_out(&self, proposal: &Proposal) -> Result<(Proposal, Option<Untold>), AdminError> {
        if matches!(proposal.request().change, Act::Lift { .. }) {
            // What is lifted are the kills up to here, by their numbers: one that is pulled from now on stays in force.
            self.hear_kills(true).await?;
        }
        // Today's operators, whoever changed them.
        self.reload().await?;
        let governed = self.governed();
        let id = proposal.id();
        let Some(record) = self.store.read(&proposal_key(&id)).await? else { return Ok((proposal.clone(), None)) };
        let mut current = Proposal::decode(&record.value)?;
        if current.status != Status::Open {
            return Ok((current, None));
        }
        let refused = match current.tally(&governed.operators) {
            Tally::Open => return Ok((current, None)),
            Tally::Approved(approved) => {
                let (done, event) = self.execute(&governed, approved, current, record.version).await?;
                return Ok((done, Some(event)));
            }
            Tally::Refused(refused) => refused,
        };
        current.status = Status::Rejected;
        let event = self.result(Change::Rejected, &current);
        let write = Write { key: proposal_key(&id), expected_version: record.version, value: Some(current.encode()?) };
        let forget = put(&self.store, secret_key(&id), None).await?;
        self.commit(Leave::Refused(&refused), vec![write, forget], &event).await?;
        Ok((current, Some(event)))
    }

    async fn refuse<T>(
        &self,
        operation: &'static str,
        proposal: Option<&Proposal>,
        error: AdminError,
    ) -> Result<T, AdminError> {
        // Who it was is not known if a signature did not hold; who it claims to be stands in the reason.
        let context = proposal.map(context_of).unwrap_or_default();
        let outcome = match error {
            AdminError::Denied(_) => AuditOutcome::Denied,
            _ => AuditOutcome::Failed,
        };
        tracing::warn!(operation, %error, "an administrator's request was refused");
        self.note(operation, None, outcome, Some(error.to_string()), context).await?;
        Err(error)
    }

    /// An event that no request of a key service caused.
    pub(crate) fn event(
        &self,
        operation: &'static str,
        principal: Option<Principal>,
        outcome: AuditOutcome,
        reason: Option<String>,
        mut context: Vec<(&'static str, String)>,
    ) -> AuditEvent {
        context.push(("generation", self.governed().generation.to_string()));
        AuditEvent {
            principal,
            outcome,
            status: if outcome == AuditOutcome::Allowed { 200 } else { 400 },
            reason,
            context,
            ..AuditEvent::allowed(self.ambient.now(), operation, self.request_id())
        }
    }

    pub(crate) async fn note(
        &self,
        operation: &'static str,
        principal: Option<Principal>,
        outcome: AuditOutcome,
        reason: Option<String>,
        context: Vec<(&'static str, String)>,
    ) -> Result<(), AdminError> {
        Ok(self.audit.append(self.event(operation, principal, outcome, reason, context)).await?)
    }

    /// Looks at every key of the policy in every HSM that should have it, and says what is wrong. For the start and for people.
    pub async fn inspect_keys(&self) -> Vec<KeyReport> {
        let governed = self.governed();
        let mut reports = Vec::new();
        for key in governed.policy.keys() {
            for (number, object) in key.versions() {
                for name in &key.hsms {
                    let finding = match self.hsms.get(name) {
                        None => Err("there is no such HSM user here".to_owned()),
                        Some(hsm) => match hsm.describe(object, self.limits.body_timeout).await {
                            Err(error) => Err(error.to_string()),
                            Ok(described) => {
                                let refused = crate::candidate::check_hygiene(key, &described).err();
                                let findings = described.findings(key.purpose);
                                Ok((refused.map(|why| why.to_string()), findings))
                            }
                        },
                    };
                    let (problem, accepted) = match finding {
                        Err(why) => (Some(why), Vec::new()),
                        Ok((problem, findings)) => {
                            let accepted = findings.iter().filter(|finding| key.accept.contains(finding));
                            (problem, accepted.map(|finding| finding.as_str()).collect())
                        }
                    };
                    reports.push(KeyReport {
                        key: key.id.to_string(),
                        version: *number,
                        hsm: name.clone(),
                        object: object.to_string(),
                        problem,
                        accepted,
                    });
                }
            }
        }
        reports
    }
}

/// How one HSM holds one version of a key.
#[derive(Clone, Debug)]
pub struct KeyReport {
    /// The key's external id.
    pub key: String,
    /// Its version.
    pub version: u32,
    /// The HSM user.
    pub hsm: String,
    /// The object's name there.
    pub object: String,
    /// Why it is refused, if it is.
    pub problem: Option<String>,
    /// Faults that the policy accepts.
    pub accepted: Vec<&'static str>,
}

fn context_of(proposal: &Proposal) -> Vec<(&'static str, String)> {
    vec![("proposal", proposal.id()), ("proposer", proposal.request().proposer.clone())]
}

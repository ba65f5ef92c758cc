//! Using a key: the policy's word, the key's hygiene, then the HSMs that have it, one after the other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::{
    Decision, ExternalHsm, ExternalKey, ExternalOperation, ExternalOutcome, HsmState, Intent, Principal, Resource,
    TokenObject, authorize,
};

use crate::{
    XksProxy,
    authn::Proved,
    candidate::{Candidate, Fault},
    error::Refusal,
    policy::{Explanation, KeyStore, PolicyKey},
    state::Governed,
};

/// One request, judged so far, on its way to the HSM.
pub(crate) struct Use<'a> {
    pub proxy: &'a XksProxy,
    pub governed: &'a Governed,
    pub store: &'a KeyStore,
    pub key: &'a PolicyKey,
    pub principal: &'a Principal,
    pub caller: Proved<'a>,
    /// By when the HSMs must have answered.
    pub deadline: Instant,
    pub told: &'a mut Told,
}

/// What the audit log is told of a use.
#[derive(Clone, Default)]
pub(crate) struct Told {
    /// The rule that allowed it.
    pub rule: Option<String>,
    /// The HSM that served it.
    pub hsm: Option<String>,
    /// Version of the key.
    pub version: Option<u32>,
}

/// What the policy said of one request: made by asking it, and what a permit is made of.
struct Judged(Explanation);

impl holdfast_core::Policy for Judged {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        if self.0.allowed { Decision::Allow(self.0.reason.clone()) } else { Decision::Deny(self.0.reason.clone()) }
    }
}

impl Use<'_> {
    /// Whether the policy lets the caller do it, kill switches first.
    fn judge(&mut self) -> Result<Judged, Refusal> {
        if let Some(kill) = self.governed.kills.of_key(self.key.id.as_str()) {
            return Err(Refusal::Blocked(format!("{} was stopped by {}", kill.scope, kill.by)));
        }
        let explanation = self.store.decide(&self.key.id, self.caller.question());
        if !explanation.allowed {
            return Err(Refusal::Denied(explanation.reason));
        }
        self.told.rule = Some(explanation.reason.clone());
        Ok(Judged(explanation))
    }

    /// The HSM users that have the key, the well ones first.
    fn hsms(&self) -> Vec<(String, Arc<dyn ExternalHsm>)> {
        let mut hsms: Vec<_> = self
            .key
            .hsms
            .iter()
            .filter_map(|name| self.proxy.hsms.get_key_value(name))
            .map(|(name, hsm)| (name.clone(), Arc::clone(hsm)))
            .collect();
        if hsms.len() > 1 {
            hsms.sort_by_key(|(_, hsm)| hsm.health().state == HsmState::Unavailable);
        }
        hsms
    }

    /// Time for the next HSM: all that is left for the last, half of it for one that another can stand in for.
    fn budget(&self, others: usize) -> Result<Duration, Refusal> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refusal::TimedOut("the HSM"));
        }
        Ok(if others > 0 { left / 2 } else { left })
    }

    /// What the token says of the key, if its word is good enough.
    pub(crate) async fn describe(&mut self, object: &TokenObject) -> Result<Arc<ExternalKey>, Refusal> {
        self.judge()?;
        let hsms = self.hsms();
        let mut failure = None;
        for (at, (name, hsm)) in hsms.iter().enumerate() {
            let budget = self.budget(hsms.len() - at - 1)?;
            let candidate = Candidate::new(self.proxy, name, hsm, self.key, object);
            let result = candidate.sound(budget).await.map(|sound| Arc::clone(sound.described()));
            match result {
                Ok(described) => {
                    self.told.hsm = Some(name.clone());
                    return Ok(described);
                }
                Err(Fault::PassesOn(refusal)) => failure = Some(graver(failure, refusal)),
                Err(Fault::Ends(refusal)) => return Err(refusal),
            }
        }
        Err(failure.unwrap_or(Refusal::Unserved))
    }

    /// Uses the key. `operation` is made anew for each HSM that is tried.
    pub(crate) async fn perform(
        &mut self,
        object: &TokenObject,
        operation: impl Fn() -> ExternalOperation,
    ) -> Result<ExternalOutcome, Refusal> {
        let judged = self.judge()?;
        let mut failure = None;
        let hsms = self.hsms();
        for (at, (name, hsm)) in hsms.iter().enumerate() {
            let others = hsms.len() - at - 1;
            let candidate = Candidate::new(self.proxy, name, hsm, self.key, object);
            match self.perform_at(&candidate, &judged, operation(), others).await {
                Ok(outcome) => return Ok(outcome),
                Err(Fault::PassesOn(refusal)) => failure = Some(graver(failure, refusal)),
                Err(Fault::Ends(refusal)) => return Err(refusal),
            }
        }
        Err(failure.unwrap_or(Refusal::Unserved))
    }

    /// Uses the key in one HSM; `others` may stand in for it.
    async fn perform_at(
        &mut self,
        candidate: &Candidate<'_>,
        judged: &Judged,
        operation: ExternalOperation,
        others: usize,
    ) -> Result<ExternalOutcome, Fault> {
        let budget = self.budget(others).map_err(Fault::Ends)?;
        let fit = candidate.sound(budget).await?.fit(operation).map_err(Fault::Ends)?;
        let resource = Resource::ExternalKey(self.key.id.clone());
        let intent = Intent { action: fit.operation().action(), resource };
        let permit =
            authorize(judged, self.principal, intent).map_err(|denial| Fault::Ends(Refusal::Denied(denial.reason)))?;
        self.told.hsm = Some(candidate.name.to_owned());
        let budget = self.budget(others).map_err(Fault::Ends)?;
        fit.perform(permit, budget).await
    }
}

/// Of two HSMs' failures the one to tell: a key is not missing as long as one that may have it is away.
fn graver(before: Option<Refusal>, now: Refusal) -> Refusal {
    match (before, now) {
        (Some(before), Refusal::KeyNotFound) => before,
        (_, now) => now,
    }
}

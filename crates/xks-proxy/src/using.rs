//! Using a key: the policy's word, the key's hygiene, then the HSMs that have it, one after the other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::{
    Decision, ExternalHsm, ExternalKey, ExternalKeySpec, ExternalOperation, ExternalOutcome, HsmError, HsmState,
    Intent, KeyOperation, KeyOperations, Principal, Resource, TokenObject, authorize,
};

use crate::{
    XksProxy,
    error::Refusal,
    policy::{Explanation, KeyStore, PolicyKey, Question},
    state::Governed,
};

/// One request, judged so far, on its way to the HSM.
pub(crate) struct Use<'a> {
    pub proxy: &'a XksProxy,
    pub governed: &'a Governed,
    pub store: &'a KeyStore,
    pub key: &'a PolicyKey,
    pub principal: &'a Principal,
    pub question: Question<'a>,
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

/// The policy, asked about one request.
struct Asked<'a>(&'a Explanation);

impl holdfast_core::Policy for Asked<'_> {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        if self.0.allowed { Decision::Allow(self.0.reason.clone()) } else { Decision::Deny(self.0.reason.clone()) }
    }
}

impl Use<'_> {
    /// Whether the policy lets the caller do it, kill switches first.
    pub(crate) fn judge(&mut self) -> Result<Explanation, Refusal> {
        if let Some(kill) = self.governed.kills.of_key(self.key.id.as_str()) {
            return Err(Refusal::Blocked(format!("{} was stopped by {}", kill.scope, kill.by)));
        }
        let explanation = self.store.decide(&self.key.id, &self.question);
        if !explanation.allowed {
            return Err(Refusal::Denied(explanation.reason));
        }
        self.told.rule = Some(explanation.reason.clone());
        Ok(explanation)
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
            self.proxy.check_reach(name)?;
            match hsm.describe(object, budget).await {
                Ok(described) => {
                    check_hygiene(self.key, &described)?;
                    self.told.hsm = Some(name.clone());
                    return Ok(described);
                }
                Err(error) if passes_on(&error) => failure = Some(graver(failure, error.into())),
                Err(error) => return Err(error.into()),
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
        let explanation = self.judge()?;
        let mut failure = None;
        let hsms = self.hsms();
        for (at, (name, hsm)) in hsms.iter().enumerate() {
            let others = hsms.len() - at - 1;
            self.proxy.check_reach(name)?;
            let described = match hsm.describe(object, self.budget(others)?).await {
                Ok(described) => described,
                Err(error) if passes_on(&error) => {
                    failure = Some(graver(failure, error.into()));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            check_hygiene(self.key, &described)?;
            let operation = operation();
            check_fit(&described, &operation)?;
            let intent = Intent { action: operation.action(), resource: Resource::ExternalKey(self.key.id.clone()) };
            let permit = authorize(&Asked(&explanation), self.principal, intent)
                .map_err(|denial| Refusal::Denied(denial.reason))?;
            self.told.hsm = Some(name.clone());
            let budget = self.budget(others)?;
            match hsm.perform(permit, &self.key.id, object, operation, budget).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) if passes_on(&error) => failure = Some(graver(failure, error.into())),
                Err(error) => return Err(error.into()),
            }
        }
        Err(failure.unwrap_or(Refusal::Unserved))
    }
}

/// Of two HSMs' failures the one to tell: a key is not missing as long as one that may have it is away.
fn graver(before: Option<Refusal>, now: Refusal) -> Refusal {
    match (before, now) {
        (Some(before), Refusal::KeyNotFound) => before,
        (_, now) => now,
    }
}

/// Whether another HSM may do better. Nothing that the caller did is put right by one.
fn passes_on(error: &HsmError) -> bool {
    matches!(error, HsmError::Busy | HsmError::NotFound | HsmError::TimedOut | HsmError::Unavailable(_))
}

/// A key that the HSM holds badly is refused unless the policy accepts that of this key by name.
pub(crate) fn check_hygiene(key: &PolicyKey, described: &ExternalKey) -> Result<(), Refusal> {
    // RSA keys unwrap by decrypting: that is their purpose in Azure's dialect.
    let purpose = match described.spec {
        ExternalKeySpec::Rsa(_) => {
            key.purpose.iter().chain([KeyOperation::Decrypt, KeyOperation::Encrypt]).collect::<KeyOperations>()
        }
        ExternalKeySpec::Aes(_) | ExternalKeySpec::Other(_) => key.purpose,
    };
    let findings = described.findings(purpose);
    let refused: Vec<&str> =
        findings.iter().filter(|finding| !key.accept.contains(finding)).map(|finding| finding.as_str()).collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(Refusal::Blocked(format!(
        "the HSM holds the key badly ({}), and the policy does not accept that of it",
        refused.join(", ")
    )))
}

/// Kind of key, and what the token lets it be used for.
fn check_fit(described: &ExternalKey, operation: &ExternalOperation) -> Result<(), Refusal> {
    let fits = match (operation, &described.spec) {
        (ExternalOperation::GcmDecrypt { .. } | ExternalOperation::GcmEncrypt { .. }, ExternalKeySpec::Aes(256)) => {
            true
        }
        (ExternalOperation::Wrap { wrap, .. } | ExternalOperation::Unwrap { wrap, .. }, spec) => matches!(
            (wrap, spec),
            (holdfast_core::ExternalWrap::Aes(_), ExternalKeySpec::Aes(256))
                | (holdfast_core::ExternalWrap::Rsa(_), ExternalKeySpec::Rsa(_))
        ),
        _ => false,
    };
    if !fits {
        return Err(Refusal::KeyUsage);
    }
    let allowed = match (&described.spec, operation) {
        // The public half is everybody's.
        (ExternalKeySpec::Rsa(_), ExternalOperation::Wrap { .. }) => true,
        (ExternalKeySpec::Rsa(_), ExternalOperation::Unwrap { .. }) => described.usage.contains(KeyOperation::Decrypt),
        _ => operation.needs().iter().all(|needed| described.usage.contains(needed)),
    };
    if allowed { Ok(()) } else { Err(Refusal::KeyUsage) }
}

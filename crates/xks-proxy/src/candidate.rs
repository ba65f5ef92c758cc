//! One HSM on its way to use a key. Each step is made by the one before: reach of the HSM's user, what the token says of the key, hygiene,
//! fitness for the operation, then the use with its permit. There is no other way to the HSM.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    ExternalHsm, ExternalKey, ExternalKeySpec, ExternalOperation, ExternalOutcome, ExternalWrap, HsmError,
    KeyOperation, KeyOperations, Permit, TokenObject,
};

use crate::{XksProxy, error::Refusal, policy::PolicyKey};

/// An HSM that may have a key.
pub(crate) struct Candidate<'a> {
    proxy: &'a XksProxy,
    pub name: &'a str,
    hsm: &'a Arc<dyn ExternalHsm>,
    key: &'a PolicyKey,
    object: &'a TokenObject,
}

/// A key that an HSM holds well enough for its policy, there and then.
pub(crate) struct Sound<'c> {
    candidate: &'c Candidate<'c>,
    described: Arc<ExternalKey>,
}

/// An operation that fits such a key.
pub(crate) struct Fit<'c> {
    candidate: &'c Candidate<'c>,
    operation: ExternalOperation,
}

/// Why a candidate did not do it.
pub(crate) enum Fault {
    /// Another HSM may do better.
    PassesOn(Refusal),
    /// No other would do otherwise.
    Ends(Refusal),
}

impl From<HsmError> for Fault {
    /// Nothing that the caller did is put right by another HSM.
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::Busy | HsmError::NotFound | HsmError::TimedOut | HsmError::Unavailable(_) => {
                Self::PassesOn(error.into())
            }
            HsmError::Damaged
            | HsmError::Disabled
            | HsmError::Expired
            | HsmError::Failed(_)
            | HsmError::InvalidInput(_)
            | HsmError::NotYetValid
            | HsmError::OperationNotAllowed
            | HsmError::Permit(_)
            | HsmError::Rejected => Self::Ends(error.into()),
        }
    }
}

impl<'a> Candidate<'a> {
    pub(crate) fn new(
        proxy: &'a XksProxy,
        name: &'a str,
        hsm: &'a Arc<dyn ExternalHsm>,
        key: &'a PolicyKey,
        object: &'a TokenObject,
    ) -> Self {
        Self { proxy, name, hsm, key, object }
    }

    /// What the token says of the key, if the HSM's user reaches no further than it may and the key is held well.
    pub(crate) async fn sound(&self, budget: Duration) -> Result<Sound<'_>, Fault> {
        self.proxy.check_reach(self.name).map_err(Fault::Ends)?;
        let described = self.hsm.describe(self.object, budget).await?;
        check_hygiene(self.key, &described).map_err(Fault::Ends)?;
        Ok(Sound { candidate: self, described })
    }
}

impl<'c> Sound<'c> {
    pub(crate) fn described(&self) -> &Arc<ExternalKey> {
        &self.described
    }

    /// Kind of key, and what the token lets it be used for.
    pub(crate) fn fit(self, operation: ExternalOperation) -> Result<Fit<'c>, Refusal> {
        check_fit(&self.described, &operation)?;
        Ok(Fit { candidate: self.candidate, operation })
    }
}

impl Fit<'_> {
    pub(crate) fn operation(&self) -> &ExternalOperation {
        &self.operation
    }

    /// Uses the key.
    pub(crate) async fn perform(self, permit: Permit, budget: Duration) -> Result<ExternalOutcome, Fault> {
        let Candidate { hsm, key, object, .. } = self.candidate;
        Ok(hsm.perform(permit, &key.id, object, self.operation, budget).await?)
    }
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
            (ExternalWrap::Aes(_), ExternalKeySpec::Aes(256)) | (ExternalWrap::Rsa(_), ExternalKeySpec::Rsa(_))
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

//! Who stands behind a request, proved as far as its store demands: a value that only the proof makes, and that every use demands.

use super::{ProofClaims, verify_proof};
use crate::{
    XksProxy,
    call::Call,
    error::Refusal,
    policy::{CallerProof, Dialect, Question},
    xks::RequestMetadata,
};

/// What the policy is asked about a caller who was proved as his store demands.
#[derive(Clone, Copy)]
pub(crate) struct Proved<'q>(Question<'q>);

impl<'q> Proved<'q> {
    /// The caller behind a key service of AWS, by the statement that the service forwards. Says for the log how it went.
    pub(crate) fn behind(call: &mut Call<'_>, metadata: &'q RequestMetadata) -> Result<Self, Refusal> {
        let question = Question {
            principal: metadata.aws_principal_arn.as_deref().unwrap_or_default(),
            operation: metadata.kms_operation.as_deref().unwrap_or_default(),
            kms_key: metadata.kms_key_arn.as_deref(),
            via_service: metadata.kms_via_service.as_deref(),
            source_vpc: metadata.aws_source_vpc.as_deref(),
            source_vpce: metadata.aws_source_vpce.as_deref(),
        };
        let Dialect::AwsXks { caller_proof, .. } = call.store.dialect else {
            return Err(Refusal::Internal("a request of another dialect".into()));
        };
        let outcome = match (caller_proof, &metadata.holdfast_caller_proof) {
            (CallerProof::Off, _) => return Ok(Self(question)),
            (CallerProof::Checked, None) => "none",
            (CallerProof::Required, None) => {
                call.tell("callerProof", "missing");
                return Err(Refusal::Denied("the store requires proof of the caller, and there is none".into()));
            }
            (CallerProof::Checked | CallerProof::Required, Some(statement)) => {
                let claims = ProofClaims {
                    principal_arn: question.principal,
                    operation: question.operation,
                    kms_key_arn: question.kms_key,
                };
                let XksProxy { replays, ambient, .. } = call.proxy;
                if let Err(rejection) = verify_proof(statement, &claims, &call.governed.callers, replays, ambient.now())
                {
                    call.tell("callerProof", "refused");
                    return Err(Refusal::Denied(rejection.to_string()));
                }
                "verified"
            }
        };
        call.tell("callerProof", outcome);
        Ok(Self(question))
    }

    /// A pool of Azure's, which is the caller itself and was recognized by its certificate. `subject`: its name, as
    /// [`Call::principal_name`] tells it.
    pub(crate) fn pool(call: &Call<'_>, subject: &'q str, operation: &'q str) -> Result<Self, Refusal> {
        if !matches!(call.store.dialect, Dialect::AzureEkm { .. }) || subject != call.principal.object_id() {
            return Err(Refusal::Internal("a request of another dialect or caller".into()));
        }
        Ok(Self(Question { principal: subject, operation, ..Question::default() }))
    }

    pub(crate) fn question(&self) -> &Question<'q> {
        &self.0
    }
}

//! Attested callers: what they ask for is answered under the key in their evidence, and never in clear.

use holdfast_core::EvidenceError;
use holdfast_crypto::{SecretBytes, der};
use holdfast_wire::hex::hex;
use serde::Deserialize;

use crate::{
    call::Call,
    error::ApiError,
    facts::Attested,
    wire::{self, BlobMember, SecretOut, Violations},
};

/// Longest attestation document.
const DOCUMENT_BYTES_MAX: usize = 262_144;

/// `Recipient` of a request.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Recipient {
    attestation_document: Option<BlobMember>,
    key_encryption_algorithm: Option<String>,
}

/// A secret on its way out: in clear, or to the attested caller alone.
#[derive(Default)]
pub(super) struct Released {
    pub plaintext: Option<SecretOut>,
    pub ciphertext_for_recipient: Option<String>,
}

impl Recipient {
    /// Verifies the evidence. A service that trusts no root refuses every request that has some.
    fn attested(&self, call: &Call<'_>) -> Result<Attested, ApiError> {
        let document = self.attestation_document.as_ref().map(BlobMember::bytes);
        let mut violations = Violations::default();
        let algorithm = self.key_encryption_algorithm.as_deref();
        violations.text(algorithm, "recipient.keyEncryptionAlgorithm", 0, 64);
        violations.one_of(algorithm, "recipient.keyEncryptionAlgorithm", &["RSAES_OAEP_SHA_256"]);
        let document = violations.blob(document, "recipient.attestationDocument", 1, DOCUMENT_BYTES_MAX).to_vec();
        violations.finish()?;
        let verifier = call.kms.evidence.as_ref().ok_or_else(|| {
            ApiError::unsupported(
                "Recipient: this service trusts no root of attestation (see attestation in its configuration)",
            )
        })?;
        let claims = verifier.verify(&document, call.now).map_err(|error| match error {
            EvidenceError::Malformed(_) | EvidenceError::Stale | EvidenceError::Untrusted(_) => {
                ApiError::validation(format!("The attestation document is not taken: {error}"))
            }
        })?;
        let Some(public_key) = claims.public_key.clone() else {
            return Err(ApiError::validation("The attestation document has no public key to answer under"));
        };
        Ok(Attested { claims, public_key })
    }
}

/// What the evidence of a request proves, if it has some.
pub(super) fn attested(call: &mut Call<'_>, recipient: Option<&Recipient>) -> Result<Option<Attested>, ApiError> {
    let attested = recipient.map(|recipient| recipient.attested(call)).transpose()?;
    if let Some(Attested { claims, .. }) = &attested {
        call.told.context.push(("recipient", format!("{} {}", claims.kind, claims.module)));
        let measurements = claims.measurements.iter().map(|(number, value)| format!("{number}:{}", hex(value)));
        call.told.context.push(("recipient-measurements", measurements.collect::<Vec<_>>().join(" ")));
    }
    Ok(attested)
}

/// Lets a secret out.
pub(super) fn release(
    call: &Call<'_>,
    attested: Option<&Attested>,
    secret: &SecretBytes,
) -> Result<Released, ApiError> {
    let Some(attested) = attested else {
        return Ok(Released { plaintext: Some(SecretOut::new(secret)), ..Released::default() });
    };
    let mut random = SecretBytes::zeroed(der::ENVELOPE_RANDOM_BYTES);
    call.kms.ambient.fill(random.expose_mut());
    let enveloped = der::enveloped_data(&attested.public_key, &random, secret).map_err(|_| {
        ApiError::validation("The public key in the attestation document is no RSA key of at least 2048 bits")
    })?;
    Ok(Released { ciphertext_for_recipient: Some(wire::encode(&enveloped)), ..Released::default() })
}

//! The layers of a ciphertext: one under the key's own material, and for a reference key another by its custom key store.

use std::{sync::Arc, time::Instant};

use holdfast_core::{CiphertextParts, EncryptionScheme, Operation, Outcome, Permit};
use holdfast_crypto::{SecretBytes, kdf};
use holdfast_wire::hex::hex;
use http::header;

use crate::{
    blob::{self, Blob, Layers},
    call::Call,
    context::EncryptionContext,
    error::ApiError,
    keys::{KeyEntry, Material, Reference},
    operation::Operation as ApiOperation,
    stores::{About, Link},
    usable::{Usable, perform, still_usable},
    wire,
};

/// A message sealed.
pub(super) struct Sealed {
    pub blob: Vec<u8>,
    pub material_id: String,
}

fn gcm(context_binding: Vec<u8>) -> (EncryptionScheme, CiphertextParts) {
    (EncryptionScheme::AesGcmPerMessage, CiphertextParts { aad: Some(context_binding), ..CiphertextParts::default() })
}

fn external(key: &KeyEntry) -> Option<(&str, &str)> {
    key.reference.as_ref().map(|reference| (reference.store.as_str(), reference.key.as_str()))
}

/// The original caller's request, for a proxy that asks to see it (`docs/formats/caller-proof.md`). The body goes with it unless it
/// holds a plaintext.
pub(super) fn proof(call: &Call<'_>) -> serde_json::Value {
    let text = |name: &str| {
        let values = call.parts.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap_or_default().trim()).collect();
        values.join(",")
    };
    let authorization = text(header::AUTHORIZATION.as_str());
    let signed = authorization.split_once("SignedHeaders=").map_or("", |(_, rest)| rest);
    let signed = signed.split(',').next().unwrap_or_default().trim();
    let headers: Vec<_> = signed.split(';').map(|name| (name, text(name))).collect();
    let mut proof = serde_json::json!({
        "version": 1,
        "method": call.parts.method.as_str(),
        "path": call.parts.uri.path(),
        "headers": headers,
        "authorization": authorization,
        "payloadSha256": hex(&kdf::sha256(&[call.body])),
    });
    if call.operation != ApiOperation::Encrypt {
        proof["body"] = wire::encode(call.body).into();
    }
    proof
}

/// The other side of a reference key, asked once.
struct OtherSide {
    link: Arc<dyn Link>,
    proof: Option<serde_json::Value>,
    reference: Reference,
}

impl OtherSide {
    fn of(call: &Call<'_>, reference: &Reference) -> Result<Self, ApiError> {
        let link = call.kms.stores.admit(&reference.store)?;
        let proof = link.wants_proof().then(|| proof(call));
        Ok(Self { link, proof, reference: reference.clone() })
    }

    fn about<'b>(&'b self, call: &'b Call<'_>, key: &'b KeyEntry) -> About<'b> {
        About {
            principal_arn: &call.identity.arn,
            key_arn: Some(&key.arn),
            operation: call.operation.name(),
            request_id: call.request_id,
            via_service: call.told.via_service.as_deref(),
            proof: self.proof.as_ref(),
        }
    }

    fn tell(&self, call: &mut Call<'_>, started: Instant, fault: Option<&crate::LinkFault>) {
        call.kms.stores.note(&self.reference.store, call.operation.name(), started, fault);
        call.told.context.push(("external-key-store", self.reference.store.clone()));
        call.told.context.push(("external-key", self.reference.key.clone()));
    }
}

/// Seals `plaintext` under `key`.
pub(super) async fn seal(
    call: &mut Call<'_>,
    permit: Permit,
    key: &Usable,
    plaintext: SecretBytes,
    context: &EncryptionContext,
) -> Result<Sealed, ApiError> {
    let material = key.current_material()?;
    let other = key.reference.as_ref().map(|reference| OtherSide::of(call, reference)).transpose()?;
    let layers = if other.is_some() { Layers::Reference } else { Layers::Hosted };
    let mut blob = blob::header(layers, key.id, material.id);
    let (scheme, parts) = gcm(blob::binding(&blob, external(key), context));
    call.told.material = Some(material.id.to_string());
    let operation = Operation::Encrypt { scheme, plaintext, parts };
    let outcome = perform(call.kms, permit, key, material, operation).await?;
    let Outcome::Ciphertext(inner, _) = outcome else { return Err(ApiError::internal("the HSM did something else")) };
    match other {
        None => blob.extend_from_slice(&inner),
        Some(other) => {
            let started = Instant::now();
            let aad = context.canonical();
            let result = other.link.encrypt(&other.reference.key, &inner, &aad, other.about(call, key)).await;
            other.tell(call, started, result.as_ref().err());
            blob.extend_from_slice(&result.map_err(|fault| fault.for_crypto(&other.reference.store))?);
            // Whoever asked gets a plaintext with it, or goes on with the key: neither if the key was taken out of use while the other side took its time.
            still_usable(call.kms, key, material)?;
        }
    }
    Ok(Sealed { blob, material_id: material.wire_id() })
}

/// Opens a blob of `key`.
pub(super) async fn open(
    call: &mut Call<'_>,
    permit: Permit,
    key: &Usable,
    blob: &Blob<'_>,
    context: &EncryptionContext,
) -> Result<(SecretBytes, String), ApiError> {
    // A header that says otherwise was changed, and would fail the check of its binding; this says so sooner.
    let expected = if key.reference.is_some() { Layers::Reference } else { Layers::Hosted };
    let material = key.material(blob.material).filter(|_| blob.layers == expected);
    let material: &Material = material.ok_or_else(ApiError::invalid_ciphertext)?;
    call.told.material = Some(material.id.to_string());
    let header = blob::header(blob.layers, blob.key, blob.material);
    let (scheme, parts) = gcm(blob::binding(&header, external(key), context));
    let ciphertext = match &key.reference {
        None => blob.content.to_vec(),
        Some(reference) => {
            let other = OtherSide::of(call, reference)?;
            let started = Instant::now();
            let aad = context.canonical();
            let result = other.link.decrypt(&reference.key, blob.content, &aad, other.about(call, key)).await;
            other.tell(call, started, result.as_ref().err());
            result.map_err(|fault| fault.for_crypto(&reference.store))?
        }
    };
    let operation = Operation::Decrypt { scheme, ciphertext, parts };
    let outcome = perform(call.kms, permit, key, material, operation).await?;
    let Outcome::Plaintext(plaintext) = outcome else { return Err(ApiError::internal("the HSM did something else")) };
    Ok((plaintext, material.wire_id()))
}

//! Encrypt, decrypt, wrap, unwrap, sign, verify, random bytes.

use holdfast_core::{CiphertextParts, EncryptionScheme, KeyName, KeyVersionId, Operation, Outcome, Permit};
use holdfast_crypto::KeySpec;

use super::{Call, Reply, bundle::key_id};
use crate::{
    code::Code,
    error::ApiError,
    keys::Located,
    route::{CryptoOperation, printable},
    usable::{self, Usable},
    wire::{self, CryptoReply, CryptoRequest, RandomRequest, Value, VerifyReply},
};

/// Random bytes of one call; the real service's bounds.
const RANDOM_BYTES: std::ops::RangeInclusive<u32> = 1..=128;

pub(super) async fn perform(
    call: &mut Call<'_>,
    permit: Permit,
    operation: CryptoOperation,
    name: &KeyName,
    version: Option<KeyVersionId>,
) -> Result<Reply, ApiError> {
    let request: CryptoRequest = wire::parse(call.body)?;
    call.facts.algorithm = Some(printable(&request.alg));
    let located = call.hsm.keys.locate(name, version)?;
    call.facts.version = Some(located.version().id);
    let operation = to_operation(operation, &request, located.version().attributes.spec)?;
    let usable = Usable::check(call.hsm, &located, operation)?;
    let used = usable.used();
    let outcome = usable::perform(call.hsm, permit, usable).await;
    if outcome.as_ref().is_err_and(|error| error.code == Code::BadParameter) {
        // Under this key it is not valid: only those may know who may use it.
        call.facts.rests_on = Some(used.clone());
    }
    let outcome = outcome?;
    Ok(reply(call, &located, request.alg.clone(), outcome)?.resting_on(used))
}

fn to_operation(operation: CryptoOperation, request: &CryptoRequest, spec: KeySpec) -> Result<Operation, ApiError> {
    let alg = request.alg.as_str();
    let value = || request.value.decode("value");
    Ok(match operation {
        CryptoOperation::Encrypt => Operation::Encrypt {
            scheme: wire::encryption_scheme(alg, spec)?,
            plaintext: value()?,
            parts: parts(request)?,
        },
        CryptoOperation::Decrypt => {
            let (scheme, parts) = (wire::encryption_scheme(alg, spec)?, parts(request)?);
            // The engine knows longer IVs, this dialect does not.
            if scheme == EncryptionScheme::AesGcm && parts.iv.as_ref().is_some_and(|iv| iv.len() != 12) {
                return Err(ApiError::bad_parameter("The iv of AES-GCM has 12 bytes"));
            }
            Operation::Decrypt { scheme, ciphertext: value()?.expose().to_vec(), parts }
        }
        CryptoOperation::Wrap => Operation::Wrap { scheme: wire::wrap_scheme(alg, spec)?, key: value()? },
        CryptoOperation::Unwrap => {
            Operation::Unwrap { scheme: wire::wrap_scheme(alg, spec)?, wrapped: value()?.expose().to_vec() }
        }
        CryptoOperation::Sign => {
            Operation::Sign { scheme: wire::signature_scheme(alg, spec)?, digest: value()?.expose().to_vec() }
        }
        CryptoOperation::Verify => {
            let digest = request.digest.as_deref();
            let digest = digest.ok_or_else(|| ApiError::bad_parameter("Property digest is missing"))?;
            Operation::Verify {
                scheme: wire::signature_scheme(alg, spec)?,
                digest: wire::decode("digest", digest)?,
                signature: value()?.expose().to_vec(),
            }
        }
    })
}

fn parts(request: &CryptoRequest) -> Result<CiphertextParts, ApiError> {
    let part = |name, text: &Option<String>| text.as_deref().map(|text| wire::decode(name, text)).transpose();
    Ok(CiphertextParts {
        iv: part("iv", &request.iv)?,
        tag: part("tag", &request.tag)?,
        aad: part("aad", &request.aad)?,
    })
}

fn reply(call: &Call<'_>, located: &Located, alg: String, outcome: Outcome) -> Result<Reply, ApiError> {
    let kid = key_id(call.base_url, &located.entry, located.version());
    let plain = |alg, value: &[u8]| CryptoReply {
        kid: kid.clone(),
        alg,
        value: wire::encode(value),
        iv: None,
        tag: None,
        aad: None,
    };
    match outcome {
        Outcome::Ciphertext(ciphertext, parts) => {
            let part = |bytes: Option<Vec<u8>>| bytes.map(|bytes| wire::encode(&bytes));
            Reply::ok(&CryptoReply {
                iv: part(parts.iv),
                tag: part(parts.tag),
                aad: part(parts.aad),
                ..plain(Some(alg), &ciphertext)
            })
        }
        Outcome::Encapsulated(..) => Err(ApiError::internal("this dialect has no encapsulation")),
        Outcome::Plaintext(plaintext) => Reply::ok(&plain(Some(alg), plaintext.expose())),
        Outcome::Signature(signature) => Reply::ok(&plain(None, &signature)),
        Outcome::Verified(value) => Reply::ok(&VerifyReply { value }),
        Outcome::Wrapped(wrapped) => Reply::ok(&plain(Some(alg), &wrapped)),
    }
}

pub(super) async fn random(call: &Call<'_>, permit: Permit) -> Result<Reply, ApiError> {
    let request: RandomRequest = wire::parse(call.body)?;
    if !RANDOM_BYTES.contains(&request.count) {
        return Err(ApiError::bad_parameter("Property count must be 1 to 128"));
    }
    let bytes = call.hsm.hsm.random(permit, request.count as usize).await?;
    Reply::ok(&Value { value: wire::encode(bytes.expose()) })
}

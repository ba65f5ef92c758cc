//! Attestation documents of Nitro enclaves and of whatever speaks their form: COSE_Sign1 (RFC 9052) by ES384 over a CBOR map, under a
//! certificate whose chain ends at a root that the operator trusts.

use std::{collections::BTreeMap, time::Duration};

use ciborium::Value;
use holdfast_core::{EvidenceClaims, EvidenceError, EvidenceVerifier, Timestamp};
use holdfast_crypto::{Curve, EcPublicKey, HashAlgorithm};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, aws_lc_rs::ECDSA_P384_SHA384};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest document (the API's limit for it).
const DOCUMENT_BYTES_MAX: usize = 262_144;
/// Deepest nesting read.
const DEPTH_MAX: usize = 16;
/// Certificates of one document.
const CHAIN_MAX: usize = 16;
/// A document is good for so long from its time, and so long before.
const SKEW_MILLIS_MAX: i64 = 5 * 60 * 1000;
/// ES384 (RFC 9053, section 2.1).
const ES384: i128 = -35;
/// What a document of an enclave proves.
const ENCLAVE: &str = "nitro";
/// CBOR tag of COSE_Sign1.
const SIGN1_TAG: u64 = 18;

/// Verifies documents under given roots.
pub struct NitroVerifier {
    /// Certificates, DER.
    roots: Vec<Vec<u8>>,
}

const fn malformed(what: &'static str) -> EvidenceError {
    EvidenceError::Malformed(what)
}

/// The members of a document's payload.
struct Payload {
    fields: Vec<(Value, Value)>,
}

impl Payload {
    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
    }

    fn bytes(&self, name: &'static str) -> Result<&[u8], EvidenceError> {
        self.get(name).and_then(Value::as_bytes).map(Vec::as_slice).ok_or(malformed(name))
    }
}

fn read(bytes: &[u8]) -> Result<Value, EvidenceError> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX);
    let value = value.map_err(|_| malformed("it is not CBOR"))?;
    if rest.is_empty() { Ok(value) } else { Err(malformed("something follows it")) }
}

fn into_map(value: Value) -> Result<Vec<(Value, Value)>, EvidenceError> {
    let fields = value.into_map().map_err(|_| malformed("a map is missing"))?;
    // Readers differ in which of two they take; so none is taken.
    let twice = fields.iter().enumerate().any(|(at, (key, _))| fields[at + 1..].iter().any(|(other, _)| other == key));
    if twice { Err(malformed("a member is there twice")) } else { Ok(fields) }
}

/// A byte string in CBOR (RFC 8949, section 3).
fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        len @ 0..=23 => out.push(0x40 | len as u8),
        len @ 24..=0xff => out.extend_from_slice(&[0x58, len as u8]),
        len @ 0x100..=0xffff => {
            out.push(0x59);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x5a);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

/// Sig_structure of COSE_Sign1 (RFC 9052, section 4.4), without external data.
fn signed_bytes(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x84, 0x6a];
    out.extend_from_slice(b"Signature1");
    push_bytes(&mut out, protected);
    push_bytes(&mut out, &[]);
    push_bytes(&mut out, payload);
    out
}

impl NitroVerifier {
    /// Trusts these root certificates (DER).
    ///
    /// # Errors
    /// [`EvidenceError::Malformed`] if one is none.
    pub fn new(roots: Vec<Vec<u8>>) -> Result<Self, EvidenceError> {
        for root in &roots {
            anchor_from_trusted_cert(&root.as_slice().into()).map_err(|_| malformed("a root is no certificate"))?;
        }
        Ok(Self { roots })
    }

    /// The key of the leaf, if its chain ends at a root.
    fn trusted_key(&self, payload: &Payload, now: Timestamp) -> Result<EcPublicKey, EvidenceError> {
        let leaf = payload.bytes("certificate")?;
        let bundle = payload.get("cabundle").and_then(Value::as_array).ok_or(malformed("cabundle"))?;
        if bundle.len() > CHAIN_MAX {
            return Err(malformed("cabundle"));
        }
        let chain: Option<Vec<_>> = bundle.iter().map(|value| Some(value.as_bytes()?.as_slice().into())).collect();
        let chain = chain.ok_or(malformed("cabundle"))?;
        let roots: Vec<_> = self.roots.iter().map(|root| root.as_slice().into()).collect();
        let anchors: Result<Vec<_>, _> = roots.iter().map(anchor_from_trusted_cert).collect();
        let anchors = anchors.map_err(|_| malformed("a root is no certificate"))?;
        let certificate = leaf.into();
        let certificate = EndEntityCert::try_from(&certificate).map_err(|_| malformed("certificate"))?;
        let time = Duration::from_millis(now.unix_millis().try_into().unwrap_or_default());
        certificate
            .verify_for_usage(
                &[ECDSA_P384_SHA384],
                &anchors,
                &chain,
                rustls_pki_types::UnixTime::since_unix_epoch(time),
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|error| EvidenceError::Untrusted(format!("its certificate: {error}")))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| malformed("certificate"))?;
        let point = parsed.public_key().subject_public_key.data.to_vec();
        if point.len() != 97 {
            return Err(EvidenceError::Untrusted("its key is not on P-384".into()));
        }
        Ok(EcPublicKey { curve: Curve::P384, point })
    }
}

/// What a payload claims, whoever signed it: for fuzzing.
#[cfg(fuzzing)]
pub fn claims_of(payload: &[u8]) -> Result<EvidenceClaims, EvidenceError> {
    claims(&Payload { fields: into_map(read(payload)?)? })
}

impl EvidenceVerifier for NitroVerifier {
    fn verify(&self, evidence: &[u8], now: Timestamp) -> Result<EvidenceClaims, EvidenceError> {
        if evidence.len() > DOCUMENT_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let document = match read(evidence)? {
            Value::Tag(SIGN1_TAG, inner) => *inner,
            other => other,
        };
        let parts = document.into_array().map_err(|_| malformed("it is no COSE_Sign1"))?;
        let [Value::Bytes(protected), Value::Map(_), Value::Bytes(payload), Value::Bytes(signature)] = parts.as_slice()
        else {
            return Err(malformed("it is no COSE_Sign1"));
        };
        let header = into_map(read(protected)?)?;
        let algorithm = header.iter().find(|(key, _)| key.as_integer() == Some(1.into()));
        if algorithm.and_then(|(_, value)| value.as_integer()).map(i128::from) != Some(ES384) {
            return Err(EvidenceError::Untrusted("it is not signed by ES384".into()));
        }
        let fields = Payload { fields: into_map(read(payload)?)? };
        let key = self.trusted_key(&fields, now)?;
        let digest = HashAlgorithm::Sha384.digest(&signed_bytes(protected, payload));
        let holds = key.verify(&digest, signature).map_err(|error| EvidenceError::Untrusted(error.to_string()))?;
        if !holds {
            return Err(EvidenceError::Untrusted("its signature does not hold".into()));
        }
        let time = fields.get("timestamp").and_then(Value::as_integer).and_then(|time| i64::try_from(time).ok());
        let time = time.ok_or(malformed("timestamp"))?;
        if time.abs_diff(now.unix_millis()) > SKEW_MILLIS_MAX as u64 {
            return Err(EvidenceError::Stale);
        }
        claims(&fields)
    }
}

fn claims(fields: &Payload) -> Result<EvidenceClaims, EvidenceError> {
    if fields.get("digest").and_then(Value::as_text) != Some("SHA384") {
        return Err(malformed("digest"));
    }
    let (kind, registers) = match (fields.get("pcrs"), fields.get("nitrotpm_pcrs")) {
        (Some(registers), None) => (ENCLAVE, registers),
        (None, Some(registers)) => ("nitrotpm", registers),
        _ => return Err(malformed("pcrs")),
    };
    let mut measurements = BTreeMap::new();
    for (number, value) in into_map(registers.clone())? {
        let number = number.as_integer().and_then(|number| u32::try_from(number).ok()).ok_or(malformed("pcrs"))?;
        let value =
            value.into_bytes().ok().filter(|value| matches!(value.len(), 32 | 48 | 64)).ok_or(malformed("pcrs"))?;
        // An enclave in debug mode, whose memory is open to its host, has zeros. In a TPM they are a register that nobody extended.
        if kind != ENCLAVE || value.iter().any(|byte| *byte != 0) {
            measurements.insert(number, value);
        }
    }
    let public_key = match fields.get("public_key") {
        None | Some(Value::Null) => None,
        Some(Value::Bytes(key)) => Some(key.clone()),
        Some(_) => return Err(malformed("public_key")),
    };
    let module = fields.get("module_id").and_then(Value::as_text).ok_or(malformed("module_id"))?;
    Ok(EvidenceClaims { kind, module: module.chars().take(128).collect(), measurements, public_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_of_every_length() {
        for (len, head) in [
            (0, vec![0x40]),
            (23, vec![0x57]),
            (24, vec![0x58, 24]),
            (256, vec![0x59, 1, 0]),
            (65_536, vec![0x5a, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            push_bytes(&mut out, &vec![7; len]);
            assert_eq!(out[..head.len()], head);
            assert_eq!(read(&out).unwrap().into_bytes().unwrap().len(), len);
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let verifier = NitroVerifier::new(Vec::new()).unwrap();
        let now = Timestamp::from_unix_secs(1_800_000_000);
        for bytes in [&b""[..], &[0x80], &[0x84, 0x40, 0xa0, 0x40, 0x40], &[0xff], &[0x9f; 100], &[0xd2; 1000]] {
            assert!(matches!(verifier.verify(bytes, now), Err(EvidenceError::Malformed(_))), "{bytes:x?}");
        }
        // Signed by another algorithm: {1: -7}.
        let other = [0x84, 0x43, 0xa1, 0x01, 0x26, 0xa0, 0x41, 0xa0, 0x40];
        assert!(matches!(verifier.verify(&other, now), Err(EvidenceError::Untrusted(_))));
        assert!(NitroVerifier::new(vec![vec![1, 2, 3]]).is_err());
    }
}

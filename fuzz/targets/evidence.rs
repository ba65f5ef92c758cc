#![no_main]
//! Attestation documents: the envelope, the chain, and what a payload claims.

use holdfast_core::{EvidenceVerifier, Timestamp};
use holdfast_enclave::{NitroVerifier, nitro_claims};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let verifier = NitroVerifier::new(Vec::new()).expect("a verifier");
    assert!(verifier.verify(data, Timestamp::from_unix_secs(1_800_000_000)).is_err());
    if let Ok(claims) = nitro_claims(data) {
        assert!(claims.module.len() <= 512);
    }
});

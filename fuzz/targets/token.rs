#![no_main]
//! A bearer token and an issuer's key set.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (token, key_set) = data.split_at(at);
    let Ok(token) = std::str::from_utf8(token) else { return };
    holdfast_managed_hsm::fuzzing::token(token, key_set.get(1..).unwrap_or_default());
});

#![no_main]
//! Policies and encryption contexts.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    holdfast_kms::fuzzing::context(data);
    if let Ok(text) = std::str::from_utf8(data) {
        holdfast_kms::fuzzing::policy(text);
    }
});

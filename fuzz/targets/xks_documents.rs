#![no_main]
//! Policies, and requests of a quorum.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    holdfast_xks_proxy::fuzzing::documents(text);
});

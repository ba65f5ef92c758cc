#![no_main]
//! Path and body of a request to an external key store proxy, in both dialects.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (path, body) = data.split_at(at);
    let Ok(path) = std::str::from_utf8(path) else { return };
    holdfast_xks_proxy::fuzzing::request(path, body.strip_prefix(b"\n").unwrap_or(body));
});

#![no_main]
//! Method, path and query of a request.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((method, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    holdfast_managed_hsm::fuzzing::request_line(*method, path, query);
});

#![no_main]
//! A request's body, read as every operation would; what can be imported can be loaded.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| holdfast_managed_hsm::fuzzing::body(data));

#![no_main]
//! Ciphertext blobs of the key management service.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    holdfast_kms::fuzzing::blob(data);
});

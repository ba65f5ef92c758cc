#![no_main]
//! The headers of a signed request.

use http::{HeaderValue, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut fields = data.split(|byte| *byte == b'\n');
    let mut value = || HeaderValue::from_bytes(fields.next().unwrap_or_default()).unwrap_or(HeaderValue::from_static(""));
    let request = Request::post("/kms/xks/v1/health")
        .header("authorization", value())
        .header("x-amz-date", value())
        .header("host", value())
        .body(());
    let Ok(request) = request else { return };
    holdfast_xks_proxy::fuzzing::signature(&request.into_parts().0, data);
});

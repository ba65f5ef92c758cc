#![no_main]
//! The pull of an audit log: what somebody asks, what somebody answers, and the lines in it.

use holdfast_store::audit::{ChainChecker, LogKey};
use holdfast_wire::audit_pull::{PullRefusal, PullRequest, is_log_name, nonce, read_answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<PullRequest>(data) {
        let place = request.after.as_ref().and_then(|place| place.read());
        let _ = (place, nonce(&request.nonce), request.log.as_deref().map(is_log_name));
    }
    if let Ok(PullRefusal { head: Some(head), .. }) = serde_json::from_slice(data) {
        let _ = head.read().map(|(head, _)| head.text());
    }
    let Ok((answer, from)) = read_answer(data) else { return };
    let lines = &data[from..];
    assert_eq!(lines.len(), answer.bytes);
    let signed = answer.head.read();
    let mut checker = ChainChecker::begin();
    for line in lines.split(|byte| *byte == b'\n') {
        if let (Some(key), Some((head, signature))) = (LogKey::in_line(line), &signed) {
            let _ = key.signed(head, signature);
            let _ = ChainChecker::resume(head.head, head.revision, &key).line(line);
        }
        if checker.line(line).is_err() {
            break;
        }
    }
});

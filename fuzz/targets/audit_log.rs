#![no_main]
//! The verifier over a segment that somebody else wrote.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut checker = holdfast_store::audit::ChainChecker::begin();
    for line in data.split(|byte| *byte == b'\n') {
        let _ = holdfast_store::audit::parse_line(line);
        let _ = holdfast_store::audit::LogKey::in_line(line);
        let _ = checker.line(line);
    }
    let directory = std::env::temp_dir().join(format!("holdfast-fuzz-audit-{}", std::process::id()));
    if std::fs::create_dir_all(&directory).is_ok()
        && std::fs::write(directory.join("audit-000000000001.jsonl"), data).is_ok()
    {
        let _ = holdfast_store::audit::verify(&directory, None, None);
    }
});

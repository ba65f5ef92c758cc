//! The newest generation of the shared state that an audit log tells of.

use std::{fs::OpenOptions, io, os::unix::fs::FileExt, path::Path};

use holdfast_store::{
    audit::{LineMac, list_segments},
    open_regular,
};
use serde::Deserialize;

/// Segments looked through, from the newest: each run tells its generation at the start, so that the first few have it.
const SEGMENTS_MAX: usize = 16;
/// First look at a segment's end; more if it tells nothing...
const TAIL_BYTES: u64 = 1024 * 1024;
/// ...up to this: a segment is not longer, unless somebody configured it so.
const TAIL_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    context: Context,
}

#[derive(Default, Deserialize)]
struct Context {
    generation: Option<String>,
}

/// The generation that the log in `directory` tells last; 0 if none. What has no MAC of this instance says nothing: anybody can write it.
pub(super) fn generation(directory: &Path, mac: &LineMac) -> io::Result<u64> {
    let segments = match list_segments(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    for (_, path) in segments.iter().rev().take(SEGMENTS_MAX) {
        let file = open_regular(OpenOptions::new().read(true), path)?;
        let whole = file.metadata()?.len();
        let mut tail = TAIL_BYTES;
        loop {
            let from = whole.saturating_sub(tail);
            let mut bytes = vec![0; (whole - from) as usize];
            file.read_exact_at(&mut bytes, from)?;
            if let Some(found) = last_generation(&bytes, mac) {
                return Ok(found);
            }
            if from == 0 || tail >= TAIL_BYTES_MAX {
                break;
            }
            tail *= 8;
        }
    }
    Ok(0)
}

/// The last line of ours that has one; a line that is cut at either end does not parse, and is passed over.
fn last_generation(bytes: &[u8], mac: &LineMac) -> Option<u64> {
    bytes.rsplit(|byte| *byte == b'\n').find_map(|text| {
        let line: Line = serde_json::from_slice(text).ok()?;
        let generation = line.context.generation?.parse().ok()?;
        mac.holds_in_some_format(text).then_some(generation)
    })
}

#[cfg(test)]
mod tests {
    use holdfast_crypto::SecretBytes;

    use super::*;

    /// A line as the log writes it.
    fn line(key: &[u8], text: &str) -> String {
        let keys = LineMac::derive(&SecretBytes::copy_of(key)).unwrap();
        format!(r#"{text},"mac":"{}"}}"#, keys.of(text.as_bytes())) + "\n"
    }

    #[test]
    fn the_last_line_that_tells_one_counts() {
        let directory = tempfile::tempdir().unwrap();
        let mac = LineMac::derive(&SecretBytes::copy_of(&[1; 48])).unwrap();
        let generation = |directory: &Path| generation(directory, &mac).unwrap();
        assert_eq!(generation(&directory.path().join("none")), 0);
        let write = |number: u32, text: &str| {
            std::fs::write(directory.path().join(format!("audit-{number:012}.jsonl")), text).unwrap();
        };
        let ours = |text: &str| line(&[1; 48], text);
        write(1, &ours(r#"{"seq":1,"context":{"generation":"5"}"#));
        write(2, &(ours(r#"{"seq":2"#) + &ours(r#"{"seq":3,"context":{"store":"s"}"#)));
        assert_eq!(generation(directory.path()), 5);
        let long = ours(r#"{"seq":9,"context":{}"#).repeat(100_000);
        let told = ours(r#"{"context":{"generation":"6"}"#) + &ours(r#"{"context":{"generation":"7"}"#) + &long;
        write(3, &(told.clone() + r#"{"context":{"generation":"8"#));
        assert_eq!(generation(directory.path()), 7);
        // What somebody without the key writes behind it: without a MAC, with one of another instance, with one of another line.
        let planted = r#"{"context":{"generation":"18446744073709551615"}"#;
        let moved = ours(r#"{"context":{"generation":"9"}"#).replace("\"9\"", "\"18446744073709551615\"");
        for line in [format!("{planted}}}\n"), line(&[2; 48], planted), moved] {
            write(3, &(told.clone() + &line));
            assert_eq!(generation(directory.path()), 7, "{line}");
        }
        write(3, &(told + &ours(r#"{"context":{"generation":"18446744073709551615"}"#)));
        assert_eq!(generation(directory.path()), u64::MAX, "control: ours counts");
    }
}

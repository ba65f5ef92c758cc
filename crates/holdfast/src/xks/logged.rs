//! The newest generation of the shared state that an audit log tells of.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use holdfast_store::audit::list_segments;
use serde::Deserialize;

/// Segments looked through, from the newest: each run tells its generation at the start, so that the first few have it.
const SEGMENTS_MAX: usize = 16;
/// First look at a segment's end; more if it tells nothing.
const TAIL_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    context: Context,
}

#[derive(Default, Deserialize)]
struct Context {
    generation: Option<String>,
}

/// The generation that the log in `directory` tells last; 0 if none.
pub(super) fn generation(directory: &Path) -> io::Result<u64> {
    let segments = match list_segments(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    for (_, path) in segments.iter().rev().take(SEGMENTS_MAX) {
        let file = File::open(path)?;
        let whole = file.metadata()?.len();
        let mut tail = TAIL_BYTES;
        loop {
            let from = whole.saturating_sub(tail);
            let mut bytes = vec![0; (whole - from) as usize];
            file.read_exact_at(&mut bytes, from)?;
            if let Some(found) = last_generation(&bytes) {
                return Ok(found);
            }
            if from == 0 {
                break;
            }
            tail *= 8;
        }
    }
    Ok(0)
}

/// The last whole line that has one; a line that is cut at either end does not parse, and is passed over.
fn last_generation(bytes: &[u8]) -> Option<u64> {
    bytes.rsplit(|byte| *byte == b'\n').find_map(|line| {
        let line: Line = serde_json::from_slice(line).ok()?;
        line.context.generation?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_tells_one_counts() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(generation(&directory.path().join("none")).unwrap(), 0);
        let write = |number: u32, text: &str| {
            std::fs::write(directory.path().join(format!("audit-{number:012}.jsonl")), text).unwrap();
        };
        write(1, "{\"seq\":1,\"context\":{\"generation\":\"5\"}}\n");
        write(2, "{\"seq\":2}\n{\"seq\":3,\"context\":{\"store\":\"s\"}}\n");
        assert_eq!(generation(directory.path()).unwrap(), 5);
        let long = "{\"seq\":9,\"context\":{}}\n".repeat(100_000);
        write(
            3,
            &format!(
                "{{\"context\":{{\"generation\":\"6\"}}}}\n{{\"context\":{{\"generation\":\"7\"}}}}\n{long}{{\"context\":{{\"generation\":\"8"
            ),
        );
        assert_eq!(generation(directory.path()).unwrap(), 7);
    }
}

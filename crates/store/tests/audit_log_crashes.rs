//! What a crash leaves of an audit log: what was not synced is cut, and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

mod common;
mod logs;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{Fixed, keys};
use holdfast_core::{AuditSink, PartitionId, Revision};
use holdfast_store::audit::{AuditLog, AuditLogConfig, AuditOpenError, Checkpoint, list_segments, verify};
use logs::{config, copy_of, event, open};

/// Bytes of a page, in these tests: smaller than a line, or about as large, or much larger.
const PAGES: [usize; 4] = [64, 512, 4096, 700];

/// A log whose last lines were appended together, behind lines that were durable before: the file, its bytes, and where they begin.
fn group_at_the_end(directory: &Path) -> (PathBuf, Vec<u8>, usize) {
    let outbox: Arc<holdfast_store::Outbox> = Arc::default();
    let config = AuditLogConfig {
        segment_bytes_max: 1 << 20,
        checkpoint_interval: Duration::from_secs(3600),
        ..config(directory)
    };
    let log = AuditLog::open(config, PartitionId::from_bytes([7; 16]), keys(), Arc::new(Fixed), outbox).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(log.append(event(0))).unwrap();
    // They share a group sooner or later: the last line that says so begins none.
    let path = list_segments(directory).unwrap().pop().unwrap().1;
    for _ in 0..1000 {
        let before = fs::read(&path).unwrap().len();
        runtime.block_on(async {
            let appends: Vec<_> = (1..40).map(|number| log.append(event(number))).collect();
            for done in futures_join(appends).await {
                done.unwrap();
            }
        });
        let bytes = fs::read(&path).unwrap();
        let added = String::from_utf8(bytes[before..].to_vec()).unwrap();
        let (mut at, mut last_group) = (before, None);
        for line in added.lines() {
            if !line.contains(r#""unsynced""#) {
                last_group = Some(at);
            }
            at += line.len() + 1;
        }
        if let Some(at) = last_group
            && bytes.len() - at > 3 * 4096
        {
            // As a crash leaves it.
            std::mem::forget(log);
            return (path, bytes, at);
        }
    }
    panic!("no group is large enough");
}

async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Opens what a crash left, and gives back how many bytes of the old end are there still.
fn opened_after_crash(bytes: &[u8], name: &std::ffi::OsStr) -> Result<usize, AuditOpenError> {
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join(name);
    fs::write(&path, bytes).unwrap();
    open(config(copy.path()))?.close();
    assert_eq!(verify(copy.path(), None, None).unwrap().finding, None);
    Ok(fs::read(&path).unwrap().len())
}

#[test]
fn whatever_a_crash_leaves_of_lines_that_were_not_synced_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (path, bytes, synced) = group_at_the_end(directory.path());
    let name = path.file_name().unwrap();
    let mut tried = 0;
    let mut check = |content: &[u8], what: &str| {
        let kept = opened_after_crash(content, name).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            kept >= synced && (kept == content.len() || bytes[..kept] == content[..kept]),
            "{what}: {kept} of {synced}"
        );
        tried += 1;
    };
    for length in (synced..=bytes.len()).step_by(97) {
        check(&bytes[..length], &format!("a prefix of {length}"));
    }
    for page in PAGES {
        let pages: Vec<usize> = (synced / page..=bytes.len() / page).collect();
        // Zeros, or what was in the file before, in the place of one page, and of two.
        for stale in [false, true] {
            for (position, first) in pages.iter().enumerate().step_by(pages.len().div_ceil(12)) {
                for second in [None, pages.get(position + 1), pages.last()] {
                    let mut content = bytes.clone();
                    for lost in [Some(first), second].into_iter().flatten() {
                        let (from, until) = ((lost * page).max(synced), ((lost + 1) * page).min(bytes.len()));
                        if from < until && stale {
                            let old = bytes[..synced].iter().copied().cycle().take(until - from);
                            content.splice(from..until, old.collect::<Vec<_>>());
                        } else if from < until {
                            content[from..until].fill(0);
                        }
                    }
                    check(&content, &format!("pages of {page}: {first} and {second:?}, stale: {stale}"));
                }
            }
        }
    }
    // More room than lines.
    check(&[bytes.as_slice(), &[0; 9000]].concat(), "zeros behind the end");
    println!("{tried} ends");
}

#[test]
fn what_was_synced_is_never_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (path, bytes, synced) = group_at_the_end(directory.path());
    let name = path.file_name().unwrap();
    // Behind it stand lines that say that it was durable.
    for at in (0..synced).step_by(53) {
        for lost in [1, 64, 4096] {
            let mut content = bytes.clone();
            content[at..(at + lost).min(synced)].fill(0);
            let refused = opened_after_crash(&content, name);
            assert!(
                matches!(refused, Err(AuditOpenError::Damaged { .. } | AuditOpenError::Forged { .. })),
                "{lost} bytes at {at}: {:?}",
                refused.err()
            );
        }
    }
    // Nor what a mark says was durable, though nothing stands behind it; and the file is left as it is.
    let seq = bytes[..].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() as u64;
    let whole = bytes.strip_suffix(b"\n").unwrap();
    let last = whole.rsplit(|byte| *byte == b'\n').next().unwrap();
    let head = holdfast_crypto::kdf::sha256(&[&[0], last]);
    let copy = tempfile::tempdir().unwrap();
    let content = &bytes[..bytes.len() - 5];
    fs::write(copy.path().join(name), content).unwrap();
    open(config(copy_of(copy.path()).path())).expect("control: without the mark it is cut").close();
    let expected = Some(Checkpoint { seq, head, revision: Revision(0) });
    let refused = open(AuditLogConfig { expected, expected_has_macs: true, ..config(copy.path()) });
    assert!(matches!(refused, Err(AuditOpenError::Damaged { .. })), "{:?}", refused.err());
    assert_eq!(fs::read(copy.path().join(name)).unwrap(), content);
}

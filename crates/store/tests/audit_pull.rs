//! A log that is given away: from any line on, only what is durable, of whichever format, while it is written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;
mod logs;

use std::{fs, io::Write, path::Path};

use common::event;
use holdfast_core::{AuditAsk, AuditLine, AuditPlace, AuditPulled, AuditSink, AuditSource, AuditVerdict, Revision};
use holdfast_store::audit::{AuditLog, AuditLogConfig, ChainChecker, LogKey, line_hash, list_segments, read_lines};

const BYTES_MAX: usize = 128 * 1024;

fn open(directory: &Path, accept_loss: bool) -> AuditLog {
    let config = AuditLogConfig { segment_bytes_max: 3000, accept_loss, ..logs::config(directory) };
    logs::open(config).unwrap()
}

async fn pull(log: &AuditLog, after: AuditPlace, nonce: u8) -> AuditPulled {
    let ask = AuditAsk { log: "log".into(), nonce: [nonce; 32], after, bytes_max: BYTES_MAX, revision: Revision(9) };
    log.pull(ask).await.unwrap()
}

/// Pulls to the end. Gives the bytes of each segment, and where the copy ends.
async fn pull_all(log: &AuditLog) -> (Vec<Vec<u8>>, AuditPlace) {
    let (mut segments, mut end, mut checker): (Vec<Vec<u8>>, _, _) =
        (Vec::new(), AuditPlace::default(), ChainChecker::begin());
    loop {
        let pulled = pull(log, end, 1).await;
        assert_eq!(pulled.head.verdict, AuditVerdict::Continues);
        if pulled.lines.is_empty() {
            assert_eq!(pulled.head.head, end.line);
            return (segments, end);
        }
        if pulled.offset == 0 {
            checker.begin_segment();
            segments.push(Vec::new());
        }
        assert_eq!((pulled.segment as usize, pulled.offset as usize), (segments.len(), segments.last().unwrap().len()));
        for line in pulled.lines.split_inclusive(|byte| *byte == b'\n') {
            checker.line(line.strip_suffix(b"\n").unwrap()).unwrap();
        }
        segments.last_mut().unwrap().extend_from_slice(&pulled.lines);
        let offset = segments.last().unwrap().len() as u64;
        end = AuditPlace { line: checker.at(), segment: pulled.segment, offset };
    }
}

fn on_disk(directory: &Path) -> Vec<Vec<u8>> {
    list_segments(directory).unwrap().iter().map(|(_, path)| fs::read(path).unwrap()).collect()
}

#[tokio::test]
async fn what_is_given_is_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), false);
    for number in 0..60 {
        log.append(event("KeyWrap", &number.to_string())).await.unwrap();
    }
    let (segments, _) = pull_all(&log).await;
    assert!(segments.len() > 3, "it comes over rotations");
    log.close();
    let (whole, end) = pull_all(&log).await;
    assert_eq!(whole, on_disk(directory.path()), "a closed log is given, too");
    let head = pull(&log, end, 2).await;
    let mut key = None;
    read_lines(&list_segments(directory.path()).unwrap()[0].1, |line, _, _| {
        key = LogKey::in_line(line);
        false
    })
    .unwrap();
    let key = key.unwrap();
    assert!(key.signed(&head.head, &head.signature));
    assert_eq!((head.head.nonce, head.head.revision, head.head.after), ([2; 32], Revision(9), end.line));
    let mut changed = head.head.clone();
    changed.head.seq += 1;
    assert!(!key.signed(&changed, &head.signature));
}

#[tokio::test]
async fn what_is_not_durable_is_not_given() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), false);
    log.append(event("KeyWrap", "1")).await.unwrap();
    let (_, end) = pull_all(&log).await;
    // Somebody else's line, and half a line: the writer knows of neither.
    let last = list_segments(directory.path()).unwrap().pop().unwrap().1;
    let mut file = fs::OpenOptions::new().append(true).open(last).unwrap();
    file.write_all(b"{\"seq\":99,\"type\":\"event\",\"time\":\"x\",\"prev\":\"\"}\n{\"seq\":100").unwrap();
    let pulled = pull(&log, end, 1).await;
    // A checkpoint may have come meanwhile, in the place where the writer's lines go.
    assert!(pulled.head.head.seq < 99 && !pulled.lines.ends_with(b"100"));
    let planted = AuditPlace { line: AuditLine { seq: 99, hash: [0; 32] }, ..end };
    assert_eq!(pull(&log, planted, 1).await.head.verdict, AuditVerdict::Shorter);
}

#[tokio::test]
async fn a_line_is_found_wherever_the_copy_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), false);
    for number in 0..40 {
        log.append(event("KeyWrap", &number.to_string())).await.unwrap();
    }
    log.close();
    let mut places = Vec::new();
    for (number, path) in list_segments(directory.path()).unwrap() {
        read_lines(&path, |line, offset, _| {
            let seq = places.len() as u64 + 1;
            places.push(AuditPlace { line: AuditLine { seq, hash: line_hash(line) }, segment: number, offset });
            true
        })
        .unwrap();
    }
    let last = places.len() - 1;
    for (position, place) in places.iter().enumerate() {
        for odd in [*place, AuditPlace { offset: 1, ..*place }, AuditPlace { segment: 77, offset: u64::MAX, ..*place }]
        {
            let pulled = pull(&log, odd, 1).await;
            assert_eq!(pulled.head.verdict, AuditVerdict::Continues);
            let next = format!("{{\"seq\":{},", position + 2);
            assert!(position == last || pulled.lines.starts_with(next.as_bytes()), "{position}");
        }
        let other = AuditPlace { line: AuditLine { hash: [5; 32], ..place.line }, ..*place };
        let pulled = pull(&log, other, 1).await;
        assert_eq!((pulled.head.verdict, pulled.lines.len()), (AuditVerdict::Differs, 0));
    }
}

/// A log that was begun before lines had MACs is given as it is, and gone on with.
#[tokio::test]
async fn a_log_of_the_first_format() {
    let directory = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit-1/audit-000000000001.jsonl");
    fs::copy(golden, directory.path().join("audit-000000000001.jsonl")).unwrap();
    let log = open(directory.path(), false);
    let pulled = pull(&log, AuditPlace::default(), 1).await;
    assert_eq!((pulled.segment, pulled.offset), (1, 0));
    assert_eq!(pulled.lines, on_disk(directory.path())[0]);
    let mut checker = ChainChecker::begin();
    let proves = pulled.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let proves: Vec<bool> = proves.map(|line| checker.line(line).unwrap()).collect();
    assert!(proves.contains(&true), "its checkpoints prove it");
    log.close();
}

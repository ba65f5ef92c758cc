//! The audit log: a golden log, every kind of tampering found by the verifier, failing closed, surviving torn tails.

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
};

use common::{Fixed, keys, keys_of};
use holdfast_core::{AuditSink, PartitionId, Revision};
use holdfast_store::audit::{
    AuditLog, AuditLogConfig, AuditOpenError, Checkpoint, end_of_earlier_format, list_segments, verify,
};
use logs::{config, copy_of, event, open};
use proptest::prelude::*;

/// A log of several segments, closed in order.
fn write_log(directory: &Path, events: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let log = open(config(directory)).unwrap();
    for number in 0..events {
        runtime.block_on(log.append(event(number))).unwrap();
    }
    log.close();
    assert!(runtime.block_on(log.append(event(0))).is_err(), "a closed log takes no event");
}

fn lines(directory: &Path) -> Vec<(PathBuf, Vec<Vec<u8>>)> {
    let segments = list_segments(directory).unwrap();
    let split = |path: &PathBuf| fs::read(path).unwrap().split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    segments.iter().map(|(_, path)| (path.clone(), split(path))).collect()
}

#[test]
fn a_log_of_many_segments_verifies_and_goes_on_after_restart() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 30);
    let report = verify(directory.path(), None, None).unwrap();
    assert_eq!((report.finding, report.events), (None, 30));
    assert!(report.checkpoints > 0 && report.unsigned_lines == 0 && lines(directory.path()).len() > 2);
    let fingerprint = report.key_fingerprint;
    assert_eq!(verify(directory.path(), None, Some(&fingerprint)).unwrap().finding, None);
    assert!(verify(directory.path(), None, Some("00")).unwrap().finding.unwrap().what.contains("another key"));
}

#[test]
fn a_segment_that_was_begun_in_vain_does_not_stop_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let log = open(config(directory.path())).unwrap();
    let (number, path) = list_segments(directory.path()).unwrap().pop().unwrap();
    // What a rotation leaves that could not sync the directory.
    fs::write(path.with_file_name(format!("audit-{:012}.jsonl", number + 1)), b"").unwrap();
    for number in 0..30 {
        runtime.block_on(log.append(event(number))).unwrap();
    }
    log.close();
    assert!(lines(directory.path()).len() > 2);
    assert_eq!(verify(directory.path(), None, None).unwrap().finding, None);
}

#[test]
fn the_golden_log_verifies() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit-1");
    let report = verify(&golden, None, None).unwrap();
    assert_eq!((report.finding, report.events, report.unsigned_lines), (None, 3, 0));
}

#[test]
fn removed_swapped_repeated_and_changed_lines_are_named() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 12);
    let (path, good) = lines(directory.path()).swap_remove(1);
    let first_seq: u64 = serde_json::from_slice::<serde_json::Value>(&good[0]).unwrap()["seq"].as_u64().unwrap();
    let finding = |changed: Vec<Vec<u8>>| {
        let copy = copy_of(directory.path());
        fs::write(copy.path().join(path.file_name().unwrap()), changed.concat()).unwrap();
        verify(copy.path(), None, None).unwrap().finding.expect("the change is found")
    };
    let mut removed = good.clone();
    removed.remove(1);
    assert_eq!(finding(removed).seq, first_seq + 1, "the missing line is named");
    let mut swapped = good.clone();
    swapped.swap(1, 2);
    assert_eq!(finding(swapped).seq, first_seq + 1);
    let mut repeated = good.clone();
    repeated.insert(1, good[1].clone());
    assert_eq!(finding(repeated).seq, first_seq + 2);
    let mut changed = good.clone();
    changed[1] = String::from_utf8(changed[1].clone()).unwrap().replace("kek", "KEK").into_bytes();
    assert!(finding(changed).seq > first_seq);
}

#[test]
fn a_missing_segment_and_a_cut_end_are_found() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 30);
    let all = lines(directory.path());
    let (_, last) = all.last().unwrap();
    let last_line = last.last().unwrap().strip_suffix(b"\n").unwrap().to_vec();
    let without = |index: usize| {
        let copy = copy_of(directory.path());
        fs::remove_file(copy.path().join(all[index].0.file_name().unwrap())).unwrap();
        copy
    };
    for index in 0..all.len() - 1 {
        assert!(verify(without(index).path(), None, None).unwrap().finding.is_some(), "segment {index}");
    }
    let cut = without(all.len() - 1);
    assert_eq!(verify(cut.path(), None, None).unwrap().finding, None, "the files alone cannot tell");
    let known = verify(cut.path(), Some(&last_line), None).unwrap();
    assert!(known.finding.unwrap().what.contains("cut or rewritten"), "a line kept elsewhere can");
    let report = verify(directory.path(), None, None).unwrap();
    let expected = Some(Checkpoint { seq: report.lines, head: hex32(&report.head), revision: Revision(0) });
    let reopened = open(AuditLogConfig { expected, ..config(cut.path()) });
    assert!(matches!(reopened, Err(AuditOpenError::Truncated { .. })), "nor does the service start on it");
    let accepted = open(AuditLogConfig { expected, accept_loss: true, ..config(cut.path()) }).unwrap();
    accepted.close();
    let text = lines(cut.path()).into_iter().flat_map(|(_, lines)| lines).collect::<Vec<_>>().concat();
    assert!(String::from_utf8(text).unwrap().contains("the loss was accepted"));
}

fn hex32(hex: &str) -> [u8; 32] {
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    out
}

#[test]
fn a_torn_last_line_is_cut_and_told() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 3);
    let (path, _) = lines(directory.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let report = verify(directory.path(), None, None).unwrap();
    assert!(report.finding.is_none() && report.torn_bytes > 0, "{report:?}");
    let known = whole.split(|byte| *byte == b'\n').rev().nth(1).unwrap();
    assert!(verify(directory.path(), Some(known), None).unwrap().finding.unwrap().what.contains("not in the log"));
    open(config(directory.path())).unwrap().close();
    let report = verify(directory.path(), None, None).unwrap();
    assert_eq!(report.finding, None);
    let text = fs::read_to_string(&lines(directory.path()).pop().unwrap().0).unwrap();
    assert!(text.contains("was cut"), "{text}");
}

#[test]
fn damage_before_the_end_keeps_the_log_shut() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 3);
    let (path, mut lines) = lines(directory.path()).pop().unwrap();
    lines[0][10] ^= 1;
    fs::write(&path, lines.concat()).unwrap();
    let opened = open(config(directory.path()));
    assert!(
        matches!(opened, Err(AuditOpenError::Forged { .. } | AuditOpenError::Damaged { .. })),
        "{:?}",
        opened.err()
    );
}

/// A line that continues the chain, as somebody without the key writes it.
fn forged(last: &[u8]) -> Vec<u8> {
    let told: serde_json::Value = serde_json::from_slice(last).unwrap();
    let seq = told["seq"].as_u64().unwrap() + 1;
    let prev = holdfast_crypto::kdf::sha256(&[&[0], last]);
    let prev: String = prev.iter().map(|byte| format!("{byte:02x}")).collect();
    let mac = "0".repeat(32);
    format!(r#"{{"seq":{seq},"type":"event","time":"","prev":"{prev}","mac":"{mac}"}}"#).into_bytes()
}

#[test]
fn lines_of_somebody_without_the_key_keep_the_log_shut() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 3);
    let (path, found) = lines(directory.path()).pop().unwrap();
    let last = found.last().unwrap().strip_suffix(b"\n").unwrap();
    let mut whole = found.concat();
    whole.extend_from_slice(&forged(last));
    whole.push(b'\n');
    fs::write(&path, &whole).unwrap();
    assert_eq!(verify(directory.path(), None, None).unwrap().finding, None, "control: the chain alone holds");
    let opened = open(config(directory.path()));
    assert!(matches!(opened, Err(AuditOpenError::Forged { .. })), "{:?}", opened.err());
    open(AuditLogConfig { accept_loss: true, ..config(directory.path()) }).unwrap().close();
    assert_eq!(fs::read(&path).unwrap(), found.concat(), "what was ours stays");
    assert_eq!(fs::read(path.with_extension("jsonl.aside")).unwrap(), whole, "all of it is kept aside");
    assert_eq!(verify(directory.path(), None, None).unwrap().finding, None);
    // That start ended before it told of it: so does the next one, and the one after that, until one has.
    for tells in [false, true] {
        let log = open(config(directory.path())).unwrap();
        let accepted = log.accepted().concat();
        assert!(
            accepted.contains("1 files were set aside by a start that ended before it told so: audit-"),
            "{accepted}"
        );
        if tells {
            log.accepted_is_told().unwrap();
        }
        log.close();
    }
    assert!(path.with_extension("jsonl.forged").exists() && !path.with_extension("jsonl.aside").exists());
    let log = open(config(directory.path())).unwrap();
    assert!(log.accepted().is_empty(), "{:?}", log.accepted());
    log.close();
}

/// A file that is longer than any log, and takes no room: whoever reads it through has a long time to wait.
#[test]
fn a_segment_made_as_long_as_a_disk_is_not_read_through() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 3);
    let (path, found) = lines(directory.path()).pop().unwrap();
    let length = |bytes: u64| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    let good = found.concat().len() as u64;
    length(good + (1 << 20));
    open(config(copy_of(directory.path()).path())).expect("control: a torn end is cut").close();
    length(good + (4 << 40));
    let opened = open(config(directory.path()));
    assert!(matches!(opened, Err(AuditOpenError::Damaged { .. })), "{:?}", opened.err());
    open(AuditLogConfig { accept_loss: true, ..config(directory.path()) }).unwrap().close();
    assert_eq!(fs::read(&path).unwrap(), found.concat());
    assert_eq!(path.with_extension("jsonl.aside").metadata().unwrap().len(), good + (4 << 40), "it was not copied");
}

fn open_log(name: &str, config: AuditLogConfig) -> Result<AuditLog, AuditOpenError> {
    AuditLog::open(config, PartitionId::from_bytes([7; 16]), keys_of(name), Arc::new(Fixed), Arc::default())
}

#[test]
fn the_log_of_one_process_is_not_the_past_of_another() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let write = |log: AuditLog| {
        runtime.block_on(log.append(event(1))).unwrap();
        log.close();
    };
    let under = |directory: &Path, floor| AuditLogConfig { floor, ..config(directory) };
    // Of before: the logs of all processes have the instance's MACs.
    let before = tempfile::tempdir().unwrap();
    write_log(before.path(), 3);
    let stolen = copy_of(before.path());
    open_log("b", under(stolen.path(), 2)).expect("control: without the floor it is taken for anybody's").close();
    let stolen = copy_of(before.path());
    let refused = open_log("b", under(stolen.path(), 3));
    assert!(matches!(refused, Err(AuditOpenError::Forged { seq: 1, .. })), "{:?}", refused.err());
    // It is marked at the upgrade, and gone on with.
    let lines_of = |name: &str| keys_of(name).lines;
    let (end, has_macs) = end_of_earlier_format(before.path(), &lines_of("a"), None).unwrap().unwrap();
    assert!(has_macs && end.head == head_of(before.path(), end.seq));
    let marked =
        |directory: &Path| AuditLogConfig { expected: Some(end), expected_has_macs: true, ..under(directory, 3) };
    write(open_log("a", marked(before.path())).expect("the mark proves it"));
    assert_eq!(end_of_earlier_format(before.path(), &lines_of("a"), None).unwrap(), None, "it is of today by now");
    write(open_log("a", under(before.path(), 3)).expect("its own lines prove it, too"));
    let header = String::from_utf8(lines(before.path()).pop().unwrap().1.swap_remove(0)).unwrap();
    assert!(header.contains("holdfast-audit-3"), "{header}");
    let report = verify(before.path(), None, None).unwrap();
    assert_eq!((report.finding, report.events), (None, 5));
    // Of today: another process's lines are nobody's here, and neither are the instance's.
    for name in ["b", ""] {
        let refused = open_log(name, under(copy_of(before.path()).path(), 3));
        assert!(matches!(refused, Err(AuditOpenError::Forged { .. })), "{:?}", refused.err());
    }
    let refused = open(config(before.path()));
    assert!(matches!(refused, Err(AuditOpenError::Forged { .. })), "a format that is not its own: {:?}", refused.err());
}

#[test]
fn a_segment_of_the_format_without_macs_is_not_taken_after_one_with() {
    let directory = tempfile::tempdir().unwrap();
    write_log(directory.path(), 3);
    let segments = list_segments(directory.path()).unwrap();
    let (number, path) = segments.last().unwrap();
    let last = fs::read(path).unwrap();
    let last = last.strip_suffix(b"\n").unwrap().rsplit(|byte| *byte == b'\n').next().unwrap();
    let planted = String::from_utf8(forged(last)).unwrap();
    let planted = planted.replace(r#""type":"event""#, r#""type":"segment","format":"holdfast-audit-1""#);
    fs::write(directory.path().join(format!("audit-{:012}.jsonl", number + 1)), planted + "\n").unwrap();
    let opened = open(config(directory.path()));
    assert!(matches!(opened, Err(AuditOpenError::Forged { .. })), "{:?}", opened.err());
}

#[test]
fn a_log_of_the_first_version_is_read_and_gone_on_with() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit-1");
    let copy = copy_of(&golden);
    open(config(copy.path())).unwrap().close();
    let header = String::from_utf8(lines(copy.path()).pop().unwrap().1.swap_remove(0)).unwrap();
    assert!(header.contains("holdfast-audit-2"), "{header}");
}

/// The golden log of the first version, opened and closed by this one; and what a mark of it would say.
fn upgraded_log() -> (tempfile::TempDir, Checkpoint) {
    let copy = copy_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit-1"));
    let report = verify(copy.path(), None, None).unwrap();
    let end = Checkpoint { seq: report.lines, head: hex32(&report.head), revision: Revision(0) };
    (copy, end)
}

#[test]
fn lines_of_the_first_version_are_taken_under_the_floor_only_where_something_proves_them() {
    let under = |directory: &Path, expected| AuditLogConfig { expected, floor: 2, ..config(directory) };
    // Nothing behind them: as planted by anybody.
    let (planted, _) = upgraded_log();
    let refused = open(under(planted.path(), None));
    assert!(matches!(refused, Err(AuditOpenError::Forged { seq: 1, .. })), "{:?}", refused.err());
    open(config(planted.path())).expect("control: without the floor they are taken").close();
    open(under(planted.path(), None)).expect("lines of ours behind them prove them").close();
    // A mark proves what stands before it...
    let (marked, end) = upgraded_log();
    open(under(marked.path(), Some(end))).expect("all of it is marked").close();
    // ...and nothing behind it.
    let (longer, end) = upgraded_log();
    let short = Checkpoint { seq: end.seq - 1, head: head_of(longer.path(), end.seq - 1), revision: Revision(0) };
    let refused = open(under(longer.path(), Some(short)));
    assert!(matches!(refused, Err(AuditOpenError::Forged { seq, .. }) if seq == end.seq), "{:?}", refused.err());
    let accepted = open(AuditLogConfig { accept_loss: true, ..under(longer.path(), Some(short)) }).unwrap();
    assert!(accepted.accepted()[0].contains("set aside"), "{:?}", accepted.accepted());
    accepted.close();
    assert_eq!(head_of(longer.path(), end.seq - 1), short.head, "what was marked stays");
    // A mark that is not of this log proves nothing.
    let (other, end) = upgraded_log();
    let refused = open(under(other.path(), Some(Checkpoint { head: [1; 32], ..end })));
    assert!(matches!(refused, Err(AuditOpenError::Forged { .. })), "{:?}", refused.err());
}

/// A link in the place of a segment: what it leads to is no torn end of ours.
#[test]
fn nothing_is_cut_through_a_link() {
    let log = tempfile::tempdir().unwrap();
    write_log(log.path(), 3);
    let victim = log.path().join("victim");
    fs::write(&victim, "everything").unwrap();
    let last = list_segments(log.path()).unwrap().last().unwrap().0;
    let link = log.path().join(format!("audit-{:012}.jsonl", last + 1));
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    for accept_loss in [false, true] {
        let refused = open(AuditLogConfig { accept_loss, ..config(log.path()) }).err().expect("a link").to_string();
        assert!(refused.contains("is a symbolic link"), "{refused}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "everything");
    }
    fs::remove_file(&link).unwrap();
    open(config(log.path())).expect("it was the link").close();
}

fn line_of(directory: &Path, seq: u64) -> Vec<u8> {
    let all: Vec<Vec<u8>> = lines(directory).into_iter().flat_map(|(_, lines)| lines).collect();
    all[seq as usize - 1].strip_suffix(b"\n").unwrap().to_vec()
}

fn head_of(directory: &Path, seq: u64) -> [u8; 32] {
    holdfast_crypto::kdf::sha256(&[&[0], &line_of(directory, seq)])
}

#[test]
fn the_end_of_a_log_without_macs_is_found_for_its_upgrade() {
    let keys = keys();
    let (log, end) = upgraded_log();
    assert_eq!(end_of_earlier_format(log.path(), &keys.lines, None).unwrap(), Some((end, false)));
    let short = Checkpoint { seq: end.seq - 1, head: head_of(log.path(), end.seq - 1), revision: Revision(0) };
    assert_eq!(end_of_earlier_format(log.path(), &keys.lines, Some(short)).unwrap(), Some((end, false)));
    let other = Checkpoint { head: [1; 32], ..short };
    assert_eq!(
        end_of_earlier_format(log.path(), &keys.lines, Some(other)).unwrap(),
        None,
        "it is not the log of that mark"
    );
    let (path, _) = lines(log.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [whole.as_slice(), br#"{"seq":100"#].concat()).unwrap();
    assert_eq!(
        end_of_earlier_format(log.path(), &keys.lines, None).unwrap(),
        Some((end, false)),
        "a torn line is no line"
    );
    assert_eq!(fs::read(&path).unwrap().len(), whole.len() + 10, "and is left to whoever opens the log");
    fs::write(&path, whole).unwrap();
    open(config(log.path())).unwrap().close();
    assert_eq!(end_of_earlier_format(log.path(), &keys.lines, None).unwrap(), None, "it has MACs by now");
    assert_eq!(end_of_earlier_format(&log.path().join("none"), &keys.lines, None).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_flipped_bit_is_found(position in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit-1");
        let copy = copy_of(&golden);
        let (path, lines) = lines(copy.path()).remove(0);
        let mut bytes = lines.concat();
        let at = position.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(path, &bytes).unwrap();
        let report = verify(copy.path(), None, None).unwrap();
        // Without the last newline the last line is torn.
        prop_assert!(report.finding.is_some() || (at + 1 == bytes.len() && report.torn_bytes > 0), "byte {at}");
    }

    #[test]
    fn no_line_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = holdfast_store::audit::parse_line(&bytes);
    }
}

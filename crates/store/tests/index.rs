//! The index of storage: rows and event of a change are one, the file belongs to one instance, and nobody else writes to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{Fixed, event};
use holdfast_core::{
    AuditEvent, Index, IndexChange, IndexSets, IndexWrite, PartitionId, Revision, SetCheck, StoreError,
};
use holdfast_crypto::SecretBytes;
use holdfast_store::{EmbeddedIndex, IndexCopy, IndexOpening, IndexOwner};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tempfile::TempDir;

/// Rows of the first letter are a set.
const SETS: IndexSets = IndexSets { of: |row| row.get(..1).unwrap_or(row), prefixes: |set| vec![set.to_vec()] };
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v2");
const KEPT: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sets v2");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta v2");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events v1");
const ROWS_V1: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v1");
const META_V1: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta v1");
const TAKEN_OVER: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index v1 taken over");

/// How an index is opened: of this instance, under this key.
#[derive(Clone, Copy)]
struct As {
    instance: u8,
    key: u8,
    in_force: bool,
    accept_loss: bool,
}

const OURS: As = As { instance: 7, key: 3, in_force: false, accept_loss: false };
const IN_FORCE: As = As { in_force: true, ..OURS };
const ACCEPTING: As = As { accept_loss: true, ..IN_FORCE };

fn open(path: &Path, by: As, founding: Option<&AuditEvent>) -> Result<EmbeddedIndex, StoreError> {
    let opening = IndexOpening {
        instance: PartitionId::from_bytes([by.instance; 16]),
        database_key: &SecretBytes::copy_of(&[by.key; 32]),
        ambient: Arc::new(Fixed),
        sets: SETS,
        founding,
        upgraded: &|rows| event("StateUpgrade", &rows.to_string()),
        in_force: by.in_force,
        counted: by.in_force,
        accept_loss: by.accept_loss,
    };
    EmbeddedIndex::open(path, opening)
}

/// Waits until a dropped index is closed: its thread lets go of the file a moment later.
fn closed(path: &Path) -> IndexOwner {
    for _ in 0..1000 {
        match IndexOwner::of(path) {
            Ok(owner) => return owner,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    panic!("the index stays open");
}

async fn put(index: &EmbeddedIndex, key: &str, event: Option<AuditEvent>) -> Result<Revision, StoreError> {
    let writes = vec![IndexWrite::put(key.into(), key.as_bytes().to_vec())];
    index.commit(Box::new(move |_| Ok(IndexChange { writes, event }))).await
}

async fn write(index: &EmbeddedIndex, writes: Vec<IndexWrite>) {
    index.keep(Box::new(move |_| Ok(IndexChange { writes, event: None }))).await.unwrap();
}

/// All rows were looked at, and no pin is left: from now on the start alone does not see what is done to one of them.
async fn settle(index: &EmbeddedIndex) {
    assert!(index.check_order().unwrap());
    for set in index.sets().unwrap().names {
        assert!(index.check(&set).unwrap().whole);
    }
    write(index, Vec::new()).await;
}

/// An index with some rows, closed.
async fn some() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.redb");
    let index = open(&path, OURS, None).unwrap();
    for (number, key) in ["a1", "a2", "a3", "b1", "c1"].into_iter().enumerate() {
        put(&index, key, Some(event("PutObject", &number.to_string()))).await.unwrap();
    }
    drop(index);
    closed(&path);
    (directory, path)
}

/// Somebody who may write to the file, and has no key.
fn edit(path: &Path, edit: impl FnOnce(&redb::WriteTransaction)) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    edit(&transaction);
    transaction.commit().unwrap();
}

fn row(path: &Path, name: &str) -> Vec<u8> {
    let database = Database::open(path).unwrap();
    let table = database.begin_read().unwrap().open_table(ROWS).unwrap();
    table.get(name.as_bytes()).unwrap().unwrap().value().to_vec()
}

fn set_row(path: &Path, name: &str, row: Option<&[u8]>) {
    edit(path, |transaction| {
        let mut table = transaction.open_table(ROWS).unwrap();
        match row {
            Some(row) => drop(table.insert(name.as_bytes(), row).unwrap()),
            None => drop(table.remove(name.as_bytes()).unwrap()),
        }
    });
}

fn scanned(index: &EmbeddedIndex, prefix: &str) -> Result<usize, StoreError> {
    let mut count = 0;
    index.snapshot().unwrap().scan(prefix.as_bytes(), prefix.as_bytes(), &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

fn forged(row: &str) -> StoreError {
    StoreError::Forged { row: row.into() }
}

/// Found, expected, whole, forged.
fn counts(check: &SetCheck) -> (u64, Option<u64>, bool, u64) {
    (check.found, check.expected, check.whole, check.forged)
}

#[tokio::test]
async fn a_change_and_its_event_are_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.redb");
    let index = open(&path, OURS, None).unwrap();
    assert_eq!(put(&index, "a", Some(event("PutObject", "1"))).await, Ok(Revision(1)));
    assert_eq!(put(&index, "b", Some(event("PutObject", "2"))).await, Ok(Revision(2)));
    assert_eq!(put(&index, "c", None).await, Ok(Revision(2)), "what nobody is told of is no revision");
    let refused = index.commit(Box::new(|_| Err(StoreError::Busy))).await;
    assert_eq!((refused, index.outbox().waiting()), (Err(StoreError::Busy), 2));
    let writes = || vec![IndexWrite::put(b"d".to_vec(), Vec::new())];
    let told = event("PutObject", "3");
    assert!(index.keep(Box::new(move |_| Ok(IndexChange { writes: writes(), event: Some(told) }))).await.is_err());
    assert_eq!(index.snapshot().unwrap().get(b"d"), Ok(None), "upkeep has no event, and a change has no way around it");
    drop(index);
    closed(&path);
    // No log has them: they are there after a restart, whoever stopped the process.
    let index = open(&path, IN_FORCE, None).unwrap();
    assert_eq!((index.outbox().waiting(), put(&index, "e", Some(event("PutObject", "4"))).await), (2, Ok(Revision(3))));
}

#[tokio::test]
async fn an_index_is_one_instances() {
    let (_directory, path) = some().await;
    let other = PartitionId::from_bytes([8; 16]);
    assert_eq!(closed(&path), IndexOwner::Instance(PartitionId::from_bytes([7; 16])));
    let named = |by| match open(&path, by, None).err() {
        Some(StoreError::Failed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(named(As { instance: 8, ..OURS }).contains("belongs to another instance"));
    assert!(named(As { key: 4, ..OURS }).contains("was not written by this instance"), "its own, under another key");
    // What it says in clear of itself is edited: that alone was enough, once.
    edit(&path, |transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("instance", other.as_bytes().as_slice()).unwrap();
    });
    assert_eq!(closed(&path), IndexOwner::Instance(other));
    for key in [3, 4] {
        let why = named(As { instance: 8, key, ..OURS });
        assert!(why.contains("was not written by this instance"), "{why}");
    }
    assert!(named(OURS).contains("belongs to another instance"));
    edit(&path, |transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("instance", [7; 16].as_slice()).unwrap();
    });
    let index = open(&path, OURS, None).unwrap();
    assert!(IndexCopy::open(&path).is_err(), "nobody else has it open");
    drop(index);
    closed(&path);
    assert_eq!(IndexCopy::open(&path).unwrap().snapshot().unwrap().get(b"a1"), Ok(Some(b"a1".to_vec())));
}

#[tokio::test]
async fn a_head_is_neither_removed_nor_put_back() {
    let (_directory, path) = some().await;
    let head = || {
        let database = Database::open(&path).unwrap();
        let table = database.begin_read().unwrap().open_table(META).unwrap();
        table.get("head").unwrap().unwrap().value().to_vec()
    };
    let older = head();
    let index = open(&path, OURS, None).unwrap();
    put(&index, "a4", Some(event("PutObject", "6"))).await.unwrap();
    drop(index);
    closed(&path);
    let newer = head();
    let set = |value: Option<&[u8]>| {
        edit(&path, |transaction| {
            let mut meta = transaction.open_table(META).unwrap();
            match value {
                Some(value) => drop(meta.insert("head", value).unwrap()),
                None => drop(meta.remove("head").unwrap()),
            }
        });
    };
    set(Some(&older));
    assert_eq!(open(&path, OURS, None).err(), Some(StoreError::NotWhole { revision: Revision(5) }));
    set(None);
    assert!(open(&path, ACCEPTING, None).is_err());
    let mut flipped = newer.clone();
    *flipped.last_mut().unwrap() ^= 1;
    set(Some(&flipped));
    assert!(open(&path, ACCEPTING, None).is_err());
    set(Some(&newer));
    assert!(open(&path, OURS, None).is_ok());
}

#[tokio::test]
async fn rows_of_others_are_refused_by_name() {
    let (_directory, path) = some().await;
    let (ours, moved) = (row(&path, "a1"), row(&path, "a2"));
    let planted = [[0; 32].as_slice(), b"a1"].concat();
    let mut changed = ours.clone();
    *changed.last_mut().unwrap() ^= 1;
    for bad in [planted.as_slice(), &moved, &changed, &ours[..20], b""] {
        set_row(&path, "a1", Some(bad));
        let index = open(&path, IN_FORCE, None).unwrap();
        assert_eq!(index.snapshot().unwrap().get(b"a1"), Err(forged("a1")));
        assert_eq!(scanned(&index, "a"), Err(forged("a1")));
        assert_eq!(scanned(&index, "b"), Ok(1), "who does not meet it is not disturbed");
        assert_eq!(index.snapshot().unwrap().get(b"a2"), Ok(Some(b"a2".to_vec())));
        let in_commit = index.commit(Box::new(|reader| reader.get(b"a1").map(|_| IndexChange::default()))).await;
        assert_eq!(in_commit, Err(forged("a1")), "and nothing is decided by it");
        let check = index.check(b"a").unwrap();
        assert_eq!((counts(&check), check.names), ((2, Some(3), false, 1), vec![b"a1".to_vec()]));
        drop(index);
        closed(&path);
    }
    set_row(&path, "a1", Some(&ours));
    let index = open(&path, IN_FORCE, None).unwrap();
    assert_eq!((scanned(&index, "a"), index.check(b"a").unwrap().whole), (Ok(3), true));
}

#[tokio::test]
async fn what_is_dropped_put_back_or_swapped_is_found() {
    let (_directory, path) = some().await;
    let before = row(&path, "a1");
    let index = open(&path, OURS, None).unwrap();
    write(&index, vec![IndexWrite::put(b"a1".to_vec(), b"newer".to_vec())]).await;
    write(&index, vec![IndexWrite::remove(b"a2".to_vec())]).await;
    write(&index, vec![IndexWrite::put(b"a2".to_vec(), b"made again".to_vec())]).await;
    write(&index, vec![IndexWrite::remove(b"c1".to_vec())]).await;
    settle(&index).await;
    drop(index);
    closed(&path);
    let (a1, a2, a3) = (row(&path, "a1"), row(&path, "a2"), row(&path, "a3"));
    let look = |what: &str, expected: (u64, Option<u64>, bool, u64)| {
        let index = open(&path, IN_FORCE, None).unwrap();
        assert!(index.sets().unwrap().whole, "{what}");
        assert_eq!(counts(&index.check(b"a").unwrap()), expected, "{what}");
        assert!(index.check(b"b").unwrap().whole, "{what}");
        drop(index);
        closed(&path);
    };
    look("nothing", (3, Some(3), true, 0));
    set_row(&path, "a3", None);
    look("dropped", (2, Some(3), false, 0));
    set_row(&path, "a3", Some(&a3));
    set_row(&path, "a1", Some(&before));
    look("older", (3, Some(3), false, 0));
    set_row(&path, "a1", Some(&a2));
    set_row(&path, "a2", Some(&a1));
    look("swapped", (1, Some(3), false, 2));
    set_row(&path, "a1", Some(&a1));
    set_row(&path, "a2", Some(&a2));
    // A row of a set that is gone.
    set_row(&path, "c1", Some(&a1));
    let index = open(&path, IN_FORCE, None).unwrap();
    let names = index.sets().unwrap();
    assert!(names.whole && names.names == [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
    assert_eq!(counts(&index.check(b"c").unwrap()), (0, Some(0), false, 1));
    drop(index);
    closed(&path);
    set_row(&path, "c1", None);
    look("all as it was", (3, Some(3), true, 0));
}

#[tokio::test]
async fn a_whole_set_put_back_is_found_at_the_start() {
    let (_directory, path) = some().await;
    let kept = |name: &[u8]| {
        let database = Database::open(&path).unwrap();
        let table = database.begin_read().unwrap().open_table(KEPT).unwrap();
        table.get(name).unwrap().unwrap().value().to_vec()
    };
    let (old_row, old_set) = (row(&path, "a1"), kept(b"a"));
    let index = open(&path, OURS, None).unwrap();
    write(&index, vec![IndexWrite::put(b"a1".to_vec(), b"newer".to_vec())]).await;
    drop(index);
    closed(&path);
    set_row(&path, "a1", Some(&old_row));
    edit(&path, |transaction| {
        transaction.open_table(KEPT).unwrap().insert(b"a".as_slice(), old_set.as_slice()).unwrap();
    });
    assert_eq!(open(&path, IN_FORCE, None).err(), Some(StoreError::NotWhole { revision: Revision(5) }));
    let index = open(&path, ACCEPTING, None).unwrap();
    assert!(index.notes()[0].contains("was accepted"), "{:?}", index.notes());
    drop(index);
    closed(&path);
    // Whoever accepted it has ended before the log told of it: then nothing was accepted.
    assert_eq!(open(&path, IN_FORCE, None).err(), Some(StoreError::NotWhole { revision: Revision(5) }));
    let index = open(&path, ACCEPTING, None).unwrap();
    index.keep_accepted().await.unwrap();
    assert!(index.sets().unwrap().whole && index.check(b"a").unwrap().whole);
    drop(index);
    closed(&path);
    drop(open(&path, IN_FORCE, None).unwrap());
    closed(&path);
    // Or not ours at all.
    edit(&path, |transaction| {
        transaction.open_table(KEPT).unwrap().insert(b"a".as_slice(), [0; 84].as_slice()).unwrap();
    });
    assert!(open(&path, IN_FORCE, None).is_err());
    let index = open(&path, ACCEPTING, None).unwrap();
    index.keep_accepted().await.unwrap();
    assert_eq!(counts(&index.check(b"a").unwrap()), (3, Some(3), true, 0));
}

/// The event of a change that the index does not have: of a later state of it, or of a history that was given up.
#[tokio::test]
async fn an_event_of_a_change_that_is_not_there_is_not_told() {
    let (_directory, path) = some().await;
    let yesterday = std::fs::read(&path).unwrap();
    let index = open(&path, OURS, None).unwrap();
    put(&index, "a1", Some(event("DeleteObject", "later"))).await.unwrap();
    drop(index);
    closed(&path);
    let later = {
        let database = Database::open(&path).unwrap();
        let table = database.begin_read().unwrap().open_table(EVENTS).unwrap();
        table.get(6).unwrap().unwrap().value().to_vec()
    };
    std::fs::write(&path, yesterday).unwrap();
    edit(&path, |transaction| {
        transaction.open_table(EVENTS).unwrap().insert(6, later.as_slice()).unwrap();
    });
    assert_eq!(open(&path, IN_FORCE, None).err(), Some(StoreError::NotWhole { revision: Revision(5) }));
    let index = open(&path, ACCEPTING, None).unwrap();
    assert!(index.notes()[0].contains("1 events of changes"), "{:?}", index.notes());
    let waiting = index.outbox().waiting();
    index.keep_accepted().await.unwrap();
    drop(index);
    closed(&path);
    let index = open(&path, IN_FORCE, None).unwrap();
    assert_eq!((index.outbox().waiting(), index.notes().len()), (waiting, 0));
}

/// Names that no row of ours has: they hide nothing, and can be accepted away.
#[tokio::test]
async fn planted_names_are_found_whatever_they_are() {
    let (_directory, path) = some().await;
    let old = row(&path, "c1");
    let index = open(&path, OURS, None).unwrap();
    write(&index, vec![IndexWrite::remove(b"c1".to_vec())]).await;
    settle(&index).await;
    drop(index);
    closed(&path);
    // A set that has no rows any more, and whose row is put back behind a row without a name.
    set_row(&path, "", Some(&[7; 40]));
    set_row(&path, "c1", Some(&old));
    edit(&path, |transaction| {
        transaction.open_table(ROWS).unwrap().insert([0xff; 3].as_slice(), [7; 40].as_slice()).unwrap();
    });
    let index = open(&path, IN_FORCE, None).unwrap();
    let bad: Vec<_> = index.sets().unwrap().names.into_iter().filter(|set| !index.check(set).unwrap().whole).collect();
    assert_eq!(bad, [b"".to_vec(), b"c".to_vec(), vec![0xff]]);
    for set in bad {
        index.accept(set, Box::new(|check| event("AcceptIndex", &check.forged.to_string()))).await.unwrap();
    }
    for set in index.sets().unwrap().names {
        assert!(index.check(&set).unwrap().whole, "{set:?}");
    }
}

#[tokio::test]
async fn what_is_accepted_is_told_and_is_whole() {
    let (_directory, path) = some().await;
    let moved = row(&path, "a2");
    set_row(&path, "a1", Some(&moved));
    set_row(&path, "a3", None);
    let index = open(&path, IN_FORCE, None).unwrap();
    let waiting = index.outbox().waiting();
    let told = Box::new(|check: &SetCheck| event("AcceptIndex", &check.forged.to_string()));
    let found = index.accept(b"a".to_vec(), told).await.unwrap();
    assert_eq!((counts(&found), index.outbox().waiting()), ((1, Some(3), false, 1), waiting + 1));
    assert_eq!(counts(&index.check(b"a").unwrap()), (1, Some(1), true, 0));
    assert_eq!(index.snapshot().unwrap().get(b"a1"), Ok(None), "what was not ours is gone");
    put(&index, "a1", None).await.unwrap();
    assert!(index.check(b"a").unwrap().whole && index.sets().unwrap().whole);
    drop(index);
    closed(&path);
    assert!(open(&path, IN_FORCE, None).is_ok());
}

/// Sums of random changes are those of what is left.
#[tokio::test]
async fn what_is_kept_of_sets_follows_all_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.redb");
    let index = open(&path, OURS, None).unwrap();
    let mut state = 1_u32;
    for _ in 0..60 {
        let writes = (0..8).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let name = format!("{}{}", ['a', 'b', 'c'][(state >> 8) as usize % 3], (state >> 16) % 6).into_bytes();
            if state >> 24 < 100 {
                IndexWrite::remove(name)
            } else {
                IndexWrite::put(name, state.to_be_bytes().to_vec())
            }
        });
        write(&index, writes.collect()).await;
        for set in index.sets().unwrap().names {
            let check = index.check(&set).unwrap();
            assert!(check.whole, "{check:?}");
        }
        assert!(index.sets().unwrap().whole);
    }
}

/// An index as an earlier version left it.
fn of_version_1(path: &Path, instance: Option<u8>, rows: u32) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(ROWS_V1).unwrap();
        for number in 0..rows {
            table.insert(format!("a{number:08}").as_bytes(), number.to_be_bytes().as_slice()).unwrap();
        }
        let mut meta = transaction.open_table(META_V1).unwrap();
        if let Some(instance) = instance {
            meta.insert("instance", [instance; 16].as_slice()).unwrap();
            meta.insert("revision", 9_u64.to_be_bytes().as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn rows_of_an_earlier_version_are_taken_over_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.redb");
    of_version_1(&path, Some(7), 3000);
    let before = std::fs::read(&path).unwrap();
    assert_eq!(IndexOwner::of(&path), Ok(IndexOwner::Instance(PartitionId::from_bytes([7; 16]))));
    assert_eq!(IndexCopy::open(&path).unwrap().snapshot().unwrap().get(b"a00000001"), Ok(Some(vec![0, 0, 0, 1])));
    assert!(open(&path, As { instance: 8, ..OURS }, None).is_err());
    let index = open(&path, OURS, None).unwrap();
    assert_eq!((scanned(&index, "a"), index.outbox().waiting()), (Ok(3000), 1), "and the log hears of it");
    assert!(index.check(b"a").unwrap().whole);
    assert_eq!(put(&index, "b", Some(event("PutObject", "1"))).await, Ok(Revision(11)));
    drop(index);
    closed(&path);
    let index = open(&path, OURS, None).unwrap();
    assert_eq!(index.outbox().waiting(), 2, "once");
    drop(index);
    closed(&path);
    // A program of that time finds what it does not open.
    let old = Database::open(&path).unwrap();
    assert!(old.begin_write().unwrap().open_table(ROWS_V1).is_err());
    drop(old);
    std::fs::write(&path, before).unwrap();
    let Some(StoreError::Failed(why)) = open(&path, IN_FORCE, None).err() else { panic!("it was put back") };
    assert!(why.contains("it was put back"), "{why}");
    assert!(open(&path, ACCEPTING, None).is_ok());
}

#[tokio::test]
async fn an_upgrade_that_was_cut_short_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (path, whole) = (directory.path().join("index.redb"), directory.path().join("whole.redb"));
    of_version_1(&whole, None, 3000);
    let founding = event("FoundInstance", "founding");
    // As a crash leaves it behind each of its transactions: so many rows are still on their way.
    let mut cut = 0;
    for left in [3000, 1976, 952, 0] {
        std::fs::copy(&whole, &path).unwrap();
        cut_short_at(&path, left, &founding);
        if left > 0 {
            assert!(open(&path, IN_FORCE, None).is_err(), "no floor comes before the end of it");
            cut += 1;
        }
        let index = open(&path, OURS, Some(&founding)).unwrap();
        assert_eq!((scanned(&index, "a"), index.outbox().waiting()), (Ok(3000), 2));
        assert!(index.check(b"a").unwrap().whole && index.sets().unwrap().whole);
        assert_eq!(index.snapshot().unwrap().get(b"a00002999"), Ok(Some(2999_u32.to_be_bytes().to_vec())));
        drop(index);
        closed(&path);
    }
    assert_eq!(cut, 3);
}

/// Runs the upgrade, and stops it by a panic in the place where the last transaction asks what to tell; then undoes nothing. To stop earlier, rows
/// are held back and added to those that wait.
fn cut_short_at(path: &Path, left: u32, founding: &AuditEvent) {
    let held: Vec<(Vec<u8>, Vec<u8>)> = {
        let database = Database::open(path).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut table = transaction.open_table(ROWS_V1).unwrap();
        let names: Vec<Vec<u8>> = table.iter().unwrap().map(|entry| entry.unwrap().0.value().to_vec()).collect();
        let held = names.into_iter().skip(3000 - left as usize).map(|name| {
            let value = table.remove(name.as_slice()).unwrap().unwrap().value().to_vec();
            (name, value)
        });
        let held = held.collect();
        drop(table);
        transaction.commit().unwrap();
        held
    };
    if left == 0 {
        drop(open(path, OURS, Some(founding)).unwrap());
        closed(path);
        return;
    }
    let stopped = std::panic::catch_unwind(|| {
        let opening = IndexOpening {
            instance: PartitionId::from_bytes([7; 16]),
            database_key: &SecretBytes::copy_of(&[3; 32]),
            ambient: Arc::new(Fixed),
            sets: SETS,
            founding: Some(founding),
            upgraded: &|_| panic!("killed"),
            in_force: false,
            counted: true,
            accept_loss: false,
        };
        assert!(EmbeddedIndex::open(path, opening).is_ok());
    });
    assert!(stopped.is_err());
    edit(path, |transaction| {
        let mut table = transaction.open_table(TAKEN_OVER).unwrap();
        for (name, value) in held {
            table.insert(name.as_slice(), value.as_slice()).unwrap();
        }
    });
}

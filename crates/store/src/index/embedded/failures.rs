//! A disk that fails under an index: nothing is lost, nothing is refused that happened or told that did not, and it mends itself.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use holdfast_core::{IndexChange, IndexWrite};
use tempfile::TempDir;

use super::*;
use crate::{
    database::faulty::{Faults, Kept},
    twins::{Fixed, event},
};

/// Rows of the first letter are a set.
const SETS: IndexSets = IndexSets { of: |row| row.get(..1).unwrap_or(row), prefixes: |set| vec![set.to_vec()] };
/// How long an index may take to mend itself.
const PATIENCE: Duration = Duration::from_secs(20);

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

struct Bench {
    directory: TempDir,
    faults: Faults,
    index: EmbeddedIndex,
    runtime: tokio::runtime::Runtime,
}

fn open(path: &Path, faults: &Faults) -> Result<EmbeddedIndex, StoreError> {
    let (database, file) = faults.make(path)?;
    let opening = IndexOpening {
        instance: PartitionId::from_bytes([7; 16]),
        database_key: &SecretBytes::copy_of(&[3; 32]),
        ambient: Arc::new(Fixed),
        sets: SETS,
        founding: None,
        upgraded: &|_| event("upgrade"),
        in_force: true,
        counted: true,
        accept_loss: false,
    };
    EmbeddedIndex::over(file, database, &opening)
}

fn rows(index: &EmbeddedIndex) -> Rows {
    let mut rows = Rows::new();
    let snapshot = index.snapshot().unwrap();
    let scanned = snapshot.scan(b"", b"", &mut |key, value| {
        rows.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    rows
}

fn told(index: &EmbeddedIndex) -> Vec<(u64, String)> {
    let id = |body: &str| {
        let body: serde_json::Value = serde_json::from_str(&format!("{body}}}")).unwrap();
        body["request_id"].as_str().unwrap().to_owned()
    };
    index.outbox().take(usize::MAX).iter().map(|event| (event.revision.0, id(&event.body))).collect()
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let index = open(&directory.path().join("index.redb"), &faults).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self { directory, faults, index, runtime }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("index.redb")
    }

    /// One change of one row, named like it.
    fn change(&self, key: &str) -> Result<(), StoreError> {
        let (writes, event) = (vec![IndexWrite::put(key.into(), key.into())], Some(event(key)));
        let decide = Box::new(move |_: &dyn IndexReader| Ok(IndexChange { writes, event }));
        self.runtime.block_on(self.index.commit(decide)).map(drop)
    }

    fn keep(&self, value: &str) -> Result<(), StoreError> {
        let writes = vec![IndexWrite::put(b"kept".to_vec(), value.into())];
        let decide = Box::new(move |_: &dyn IndexReader| Ok(IndexChange { writes, event: None }));
        self.runtime.block_on(self.index.keep(decide))
    }

    fn fault(&self) -> Option<String> {
        self.index.condition().fault()
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.fault());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn until_well(&self) {
        self.until("it is ill still", || self.fault().is_none());
    }

    /// Rows and outbox say the same, each set is whole, now and after a restart.
    fn check(self, what: &str) {
        let stored = rows(&self.index);
        let events = told(&self.index);
        let revisions: Vec<u64> = events.iter().map(|(revision, _)| *revision).collect();
        assert_eq!(revisions, (1..=events.len() as u64).collect::<Vec<_>>(), "in order, without a gap: {what}");
        let mut changed: Vec<Vec<u8>> = events.iter().map(|(_, id)| id.clone().into_bytes()).collect();
        changed.sort();
        let there: Vec<Vec<u8>> = stored.keys().filter(|key| *key != b"kept").cloned().collect();
        assert_eq!(changed, there, "one event a change, and one change an event: {what}");
        let whole = |index: &EmbeddedIndex| {
            let names = index.sets().unwrap();
            names.whole && names.names.iter().all(|set| index.check(set).unwrap().whole)
        };
        assert!(whole(&self.index), "{what}");
        let (path, Self { directory: _directory, faults, index, .. }) = (self.path(), self);
        drop(index);
        // The writer's thread ends a moment later.
        let deadline = Instant::now() + PATIENCE;
        let reopened = loop {
            match open(&path, &faults) {
                Ok(index) => break index,
                Err(error) => assert!(Instant::now() < deadline, "{error}: {what}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(rows(&reopened), stored, "after a restart: {what}");
        assert_eq!(told(&reopened), events, "after a restart: {what}");
        assert!(whole(&reopened), "after a restart: {what}");
    }
}

/// The disk fails at each of the calls of a commit, for a moment or for longer, and keeps nothing, something or all of what was not synced.
#[test]
fn each_call_of_a_commit_fails() {
    let (mut failed_then_there, mut refused_then_not, mut failures) = (0, 0, 0);
    for kept in [Kept::Nothing, Kept::EverySecond, Kept::All] {
        for once in [true, false] {
            for call in 0.. {
                let what = format!("{kept:?}, once: {once}, call {call}");
                let bench = Bench::new();
                bench.change("before").unwrap();
                bench.keep("1").unwrap();
                bench.faults.fail_after(call, once, kept);
                let answer = bench.change("while");
                let failed = bench.faults.mend();
                bench.until_well();
                let there = rows(&bench.index).contains_key(b"while".as_slice());
                match &answer {
                    Ok(()) => assert!(there, "told as done: {what}"),
                    Err(StoreError::Unavailable(_)) => assert!(!there, "told as not done: {what}"),
                    Err(StoreError::Failed(_)) => assert!(!once, "mended at once, and not told: {what}"),
                    Err(error) => panic!("{error}: {what}"),
                }
                failed_then_there += u64::from(failed > 0 && there);
                refused_then_not += u64::from(answer.is_err() && !there);
                failures += failed;
                bench.change("xafter").unwrap();
                bench.keep("2").unwrap();
                bench.check(&what);
                if failed == 0 {
                    assert!(call > 3, "a commit has more calls");
                    break;
                }
            }
        }
    }
    println!("{failures} failures: {failed_then_there} changes happened all the same, {refused_then_not} did not");
    assert!(failed_then_there > 0 && refused_then_not > 0, "both are tried");
}

#[test]
fn while_it_is_ill_changes_are_refused_at_once_and_it_says_why() {
    let bench = Bench::new();
    bench.change("before").unwrap();
    bench.faults.errno(5);
    bench.faults.fail_after(0, false, Kept::Nothing);
    assert!(bench.change("while").is_err());
    for number in 0..1000 {
        let refused = bench.change(&format!("refused-{number}"));
        assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("os error 5")), "{refused:?}");
    }
    assert!(bench.fault().is_some_and(|why| why.contains("os error 5")));
    bench.faults.mend();
    bench.until_well();
    bench.change("xafter").unwrap();
    bench.check("refused while it was ill");
}

#[test]
fn a_read_that_fails_is_mended_without_a_change_and_whoever_looks_at_all_rows_hears_of_it() {
    let bench = Bench::new();
    bench.change("before").unwrap();
    let heard = || {
        let reopened = bench.index.condition();
        bench
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_millis(1), reopened.reopened()).await.is_ok() })
    };
    assert!(!heard(), "a first opening is no other");
    bench.faults.fail_reads();
    let read = || bench.index.snapshot().and_then(|snapshot| snapshot.get(b"before"));
    assert!(matches!(read(), Err(StoreError::Failed(_))));
    bench.until("it is not seen", || bench.fault().is_some());
    bench.faults.mend();
    bench.until_well();
    assert_eq!(read(), Ok(Some(b"before".to_vec())));
    assert!(heard() && !heard());
    bench.check("reads failed");
}

/// Puts another file in the place of the one that fails: as a whole, for it is opened again and again meanwhile.
fn put_back(bench: &Bench, content: &[u8]) {
    let beside = bench.directory.path().join("beside.redb");
    fs::write(&beside, content).unwrap();
    fs::rename(&beside, bench.path()).unwrap();
}

/// What the thread that commits says of a file that it does not take.
const NOT_TAKEN: &str = "NOT THOSE OF ITS LAST COMMIT";

/// An index of today whose disk fails, with files of yesterday: before a change that has an event, and before one that has none.
fn failing() -> (Bench, [Vec<u8>; 2], Vec<u8>) {
    let bench = Bench::new();
    bench.change("before").unwrap();
    bench.keep("1").unwrap();
    let first = fs::read(bench.path()).unwrap();
    bench.change("changed").unwrap();
    let second = fs::read(bench.path()).unwrap();
    bench.keep("2").unwrap();
    bench.faults.fail_after(0, false, Kept::Nothing);
    assert!(bench.change("while").is_err());
    let today = fs::read(bench.path()).unwrap();
    (bench, [first, second], today)
}

#[test]
fn an_index_that_was_put_back_meanwhile_is_not_taken() {
    for which in 0..2 {
        let (bench, yesterday, today) = failing();
        put_back(&bench, &yesterday[which]);
        bench.faults.mend();
        bench.until("it is taken", || bench.fault().is_some_and(|why| why.contains(NOT_TAKEN)));
        assert!(matches!(bench.change("under yesterday's rows"), Err(StoreError::Unavailable(_))));
        assert!(matches!(bench.index.snapshot(), Err(StoreError::Failed(_))), "nor is anything read from it");
        // A file that is gone is not made anew.
        fs::remove_file(bench.path()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(bench.fault().is_some() && !bench.path().exists());
        put_back(&bench, &today);
        bench.until_well();
        bench.change("xafter").unwrap();
        bench.check("put back");
    }
}

/// The control: that file is whole in itself, and of this instance. What refuses it is what the process knows.
#[test]
fn a_start_would_take_it() {
    let (bench, yesterday, _) = failing();
    for (number, file) in yesterday.iter().enumerate() {
        // One that is closed is closed a moment later: each has a place of its own.
        let elsewhere = bench.directory.path().join(format!("elsewhere-{number}.redb"));
        fs::write(&elsewhere, file).unwrap();
        let index = open(&elsewhere, &Faults::default()).unwrap();
        assert_eq!(rows(&index).get(b"kept".as_slice()), Some(&b"1".to_vec()));
        assert!(index.sets().unwrap().whole && index.check(b"k").unwrap().whole);
    }
}

/// Whoever may write to the file while it failed drops what is kept of a set, or plants an event.
#[test]
fn an_index_that_was_changed_meanwhile_is_not_taken() {
    type Edit = fn(&redb::WriteTransaction);
    let edits: [Edit; 3] = [
        |transaction| drop(transaction.open_table(super::SETS).unwrap().remove(b"c".as_slice()).unwrap()),
        |transaction| drop(transaction.open_table(EVENTS).unwrap().insert(99, [0; 64].as_slice()).unwrap()),
        |transaction| drop(transaction.open_table(META).unwrap().remove(HEAD).unwrap()),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let (bench, _, today) = failing();
        let database = Database::open(bench.path()).unwrap();
        let transaction = database.begin_write().unwrap();
        edit(&transaction);
        transaction.commit().unwrap();
        drop(database);
        bench.faults.mend();
        // It goes on trying, and takes the right one.
        std::thread::sleep(Duration::from_millis(100));
        assert!(bench.fault().is_some(), "edit {number}");
        assert!(bench.change("under other rows").is_err(), "edit {number}");
        put_back(&bench, &today);
        bench.until_well();
        bench.change("xafter").unwrap();
        bench.check("changed meanwhile");
    }
}

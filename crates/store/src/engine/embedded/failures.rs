//! A disk that fails under a store: nothing is lost, nothing is there twice, nothing is refused that happened or told that did not, and it mends
//! itself.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use holdfast_core::{
    Action, Ambient, CLEAR_WAIT_MAX, Change, Changed, Decided, Decision, Intent, Itself, PartitionId, Policy,
    Principal, Projection, RecordKey, Resource, Store, Timestamp, Write, authorize,
};
use holdfast_crypto::SecretBytes;

use super::*;
use crate::{
    database::faulty::{Faults, Kept},
    sealed::SealedStore,
    twins::event,
};

const KIND: u8 = 1;
/// How long a store may take to mend itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Other bytes each time.
struct Counting(Mutex<u64>);
impl Ambient for Counting {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(1_800_000_000_123)
    }
    fn fill(&self, out: &mut [u8]) {
        let mut count = self.0.lock().unwrap();
        *count += 1;
        out.iter_mut().zip(count.to_be_bytes().iter().rev().cycle()).for_each(|(byte, value)| *byte = *value);
    }
}

/// Version and content by id.
type Records = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// What a role would know.
#[derive(Default)]
struct Known(Mutex<Records>);
impl Projection for Known {
    fn apply(&self, changes: &[Changed]) {
        for change in changes.iter().filter(|change| change.key.kind == KIND) {
            match &change.value {
                Some(value) => self.0.lock().unwrap().insert(change.key.id.clone(), (change.version, value.clone())),
                None => self.0.lock().unwrap().remove(&change.key.id),
            };
        }
    }
}

struct Bench {
    path: PathBuf,
    faults: Faults,
    store: SealedStore<EmbeddedEngine>,
    known: Arc<Known>,
    runtime: tokio::runtime::Runtime,
}

fn write(id: &str, expected_version: u64, value: &[u8]) -> Write {
    Write { key: RecordKey::new(KIND, id.as_bytes()), expected_version, value: Some(value.to_vec()) }
}

impl Bench {
    fn new(directory: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (path, faults) = (directory.join("records.redb"), Faults::default());
        let store = runtime.block_on(Self::open(&path, &faults)).unwrap();
        let known = Arc::new(Known::default());
        let follower: Arc<dyn Projection> = Arc::clone(&known) as _;
        store.watch(Arc::downgrade(&follower));
        Self { path, faults, store, known, runtime }
    }

    async fn open(path: &Path, faults: &Faults) -> Result<SealedStore<EmbeddedEngine>, StoreError> {
        let (database, file) = faults.make(path)?;
        let engine = EmbeddedEngine::over(file, database)?;
        let key = SecretBytes::copy_of(&[2; 32]);
        let ambient = Arc::new(Counting(Mutex::new(path.metadata().unwrap().len())));
        SealedStore::open(engine, PartitionId::from_bytes([1; 16]), &key, ambient, false).await
    }

    /// One change of one record, named like it.
    fn change(&self, id: &str) -> Result<(), StoreError> {
        let change = Change {
            writes: vec![write(id, 0, id.as_bytes())],
            event: Decided::by_itself(event(id), Itself::Configured),
        };
        self.runtime.block_on(self.store.commit(change)).map(drop)
    }

    fn keep(&self, id: &str, version: u64, value: &[u8]) -> Result<(), StoreError> {
        self.runtime.block_on(self.store.keep(vec![write(id, version, value)]))
    }

    fn stored(store: &SealedStore<EmbeddedEngine>, runtime: &tokio::runtime::Runtime) -> Records {
        let mut found = BTreeMap::new();
        let mut visit =
            |record: holdfast_core::Record| drop(found.insert(record.key.id, (record.version, record.value)));
        runtime.block_on(store.scan(KIND, &mut visit)).unwrap();
        found
    }

    fn until_well(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(fault) = self.store.condition().fault() {
            assert!(Instant::now() < deadline, "it is ill still: {fault}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Store, memory and outbox say the same, now and after a restart.
    fn check(self, what: &str) {
        let stored = Self::stored(&self.store, &self.runtime);
        assert_eq!(stored, *self.known.0.lock().unwrap(), "memory: {what}");
        let told = |store: &SealedStore<EmbeddedEngine>| -> Vec<(u64, String)> {
            let id = |body: &str| {
                let body: serde_json::Value = serde_json::from_str(&format!("{body}}}")).unwrap();
                body["request_id"].as_str().unwrap().to_owned()
            };
            store.outbox().take(usize::MAX).iter().map(|event| (event.revision.0, id(&event.body))).collect()
        };
        let events = told(&self.store);
        let revisions: Vec<u64> = events.iter().map(|(revision, _)| *revision).collect();
        assert_eq!(revisions, (1..=self.store.revision().0).collect::<Vec<_>>(), "one event a change: {what}");
        let mut ids: Vec<Vec<u8>> = events.iter().map(|(_, id)| id.clone().into_bytes()).collect();
        ids.sort();
        let changed: Vec<Vec<u8>> = stored.keys().filter(|id| !id.starts_with(b"kept")).cloned().collect();
        assert_eq!(ids, changed, "and one change an event: {what}");
        let Self { path, faults, store, runtime, .. } = self;
        drop(store);
        let reopened = runtime.block_on(async {
            // The writer's thread ends a moment later.
            let deadline = Instant::now() + PATIENCE;
            loop {
                match Self::open(&path, &faults).await {
                    Ok(store) => return store,
                    Err(error) => assert!(Instant::now() < deadline, "{error}: {what}"),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert_eq!(Self::stored(&reopened, &runtime), stored, "after a restart: {what}");
        assert_eq!(told(&reopened), events, "after a restart: {what}");
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
                let directory = tempfile::tempdir().unwrap();
                let bench = Bench::new(directory.path());
                bench.change("before").unwrap();
                bench.keep("kept", 0, b"1").unwrap();
                bench.faults.fail_after(call, once, kept);
                let answer = bench.change("while");
                let failed = bench.faults.mend();
                bench.until_well();
                let there = Bench::stored(&bench.store, &bench.runtime).contains_key(b"while".as_slice());
                match &answer {
                    Ok(()) => assert!(there, "told as done: {what}"),
                    Err(StoreError::Unavailable(_)) => assert!(!there, "told as not done: {what}"),
                    Err(StoreError::Failed(_)) => assert!(!once, "mended at once, and not told: {what}"),
                    Err(error) => panic!("{error}: {what}"),
                }
                failed_then_there += u64::from(failed > 0 && there);
                refused_then_not += u64::from(answer.is_err() && !there);
                failures += failed;
                bench.change("after").unwrap();
                bench.keep("kept", 1, b"2").unwrap();
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
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path());
    bench.change("before").unwrap();
    bench.faults.errno(28);
    bench.faults.fail_after(0, false, Kept::Nothing);
    assert!(bench.change("while").is_err());
    for number in 0..1000 {
        let refused = bench.change(&format!("refused-{number}"));
        assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("No space")), "{refused:?}");
    }
    assert!(bench.store.condition().fault().is_some_and(|why| why.contains("No space")));
    bench.faults.mend();
    bench.until_well();
    bench.change("after").unwrap();
    bench.check("refused while it was ill");
}

#[test]
fn a_read_that_fails_is_mended_without_a_change() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path());
    bench.change("before").unwrap();
    bench.faults.fail_reads();
    let read = || bench.runtime.block_on(bench.store.read(&RecordKey::new(KIND, *b"before")));
    assert!(matches!(read(), Err(StoreError::Failed(_))));
    let deadline = Instant::now() + PATIENCE;
    while bench.store.condition().fault().is_none() {
        assert!(Instant::now() < deadline, "it is not seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.faults.mend();
    bench.until_well();
    assert!(read().unwrap().is_some());
    bench.check("reads failed");
}

/// Puts another file in the place of the one that fails.
fn put_back(bench: &Bench, content: &[u8]) {
    fs::write(&bench.path, content).unwrap();
    bench.faults.mend();
}

#[test]
fn a_store_that_was_put_back_meanwhile_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path());
    bench.change("before").unwrap();
    bench.keep("kept", 0, b"1").unwrap();
    let yesterday = fs::read(&bench.path).unwrap();
    // Nobody's change: the revision is the same.
    bench.keep("kept", 1, b"2").unwrap();
    bench.faults.fail_after(0, false, Kept::Nothing);
    assert!(bench.change("while").is_err());
    let today = fs::read(&bench.path).unwrap();
    put_back(&bench, &yesterday);
    let deadline = Instant::now() + PATIENCE;
    while !bench.store.condition().fault().is_some_and(|why| why.contains("NOT THOSE OF ITS LAST COMMIT")) {
        assert!(Instant::now() < deadline, "{:?}", bench.store.condition().fault());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(bench.change("under yesterday's rows"), Err(StoreError::Unavailable(_))));
    let read = bench.runtime.block_on(bench.store.read(&RecordKey::new(KIND, *b"kept")));
    assert!(matches!(read, Err(StoreError::Failed(_))), "nor is anything read from it");
    // A file that is gone is not made anew.
    fs::remove_file(&bench.path).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(bench.store.condition().fault().is_some() && !bench.path.exists());
    fs::write(&bench.path, today).unwrap();
    bench.until_well();
    bench.change("after").unwrap();
    bench.check("put back");
}

/// The control: without what is kept of all rows, yesterday's file of the same revision is taken.
#[test]
fn without_the_row_set_it_would_be_taken() {
    let directory = tempfile::tempdir().unwrap();
    let (path, faults) = (directory.path().join("records.redb"), Faults::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (database, file) = faults.make(&path).unwrap();
    let engine = EmbeddedEngine::over(file, database).unwrap();
    let batch = |version: u64, sealed: &[u8]| {
        Batch::of(vec![RowWrite { name: [1; 33], expected_version: version, sealed: Some(sealed.to_vec()) }])
    };
    runtime.block_on(engine.commit(batch(0, b"old"))).unwrap();
    let yesterday = fs::read(&path).unwrap();
    runtime.block_on(engine.commit(batch(1, b"new"))).unwrap();
    faults.fail_after(0, false, Kept::Nothing);
    assert!(runtime.block_on(engine.commit(batch(2, b"while"))).is_err());
    fs::write(&path, yesterday).unwrap();
    faults.mend();
    let deadline = Instant::now() + PATIENCE;
    while engine.condition().fault().is_some() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(runtime.block_on(engine.read(&[1; 33])).unwrap().unwrap().sealed, b"old");
}

impl Known {
    fn has(&self, id: &str) -> bool {
        self.0.lock().unwrap().contains_key(id.as_bytes())
    }
}

struct Everything;

impl Policy for Everything {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        Decision::Allow("test".into())
    }
}

/// Without leave: as the instance itself.
fn by_leave(id: &str, leave: Option<Pass>) -> Change {
    let decided = match leave {
        None => Decided::by_itself(event(id), Itself::Configured),
        Some(pass) => {
            let intent = Intent { action: Action::KeyCreate, resource: Resource::Keys };
            let permit = authorize(&Everything, &Principal::system(), intent).unwrap();
            Decided::asked(event(id), permit.spend(Action::KeyCreate, &Resource::Keys).unwrap(), pass)
        }
    };
    Change { writes: vec![write(id, 0, id.as_bytes())], event: decided }
}

/// On a disk that takes longer than a change waits for anybody: somebody is looked at, a revocation of what he was allowed by is committed before his
/// change, and his change is being written when the revocation would return. Whether it returned before his change was there.
fn revocation_returns_before_a_change_that_it_forbids(leaves: bool) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(race_on_a_slow_disk(bench.faults, Arc::new(bench.store), bench.known, leaves))
}

async fn race_on_a_slow_disk(
    faults: Faults,
    store: Arc<SealedStore<EmbeddedEngine>>,
    known: Arc<Known>,
    leaves: bool,
) -> bool {
    let until = async |what: &str, is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    faults.end_syncs(Some(0));
    let revoking = Arc::clone(&store);
    let mut revocation = tokio::spawn(async move { revoking.commit(by_leave("revocation", None)).await });
    until("the revocation is written", &|| faults.sync_waits()).await;
    // He is looked at before it is in memory, and waits for the disk behind it.
    let leave = leaves.then(|| store.gate().enter());
    let mut late = Box::pin(store.commit(by_leave("late", leave)));
    let waits = std::future::poll_fn(|context| std::task::Poll::Ready(late.as_mut().poll(context).is_pending()));
    assert!(waits.await);
    while !known.has("revocation") {
        faults.end_syncs(Some(1));
        until("the next sync waits", &|| faults.sync_waits()).await;
    }
    let returned = tokio::time::timeout(CLEAR_WAIT_MAX * 4, &mut revocation).await.is_ok();
    assert!(!known.has("late"), "the disk has not taken it");
    faults.end_syncs(None);
    if !returned {
        assert!(revocation.await.unwrap().is_ok());
        assert!(known.has("late"), "it is there when the revocation returns");
    }
    assert!(late.await.is_ok() && known.has("late"));
    returned
}

/// The control: where nobody says by what leave a change is made, it follows the revocation.
#[test]
fn a_change_does_not_follow_the_revocation_that_forbids_it_however_slow_the_disk_is() {
    assert!(!revocation_returns_before_a_change_that_it_forbids(true));
    assert!(revocation_returns_before_a_change_that_it_forbids(false));
}

/// It waits for something between the look and the queue, such as the processor, until the revocation has returned.
#[test]
fn a_change_whose_leave_was_revoked_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path());
    let (leave, none) = (bench.store.gate().enter(), None);
    bench.change("revocation").unwrap();
    let made = |id, leave| bench.runtime.block_on(bench.store.commit(by_leave(id, leave))).map(drop);
    assert_eq!(made("late", Some(leave)), Err(StoreError::Overtaken));
    assert!(!bench.known.has("late"));
    // The control.
    assert_eq!(made("unasked", none), Ok(()));
    bench.check("overtaken");
}

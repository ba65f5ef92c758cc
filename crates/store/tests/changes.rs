//! A change is one thing: rows, event, memory. The contract over all engines, callers that go away, crashes between store and log, and stores and
//! logs that are put back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Fixed, event, keys};
use holdfast_core::{
    Action, Change, Changed, Decided, Decision, Gate, Intent, Itself, PartitionId, Policy, Principal, Projection,
    RecordKey, Resource, Revision, Spent, Store, StoreError, Write, authorize,
};
use holdfast_crypto::SecretBytes;
use holdfast_store::{
    EmbeddedEngine, Engine, MemoryEngine, SealedStore, SharedEngine,
    audit::{AuditLog, AuditLogConfig, AuditOpenError, Checkpoint, Report, RestoredStore, list_segments, verify},
};

const INSTANCE: [u8; 16] = [7; 16];

async fn opened<E: Engine>(engine: E) -> SealedStore<E> {
    let key = SecretBytes::copy_of(&[3; 32]);
    SealedStore::open(engine, PartitionId::from_bytes(INSTANCE), &key, Arc::new(Fixed), false).await.unwrap()
}

fn write(id: &str, expected_version: u64, value: Option<&str>) -> Write {
    Write { key: RecordKey::new(1, id), expected_version, value: value.map(|value| value.as_bytes().to_vec()) }
}

fn change(id: &str, expected_version: u64, value: Option<&str>) -> Change {
    Change {
        writes: vec![write(id, expected_version, value)],
        event: Decided::by_itself(event("KeyCreate", id), Itself::Configured),
    }
}

struct Everything;

impl Policy for Everything {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        Decision::Allow("test".into())
    }
}

fn spent() -> Spent {
    let intent = Intent { action: Action::KeyCreate, resource: Resource::Keys };
    let permit = authorize(&Everything, &Principal::system(), intent).unwrap();
    permit.spend(Action::KeyCreate, &Resource::Keys).unwrap()
}

/// Versions by id, and all that was told.
type Memory = (BTreeMap<Vec<u8>, u64>, Vec<Changed>);

/// What memory makes of commits.
#[derive(Default)]
struct Seen(Mutex<Memory>);

impl Projection for Seen {
    fn apply(&self, changes: &[Changed]) {
        let mut seen = self.0.lock().unwrap();
        for changed in changes {
            match changed.value {
                Some(_) => seen.0.insert(changed.key.id.clone(), changed.version),
                None => seen.0.remove(&changed.key.id),
            };
            seen.1.push(changed.clone());
        }
    }
}

fn watch<E: Engine>(store: &SealedStore<E>) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let weak = Arc::downgrade(&seen);
    store.watch(weak);
    seen
}

async fn on_disk<E: Engine>(store: &SealedStore<E>) -> BTreeMap<Vec<u8>, u64> {
    let mut found = BTreeMap::new();
    store.scan(1, &mut |record| assert_eq!(found.insert(record.key.id, record.version), None)).await.unwrap();
    found
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap().block_on(future)
}

async fn contract<E: Engine + 'static>(engine: E) {
    let store = opened(engine).await;
    let seen = watch(&store);
    assert_eq!(store.revision(), Revision(0));
    let first = store.commit(change("a", 0, Some("one"))).await.unwrap();
    assert_eq!((first.revision(), store.revision()), (Revision(1), Revision(1)));
    assert_eq!(seen.0.lock().unwrap().0, BTreeMap::from([(b"a".to_vec(), 1)]), "memory has it when the commit returns");
    assert_eq!(store.commit(change("a", 0, Some("x"))).await, Err(StoreError::Conflict));
    assert_eq!((store.revision(), store.outbox().waiting()), (Revision(1), 1), "what is refused is no change");
    store.keep(vec![write("b", 0, Some("kept"))]).await.unwrap();
    assert_eq!((store.revision(), store.outbox().waiting()), (Revision(1), 1), "nor is what is kept without an event");
    let removed = store.commit(change("a", 1, None)).await.unwrap();
    assert_eq!(removed.revision(), Revision(2));
    // The leave that a change is made by is given back when it is in memory: nobody waits for it any more, the change itself least of all.
    let by_leave = |id| Decided::asked(event("KeyCreate", id), spent(), store.gate().enter());
    let change = Change { writes: vec![write("c", 0, Some("by leave"))], event: by_leave("c") };
    assert_eq!(store.commit(change).await.unwrap().revision(), Revision(3));
    store.gate().clear(std::future::pending()).await;
    // One that was revoked meanwhile is not made.
    let event = by_leave("d");
    store.gate().clear(std::future::ready(())).await;
    let change = Change { writes: vec![write("d", 0, Some("too late"))], event };
    assert_eq!(store.commit(change).await, Err(StoreError::Overtaken));
    // Nor is one under a pass that nobody waits for who clears this gate.
    let elsewhere = Decided::asked(common::event("KeyCreate", "e"), spent(), Gate::new().enter());
    let change = Change { writes: vec![write("e", 0, Some("elsewhere"))], event: elsewhere };
    assert!(matches!(store.commit(change).await, Err(StoreError::Failed(_))));
    assert_eq!((store.revision(), store.outbox().waiting()), (Revision(3), 3));
    let disk = on_disk(&store).await;
    assert_eq!(seen.0.lock().unwrap().0, disk);
}

#[test]
fn engines_keep_the_contract_of_changes() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        contract(MemoryEngine::default()).await;
        contract(EmbeddedEngine::open(&directory.path().join("records.redb")).unwrap()).await;
        let key = SecretBytes::copy_of(&[3; 32]);
        let instance = PartitionId::from_bytes(INSTANCE);
        contract(SharedEngine::new(directory.path(), &key, instance, "state", "test").unwrap()).await;
    });
}

#[test]
fn memory_follows_the_store_though_callers_go_away() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let store = Arc::new(opened(EmbeddedEngine::open(&directory.path().join("records.redb")).unwrap()).await);
        let seen = watch(&store);
        for number in 0..400 {
            let one = Arc::clone(&store);
            let id = format!("{}", number % 150);
            let task = tokio::spawn(async move { one.commit(change(&id, number / 150, Some("x"))).await });
            if number % 3 == 0 {
                tokio::task::yield_now().await;
            }
            task.abort();
        }
        // Whatever is queued is done when this is.
        let last = store.commit(change("last", 0, Some("x"))).await.unwrap();
        assert_eq!(last.revision(), store.revision());
        let (memory, applied) = seen.0.lock().unwrap().clone();
        assert_eq!(memory, on_disk(&store).await);
        assert_eq!(applied.len() as u64, store.revision().0);
        assert_eq!(applied.len(), store.outbox().waiting(), "each change has its event");
    });
}

#[test]
fn changes_are_refused_when_too_many_events_wait() {
    block_on(async {
        let store = opened(MemoryEngine::default()).await;
        let mut done = 0;
        let refused = loop {
            match store.commit(change(&done.to_string(), 0, Some("x"))).await {
                Ok(_) => done += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, StoreError::Unrecorded { waiting: done });
        assert_eq!(store.read(&RecordKey::new(1, done.to_string())).await.unwrap(), None, "nothing was written");
        store.keep(vec![write("kept", 0, Some("x"))]).await.unwrap();
    });
}

/// An instance in a directory: store and log.
struct Instance {
    store: SealedStore<EmbeddedEngine>,
    log: Result<AuditLog, AuditOpenError>,
}

impl Instance {
    async fn open(directory: &Path, expected: Option<Checkpoint>, accept_loss: bool) -> Self {
        let instance = Self::open_as(directory, expected, accept_loss, None).await;
        instance.raise().await;
        instance
    }

    /// What follows when log and store were found to be of one moment, or that they are not was accepted.
    async fn raise(&self) {
        if let Some(to) = self.log.as_ref().ok().and_then(AuditLog::raised) {
            self.store.raise(to).await.unwrap();
        }
    }

    async fn open_as(
        directory: &Path,
        expected: Option<Checkpoint>,
        accept_loss: bool,
        restored: Option<RestoredStore>,
    ) -> Self {
        // The writer thread of one before closes the file after its queue.
        let engine = loop {
            match EmbeddedEngine::open(&directory.join("records.redb")) {
                Ok(engine) => break engine,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let store = opened(engine).await;
        let config = AuditLogConfig {
            directory: directory.join("audit"),
            segment_bytes_max: 1 << 20,
            segment_age_max: Duration::from_secs(3600),
            checkpoint_interval: Duration::from_millis(10),
            expected,
            expected_has_macs: expected.is_some(),
            floor: 2,
            accept_loss,
            restored,
            notes: Vec::new(),
            accepted: Vec::new(),
        };
        let log = AuditLog::open(config, PartitionId::from_bytes(INSTANCE), keys(), Arc::new(Fixed), store.outbox());
        Self { store, log }
    }

    async fn change(&self, id: &str) {
        let done = self.store.commit(change(id, 0, Some("x"))).await.unwrap();
        assert_eq!(done.revision(), self.store.revision());
    }

    fn log(&self) -> &AuditLog {
        self.log.as_ref().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Ends the log in order; the rows of its events stay, as after a crash before the next commit.
    fn stop(self) -> Checkpoint {
        self.log().close();
        self.log().latest()
    }
}

fn told(directory: &Path) -> Report {
    let report = verify(&directory.join("audit"), None, None).unwrap();
    assert_eq!(report.finding, None);
    report
}

#[test]
fn each_change_is_told_once_whenever_the_process_ends() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    block_on(async {
        let instance = Instance::open(directory, None, false).await;
        instance.change("a").await;
        instance.change("b").await;
        let end = instance.stop();
        assert_eq!((end.revision, told(directory).revision, told(directory).events), (Revision(2), 2, 2));
        // The rows of these events are still there: they are not told again.
        let instance = Instance::open(directory, Some(end), false).await;
        instance.change("c").await;
        instance.log().close();
        // Committed when the log is closed already: durable, and told by the next process.
        instance.change("d").await;
        let end = instance.log().latest();
        drop(instance);
        assert_eq!(told(directory).revision, 3);
        let instance = Instance::open(directory, Some(end), false).await;
        instance.log().close();
        assert_eq!((told(directory).revision, told(directory).events), (4, 4));
        // Rows that were told go with what is kept next.
        instance.store.keep(vec![write("mark", 0, Some("x"))]).await.unwrap();
        let mut left = 0;
        instance.store.scan(65, &mut |_| left += 1).await.unwrap();
        assert_eq!(left, 0);
    });
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("audit")).unwrap();
    fs::copy(from.join("records.redb"), to.join("records.redb")).unwrap();
    for (_, path) in list_segments(&from.join("audit")).unwrap() {
        fs::copy(&path, to.join("audit").join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_store_or_a_log_of_yesterday_is_refused_by_name_and_accepted_on_command() {
    let (today, yesterday) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (today, yesterday) = (today.path(), yesterday.path());
    block_on(async {
        let instance = Instance::open(today, None, false).await;
        instance.change("a").await;
        let before = instance.stop();
        let again = Instance::open(today, Some(before), false).await;
        let before = again.log().latest();
        again.stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        copy(today, yesterday);
        let instance = Instance::open(today, Some(before), false).await;
        instance.change("b").await;
        instance.change("c").await;
        let mut version = 0;
        let now = {
            instance.log().close();
            // As after the mark of a second: the rows of the events are gone.
            instance.store.keep(vec![write("mark", version, Some("x"))]).await.unwrap();
            version += 1;
            instance.log().latest()
        };
        assert_eq!(version, 1);
        drop(instance);
        tokio::time::sleep(Duration::from_millis(50)).await;

        // Yesterday's store with today's log. Its mark is of yesterday, too.
        let mixed = tempfile::tempdir().unwrap();
        copy(today, mixed.path());
        fs::copy(yesterday.join("records.redb"), mixed.path().join("records.redb")).unwrap();
        let refused = Instance::open(mixed.path(), Some(before), false).await.log.err().unwrap();
        let AuditOpenError::StoreOlder { store, log } = refused else { panic!("{refused}") };
        assert_eq!((store, log), (Revision(1), Revision(3)));
        let accepted = Instance::open(mixed.path(), Some(before), true).await;
        accepted.change("d").await;
        accepted.stop();
        let report = told(mixed.path());
        assert_eq!((report.revision, report.accepted.len()), (5, 1), "it goes on above what was undone, and says so");
        Instance::open(mixed.path(), Some(before), false).await.stop();
        // The store that was not accepted, at a number that the new history has passed: it is none of its own.
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::copy(today.join("records.redb"), mixed.path().join("records.redb")).unwrap();
        let refused = Instance::open(mixed.path(), Some(before), false).await.log.err().unwrap();
        assert!(matches!(refused, AuditOpenError::StoreOlder { .. }), "{refused}");

        // Yesterday's log with today's store, whose mark says how far the log had come.
        let mixed = tempfile::tempdir().unwrap();
        copy(yesterday, mixed.path());
        fs::copy(today.join("records.redb"), mixed.path().join("records.redb")).unwrap();
        let refused = Instance::open(mixed.path(), Some(now), false).await.log.err().unwrap();
        assert!(matches!(refused, AuditOpenError::Truncated { .. }), "{refused}");
        // Without the mark the revisions show it.
        let refused = Instance::open(mixed.path(), Some(before), false).await.log.err().unwrap();
        let AuditOpenError::LogOlder { store, log } = refused else { panic!("{refused}") };
        assert_eq!((store, log), (Revision(3), Revision(1)));
        Instance::open(mixed.path(), Some(before), true).await.stop();
        assert_eq!((told(mixed.path()).revision, told(mixed.path()).accepted.len()), (3, 1));
    });
}

/// A store that was restored beside its log, wherever the start breaks off that finds it: no number is given twice.
#[test]
fn a_restored_store_goes_on_above_what_it_undoes() {
    let (place, yesterday) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (place, yesterday) = (place.path(), yesterday.path());
    block_on(async {
        let instance = Instance::open(place, None, false).await;
        instance.change("a").await;
        instance.stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        copy(place, yesterday);
        let instance = Instance::open(place, None, false).await;
        for id in ["b", "c"] {
            instance.change(id).await;
        }
        let end = instance.stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::copy(yesterday.join("records.redb"), place.join("records.redb")).unwrap();
        // A store that nobody knows of had come to change 5, and the log had not heard of it.
        let meant = RestoredStore { store: Revision(1), log: end, newest: Revision(5) };
        let restored = Some(meant);
        let other = Checkpoint { head: [9; 32], ..end };
        let other = Some(RestoredStore { log: other, ..meant });
        for refused in [None, other] {
            let refused = Instance::open_as(place, None, false, refused).await.log.err().unwrap();
            assert!(matches!(refused, AuditOpenError::StoreOlder { .. }), "{refused}");
        }
        // Breaks off before the store follows, once in order and once between two lines.
        let instance = Instance::open_as(place, None, false, restored).await;
        assert_eq!(instance.log().raised(), Some(Revision(6)));
        instance.stop();
        let (_, last) = list_segments(&place.join("audit")).unwrap().pop().unwrap();
        let text = fs::read(&last).unwrap();
        let first = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for left in [text.len(), first, first + 9] {
            fs::write(&last, &text[..left]).unwrap();
            let instance = Instance::open_as(place, None, false, restored).await;
            assert_eq!(instance.log().raised(), Some(Revision(6)));
            instance.stop();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (_, newest) = list_segments(&place.join("audit")).unwrap().pop().unwrap();
            fs::remove_file(newest).unwrap();
        }
        let instance = Instance::open_as(place, None, false, restored).await;
        instance.raise().await;
        assert_eq!(instance.store.revision(), Revision(6));
        instance.stop();
        // Without the note from now on.
        let instance = Instance::open_as(place, None, false, None).await;
        assert_eq!(instance.log().raised(), None);
        instance.change("d").await;
        assert_eq!(instance.store.revision(), Revision(7));
        instance.stop();
        assert_eq!(told(place).revision, 7);
        // The restored store is not taken again.
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::copy(yesterday.join("records.redb"), place.join("records.redb")).unwrap();
        let refused = Instance::open_as(place, None, false, restored).await.log.err().unwrap();
        assert!(matches!(refused, AuditOpenError::StoreOlder { .. }), "{refused}");
    });
}

/// The table of rows in the file of the embedded engine, as somebody without a key may write it.
const ROWS: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("rows v1");

async fn reopened(path: &Path) -> Result<SealedStore<EmbeddedEngine>, StoreError> {
    let key = SecretBytes::copy_of(&[3; 32]);
    let engine = loop {
        match EmbeddedEngine::open(path) {
            Ok(engine) => break engine,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    SealedStore::open(engine, PartitionId::from_bytes(INSTANCE), &key, Arc::new(Fixed), false).await
}

/// The file as somebody without a key may open it, once nobody else has it open.
async fn bare(path: &Path) -> redb::Database {
    loop {
        match redb::Database::open(path) {
            Ok(database) => return database,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Puts `whole` in the place of the file, and changes that behind the store's back.
async fn edit(whole: &Path, path: &Path, change: impl FnOnce(&mut redb::Table<'_, &[u8], &[u8]>)) {
    drop(bare(path).await);
    fs::copy(whole, path).unwrap();
    let database = bare(path).await;
    let transaction = database.begin_write().unwrap();
    change(&mut transaction.open_table(ROWS).unwrap());
    transaction.commit().unwrap();
}

async fn rows_of(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    use redb::{ReadableDatabase, ReadableTable};
    let database = bare(path).await;
    let table = database.begin_read().unwrap().open_table(ROWS).unwrap();
    let own = |entry: (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>)| {
        (entry.0.value().to_vec(), entry.1.value().to_vec())
    };
    table.iter().unwrap().map(|entry| own(entry.unwrap())).collect()
}

#[test]
fn rows_dropped_put_back_or_made_again_are_refused_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.redb");
    block_on(async {
        let store = reopened(&path).await.unwrap();
        for (id, version) in [("a", 0), ("b", 0), ("gone", 0)] {
            assert!(store.commit(change(id, version, Some("first"))).await.is_ok());
        }
        drop(store);
        // The rows as they were, to be put back one by one.
        let yesterday = rows_of(&path).await;
        let store = reopened(&path).await.unwrap();
        assert!(store.commit(change("a", 1, Some("second"))).await.is_ok());
        assert!(store.commit(change("gone", 1, None)).await.is_ok());
        drop(store);
        drop(reopened(&path).await.expect("control: what the commits left opens"));
        let whole = directory.path().join("whole.redb");
        drop(bare(&path).await);
        fs::copy(&path, &whole).unwrap();
        let mut verdicts = Vec::new();
        for (name, value) in &yesterday {
            edit(&whole, &path, |table| drop(table.insert(name.as_slice(), value.as_slice()).unwrap())).await;
            verdicts.push((name[0], reopened(&path).await.err()));
        }
        // Rows of `b` and of events that are still there are as they were; `a` is older, and `gone` is back.
        let refused = verdicts.iter().filter(|(kind, verdict)| *kind == 1 && verdict.is_some()).count();
        assert_eq!(refused, 2, "{verdicts:?}");
        let mine = |rows: &[(Vec<u8>, Vec<u8>)]| rows.iter().filter(|(name, _)| name[0] == 1).count();
        assert_eq!((mine(&yesterday), verdicts.len() - mine(&yesterday)), (3, 3));
        for (kind, verdict) in &verdicts {
            if let Some(error) = verdict {
                assert_eq!((*kind, error), (1, &StoreError::NotWhole { revision: Revision(5) }));
            }
        }
        // Each row dropped alone.
        for (name, _) in rows_of(&whole).await {
            edit(&whole, &path, |table| drop(table.remove(name.as_slice()).unwrap())).await;
            let refused = reopened(&path).await.err();
            assert_eq!(refused, Some(StoreError::NotWhole { revision: Revision(5) }));
        }
        // Two rows that are swapped.
        let rows = rows_of(&whole).await;
        edit(&whole, &path, |table| {
            drop(table.insert(rows[0].0.as_slice(), rows[1].1.as_slice()).unwrap());
            drop(table.insert(rows[1].0.as_slice(), rows[0].1.as_slice()).unwrap());
        })
        .await;
        assert_eq!(reopened(&path).await.err(), Some(StoreError::NotWhole { revision: Revision(5) }));
    });
}

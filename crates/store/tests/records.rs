//! Encrypted records: the same contract over both engines, a golden row, and what a hostile engine may not do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_core::{Ambient, PartitionId, Record, RecordKey, Revision, Store, StoreError, Timestamp, Write};
use holdfast_crypto::SecretBytes;
use holdfast_store::{
    Batch, EmbeddedEngine, Engine, MemoryEngine, Row, RowName, RowVisitor, RowWrite, SealedStore, SharedEngine,
};
use proptest::prelude::*;

/// Same time, same bytes: what a golden file needs.
struct Fixed;
impl Ambient for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
}

/// An engine that the test can reach behind the store's back.
#[derive(Clone, Default)]
struct Shared(Arc<MemoryEngine>);

#[async_trait]
impl Engine for Shared {
    async fn read(&self, name: &RowName) -> Result<Option<Row>, StoreError> {
        self.0.read(name).await
    }
    async fn scan(
        &self,
        kind: u8,
        visit: &mut (dyn FnMut(Row) -> Result<(), StoreError> + Send),
    ) -> Result<(), StoreError> {
        self.0.scan(kind, visit).await
    }
    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.0.commit(batch).await
    }
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.0.revision().await
    }
    async fn scan_all(&self, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        self.0.scan_all(visit).await
    }
    async fn head(&self) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        self.0.head().await
    }
}

impl Shared {
    async fn rows(&self, kind: u8) -> Vec<Row> {
        let mut rows = Vec::new();
        self.scan(kind, &mut |row| {
            rows.push(row);
            Ok(())
        })
        .await
        .unwrap();
        rows
    }

    /// Puts `sealed` in the place of the row `name`, at the version that is there.
    async fn replace(&self, row: &Row, sealed: Vec<u8>) {
        let remove = RowWrite { name: row.name, expected_version: row.version, sealed: None };
        self.commit(Batch::of(vec![remove])).await.unwrap();
        for version in 0..row.version {
            let write = RowWrite { name: row.name, expected_version: version, sealed: Some(sealed.clone()) };
            self.commit(Batch::of(vec![write])).await.unwrap();
        }
    }
}

fn shared(directory: &std::path::Path) -> SharedEngine {
    let key = SecretBytes::copy_of(&[2; 32]);
    SharedEngine::new(directory, &key, PartitionId::from_bytes([1; 16]), "state", "test").unwrap()
}

async fn sealed<E: Engine>(engine: E, instance: u8, key: u8) -> SealedStore<E> {
    let key = SecretBytes::copy_of(&[key; 32]);
    SealedStore::open(engine, PartitionId::from_bytes([instance; 16]), &key, Arc::new(Fixed), false).await.unwrap()
}

fn write(kind: u8, id: &str, expected_version: u64, value: Option<&[u8]>) -> Write {
    Write { key: RecordKey::new(kind, id), expected_version, value: value.map(<[u8]>::to_vec) }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// What every engine must do.
async fn contract<E: Engine>(engine: E) {
    let store = sealed(engine, 1, 2).await;
    store.keep(vec![write(1, "a", 0, Some(b"one")), write(2, "a", 0, Some(b"other kind"))]).await.unwrap();
    let read = |id: &str| {
        let key = RecordKey::new(1, id);
        let store = &store;
        async move { store.read(&key).await.unwrap() }
    };
    let found = read("a").await.unwrap();
    assert_eq!((found.version, found.value.as_slice()), (1, b"one".as_slice()));
    assert_eq!(store.keep(vec![write(1, "a", 0, Some(b"x"))]).await, Err(StoreError::Conflict), "it exists");
    assert_eq!(store.keep(vec![write(1, "b", 3, Some(b"x"))]).await, Err(StoreError::Conflict), "it does not exist");
    let half = vec![write(1, "new", 0, Some(b"x")), write(1, "a", 7, Some(b"x"))];
    assert_eq!(store.keep(half).await, Err(StoreError::Conflict));
    assert_eq!(read("new").await, None, "a batch is all or nothing");
    store.keep(vec![write(1, "a", 1, Some(b"two"))]).await.unwrap();
    assert_eq!(read("a").await.unwrap().version, 2);
    let mut seen: Vec<Record> = Vec::new();
    store.scan(1, &mut |record| seen.push(record)).await.unwrap();
    assert_eq!(seen.iter().map(|record| record.key.id.as_slice()).collect::<Vec<_>>(), [b"a".as_slice()]);
    store.keep(vec![write(1, "a", 2, None)]).await.unwrap();
    assert_eq!(read("a").await, None);
}

#[test]
fn memory_engine_keeps_the_contract() {
    block_on(contract(MemoryEngine::default()));
}

#[test]
fn embedded_engine_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    block_on(contract(EmbeddedEngine::open(&directory.path().join("records.redb")).unwrap()));
}

#[test]
fn shared_engine_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    block_on(contract(shared(directory.path())));
}

/// Several kinds are read as they are at one moment, however many commits come between.
#[test]
fn a_look_at_several_kinds_is_of_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(sealed(shared(directory.path()), 1, 2).await);
        store.keep(vec![write(1, "a", 0, Some(b"0")), write(2, "a", 0, Some(b"0"))]).await.unwrap();
        let writer = Arc::clone(&store);
        let writing = tokio::spawn(async move {
            for number in 1..100_u64 {
                let value = number.to_string().into_bytes();
                let both = vec![write(1, "a", number, Some(&value)), write(2, "a", number, Some(&value))];
                writer.keep(both).await.unwrap();
            }
        });
        let (mut looks, mut changed) = (0, 0);
        while !writing.is_finished() || looks == 0 {
            let mut seen = Vec::new();
            store.scan_at_once(&[1, 2], &mut |record| seen.push((record.key.kind, record.value))).await.unwrap();
            let [(1, one), (2, other)] = seen.as_slice() else { panic!("one of each kind: {seen:?}") };
            assert_eq!(one, other);
            // The control: one look after the other sees commits that come between.
            let mut later = Vec::new();
            store.scan(2, &mut |record| later.push(record.value)).await.unwrap();
            (looks, changed) = (looks + 1, changed + usize::from(later != [one.clone()]));
        }
        writing.await.unwrap();
        assert!(changed > 0, "in {looks} looks");
    });
}

#[test]
fn processes_that_share_rows_see_each_others_commits_and_one_of_rivals_wins() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (shared(directory.path()), shared(directory.path()));
    assert_eq!(one.stamp().unwrap(), None);
    block_on(async {
        let (first, second) = (sealed(one.clone(), 1, 2).await, sealed(other.clone(), 1, 2).await);
        first.keep(vec![write(1, "a", 0, Some(b"kept"))]).await.unwrap();
        assert_eq!(second.read(&RecordKey::new(1, "a")).await.unwrap().unwrap().value, b"kept");
        assert_eq!(other.generation().unwrap(), 1);
        let before = other.stamp().unwrap();
        let (left, right) = tokio::join!(
            first.keep(vec![write(1, "a", 1, Some(b"left"))]),
            second.keep(vec![write(1, "a", 1, Some(b"right"))])
        );
        assert!(left.is_ok() != right.is_ok(), "exactly one wins");
        assert_ne!(other.stamp().unwrap(), before);
    });
    let file = std::fs::read(directory.path().join("rows.shared")).unwrap();
    assert!(!file.windows(4).any(|window| window == b"kept"), "no record is readable in the file");
}

#[test]
fn embedded_engine_remembers_and_is_locked_while_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.redb");
    block_on(async {
        let store = sealed(EmbeddedEngine::open(&path).unwrap(), 1, 2).await;
        store.keep(vec![write(1, "a", 0, Some(b"kept"))]).await.unwrap();
        assert!(EmbeddedEngine::open(&path).is_err(), "one process at a time");
        drop(store);
        // The writer thread closes the file after its queue.
        let engine = loop {
            match EmbeddedEngine::open(&path) {
                Ok(engine) => break engine,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        let found = sealed(engine, 1, 2).await.read(&RecordKey::new(1, "a")).await.unwrap().unwrap();
        assert_eq!(found.value, b"kept");
    });
    let file = std::fs::read(&path).unwrap();
    assert!(!file.windows(4).any(|window| window == b"kept"), "no record is readable in the file");
}

#[test]
fn many_waiters_share_a_commit_and_one_of_rivals_wins() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let engine = EmbeddedEngine::open(&directory.path().join("records.redb")).unwrap();
        let store = Arc::new(sealed(engine, 1, 2).await);
        let rivals: Vec<_> = (0..64)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.keep(vec![write(1, "one", 0, Some(b"x"))]).await })
            })
            .collect();
        let mut won = 0;
        for rival in rivals {
            match rival.await.unwrap() {
                Ok(()) => won += 1,
                Err(error) => assert_eq!(error, StoreError::Conflict),
            }
        }
        assert_eq!(won, 1);
    });
}

#[test]
fn golden_row_is_written_and_read_alike() {
    let golden = include_bytes!("golden/record-v1.bin");
    block_on(async {
        let engine = Shared::default();
        let store = sealed(engine.clone(), 1, 2).await;
        store.keep(vec![write(1, "kek", 0, Some(b"the value"))]).await.unwrap();
        let row = engine.rows(1).await.remove(0);
        assert_eq!([row.name.as_slice(), &row.sealed].concat(), golden);
        let record = store.read(&RecordKey::new(1, "kek")).await.unwrap().unwrap();
        assert_eq!((record.value.as_slice(), record.version), (b"the value".as_slice(), 1));
    });
}

#[test]
fn every_flipped_bit_of_a_row_is_refused() {
    block_on(async {
        let engine = Shared::default();
        let store = sealed(engine.clone(), 1, 2).await;
        store.keep(vec![write(1, "a", 0, Some(b"value"))]).await.unwrap();
        let row = engine.rows(1).await.remove(0);
        for bit in 0..row.sealed.len() * 8 {
            let mut changed = row.sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            engine.replace(&row, changed).await;
            assert_eq!(store.read(&RecordKey::new(1, "a")).await, Err(StoreError::Damaged), "bit {bit}");
            assert_eq!(store.scan(1, &mut |_| ()).await, Err(StoreError::Damaged), "bit {bit}");
        }
        for len in 0..row.sealed.len() {
            engine.replace(&row, row.sealed[..len].to_vec()).await;
            assert_eq!(store.read(&RecordKey::new(1, "a")).await, Err(StoreError::Damaged), "{len} bytes");
        }
    });
}

#[test]
fn swapped_replayed_and_foreign_rows_are_refused() {
    block_on(async {
        let engine = Shared::default();
        let store = sealed(engine.clone(), 1, 2).await;
        store.keep(vec![write(1, "a", 0, Some(b"one")), write(1, "b", 0, Some(b"two"))]).await.unwrap();
        let rows = engine.rows(1).await;
        engine.replace(&rows[0], rows[1].sealed.clone()).await;
        assert_eq!(store.scan(1, &mut |_| ()).await, Err(StoreError::Damaged), "another record's ciphertext");
        engine.replace(&rows[0], rows[0].sealed.clone()).await;
        store.keep(vec![write(1, "a", 1, Some(b"newer")), write(1, "b", 1, Some(b"newer"))]).await.unwrap();
        let newer = engine.rows(1).await.remove(0);
        engine.replace(&newer, rows[0].sealed.clone()).await;
        assert_eq!(store.scan(1, &mut |_| ()).await, Err(StoreError::Damaged), "an older version at a newer place");
        let opened = |instance, key, accept_loss| {
            let (engine, key) = (engine.clone(), SecretBytes::copy_of(&[key; 32]));
            async move {
                let instance = PartitionId::from_bytes([instance; 16]);
                SealedStore::open(engine, instance, &key, Arc::new(Fixed), accept_loss).await
            }
        };
        // The row that was put in behind the store's back, another instance, another key.
        for (instance, key) in [(1, 2), (9, 2), (1, 9)] {
            let refused = opened(instance, key, false).await.err();
            assert!(matches!(refused, Some(StoreError::NotWhole { .. })), "{refused:?}");
        }
        let other_instance = opened(9, 2, true).await.unwrap();
        assert_eq!(other_instance.scan(1, &mut |_| ()).await, Err(StoreError::Damaged));
        let other_key = opened(1, 9, true).await.unwrap();
        assert_eq!(other_key.read(&RecordKey::new(1, "a")).await, Ok(None), "names are not found without the key");
    });
}

proptest! {
    #[test]
    fn any_record_comes_back(kind in 1_u8..10, id in proptest::collection::vec(any::<u8>(), 0..300), value in proptest::collection::vec(any::<u8>(), 0..5000)) {
        block_on(async {
            let engine = Shared::default();
            let store = sealed(engine.clone(), 1, 2).await;
            let key = RecordKey { kind, id: id.clone() };
            store.keep(vec![Write { key: key.clone(), expected_version: 0, value: Some(value.clone()) }]).await.unwrap();
            let found = store.read(&key).await.unwrap().unwrap();
            assert_eq!(found.value, value);
            let mut scanned = None;
            store.scan(kind, &mut |record| scanned = Some(record)).await.unwrap();
            assert_eq!(scanned.unwrap().key, key);
            if id.len() > 7 {
                let row = engine.rows(kind).await.remove(0);
                assert!(!row.sealed.windows(id.len()).any(|window| window == id), "the id is not readable");
            }
        });
    }
}

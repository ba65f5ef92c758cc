//! The index of storage: rows and event of a change are one, and the file belongs to one instance.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use common::{Fixed, event};
use holdfast_core::{AuditEvent, Index, IndexChange, IndexWrite, PartitionId, Revision, StoreError};
use holdfast_crypto::SecretBytes;
use holdfast_store::{EmbeddedIndex, IndexCopy, IndexOwner};

fn open(path: &Path, instance: u8, key: u8, founding: Option<&AuditEvent>) -> Result<EmbeddedIndex, StoreError> {
    let instance = PartitionId::from_bytes([instance; 16]);
    EmbeddedIndex::open(path, instance, &SecretBytes::copy_of(&[key; 32]), Arc::new(Fixed), founding)
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
    let writes = vec![IndexWrite::put(key.into(), Vec::new())];
    index.commit(Box::new(move |_| Ok(IndexChange { writes, event }))).await
}

#[tokio::test]
async fn a_change_and_its_event_are_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.redb");
    let index = open(&path, 7, 3, None).unwrap();
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
    let index = open(&path, 7, 3, None).unwrap();
    assert_eq!((index.outbox().waiting(), put(&index, "e", Some(event("PutObject", "4"))).await), (2, Ok(Revision(3))));
}

#[tokio::test]
async fn an_index_is_one_instances() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.redb");
    assert_eq!(IndexOwner::of(&path), Ok(IndexOwner::Missing));
    let founding = event("PutObject", "founding");
    drop(open(&path, 7, 3, Some(&founding)).unwrap());
    assert_eq!(closed(&path), IndexOwner::Instance(PartitionId::from_bytes([7; 16])));
    assert!(matches!(open(&path, 8, 3, None), Err(StoreError::Failed(_))), "another instance");
    assert_eq!(open(&path, 7, 4, None).err(), Some(StoreError::Damaged), "its events, under another key");
    let index = open(&path, 7, 3, Some(&founding)).unwrap();
    assert_eq!(index.outbox().waiting(), 1, "it is founded once");
    assert!(IndexCopy::open(&path).is_err(), "nobody else has it open");
    drop(index);
    closed(&path);
    assert_eq!(IndexCopy::open(&path).unwrap().snapshot().unwrap().get(b"a"), Ok(None));
}

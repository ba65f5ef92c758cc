//! A file made by hand, whose rows do not stand in the order of their names.

use std::{fs, sync::Arc};

use holdfast_core::{PartitionId, RecordKey, Store, Write};
use holdfast_crypto::SecretBytes;

use super::*;
use crate::{sealed::SealedStore, twins::Fixed};

/// Puts `other` in the place of `one` wherever it stands in the file, and the other way round.
fn swap(bytes: &mut [u8], one: &[u8], other: &[u8]) {
    let mut swapped = 0;
    for at in 0..=bytes.len() - one.len() {
        let found = &bytes[at..at + one.len()];
        let new = if found == one { other } else { one };
        if found == one || found == other {
            bytes[at..at + one.len()].copy_from_slice(new);
            swapped += 1;
        }
    }
    assert!(swapped >= 2);
}

async fn store(engine: EmbeddedEngine) -> Result<SealedStore<EmbeddedEngine>, StoreError> {
    let (instance, key) = (PartitionId::from_bytes([1; 16]), SecretBytes::copy_of(&[2; 32]));
    SealedStore::open(engine, instance, &key, Arc::new(Fixed), false).await
}

/// Without a look at the sums of pages, which have no key: whoever writes a page by hand has the right one for it.
fn unchecked(path: &Path) -> EmbeddedEngine {
    loop {
        if let Ok(database) = open_or_make(path, CACHE_BYTES, false) {
            return EmbeddedEngine::over(|database| DatabaseFile::new(path, database, CACHE_BYTES), database).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

async fn rows(engine: &EmbeddedEngine) -> Vec<Row> {
    let mut rows = Vec::new();
    engine
        .scan(1, &mut |row| {
            rows.push(row);
            Ok(())
        })
        .await
        .unwrap();
    rows
}

#[tokio::test]
async fn a_store_whose_rows_are_out_of_order_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.redb");
    let made = store(EmbeddedEngine::open(&path).unwrap()).await.unwrap();
    let write = |id: &str| Write { key: RecordKey::new(1, id), expected_version: 0, value: Some(b"x".to_vec()) };
    made.keep(vec![write("a"), write("b"), write("c")]).await.unwrap();
    drop(made);
    let found = rows(&unchecked(&path)).await;
    let kept = |row: &Row| [row.version.to_be_bytes().as_slice(), &row.sealed].concat();
    drop(store(unchecked(&path)).await.expect("control: it is whole"));
    while fs::File::open(&path).unwrap().try_lock().is_err() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let mut bytes = fs::read(&path).unwrap();
    swap(&mut bytes, &found[0].name, &found[1].name);
    swap(&mut bytes, &kept(&found[0]), &kept(&found[1]));
    fs::write(&path, bytes).unwrap();
    let engine = unchecked(&path);
    // What it comes to: all rows are there, and have the right sum, and one of them is not found by its name.
    let missing = [engine.read(&found[0].name).await, engine.read(&found[1].name).await];
    assert!(missing.contains(&Ok(None)), "control: it is hidden: {missing:?}");
    let mut all = 0;
    let table = engine.file.begin_read().unwrap().open_table(ROWS).unwrap();
    for entry in table.iter().unwrap() {
        all += usize::from(entry.is_ok());
    }
    assert_eq!(all, 3, "control: and is there for who reads all of them");
    drop(table);
    assert_eq!(store(engine).await.err(), Some(StoreError::Disordered));
}

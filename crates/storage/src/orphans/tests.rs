use super::*;
use crate::{record::StreamRecord, twins};

fn id(byte: u8) -> Id {
    Id([byte; 16])
}

fn blobs(bytes: impl IntoIterator<Item = u8>) -> HashSet<BlobId> {
    bytes.into_iter().map(|byte| id(byte).blob()).collect()
}

fn stream(id: Id) -> StreamRecord {
    StreamRecord { id, size: 1, inline: false }
}

async fn put(storage: &Storage, row: Vec<u8>, value: Vec<u8>) {
    storage.write(vec![IndexWrite::put(row, value)]).await.unwrap();
}

/// Time stands at 1970 in the twins.
fn since(millis_ago: i64) -> Vec<u8> {
    (-millis_ago).to_be_bytes().to_vec()
}

#[tokio::test]
async fn an_orphan_is_what_no_row_names_and_is_set_aside_at_first() {
    let (storage, names, _) = twins::storage();
    storage.begin_with_blobs().await.unwrap();
    names.0.lock().unwrap().extend(blobs(1..=4));
    let part = PartRecord { v: 1, number: 1, stream: stream(id(1)), etag: String::new(), modified: 0, checksum: None };
    put(&storage, rows::part(id(9), 1), record::encode(&part, &[])).await;
    let manifest = vec![ManifestPart { number: 1, stream: stream(id(2)), checksum: None }];
    put(&storage, rows::manifest(id(8)), serde_json::to_vec(&manifest).unwrap()).await;
    put(&storage, rows::garbage(id(3)), Vec::new()).await;
    assert_eq!(storage.look_for_orphans().await, Ok(Orphans { aside: 1, new: 1, deleted: 0 }));
    assert_eq!(storage.look_for_orphans().await, Ok(Orphans { aside: 1, new: 0, deleted: 0 }));
    assert_eq!(*names.0.lock().unwrap(), blobs(1..=4), "nothing is deleted");
    assert_eq!(storage.aside().unwrap(), HashMap::from([(id(4).blob(), 0)]));
}

#[tokio::test]
async fn an_orphan_is_deleted_a_month_after_it_was_set_aside() {
    let (storage, names, _) = twins::storage();
    storage.begin_with_blobs().await.unwrap();
    names.0.lock().unwrap().extend(blobs(1..=2));
    put(&storage, rows::orphan(id(1)), since(ASIDE_MILLIS)).await;
    put(&storage, rows::orphan(id(2)), since(ASIDE_MILLIS - 1)).await;
    assert_eq!(storage.look_for_orphans().await, Ok(Orphans { aside: 1, new: 0, deleted: 1 }));
    assert_eq!(*names.0.lock().unwrap(), blobs([2]));
    assert_eq!(storage.aside().unwrap().len(), 1);
}

#[tokio::test]
async fn what_has_a_name_again_is_aside_no_more() {
    let (storage, names, _) = twins::storage();
    storage.begin_with_blobs().await.unwrap();
    names.0.lock().unwrap().extend(blobs([1]));
    put(&storage, rows::orphan(id(1)), since(2 * ASIDE_MILLIS)).await;
    put(&storage, rows::orphan(id(5)), since(0)).await;
    put(&storage, rows::garbage(id(1)), Vec::new()).await;
    assert_eq!(storage.look_for_orphans().await, Ok(Orphans::default()));
    assert!(storage.aside().unwrap().is_empty());
    assert_eq!(*names.0.lock().unwrap(), blobs([1]));
}

use std::sync::atomic::Ordering;

use super::*;
use holdfast_core::BlobId;

use crate::{
    record::{PartRecord, StreamRecord},
    twins,
};

fn id(byte: u8) -> Id {
    Id([byte; 16])
}

fn blobs(bytes: impl IntoIterator<Item = u8>) -> HashSet<BlobId> {
    bytes.into_iter().map(|byte| id(byte).blob()).collect()
}

fn stream(id: Id) -> StreamRecord {
    StreamRecord { id, size: 1, inline: false }
}

fn part(number: u16, stream_id: Id) -> Vec<u8> {
    let part = PartRecord { v: 1, number, stream: stream(stream_id), etag: String::new(), modified: 0, checksum: None };
    record::encode(&part, &[])
}

fn manifest(streams: &[Id]) -> Vec<u8> {
    let parts = streams.iter().map(|id| ManifestPart { number: 1, stream: stream(*id), checksum: None });
    serde_json::to_vec(&parts.collect::<Vec<_>>()).unwrap()
}

async fn put(storage: &Storage, row: Vec<u8>, value: Vec<u8>) {
    storage.write(vec![IndexWrite::put(row, value)]).await.unwrap();
}

fn rows_like(storage: &Storage, prefix: &[u8]) -> usize {
    let mut count = 0;
    let counted = storage.look_whole(|view| {
        view.scan(prefix, prefix, |_, _| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })
    });
    counted.unwrap();
    count
}

#[tokio::test]
async fn garbage_goes_with_its_last_reader_and_not_before() {
    let (storage, names, _) = twins::storage();
    names.0.lock().unwrap().extend(blobs(1..=4));
    let hold = |object| storage.readers.find(|| Ok(object), |object| *object).unwrap().1;
    let (one, two, other) = (hold(id(101)), hold(id(101)), hold(id(103)));
    put(&storage, rows::garbage(id(1)), id(101).0.to_vec()).await;
    put(&storage, rows::garbage(id(2)), id(102).0.to_vec()).await;
    // Rows from before they named an object, and parts that nobody can read.
    put(&storage, rows::garbage(id(3)), Vec::new()).await;
    assert_eq!(storage.collect().await, 2, "whoever reads something else");
    assert_eq!(*names.0.lock().unwrap(), blobs([1, 4]));
    drop(one);
    assert_eq!(storage.collect().await, 0, "one of two readers is still there");
    drop(two);
    storage.collectable().await;
    assert_eq!(storage.collect().await, 1);
    assert_eq!(rows_like(&storage, &rows::all_garbage()), 0, "all are struck off");
    assert_eq!(*names.0.lock().unwrap(), blobs([4]), "what is no garbage stays");
    drop(other);
}

#[tokio::test]
async fn a_discarded_manifest_goes_with_its_last_reader() {
    let (storage, names, _) = twins::storage();
    names.0.lock().unwrap().extend(blobs(1..=3));
    put(&storage, rows::manifest(id(101)), manifest(&[id(1), id(2)])).await;
    put(&storage, rows::waste(id(101)), record::encode(&Waste::Manifest { v: 1 }, &[])).await;
    let (_, hold) = storage.readers.find(|| Ok(id(101)), |object| *object).unwrap();
    assert_eq!(storage.collect().await, 0);
    assert_eq!(storage.referenced().unwrap(), blobs([1, 2]), "the manifest still names its blobs");
    drop(hold);
    assert_eq!(storage.collect().await, 2);
    assert_eq!(*names.0.lock().unwrap(), blobs([3]));
    assert_eq!(rows_like(&storage, &rows::all_manifests()) + rows_like(&storage, &rows::all_waste()), 0);
}

#[tokio::test]
async fn parts_that_became_a_part_of_the_object_stay_and_others_go_in_small_commits() {
    const PARTS: u16 = 1000;
    let (storage, names, index) = twins::storage();
    let stream_of = |number: u16| Id(std::array::from_fn(|at| number.to_be_bytes()[at % 2]));
    names.0.lock().unwrap().extend((1..=PARTS).map(|number| stream_of(number).blob()));
    for number in 1..=PARTS {
        put(&storage, rows::part(id(201), number), part(number, stream_of(number))).await;
    }
    let chosen = [stream_of(2), stream_of(500)];
    put(&storage, rows::manifest(id(101)), manifest(&chosen)).await;
    let waste = Waste::Parts { v: 1, object: Some(id(101)) };
    put(&storage, rows::waste(id(201)), record::encode(&waste, &[])).await;
    index.reset();
    assert_eq!(storage.collect().await, usize::from(PARTS) - 2);
    assert_eq!(*names.0.lock().unwrap(), chosen.map(Id::blob).into());
    assert_eq!(rows_like(&storage, &rows::all_parts()) + rows_like(&storage, &rows::all_waste()), 0);
    assert!(index.most().2 <= ROWS_A_COMMIT && index.commits.load(Ordering::SeqCst) > 3);
    // The object is discarded and gone before its upload is cleared away: nothing is left of either.
    put(&storage, rows::part(id(202), 1), part(1, stream_of(2))).await;
    put(&storage, rows::waste(id(202)), record::encode(&waste, &[])).await;
    put(&storage, rows::waste(id(101)), record::encode(&Waste::Manifest { v: 1 }, &[])).await;
    storage.collect().await;
    assert_eq!(*names.0.lock().unwrap(), HashSet::new());
}

#[tokio::test]
async fn uploads_of_a_deleted_bucket_end_in_small_commits() {
    const UPLOADS: u16 = 600;
    let (storage, names, index) = twins::storage();
    names.0.lock().unwrap().extend(blobs([1]));
    let template = r#"{"v":1,"id":"ID","key":"k","object":"00112233445566778899aabbccddeeff","initiated":0,"encryption":{"mode":"off"},"content":{}}"#;
    for number in 0..UPLOADS {
        let upload = Id(std::array::from_fn(|at| number.to_be_bytes()[at % 2]));
        let json = template.replace("ID", &upload.to_string());
        let upload_record: UploadRecord = serde_json::from_str(&json).unwrap();
        put(&storage, rows::upload(id(100), "k", upload), record::encode(&upload_record, &[])).await;
    }
    let first = Id([0; 16]);
    put(&storage, rows::part(first, 1), part(1, id(1))).await;
    put(&storage, rows::waste(id(100)), record::encode(&Waste::Uploads { v: 1 }, &[])).await;
    index.reset();
    storage.collect().await;
    storage.collect().await;
    assert_eq!(rows_like(&storage, &rows::all_uploads()) + rows_like(&storage, &rows::all_waste()), 0);
    assert!(index.most().2 <= 2 * ROWS_A_COMMIT);
    assert_eq!(*names.0.lock().unwrap(), HashSet::new(), "its part is gone");
}

#[tokio::test]
async fn answers_of_long_ago_are_forgotten() {
    let (storage, _, index) = twins::storage();
    // Time stands at 1970 here.
    let day = i64::try_from(COMPLETED_AGE.as_millis()).unwrap();
    for (number, completed) in [(1, -day - 1), (2, -day), (3, 0)] {
        let json = format!(r#"{{"v":1,"completed":{completed},"parts":"","etag":""}}"#);
        let done: CompletedRecord = serde_json::from_str(&json).unwrap();
        put(&storage, rows::completed(id(100), "k", id(number)), record::encode(&done, &[])).await;
    }
    index.reset();
    assert_eq!(storage.forget_completed().await, Ok(1));
    assert_eq!(rows_like(&storage, &rows::all_completed()), 2);
    assert_eq!(storage.forget_completed().await, Ok(0));
}

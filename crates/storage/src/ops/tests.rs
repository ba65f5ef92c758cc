//! How much a commit looks at and writes: everybody else waits for it, so it must not depend on how much there is.

use std::sync::{Arc, atomic::Ordering};

use holdfast_core::Action;
use http::{Extensions, HeaderMap, Method, Uri};
use s3s::{S3Request, dto};

use super::{bucket, complete, delete, multipart, put, tagging, versions};
use crate::{
    Storage,
    event::About,
    grant::Upkeep,
    record::{self, PartRecord, StreamRecord},
    rows, twins,
};

/// Rows that any commit of these operations reads and writes at most.
const ROWS_MAX: usize = 8;
const BODY_BYTES: usize = 20_000;
const VERSIONS: usize = 120;

fn request<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: Method::GET,
        uri: Uri::from_static("/"),
        headers: HeaderMap::new(),
        extensions: Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}

async fn versioning(storage: &Arc<Storage>, status: &'static str) {
    let input = dto::PutBucketVersioningInput {
        bucket: "b".into(),
        versioning_configuration: dto::VersioningConfiguration {
            status: Some(dto::BucketVersioningStatus::from_static(status)),
            ..Default::default()
        },
        checksum_algorithm: None,
        content_md5: None,
        expected_bucket_owner: None,
        mfa: None,
    };
    let call = twins::call("PutBucketVersioning", Action::BucketUpdate, None);
    versions::put_bucket_versioning(storage, &call, request(input)).await.unwrap();
}

async fn put_object(storage: &Arc<Storage>, key: &str) -> Option<String> {
    let body = s3s::Body::from(vec![7; BODY_BYTES]);
    let input = dto::PutObjectInput {
        bucket: "b".into(),
        key: key.into(),
        body: Some(dto::StreamingBlob::from(body)),
        ..Default::default()
    };
    let call = twins::call("PutObject", Action::ObjectWrite, Some(key));
    put::put_object(storage, &call, request(input)).await.unwrap().output.version_id
}

async fn created() -> (Arc<Storage>, Arc<twins::Counted>) {
    let (storage, _, index) = twins::storage();
    let call = twins::call("CreateBucket", Action::BucketCreate, None);
    bucket::create_bucket(&storage, &call, "").await.unwrap();
    (storage, index)
}

fn small(index: &twins::Counted, what: &str) {
    let (read, bytes, written) = index.most();
    assert!(
        read <= ROWS_MAX && written <= ROWS_MAX && bytes <= ROWS_MAX * (BODY_BYTES + 1000),
        "{what}: {read} rows, {bytes} bytes read, {written} rows written"
    );
}

async fn delete_all(storage: &Arc<Storage>, versions: &[String]) {
    let object = |version: &String| dto::ObjectIdentifier {
        key: "k".into(),
        version_id: Some(version.clone()),
        e_tag: None,
        last_modified_time: None,
        size: None,
    };
    let delete = dto::Delete { objects: versions.iter().map(object).collect(), quiet: None };
    let input = dto::DeleteObjectsInput {
        bucket: "b".into(),
        delete,
        bypass_governance_retention: None,
        checksum_algorithm: None,
        expected_bucket_owner: None,
        mfa: None,
        request_payer: None,
    };
    let call = twins::call("DeleteObjects", Action::ObjectDelete, None);
    let answer = delete::delete_objects(storage, &call, request(input)).await.unwrap().output;
    assert_eq!((answer.deleted.unwrap().len(), answer.errors), (versions.len(), None));
}

#[tokio::test]
async fn a_commit_looks_at_a_few_rows_however_many_versions_there_are() {
    let (storage, index) = created().await;
    put_object(&storage, "k").await;
    versioning(&storage, "Enabled").await;
    let mut ids = Vec::new();
    for _ in 0..VERSIONS {
        ids.push(put_object(&storage, "k").await.unwrap());
    }
    small(&index, "a new version");
    // Time stands here: that there is an order does not rest on the clock.
    assert!(ids.is_sorted());
    index.reset();
    versioning(&storage, "Suspended").await;
    assert_eq!(put_object(&storage, "k").await, None);
    small(&index, "a null version that replaces one among many");
    versioning(&storage, "Enabled").await;
    ids.push(put_object(&storage, "k").await.unwrap());
    index.reset();
    let input = dto::PutObjectTaggingInput {
        bucket: "b".into(),
        key: "k".into(),
        version_id: Some("null".into()),
        tagging: dto::Tagging { tag_set: Vec::new() },
        checksum_algorithm: None,
        content_md5: None,
        expected_bucket_owner: None,
        request_payer: None,
    };
    let call = twins::call("PutObjectTagging", Action::ObjectUpdate, Some("k"));
    tagging::put_object_tagging(&storage, &call, request(input)).await.unwrap();
    small(&index, "tags of a version among many");
    index.reset();
    let middle = ids.split_off(VERSIONS / 2);
    delete_all(&storage, &middle.into_iter().rev().collect::<Vec<_>>()).await;
    delete_all(&storage, &["null".into()]).await;
    delete_all(&storage, &ids).await;
    small(&index, "a version among many is deleted");
    assert!(index.commits.load(Ordering::SeqCst) > VERSIONS, "one decision a version");
    let reader = twins::call("GetObject", Action::ObjectRead, Some("k"));
    let found = storage.look(|view| {
        let bucket = view.grant(&reader)?;
        Ok((bucket.current("k")?.is_some(), versions::is_empty(&bucket)?))
    });
    assert_eq!(found.unwrap(), (false, true));
}

#[tokio::test]
async fn versions_from_before_ids_carried_their_places_are_found_in_one_walk() {
    let (storage, index) = created().await;
    versioning(&storage, "Enabled").await;
    for _ in 0..VERSIONS {
        put_object(&storage, "k").await;
    }
    // As a service of before wrote them: ids at random.
    let ids: Vec<String> = (0..VERSIONS).map(|number| format!("{number:032x}")).collect();
    let rename = ids.clone();
    let writer = twins::call("PutObject", Action::ObjectWrite, Some("k"));
    let renamed = storage.transact(move |view| {
        let bucket = view.grant(&writer)?;
        let (mut writes, mut names) = (Vec::new(), rename.into_iter());
        bucket.versions_of("k", None, |seq, value| {
            let mut found = crate::view::decode_object(value)?;
            found.record.version = names.next().unwrap_or_default();
            let value = record::encode(&found.record, &found.inline);
            if writes.is_empty() {
                writes.push(holdfast_core::IndexWrite::put(rows::object(bucket.id, "k"), value.clone()));
            }
            writes.push(holdfast_core::IndexWrite::put(rows::version(bucket.id, "k", seq), value));
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        Ok(((), bucket.change(Action::ObjectWrite, About::default(), writes)?))
    });
    renamed.await.unwrap();
    let reader = twins::call("GetObject", Action::ObjectRead, Some("k"));
    let read = |version: &str| {
        storage.look(|view| view.grant(&reader)?.object("k", Some(version)).map(|found| found.record.version))
    };
    assert_eq!(read(&ids[77]).unwrap(), ids[77]);
    index.reset();
    delete_all(&storage, &ids).await;
    small(&index, "a version of before is deleted");
    assert!(storage.look(|view| versions::is_empty(&view.grant(&reader)?)).unwrap());
}

#[tokio::test]
async fn uploads_of_many_parts_end_in_a_few_rows() {
    const PARTS: u16 = 500;
    let (storage, index) = created().await;
    let create = || {
        let input = dto::CreateMultipartUploadInput { bucket: "b".into(), key: "m".into(), ..Default::default() };
        let call = twins::call("CreateMultipartUpload", Action::ObjectWrite, Some("m"));
        let storage = Arc::clone(&storage);
        async move { multipart::create_multipart_upload(&storage, &call, request(input)).await }
    };
    let mut ended = Vec::new();
    for _ in 0..2 {
        let id = create().await.unwrap().output.upload_id.unwrap();
        for number in 1..=PARTS {
            let stream = record::Id(std::array::from_fn(|at| number.to_be_bytes()[at % 2]));
            let stream = StreamRecord { id: stream, size: 5 * 1024 * 1024, inline: false };
            let etag = format!("{number:032x}");
            let part = PartRecord { v: 1, number, stream, etag, modified: 0, checksum: None };
            let row = rows::part(record::Id::parse(&id).unwrap(), number);
            let write = holdfast_core::IndexWrite::put(row, record::encode(&part, &[]));
            storage.keep(move |_| Upkeep::begin()?.change(vec![write])).await.unwrap();
        }
        ended.push(id);
    }
    index.reset();
    let parts = (1..=PARTS).map(|number| dto::CompletedPart {
        part_number: Some(i32::from(number)),
        e_tag: Some(dto::ETag::Strong(format!("{number:032x}"))),
        ..Default::default()
    });
    let input = dto::CompleteMultipartUploadInput {
        bucket: "b".into(),
        key: "m".into(),
        upload_id: ended[0].clone(),
        multipart_upload: Some(dto::CompletedMultipartUpload { parts: Some(parts.collect()) }),
        ..Default::default()
    };
    let call = twins::call("CompleteMultipartUpload", Action::ObjectWrite, Some("m"));
    complete::complete_multipart_upload(&storage, &call, request(input)).await.unwrap();
    let input = dto::AbortMultipartUploadInput {
        bucket: "b".into(),
        key: "m".into(),
        upload_id: ended[1].clone(),
        ..Default::default()
    };
    let call = twins::call("AbortMultipartUpload", Action::ObjectDelete, Some("m"));
    multipart::abort_multipart_upload(&storage, &call, request(input)).await.unwrap();
    small(&index, "an upload of many parts ends");
    index.reset();
    put_object(&storage, "m").await;
    small(&index, "an object of many parts is replaced");
}

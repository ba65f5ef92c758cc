//! Flipped bits of a storage service: its index, its blobs, and everything beside them. What is asked for is asked at its own door.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_core::{DekWrapAlgorithm, KekError, Timestamp, WrappedDek};
use holdfast_crypto::{SealingKey, SecretBytes};
use holdfast_storage::AccessKey;
use holdfast_wire::sigv4::{self, Scope, SigningSecret};
use http::{HeaderValue, Method};

use super::*;
use crate::{
    ambient::OsAmbient,
    history::flips::{self, Tells},
};

const KEK: &str = "test:kek";
const ACCESS_KEY: &str = "AKIAFLIPPEDBITS00000";
const SECRET: &str = "a secret that is long enough for everybody";
const REGION: &str = "us-east-1";

/// A key service in memory.
struct Keks(SealingKey);

#[async_trait]
impl KekService for Keks {
    async fn wrap(&self, kek: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError> {
        let ambient: &dyn Ambient = &OsAmbient;
        let wrapped = self.0.seal(ambient.random(), b"", dek.expose()).unwrap();
        Ok(WrappedDek { kek_url: kek.into(), algorithm: DekWrapAlgorithm::A256Kw, wrapped })
    }
    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        self.0.open(b"", &wrapped.wrapped).map_err(|_| KekError::NotFound(wrapped.kek_url.clone()))
    }
    async fn newest_version(&self, kek: &str) -> Result<String, KekError> {
        Ok(kek.into())
    }
    fn knows(&self, _: &str) -> bool {
        true
    }
    fn without_version(&self, kek: &str) -> String {
        kek.into()
    }
}

async fn setup() -> StorageSetup {
    StorageSetup {
        audit: Audit::default(),
        role: StorageConfig {
            default_kek: KEK.into(),
            region: REGION.into(),
            audit_reads: true,
            ..StorageConfig::default()
        },
        keys: keys(),
        audit_readers: Vec::new(),
        keks: Arc::new(Keks(SealingKey::new(&SecretBytes::copy_of(&[5; 32])).unwrap())),
        cloud_blobs: None,
        kek_poll: Duration::from_secs(3600),
        disk_reserve: Some(0),
        socket: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        metrics_socket: None,
        tls: None,
        connections: ConnectionLimits::default(),
        metrics: metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle(),
    }
}

fn keys() -> Vec<AccessKey> {
    vec![AccessKey { id: ACCESS_KEY.into(), secret: SECRET.into(), principal: "somebody".into() }]
}

struct Live {
    running: Running,
    door: holdfast_storage::S3,
    stop: watch::Sender<bool>,
}

impl Live {
    async fn open(place: &Path) -> Result<Self, Fault> {
        let instance = open(&place.join("data"), &place.join("silicon"), MayFound::WhereNew, false)?;
        let (stop, stopped) = watch::channel(false);
        let running = start(instance, setup().await, stopped).await?;
        let door = holdfast_storage::service(&running.role, keys());
        Ok(Self { running, door, stop })
    }

    /// Status and body; `None`: it breaks off.
    async fn ask(&self, method: Method, path: &str, body: &[u8]) -> (StatusCode, Option<Bytes>) {
        let request = Request::builder().method(method).uri(format!("http://localhost{path}")).body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        let hash = holdfast_wire::hex::hex(&holdfast_crypto::kdf::sha256(&[body]));
        parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        parts.headers.insert("x-amz-content-sha256", HeaderValue::try_from(hash).unwrap());
        let secret = SigningSecret::new(SecretBytes::copy_of(SECRET.as_bytes()));
        let now: Timestamp = OsAmbient.now();
        let scope = Scope { region: REGION, service: "s3" };
        sigv4::sign(&mut parts, body, scope, ACCESS_KEY, &secret, now).unwrap();
        let length = HeaderValue::from(body.len());
        parts.headers.insert(header::CONTENT_LENGTH, length);
        let request = Request::from_parts(parts, Bytes::copy_from_slice(body));
        let response = self.door.call(request.map(Into::into), "0123456789ABCDEF", None).await;
        let status = response.status();
        let read = response.into_body().boxed_unsync().collect().await;
        (status, read.ok().map(http_body_util::Collected::to_bytes))
    }

    async fn close(self) {
        let _ = self.stop.send(true);
        drop(self.door);
        self.running.ended().await;
    }
}

/// Small enough for the index; a blob of its own; several chunks.
fn objects() -> [(&'static str, Vec<u8>); 3] {
    let long = |length: usize| (0..length).map(|at| (at * 7 + at / 251) as u8).collect();
    [("/bucket/small", b"small".to_vec()), ("/bucket/blob", long(20_000)), ("/bucket/long", long(150_000))]
}

async fn opened(place: &Path) -> Result<Tells, String> {
    let live = Live::open(place).await.map_err(|fault| fault.to_string())?;
    let mut told = Tells::default();
    for (path, _) in objects() {
        let (status, body) = live.ask(Method::GET, path, b"").await;
        // One that is not there, though nobody deleted it, is told by a look at all rows.
        let missing = status == StatusCode::NOT_FOUND;
        told.content.insert(path.into(), body.filter(|_| status == StatusCode::OK).map(|body| body.to_vec()));
        told.complains |= missing;
    }
    let (status, list) = live.ask(Method::GET, "/bucket", b"").await;
    let names = list.filter(|_| status == StatusCode::OK).map(|list| {
        let text = String::from_utf8_lossy(&list).into_owned();
        text.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next()).collect::<Vec<_>>().join(" ").into_bytes()
    });
    told.content.insert("list".into(), names);
    let looked = live.running.role.look_at_rows("CheckIndexAtStart").await;
    let missed = told.complains && looked == Some(0);
    told.complains = looked != Some(0);
    let _ = live.ask(Method::PUT, "/bucket/after", b"after").await;
    live.close().await;
    if missed { Err("AN OBJECT IS MISSING, AND NOBODY TELLS".to_owned()) } else { Ok(told) }
        .inspect_err(|why| panic!("{why}"))
}

async fn flip_bits(part: u64) {
    let made = flips::place();
    let live = Live::open(made.path()).await.unwrap();
    assert_eq!(live.ask(Method::PUT, "/bucket", b"").await.0, StatusCode::OK);
    for (path, content) in objects() {
        let (status, told) = live.ask(Method::PUT, path, &content).await;
        assert_eq!(status, StatusCode::OK, "{told:?}");
    }
    live.close().await;
    flips::flips("storage", part, 175, made.path(), opened).await;
}

#[tokio::test]
async fn a_flipped_bit_of_a_storage_service_is_told() {
    flip_bits(10).await;
}

#[tokio::test]
async fn a_flipped_bit_of_a_storage_service_is_told_2() {
    flip_bits(11).await;
}

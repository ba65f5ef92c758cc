//! Rotation: DEKs are moved to the newest version of their KEK. Data is never encrypted anew.
//!
//! Each step is small, durable and can be repeated: an interrupted run is simply run again.

use std::{collections::BTreeMap, ops::ControlFlow, sync::atomic::Ordering};

use holdfast_core::{Action, IndexWrite, KekError};

use crate::{
    Storage,
    error::{Error, Result, damaged, from_kek},
    event::About,
    ops::encrypt::replace_encryption,
    record::{self, BucketRecord, ContainerDek, Encryption, Envelope, ObjectRecord, UploadRecord},
    rows,
    view::record_of,
};

/// How many DEKs one version of a KEK wraps.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KekUse {
    /// Container DEKs.
    pub containers: u64,
    /// Objects with a DEK of their own, all versions and uploads under way counted.
    pub objects: u64,
}

/// What a run did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RewrapReport {
    /// DEKs looked at.
    pub seen: u64,
    /// DEKs moved.
    pub moved: u64,
    /// DEKs that could not be moved, and why.
    pub failed: Vec<String>,
}

impl Storage {
    fn all_buckets(&self) -> Result<Vec<BucketRecord>> {
        self.look_whole(|view| {
            let mut buckets = Vec::new();
            view.scan(&rows::buckets(), &rows::buckets(), |_, value| {
                let decoded: Option<(BucketRecord, _)> = record::decode(value);
                buckets.push(decoded.ok_or_else(|| damaged("a bucket", "unreadable"))?.0);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(buckets)
        })
    }

    /// What depends on each version of each KEK: by URL with version.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn kek_uses(&self) -> Result<BTreeMap<String, KekUse>, String> {
        let mut uses: BTreeMap<String, KekUse> = BTreeMap::new();
        let count = || -> Result<()> {
            for bucket in self.all_buckets()? {
                for dek in bucket.deks {
                    uses.entry(dek.envelope.kek_url).or_default().containers += 1;
                }
            }
            self.look_whole(|view| {
                let mut object = |encryption: &Encryption| {
                    if let Encryption::Object { envelope, .. } = encryption {
                        uses.entry(envelope.kek_url.clone()).or_default().objects += 1;
                    }
                };
                view.scan(&rows::all_objects(), &rows::all_objects(), |_, value| {
                    let record = record_of(value)?;
                    // A listed version is counted in the list.
                    if !record.listed {
                        object(&record.encryption);
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                view.scan(&rows::all_versions(), &rows::all_versions(), |_, value| {
                    object(&record_of(value)?.encryption);
                    Ok(ControlFlow::Continue(()))
                })?;
                view.scan(&rows::all_uploads(), &rows::all_uploads(), |_, value| {
                    if let Some((upload, _)) = record::decode::<UploadRecord>(value) {
                        object(&upload.encryption);
                    }
                    Ok(ControlFlow::Continue(()))
                })
            })
        }();
        count.map_err(|error| error.to_string())?;
        Ok(uses)
    }

    /// Moves every container DEK whose KEK has a newer version. `progress` hears of each bucket.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn rewrap_containers(
        &self,
        mut progress: impl FnMut(&str, &RewrapReport),
    ) -> Result<RewrapReport, String> {
        let mut report = RewrapReport::default();
        let mut newest = Newest::default();
        for bucket in self.all_buckets().map_err(|error| error.to_string())? {
            for dek in &bucket.deks {
                report.seen += 1;
                let moved = match newest.of(self, &dek.kek).await {
                    Ok(url) if url == dek.envelope.kek_url => continue,
                    Ok(_) => self.rewrap_container(&bucket, dek).await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                match moved {
                    Ok(()) => report.moved += 1,
                    Err(why) => report.failed.push(format!("container {}: {why}", bucket.name)),
                }
            }
            progress(&bucket.name, &report);
        }
        Ok(report)
    }

    async fn rewrap_container(&self, bucket: &BucketRecord, dek: &ContainerDek) -> Result<()> {
        let envelope = self.rewrapped(&dek.envelope, &dek.kek).await?;
        let at = self.ambient.now();
        let (name, bucket, id, old) = (bucket.name.clone(), bucket.id, dek.id, dek.envelope.clone());
        self.transact_if(move |view| {
            let Some(bucket) = view.grant_itself(("RewrapBucketDataKey", at), &name, bucket)? else { return Ok(None) };
            let mut record = bucket.record();
            let Some(dek) = record.deks.iter_mut().find(|dek| dek.id == id && dek.envelope == old) else {
                return Ok(None);
            };
            let about = About::kek(&envelope.kek_url).with("from_kek", &old.kek_url).with("data_key", id);
            dek.envelope = envelope;
            let row = IndexWrite::put(rows::bucket(&name), record::encode(&record, &[]));
            Ok(Some(((), bucket.change(Action::DataKeyRewrap, about, vec![row])?)))
        })
        .await
        .map(drop)
    }

    /// The DEK in `envelope` under the newest version of `kek`. Asks the KEK itself, not the cache.
    async fn rewrapped(&self, envelope: &Envelope, kek: &str) -> Result<Envelope> {
        let wrapped = envelope.to_wrapped().ok_or_else(|| damaged("an envelope", kek))?;
        let dek = self.deks.keks().unwrap(&wrapped).await.map_err(from_kek)?;
        let wrapped = self.deks.keks().wrap(kek, &dek).await.map_err(from_kek)?;
        Ok(Envelope::new(&wrapped, self.now_millis()))
    }

    /// Moves the DEKs of objects that have their own, in one bucket and under a prefix.
    ///
    /// # Errors
    /// If the bucket does not exist or the index cannot be read.
    pub async fn rewrap_objects(
        &self,
        bucket: &str,
        prefix: &str,
        mut progress: impl FnMut(&str, &RewrapReport),
    ) -> Result<RewrapReport, String> {
        let text = |error: Error| error.to_string();
        let bucket = self.look_whole(|view| view.find_bucket(bucket)?.ok_or(Error::NoSuchBucket)).map_err(text)?;
        let mut report = RewrapReport::default();
        let mut newest = Newest::default();
        for listed in [false, true] {
            let all = if listed { rows::versions(bucket.id) } else { rows::objects(bucket.id) };
            let all = [all, prefix.as_bytes().to_vec()].concat();
            let mut from = all.clone();
            loop {
                let batch = self.envelopes_from(&from, &all, listed).map_err(text)?;
                let Some((last, _)) = batch.last() else { break };
                from = [last.as_slice(), &[0]].concat();
                for (_, object) in batch {
                    self.rewrap_object(&bucket, object, &mut newest, &mut report).await;
                }
                progress(&bucket.name, &report);
            }
        }
        Ok(report)
    }

    /// Up to a hundred objects with a DEK of their own, with their rows.
    fn envelopes_from(&self, from: &[u8], all: &[u8], listed: bool) -> Result<Vec<(Vec<u8>, ObjectRecord)>> {
        const BATCH: usize = 100;
        self.look_whole(|view| {
            let mut batch = Vec::new();
            view.scan(from, all, |row, value| {
                let object = record_of(value)?;
                if object.listed == listed && matches!(object.encryption, Encryption::Object { .. }) {
                    batch.push((row.to_vec(), object));
                }
                Ok(if batch.len() == BATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(batch)
        })
    }

    async fn rewrap_object(
        &self,
        bucket: &BucketRecord,
        object: ObjectRecord,
        newest: &mut Newest,
        report: &mut RewrapReport,
    ) {
        let Encryption::Object { dek, kek, envelope } = &object.encryption else { return };
        report.seen += 1;
        let url = match newest.of(self, kek).await {
            Ok(url) => url,
            Err(error) => return report.failed.push(format!("{}: {error}", object.key)),
        };
        if url == envelope.kek_url {
            return;
        }
        let moved = match self.rewrapped(envelope, kek).await {
            Ok(envelope) => {
                let encryption = Encryption::Object { dek: *dek, kek: kek.clone(), envelope };
                let at = self.ambient.now();
                let (name, id, known) = (bucket.name.clone(), bucket.id, object.clone());
                let replace = self.transact_if(move |view| {
                    let Some(bucket) = view.grant_itself(("RewrapObjectDataKey", at), &name, id)? else {
                        return Ok(None);
                    };
                    let change = replace_encryption(bucket, Action::DataKeyRewrap, &known, &encryption)?;
                    Ok(change.map(|change| ((), change)))
                });
                replace.await.map(|replaced| replaced.is_some())
            }
            Err(error) => Err(error),
        };
        match moved {
            Ok(true) => report.moved += 1,
            // Replaced or deleted meanwhile.
            Ok(false) => {}
            Err(error) => report.failed.push(format!("{}: {error}", object.key)),
        }
    }

    /// Follows rotation of KEKs that were named without a version, and learns whether the key service is there.
    pub async fn follow_rotation(&self) {
        let reachable = match self.deks.keks().newest_version(&self.config.default_kek).await {
            Ok(_) => true,
            Err(error) => error.is_refusal(),
        };
        if self.keks_reachable.swap(reachable, Ordering::AcqRel) != reachable {
            tracing::warn!(reachable, "the key service's state changed");
        }
        if !reachable || self.config.encryption_off {
            return;
        }
        let trouble = &self.efforts.rotation;
        match self.rewrap_containers(|_, _| ()).await {
            Ok(report) => {
                if trouble.ends() {
                    tracing::info!("rotation is followed again");
                }
                if report.moved > 0 {
                    tracing::info!(moved = report.moved, "container DEKs follow their KEKs");
                }
                report.failed.iter().for_each(|why| tracing::debug!(why, "a container DEK stays where it is"));
            }
            Err(error) if trouble.begins() => tracing::warn!(error, "rotation could not be followed"),
            Err(_) => {}
        }
    }
}

/// Newest versions, asked for once in a run.
#[derive(Default)]
struct Newest(BTreeMap<String, Result<String, KekError>>);

impl Newest {
    async fn of(&mut self, storage: &Storage, kek: &str) -> Result<String, KekError> {
        if let Some(known) = self.0.get(kek) {
            return known.clone();
        }
        let found = storage.deks.keks().newest_version(kek).await;
        self.0.insert(kek.to_owned(), found.clone());
        found
    }
}

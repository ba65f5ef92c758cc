//! Whether the rows of the index are those that the commits left: no one dropped, put back, or planted. It is looked at set by set (the rows of
//! a bucket are one), each in a view of its own, so that it holds nobody up; and by demand, since it reads every row.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use futures::{StreamExt, stream};
use holdfast_core::{AuditEvent, SetCheck, StoreError};

use crate::{
    Storage,
    error::{Error, Result},
    event,
    format::{HEADER_BYTES, Suite, read_header},
    record::{BucketRecord, Encryption, Id, ObjectRecord, StreamRecord},
    rows,
    view::{decode_manifest, record_of},
};

/// Records whose blobs are looked at together.
const RECORDS_A_PAGE: usize = 256;
/// Headers of blobs read at a time.
const BLOBS_AT_ONCE: usize = 8;
/// Blobs that are told by name.
const BLOBS_TOLD_MAX: usize = 16;

/// What is bad beside sets of rows.
const ALL_SETS: &str = "what is kept of all sets";
const ORDER: &str = "the order of the rows";
/// Sets that the event of a start tells by name.
const SETS_TOLD_MAX: usize = 16;

/// What a look at one set of rows has found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SetReport {
    /// What an operator calls it: the name of the bucket, its id if it has none any more, or what the rows are.
    pub set: String,
    /// `whole`; `changed`: rows are missing, older, or more than there should be; `forged`: some are not ours.
    pub verdict: &'static str,
    /// Rows that are ours.
    pub rows: u64,
    /// Rows that there should be; none if what is kept of them is not ours either.
    pub expected: Option<u64>,
    /// Rows that are not ours.
    pub forged: u64,
    /// The first of them.
    pub names: Vec<String>,
    /// Blobs whose beginning was looked at.
    pub blobs: u64,
    /// Blobs that are missing, or are not what the index says.
    pub bad_blobs: u64,
    /// The first of them.
    pub bad_blob_names: Vec<String>,
}

impl SetReport {
    fn of(set: String, check: SetCheck) -> Self {
        let verdict = match (check.whole, check.forged) {
            (true, _) => "whole",
            (false, 0) => "changed",
            (false, _) => "forged",
        };
        Self {
            set,
            verdict,
            rows: check.found,
            expected: check.expected,
            forged: check.forged,
            names: check.names.iter().map(|row| rows::described(row)).collect(),
            ..Self::default()
        }
    }

    /// Whether nothing is wrong with it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.verdict == "whole" && self.bad_blobs == 0
    }
}

/// What a verification has found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct VerifyReport {
    /// Sets looked at.
    pub sets: u64,
    /// Rows in them.
    pub rows: u64,
    /// What is not whole, by name.
    pub bad: Vec<String>,
}

impl Storage {
    /// Looks at every set of rows, or at those of one bucket, and at the beginning of each blob if `blobs`. `progress` hears of each set.
    ///
    /// # Errors
    /// If the index cannot be read, another verification is under way, or there is no such bucket.
    pub async fn verify<H: Future<Output = ()>>(
        self: &Arc<Self>,
        bucket: Option<&str>,
        blobs: bool,
        mut progress: impl FnMut(SetReport) -> H,
    ) -> Result<VerifyReport, String> {
        let Ok(_turn) = self.verifying.try_lock() else { return Err("another verification is under way".into()) };
        let text = |error: Error| error.reason();
        let names = self.index.sets().map_err(|error| error.to_string())?;
        let buckets = self.names_of_buckets();
        let mut report = VerifyReport::default();
        if !names.whole {
            report.bad.push(ALL_SETS.into());
        }
        if !self.rows_are_in_order().await.map_err(|error| error.to_string())? {
            report.bad.push(ORDER.into());
        }
        let wanted = bucket.map(|bucket| self.set_called(bucket).ok_or("there is no such bucket")).transpose()?;
        for set in names.names.into_iter().chain(wanted.clone()) {
            if wanted.as_ref().is_some_and(|wanted| (wanted != &set) || report.sets > 0) {
                continue;
            }
            let mut found = self.check(set.clone(), &buckets).await.map_err(text)?;
            if let (true, Some(id)) = (blobs, rows::bucket_of_set(&set)) {
                self.check_blobs(id, &mut found).await;
            }
            report.sets += 1;
            report.rows += found.rows;
            if !found.is_whole() {
                tracing::error!(
                    set = found.set,
                    verdict = found.verdict,
                    "rows of the index are not what was committed"
                );
                report.bad.push(found.set.clone());
            }
            progress(found).await;
        }
        Ok(report)
    }

    /// Looks at every set of rows once, as a service does in the background of each start, and when a failed index was opened anew: what somebody
    /// evens out over several stops is not even in between. Tells the log of what is not whole, by name, as an event of this name. Gives how many
    /// sets are not; `None` if that could not be found out.
    pub async fn look_at_rows(&self, operation: &'static str) -> Option<usize> {
        let names = self.index.sets().inspect_err(|error| tracing::warn!(%error, "the index is not looked at")).ok()?;
        let buckets = self.names_of_buckets();
        let mut bad: Vec<String> = (!names.whole).then(|| ALL_SETS.into()).into_iter().collect();
        match self.rows_are_in_order().await {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!("the rows of the index do not stand in the order of their names: restore its file");
                bad.push(ORDER.into());
            }
            Err(error) => {
                tracing::warn!(%error, "not all rows of the index were looked at");
                return None;
            }
        }
        for set in names.names {
            match self.check(set, &buckets).await {
                Ok(found) if found.is_whole() => {}
                Ok(found) => {
                    tracing::error!(
                        set = found.set,
                        verdict = found.verdict,
                        "rows of the index are not what was committed: see `holdfast storage verify`"
                    );
                    bad.push(found.set);
                }
                Err(error) => {
                    tracing::warn!(%error, "not all rows of the index were looked at");
                    return None;
                }
            }
        }
        metrics::gauge!("holdfast_storage_sets_not_whole").set(bad.len() as f64);
        if !bad.is_empty() {
            let told: Vec<&str> = bad.iter().take(SETS_TOLD_MAX).map(String::as_str).collect();
            let context = vec![("sets", bad.len().to_string()), ("bad", told.join(", "))];
            let why = "rows of the index are not what was committed".to_owned();
            if let Err(error) = self.record_own(operation, context, Some(why)).await {
                tracing::error!(%error, "that rows are not what was committed could not be told to the audit log");
            }
        }
        Some(bad.len())
    }

    /// Nobody waits any more for what is looked at.
    pub fn stop_looking(&self) {
        self.index.stop_checks();
    }

    /// Takes a set for what it is from now on, and removes the rows in it that are not ours. `uid`: of the operator who says so.
    ///
    /// # Errors
    /// If the index cannot be read or written, or there is no such set.
    pub async fn accept_set(&self, called: &str, uid: u32) -> Result<SetReport, String> {
        let set = self.set_called(called).ok_or("there is no such set of rows")?;
        let (called, at) = (called.to_owned(), self.ambient.now());
        let name = called.clone();
        let told = move |check: &SetCheck| accepted_event(at, &name, check, uid);
        let check = self.index.accept(set, Box::new(told)).await.map_err(|error| error.to_string())?;
        Ok(SetReport::of(called, check))
    }

    /// Whether all rows are those that were committed.
    pub(crate) async fn rows_are_whole(&self) -> Result<bool> {
        let names = self.index.sets().map_err(crate::error::from_store)?;
        let mut whole = names.whole && self.rows_are_in_order().await.map_err(crate::error::from_store)?;
        for set in names.names {
            whole &= self.check(set, &HashMap::new()).await?.is_whole();
        }
        Ok(whole)
    }

    async fn rows_are_in_order(&self) -> std::result::Result<bool, StoreError> {
        let index = Arc::clone(&self.index);
        let checked = tokio::task::spawn_blocking(move || index.check_order()).await;
        checked.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn check(&self, set: Vec<u8>, buckets: &HashMap<Id, String>) -> Result<SetReport> {
        let called = match rows::bucket_of_set(&set) {
            Some(id) => buckets.get(&id).cloned().unwrap_or_else(|| id.to_string()),
            None => rows::kind_of_set(&set),
        };
        let index = Arc::clone(&self.index);
        let check = tokio::task::spawn_blocking(move || index.check(&set)).await;
        let check = check.map_err(|_| Error::Internal("the check was not carried out"))?;
        Ok(SetReport::of(called, check.map_err(crate::error::from_store)?))
    }

    /// As far as the rows of buckets are ours.
    fn names_of_buckets(&self) -> HashMap<Id, String> {
        let mut names = HashMap::new();
        let looked = self.look_whole(|view| {
            view.scan(&rows::buckets(), &rows::buckets(), |_, value| {
                let decoded: Option<(BucketRecord, _)> = crate::record::decode(value);
                names.extend(decoded.map(|(bucket, _)| (bucket.id, bucket.name)));
                Ok(ControlFlow::Continue(()))
            })
        });
        if let Err(error) = looked {
            tracing::warn!(%error, "not all buckets are known by their names");
        }
        names
    }

    fn set_called(&self, called: &str) -> Option<Vec<u8>> {
        let of_bucket = self.look_whole(|view| view.find_bucket(called)).ok().flatten().map(|bucket| bucket.id);
        let id = of_bucket.or_else(|| Id::parse(called)).map(|id| id.0.to_vec());
        id.or_else(|| rows::kind_called(called))
    }

    /// Looks at the beginning of each blob that the objects of a bucket lie in. Uploads under way are left out.
    async fn check_blobs(&self, bucket: Id, report: &mut SetReport) {
        for all in [rows::objects(bucket), rows::versions(bucket)] {
            let mut from = all.clone();
            loop {
                let page = self.streams_from(bucket, &from, &all);
                let (last, streams) = match page {
                    Ok(page) => page,
                    // A row that is refused is in the verdict already.
                    Err(error) => {
                        tracing::warn!(%error, "not all blobs of a bucket are looked at");
                        break;
                    }
                };
                let checks = stream::iter(streams).map(|(stream, expected)| self.is_bad(stream, expected));
                let bad: Vec<Option<String>> = checks.buffer_unordered(BLOBS_AT_ONCE).collect().await;
                report.blobs += bad.len() as u64;
                for name in bad.into_iter().flatten() {
                    report.bad_blobs += 1;
                    if report.bad_blob_names.len() < BLOBS_TOLD_MAX {
                        report.bad_blob_names.push(name);
                    }
                }
                let Some(last) = last else { break };
                from = [last.as_slice(), &[0]].concat();
            }
        }
    }

    /// The streams of a page of records.
    fn streams_from(&self, bucket: Id, from: &[u8], all: &[u8]) -> Result<Page> {
        self.look_whole(|view| {
            let (mut last, mut records) = (None, Vec::new());
            view.scan(from, all, |row, value| {
                last = Some(row.to_vec());
                let record = record_of(value)?;
                // A listed version is looked at in the list.
                if row.first() == rows::versions(bucket).first() || !record.listed {
                    records.push(record);
                }
                let full = records.len() == RECORDS_A_PAGE;
                Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            let mut streams = Vec::new();
            for record in &records {
                let mut add = |stream: &StreamRecord| {
                    streams.extend((!stream.inline).then(|| (stream.id, Expected::of(bucket, record))));
                };
                record.stream.iter().for_each(&mut add);
                if record.parts > 0 {
                    let manifest = view.find_manifest(record.object)?.unwrap_or_default();
                    decode_manifest(&manifest).unwrap_or_default().iter().for_each(|part| add(&part.stream));
                }
            }
            Ok((last.filter(|_| records.len() == RECORDS_A_PAGE), streams))
        })
    }

    /// The name of a blob that is missing, or is not what the index says.
    async fn is_bad(&self, stream: Id, expected: Expected) -> Option<String> {
        let header = self.blobs.read(stream.blob(), 0, HEADER_BYTES).await.ok();
        let good = header.as_deref().and_then(read_header).is_some_and(|header| {
            let identity = header.identity;
            (header.suite, identity.bucket, identity.object, identity.stream)
                == (expected.suite, expected.bucket, expected.object, stream)
                && expected.dek.is_none_or(|dek| dek == identity.dek)
        });
        (!good).then(|| stream.to_string())
    }
}

/// The last row of a page, if there may be more, and its streams with what their headers must say.
type Page = (Option<Vec<u8>>, Vec<(Id, Expected)>);

/// What the header of a blob must say.
#[derive(Clone, Copy)]
struct Expected {
    suite: Suite,
    dek: Option<Id>,
    bucket: Id,
    object: Id,
}

impl Expected {
    fn of(bucket: Id, record: &ObjectRecord) -> Self {
        let suite = if record.encryption == Encryption::Off { Suite::Plain } else { Suite::Aes256Gcm };
        Self { suite, dek: record.dek(), bucket, object: record.object }
    }
}

fn accepted_event(at: holdfast_core::Timestamp, called: &str, check: &SetCheck, uid: u32) -> AuditEvent {
    let expected = check.expected.map_or_else(|| "unknown".to_owned(), |rows| rows.to_string());
    let context = vec![
        ("set", called.to_owned()),
        ("rows", check.found.to_string()),
        ("expected_rows", expected),
        ("forged_rows_removed", check.forged.to_string()),
        ("uid", uid.to_string()),
    ];
    event::of_service(at, "AcceptIndexRows", context, None)
}

//! What every role is asked over its admin socket: a backup, which is sent there as it is made; and that old segments of its log be handed over.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::{AuditSink, Store};
use holdfast_crypto::SecretBytes;
use holdfast_store::{Copies, audit::AuditLog};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::Mutex, time::timeout};

use super::{Source, Taken};
use crate::{
    control::Progress,
    fault::Fault,
    hand_over::HandOvers,
    history::{Watermark, event},
    instance::Opened,
};

/// What one line of the answer carries: a third more as text.
const CHUNK_BYTES: usize = 192 * 1024;
/// Whoever asks and then takes nothing for so long has gone: as long as a copy lives, the store's file grows.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What every role is asked in the same way.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub(crate) enum Asked {
    /// A backup, as it is now.
    Backup,
    /// The segments of the log up to this one are in an archive: their last line, and where.
    HandOver { segment: u64, line: u64, hash: String, archive: String },
}

/// Backups of one service, and hand-overs of its log.
pub(crate) struct Backups {
    source: Source,
    audit: Arc<AuditLog>,
    hand_overs: HandOvers,
    /// One at a time.
    turn: Mutex<()>,
}

impl Opened {
    /// Backups of this instance, as long as it runs.
    pub(crate) fn backups(
        &self,
        role: &'static str,
        (records, index): (Copies, Option<Copies>),
        store: &Arc<dyn Store>,
        audit: &Arc<AuditLog>,
    ) -> Arc<Backups> {
        let (data_dir, instance, ambient) = (self.data_dir.clone(), self.instance, Arc::clone(&self.ambient));
        let key = SecretBytes::copy_of(self.secrets.database_key.expose());
        let watermark = move || Watermark::open(&data_dir, instance, &key, "records", &ambient);
        let hand_overs = HandOvers::new(audit, store, Box::new(watermark), &self.ambient);
        let source = Source {
            role,
            instance: self.instance,
            database_key: SecretBytes::copy_of(self.secrets.database_key.expose()),
            data_dir: self.data_dir.clone(),
            ambient: Arc::clone(&self.ambient),
            records,
            index,
            audit: Some(Arc::clone(audit)),
        };
        Arc::new(Backups { source, audit: Arc::clone(audit), hand_overs, turn: Mutex::default() })
    }
}

impl Backups {
    /// Does what is asked.
    pub(crate) async fn carry_out(self: Arc<Self>, asked: Asked, uid: u32, lines: Progress) -> Value {
        match asked {
            Asked::Backup => self.send(uid, lines).await,
            Asked::HandOver { segment, line, hash, archive } => {
                self.hand_overs.carry_out(segment, (line, &hash), archive, uid).await
            }
        }
    }

    /// Sends a backup to whoever asks, and tells the log of it first.
    async fn send(self: Arc<Self>, uid: u32, lines: Progress) -> Value {
        let Ok(_turn) = self.turn.try_lock() else {
            return json!({"done": false, "error": "another backup is being taken"});
        };
        let sent = Arc::clone(&self).take_and_send(uid, lines).await;
        sent.unwrap_or_else(|fault| json!({"done": false, "error": fault.to_string()}))
    }

    async fn take_and_send(self: Arc<Self>, uid: u32, lines: Progress) -> Result<Value, Fault> {
        let taking = Arc::clone(&self);
        let taken = tokio::task::spawn_blocking(move || taking.source.begin()).await.map_err(Fault::new)??;
        let context = vec![
            ("backup", taken.head.id.clone()),
            ("revision", taken.head.revision.to_string()),
            ("uid", uid.to_string()),
        ];
        let what = "a backup was asked for over the admin socket".to_owned();
        let told = event(self.source.ambient.as_ref(), "TakeBackup", None, what, context);
        // Before anything leaves.
        self.audit.append(told).await.map_err(Fault::new)?;
        tokio::task::spawn_blocking(move || send(&taken, lines)).await.map_err(Fault::new)?
    }
}

fn send(taken: &Taken, lines: Progress) -> Result<Value, Fault> {
    let mut chunks = Chunks { lines, waiting: Vec::with_capacity(CHUNK_BYTES), runtime: Handle::current() };
    taken.write(&mut chunks)?;
    chunks.flush().map_err(Fault::new)?;
    Ok(json!({"done": true, "id": taken.head.id}))
}

/// Bytes as lines of the answer.
struct Chunks {
    lines: Progress,
    waiting: Vec<u8>,
    runtime: Handle,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..taken]);
        if self.waiting.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let line = json!({"bytes": STANDARD.encode(&self.waiting)});
        self.waiting.clear();
        match self.runtime.block_on(timeout(STALL_MAX, self.lines.send(line))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked for the backup has gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "whoever asked for the backup takes nothing of it")),
        }
    }
}

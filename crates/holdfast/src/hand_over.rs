//! Old segments of a log, handed over to an archive: the service that writes the log says whether they may go, and writes the line that tells of it.
//!
//! The command has them in the archive, verified, before it asks; it takes them away afterwards (`docs/formats/audit-log.md`).

use std::sync::Arc;

use holdfast_core::{Ambient, AuditLine, AuditSink, Store, StoreError};
use holdfast_store::audit::{AuditLog, Checkpoint, HAND_OVER};
use serde_json::{Value, json};

use crate::{
    fault::Fault,
    history::{Mark, Watermark, event},
};

type ReadWatermark = Box<dyn Fn() -> Result<Watermark, StoreError> + Send + Sync>;

/// Hand-overs of one log.
pub(crate) struct HandOvers {
    audit: Arc<AuditLog>,
    store: Arc<dyn Store>,
    watermark: ReadWatermark,
    ambient: Arc<dyn Ambient>,
}

impl HandOvers {
    /// `store` has the mark of the log, `watermark` the other one.
    pub(crate) fn new(
        audit: &Arc<AuditLog>,
        store: &Arc<dyn Store>,
        watermark: ReadWatermark,
        ambient: &Arc<dyn Ambient>,
    ) -> Self {
        Self { audit: Arc::clone(audit), store: Arc::clone(store), watermark, ambient: Arc::clone(ambient) }
    }

    /// Tells the log, if the segments up to this one may go.
    pub(crate) async fn carry_out(&self, segment: u64, (line, hash): (u64, &str), archive: String, uid: u32) -> Value {
        match self.tell(segment, (line, hash), archive, uid).await {
            Ok(()) => json!({"done": true, "line": self.audit.latest().seq}),
            Err(fault) => json!({"done": false, "error": fault.to_string()}),
        }
    }

    async fn tell(&self, segment: u64, (line, hash): (u64, &str), archive: String, uid: u32) -> Result<(), Fault> {
        let unhexed = holdfast_wire::hex::unhex(hash).and_then(|hash| hash.try_into().ok());
        let end = AuditLine { seq: line, hash: unhexed.ok_or_else(|| Fault::usage("that is no hash"))? };
        self.marks_are_behind(line).await?;
        let audit = Arc::clone(&self.audit);
        let may = tokio::task::spawn_blocking(move || audit.may_hand_over(segment, end)).await;
        may.map_err(Fault::new)?.map_err(Fault::new)?;
        let context = vec![
            ("segment", segment.to_string()),
            ("line", line.to_string()),
            ("hash", hash.to_ascii_lowercase()),
            ("archive", archive),
            ("uid", uid.to_string()),
        ];
        let what = "segments of the log were handed over to an archive".to_owned();
        self.audit.append(event(self.ambient.as_ref(), HAND_OVER, None, what, context)).await.map_err(Fault::new)
    }

    /// Each start reads the log from where it is known to have come to: that stays.
    async fn marks_are_behind(&self, line: u64) -> Result<(), Fault> {
        let mark = Mark::read(self.store.as_ref()).await?.reached;
        let watermark = (self.watermark)().map_err(Fault::new)?.reached;
        let is_behind = |reached: Option<Checkpoint>| reached.is_some_and(|reached| reached.seq > line);
        if is_behind(mark) && is_behind(watermark) {
            return Ok(());
        }
        Err(Fault::unavailable("how far the log has come is not marked behind that line yet: try again in two minutes"))
    }
}

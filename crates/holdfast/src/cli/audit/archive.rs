//! `holdfast audit archive`

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use holdfast_store::audit::{Anchor, Archiver, list_segments, parse_line, read_lines, remove_handed_over};
use holdfast_wire::hex::hex;

use super::LogArg;
use crate::{backup::live::Asked, control, fault::Fault, instance};

/// The one that is written, and one before it.
const KEEP_MIN: usize = 2;
/// A log that is written is signed each second.
const SIGNED_WAIT_MAX: Duration = Duration::from_secs(15);
const SIGNED_WAIT_STEP: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct ArchiveArgs {
    #[command(flatten)]
    log: LogArg,
    /// Directory of the archive; the log names it to those who ask for what is there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// How many of the newest segments stay
    #[arg(long, default_value_t = KEEP_MIN, value_parser = at_least_two)]
    keep: usize,
}

/// Waits until a line is signed: it is a checkpoint, or one stands behind it.
async fn until_signed(log: &Path, line: u64) -> Result<(), Fault> {
    let failed = |error| Fault::file(log, error);
    let begun = Instant::now();
    while begun.elapsed() < SIGNED_WAIT_MAX {
        let segments = list_segments(log).map_err(failed)?;
        let mut signed = 0;
        // The log may have gone on in a new one meanwhile.
        for (_, path) in &segments[segments.len().saturating_sub(2)..] {
            read_lines(path, |content, _, whole| {
                let parsed = parse_line(content).ok().filter(|parsed| whole && parsed.kind == "checkpoint");
                signed = parsed.map_or(signed, |parsed| parsed.seq);
                true
            })
            .map_err(failed)?;
        }
        if signed >= line {
            return Ok(());
        }
        tokio::time::sleep(SIGNED_WAIT_STEP).await;
    }
    Err(Fault::unavailable("the line that tells of the hand-over is not signed: nothing was taken away")
        .hint("run it again"))
}

fn at_least_two(text: &str) -> Result<usize, String> {
    let count: usize = text.parse().map_err(|_| "it is a number".to_owned())?;
    if count >= KEEP_MIN {
        Ok(count)
    } else {
        Err(format!("at least {KEEP_MIN} stay: the service writes to the last one"))
    }
}

impl ArchiveArgs {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let log = self.log.log.canonicalize().map_err(|error| Fault::file(&self.log.log, error))?;
        instance::create_private_dir(&self.to).map_err(|error| Fault::file(&self.to, error))?;
        let to = self.to.canonicalize().map_err(|error| Fault::file(&self.to, error))?;
        let before = Anchor::read(&log).map_err(|error| Fault::file(&log, error))?;
        if let Some(before) = &before {
            // What an earlier run had handed over, and not taken away.
            remove_handed_over(&log, before).map_err(|error| Fault::file(&log, error))?;
            if Path::new(&before.archive) != to {
                let why = format!("earlier segments of this log are in {}", before.archive);
                return Err(Fault::usage(why).hint("one log has one archive: move it as a whole, or go on there"));
            }
        }
        let mut segments = list_segments(&log).map_err(|error| Fault::file(&log, error))?;
        segments.truncate(segments.len().saturating_sub(self.keep));
        let mut archiver = Archiver::new(&to, before.as_ref());
        for (number, path) in &segments {
            archiver.add(*number, path).map_err(|error| Fault::file(path, error))?;
        }
        let Some(anchor) = archiver.end() else {
            println!("nothing to hand over: {} closed segments beside the {} that stay", segments.len(), self.keep);
            return Ok(());
        };
        let asked = Asked::HandOver {
            segment: anchor.segment,
            line: anchor.line.seq,
            hash: hex(&anchor.line.hash),
            archive: anchor.archive.clone(),
        };
        let data_dir = log.parent().unwrap_or(&log);
        let told = control::ask(data_dir, &asked, |_| ()).await.map_err(|fault| {
            fault.hint("the service of this log has to run: it writes the line that tells of the hand-over. Nothing was taken away")
        })?;
        until_signed(&log, told["line"].as_u64().unwrap_or_default()).await?;
        anchor.write(&log).map_err(|error| Fault::file(&log, error))?;
        let moved = remove_handed_over(&log, &anchor).map_err(|error| Fault::file(&log, error))?;
        println!(
            "{moved} segments, up to line {}, are in {} and were verified there; the log begins behind them",
            anchor.line.seq,
            to.display()
        );
        Ok(())
    }
}

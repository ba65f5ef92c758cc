//! `holdfast audit tail|verify|export`: on the files alone, without the service; and `pull`, which copies them from it.

mod archive;
mod ask;
mod check;
mod copy;
mod pull;

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use holdfast_store::audit::{list_segments, parse_line, read_lines};

use crate::fault::{Fault, shown};

/// How often `tail --follow` looks.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct LogArg {
    /// Directory of the log (DATA_DIR/audit), or a copy of it
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Move old segments of a running service's log to an archive: compressed, verified there, and told by the log
    Archive(archive::ArchiveArgs),
    /// Print lines as JSON lines, from one number to another
    Export {
        #[command(flatten)]
        log: LogArg,
        /// First line
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Last line
        #[arg(long, default_value_t = u64::MAX)]
        to: u64,
    },
    /// Copy the log of a running service, verified, and go on with a copy: it shows when log or store are put back
    Pull(pull::PullArgs),
    /// Print the newest events
    Tail {
        #[command(flatten)]
        log: LogArg,
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: usize,
        /// Go on as new lines come
        #[arg(short, long)]
        follow: bool,
        /// Print whole lines as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check the chain and every signature; name the first bad or missing line
    Verify {
        #[command(flatten)]
        log: LogArg,
        /// A line kept from an earlier look (best: a checkpoint); the log must contain it
        #[arg(long, value_name = "FILE")]
        known_line: Option<PathBuf>,
        /// Fingerprint of the signing key, as an earlier verification printed it
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
        /// A copy of the log (`holdfast audit pull`); the log must contain every line of it
        #[arg(long, value_name = "DIR")]
        against: Option<PathBuf>,
        /// The archive that earlier segments were moved to (`holdfast audit archive`): they are checked, too
        #[arg(long, value_name = "DIR")]
        archive: Option<PathBuf>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

impl AuditCommand {
    pub(crate) async fn run(self) -> Result<(), Fault> {
        match self {
            Self::Archive(args) => args.run().await,
            Self::Export { log, from, to } => export(&log.log, from, to),
            Self::Pull(args) => args.run().await,
            Self::Tail { log, lines, follow, json } => tail(&log.log, lines, follow, json),
            Self::Verify { log, known_line, key, against, archive, json } => {
                let others = check::Others { against: against.as_deref(), archive: archive.as_deref() };
                check::run(&log.log, known_line.as_deref(), key.as_deref(), others, json)
            }
        }
    }
}

fn segments(directory: &Path) -> Result<Vec<(u64, PathBuf)>, Fault> {
    let segments = list_segments(directory).map_err(|error| Fault::file(directory, error))?;
    if segments.is_empty() {
        return Err(Fault::new(format!("{}: no audit segments here", directory.display()))
            .hint("give the directory of the log itself: --log DATA_DIR/audit"));
    }
    Ok(segments)
}

/// A reader that goes away (`| head`) is no fault.
fn stdout_failed(error: &io::Error) -> Result<(), Fault> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(Fault::new(error)) }
}

fn export(directory: &Path, from: u64, to: u64) -> Result<(), Fault> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (_, path) in segments(directory)? {
        let mut result = Ok(());
        read_lines(&path, |line, _, whole| {
            let Some(parsed) = parse_line(line).ok().filter(|_| whole) else { return true };
            if (from..=to).contains(&parsed.seq) {
                result = out.write_all(line).and_then(|()| out.write_all(b"\n"));
            }
            result.is_ok() && parsed.seq < to
        })
        .map_err(|error| Fault::file(&path, error))?;
        if let Err(error) = result {
            return stdout_failed(&error);
        }
    }
    out.flush()
        .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
        .map_err(Fault::new)
}

/// Lines after `after` in the newest two segments, which hold tens of thousands.
fn lines_after(directory: &Path, after: u64, mut visit: impl FnMut(&[u8]) -> io::Result<()>) -> Result<u64, Fault> {
    let all = segments(directory)?;
    let mut last_seq = after;
    for (_, path) in &all[all.len().saturating_sub(2)..] {
        let mut result = Ok(());
        read_lines(path, |line, _, whole| {
            if let Some(parsed) = parse_line(line).ok().filter(|parsed| whole && parsed.seq > last_seq) {
                last_seq = parsed.seq;
                result = visit(line);
            }
            result.is_ok()
        })
        .map_err(|error| Fault::file(path, error))?;
        result.map_err(Fault::new)?;
    }
    Ok(last_seq)
}

fn tail(directory: &Path, count: usize, follow: bool, json: bool) -> Result<(), Fault> {
    let mut newest = VecDeque::with_capacity(count + 1);
    let mut last_seq = lines_after(directory, 0, |line| {
        newest.push_back(line.to_vec());
        if newest.len() > count {
            newest.pop_front();
        }
        Ok(())
    })?;
    let mut out = io::stdout().lock();
    let mut show = |line: &[u8]| -> io::Result<()> {
        if json {
            out.write_all(line)?
        } else {
            out.write_all(shown(&readable(line)).replace('\n', "?").as_bytes())?
        }
        out.write_all(b"\n")
    };
    if let Err(error) = newest.iter().try_for_each(|line| show(line)) {
        return stdout_failed(&error);
    }
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(FOLLOW_INTERVAL);
        last_seq = lines_after(directory, last_seq, &mut show)?;
    }
}

/// One line for people: time, outcome, status, operation, key, caller, reason.
fn readable(line: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let number = |name: &str| value.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default();
    if text("type") != "event" {
        return format!("{} {:>7} {} {}", text("time"), number("seq"), text("type"), text("detail"))
            .trim_end()
            .to_owned();
    }
    let caller = value.get("caller").and_then(|caller| caller.get("oid")).and_then(serde_json::Value::as_str);
    let key = [text("key"), text("version")].join("/");
    format!(
        "{} {:>7} {:<7} {} {:<20} {} by {} ({} us) {}",
        text("time"),
        number("seq"),
        text("outcome"),
        number("status"),
        text("operation"),
        key.trim_matches('/'),
        caller.unwrap_or("nobody known"),
        number("duration_us"),
        text("reason"),
    )
    .trim_end()
    .to_owned()
}

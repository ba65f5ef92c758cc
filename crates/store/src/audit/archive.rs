//! Segments in an archive: `audit-NNNNNNNNNNNN.jsonl.gz`, each the very bytes of the segment, compressed (gzip).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use holdfast_core::AuditLine;

use super::{
    anchor::Anchor,
    chain::ChainChecker,
    line,
    segment::{list_named, read_lines_of, segment_path},
};
use crate::files::open_regular;

const SUFFIX: &str = ".jsonl.gz";

fn archived_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("audit-{number:012}{SUFFIX}"))
}

/// The segments in an archive, in order.
///
/// # Errors
/// If the directory cannot be read.
pub fn list_archived(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    list_named(directory, SUFFIX)
}

fn open_archived(path: &Path) -> io::Result<impl BufRead> {
    let file = open_regular(OpenOptions::new().read(true), path)?;
    Ok(BufReader::with_capacity(256 * 1024, MultiGzDecoder::new(BufReader::new(file))))
}

/// As [`read_lines`](super::read_lines), of a segment in an archive.
///
/// # Errors
/// If the file cannot be read.
pub fn read_archived_lines(path: &Path, visit: impl FnMut(&[u8], u64, bool) -> bool) -> io::Result<()> {
    read_lines_of(open_archived(path)?, visit)
}

/// Copies closed segments of a log to an archive, one after the other, and sees that they are there.
pub struct Archiver {
    to: PathBuf,
    chain: ChainChecker,
    /// The end of the last segment that may be handed over.
    end: Option<Anchor>,
}

impl Archiver {
    /// Goes on from what was handed over before.
    #[must_use]
    pub fn new(to: &Path, before: Option<&Anchor>) -> Self {
        let chain = before.map_or_else(ChainChecker::begin, ChainChecker::begin_behind);
        Self { to: to.into(), chain, end: None }
    }

    /// Writes a segment there, durable, and reads it back: the same bytes, every line in its chain.
    ///
    /// # Errors
    /// If it cannot be read or written, or does not hold; [`io::ErrorKind::AlreadyExists`] if another one is there under its name.
    pub fn add(&mut self, number: u64, segment: &Path) -> io::Result<()> {
        let path = archived_path(&self.to, number);
        if !path.exists() {
            self.write(segment, &path)?;
        }
        let mut original = BufReader::new(open_regular(OpenOptions::new().read(true), segment)?);
        let mut last = Vec::new();
        let mut wrong = None;
        self.chain.begin_segment();
        let chain = &mut self.chain;
        read_archived_lines(&path, |content, _, whole| {
            let mut same = vec![0; content.len() + usize::from(whole)];
            let read = original.read_exact(&mut same);
            if read.is_err() || !same.starts_with(content) {
                wrong = Some(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{} is not of this segment", path.display()),
                ));
            } else if !whole {
                wrong = Some(io::Error::new(io::ErrorKind::InvalidData, "its last line is torn"));
            } else if let Err(what) = chain.line(content) {
                wrong = Some(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            last.clear();
            last.extend_from_slice(content);
            wrong.is_none()
        })?;
        if let Some(error) = wrong {
            return Err(error);
        }
        if original.read(&mut [0])? != 0 {
            let what = format!("{} is shorter than its segment", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        let archive = self.to.display().to_string();
        // One that a crash has ended goes together with the next one that ends with a signature.
        self.end = Anchor::new(number, &last, self.chain.revision(), archive).or(self.end.take());
        Ok(())
    }

    fn write(&self, segment: &Path, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let mut compressed = GzEncoder::new(file, Compression::default());
        io::copy(&mut open_regular(OpenOptions::new().read(true), segment)?, &mut compressed)?;
        let mut file = compressed.finish()?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(&self.to)?.sync_all()
    }

    /// Up to where all may be handed over: the last segment that ends with a signed checkpoint.
    #[must_use]
    pub fn end(self) -> Option<Anchor> {
        self.end
    }
}

/// The last line of a segment, as it stands there; `None` if there is none that is whole.
pub(super) fn last_line(directory: &Path, number: u64) -> io::Result<Option<AuditLine>> {
    let mut last = None;
    super::read_lines(&segment_path(directory, number), |content, _, whole| {
        let parsed = line::parse_line(content).ok().filter(|_| whole);
        last = parsed.map(|parsed| AuditLine { seq: parsed.seq, hash: line::hash_line(content) });
        true
    })?;
    Ok(last)
}

/// Takes the segments away that were handed over, the oldest first; gives how many.
///
/// # Errors
/// If they cannot be removed.
pub fn remove_handed_over(directory: &Path, anchor: &Anchor) -> io::Result<usize> {
    let mut segments = super::list_segments(directory)?;
    segments.retain(|(number, _)| *number <= anchor.segment);
    for (_, path) in &segments {
        fs::remove_file(path)?;
    }
    File::open(directory)?.sync_all()?;
    Ok(segments.len())
}

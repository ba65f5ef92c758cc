//! Where a backup comes from: a snapshot of store and log, of one moment.
//!
//! The order makes it one. Sealed state and watermark are read first: they know of nothing later than what follows. Then the copies of the stores
//! begin, the one with the changes last; what the log has by then, or later, it has up to the line that tells of a change behind that revision, and
//! there it is cut. What the log did not have yet waits in the store, and is in its copy.

use std::{
    io::{self, Write},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{Ambient, PartitionId, StoreError};
use holdfast_crypto::SecretBytes;
use holdfast_enclave::InstanceSecrets;
use holdfast_store::{
    Copies, Copy, CopyOf,
    audit::{ANCHOR_FILE, Anchor, AuditLog, LogExtent, line_hash, list_segments, parse_line, read_lines},
    backup::{BackupError, End, Head, Writer},
    read_regular,
};
use holdfast_wire::hex::hex;

use super::{INDEX, LOG, Place, RECORDS, SEALED, SEALED_BYTES_MAX, WATERMARK, note, open_silicon};
use crate::{ambient::OsAmbient, fault::Fault};

/// Far more than it has.
pub(super) const WATERMARK_BYTES_MAX: u64 = 64 * 1024;
/// What a line of a start has: most lines need not be read for it.
const START: &[u8] = br#""type":"start""#;
/// Lines that are written at once.
const LINES_BYTES: usize = 256 * 1024;

/// What a service that runs, or a directory that nobody serves, gives for its backups.
pub(crate) struct Source {
    pub role: &'static str,
    pub instance: PartitionId,
    pub database_key: SecretBytes,
    pub data_dir: PathBuf,
    pub ambient: Arc<dyn Ambient>,
    pub records: Copies,
    /// Of a role whose changes are not in its records.
    pub index: Option<Copies>,
    /// `None`: nobody writes to it.
    pub audit: Option<Arc<AuditLog>>,
}

/// A snapshot, and where to read the rest.
pub(crate) struct Taken {
    pub head: Head,
    state: Vec<u8>,
    watermark: Option<Vec<u8>>,
    records: Copy,
    index: Option<Copy>,
    extent: Option<LogExtent>,
    database_key: SecretBytes,
    log: PathBuf,
}

impl Source {
    /// A directory that nobody serves.
    pub(crate) fn at_rest(place: &Place) -> Result<Self, Fault> {
        let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
        let path = place.data_dir.join(SEALED);
        if !path.exists() {
            return Err(Fault::new(format!("there is no instance in {}", place.data_dir.display())));
        }
        if place.data_dir.join(note::FILE).symlink_metadata().is_ok() {
            return Err(Fault::new(format!(
                "{}: its log has not told yet of the restore that made it: start its service once, and take the backup then",
                place.data_dir.display()
            )));
        }
        let silicon = open_silicon(place, &format!("in {}", place.data_dir.display()), &ambient)?;
        let secrets = InstanceSecrets::open(&path, &silicon).map_err(Fault::new)?;
        let secrets = secrets.ok_or_else(|| Fault::file(&path, "it is gone"))?;
        let keys = super::keys(&secrets, &ambient);
        let open = |name: &str, of| {
            let opened = Copies::open(&place.data_dir.join(name), of, &keys);
            opened.map_err(|error| Fault::file(&place.data_dir, error))
        };
        let records = open(RECORDS, CopyOf::Records)?;
        let index = if place.has_index() { Some(open(INDEX, CopyOf::Index)?) } else { None };
        Ok(Self {
            role: place.role,
            instance: secrets.instance,
            database_key: secrets.database_key,
            data_dir: place.data_dir.clone(),
            ambient,
            records,
            index,
            audit: None,
        })
    }

    /// Takes the snapshot.
    pub(crate) fn begin(&self) -> Result<Taken, Fault> {
        let sealed = self.data_dir.join(SEALED);
        let state = read_regular(&sealed, SEALED_BYTES_MAX).map_err(|error| Fault::file(&sealed, error))?;
        let watermark = self.data_dir.join(WATERMARK);
        let watermark = match read_regular(&watermark, WATERMARK_BYTES_MAX) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Fault::file(&watermark, error)),
        };
        let records = self.records.begin().map_err(Fault::new)?;
        let index = self.index.as_ref().map(Copies::begin).transpose().map_err(Fault::new)?;
        let extent = self.audit.as_ref().map(|audit| audit.extent());
        let id: [u8; 16] = self.ambient.random();
        let head = Head {
            id: hex(&id),
            instance: self.instance.to_string(),
            role: self.role.into(),
            program: env!("CARGO_PKG_VERSION").into(),
            time: self.ambient.now().unix_millis(),
            revision: index.as_ref().unwrap_or(&records).revision().0,
        };
        let database_key = SecretBytes::copy_of(self.database_key.expose());
        Ok(Taken { head, state, watermark, records, index, extent, database_key, log: self.data_dir.join(LOG) })
    }
}

fn failed(error: BackupError) -> Fault {
    Fault::new(error)
}

impl Taken {
    /// Writes it as a stream.
    pub(crate) fn write(&self, out: impl Write) -> Result<End, Fault> {
        let mut writer = Writer::begin(out, &self.database_key, &self.head, &self.state).map_err(failed)?;
        if let Some(watermark) = &self.watermark {
            writer.file(WATERMARK).and_then(|()| writer.bytes(watermark)).map_err(failed)?;
        }
        for (name, copy) in [(RECORDS, Some(&self.records)), (INDEX, self.index.as_ref())] {
            let Some(copy) = copy else { continue };
            writer.file(name).map_err(failed)?;
            copy.visit(&mut |table, key, value| {
                writer.row(table, key, value).map_err(|error| StoreError::Failed(error.to_string()))
            })
            .map_err(Fault::new)?;
        }
        let (line, hash) = self.write_log(&mut writer)?;
        Ok(writer.end(line, hash).map_err(failed)?.1)
    }

    /// Writes the log up to the snapshot's revision; gives its last line.
    fn write_log(&self, writer: &mut Writer<impl Write>) -> Result<(u64, String), Fault> {
        let last = self.extent.map_or(u64::MAX, |extent| extent.segment);
        let segments = list_segments(&self.log).map_err(|error| Fault::file(&self.log, error))?;
        let anchor = Anchor::read(&self.log).map_err(|error| Fault::file(&self.log, error))?;
        if let Some(anchor) = &anchor {
            let bytes = anchor.to_bytes().map_err(Fault::new)?;
            writer.file(&format!("{LOG}/{ANCHOR_FILE}")).and_then(|()| writer.bytes(&bytes)).map_err(failed)?;
        }
        // What was handed over may not be gone yet.
        let handed_over = anchor.map_or(0, |anchor| anchor.segment);
        let behind = self.last_start(&segments, handed_over + 1..=last)?;
        let mut end = (0, String::new());
        for (number, path) in segments.into_iter().filter(|(number, _)| (handed_over + 1..=last).contains(number)) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            writer.file(&format!("{LOG}/{name}")).map_err(failed)?;
            let bytes = self.extent.filter(|extent| extent.segment == number).map_or(u64::MAX, |extent| extent.bytes);
            if self.write_segment(writer, &path, (bytes, behind), &mut end)? {
                break;
            }
        }
        Ok(end)
    }

    /// Number of the last line that tells of a start of the log at the snapshot's revision, or before it. What stands before that is of its past, be it
    /// of changes with greater numbers: a restore or an accepted loss has undone those.
    fn last_start(&self, segments: &[(u64, PathBuf)], which: RangeInclusive<u64>) -> Result<u64, Fault> {
        for (_, path) in segments.iter().rev().filter(|(number, _)| which.contains(number)) {
            let mut found = None;
            read_lines(path, |line, _, whole| {
                if whole && line.windows(START.len()).any(|part| part == START) {
                    let start = parse_line(line).ok().filter(|parsed| parsed.kind == "start");
                    let start = start.filter(|parsed| parsed.revision.is_some_and(|it| it <= self.head.revision));
                    found = start.map(|parsed| parsed.seq).or(found);
                }
                whole
            })
            .map_err(|error| Fault::file(path, error))?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Ok(0)
    }

    /// True: the next line tells of a later change.
    fn write_segment(
        &self,
        writer: &mut Writer<impl Write>,
        path: &Path,
        (bytes, behind): (u64, u64),
        end: &mut (u64, String),
    ) -> Result<bool, Fault> {
        let (mut lines, mut last, mut is_over) = (Vec::new(), Vec::new(), false);
        let mut written = Ok(());
        read_lines(path, |line, offset, whole| {
            // What is behind is not durable, or torn.
            if offset > bytes || !whole {
                return false;
            }
            let Ok(parsed) = parse_line(line) else {
                written = Err(Fault::file(path, "it is damaged: run `holdfast audit verify`, and start the service once: it cuts what was never durable"));
                return false;
            };
            is_over = parsed.seq > behind && parsed.revision.is_some_and(|revision| revision > self.head.revision);
            if is_over {
                return false;
            }
            end.0 = parsed.seq;
            last.clear();
            last.extend_from_slice(line);
            lines.extend_from_slice(line);
            lines.push(b'\n');
            if lines.len() >= LINES_BYTES {
                written = writer.bytes(&lines).map_err(failed);
                lines.clear();
            }
            written.is_ok()
        })
        .map_err(|error| Fault::file(path, error))?;
        written?;
        writer.bytes(&lines).map_err(failed)?;
        if !last.is_empty() {
            end.1 = hex(&line_hash(&last));
        }
        Ok(is_over)
    }
}

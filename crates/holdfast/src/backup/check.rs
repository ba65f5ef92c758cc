//! A look at every part of a backup: MACs, rows against what their commits kept, the chain of the log.

use std::io::Read;

use holdfast_core::{AuditLine, Revision};
use holdfast_store::{
    CopyCheck, CopyKeys, CopyOf,
    audit::{ANCHOR_FILE, Anchor, ChainChecker, Checkpoint},
    backup::{End, Head, Part, Reader},
};

use super::{INDEX, LOG, Place, RECORDS, WATERMARK, is_segment, source::WATERMARK_BYTES_MAX, take_lines};
use crate::{
    fault::Fault,
    history::{Watermark, decode_mark, mark_key},
};

/// Where the parts go that were looked at.
pub(crate) trait Sink {
    /// A file begins; the one before it is whole.
    fn file(&mut self, name: &str) -> Result<(), Fault>;
    /// More bytes of it.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault>;
    /// One more row of it.
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), Fault>;
}

/// They are looked at, and that is all.
pub(crate) struct Nowhere;

impl Sink for Nowhere {
    fn file(&mut self, _: &str) -> Result<(), Fault> {
        Ok(())
    }

    fn bytes(&mut self, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }

    fn row(&mut self, _: &str, _: &[u8], _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
}

/// A backup that holds.
pub(crate) struct Examined {
    pub head: Head,
    pub end: End,
    /// Where its log ends.
    pub log: Checkpoint,
    pub bytes: u64,
}

/// Far more than it has.
const ANCHOR_BYTES_MAX: usize = 256 * 1024;

/// What the file is that is read now.
enum Reading {
    Nothing,
    Watermark {
        content: Vec<u8>,
    },
    Table(CopyCheck),
    Log {
        rest: Vec<u8>,
    },
    /// Where a log begins whose earlier segments are in an archive.
    Anchor {
        bytes: Vec<u8>,
    },
}

struct Looking<'a> {
    place: &'a Place,
    keys: &'a CopyKeys<'a>,
    reading: Reading,
    chain: ChainChecker,
    /// Lines that mark and watermark name, and that the log has to have.
    named: Vec<Checkpoint>,
    files: Vec<String>,
    /// Of the store that has the changes.
    revision: Option<Revision>,
}

/// Reads a backup to its end, and refuses it if anything does not hold. The sink has then seen all of it.
pub(crate) fn examine<R: Read>(
    mut reader: Reader<R>,
    keys: &CopyKeys<'_>,
    place: &Place,
    sink: &mut dyn Sink,
) -> Result<Examined, Fault> {
    let mut looking = Looking {
        place,
        keys,
        reading: Reading::Nothing,
        chain: ChainChecker::begin(),
        named: Vec::new(),
        files: Vec::new(),
        revision: None,
    };
    let end = loop {
        match reader.next().map_err(Fault::new)? {
            Part::File(name) => {
                looking.begin(&name)?;
                sink.file(&name)?;
            }
            Part::Bytes(bytes) => {
                looking.bytes(&bytes)?;
                sink.bytes(&bytes)?;
            }
            Part::Rows(table, rows) => {
                for (key, value) in rows {
                    looking.row(&table, &key, &value)?;
                    sink.row(&table, &key, &value)?;
                }
            }
            Part::End(end) => break end,
        }
    };
    looking.close()?;
    let AuditLine { seq, hash } = looking.chain.at();
    let revision = looking.chain.revision();
    let whole = looking.files.iter().any(|name| name == RECORDS)
        && looking.revision == Some(Revision(reader.head.revision))
        && (seq, holdfast_wire::hex::hex(&hash)) == (end.line, end.line_hash.clone())
        && revision.0 <= reader.head.revision;
    if !whole {
        return Err(Fault::new(
            "the backup is not whole: its store, its log and what it says of itself are not of one moment",
        ));
    }
    if let Some(named) = looking.named.first() {
        return Err(Fault::new(format!(
            "the backup is not whole: its log ends with line {seq}, and its store knows of another line {}",
            named.seq
        ))
        .hint("start its service once, and take it anew"));
    }
    let log = Checkpoint { seq, head: hash, revision };
    Ok(Examined { head: reader.head.clone(), end, log, bytes: reader.bytes() })
}

impl Looking<'_> {
    fn begin(&mut self, name: &str) -> Result<(), Fault> {
        self.close()?;
        let check = |of| CopyCheck::begin(of, self.keys, Some(&mark_key())).map(Reading::Table).map_err(Fault::new);
        let of_log = name.strip_prefix(LOG).and_then(|name| name.strip_prefix('/'));
        self.reading = match name {
            WATERMARK => Reading::Watermark { content: Vec::new() },
            RECORDS => check(CopyOf::Records)?,
            _ if of_log == Some(ANCHOR_FILE) && self.chain.at().seq == 0 => Reading::Anchor { bytes: Vec::new() },
            INDEX if self.place.has_index() => check(CopyOf::Index)?,
            _ if of_log.is_some_and(is_segment) => {
                self.chain.begin_segment();
                Reading::Log { rest: Vec::new() }
            }
            _ => return Err(unexpected(name)),
        };
        if self.files.iter().any(|known| known == name) {
            return Err(unexpected(name));
        }
        self.files.push(name.to_owned());
        Ok(())
    }

    /// The log has to have this line.
    fn name(&mut self, line: Option<Checkpoint>) {
        self.named.extend(line.filter(|line| line.seq > 0));
    }

    /// The file that was read is whole.
    fn close(&mut self) -> Result<(), Fault> {
        let name = self.files.last().map_or("", String::as_str);
        match std::mem::replace(&mut self.reading, Reading::Nothing) {
            Reading::Nothing => {}
            Reading::Watermark { content } => {
                let CopyKeys { instance, database_key, ambient, .. } = self.keys;
                let reached = Watermark::reached_in(&content, *instance, database_key, ambient);
                self.name(reached.map_err(Fault::new)?);
            }
            Reading::Anchor { bytes } => {
                let anchor =
                    Anchor::parse(&bytes).map_err(|error| Fault::new(format!("{name}, in the backup: {error}")))?;
                self.chain = ChainChecker::begin_behind(&anchor);
                let begins = self.chain.at().seq;
                // Older ones are in the archive.
                self.named.retain(|named| named.seq > begins);
            }
            Reading::Log { rest } if rest.is_empty() => {}
            Reading::Log { .. } => return Err(Fault::new(format!("{name}, in the backup: its last line is torn"))),
            Reading::Table(check) => {
                let found = check.finish().map_err(|error| Fault::new(format!("{name}, in the backup: {error}")))?;
                if (name == INDEX) == self.place.has_index() {
                    self.revision = Some(found.revision);
                }
                self.name(found.record.and_then(|mark| decode_mark(&mark)));
            }
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let name = self.files.last().map_or("", String::as_str);
        match &mut self.reading {
            Reading::Watermark { content } if (content.len() + bytes.len()) as u64 <= WATERMARK_BYTES_MAX => {
                content.extend_from_slice(bytes);
            }
            Reading::Anchor { bytes: read } if read.len() + bytes.len() <= ANCHOR_BYTES_MAX => {
                read.extend_from_slice(bytes)
            }
            Reading::Log { rest } => {
                rest.extend_from_slice(bytes);
                let (chain, named) = (&mut self.chain, &mut self.named);
                take_lines(rest, |line| {
                    chain.line(line).map_err(|what| Fault::new(format!("{name}, in the backup: {what}")))?;
                    let at = chain.at();
                    named.retain(|named| (named.seq, named.head) != (at.seq, at.hash));
                    Ok(())
                })?;
            }
            _ => return Err(unexpected(name)),
        }
        Ok(())
    }

    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let name = self.files.last().map_or("", String::as_str);
        let Reading::Table(check) = &mut self.reading else { return Err(unexpected(name)) };
        check.add(table, key, value).map_err(|error| Fault::new(format!("{name}, in the backup: {error}")))
    }
}

fn unexpected(name: &str) -> Fault {
    Fault::new(format!("the backup has {name:?} in a place where this version does not know it"))
}

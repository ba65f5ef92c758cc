//! What raw bytes at rest say of themselves, without any key.

use holdfast_core::Index;

use crate::{
    Storage,
    error::Result,
    format::{HEADER_BYTES, Suite, read_header},
    grant::Whole,
    record::{Encryption, Envelope, Id},
    rows,
    view::View,
};

/// What a stream's file shows.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StreamReport {
    /// `AES-256-GCM in chunks of 64 KiB`, or that it is plain.
    pub suite: &'static str,
    /// The DEK's id.
    pub dek: String,
    /// The bucket's id.
    pub bucket: String,
    /// The object's id.
    pub object: String,
    /// The stream's id, which is the blob's name.
    pub stream: String,
    /// Shannon entropy of the bytes behind the header, bits a byte: 8 is what ciphertext has.
    pub entropy_bits_per_byte: f64,
}

/// Reads the beginning of a stream's file. `None` if it is none.
#[must_use]
pub fn inspect_stream(bytes: &[u8]) -> Option<StreamReport> {
    let header = read_header(bytes)?;
    let suite = match header.suite {
        Suite::Plain => "none: the bytes behind the header are plaintext",
        Suite::Aes256Gcm => "AES-256-GCM in chunks of 64 KiB, a tag behind each",
    };
    let identity = header.identity;
    Some(StreamReport {
        suite,
        dek: identity.dek.to_string(),
        bucket: identity.bucket.to_string(),
        object: identity.object.to_string(),
        stream: identity.stream.to_string(),
        entropy_bits_per_byte: entropy(&bytes[HEADER_BYTES..]),
    })
}

fn entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0_u64; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let total = bytes.len() as f64;
    let parts = counts.iter().filter(|count| **count > 0).map(|count| {
        let share = *count as f64 / total;
        -share * share.log2()
    });
    parts.sum()
}

/// The envelope of the DEK `dek` (hex) of `object`, as JSON: which KEK wraps it, how, since when. Needs the index alone, so it
/// can be asked of a copy.
#[must_use]
pub fn envelope_in(index: &dyn Index, dek: &str, object: &str) -> Option<String> {
    let dek = Id::parse(dek)?;
    let snapshot = index.snapshot().ok()?;
    let view = View::new(snapshot.as_ref());
    let view = Whole::of_stopped(&view);
    let found = || -> Result<Option<Envelope>> {
        let mut found: Option<Envelope> = None;
        view.scan(&rows::buckets(), &rows::buckets(), |_, value| {
            let decoded: Option<(crate::record::BucketRecord, _)> = crate::record::decode(value);
            let deks = decoded.map(|(bucket, _)| bucket.deks).unwrap_or_default();
            found = found.take().or_else(|| deks.into_iter().find(|known| known.id == dek).map(|known| known.envelope));
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        // An object that was moved to another KEK keeps the id of its container's DEK.
        for rows in [rows::all_objects(), rows::all_versions()] {
            view.scan(&rows, &rows, |_, value| {
                let record = crate::view::record_of(value)?;
                if let Encryption::Object { dek: known, envelope, .. } = record.encryption
                    && known == dek
                    && record.object.to_string() == object
                {
                    found = Some(envelope);
                    return Ok(std::ops::ControlFlow::Break(()));
                }
                Ok(std::ops::ControlFlow::Continue(()))
            })?;
        }
        Ok(found)
    };
    serde_json::to_string(&found().ok()??).ok()
}

impl Storage {
    /// [`envelope_in`] the service's own index.
    #[must_use]
    pub fn envelope_of(&self, dek: &str, object: &str) -> Option<String> {
        envelope_in(self.index.as_ref(), dek, object)
    }
}

//! What stands in one line.

use std::{collections::BTreeMap, fmt::Write as _};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_core::{AuditEvent, AuditHead, PartitionId, Revision, Timestamp, hex};
use holdfast_crypto::{Curve, EcKey, EcPublicKey, HashAlgorithm, SecretBytes, kdf, kdf::MacKey};
use serde::{Deserialize, Serialize};

/// Names of the formats, in the first line of each segment. Lines of the first have no MAC...
pub(super) const FORMAT_1: &str = "holdfast-audit-1";
/// ...those of the second one of the instance...
pub(super) const FORMAT_2: &str = "holdfast-audit-2";
/// ...and those of the third one of this log, of the several that an instance has.
pub(super) const FORMAT_3: &str = "holdfast-audit-3";
/// `prev` of the first line of all.
pub(super) const GENESIS: [u8; 32] = [0; 32];
/// Longest line read.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;

/// A place in the chain: a line's number and its hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// Number of the line.
    pub seq: u64,
    /// SHA-256 of the line.
    pub head: [u8; 32],
    /// The newest change told by it or a line before it.
    pub revision: Revision,
}

/// Shows at the next start that a line was written here. Signatures come once a second and are for everybody; this is for each line, and for
/// us alone.
pub struct LineMac {
    /// Of the instance: the second format.
    instance: MacKey,
    /// Of one log of several: the third.
    log: Option<MacKey>,
}

/// What ends a line with a MAC: the member's name, 16 bytes in hex, and what closes the object.
const MAC_NAME: &str = r#","mac":""#;
const MAC_HEX: usize = 32;
const MAC_END: &str = r#""}"#;

impl LineMac {
    /// Derives the key from the secret that the signing key comes from, for the one log that an instance has.
    ///
    /// # Errors
    /// [`CryptoError`](holdfast_crypto::CryptoError) if there is no secret.
    pub fn derive(secret: &SecretBytes) -> Result<Self, holdfast_crypto::CryptoError> {
        Ok(Self { instance: key(secret, "holdfast audit line mac v1")?, log: None })
    }

    /// The same for one of several logs: the lines of one are no lines of another.
    ///
    /// # Errors
    /// [`CryptoError`](holdfast_crypto::CryptoError) if there is no secret.
    pub fn of_log(secret: &SecretBytes, name: &str) -> Result<Self, holdfast_crypto::CryptoError> {
        let log = key(secret, &format!("holdfast audit line mac v2 {name}"))?;
        Ok(Self { log: Some(log), ..Self::derive(secret)? })
    }

    /// The format that is written with it.
    pub(super) fn format(&self) -> Format {
        if self.log.is_some() { Format::Three } else { Format::Two }
    }

    /// The MAC of a line, given up to where it stands.
    #[must_use]
    pub fn of(&self, line: &[u8]) -> String {
        mac(self.log.as_ref().unwrap_or(&self.instance), line)
    }

    /// Whether the last member of the line (without its newline) is its MAC, in the format that is written today.
    #[must_use]
    pub fn holds(&self, line: &[u8]) -> bool {
        holds(self.log.as_ref().unwrap_or(&self.instance), line)
    }

    /// Whether it is a MAC of the instance, be it of an earlier format.
    #[must_use]
    pub fn holds_in_some_format(&self, line: &[u8]) -> bool {
        self.holds(line) || holds(&self.instance, line)
    }

    /// Whether a line of a segment of this format has the MAC that it should have.
    pub(super) fn holds_in(&self, format: Format, line: &[u8]) -> bool {
        match format {
            Format::One => true,
            Format::Two => holds(&self.instance, line),
            Format::Three => self.log.as_ref().is_some_and(|key| holds(key, line)),
        }
    }
}

fn key(secret: &SecretBytes, purpose: &str) -> Result<MacKey, holdfast_crypto::CryptoError> {
    Ok(MacKey::new(HashAlgorithm::Sha256, kdf::derive_key(secret, purpose)?.expose()))
}

fn mac(key: &MacKey, line: &[u8]) -> String {
    hex(&key.sign(&[line])[..MAC_HEX / 2])
}

fn holds(key: &MacKey, line: &[u8]) -> bool {
    let parts = || {
        let rest = line.strip_suffix(MAC_END.as_bytes())?;
        let (rest, told) = rest.split_at_checked(rest.len().checked_sub(MAC_HEX)?)?;
        Some((rest.strip_suffix(MAC_NAME.as_bytes())?, told))
    };
    // Compared as a MAC of the MAC, so that the time tells nothing.
    parts().is_some_and(|(line, told)| key.sign(&[mac(key, line).as_bytes()]) == key.sign(&[told]))
}

/// What the lines of a segment have.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Format {
    One,
    Two,
    Three,
}

impl Format {
    pub(super) fn called(name: &str) -> Option<Self> {
        [Self::One, Self::Two, Self::Three].into_iter().find(|format| format.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::One => FORMAT_1,
            Self::Two => FORMAT_2,
            Self::Three => FORMAT_3,
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// The hash that links the next line to this one.
pub(super) fn hash_line(line: &[u8]) -> [u8; 32] {
    kdf::sha256(&[&[0], line])
}

/// RFC 3339 with milliseconds.
pub(super) fn format_time(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.unix_millis())
        .map(|moment| format!("{moment:.3}"))
        .unwrap_or_else(|_| "invalid".into())
}

#[derive(Serialize)]
struct EventBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    time: String,
    operation: &'static str,
    outcome: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<Caller<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithm: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    context: BTreeMap<&'static str, &'a str>,
    path: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    duration_us: u64,
}

#[derive(Serialize)]
struct Caller<'a> {
    oid: &'a str,
    tenant: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    appid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

/// The part of an event's line that does not depend on its place: a JSON object without its closing brace.
pub(super) fn event_body(event: &AuditEvent) -> Result<String, serde_json::Error> {
    let caller = event.principal.as_ref().map(|principal| Caller {
        oid: principal.object_id(),
        tenant: principal.tenant(),
        appid: principal.application_id(),
        name: principal.display_name(),
    });
    open_object(&EventBody {
        kind: "event",
        time: format_time(event.time),
        operation: event.operation,
        outcome: event.outcome.as_str(),
        status: event.status,
        error: event.error_code,
        reason: event.reason.as_deref(),
        caller,
        key: event.key.as_deref(),
        version: event.key_version.as_deref(),
        algorithm: event.algorithm.as_deref(),
        context: event.context.iter().map(|(name, value)| (*name, value.as_str())).collect(),
        path: &event.path,
        request_id: &event.request_id,
        client_request_id: event.client_request_id.as_deref(),
        source: event.source.as_deref(),
        user_agent: event.user_agent.as_deref(),
        duration_us: event.duration_us,
    })
}

fn open_object(body: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut json = serde_json::to_string(body)?;
    json.pop();
    Ok(json)
}

/// Completes a body to a line (without its newline): place in front; revision, link and MAC at the end.
/// `unsynced`: how many lines right before it were not durable when it was written.
pub(super) fn complete(
    body: &str,
    seq: u64,
    revision: Option<Revision>,
    unsynced: u64,
    prev: &[u8; 32],
    mac: &LineMac,
) -> String {
    let mut line = String::with_capacity(body.len() + 192);
    // `body` begins with `{`; the rest is its members.
    let _ = write!(line, r#"{{"seq":{seq},{}"#, &body[1..]);
    if let Some(revision) = revision {
        let _ = write!(line, r#","revision":{revision}"#);
    }
    if unsynced > 0 {
        let _ = write!(line, r#","unsynced":{unsynced}"#);
    }
    let _ = write!(line, r#","prev":"{}""#, hex(prev));
    let told = mac.of(line.as_bytes());
    line.push_str(MAC_NAME);
    line.push_str(&told);
    line.push_str(MAC_END);
    line
}

/// First line of a segment.
pub(super) fn segment_body(
    format: Format,
    instance: PartitionId,
    segment: u64,
    key: &EcPublicKey,
    time: Timestamp,
) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Body {
        #[serde(rename = "type")]
        kind: &'static str,
        time: String,
        format: &'static str,
        instance: String,
        segment: u64,
        key: PublicKeyJson,
    }
    let (x, y) = key.coordinates();
    open_object(&Body {
        kind: "segment",
        time: format_time(time),
        format: format.name(),
        instance: instance.to_string(),
        segment,
        key: PublicKeyJson {
            kty: "EC".into(),
            crv: "P-384".into(),
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
        },
    })
}

/// A line that tells of the log's own life: a start, an end, a repair.
pub(super) fn note_body(kind: &'static str, time: Timestamp, detail: &str) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        time: String,
        detail: &'a str,
    }
    open_object(&Body { kind, time: format_time(time), detail })
}

/// A checkpoint at `seq`, signing everything up to `prev`.
pub(super) fn checkpoint_body(
    instance: PartitionId,
    seq: u64,
    prev: &[u8; 32],
    time: Timestamp,
    key: &EcKey,
) -> Result<String, String> {
    #[derive(Serialize)]
    struct Body {
        #[serde(rename = "type")]
        kind: &'static str,
        time: String,
        signature: String,
    }
    let time = format_time(time);
    let signature = key.sign(&checkpoint_digest(&instance.to_string(), seq, &hex(prev), &time));
    let signature = URL_SAFE_NO_PAD.encode(signature.map_err(|error| error.to_string())?);
    open_object(&Body { kind: "checkpoint", time, signature }).map_err(|error| error.to_string())
}

/// What a checkpoint signs (ES384).
fn checkpoint_digest(instance: &str, seq: u64, prev: &str, time: &str) -> Vec<u8> {
    let text = format!("holdfast audit checkpoint v1\n{instance}\n{seq}\n{prev}\n{time}\n");
    HashAlgorithm::Sha384.digest(text.as_bytes())
}

/// What is signed for those who keep copies (ES384).
pub(super) fn head_digest(head: &AuditHead) -> Vec<u8> {
    HashAlgorithm::Sha384.digest(head.text().as_bytes())
}

/// An EC public key as a JWK.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublicKeyJson {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

impl PublicKeyJson {
    pub(super) fn parse(&self) -> Option<EcPublicKey> {
        let coordinate = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        if self.kty != "EC" || self.crv != "P-384" {
            return None;
        }
        EcPublicKey::from_coordinates(Curve::P384, &coordinate(&self.x)?, &coordinate(&self.y)?).ok()
    }
}

/// Why a line cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a line of an audit log: {0}")]
pub struct LineError(pub String);

/// The members of a line that the chain is made of.
#[derive(Clone, Debug, Deserialize)]
pub struct ParsedLine {
    /// Number of the line; from 1, without gaps.
    pub seq: u64,
    /// `event`, `segment`, `checkpoint`, `start`, `stop`.
    #[serde(rename = "type")]
    pub kind: String,
    /// RFC 3339.
    pub time: String,
    /// Hex SHA-256 of the line before.
    pub prev: String,
    /// The change that an event tells of; in `start`, the one that the log has come to.
    pub revision: Option<u64>,
    /// How many lines right before it were not durable when it was written.
    #[serde(default)]
    pub unsynced: u64,
    pub(super) format: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) key: Option<serde_json::Value>,
    pub(super) signature: Option<String>,
}

impl ParsedLine {
    /// Whether a checkpoint's signature holds under `key`.
    pub(super) fn signature_holds(&self, instance: &str, key: &EcPublicKey) -> bool {
        let Some(signature) = self.signature.as_deref().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()) else {
            return false;
        };
        let digest = checkpoint_digest(instance, self.seq, &self.prev, &self.time);
        key.verify(&digest, &signature).unwrap_or(false)
    }
}

/// Reads one line (without its newline).
///
/// # Errors
/// [`LineError`].
pub fn parse_line(line: &[u8]) -> Result<ParsedLine, LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError("it is too long".into()));
    }
    serde_json::from_slice(line).map_err(|error| LineError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of the second version; it must hold for ever.
    const GOLDEN: &str = include_str!("../../tests/golden/audit-line-v2.json");

    fn mac() -> LineMac {
        LineMac::derive(&SecretBytes::copy_of(&[7; 48])).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn golden_line() {
        let line = complete(r#"{"type":"event","time":"""#, 3, Some(Revision(2)), 0, &GENESIS, &mac());
        assert_eq!(line, GOLDEN.trim_end());
        let parsed = parse_line(line.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((parsed.seq, parsed.revision, parsed.prev, parsed.unsynced), (3, Some(2), hex(&GENESIS), 0));
        let behind = complete(r#"{"type":"event","time":"""#, 4, Some(Revision(3)), 1, &GENESIS, &mac());
        assert!(
            behind.contains(r#","revision":3,"unsynced":1,"prev":""#) && mac().holds(behind.as_bytes()),
            "{behind}"
        );
        let parsed = parse_line(behind.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((parsed.revision, parsed.unsynced), (Some(3), 1));
    }

    /// A line of the third version; it must hold for ever.
    const GOLDEN_3: &str = include_str!("../../tests/golden/audit-line-v3.json");

    #[test]
    fn golden_line_of_one_log_of_several() {
        let of = |name| LineMac::of_log(&SecretBytes::copy_of(&[7; 48]), name).unwrap();
        let line = complete(r#"{"type":"event","time":"""#, 3, Some(Revision(2)), 0, &GENESIS, &of("a"));
        assert_eq!(line, GOLDEN_3.trim_end());
        assert!(of("a").holds(line.as_bytes()) && of("a").holds_in(Format::Three, line.as_bytes()));
        assert!(!of("b").holds_in_some_format(line.as_bytes()), "another log's");
        assert!(!mac().holds(line.as_bytes()), "the instance's");
        let before = GOLDEN.trim_end().as_bytes();
        assert!(of("a").holds_in(Format::Two, before) && of("a").holds_in_some_format(before));
        assert!(!of("a").holds(before) && !of("a").holds_in(Format::Three, before));
        assert!(!mac().holds_in(Format::Three, line.as_bytes()), "who has one log has none of this format");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_a_line_is_refused() {
        let line = GOLDEN.trim_end().as_bytes();
        assert!(mac().holds(line));
        for at in 0..line.len() * 8 {
            let mut changed = line.to_vec();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(!mac().holds(&changed), "bit {at}");
        }
        for len in 0..line.len() {
            assert!(!mac().holds(&line[..len]), "length {len}");
        }
        let other = LineMac::derive(&SecretBytes::copy_of(&[8; 48])).unwrap_or_else(|error| panic!("{error}"));
        assert!(!other.holds(line), "another instance's");
    }
}

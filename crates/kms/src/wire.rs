//! Reading requests, writing answers: Base64, times, and the service's own way to say what is wrong with a member.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holdfast_core::Timestamp;
use holdfast_crypto::SecretBytes;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Reads a body; none is an empty object.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "a member has the wrong type",
            serde_json::error::Category::Syntax => "malformed JSON",
            serde_json::error::Category::Eof | serde_json::error::Category::Io => "the JSON ends too early",
        };
        // Where, but not what: it may be a secret.
        ApiError::new("SerializationException", format!("{what} (line {}, column {})", error.line(), error.column()))
    })
}

pub(crate) fn answer(value: &impl Serialize) -> Result<Bytes, ApiError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| ApiError::internal(error.to_string()))
}

/// Base64 text in a request, perhaps of a secret: erased with the request.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct BlobText(String);

impl Drop for BlobText {
    fn drop(&mut self) {
        drop(SecretBytes::take(std::mem::take(&mut self.0).into_bytes()));
    }
}

impl BlobText {
    pub(crate) fn decode(&self) -> Result<Vec<u8>, ApiError> {
        STANDARD
            .decode(&self.0)
            .map_err(|_| ApiError::new("SerializationException", "a member of type blob is not Base64"))
    }
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Base64 of a secret in an answer, erased after it was written. The answer itself goes to the connection as it is.
pub(crate) struct SecretOut(SecretBytes);

impl SecretOut {
    pub(crate) fn new(secret: &SecretBytes) -> Self {
        Self(SecretBytes::take(encode(secret.expose()).into_bytes()))
    }
}

impl Serialize for SecretOut {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(self.0.expose()).unwrap_or_default())
    }
}

/// Seconds since the epoch, with a fraction.
pub(crate) fn secs(moment: Timestamp) -> f64 {
    moment.unix_millis() as f64 / 1000.0
}

/// From seconds since the epoch.
pub(crate) fn moment(secs: f64) -> Timestamp {
    Timestamp::from_unix_millis((secs * 1000.0) as i64)
}

/// Collects what is wrong with the members of a request, in the words of the service.
#[derive(Default)]
pub(crate) struct Violations(Vec<String>);

impl Violations {
    fn add(&mut self, value: Option<&str>, member: &str, constraint: &str) {
        let value = value.map_or("null".to_owned(), |value| {
            let shown: String = value.chars().take(128).map(|c| if c.is_control() { '?' } else { c }).collect();
            format!("'{shown}'")
        });
        self.0.push(format!("Value {value} at '{member}' failed to satisfy constraint: {constraint}"));
    }

    /// A member that must be there; its length in characters.
    pub(crate) fn text<'a>(&mut self, value: Option<&'a str>, member: &str, min: usize, max: usize) -> &'a str {
        let Some(text) = value else {
            self.add(None, member, "Member must not be null");
            return "";
        };
        self.length(text, member, min, max);
        text
    }

    pub(crate) fn length(&mut self, text: &str, member: &str, min: usize, max: usize) {
        let length = text.chars().count();
        if length < min {
            self.add(Some(text), member, &format!("Member must have length greater than or equal to {min}"));
        }
        if length > max {
            self.add(Some(text), member, &format!("Member must have length less than or equal to {max}"));
        }
    }

    /// A blob that must be there.
    pub(crate) fn blob<'a>(&mut self, value: Option<&'a [u8]>, member: &str, min: usize, max: usize) -> &'a [u8] {
        let Some(bytes) = value else {
            self.add(None, member, "Member must not be null");
            return &[];
        };
        // What it holds is not repeated.
        if bytes.len() < min {
            self.add(Some(""), member, &format!("Member must have length greater than or equal to {min}"));
        }
        if bytes.len() > max {
            self.add(Some("(blob)"), member, &format!("Member must have length less than or equal to {max}"));
        }
        bytes
    }

    pub(crate) fn one_of(&mut self, value: Option<&str>, member: &str, allowed: &[&str]) {
        if let Some(text) = value
            && !allowed.contains(&text)
        {
            let allowed = allowed.join(", ");
            self.add(Some(text), member, &format!("Member must satisfy enum value set: [{allowed}]"));
        }
    }

    pub(crate) fn range(&mut self, value: Option<i64>, member: &str, min: i64, max: i64) {
        if let Some(number) = value {
            let text = number.to_string();
            if number < min {
                self.add(Some(&text), member, &format!("Member must have value greater than or equal to {min}"));
            }
            if number > max {
                self.add(Some(&text), member, &format!("Member must have value less than or equal to {max}"));
            }
        }
    }

    pub(crate) fn pattern(&mut self, value: &str, member: &str, holds: bool, pattern: &str) {
        if !holds {
            self.add(Some(value), member, &format!("Member must satisfy regular expression pattern: {pattern}"));
        }
    }

    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(ApiError::validation(format!("1 validation error detected: {}", self.0[0]))),
            count => Err(ApiError::validation(format!("{count} validation errors detected: {}", self.0.join("; ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_have_the_shape_that_clients_match_on() {
        let mut violations = Violations::default();
        violations.text(None, "keyId", 1, 2048);
        let error = violations.finish().unwrap_err();
        let one =
            "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null";
        assert_eq!(error.message, one);
        let mut violations = Violations::default();
        violations.range(Some(2000), "limit", 1, 1000);
        violations.one_of(Some("X"), "keySpec", &["A", "B"]);
        let error = violations.finish().unwrap_err();
        assert_eq!(
            error.message,
            "2 validation errors detected: Value '2000' at 'limit' failed to satisfy constraint: Member must have value less \
             than or equal to 1000; Value 'X' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value \
             set: [A, B]"
        );
        assert!(Violations::default().finish().is_ok());
    }
}

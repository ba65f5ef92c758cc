//! Reading requests, writing answers: Base64, times, and the service's own way to say what is wrong with a member.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holdfast_core::Timestamp;
use holdfast_crypto::SecretBytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};

use crate::code::Code;
use crate::error::ApiError;

/// Characters of a value that a message repeats: as many as the longest tag that is too long by little, and its like.
const VALUE_CHARS_MAX: usize = 300;

/// Reads a body; none is an empty object.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "a member has the wrong type, or is not the Base64 that it should be",
            serde_json::error::Category::Syntax => "malformed JSON",
            serde_json::error::Category::Eof | serde_json::error::Category::Io => "the JSON ends too early",
        };
        // Where, but not what: it may be a secret.
        ApiError::new(Code::Serialization, format!("{what} (line {}, column {})", error.line(), error.column()))
    })
}

/// Refuses a body that lacks one of these members, or has null for it. The body is known to be an object, or empty.
pub(crate) fn check_required(body: &[u8], wanted: &'static [&'static str]) -> Result<(), ApiError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(if body.is_empty() { b"{}" } else { body });
    let there = deserializer.deserialize_map(Members(wanted)).unwrap_or_default();
    let mut violations = Violations::default();
    for name in wanted.iter().filter(|name| !there.contains(name)) {
        violations.add(Told::Null, &member(name), "Member must not be null");
    }
    violations.finish()
}

/// `KeyId` as messages call it: `keyId`.
fn member(name: &str) -> String {
    let (first, rest) = name.split_at(1.min(name.len()));
    first.to_ascii_lowercase() + rest
}

/// Which of these members an object has.
struct Members(&'static [&'static str]);

impl<'de> Visitor<'de> for Members {
    type Value = Vec<&'static str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut there = Vec::with_capacity(self.0.len());
        while let Some(name) = map.next_key_seed(OneOf(self.0))? {
            let value: Option<IgnoredAny> = map.next_value()?;
            there.extend(name.filter(|_| value.is_some()));
        }
        Ok(there)
    }
}

struct OneOf(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for OneOf {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for OneOf {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().copied().find(|name| *name == text))
    }
}

pub(crate) fn answer(value: &impl Serialize) -> Result<Bytes, ApiError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| ApiError::internal(error.to_string()))
}

/// A blob in a message: Base64 in whatever way JSON spells it. It may be a secret, and is erased with the message.
pub(crate) struct BlobMember(SecretBytes);

impl BlobMember {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.expose()
    }

    pub(crate) fn into_secret(self) -> SecretBytes {
        self.0
    }
}

impl<'de> Deserialize<'de> for BlobMember {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = SecretBytes::take(String::deserialize(deserializer)?.into_bytes());
        let bytes = STANDARD.decode(text.expose()).map_err(|_| D::Error::custom("it is not Base64"))?;
        Ok(Self(SecretBytes::take(bytes)))
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

/// How a message shows the value of a member.
#[derive(Clone, Copy)]
enum Told<'a> {
    /// It is a blob, or a secret: not at all.
    Hidden,
    Null,
    Text(&'a str),
}

/// Collects what is wrong with the members of a request, in the words of the service.
#[derive(Default)]
pub(crate) struct Violations(Vec<String>);

impl Violations {
    fn add(&mut self, value: Told<'_>, member: &str, constraint: &str) {
        let value = match value {
            Told::Hidden => String::new(),
            Told::Null => " null".into(),
            Told::Text(text) => format!(" '{}'", holdfast_wire::printable(text, VALUE_CHARS_MAX)),
        };
        self.0.push(format!("Value{value} at '{member}' failed to satisfy constraint: {constraint}"));
    }

    /// A member that must be there; its length in characters.
    pub(crate) fn text<'a>(&mut self, value: Option<&'a str>, member: &str, min: usize, max: usize) -> &'a str {
        let Some(text) = value else {
            self.add(Told::Null, member, "Member must not be null");
            return "";
        };
        self.length(text, member, min, max);
        text
    }

    pub(crate) fn length(&mut self, text: &str, member: &str, min: usize, max: usize) {
        self.size(text.chars().count(), Told::Text(text), member, min, max);
    }

    fn size(&mut self, length: usize, value: Told<'_>, member: &str, min: usize, max: usize) {
        if length < min {
            self.add(value, member, &format!("Member must have length greater than or equal to {min}"));
        }
        if length > max {
            self.add(value, member, &format!("Member must have length less than or equal to {max}"));
        }
    }

    /// A blob that must be there.
    pub(crate) fn blob<'a>(&mut self, value: Option<&'a [u8]>, member: &str, min: usize, max: usize) -> &'a [u8] {
        let Some(bytes) = value else {
            self.add(Told::Null, member, "Member must not be null");
            return &[];
        };
        self.size(bytes.len(), Told::Hidden, member, min, max);
        bytes
    }

    /// How many items a list may have.
    pub(crate) fn items(&mut self, count: usize, member: &str, min: usize, max: usize) {
        self.size(count, Told::Hidden, member, min, max);
    }

    /// What is to be said of a secret that does not fit.
    pub(crate) fn secret_pattern(&mut self, member: &str, holds: bool, pattern: &str) {
        if !holds {
            self.add(Told::Hidden, member, &format!("Member must satisfy regular expression pattern: {pattern}"));
        }
    }

    pub(crate) fn one_of(&mut self, value: Option<&str>, member: &str, allowed: &[&str]) {
        if let Some(text) = value
            && !allowed.contains(&text)
        {
            let allowed = allowed.join(", ");
            self.add(Told::Text(text), member, &format!("Member must satisfy enum value set: [{allowed}]"));
        }
    }

    pub(crate) fn range(&mut self, value: Option<i64>, member: &str, min: i64, max: i64) {
        if let Some(number) = value {
            let text = number.to_string();
            if number < min {
                self.add(Told::Text(&text), member, &format!("Member must have value greater than or equal to {min}"));
            }
            if number > max {
                self.add(Told::Text(&text), member, &format!("Member must have value less than or equal to {max}"));
            }
        }
    }

    pub(crate) fn pattern(&mut self, value: &str, member: &str, holds: bool, pattern: &str) {
        if !holds {
            self.add(Told::Text(value), member, &format!("Member must satisfy regular expression pattern: {pattern}"));
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
    fn required_members() {
        let check = |body: &str| check_required(body.as_bytes(), &["KeyId", "Plaintext"]);
        assert!(check(r#"{"Key\u0049d":"k","More":[{"KeyId":1}],"Plaintext":""}"#).is_ok());
        let null = |member| format!("Value null at '{member}' failed to satisfy constraint: Member must not be null");
        for (body, lacks) in [
            ("", vec!["keyId", "plaintext"]),
            (r#"{"More":{"KeyId":"k"},"keyId":"k"}"#, vec!["keyId", "plaintext"]),
            (r#"{"KeyId":null,"Plaintext":"eA=="}"#, vec!["keyId"]),
            (r#"{"KeyId":""}"#, vec!["plaintext"]),
        ] {
            let message = check(body).unwrap_err().message;
            let told = lacks.into_iter().map(null).collect::<Vec<_>>().join("; ");
            assert!(message.ends_with(&format!("detected: {told}")), "{body}: {message}");
        }
    }

    #[test]
    fn blobs_are_base64_however_json_spells_it() {
        for text in [r#""a/8=""#, r#""a\/8=""#, r#""\u0061/8=""#, r#""a\u002f8\u003d""#] {
            assert_eq!(serde_json::from_str::<BlobMember>(text).unwrap().bytes(), [0x6b, 0xff], "{text}");
        }
        for bad in [r#""a/8""#, r#""a_8=""#, r#""a\\/8=""#, "1", "null", r#"["a"]"#] {
            assert!(serde_json::from_str::<BlobMember>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn violations_have_the_shape_that_clients_match_on() {
        let mut violations = Violations::default();
        violations.text(None, "keyId", 1, 2048);
        let error = violations.finish().unwrap_err();
        let one =
            "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null";
        assert_eq!(error.message, one);
        let mut violations = Violations::default();
        violations.blob(Some(&[0; 5]), "plaintext", 1, 4);
        let hidden = "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length \
                      less than or equal to 4";
        assert_eq!(violations.finish().unwrap_err().message, hidden);
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

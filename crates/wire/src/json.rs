//! Strings in JSON bodies that may be secret.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Deserializer, de};

/// A string of a body, read where it lies. One that is written with escapes (`\/` is legal for `/`, and some writers use it in
/// Base64) cannot lie there as it is: it is a copy, erased when it is dropped.
pub struct JsonText<'a>(Text<'a>);

enum Text<'a> {
    Borrowed(&'a str),
    Unescaped(String),
}

impl Deref for JsonText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Text::Borrowed(text) => text,
            Text::Unescaped(text) => text,
        }
    }
}

impl Drop for JsonText<'_> {
    fn drop(&mut self) {
        if let Text::Unescaped(text) = &mut self.0 {
            holdfast_crypto::secret::erase(&mut std::mem::take(text).into_bytes());
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = JsonText<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(JsonText(Text::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(JsonText(Text::Unescaped(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        value: Option<JsonText<'a>>,
    }

    fn read(body: &str) -> Option<String> {
        serde_json::from_str::<Body<'_>>(body).unwrap().value.map(|text| text.to_string())
    }

    #[test]
    fn every_way_to_write_a_character() {
        for value in ["a/b+=", r"a\/b+=", r"\u0061/\u0062+\u003d", r"a\u002Fb\u002b="] {
            assert_eq!(read(&format!(r#"{{"value":"{value}"}}"#)).as_deref(), Some("a/b+="), "{value}");
        }
        assert_eq!(read(r#"{"value":null}"#), None);
        assert_eq!(read("{}"), None);
        for bad in [r#"{"value":1}"#, r#"{"value":"\x"}"#, r#"{"value":"\ud800"}"#] {
            assert!(serde_json::from_str::<Body<'_>>(bad).is_err(), "{bad}");
        }
    }
}

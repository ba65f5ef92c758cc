//! XML between S3's clients and s3s: characters that s3s does not read, and those that XML cannot carry.

use std::{borrow::Cow, fmt::Write as _};

use bytes::Bytes;

/// Replaces references to characters that s3s 0.14 does not know (all between U+10000 and U+FFFFF, and those outside XML 1.0,
/// which S3 takes in this form) by the characters. Others stay. `None`: a reference to no character.
pub(super) fn with_plain_characters(text: &str) -> Option<Cow<'_, str>> {
    /// What is not markup ends here.
    const OPAQUE: [(&str, &str); 2] = [("<![CDATA[", "]]>"), ("<!--", "-->")];
    if !text.contains("&#") {
        return Some(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((open, close)) = OPAQUE.iter().find(|(open, _)| rest.starts_with(open)) {
            let end = rest[open.len()..].find(close)? + open.len() + close.len();
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let Some(reference) = rest.strip_prefix("&#") else {
            out.push_str(&rest[..1]);
            rest = &rest[1..];
            continue;
        };
        let (digits, after) = reference.split_once(';')?;
        let code = match digits.strip_prefix('x') {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => digits.parse().ok()?,
        };
        let character = char::from_u32(code).filter(|character| *character != '\0')?;
        if is_known(character) {
            let _ = write!(out, "&#{code};");
        } else {
            out.push(character);
        }
        rest = after;
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}

/// Whether a body has no other elements than these. s3s passes over some that it does not know.
pub(super) fn has_only(text: &str, elements: &[&str]) -> bool {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(text);
    loop {
        match reader.read_event() {
            Ok(Event::Start(element) | Event::Empty(element)) => {
                let name = element.local_name();
                if !elements.iter().any(|known| known.as_bytes() == name.as_ref()) {
                    return false;
                }
            }
            Ok(Event::Eof) => return true,
            Ok(_) => {}
            // Whoever reads it says what is wrong.
            Err(_) => return true,
        }
    }
}

/// Whether s3s 0.14 reads a reference to this character.
fn is_known(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{100000}'..)
}

/// Writes characters that XML cannot carry as they are as references, as S3 does: control characters, and the carriage
/// return, which a reader would take for a line feed.
pub(super) fn with_escaped_characters(body: Bytes) -> Bytes {
    let is_plain = |character: char| matches!(character, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..);
    match std::str::from_utf8(&body) {
        Ok(text) if !text.chars().all(is_plain) => {
            let mut out = String::with_capacity(text.len() + 16);
            for character in text.chars() {
                if is_plain(character) {
                    out.push(character);
                } else {
                    let _ = write!(out, "&#x{:X};", character as u32);
                }
            }
            Bytes::from(out)
        }
        _ => body,
    }
}

/// The ETag of GetObjectAttributes stands there without the quotes that it has everywhere else.
pub(super) fn without_quotes(body: Bytes) -> Bytes {
    let plain = std::str::from_utf8(&body).ok().and_then(|text| {
        let (head, rest) = text.split_once("<ETag>")?;
        let (etag, tail) = rest.split_once("</ETag>")?;
        let etag = etag.replace("&quot;", "\"");
        Some(format!("{head}<ETag>{}</ETag>{tail}", etag.trim_matches('"')))
    });
    plain.map_or(body, Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_s3s_does_not_read_become_characters() {
        for (text, expected) in [
            ("<Key>&#128273;</Key>", Some("<Key>\u{1f511}</Key>")),
            ("<Key>&#x1F511;&amp;&#38;&#x26;</Key>", Some("<Key>\u{1f511}&amp;&#38;&#38;</Key>")),
            ("<Key>&#1;&#xD;&#xFFFF;</Key>", Some("<Key>\u{1}&#13;\u{ffff}</Key>")),
            ("<Key><![CDATA[&#128273;]]></Key>&#128273;", Some("<Key><![CDATA[&#128273;]]></Key>\u{1f511}")),
            ("<Key>\u{1f511} &#10FFFF;</Key>", None),
            ("<Key>&#0;</Key>", None),
            ("<Key>&#xD800;</Key>", None),
            ("<Key>&#128273</Key>", None),
        ] {
            assert_eq!(with_plain_characters(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_xml_cannot_carry_is_escaped() {
        let escaped = |text: &'static str| with_escaped_characters(Bytes::from_static(text.as_bytes()));
        assert_eq!(escaped("<Key>a\r\u{1}\u{ffff}\u{1f511}\n</Key>"), "<Key>a&#xD;&#x1;&#xFFFF;\u{1f511}\n</Key>");
        assert_eq!(escaped("<Key>plain</Key>"), "<Key>plain</Key>");
    }
}

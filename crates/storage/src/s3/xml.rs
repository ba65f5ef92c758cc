//! XML between S3's clients and s3s: characters that s3s does not read, and those that XML cannot carry.

use std::{borrow::Cow, fmt::Write as _};

use bytes::Bytes;

/// Makes a body such that s3s 0.14 reads what it says: references to characters that it does not know (between U+10000 and
/// U+FFFFF, and those outside XML 1.0, which S3 takes in this form) become the characters, CDATA, which it passes over, becomes
/// text, and ends of lines become line feeds (XML 1.0, section 2.11). `None`: a reference to no character, or an open end.
pub(super) fn with_plain_characters(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains("&#") && !text.contains("<!") && !text.contains('\r') {
        return Some(Cow::Borrowed(text));
    }
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(['&', '<']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->")?.1;
        } else if let Some(data) = rest.strip_prefix("<![CDATA[") {
            let (data, after) = data.split_once("]]>")?;
            out.push_str(&escaped(data, is_markup));
            rest = after;
        } else if let Some(reference) = rest.strip_prefix("&#") {
            let (digits, after) = reference.split_once(';')?;
            push_character(&mut out, digits)?;
            rest = after;
        } else {
            out.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}

/// The character that a reference names, or the reference, where s3s reads it.
fn push_character(out: &mut String, digits: &str) -> Option<()> {
    let (digits, radix) = digits.strip_prefix('x').map_or((digits, 10), |hex| (hex, 16));
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let code = u32::from_str_radix(digits, radix).ok()?;
    let character = char::from_u32(code).filter(|character| *character != '\0')?;
    if is_known(character) {
        let _ = write!(out, "&#{code};");
    } else {
        out.push(character);
    }
    Some(())
}

/// Whether a body is one element, and has no other elements than these. s3s passes over some that it does not know, and over
/// what comes behind the end.
pub(super) fn has_only(text: &str, elements: &[&str]) -> bool {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut depth, mut roots) = (0_usize, 0_usize);
    loop {
        let event = reader.read_event();
        if let Ok(Event::Start(element) | Event::Empty(element)) = &event {
            roots += usize::from(depth == 0);
            if !elements.iter().any(|known| known.as_bytes() == element.local_name().as_ref()) {
                return false;
            }
        }
        match event {
            Ok(Event::Start(_)) => depth += 1,
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            Ok(Event::Text(text)) if depth == 0 && !text.trim_ascii().is_empty() => return false,
            Ok(Event::GeneralRef(_)) if depth == 0 => return false,
            Ok(Event::Eof) => return depth == 0 && roots <= 1,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Whether s3s 0.14 reads a reference to this character.
fn is_known(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{100000}'..)
}

/// Whether a character means something in XML.
fn is_markup(character: char) -> bool {
    matches!(character, '&' | '<' | '>')
}

/// Whether XML cannot carry a character as it is: control characters, and the carriage return, which a reader would take for a line feed.
fn is_unfit(character: char) -> bool {
    !matches!(character, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// Text with references in the place of the characters that `which` names.
fn escaped(text: &str, which: fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            character if !which(character) => out.push(character),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            character => drop(write!(out, "&#x{:X};", u32::from(character))),
        }
    }
    out
}

/// Writes characters that XML cannot carry as they are as references, as S3 does.
pub(super) fn with_escaped_characters(body: Bytes) -> Bytes {
    match std::str::from_utf8(&body) {
        Ok(text) if text.chars().any(is_unfit) => Bytes::from(escaped(text, is_unfit)),
        _ => body,
    }
}

/// A document of one element with these members, those that are empty left out. What XML 1.0 cannot carry at all becomes a replacement
/// character.
pub(crate) fn element<'a>(name: &str, members: impl IntoIterator<Item = (&'static str, Cow<'a, str>)>) -> String {
    let mut out = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><{name}>");
    for (member, value) in members.into_iter().filter(|(_, value)| !value.is_empty()) {
        let is_none = |character: char| is_unfit(character) && character != '\r';
        let value = value.replace(is_none, "\u{fffd}");
        let which = |character| is_markup(character) || matches!(character, '\t' | '\n' | '\r');
        let _ = write!(out, "<{member}>{}</{member}>", escaped(&value, which));
    }
    let _ = write!(out, "</{name}>");
    out
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
            ("<Key>a<![CDATA[c<&#1;]]></Key>", Some("<Key>ac&lt;&amp;#1;</Key>")),
            ("<Key>a<!-- &#0; -->b</Key>", Some("<Key>ab</Key>")),
            ("<Key>a\r\nb\rc&#13;</Key>", Some("<Key>a\nb\nc&#13;</Key>")),
            ("<Key><![CDATA[open</Key>", None),
            ("<Key>&#+99;</Key>", None),
            ("<Key>\u{1f511} &#10FFFF;</Key>", None),
            ("<Key>&#0;</Key>", None),
            ("<Key>&#xD800;</Key>", None),
            ("<Key>&#128273</Key>", None),
        ] {
            assert_eq!(with_plain_characters(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_body_is_one_element_of_known_ones() {
        for (text, expected) in [
            ("<?xml version=\"1.0\"?>\n<A><B>1</B></A>\n", true),
            ("", true),
            ("<A/>", true),
            ("<A><C/></A>", false),
            ("<A/>garbage", false),
            ("<A/><A/>", false),
            ("<A>", false),
        ] {
            assert_eq!(has_only(text, &["A", "B"]), expected, "{text}");
        }
    }

    #[test]
    fn an_element_carries_any_text() {
        let members = [("Key", Cow::from("a<&>\r\n\u{1}\u{1f511}\"")), ("Message", Cow::from(""))];
        let expected = "<Error><Key>a&lt;&amp;&gt;&#xD;&#xA;\u{fffd}\u{1f511}\"</Key></Error>";
        assert!(element("Error", members).ends_with(expected));
    }

    #[test]
    fn what_xml_cannot_carry_is_escaped() {
        let escaped = |text: &'static str| with_escaped_characters(Bytes::from_static(text.as_bytes()));
        assert_eq!(escaped("<Key>a\r\u{1}\u{ffff}\u{1f511}\n</Key>"), "<Key>a&#xD;&#x1;&#xFFFF;\u{1f511}\n</Key>");
        assert_eq!(escaped("<Key>plain</Key>"), "<Key>plain</Key>");
    }
}

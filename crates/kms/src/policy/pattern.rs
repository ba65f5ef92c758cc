//! Patterns with `*` and `?`, and variables in them.

use std::borrow::Cow;

use super::Facts;

/// Condition keys that change by themselves.
pub(super) const TIMES: [&str; 2] = ["aws:currenttime", "aws:epochtime"];

/// Text with `*` (any run), `?` (one character) and `${variable}`.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    variables: bool,
}

impl Pattern {
    /// `variables`: whether the document's version knows them.
    pub(crate) fn new(text: &str, variables: bool) -> Self {
        Self { text: text.to_owned(), variables: variables && text.contains("${") }
    }

    /// Whether a variable in it may be the hour.
    pub(crate) fn looks_at_time(&self) -> bool {
        let folded = if self.variables { self.text.to_ascii_lowercase() } else { String::new() };
        TIMES.iter().any(|name| folded.contains(name))
    }

    pub(crate) fn matches(&self, text: &str, ignore_case: bool, facts: &dyn Facts) -> bool {
        if self.text == "*" {
            return true;
        }
        self.expand(facts).is_some_and(|pattern| glob(&pattern, text, ignore_case))
    }

    /// The text with every variable replaced; `None` if one has no value, or several: then nothing matches.
    ///
    /// What a variable holds is taken literally: wildcards in it match themselves only where the pattern is compared by
    /// [`glob`], which knows them escaped.
    pub(crate) fn expand(&self, facts: &dyn Facts) -> Option<Cow<'_, str>> {
        if !self.variables {
            return Some(Cow::Borrowed(&self.text));
        }
        let mut out = String::new();
        let mut rest = self.text.as_str();
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            let (name, after) = after.split_once('}')?;
            match name {
                "*" | "?" | "$" => out.push_str(&escape(name)),
                _ => {
                    let (name, default) = name.split_once(',').map_or((name, None), |(name, default)| {
                        (name.trim(), Some(default.trim().trim_matches('\'').to_owned()))
                    });
                    let values = facts.values(&fold_key(name));
                    let value = match values.as_deref() {
                        Some([value]) => value.clone().into_owned(),
                        _ => default?,
                    };
                    out.push_str(&escape(&value));
                }
            }
            rest = after;
        }
        out.push_str(rest);
        Some(Cow::Owned(out))
    }
}

/// Stands before a character that is no wildcard. It cannot be in a policy's text: JSON policies with control characters are
/// refused.
const LITERAL: char = '\u{1}';

fn escape(text: &str) -> String {
    text.chars().flat_map(|c| [LITERAL, c]).collect()
}

/// `text` without the marks that [`Pattern::expand`] leaves: for comparisons without wildcards.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    if text.contains(LITERAL) { Cow::Owned(text.replace(LITERAL, "")) } else { Cow::Borrowed(text) }
}

/// Whether `text` fits `pattern`. Linear in practice: it goes back to the last `*` only.
pub(crate) fn glob(pattern: &str, text: &str, ignore_case: bool) -> bool {
    let mut pattern = pattern.chars();
    let mut text = text.chars();
    let same = |a: char, b: char| if ignore_case { a.eq_ignore_ascii_case(&b) } else { a == b };
    // Where to go on if what follows the last `*` does not fit here.
    let mut back: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        match pattern.next() {
            Some('*') => {
                back = Some((pattern.clone(), text.clone()));
                continue;
            }
            Some(LITERAL) => {
                let (wanted, found) = (pattern.next(), text.next());
                if wanted.zip(found).is_some_and(|(wanted, found)| same(wanted, found)) {
                    continue;
                }
            }
            Some('?') => {
                if text.next().is_some() {
                    continue;
                }
            }
            Some(wanted) => {
                if text.next().is_some_and(|found| same(wanted, found)) {
                    continue;
                }
            }
            None => {
                if text.as_str().is_empty() {
                    return true;
                }
            }
        }
        let Some((after_star, from)) = &mut back else { return false };
        if from.next().is_none() {
            return false;
        }
        (pattern, text) = (after_star.clone(), from.clone());
    }
}
/// The name of a condition key without regard to case, but for the name inside a map (`kms:EncryptionContext:`**`Name`**,
/// `aws:PrincipalTag/`**`Name`**).
pub(crate) fn fold_key(key: &str) -> String {
    let maps = ["kms:EncryptionContext:", "aws:PrincipalTag/", "aws:ResourceTag/", "aws:RequestTag/"];
    for map in maps {
        if key.len() > map.len() && key.is_char_boundary(map.len()) && key[..map.len()].eq_ignore_ascii_case(map) {
            return format!("{}{}", map.to_ascii_lowercase(), &key[map.len()..]);
        }
    }
    key.to_ascii_lowercase()
}

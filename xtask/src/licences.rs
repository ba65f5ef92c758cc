//! Licences of every dependency against the list in deny.toml, without a network.

use std::{fs, path::Path};

use serde_json::Value;

/// The faults found; none is good.
pub(crate) fn check(metadata: &Value, deny: &Path) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(deny).map_err(|error| format!("{}: {error}", deny.display()))?;
    let deny: toml::Table = text.parse().map_err(|error| format!("deny.toml: {error}"))?;
    let allowed: Vec<&str> = deny
        .get("licenses")
        .and_then(|licenses| licenses.get("allow")?.as_array())
        .map(|list| list.iter().filter_map(|licence| licence.as_str()).collect())
        .ok_or("deny.toml: [licenses] allow is missing")?;
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (name, expression) = (&package["name"], package["license"].as_str().unwrap_or_default());
        if !accepted(expression, &allowed) {
            faults.push(format!("{name}: licence {expression:?} is not in deny.toml"));
        }
    }
    Ok(faults)
}

/// Evaluates an SPDX expression; the old `/` means OR.
fn accepted(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens = spaced.split_whitespace().peekable();
    let result = any_of(&mut tokens, allowed);
    result && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(tokens: &mut Tokens<'_>, allowed: &[&str]) -> bool {
    let mut result = all_of(tokens, allowed);
    while tokens.next_if_eq(&"OR").is_some() {
        result |= all_of(tokens, allowed);
    }
    result
}

fn all_of(tokens: &mut Tokens<'_>, allowed: &[&str]) -> bool {
    let mut result = one(tokens, allowed);
    while tokens.next_if_eq(&"AND").is_some() {
        result &= one(tokens, allowed);
    }
    result
}

fn one(tokens: &mut Tokens<'_>, allowed: &[&str]) -> bool {
    let Some(token) = tokens.next() else { return false };
    if token == "(" {
        let result = any_of(tokens, allowed);
        return tokens.next() == Some(")") && result;
    }
    let mut licence = token.to_owned();
    if tokens.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", tokens.next().unwrap_or_default());
    }
    allowed.contains(&licence.as_str())
}

#[cfg(test)]
mod tests {
    use super::accepted;

    #[test]
    fn expressions() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"];
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "ISC AND (Apache-2.0 OR GPL-2.0)",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(accepted(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT MIT"] {
            assert!(!accepted(bad, &allowed), "{bad}");
        }
    }
}

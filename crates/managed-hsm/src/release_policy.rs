//! The grammar of release policies, version 1.0.0 (Microsoft: "Azure Managed HSM secure key release policy grammar").
//!
//! ```text
//! policy    = {"version": "1.0.0", "anyOf": [authority, ...]}
//! authority = {"authority": "https://...", ("anyOf" | "allOf"): [condition, ...]}
//! condition = {"claim": "name", "equals": string | number | true | false}
//!           | {"anyOf": [condition, ...]} | {"allOf": [condition, ...]}
//! ```
//!
//! A policy is checked when a key gets it: whoever makes a mistake learns of it then, not when the key is needed. Member names
//! that are not in the grammar, and members named twice, are refused: what they were meant to bound would not be bounded.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Authorities and conditions in one policy, all told.
const PARTS_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    version: String,
    #[serde(rename = "anyOf")]
    any_of: Vec<Authority>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Authority {
    authority: String,
    #[serde(default, deserialize_with = "present", rename = "anyOf")]
    any_of: Option<Vec<Condition>>,
    #[serde(default, deserialize_with = "present", rename = "allOf")]
    all_of: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(default, deserialize_with = "present")]
    claim: Option<String>,
    #[serde(default, deserialize_with = "present")]
    equals: Option<Value>,
    #[serde(default, deserialize_with = "present", rename = "anyOf")]
    any_of: Option<Vec<Condition>>,
    #[serde(default, deserialize_with = "present", rename = "allOf")]
    all_of: Option<Vec<Condition>>,
}

/// A member that is there has a value: the grammar knows no `null`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Checks the text of a policy.
///
/// # Errors
/// What is wrong with it, in words that repeat nothing of it.
pub(crate) fn check(text: &[u8]) -> Result<(), &'static str> {
    // serde_json bounds how deep conditions lie in each other.
    let policy: Policy = serde_json::from_slice(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => "a member is unknown, missing, named twice or of the wrong type",
        _ => "it is not JSON",
    })?;
    if !is_version(&policy.version) {
        return Err("its version must be 1.0.0");
    }
    let mut parts = policy.any_of.len();
    if parts == 0 {
        return Err("anyOf must name an authority");
    }
    for authority in &policy.any_of {
        if authority.authority.strip_prefix("https://").is_none_or(str::is_empty) {
            return Err("an authority must be an https URL");
        }
        match (&authority.any_of, &authority.all_of) {
            (Some(conditions), None) | (None, Some(conditions)) => check_conditions(conditions, &mut parts)?,
            _ => return Err("an authority has either anyOf or allOf"),
        }
    }
    Ok(())
}

/// Samples and tools write 1.0 and 0.2 for the same grammar.
fn is_version(text: &str) -> bool {
    let mut numbers = text.split('.');
    matches!(numbers.next(), Some("0" | "1"))
        && numbers.all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn check_conditions(conditions: &[Condition], parts: &mut usize) -> Result<(), &'static str> {
    *parts += conditions.len();
    if conditions.is_empty() {
        return Err("anyOf and allOf must hold a condition");
    }
    if *parts > PARTS_MAX {
        return Err("it has too many conditions");
    }
    for Condition { claim, equals, any_of, all_of } in conditions {
        match (claim, equals, any_of, all_of) {
            (Some(claim), Some(value), None, None) => {
                if claim.is_empty() {
                    return Err("a claim must have a name");
                }
                if !matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_)) {
                    return Err("equals takes a string, a number, true or false");
                }
            }
            (None, None, Some(inner), None) | (None, None, None, Some(inner)) => check_conditions(inner, parts)?,
            _ => return Err("a condition is a claim with equals, an anyOf or an allOf"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: &str = r#"{"claim":"x-ms-isolation-tee.x-ms-attestation-type","equals":"sevsnpvm"}"#;

    fn of_conditions(conditions: &str) -> String {
        format!(r#"{{"version":"1.0.0","anyOf":[{{"authority":"https://maa.example.com/","allOf":[{conditions}]}}]}}"#)
    }

    #[test]
    fn the_grammar() {
        for good in [
            of_conditions(CLAIM),
            of_conditions(r#"{"claim":"a","equals":true},{"claim":"b","equals":-1.5e3}"#),
            of_conditions(&format!(r#"{{"anyOf":[{CLAIM},{{"allOf":[{CLAIM}]}}]}}"#)),
            of_conditions(CLAIM).replace("1.0.0", "1.0").replace("allOf", "anyOf"),
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let good = of_conditions(CLAIM);
        let changed = |from: &str, to: &str| {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            bad
        };
        let deep = (0..200).fold(CLAIM.to_owned(), |inner, _| format!(r#"{{"anyOf":[{inner}]}}"#));
        let many = vec![CLAIM; PARTS_MAX + 1].join(",");
        for bad in [
            String::new(),
            "{}".into(),
            "[]".into(),
            "not JSON".into(),
            format!("{good}{good}"),
            changed(r#""version":"1.0.0","#, ""),
            changed(r#""1.0.0""#, "1"),
            changed("1.0.0", "2.0.0"),
            changed("1.0.0", "1."),
            changed(r#"{"version""#, r#"{"extra":1,"version""#),
            changed(r#"{"version""#, r#"{"version":"1.0.0","version""#),
            changed("https://maa.example.com/", "maa.example.com"),
            changed("https://maa.example.com/", "http://maa.example.com"),
            changed(r#""authority":"https://maa.example.com/","#, ""),
            changed("allOf", "allof"),
            changed("allOf", "noneOf"),
            changed(r#""allOf":["#, r#""anyOf":null,"allOf":["#),
            changed(r#""allOf":["#, r#""anyOf":[{"claim":"a","equals":1}],"allOf":["#),
            changed("equals", "notEquals"),
            changed(r#""sevsnpvm""#, "null"),
            changed(r#""sevsnpvm""#, "[1]"),
            changed(r#""sevsnpvm""#, r#"{"a":1}"#),
            changed("x-ms-isolation-tee.x-ms-attestation-type", ""),
            r#"{"version":"1.0.0","anyOf":[]}"#.into(),
            r#"{"version":"1.0.0","allOf":[]}"#.into(),
            of_conditions(""),
            of_conditions("{}"),
            of_conditions(r#"{"claim":"a"}"#),
            of_conditions(r#"{"equals":1}"#),
            of_conditions(r#"{"claim":"a","equals":1,"anyOf":[]}"#),
            of_conditions(r#"{"anyOf":[]}"#),
            of_conditions(&deep),
            of_conditions(&many),
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

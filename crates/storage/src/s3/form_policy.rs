//! The policy of a POST form: what its fields may say. s3s checks it as well, but answers with other codes than S3, takes
//! dates that are none, and asks for claims about the body to be in it.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use s3s::dto;
use serde_json::Value;

use crate::error::{Error, Result};

/// Fields that need not be in a policy: what signs it, the file, and what is claimed of the file.
const FREE: &[&str] = &[
    "awsaccesskeyid",
    "file",
    "policy",
    "signature",
    "submit",
    "x-amz-signature",
    "content-md5",
    "x-amz-checksum-algorithm",
];
const FREE_PREFIXES: &[&str] = &["x-ignore-", "x-amz-checksum-"];

fn denied(why: &str) -> Error {
    Error::DeniedBecause(format!("Invalid according to Policy: {why}").into())
}

fn invalid(why: &str) -> Error {
    Error::InvalidPolicyDocument(format!("Invalid Policy: {why}"))
}

/// One condition on a field. How long the file may be is s3s's to check, which has it.
struct Condition {
    field: String,
    value: String,
    prefix: bool,
}

/// Checks the fields, by their names in lower case, against the policy among them, if there is one; without one the request is
/// nobody's. Gives the names that it speaks of.
///
/// # Errors
/// `InvalidPolicyDocument`; `AccessDenied` for what the policy does not allow.
pub(super) fn check(fields: &[(String, String)], bucket: &str, now_millis: i64) -> Result<Vec<String>> {
    let value = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let Some(policy) = value("policy") else { return Ok(Vec::new()) };
    let policy = BASE64.decode(policy.trim()).map_err(|_| invalid("it is not base64"))?;
    let policy: Value = serde_json::from_slice(&policy).map_err(|_| invalid("Invalid JSON."))?;
    check_expiration(&policy, now_millis)?;
    let conditions = conditions(&policy)?;
    for Condition { field, value: wanted, prefix } in &conditions {
        let found = if field == "bucket" { value(field).or(Some(bucket)) } else { value(field) };
        let found = found.unwrap_or_default();
        if found != wanted && !(*prefix && found.starts_with(wanted.as_str())) {
            let operator = if *prefix { "starts-with" } else { "eq" };
            return Err(denied(&format!("Policy Condition failed: [\"{operator}\", \"${field}\", \"{wanted}\"]")));
        }
    }
    let is_free = |name: &str| FREE.contains(&name) || FREE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let is_covered = |name: &str| conditions.iter().any(|condition| condition.field == name);
    match fields.iter().find(|(name, _)| !is_free(name) && !is_covered(name)) {
        Some((name, _)) => Err(denied(&format!("Extra input fields: {name}"))),
        None => Ok(conditions.into_iter().map(|condition| condition.field).collect()),
    }
}

/// ISO 8601 in UTC: `2026-11-26T18:00:00.000Z`, with or without the fraction.
fn check_expiration(policy: &Value, now_millis: i64) -> Result<()> {
    let text = policy["expiration"].as_str().ok_or_else(|| invalid("Policy missing expiration."))?;
    let expiration = dto::Timestamp::parse(dto::TimestampFormat::DateTime, text)
        .ok()
        .filter(|_| text.as_bytes().get(10) == Some(&b'T') && text.ends_with('Z'))
        .ok_or_else(|| {
            invalid(&format!("Invalid 'expiration' value: '{}'", text.chars().take(64).collect::<String>()))
        })?;
    if expiration <= crate::ops::timestamp(now_millis) {
        return Err(denied("Policy expired."));
    }
    Ok(())
}

fn conditions(policy: &Value) -> Result<Vec<Condition>> {
    let listed = policy["conditions"].as_array().ok_or_else(|| invalid("Policy missing conditions."))?;
    let malformed = || invalid("Invalid Simple-Condition: value must be a string.");
    let mut out = Vec::with_capacity(listed.len());
    for condition in listed {
        if let Some(members) = condition.as_object() {
            for (name, value) in members {
                let value = value.as_str().ok_or_else(malformed)?.to_owned();
                out.push(Condition { field: name.to_ascii_lowercase(), value, prefix: false });
            }
            continue;
        }
        let words = condition.as_array().filter(|words| words.len() == 3).ok_or_else(malformed)?;
        let operator = words[0].as_str().ok_or_else(malformed)?.to_ascii_lowercase();
        if operator == "content-length-range" {
            continue;
        }
        let prefix = match operator.as_str() {
            "eq" => false,
            "starts-with" => true,
            _ => return Err(invalid("Invalid Condition operation.")),
        };
        let field = words[1].as_str().and_then(|name| name.strip_prefix('$')).ok_or_else(malformed)?;
        let value = words[2].as_str().ok_or_else(malformed)?.to_owned();
        out.push(Condition { field: field.to_ascii_lowercase(), value, prefix });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(policy: &str, fields: &[(&str, &str)]) -> Result<(), String> {
        let policy = ("policy".to_owned(), BASE64.encode(policy));
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let fields: Vec<_> = fields.chain([policy]).collect();
        check(&fields, "b", 1_700_000_000_000).map(drop).map_err(|error| error.code().to_owned())
    }

    #[test]
    fn a_form_says_what_its_policy_allows() {
        let with =
            |conditions: &str| format!(r#"{{"expiration":"2030-01-01T00:00:00.000Z","conditions":{conditions}}}"#);
        let denied = Err("AccessDenied".to_owned());
        let invalid = Err("InvalidPolicyDocument".to_owned());
        let key = ("key", "up/a");
        for (policy, fields, expected) in [
            (with(r#"[{"bucket":"b"},["starts-with","$key","up/"],["content-length-range",0,9]]"#), vec![key], Ok(())),
            (
                with(r#"[["eq","$Key","up/a"]]"#),
                vec![key, ("x-ignore-me", "1"), ("x-amz-checksum-sha256", "1")],
                Ok(()),
            ),
            (with(r#"[{"bucket":"other"},{"key":"up/a"}]"#), vec![key], denied.clone()),
            (with(r#"[{"key":"up/b"}]"#), vec![key], denied.clone()),
            (with(r#"[{"key":"up/a"}]"#), vec![key, ("acl", "private")], denied.clone()),
            (with(r#"[{"key":"up/a"},{"acl":"private"}]"#), vec![key], denied.clone()),
            (with(r#"[["ends-with","$key","a"]]"#), vec![key], invalid.clone()),
            (with(r#"[["eq","key","up/a"]]"#), vec![key], invalid.clone()),
            (with(r#"[{"key":1}]"#), vec![key], invalid.clone()),
            (r#"{"conditions":[]}"#.into(), vec![], invalid.clone()),
            (r#"{"expiration":"2030-01-01 00:00:00+00:00","conditions":[]}"#.into(), vec![], invalid.clone()),
            (r#"{"expiration":"2030-01-01T00:00:00Z"}"#.into(), vec![], invalid.clone()),
            (r#"{"expiration":"2020-01-01T00:00:00Z","conditions":[]}"#.into(), vec![], denied.clone()),
            ("nonsense".into(), vec![], invalid.clone()),
        ] {
            assert_eq!(checked(&policy, &fields), expected, "{policy} {fields:?}");
        }
    }
}

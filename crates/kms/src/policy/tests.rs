use std::{borrow::Cow, collections::HashMap};

use proptest::prelude::*;

use super::*;

struct Known(HashMap<&'static str, Vec<&'static str>>);

impl Facts for Known {
    fn values(&self, key: &str) -> Option<Vec<Cow<'_, str>>> {
        self.0.get(key).map(|values| values.iter().map(|value| Cow::Borrowed(*value)).collect())
    }
}

fn known(facts: &[(&'static str, &[&'static str])]) -> Known {
    Known(facts.iter().map(|(key, values)| (*key, values.to_vec())).collect())
}

fn condition(operator: &str, key: &str, values: &[&str]) -> Condition {
    let values = values.iter().map(|value| Pattern::new(value, true)).collect();
    Condition::new(operator, key, values).unwrap_or_else(|| panic!("{operator}"))
}

const ALICE: &str = "arn:aws:iam::111122223333:user/alice";
const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234";

fn ask<'a>(
    policy: &'a PolicyDocument,
    arn: &str,
    action: &str,
    facts: &Known,
) -> (Option<&'a str>, Option<&'a str>, Option<&'a str>) {
    let account = arn.split(':').nth(4).unwrap();
    let question = Question { asker: Asker { arn, account, service: None }, action, resource: KEY, facts };
    let answer = policy.evaluate(&question);
    let name = |statement: Option<&'a Statement>| statement.map(|statement| statement.name.as_str());
    (name(answer.deny), name(answer.allow), name(answer.allow_account))
}

#[test]
fn statements_apply_to_principals_actions_and_resources() {
    let policy = PolicyDocument::parse(
        PolicyKind::Key,
        r#"{"Version":"2012-10-17","Statement":[
            {"Sid":"Root","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"},
            {"Sid":"Alice","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:user/alice"]},"Action":["KMS:encrypt","kms:Re*"],"Resource":"*"},
            {"Sid":"NotBob","Effect":"Deny","Principal":{"AWS":"arn:aws:iam::111122223333:user/bob"},"NotAction":"kms:Describe*","Resource":"*"},
            {"Effect":"Allow","Principal":"*","Action":"kms:GetPublicKey","Resource":"arn:aws:kms:*:key/9999"}]}"#,
    )
    .unwrap();
    let facts = known(&[]);
    assert_eq!(ask(&policy, ALICE, "kms:Encrypt", &facts), (None, Some("Alice"), Some("Root")));
    assert_eq!(ask(&policy, ALICE, "kms:ReEncryptFrom", &facts), (None, Some("Alice"), Some("Root")));
    assert_eq!(ask(&policy, ALICE, "kms:Decrypt", &facts), (None, None, Some("Root")));
    let bob = "arn:aws:iam::111122223333:user/bob";
    assert_eq!(ask(&policy, bob, "kms:Encrypt", &facts), (Some("NotBob"), None, Some("Root")));
    assert_eq!(ask(&policy, bob, "kms:DescribeKey", &facts), (None, None, Some("Root")));
    let stranger = "arn:aws:iam::999999999999:user/alice";
    assert_eq!(ask(&policy, stranger, "kms:Encrypt", &facts), (None, None, None));
    assert_eq!(ask(&policy, stranger, "kms:GetPublicKey", &facts), (None, None, None), "of another key");
}

#[test]
fn operators() {
    let facts = known(&[
        ("s", &["Blue"]),
        ("many", &["a", "b"]),
        ("arn", &["arn:aws:s3:::bucket/a:b"]),
        ("n", &["30"]),
        ("t", &["2026-11-25T12:00:00Z"]),
        ("ip", &["10.1.2.3"]),
        ("flag", &["true"]),
        ("star", &["*"]),
    ]);
    for (operator, key, values, holds) in [
        ("StringEquals", "S", &["Red", "Blue"][..], true),
        ("StringEquals", "s", &["blue"], false),
        ("StringEqualsIgnoreCase", "s", &["bLUE"], true),
        ("StringNotEquals", "s", &["Red", "Blue"], false),
        ("StringNotEquals", "none", &["Red"], true),
        ("StringLike", "s", &["B?u*"], true),
        ("StringNotLike", "s", &["B*"], false),
        ("StringEquals", "none", &["x"], false),
        ("StringEqualsIfExists", "none", &["x"], true),
        ("StringEqualsIfExists", "s", &["x"], false),
        ("ForAllValues:StringEquals", "many", &["a", "b", "c"], true),
        ("ForAllValues:StringEquals", "many", &["a"], false),
        ("ForAllValues:StringEquals", "none", &["a"], true),
        ("ForAnyValue:StringEquals", "many", &["b", "z"], true),
        ("ForAnyValue:StringEquals", "none", &["b"], false),
        ("StringNotEquals", "many", &["b"], false),
        ("ForAnyValue:StringNotEquals", "many", &["a"], true),
        ("ForAnyValue:StringNotEquals", "many", &["a", "b"], false),
        ("ForAnyValue:StringNotEquals", "none", &["a"], false),
        ("ForAnyValue:StringNotEqualsIfExists", "none", &["a"], true),
        ("ForAllValues:StringNotEquals", "many", &["a"], false),
        ("ForAllValues:StringNotEquals", "many", &["c"], true),
        ("ArnLike", "arn", &["arn:aws:s3:::bucket/*"], true),
        ("ArnLike", "arn", &["arn:*"], false),
        ("ArnNotEquals", "arn", &["arn:aws:s3:::other"], true),
        ("NumericLessThanEquals", "n", &["30"], true),
        ("NumericGreaterThan", "n", &["30"], false),
        ("NumericNotEquals", "n", &["30.0"], false),
        ("DateLessThan", "t", &["2026-11-26"], true),
        ("DateGreaterThanEquals", "t", &["1795608000"], true),
        ("IpAddress", "ip", &["10.0.0.0/8"], true),
        ("IpAddress", "ip", &["0.0.0.0/0"], true),
        ("IpAddress", "ip", &["10.1.2.4/31"], false),
        ("NotIpAddress", "ip", &["10.1.2.3"], false),
        ("Bool", "flag", &["True"], true),
        ("Null", "none", &["true"], true),
        ("Null", "s", &["false"], true),
        ("Null", "s", &["true"], false),
        ("StringEquals", "s", &["${s}"], true),
        ("StringLike", "s", &["${star}"], false),
        ("StringLike", "star", &["${star}"], true),
        ("StringEquals", "s", &["${none}"], false),
        ("StringEquals", "s", &["${none, 'Blue'}"], true),
        ("StringEquals", "s", &["${many}"], false),
    ] {
        assert_eq!(condition(operator, key, values).holds(&facts), holds, "{operator} {key} {values:?}");
    }
    for unknown in ["StringSort", "ForSome:StringEquals", "NullIfExists", "NumericLike", "Date", ""] {
        assert!(Condition::new(unknown, "k", Vec::new()).is_none(), "{unknown}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let statement = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#;
    let whole = |statement: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#);
    assert!(PolicyDocument::parse(PolicyKind::Key, &whole(statement)).is_ok());
    assert!(PolicyDocument::parse(PolicyKind::Identity, &whole(statement)).is_err(), "no principal there");
    for (from, to) in [
        ("Allow", "Permit"),
        ("\"Principal\":\"*\",", ""),
        ("\"Principal\":\"*\"", "\"Principal\":\"alice\""),
        ("\"Principal\":\"*\"", "\"Principal\":{\"AWS\":\"arn:aws:iam::1:user/a\"}"),
        ("\"Principal\":\"*\"", "\"Principal\":{\"AWS\":\"arn:aws:iam::111122223333:user/*\"}"),
        ("\"Principal\":\"*\"", "\"Principal\":{\"Federated\":\"x\"}"),
        ("\"Principal\":\"*\"", "\"NotPrincipal\":\"*\""),
        ("\"Action\"", "\"Actions\""),
        ("\"Action\":\"kms:*\"", "\"Action\":1"),
        ("\"Resource\":\"*\"", "\"Resource\":\"*\",\"Condition\":{\"StringSort\":{\"a\":\"b\"}}"),
        ("\"Resource\":\"*\"", "\"Resource\":\"*\",\"NotResource\":\"*\""),
        ("\"Effect\":\"Allow\"", "\"Effect\":\"Deny\",\"Effect\":\"Allow\""),
        (
            "\"Resource\":\"*\"",
            "\"Resource\":\"*\",\"Condition\":{\"Bool\":{\"a\":\"true\"},\"Bool\":{\"b\":\"true\"}}",
        ),
        ("\"Resource\":\"*\"", "\"Resource\":\"*\",\"Condition\":{\"Bool\":{\"a\":\"true\",\"a\":\"false\"}}"),
    ] {
        assert!(statement.contains(from), "{from}");
        assert!(PolicyDocument::parse(PolicyKind::Key, &whole(&statement.replace(from, to))).is_err(), "{to}");
    }
    // Nobody and nothing are refused when they are given; what was taken once is read for ever.
    for (from, to) in [
        ("\"Principal\":\"*\"", "\"Principal\":{\"AWS\":[]}"),
        ("\"Principal\":\"*\"", "\"Principal\":{}"),
        ("\"Principal\":\"*\"", "\"Principal\":{\"AWS\":\"111122223333\",\"Service\":[]}"),
        ("\"Principal\":\"*\"", "\"Principal\":{\"Service\":\"\"}"),
        ("\"Allow\",\"Principal\":\"*\"", "\"Deny\",\"NotPrincipal\":{\"AWS\":[]}"),
        ("\"Action\":\"kms:*\"", "\"Action\":[]"),
        ("\"Action\":\"kms:*\"", "\"NotAction\":[]"),
        ("\"Resource\":\"*\"", "\"Resource\":[]"),
        ("\"Resource\":\"*\"", "\"Resource\":\"*\",\"Condition\":{\"Bool\":{\"a\":[]}}"),
    ] {
        assert!(statement.contains(from), "{from}");
        let text = whole(&statement.replace(from, to));
        assert!(PolicyDocument::parse(PolicyKind::Key, &text).is_err(), "{to}");
        assert!(PolicyDocument::parse_stored(PolicyKind::Key, &text).is_ok(), "{to}");
    }
    // Without the array there is still a statement without an action, which is kept and void.
    let void = whole(&statement.replace("\"Action\":\"kms:*\",", ""));
    assert!(PolicyDocument::parse(PolicyKind::Key, &void).is_ok());
    for bad in ["", "[]", "{}", r#"{"Statement":[]}"#, r#"{"Version":"2020","Statement":{}}"#, r#"{"Statement":[1]}"#] {
        assert!(PolicyDocument::parse(PolicyKind::Key, bad).is_err(), "{bad}");
    }
}

proptest! {
    /// Against the plain recursive definition.
    #[test]
    fn globs(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
        fn plain(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern.split_first(), text.split_first()) {
                (None, None) => true,
                (Some((b'*', rest)), _) => plain(rest, text) || text.split_first().is_some_and(|(_, text)| plain(pattern, text)),
                (Some((b'?', rest)), Some((_, text))) => plain(rest, text),
                (Some((a, rest)), Some((b, text))) => a == b && plain(rest, text),
                _ => false,
            }
        }
        prop_assert_eq!(glob(&pattern, &text, false), plain(pattern.as_bytes(), text.as_bytes()));
    }
}

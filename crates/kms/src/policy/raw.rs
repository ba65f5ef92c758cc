//! From JSON to statements. What is not understood is refused: a policy that says less than its author thinks is dangerous.

use serde_json::{Map, Value};

use crate::names::is_account;

use super::{
    Condition, Effect, Either, MalformedPolicy, Pattern, PolicyKind, PrincipalPattern, Statement, json::Strict,
};

const STATEMENTS_MAX: usize = 1000;

fn malformed<T>(why: impl Into<String>) -> Result<T, MalformedPolicy> {
    Err(MalformedPolicy(why.into()))
}

pub(super) fn parse(kind: PolicyKind, text: &str) -> Result<Vec<Statement>, MalformedPolicy> {
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || text.contains("\\u0001") {
        return malformed("it holds control characters");
    }
    let document = match serde_json::from_str(text) {
        Ok(Strict(Value::Object(document))) => document,
        Err(error) if error.is_data() => return malformed(error.to_string()),
        _ => return malformed("it is not a JSON object"),
    };
    let mut variables = false;
    let mut statements = Vec::new();
    for (name, value) in &document {
        match (name.as_str(), value) {
            ("Version", Value::String(version)) => match version.as_str() {
                "2012-10-17" => variables = true,
                "2008-10-17" => {}
                other => return malformed(format!("Version {other:?} is not known")),
            },
            ("Id", Value::String(_)) => {}
            ("Statement", Value::Array(list)) => statements.extend(list.iter()),
            ("Statement", one @ Value::Object(_)) => statements.push(one),
            (other, _) => return malformed(format!("{other} is not known, or has the wrong type")),
        }
    }
    if statements.len() > STATEMENTS_MAX {
        return malformed(format!("it has more than {STATEMENTS_MAX} statements"));
    }
    if statements.is_empty() {
        return malformed("it has no statement");
    }
    let mut parsed: Vec<Statement> = Vec::with_capacity(statements.len());
    for (index, statement) in statements.into_iter().enumerate() {
        let Value::Object(members) = statement else { return malformed("a statement is not an object") };
        let statement = statement_of(kind, index, members, variables)
            .map_err(|error| MalformedPolicy(format!("statement {}: {}", index + 1, error.0)))?;
        let named = members.contains_key("Sid");
        if named && parsed.iter().any(|other| other.name == statement.name) {
            return malformed(format!("Sid {:?} is there twice", statement.name));
        }
        parsed.push(statement);
    }
    Ok(parsed)
}

/// Members of a statement that name somebody or something.
const NAMING: [&str; 6] = ["Action", "NotAction", "NotPrincipal", "NotResource", "Principal", "Resource"];

/// Refuses what names nobody or nothing: an author cannot mean that. Documents that were taken before are not asked this.
pub(super) fn check_names(text: &str) -> Result<(), MalformedPolicy> {
    let Ok(Strict(document)) = serde_json::from_str(text) else { return malformed("it is not JSON") };
    let statements = match &document["Statement"] {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    for (index, statement) in statements.iter().enumerate() {
        let named = NAMING.iter().filter_map(|member| statement.get(member).map(|value| (*member, value)));
        let operators = statement.get("Condition").and_then(Value::as_object);
        let conditions = operators.into_iter().flatten().filter_map(|(_, keys)| keys.as_object()).flatten();
        let conditions = conditions.map(|(key, value)| (key.as_str(), value));
        if let Some((member, _)) = named.chain(conditions).find(|(_, value)| names_nothing(value)) {
            return malformed(format!("statement {}: {member} is empty", index + 1));
        }
    }
    Ok(())
}

fn names_nothing(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(kinds) => {
            let empty = |value: &Value| value.as_str().is_some_and(str::is_empty) || names_nothing(value);
            kinds.is_empty() || kinds.values().any(empty)
        }
        _ => false,
    }
}

fn statement_of(
    kind: PolicyKind,
    index: usize,
    members: &Map<String, Value>,
    variables: bool,
) -> Result<Statement, MalformedPolicy> {
    let (mut name, mut effect, mut principals, mut actions, mut resources) =
        (format!("#{}", index + 1), None, None, None, None);
    let mut conditions = Vec::new();
    for (member, value) in members {
        match (member.as_str(), value) {
            ("Sid", Value::String(sid)) => name.clone_from(sid),
            ("Effect", Value::String(text)) => {
                effect = Some(match text.as_str() {
                    "Allow" => Effect::Allow,
                    "Deny" => Effect::Deny,
                    other => return malformed(format!("Effect {other:?} is neither Allow nor Deny")),
                });
            }
            ("Principal" | "NotPrincipal", value) => {
                let items = principals_of(value)?;
                set(&mut principals, "Principal", Either { not: member.starts_with("Not"), items })?;
            }
            ("Action" | "NotAction", value) => {
                let items = texts(value)?.into_iter().map(|text| Pattern::new(text, false)).collect();
                set(&mut actions, "Action", Either { not: member.starts_with("Not"), items })?;
            }
            ("Resource" | "NotResource", value) => {
                let items = texts(value)?.into_iter().map(|text| Pattern::new(text, variables)).collect();
                set(&mut resources, "Resource", Either { not: member.starts_with("Not"), items })?;
            }
            ("Condition", Value::Object(operators)) => conditions = conditions_of(operators, variables)?,
            (other, _) => return malformed(format!("{other} is not known, or has the wrong type")),
        }
    }
    match kind {
        PolicyKind::Key if principals.is_none() => return malformed("a key policy's statement has a Principal"),
        PolicyKind::Identity if principals.is_some() => return malformed("an identity's policy has no Principal"),
        PolicyKind::Identity | PolicyKind::Key => {}
    }
    if principals.as_ref().is_some_and(|either: &Either<_>| either.not) && effect == Some(Effect::Allow) {
        return malformed("NotPrincipal with Allow lets in everybody else; say whom you mean");
    }
    let nothing = || Either { not: false, items: Vec::new() };
    Ok(Statement {
        name,
        effect: effect.ok_or_else(|| MalformedPolicy("Effect is missing".into()))?,
        principals,
        // Kept, and void: as the service does.
        actions: actions.unwrap_or_else(nothing),
        resources: resources.unwrap_or_else(nothing),
        conditions,
    })
}

fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), MalformedPolicy> {
    if slot.replace(value).is_some() { malformed(format!("{name} and Not{name} exclude each other")) } else { Ok(()) }
}

/// A string, or an array of strings.
fn texts(value: &Value) -> Result<Vec<&str>, MalformedPolicy> {
    let text = |value: &'_ Value| match value {
        Value::String(_) => Ok(()),
        _ => malformed("a member must be a string or an array of strings"),
    };
    match value {
        Value::String(one) => Ok(vec![one]),
        Value::Array(list) => {
            list.iter().try_for_each(text)?;
            Ok(list.iter().filter_map(Value::as_str).collect())
        }
        other => text(other).map(|()| Vec::new()),
    }
}

fn principals_of(value: &Value) -> Result<Vec<PrincipalPattern>, MalformedPolicy> {
    let kinds = match value {
        Value::String(text) if text == "*" => return Ok(vec![PrincipalPattern::Any]),
        Value::Object(kinds) => kinds,
        _ => return malformed("Principal must be \"*\" or an object"),
    };
    let mut principals = Vec::new();
    for (kind, value) in kinds {
        for text in texts(value)? {
            principals.push(match kind.as_str() {
                "AWS" => aws_principal(text)?,
                "Service" => PrincipalPattern::Service(text.to_owned()),
                other => return malformed(format!("principals of kind {other} are not known here")),
            });
        }
    }
    Ok(principals)
}

fn aws_principal(text: &str) -> Result<PrincipalPattern, MalformedPolicy> {
    if text == "*" {
        return Ok(PrincipalPattern::Any);
    }
    if is_account(text) {
        return Ok(PrincipalPattern::Account(text.to_owned()));
    }
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    match parts.as_slice() {
        ["arn", _, "iam", "", account, "root"] if is_account(account) => {
            Ok(PrincipalPattern::Account((*account).to_owned()))
        }
        ["arn", _, "iam" | "sts", "", account, name] if is_account(account) && !name.contains('*') => {
            Ok(PrincipalPattern::Arn(text.to_owned()))
        }
        _ => malformed(format!("{text:?} is no principal")),
    }
}

fn conditions_of(operators: &Map<String, Value>, variables: bool) -> Result<Vec<Condition>, MalformedPolicy> {
    let mut conditions = Vec::new();
    for (operator, keys) in operators {
        let Value::Object(keys) = keys else { return malformed(format!("{operator} must be an object")) };
        for (key, values) in keys {
            let list = match values {
                Value::Array(list) => list.iter().collect(),
                one => vec![one],
            };
            let mut wanted = Vec::with_capacity(list.len());
            for value in list {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Bool(flag) => flag.to_string(),
                    Value::Number(number) => number.to_string(),
                    _ => return malformed(format!("the values of {key} must be strings")),
                };
                wanted.push(Pattern::new(&text, variables));
            }
            let condition = Condition::new(operator, key, wanted);
            conditions.push(condition.ok_or_else(|| MalformedPolicy(format!("operator {operator} is not known")))?);
        }
    }
    Ok(conditions)
}

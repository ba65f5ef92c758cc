//! Policy documents in AWS's language: parsed once, evaluated for each request.
//!
//! [`PolicyDocument`] is what a key policy or an identity policy says. [`PolicyDocument::evaluate`] asks it one question and names the
//! statement that answers. How the answers of several documents and grants combine is [`crate::authz`]'s.

mod condition;
mod json;
mod pattern;
mod raw;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub(crate) use condition::Condition;
pub(crate) use pattern::{Pattern, glob};

/// Longest policy kept, in bytes (the service's limit; the API model allows 131,072).
pub(crate) const POLICY_BYTES_MAX: usize = 32 * 1024;

/// Why a document is not a policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedPolicy(pub String);

/// What a statement does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    Allow,
    Deny,
}

/// Whom a statement of a key policy speaks of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PrincipalPattern {
    /// Everybody.
    Any,
    /// An account: its root user, and by its own policies whoever it lets.
    Account(String),
    /// One user or role.
    Arn(String),
    /// A service.
    Service(String),
}

/// Members `X` and `NotX`: one of the patterns, or none of them.
#[derive(Clone, Debug)]
pub(crate) struct Either<T> {
    pub not: bool,
    pub items: Vec<T>,
}

/// One statement.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// `Sid`, or its place in the document.
    pub name: String,
    pub effect: Effect,
    /// `None` in identity policies.
    pub principals: Option<Either<PrincipalPattern>>,
    pub actions: Either<Pattern>,
    pub resources: Either<Pattern>,
    pub conditions: Vec<Condition>,
}

/// A policy document.
#[derive(Clone, Debug)]
pub(crate) struct PolicyDocument {
    text: String,
    statements: Vec<Statement>,
    looks_at_time: bool,
}

/// Whose policy a document is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PolicyKind {
    /// A user's or role's: no principals.
    Identity,
    /// A key's: principals in each statement.
    Key,
}

/// Who asks, as far as documents look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub arn: &'a str,
    pub account: &'a str,
    /// `SERVICE.amazonaws.com`, if it is a service.
    pub service: Option<&'a str>,
}

/// What is known of a request, by the names of condition keys.
pub(crate) trait Facts {
    /// The values of `key`, which is in lower case but for what follows `:` or `/` in keys of maps. `None`: not there.
    fn values(&self, key: &str) -> Option<Vec<Cow<'_, str>>>;
}

/// A question to a document.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub asker: Asker<'a>,
    /// `kms:Encrypt`
    pub action: &'a str,
    /// An ARN.
    pub resource: &'a str,
    pub facts: &'a dyn Facts,
}

/// What a document answers: the first statement of each sort that applies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer<'a> {
    pub deny: Option<&'a Statement>,
    /// Allows who asks by name.
    pub allow: Option<&'a Statement>,
    /// Allows the asker's account, whose own policies then decide.
    pub allow_account: Option<&'a Statement>,
}

/// How a statement's principals fit who asks.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Fit {
    No,
    Account,
    Direct,
}

impl Statement {
    fn fit(&self, asker: Asker<'_>) -> Fit {
        let Some(principals) = &self.principals else { return Fit::Direct };
        let mut fit = Fit::No;
        for principal in &principals.items {
            match principal {
                PrincipalPattern::Any => fit = Fit::Direct,
                PrincipalPattern::Arn(arn) if arn == asker.arn => fit = Fit::Direct,
                PrincipalPattern::Service(service) if asker.service == Some(service) => fit = Fit::Direct,
                PrincipalPattern::Account(account) if account == asker.account && fit == Fit::No => fit = Fit::Account,
                _ => {}
            }
        }
        match (principals.not, fit) {
            (false, fit) => fit,
            (true, Fit::No) => Fit::Direct,
            (true, _) => Fit::No,
        }
    }

    fn looks_at_time(&self) -> bool {
        let mut patterns = self.actions.items.iter().chain(&self.resources.items);
        patterns.any(Pattern::looks_at_time) || self.conditions.iter().any(Condition::looks_at_time)
    }

    fn applies(&self, question: &Question<'_>) -> bool {
        let hits = |either: &Either<Pattern>, text: &str, ignore_case| {
            either.items.iter().any(|pattern| pattern.matches(text, ignore_case, question.facts)) != either.not
        };
        hits(&self.actions, question.action, true)
            && hits(&self.resources, question.resource, false)
            && self.conditions.iter().all(|condition| condition.holds(question.facts))
    }
}

impl AsRef<str> for PolicyDocument {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl PolicyDocument {
    /// Reads a document that somebody gives.
    ///
    /// # Errors
    /// [`MalformedPolicy`].
    pub(crate) fn parse(kind: PolicyKind, text: &str) -> Result<Self, MalformedPolicy> {
        let document = Self::parse_stored(kind, text)?;
        raw::check_names(text)?;
        Ok(document)
    }

    /// Reads a document that was taken before, perhaps when less was asked of one.
    ///
    /// # Errors
    /// [`MalformedPolicy`].
    pub(crate) fn parse_stored(kind: PolicyKind, text: &str) -> Result<Self, MalformedPolicy> {
        let statements = raw::parse(kind, text)?;
        let looks_at_time = statements.iter().any(Statement::looks_at_time);
        Ok(Self { text: text.to_owned(), statements, looks_at_time })
    }

    /// As it was given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it may answer otherwise at another hour.
    pub(crate) fn looks_at_time(&self) -> bool {
        self.looks_at_time
    }

    /// Every principal that it names.
    pub(crate) fn principals(&self) -> impl Iterator<Item = &PrincipalPattern> {
        self.statements.iter().filter_map(|statement| statement.principals.as_ref()).flat_map(|either| &either.items)
    }

    /// Asks it.
    pub(crate) fn evaluate(&self, question: &Question<'_>) -> Answer<'_> {
        let mut answer = Answer::default();
        for statement in &self.statements {
            let fit = statement.fit(question.asker);
            let slot = match (statement.effect, fit) {
                (_, Fit::No) => continue,
                (Effect::Deny, _) => &mut answer.deny,
                (Effect::Allow, Fit::Direct) => &mut answer.allow,
                (Effect::Allow, Fit::Account) => &mut answer.allow_account,
            };
            if slot.is_none() && statement.applies(question) {
                *slot = Some(statement);
            }
        }
        answer
    }
}

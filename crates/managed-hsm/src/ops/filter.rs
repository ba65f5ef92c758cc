//! `$filter` on the lists of roles.

use super::{Call, roles::is_guid};
use crate::error::ApiError;

/// What a listing is narrowed to, or widened to.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Filter {
    /// No filter.
    All,
    /// `atScope()`: at the scope and above it.
    AtScope,
    /// `atScopeAndBelow()`.
    AtScopeAndBelow,
    /// `member eq 'value'`; a GUID may stand without quotes.
    Equals(Member, String),
}

/// What values are compared with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Member {
    PrincipalId,
    RoleName,
    Type,
}

impl Filter {
    /// The filter of a request.
    ///
    /// # Errors
    /// 400 for any other: a filter that is passed over would tell more than was asked for.
    pub(super) fn of(call: &Call<'_>) -> Result<Self, ApiError> {
        call.query.get("$filter").map_or(Ok(Self::All), |text| Self::parse(text).ok_or_else(Self::unsupported))
    }

    pub(super) fn unsupported() -> ApiError {
        ApiError::bad_parameter("This $filter is not supported")
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.to_ascii_lowercase().as_str() {
            "" => return Some(Self::All),
            "atscope()" => return Some(Self::AtScope),
            "atscopeandbelow()" => return Some(Self::AtScopeAndBelow),
            _ => {}
        }
        let (member, rest) = text.split_once(char::is_whitespace)?;
        let (operator, value) = rest.trim_start().split_once(char::is_whitespace)?;
        if operator != "eq" {
            return None;
        }
        let member = match member {
            "principalId" => Member::PrincipalId,
            "roleName" => Member::RoleName,
            "type" => Member::Type,
            _ => return None,
        };
        let value = literal(value.trim())?;
        let fits = member != Member::PrincipalId || is_guid(&value);
        fits.then_some(Self::Equals(member, value))
    }
}

/// A string in quotes, in which two quotes are one, or a bare GUID (OData 4.01, section 5.1.1.6).
fn literal(text: &str) -> Option<String> {
    let Some(quoted) = text.strip_prefix('\'') else { return is_guid(text).then(|| text.to_owned()) };
    let inner = quoted.strip_suffix('\'')?;
    let plain = inner.replace("''", "");
    (!plain.contains('\'')).then(|| inner.replace("''", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_forms_and_nothing_else() {
        let id = "a290e904-7015-4bba-90c8-60543313cdb4";
        let principal = Some(Filter::Equals(Member::PrincipalId, id.into()));
        for text in
            [format!("principalId eq {id}"), format!("principalId eq '{id}'"), format!(" principalId  eq  {id} ")]
        {
            assert_eq!(Filter::parse(&text), principal, "{text}");
        }
        assert_eq!(Filter::parse(""), Some(Filter::All));
        assert_eq!(Filter::parse("atScope()"), Some(Filter::AtScope));
        assert_eq!(Filter::parse("atScopeAndBelow()"), Some(Filter::AtScopeAndBelow));
        let name = Filter::Equals(Member::RoleName, "O'Neill's role".into());
        assert_eq!(Filter::parse("roleName eq 'O''Neill''s role'"), Some(name));
        for other in [
            "principalId eq",
            "principalId eq bob",
            "principalId ne a290e904-7015-4bba-90c8-60543313cdb4",
            "principalId eq 'a290e904-7015-4bba-90c8-60543313cdb4' or atScope()",
            "type eq 'a' and type eq 'b'",
            "type eq CustomRole",
            "type eq 'CustomRole",
            "assignedTo('a290e904-7015-4bba-90c8-60543313cdb4')",
            "nonsense",
        ] {
            assert_eq!(Filter::parse(other), None, "{other}");
        }
    }
}

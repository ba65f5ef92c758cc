//! Conditions: operators over the values that a request has.

use std::net::IpAddr;

use super::{
    Facts, Pattern, glob,
    pattern::{TIMES, fold_key, unescape},
};

/// What is compared, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Operator {
    ArnLike,
    Bool,
    Date(Order),
    IpAddress,
    Null,
    Numeric(Order),
    StringEquals { ignore_case: bool },
    StringLike,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    Equals,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// How many of a key's values must fit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Quantifier {
    /// `ForAllValues`: each, if there are any.
    All,
    /// `ForAnyValue`: at least one.
    Any,
    /// None is named, for keys of one value: one, or with a negated operator each.
    Single,
}

/// One condition.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    operator: Operator,
    negated: bool,
    quantifier: Quantifier,
    if_exists: bool,
    key: String,
    values: Vec<Pattern>,
}

impl Condition {
    /// Whether it looks at the hour.
    pub(crate) fn looks_at_time(&self) -> bool {
        TIMES.contains(&self.key.as_str()) || self.values.iter().any(Pattern::looks_at_time)
    }

    /// Reads an operator's name and what it is applied to. `None`: no such operator.
    pub(crate) fn new(name: &str, key: &str, values: Vec<Pattern>) -> Option<Self> {
        let (quantifier, name) = match name.split_once(':') {
            Some(("ForAllValues", name)) => (Quantifier::All, name),
            Some(("ForAnyValue", name)) => (Quantifier::Any, name),
            Some(_) => return None,
            None => (Quantifier::Single, name),
        };
        let (name, if_exists) = name.strip_suffix("IfExists").map_or((name, false), |name| (name, true));
        let order = |name: &str| {
            Some(match name {
                "Equals" => (Order::Equals, false),
                "NotEquals" => (Order::Equals, true),
                "GreaterThan" => (Order::Greater, false),
                "GreaterThanEquals" => (Order::GreaterOrEqual, false),
                "LessThan" => (Order::Less, false),
                "LessThanEquals" => (Order::LessOrEqual, false),
                _ => return None,
            })
        };
        let (operator, negated) = match name {
            "ArnEquals" | "ArnLike" => (Operator::ArnLike, false),
            "ArnNotEquals" | "ArnNotLike" => (Operator::ArnLike, true),
            "Bool" => (Operator::Bool, false),
            "IpAddress" => (Operator::IpAddress, false),
            "NotIpAddress" => (Operator::IpAddress, true),
            "Null" if !if_exists => (Operator::Null, false),
            "StringEquals" => (Operator::StringEquals { ignore_case: false }, false),
            "StringNotEquals" => (Operator::StringEquals { ignore_case: false }, true),
            "StringEqualsIgnoreCase" => (Operator::StringEquals { ignore_case: true }, false),
            "StringNotEqualsIgnoreCase" => (Operator::StringEquals { ignore_case: true }, true),
            "StringLike" => (Operator::StringLike, false),
            "StringNotLike" => (Operator::StringLike, true),
            _ => match (name.strip_prefix("Numeric"), name.strip_prefix("Date")) {
                (Some(rest), _) => order(rest).map(|(order, negated)| (Operator::Numeric(order), negated))?,
                (_, Some(rest)) => order(rest).map(|(order, negated)| (Operator::Date(order), negated))?,
                _ => return None,
            },
        };
        Some(Self { operator, negated, quantifier, if_exists, key: fold_key(key), values })
    }

    /// Whether it holds.
    pub(crate) fn holds(&self, facts: &dyn Facts) -> bool {
        let found = facts.values(&self.key);
        if self.operator == Operator::Null {
            let absent = found.is_none_or(|values| values.is_empty());
            return self.values.iter().any(|wanted| self.fits(wanted, if absent { "true" } else { "false" }, facts));
        }
        let Some(found) = found.filter(|values| !values.is_empty()) else {
            return self.if_exists
                || match self.quantifier {
                    // Each of nothing fits, one of nothing does not.
                    Quantifier::All => true,
                    Quantifier::Any => false,
                    Quantifier::Single => self.negated,
                };
        };
        let mut fits = found.iter().map(|value| {
            let any = self.values.iter().any(|wanted| self.fits(wanted, value, facts));
            any != self.negated
        });
        match (self.quantifier, self.negated) {
            (Quantifier::All, _) | (Quantifier::Single, true) => fits.all(|fit| fit),
            (Quantifier::Any, _) | (Quantifier::Single, false) => fits.any(|fit| fit),
        }
    }

    fn fits(&self, wanted: &Pattern, value: &str, facts: &dyn Facts) -> bool {
        let Some(wanted) = wanted.expand(facts) else { return false };
        match self.operator {
            Operator::ArnLike => arn_like(&wanted, value),
            Operator::Bool | Operator::Null => unescape(&wanted).eq_ignore_ascii_case(value),
            Operator::Date(order) => {
                moment(&unescape(&wanted)).zip(moment(value)).is_some_and(|(wanted, value)| order.holds(value, wanted))
            }
            Operator::IpAddress => in_network(&unescape(&wanted), value),
            Operator::Numeric(order) => {
                let number = |text: &str| text.trim().parse::<f64>().ok();
                number(&unescape(&wanted)).zip(number(value)).is_some_and(|(wanted, value)| order.holds(value, wanted))
            }
            Operator::StringEquals { ignore_case: true } => unescape(&wanted).to_lowercase() == value.to_lowercase(),
            Operator::StringEquals { ignore_case: false } => unescape(&wanted) == value,
            Operator::StringLike => glob(&wanted, value, false),
        }
    }
}

impl Order {
    fn holds<T: PartialOrd>(self, value: T, wanted: T) -> bool {
        match self {
            Self::Equals => value == wanted,
            Self::Greater => value > wanted,
            Self::GreaterOrEqual => value >= wanted,
            Self::Less => value < wanted,
            Self::LessOrEqual => value <= wanted,
        }
    }
}

/// Each of the six parts of an ARN by itself: a `*` does not reach over a colon, but in the last.
fn arn_like(pattern: &str, arn: &str) -> bool {
    let mut patterns = pattern.splitn(6, ':');
    let mut parts = arn.splitn(6, ':');
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if glob(pattern, part, false) => {}
            _ => return false,
        }
    }
}

/// ISO 8601, a date alone, or seconds since the epoch; milliseconds.
fn moment(text: &str) -> Option<i64> {
    if let Ok(secs) = text.parse::<i64>() {
        return secs.checked_mul(1000);
    }
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Some(moment.as_millisecond());
    }
    let date = text.parse::<jiff::civil::Date>().ok()?;
    jiff::tz::Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok().map(|moment| moment.as_millisecond())
}

/// Whether an address lies in `ADDRESS` or `ADDRESS/BITS`.
fn in_network(network: &str, address: &str) -> bool {
    let (base, bits) = network.split_once('/').map_or((network, None), |(base, bits)| (base, Some(bits)));
    let (Ok(base), Ok(address)) = (base.parse::<IpAddr>(), address.parse::<IpAddr>()) else { return false };
    let (base, address, width) = match (base, address.to_canonical()) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (u128::from(u32::from(base)), u128::from(u32::from(address)), 32),
        (IpAddr::V6(base), IpAddr::V6(address)) => (u128::from(base), u128::from(address), 128),
        _ => return false,
    };
    let Some(bits) = bits.map_or(Some(width), |bits| bits.parse::<u32>().ok().filter(|bits| *bits <= width)) else {
        return false;
    };
    // Shifting by the whole width is not defined.
    bits == 0 || base >> (width - bits) == address >> (width - bits)
}

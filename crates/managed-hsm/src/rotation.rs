//! Rotation policies: ISO 8601 periods, checked when set, and when a rotation is due.

use holdfast_core::Timestamp;
use jiff::{Span, ZonedDateTime, tz::TimeZone};

use crate::{
    error::ApiError,
    keys::{KeyEntry, RotationPolicy, VersionEntry},
    wire::{LifetimeAction, RotationPolicyBody},
};

/// Shortest period of any kind, in days; as in the real service.
const PERIOD_DAYS_MIN: i64 = 28;
/// Actions in one policy: one that rotates, one that notifies.
const ACTIONS_MAX: usize = 2;

/// Checks a policy. A policy without actions and expiry removes what was there: `None`.
pub(crate) fn check(
    body: RotationPolicyBody,
    old: Option<&RotationPolicy>,
    now: Timestamp,
) -> Result<Option<RotationPolicy>, ApiError> {
    if body.lifetime_actions.is_empty() && body.attributes.expiry_time.is_none() {
        return Ok(None);
    }
    if body.lifetime_actions.len() > ACTIONS_MAX {
        return Err(ApiError::bad_parameter("A rotation policy has at most one Rotate and one Notify action"));
    }
    let expiry = body.attributes.expiry_time.as_deref().map(|text| period("expiryTime", text)).transpose()?;
    // A version would never expire, or at a time that no client can read.
    if expiry.is_some_and(|expiry| plus(now, expiry).is_none()) {
        return Err(ApiError::bad_parameter("expiryTime ends after the year 9999"));
    }
    if expiry.is_some_and(|expiry| days(expiry, now) < PERIOD_DAYS_MIN) {
        return Err(ApiError::bad_parameter("expiryTime must be at least 28 days"));
    }
    let mut kinds = Vec::new();
    for action in &body.lifetime_actions {
        check_action(action, expiry, now)?;
        if kinds.contains(&action.action.kind) {
            return Err(ApiError::bad_parameter("A rotation policy has at most one Rotate and one Notify action"));
        }
        kinds.push(action.action.kind.clone());
    }
    Ok(Some(RotationPolicy {
        actions: normalized(body.lifetime_actions),
        expiry_time: body.attributes.expiry_time,
        created: old.map_or(now, |old| old.created),
        updated: now,
    }))
}

/// Kinds in the service's own spelling.
fn normalized(mut actions: Vec<LifetimeAction>) -> Vec<LifetimeAction> {
    for action in &mut actions {
        let rotate = action.action.kind.eq_ignore_ascii_case("rotate");
        action.action.kind = if rotate { "Rotate" } else { "Notify" }.to_owned();
    }
    actions
}

fn check_action(action: &LifetimeAction, expiry: Option<Span>, now: Timestamp) -> Result<(), ApiError> {
    let kind = &action.action.kind;
    if !kind.eq_ignore_ascii_case("rotate") && !kind.eq_ignore_ascii_case("notify") {
        return Err(ApiError::bad_parameter("The type of a lifetime action must be Rotate or Notify"));
    }
    match (&action.trigger.time_after_create, &action.trigger.time_before_expiry) {
        (Some(after), None) => {
            let after = days(period("timeAfterCreate", after)?, now);
            if after < PERIOD_DAYS_MIN || expiry.is_some_and(|expiry| after > days(expiry, now)) {
                return Err(ApiError::bad_parameter("timeAfterCreate must be at least 28 days and within expiryTime"));
            }
        }
        (None, Some(before)) => {
            let before = days(period("timeBeforeExpiry", before)?, now);
            let expiry = expiry.map(|expiry| days(expiry, now));
            if before < 1 || expiry.is_none_or(|expiry| before > expiry - PERIOD_DAYS_MIN) {
                return Err(ApiError::bad_parameter(
                    "timeBeforeExpiry needs an expiryTime that is at least 28 days longer",
                ));
            }
        }
        _ => {
            return Err(ApiError::bad_parameter("A trigger has either timeAfterCreate or timeBeforeExpiry"));
        }
    }
    Ok(())
}

fn period(name: &str, text: &str) -> Result<Span, ApiError> {
    let span: Result<Span, _> = text.parse();
    span.ok()
        .filter(|span| !span.is_negative() && text.starts_with('P'))
        .ok_or_else(|| ApiError::bad_parameter(format!("{name} is not an ISO 8601 period")))
}

/// `moment` plus a period, by the UTC calendar. A sum beyond the calendar never comes.
fn plus(moment: Timestamp, period: Span) -> Option<Timestamp> {
    let zoned = zoned(moment)?.checked_add(period).ok()?;
    Some(Timestamp::from_unix_millis(zoned.timestamp().as_millisecond()))
}

fn minus(moment: Timestamp, period: Span) -> Option<Timestamp> {
    plus(moment, -period)
}

fn zoned(moment: Timestamp) -> Option<ZonedDateTime> {
    Some(jiff::Timestamp::from_millisecond(moment.unix_millis()).ok()?.to_zoned_datetime(TimeZone::UTC))
}

/// Whole days that a period covers from `now`.
fn days(period: Span, now: Timestamp) -> i64 {
    plus(now, period).map_or(i64::MAX, |end| (end.unix_secs() - now.unix_secs()) / 86_400)
}

/// When a version made at `created` under this policy expires.
pub(crate) fn expiry(policy: &RotationPolicy, created: Timestamp) -> Option<Timestamp> {
    plus(created, policy.expiry_time.as_deref()?.parse().ok()?)
}

/// Whether the key's current version is due for rotation.
pub(crate) fn is_due(entry: &KeyEntry, now: Timestamp) -> bool {
    let (Some(policy), Some(current), None) = (&entry.rotation, entry.current(), entry.deletion) else { return false };
    policy
        .actions
        .iter()
        .filter(|action| action.action.kind == "Rotate")
        .filter_map(|action| due_at(action, current))
        .any(|due| due <= now)
}

fn due_at(action: &LifetimeAction, current: &VersionEntry) -> Option<Timestamp> {
    let parse = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Span>().ok());
    if let Some(after) = parse(&action.trigger.time_after_create) {
        return plus(current.created, after);
    }
    minus(current.attributes.expires?, parse(&action.trigger.time_before_expiry)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ActionType, RotationAttributes, Trigger};

    fn policy(after: Option<&str>, before: Option<&str>, expiry: Option<&str>) -> RotationPolicyBody {
        let trigger =
            Trigger { time_after_create: after.map(str::to_owned), time_before_expiry: before.map(str::to_owned) };
        RotationPolicyBody {
            id: None,
            lifetime_actions: vec![LifetimeAction { trigger, action: ActionType { kind: "rotate".into() } }],
            attributes: RotationAttributes { expiry_time: expiry.map(str::to_owned), created: None, updated: None },
        }
    }

    fn accepted(body: RotationPolicyBody) -> bool {
        check(body, None, Timestamp::from_unix_secs(1_700_000_000)).is_ok()
    }

    #[test]
    fn bounds() {
        assert!(accepted(policy(Some("P28D"), None, None)));
        assert!(!accepted(policy(Some("P27D"), None, None)));
        assert!(accepted(policy(Some("P1Y"), None, Some("P2Y"))));
        assert!(!accepted(policy(Some("P3Y"), None, Some("P2Y"))));
        assert!(accepted(policy(None, Some("P30D"), Some("P90D"))));
        assert!(!accepted(policy(None, Some("P30D"), Some("P57D"))));
        assert!(!accepted(policy(None, Some("P30D"), None)));
        assert!(!accepted(policy(Some("P30D"), Some("P30D"), Some("P90D"))));
        for nonsense in ["", "90D", "P", "-P90D", "P90", "P999999999Y", "nonsense"] {
            assert!(!accepted(policy(Some(nonsense), None, Some("P2Y"))), "{nonsense}");
        }
    }

    #[test]
    fn months_follow_the_calendar() {
        let jan31 = Timestamp::from_unix_secs(1_706_659_200);
        let feb29 = Timestamp::from_unix_secs(1_709_164_800);
        assert_eq!(plus(jan31, "P1M".parse().unwrap()), Some(feb29));
    }
}

//! Grants.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::{Committed, Decision, Intent, Permit, Policy, Principal, Spent, authorize};
use holdfast_crypto::KeySpec;
use holdfast_service::Done;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, changed, limit,
    marker::{Listing, bad_marker},
    nothing,
};
use crate::{
    action::KmsAction,
    authn::Identity,
    authn::check_source_arn,
    call::{Call, With},
    code::Code,
    context::EncryptionContext,
    error::ApiError,
    grants::{Constraint, Grant, GrantId, GrantTerms, Party, operation_name, parse_operation},
    keys::{KeyEntry, KeyRef, KeyState},
    names::key_arn,
    spec::KeyUsage,
    wire::{self, Violations, secs},
};

/// Pairs of a constraint, and characters of a name or value in it.
const CONSTRAINT_PAIRS_MAX: usize = 8;
const CONSTRAINT_CHARS_MAX: usize = 384;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateRequest {
    key_id: Option<String>,
    grantee_principal: Option<String>,
    retiring_principal: Option<String>,
    grantee_service_principal: Option<String>,
    retiring_service_principal: Option<String>,
    operations: Option<Vec<String>>,
    constraints: Option<Constraints>,
    grant_tokens: Option<Vec<String>>,
    name: Option<String>,
    dry_run: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Constraints {
    encryption_context_subset: Option<EncryptionContext>,
    encryption_context_equals: Option<EncryptionContext>,
    source_arn: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListRequest {
    key_id: Option<String>,
    grant_id: Option<String>,
    grantee_principal: Option<String>,
    grantee_service_principal: Option<String>,
    retiring_principal: Option<String>,
    retiring_service_principal: Option<String>,
    grant_token: Option<String>,
    limit: Option<i64>,
    marker: Option<String>,
    dry_run: Option<bool>,
}

/// `SERVICE.amazonaws.com` and its like: three labels at least.
fn is_service_principal(text: &str) -> bool {
    let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    text.split('.').count() >= 3 && text.split('.').all(label)
}

/// A party that a request names as a principal, as a service, or not at all.
fn party(
    violations: &mut Violations,
    (principal, principal_member): (Option<&str>, &str),
    (service, service_member): (Option<&str>, &str),
) -> Option<Party> {
    if let Some(arn) = principal {
        let valid = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
        violations.length(arn, principal_member, 1, 256);
        violations.pattern(arn, principal_member, arn.chars().all(valid), "^[\\w+=,.@:/-]+$");
    }
    if let Some(service) = service {
        let pattern = "^([A-Za-z0-9\\-]+)\\.([A-Za-z0-9\\-]+)(\\.[A-Za-z0-9\\-]+)+$";
        violations.length(service, service_member, 1, 128);
        violations.pattern(service, service_member, is_service_principal(service), pattern);
    }
    let service = || service.map(|service| Party::Service(service.to_owned()));
    principal.map(|arn| Party::Principal(arn.to_owned())).or_else(service)
}

/// Principal and service exclude each other.
fn one_of_two(principal: Option<&str>, service: Option<&str>, whose: &str) -> Result<(), ApiError> {
    if principal.is_none() || service.is_none() {
        return Ok(());
    }
    Err(ApiError::validation(format!(
        "Specify either {whose}Principal or {whose}ServicePrincipal, but not both in the same request."
    )))
}

/// Whether who asks is this service.
fn must_be_service(call: &Call<'_>, member: &str) -> Result<(), ApiError> {
    if call.identity.service.is_some() {
        return Ok(());
    }
    let message = format!("User: {} is no service: {member} is for callers that are one", call.identity.arn);
    Err(ApiError::new(Code::AccessDenied, message))
}

fn constraint(constraints: &Constraints) -> Result<Option<Constraint>, ApiError> {
    let pairs = match (&constraints.encryption_context_subset, &constraints.encryption_context_equals) {
        (None, None) => return Ok(None),
        (Some(pairs), None) => Constraint::Subset(pairs.clone()),
        (None, Some(pairs)) => Constraint::Equals(pairs.clone()),
        (Some(_), Some(_)) => {
            return Err(ApiError::validation("A grant has one constraint: EncryptionContextSubset or ...Equals"));
        }
    };
    let fits = |text: &String| text.chars().count() <= CONSTRAINT_CHARS_MAX;
    let content = &pairs.pairs().0;
    if content.len() > CONSTRAINT_PAIRS_MAX || !content.iter().all(|(name, value)| fits(name) && fits(value)) {
        return Err(ApiError::validation(format!(
            "A constraint has at most {CONSTRAINT_PAIRS_MAX} pairs of at most {CONSTRAINT_CHARS_MAX} characters"
        )));
    }
    Ok(Some(pairs))
}

/// Whether an operation can be done with the key at all.
fn suits(key: &KeyEntry, action: KmsAction) -> bool {
    use KmsAction as A;
    let asymmetric = !matches!(key.spec, KeySpec::Aes(_) | KeySpec::Hmac(_));
    match action {
        A::CreateGrant | A::DescribeKey | A::RetireGrant => true,
        A::GetPublicKey => asymmetric,
        A::Encrypt | A::Decrypt | A::ReEncryptFrom | A::ReEncryptTo => key.usage == KeyUsage::EncryptDecrypt,
        A::GenerateDataKey
        | A::GenerateDataKeyPair
        | A::GenerateDataKeyPairWithoutPlaintext
        | A::GenerateDataKeyWithoutPlaintext => key.is_symmetric_encryption(),
        A::Sign | A::Verify => key.usage == KeyUsage::SignVerify,
        A::GenerateMac | A::VerifyMac => key.usage == KeyUsage::GenerateVerifyMac,
        A::DeriveSharedSecret => key.usage == KeyUsage::KeyAgreement,
        A::Encapsulate | A::Decapsulate => key.usage == KeyUsage::EncapsulateDecapsulate,
        _ => false,
    }
}

/// A principal of ours must be there; one of another place is taken as it is named, and so is a service, whoever comes to be it.
fn check_party(call: &Call<'_>, party: &Party) -> Result<(), ApiError> {
    let Party::Principal(arn) = party else { return Ok(()) };
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let known = match parts.as_slice() {
        ["arn", "aws", "iam" | "sts", "", account, name] if crate::names::is_account(account) && !name.is_empty() => {
            !call.kms.directory.has_account(account) || call.kms.directory.identity(arn).is_some()
        }
        _ => false,
    };
    if known {
        return Ok(());
    }
    Err(ApiError::new(Code::InvalidArn, format!("ARN does not refer to a valid principal: {arn}")))
}

/// The parties, the name and the constraints of a new grant, each of which must be as the model has it.
fn checked(request: &CreateRequest, constraints: &Constraints) -> Result<(Party, Option<Party>), ApiError> {
    let grantee = (request.grantee_principal.as_deref(), request.grantee_service_principal.as_deref());
    let retiring = (request.retiring_principal.as_deref(), request.retiring_service_principal.as_deref());
    let mut violations = Violations::default();
    let names = ("granteePrincipal", "granteeServicePrincipal");
    let grantee_party = party(&mut violations, (grantee.0, names.0), (grantee.1, names.1));
    let names = ("retiringPrincipal", "retiringServicePrincipal");
    let retiring_party = party(&mut violations, (retiring.0, names.0), (retiring.1, names.1));
    if let Some(name) = &request.name {
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'/' | b'_' | b'-');
        violations.length(name, "name", 1, 256);
        violations.pattern(name, "name", name.bytes().all(valid), "^[a-zA-Z0-9:/_-]+$");
    }
    if let Some(arn) = &constraints.source_arn {
        check_source_arn(&mut violations, arn, "constraints.sourceArn");
    }
    violations.finish()?;
    one_of_two(grantee.0, grantee.1, "Grantee")?;
    one_of_two(retiring.0, retiring.1, "Retiring")?;
    let Some(grantee) = grantee_party else {
        return Err(ApiError::validation("Specify either GranteePrincipal or GranteeServicePrincipal."));
    };
    if matches!(grantee, Party::Service(_)) && (constraints.source_arn.is_none() || retiring_party.is_none()) {
        return Err(ApiError::validation(
            "GranteeServicePrincipal needs a SourceArn constraint, and a RetiringPrincipal or RetiringServicePrincipal.",
        ));
    }
    Ok((grantee, retiring_party))
}

fn operations(names: &[String]) -> Result<Vec<KmsAction>, ApiError> {
    let mut operations = Vec::new();
    for name in names {
        let operation = parse_operation(name);
        let operation = operation.ok_or_else(|| ApiError::validation(format!("{name} is no operation of grants")))?;
        if !operations.contains(&operation) {
            operations.push(operation);
        }
    }
    match operations.as_slice() {
        [] => Err(ApiError::validation("A grant allows at least one operation")),
        // It gives leave to make grants that are no wider: of nothing.
        [KmsAction::CreateGrant] => {
            Err(ApiError::validation("A grant that allows CreateGrant must allow at least one other operation"))
        }
        _ => Ok(operations),
    }
}

/// What policies may ask of a new grant.
fn facts(call: &Call<'_>, new: &GrantTerms) -> Vec<(&'static str, Vec<String>)> {
    let named = |party: &Party, principal, service| match party {
        Party::Principal(arn) => (principal, vec![arn.clone()]),
        Party::Service(name) => (service, vec![name.clone()]),
    };
    let mut facts = vec![
        named(&new.grantee, "kms:granteeprincipal", "kms:granteeserviceprincipal"),
        ("kms:grantoperations", new.operations.iter().map(|action| operation_name(*action).to_owned()).collect()),
        ("kms:grantisforawsresource", vec![call.identity.service.is_some().to_string()]),
    ];
    let retiring = new.retiring.iter();
    facts.extend(retiring.map(|party| named(party, "kms:retiringprincipal", "kms:retiringserviceprincipal")));
    facts.extend(new.source_arn.iter().map(|arn| ("kms:grantconstraintsourcearn", vec![arn.clone()])));
    let context = new.constraint.iter().map(|constraint| match constraint {
        Constraint::Equals(_) => "EncryptionContextEquals",
        Constraint::Subset(_) => "EncryptionContextSubset",
    });
    let types: Vec<_> = context.chain(new.source_arn.iter().map(|_| "SourceArn")).map(str::to_owned).collect();
    facts.extend((!types.is_empty()).then_some(("kms:grantconstrainttype", types)));
    facts
}

/// A key that grants may be made for: enabled, or in a store that is disconnected.
struct Grantable<'k>(&'k KeyEntry);

fn grantable<'k>(call: &Call<'_>, key: &'k KeyEntry) -> Result<Grantable<'k>, ApiError> {
    if call.state(key) != KeyState::Unavailable {
        call.enabled(key)?;
    }
    Ok(Grantable(key))
}

async fn make(
    call: &Call<'_>,
    spent: Spent,
    key: &Grantable<'_>,
    id: GrantId,
    new: GrantTerms,
) -> Result<(GrantId, Option<Committed>), ApiError> {
    if new.key != key.0.key_ref() || *spent.resource() != key.0.resource() {
        return Err(ApiError::internal("a grant of another key"));
    }
    call.kms.grants.create(id, new, call.now, || call.decided(spent)).await
}

pub(super) async fn create(call: &mut Call<'_>) -> Answer {
    let request: CreateRequest = call.parse()?;
    let none = Constraints::default();
    let constraints = request.constraints.as_ref().unwrap_or(&none);
    let (grantee, retiring) = checked(&request, constraints)?;
    let operations = operations(request.operations.as_deref().unwrap_or_default())?;
    let constraint = constraint(constraints)?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let tokens = call.tokens(request.grant_tokens.as_deref())?;
    let new = GrantTerms {
        key: key.key_ref(),
        grantee,
        retiring,
        operations,
        constraint,
        source_arn: constraints.source_arn.clone(),
        name: request.name,
        issuer: call.identity.arn.clone(),
    };
    let facts = facts(call, &new);
    let spent = call.allowed_shown(
        &tokens,
        KmsAction::CreateGrant,
        &key,
        With { more: &facts, new_grant: Some(&new), ..With::default() },
    )?;
    let key = grantable(call, &key)?;
    for party in [Some(&new.grantee), new.retiring.as_ref()].into_iter().flatten() {
        check_party(call, party)?;
    }
    if let Some(operation) = new.operations.iter().find(|operation| !suits(key.0, **operation)) {
        let message = format!("{} does not suit the spec and usage of the key", operation_name(*operation));
        return Err(ApiError::validation(message));
    }
    if new.constraint.is_some() && !key.0.is_symmetric_encryption() {
        return Err(ApiError::validation(
            "EncryptionContextSubset and EncryptionContextEquals are for symmetric encryption keys",
        ));
    }
    call.unless_dry_run(request.dry_run)?;
    let id = GrantId(call.kms.ambient.random());
    call.told.context.push(("grant", id.to_string()));
    let (found, committed) = make(call, spent, &key, id, new).await?;
    let body = wire::answer(&json!({"GrantId": found.to_string(), "GrantToken": found.token()}))?;
    let Some(committed) = committed else {
        call.told.context.pop();
        call.told.context.push(("grant", found.to_string()));
        return Ok(Done::Told(body));
    };
    Ok(Done::Changed(committed, body))
}

/// The root of the account that an ARN is of.
fn root_of(arn: &str) -> String {
    format!("arn:aws:iam::{}:root", arn.split(':').nth(4).unwrap_or_default())
}

fn entry(call: &Call<'_>, grant: &Grant) -> Value {
    let account = call.kms.keys.entry(&grant.terms.key).map(|key| Arc::clone(&key.account));
    let account = account.unwrap_or_else(|| Arc::clone(call.account()));
    let mut out = json!({
        "KeyId": key_arn(&grant.terms.key.region, &account, grant.terms.key.id),
        "GrantId": grant.id.to_string(),
        "CreationDate": secs(grant.created),
        "IssuingAccount": root_of(&grant.terms.issuer),
        "Operations": grant.terms.operations.iter().map(|action| operation_name(*action)).collect::<Vec<_>>(),
        "Name": grant.terms.name.as_deref().unwrap_or_default(),
    });
    let mut tell = |party: &Party, whose: &str| match party {
        Party::Principal(arn) => out[format!("{whose}Principal")] = arn.as_str().into(),
        Party::Service(name) => out[format!("{whose}ServicePrincipal")] = name.as_str().into(),
    };
    tell(&grant.terms.grantee, "Grantee");
    if let Some(retiring) = &grant.terms.retiring {
        tell(retiring, "Retiring");
    }
    match &grant.terms.constraint {
        Some(Constraint::Equals(pairs)) => out["Constraints"]["EncryptionContextEquals"] = json!(pairs.0),
        Some(Constraint::Subset(pairs)) => out["Constraints"]["EncryptionContextSubset"] = json!(pairs.0),
        None => {}
    }
    if let Some(arn) = &grant.terms.source_arn {
        out["Constraints"]["SourceArn"] = arn.as_str().into();
    }
    out
}

/// One page of `found`, which are in the order of their ids.
fn page(
    call: &Call<'_>,
    request: &ListRequest,
    mut found: Vec<Arc<Grant>>,
    chosen: &[&str],
) -> Result<Bytes, ApiError> {
    let count = limit(request.limit, 50, 100)?;
    let listing = Listing::of(call, chosen);
    if let Some(after) = listing.after(request.marker.as_deref())? {
        let after = GrantId(after.try_into().map_err(|_| bad_marker())?);
        found.retain(|grant| grant.id > after);
    }
    let more = found.len() > count;
    found.truncate(count);
    let list: Vec<_> = found.iter().map(|grant| entry(call, grant)).collect();
    let mut out = json!({"Grants": list, "Truncated": more});
    if let Some(last) = found.last().filter(|_| more) {
        out["NextMarker"] = listing.next(&last.id.0).into();
    }
    wire::answer(&out)
}

fn parse_id(text: &str) -> Result<GrantId, ApiError> {
    GrantId::parse(text).ok_or_else(|| ApiError::new(Code::InvalidGrantId, format!("{text} is no grant id")))
}

pub(super) fn list(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: ListRequest = call.parse()?;
    let (principal, service) = (request.grantee_principal.as_deref(), request.grantee_service_principal.as_deref());
    let mut violations = Violations::default();
    let names = ("granteePrincipal", "granteeServicePrincipal");
    let grantee = party(&mut violations, (principal, names.0), (service, names.1));
    violations.length(request.grant_id.as_deref().unwrap_or("-"), "grantId", 1, 128);
    violations.finish()?;
    one_of_two(principal, service, "Grantee")?;
    limit(request.limit, 50, 100)?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let facts = [("kms:grantisforawsresource", vec![call.identity.service.is_some().to_string()])];
    call.allowed(KmsAction::ListGrants, &key, With { more: &facts, ..With::default() })?;
    if service.is_some() {
        must_be_service(call, "GranteeServicePrincipal")?;
    }
    let id = request.grant_id.as_deref().map(parse_id).transpose()?;
    let mut found = call.kms.grants.of_key(&key.key_ref());
    found.retain(|grant| {
        id.is_none_or(|id| grant.id == id) && grantee.as_ref().is_none_or(|grantee| grant.terms.grantee == *grantee)
    });
    let text = |member: &Option<String>| member.clone().unwrap_or_default();
    let chosen = [text(&request.grant_id), text(&request.grantee_principal), text(&request.grantee_service_principal)];
    page(call, &request, found, &[&key.arn, &chosen[0], &chosen[1], &chosen[2]])
}

pub(super) fn list_retirable(call: &mut Call<'_>) -> Result<Bytes, ApiError> {
    let request: ListRequest = call.parse()?;
    let (principal, service) = (request.retiring_principal.as_deref(), request.retiring_service_principal.as_deref());
    let mut violations = Violations::default();
    let names = ("retiringPrincipal", "retiringServicePrincipal");
    let retiring = party(&mut violations, (principal, names.0), (service, names.1));
    violations.finish()?;
    one_of_two(principal, service, "Retiring")?;
    limit(request.limit, 50, 100)?;
    let Some(retiring) = retiring else {
        return Err(ApiError::validation("Specify either RetiringPrincipal or RetiringServicePrincipal."));
    };
    if let Party::Service(_) = &retiring {
        must_be_service(call, "RetiringServicePrincipal")?;
    }
    // Of oneself everybody may ask.
    if !call.identity.parties().contains(&retiring) {
        call.allowed_apart(KmsAction::ListRetirableGrants, "*", With::default())?;
        let account = principal.and_then(|arn| arn.split(':').nth(4));
        if account != Some(call.account()) {
            return Err(ApiError::new(Code::AccessDenied, "The principal is of another account"));
        }
    }
    let chosen = [principal.unwrap_or_default(), service.unwrap_or_default()];
    page(call, &request, call.kms.grants.of_retiring(&retiring), &chosen)
}

pub(super) async fn revoke(call: &mut Call<'_>) -> Answer {
    let request: ListRequest = call.parse()?;
    let mut violations = Violations::default();
    let id = violations.text(request.grant_id.as_deref(), "grantId", 1, 128);
    violations.finish()?;
    let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
    let facts = [("kms:grantisforawsresource", vec![call.identity.service.is_some().to_string()])];
    let spent = call.allowed(KmsAction::RevokeGrant, &key, With { more: &facts, ..With::default() })?;
    let grant = of_key(call, parse_id(id)?, &key.key_ref())?;
    call.unless_dry_run(request.dry_run)?;
    call.told.context.push(("grant", grant.id.to_string()));
    let committed = call.kms.grants.remove(&grant, || call.decided(spent)).await?;
    changed(committed, nothing())
}

fn of_key(call: &Call<'_>, id: GrantId, key: &KeyRef) -> Result<Arc<Grant>, ApiError> {
    let grant = call.kms.grants.get(id).filter(|grant| grant.terms.key == *key);
    grant.ok_or_else(|| ApiError::not_found(format!("Grant {id} is not found")))
}

/// Who may retire a grant by what it says itself: its retiring principal, and a grantee whom it lets.
struct OfGrant<'a> {
    grant: &'a Grant,
    identity: &'a Identity,
    source_arn: Option<&'a str>,
}

impl OfGrant<'_> {
    fn permit(&self, key: &KeyEntry) -> Option<Permit> {
        let intent = Intent { action: KmsAction::RetireGrant.core(), resource: key.resource() };
        authorize(self, self.identity.principal(), intent).ok()
    }
}

impl Policy for OfGrant<'_> {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        let terms = &self.grant.terms;
        let parties = self.identity.parties();
        let own = terms.retiring.as_ref().is_some_and(|retiring| parties.contains(retiring))
            || (parties.contains(&terms.grantee) && self.grant.allows(KmsAction::RetireGrant, None, self.source_arn));
        if own {
            Decision::Allow(format!("grant {}", self.grant.id))
        } else {
            Decision::Deny("the grant does not name the caller".into())
        }
    }
}

/// By the retiring principal, by a grantee whose grant says so, or by whom the key's policies let.
pub(super) async fn retire(call: &mut Call<'_>) -> Answer {
    let request: ListRequest = call.parse()?;
    let grant = match (&request.grant_token, &request.grant_id) {
        (Some(token), None) => {
            let grant = GrantId::from_token(token).and_then(|id| call.kms.grants.get(id));
            grant.ok_or_else(|| ApiError::new(Code::InvalidGrantToken, "The grant token is not valid"))?
        }
        (None, Some(id)) => {
            let key = call.named_without_alias("keyId", request.key_id.as_deref())?;
            of_key(call, parse_id(id)?, &key.key_ref())?
        }
        _ => return Err(ApiError::validation("RetireGrant takes a grant token, or a key ARN and a grant id")),
    };
    let key = call.kms.keys.entry(&grant.terms.key);
    let key = key.ok_or_else(|| ApiError::not_found("The key of the grant is gone"))?;
    call.told.key = Some(key.arn.clone());
    let of_grant = OfGrant { grant: &grant, identity: call.identity, source_arn: call.source_arn };
    let spent = match of_grant.permit(&key) {
        Some(permit) => {
            call.told.rule = Some(permit.rule().to_owned());
            permit.spend(KmsAction::RetireGrant.core(), &key.resource())?
        }
        None => call.allowed(KmsAction::RetireGrant, &key, With::default())?,
    };
    call.unless_dry_run(request.dry_run)?;
    call.told.context.push(("grant", grant.id.to_string()));
    let committed = call.kms.grants.remove(&grant, || call.decided(spent)).await?;
    changed(committed, nothing())
}

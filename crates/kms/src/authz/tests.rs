use std::{collections::BTreeMap, sync::Arc};

use holdfast_core::{Action, Decided, Itself, KeyName, authorize};

use super::*;
use crate::{
    Directory, IdentityConfig, Kms,
    aliases::AliasName,
    basis::{About, Asker, Basis, ask},
    call::With,
    code::Code,
    grants::{GrantId, Party},
    names::KeyId,
    own::{Own as OwnAct, due, permit},
    policy::{PolicyDocument, PolicyKind},
    usable::tests::{ACCOUNT, NOW, decided, event, key_of, put, service_of, spent_on},
};

const OTHER: &str = "999999999999";
const REGION: &str = "us-east-1";
const ALL: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Sid":"All","Effect":"Allow","Action":"kms:*","Resource":"*"}]}"#;
const NOT_ENCRYPT: &str = r#"{"Version":"2012-10-17","Statement":[
    {"Sid":"All","Effect":"Allow","Action":"kms:*","Resource":"*"},
    {"Sid":"NoEncrypt","Effect":"Deny","Action":"kms:Encrypt","Resource":"*"}]}"#;
/// Until a moment before now.
const TILL_NOW: &str = r#"{"Version":"2012-10-17","Statement":[{"Sid":"Early","Effect":"Allow","Action":"kms:*","Resource":"*",
    "Condition":{"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}}}]}"#;

fn arn(account: &str, name: &str) -> String {
    format!("arn:aws:iam::{account}:{name}")
}

fn directory() -> Directory {
    let person = |account: &str, name: &str, policies: &[&str]| IdentityConfig {
        arn: arn(account, name),
        service: None,
        tags: BTreeMap::new(),
        policies: policies.iter().map(|text| ("own".to_owned(), (*text).to_owned())).collect(),
    };
    let everybody = vec![
        person(ACCOUNT, "user/alice", &[]),
        person(ACCOUNT, "user/bob", &[ALL]),
        person(ACCOUNT, "user/eve", &[NOT_ENCRYPT]),
        person(ACCOUNT, "user/tom", &[TILL_NOW]),
        person(ACCOUNT, "root", &[]),
        person(OTHER, "user/carl", &[ALL]),
        person(OTHER, "user/dora", &[]),
    ];
    Directory::new(everybody, Vec::new()).unwrap()
}

/// The account's own policies decide.
fn left_to_account() -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"Root","Effect":"Allow","Principal":{{"AWS":"{}"}},"Action":"kms:*","Resource":"*"}}]}}"#,
        arn(ACCOUNT, "root")
    )
}

/// Some are named, one is kept out.
fn naming() -> String {
    let named = [arn(ACCOUNT, "user/alice"), arn(OTHER, "user/carl"), arn(OTHER, "user/dora")];
    format!(
        r#"{{"Version":"2012-10-17","Statement":[
            {{"Sid":"Named","Effect":"Allow","Principal":{{"AWS":{named:?}}},"Action":["kms:Encrypt","kms:PutKeyPolicy"],"Resource":"*"}},
            {{"Sid":"NotBob","Effect":"Deny","Principal":{{"AWS":"{}"}},"Action":"kms:*","Resource":"*"}}]}}"#,
        arn(ACCOUNT, "user/bob")
    )
}

struct World {
    kms: Kms,
    key: Arc<KeyEntry>,
    region: Arc<str>,
}

impl World {
    async fn new(policy: &str) -> Self {
        let kms = service_of(directory()).await;
        let key = key_of(&kms, policy).await;
        Self { kms, key, region: REGION.into() }
    }

    fn who(&self, name: &str) -> Arc<Identity> {
        let account = if matches!(name, "user/carl" | "user/dora") { OTHER } else { ACCOUNT };
        self.kms.directory.identity(&arn(account, name)).unwrap()
    }

    fn asked<T>(&self, name: &str, action: KmsAction, with: With<'_>, answer: impl FnOnce(&Ask<'_>) -> T) -> T {
        let identity = self.who(name);
        let asker = Asker { identity: &identity, region: &self.region, source: None, source_arn: None, now: NOW };
        ask(&self.kms, asker, (action, &self.key.arn, Some(&self.key)), with, |ask, _| answer(ask))
    }

    fn judged(&self, name: &str, action: KmsAction) -> Decision {
        self.asked(name, action, With::default(), |ask| ask.judge())
    }

    fn refused(&self, name: &str, action: KmsAction) -> String {
        let error = self.asked(name, action, With::default(), |ask| ask.permit()).unwrap_err();
        assert_eq!(error.code, Code::AccessDenied);
        error.message
    }

    async fn grant(&self, grantee: &str, operations: &[KmsAction]) -> GrantId {
        let id = GrantId([1; 32]);
        let spent = || Ok(decided(Action::KeyUpdate, &self.key));
        let (id, committed) = self.kms.grants.create(id, self.terms(grantee, operations), NOW, spent).await.unwrap();
        assert!(committed.is_some());
        id
    }

    fn terms(&self, grantee: &str, operations: &[KmsAction]) -> GrantTerms {
        GrantTerms {
            key: self.key.key_ref(),
            grantee: Party::Principal(arn(ACCOUNT, grantee)),
            retiring: None,
            operations: operations.to_vec(),
            constraint: None,
            source_arn: None,
            name: None,
            issuer: arn(ACCOUNT, "root"),
        }
    }

    /// What an answer to this person rests on, before anything is asked.
    fn basis(&self, name: &str) -> (Basis, Arc<Identity>) {
        let identity = self.who(name);
        let asker = Asker { identity: &identity, region: &self.region, source: None, source_arn: None, now: NOW };
        (Basis::new(&self.kms, asker), Arc::clone(&identity))
    }

    fn confirmed(&self, basis: &Basis, identity: &Identity) -> Result<(), Code> {
        basis.confirm(&self.kms, identity, &self.region).map_err(|error| error.code)
    }

    async fn change(&self, change: impl FnOnce(&mut KeyEntry)) {
        let entry = self.kms.keys.entry(&self.key.key_ref()).unwrap();
        let mut entry = KeyEntry::clone(&entry);
        change(&mut entry);
        put(&self.kms, entry, Vec::new()).await;
    }
}

fn allow(by: impl Into<String>) -> Decision {
    Decision::Allow(by.into())
}

fn deny(why: &str) -> Decision {
    Decision::Deny(why.into())
}

#[tokio::test]
async fn a_key_that_leaves_it_to_its_account() {
    let world = World::new(&left_to_account()).await;
    let encrypt = |name| world.judged(name, KmsAction::Encrypt);
    let left = deny("the key policy leaves it to the caller's own policies, none of which allows it");
    assert_eq!(encrypt("user/alice"), left);
    assert_eq!(encrypt("user/tom"), left, "his policy has ended");
    assert_eq!(encrypt("user/bob"), allow("key policy, statement Root, with policy own, statement All"));
    assert_eq!(encrypt("root"), allow("key policy, statement Root, with the account's root"));
    assert_eq!(encrypt("user/eve"), deny("an explicit deny in policy own, statement NoEncrypt"));
    let decrypts = allow("key policy, statement Root, with policy own, statement All");
    assert_eq!(world.judged("user/eve", KmsAction::Decrypt), decrypts);
    assert_eq!(encrypt("user/carl"), deny("neither the key policy nor a grant allows it"));
}

#[tokio::test]
async fn a_key_that_names_who_may() {
    let world = World::new(&naming()).await;
    let encrypt = |name| world.judged(name, KmsAction::Encrypt);
    assert_eq!(encrypt("user/alice"), allow("key policy, statement Named"));
    assert_eq!(encrypt("user/bob"), deny("an explicit deny in the key policy, statement NotBob"));
    assert_eq!(encrypt("user/carl"), allow("key policy, statement Named, with policy own, statement All"));
    let no_own = deny("the key policy leaves it to the caller's own policies, none of which allows it");
    assert_eq!(encrypt("user/dora"), no_own);
    assert_eq!(
        world.judged("user/carl", KmsAction::PutKeyPolicy),
        deny("the key is of another account, and the action is for callers of its own")
    );
    assert_eq!(world.judged("user/alice", KmsAction::PutKeyPolicy), allow("key policy, statement Named"));
    assert_eq!(world.judged("root", KmsAction::Encrypt), deny("neither the key policy nor a grant allows it"));
}

#[tokio::test]
async fn a_grant_allows_its_grantee_what_it_says() {
    let world = World::new(&left_to_account()).await;
    let id = world.grant("user/alice", &[KmsAction::CreateGrant, KmsAction::Decrypt]).await;
    assert_eq!(world.judged("user/alice", KmsAction::Decrypt), allow(format!("grant {id}")));
    assert!(matches!(world.judged("user/alice", KmsAction::Encrypt), Decision::Deny(_)));
    assert!(matches!(world.judged("user/tom", KmsAction::Decrypt), Decision::Deny(_)));
    let narrower = world.terms("user/tom", &[KmsAction::Decrypt]);
    let wider = world.terms("user/tom", &[KmsAction::Decrypt, KmsAction::Encrypt]);
    let make = |new| {
        world.asked("user/alice", KmsAction::CreateGrant, With { new_grant: Some(new), ..With::default() }, |ask| {
            ask.judge()
        })
    };
    assert_eq!(make(&narrower), allow(format!("grant {id}")));
    assert!(matches!(make(&wider), Decision::Deny(_)), "nobody gives more than he has");
    // Nor does a grant for something else let anybody make one that fits.
    let other =
        world.asked("user/alice", KmsAction::Encrypt, With { new_grant: Some(&narrower), ..With::default() }, |ask| {
            ask.judge()
        });
    assert!(matches!(other, Decision::Deny(_)));
}

#[tokio::test]
async fn refusals_say_which_kind_of_document_refuses() {
    let left = World::new(&left_to_account()).await;
    let named = World::new(&naming()).await;
    let ends = |message: String, end: &str| assert!(message.ends_with(end), "{message}");
    ends(left.refused("user/eve", KmsAction::Encrypt), "with an explicit deny in an identity-based policy");
    ends(named.refused("user/bob", KmsAction::Encrypt), "with an explicit deny in a resource-based policy");
    let own = "because no identity-based policy allows the kms:Encrypt action";
    ends(left.refused("user/alice", KmsAction::Encrypt), own);
    let of_key = "because no resource-based policy allows the kms:Encrypt action";
    ends(named.refused("root", KmsAction::Encrypt), of_key);
    let whole = format!(
        "User: {} is not authorized to perform: kms:Encrypt on resource: {} {own}",
        arn(ACCOUNT, "user/alice"),
        left.key.arn
    );
    assert_eq!(left.refused("user/alice", KmsAction::Encrypt), whole);
}

#[tokio::test]
async fn a_permit_is_for_what_was_asked_and_nothing_else() {
    let world = World::new(&naming()).await;
    let permit = world.asked("user/alice", KmsAction::Encrypt, With::default(), |ask| ask.permit()).unwrap();
    assert!(permit.spend(Action::KeyEncrypt, &world.key.resource()).is_ok());
    let (bob, region) = (world.who("user/bob"), Arc::clone(&world.region));
    let asker = Asker { identity: &bob, region: &region, source: None, source_arn: None, now: NOW };
    let apart = |action| ask(&world.kms, asker, (action, "*", None), With::default(), |ask, _| ask.permit()).unwrap();
    assert!(apart(KmsAction::GenerateRandom).spend(Action::RandomRead, &Resource::Instance).is_ok());
    assert!(apart(KmsAction::ListKeys).spend(KmsAction::ListKeys.core(), &Resource::Keys).is_ok());
    // Who puts another question than was asked gets no permit.
    let intent = |action| Intent { action, resource: world.key.resource() };
    let put = |who: &Principal, action| {
        world
            .asked("user/alice", KmsAction::Encrypt, With::default(), |ask| authorize(ask, who, intent(action)).is_ok())
    };
    let alice = world.who("user/alice");
    assert!(put(alice.principal(), Action::KeyEncrypt));
    assert!(!put(alice.principal(), Action::KeyDecrypt));
    assert!(!put(&Principal::system(), Action::KeyEncrypt));
    assert!(!put(&Principal::system(), Action::KeyDecrypt));
}

#[tokio::test]
async fn what_no_key_is_asked_about_the_callers_policies_decide() {
    let world = World::new(&left_to_account()).await;
    let apart = |name| {
        let (who, region) = (world.who(name), Arc::clone(&world.region));
        let asker = Asker { identity: &who, region: &region, source: None, source_arn: None, now: NOW };
        ask(&world.kms, asker, (KmsAction::ListKeys, "*", None), With::default(), |ask, _| ask.judge())
    };
    assert_eq!(apart("user/bob"), allow("policy own, statement All"));
    assert_eq!(apart("user/alice"), deny("no policy of the caller allows it"));
}

#[tokio::test]
async fn an_explanation_lists_who_was_asked() {
    let world = World::new(&left_to_account()).await;
    let id = world.grant("user/alice", &[KmsAction::Decrypt]).await;
    let explain = |name, action| world.asked(name, action, With::default(), |ask| ask.explain());
    let (allowed, lines) = explain("user/alice", KmsAction::Decrypt);
    let expected = [
        "key policy: statement Root allows the account".to_owned(),
        format!("grant {id}: allows"),
        format!("allowed by grant {id}"),
    ];
    assert!(allowed);
    assert_eq!(lines, expected);
    let (allowed, lines) = explain("user/eve", KmsAction::Encrypt);
    let expected = [
        "key policy: statement Root allows the account",
        "policy own of the caller: statement NoEncrypt denies",
        "policy own of the caller: statement All allows",
        "denied: an explicit deny in policy own, statement NoEncrypt",
    ];
    assert!(!allowed);
    assert_eq!(lines, expected);
    let (_, lines) = explain("user/tom", KmsAction::Encrypt);
    assert_eq!(lines[1], "policy own of the caller: says nothing");
    let (_, lines) = explain("user/alice", KmsAction::Encrypt);
    assert_eq!(lines[1], format!("grant {id}: does not apply"));
}

#[tokio::test]
async fn an_answer_rests_on_what_holds_still() {
    let world = World::new(&naming()).await;
    let resting = |uses| {
        let (mut basis, who) = world.basis("user/alice");
        basis.rests_on(KmsAction::Encrypt, About::Key(Arc::clone(&world.key)), uses, With::default());
        (basis, who)
    };
    let (used, who) = resting(true);
    let (told, _) = resting(false);
    assert_eq!(world.confirmed(&used, &who), Ok(()));
    world.change(|key| key.description = "another".into()).await;
    assert_eq!(world.confirmed(&used, &who), Ok(()), "what was changed makes no difference");
    world.change(|key| key.enabled = false).await;
    assert_eq!(world.confirmed(&used, &who), Err(Code::Disabled));
    assert_eq!(world.confirmed(&told, &who), Ok(()));
    let none = Arc::new(PolicyDocument::parse(PolicyKind::Key, &left_to_account()).unwrap());
    world.change(|key| key.policy = none).await;
    assert_eq!(world.confirmed(&told, &who), Err(Code::AccessDenied));
}

#[tokio::test]
async fn an_answer_about_no_key_rests_on_the_callers_policies() {
    let world = World::new(&left_to_account()).await;
    let (mut basis, who) = world.basis("user/alice");
    basis.rests_on(KmsAction::ListKeys, About::Resource("*".into()), false, With::default());
    assert_eq!(world.confirmed(&basis, &who), Ok(()), "nothing was changed: it is not asked again");
    world.change(|key| key.description = "another".into()).await;
    assert_eq!(world.confirmed(&basis, &who), Err(Code::AccessDenied));
}

#[tokio::test]
async fn what_ends_by_its_hour_is_asked_again_though_nothing_was_changed() {
    let world = World::new(&left_to_account()).await;
    let (mut own, tom) = world.basis("user/tom");
    own.rests_on(KmsAction::ListKeys, About::Resource("*".into()), false, With::default());
    assert_eq!(world.confirmed(&own, &tom), Err(Code::AccessDenied));
    let till_now = TILL_NOW.replace(r#""Effect":"Allow","#, r#""Effect":"Allow","Principal":{"AWS":"*"},"#);
    let of_key = World::new(&till_now).await;
    let (mut basis, alice) = of_key.basis("user/alice");
    basis.rests_on(KmsAction::Encrypt, About::Key(Arc::clone(&of_key.key)), false, With::default());
    assert_eq!(of_key.confirmed(&basis, &alice), Err(Code::AccessDenied));
}

#[tokio::test]
async fn an_answer_by_an_alias_rests_on_where_it_points() {
    let world = World::new(&naming()).await;
    let name = AliasName { account: ACCOUNT.into(), region: REGION.into(), name: "alias/a".into() };
    let point = async |target: KeyId| {
        let changing = world.kms.aliases.changing().await;
        let spent = spent_on(Action::KeyUpdate, target.resource().unwrap());
        let event = Decided::by_itself(event(), Itself::Due(spent));
        drop(world.kms.aliases.put(&changing, name.clone(), target, NOW, event).await.unwrap());
    };
    point(world.key.id).await;
    let (mut basis, who) = world.basis("user/alice");
    let with = With { alias: Some("alias/a"), ..With::default() };
    basis.rests_on(KmsAction::Encrypt, About::Key(Arc::clone(&world.key)), true, with);
    world.change(|key| key.description = "another".into()).await;
    assert_eq!(world.confirmed(&basis, &who), Ok(()));
    point(KeyId::new([1; 16], false)).await;
    assert_eq!(world.confirmed(&basis, &who), Err(Code::KmsInternal));
}

/// What was permitted on another key, or is no change, changes neither grants nor aliases.
#[tokio::test]
async fn grants_and_aliases_are_changed_by_leave_of_their_key_alone() {
    let world = World::new(&naming()).await;
    let id = world.grant("user/alice", &[KmsAction::Encrypt]).await;
    let grant = world.kms.grants.get(id).unwrap();
    let name = AliasName { account: ACCOUNT.into(), region: REGION.into(), name: "alias/a".into() };
    let other = KeyId::new([1; 16], false).resource().unwrap();
    let (own, aliases) = (world.key.resource(), &world.kms.aliases);
    for (action, resource, taken) in
        [(Action::KeyUpdate, &other, false), (Action::KeyRead, &own, false), (Action::KeyUpdate, &own, true)]
    {
        let leave = || Decided::by_itself(event(), Itself::Due(spent_on(action, resource.clone())));
        let made = world.kms.grants.create(GrantId([2; 32]), world.terms("user/tom", &[]), NOW, || Ok(leave())).await;
        assert_eq!(made.is_ok(), taken, "{action:?} on {resource}");
        assert_eq!(world.kms.grants.remove(&grant, || Ok(leave())).await.is_ok(), taken);
        let changing = aliases.changing().await;
        assert_eq!(aliases.put(&changing, name.clone(), world.key.id, NOW, leave()).await.is_ok(), taken);
        if let Some(alias) = aliases.get(&name) {
            let elsewhere = Decided::by_itself(event(), Itself::Due(spent_on(action, other.clone())));
            assert!(aliases.remove(&changing, &name, &alias, elsewhere).await.is_err());
            drop(aliases.remove(&changing, &name, &alias, leave()).await.unwrap());
        }
    }
}

#[test]
fn the_service_does_by_itself_what_is_due_and_nothing_else() {
    let key = KeyName::parse("k").unwrap();
    let import = KeyName::parse("import-k").unwrap();
    let acts = [
        (OwnAct::Delete, Action::KeyDelete, &key),
        (OwnAct::EraseMaterial, Action::KeyUpdate, &key),
        (OwnAct::MakeImportKey, Action::KeyCreate, &import),
        (OwnAct::Rotate, Action::KeyRotate, &key),
        (OwnAct::SealImportToken, Action::KeyBackup, &key),
    ];
    for (act, action, name) in acts {
        let resource = Resource::Key(name.clone());
        assert!(due(act, name).unwrap().is_for(&[action], &resource), "{act:?}");
        assert!(permit(act, name).unwrap().spend(action, &resource).is_ok(), "{act:?}");
        let other = if name == &key { &import } else { &key };
        assert!(permit(act, other).is_err(), "{act:?} of a key of another kind");
        let policy = crate::own::policy(act);
        let ask =
            |who: &Principal, action| authorize(&policy, who, Intent { action, resource: resource.clone() }).is_ok();
        let somebody = Principal::verified_exactly(holdfast_core::PrincipalKind::User, "test", "somebody");
        assert!(ask(&Principal::system(), action));
        assert!(!ask(&somebody, action) && !ask(&Principal::system(), Action::KeyDecrypt));
    }
}

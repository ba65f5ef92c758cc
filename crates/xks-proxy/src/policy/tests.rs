use super::*;

const GOOD: &str = r#"
version = 1
[[stores]]
name = "prod"
path_prefix = "/prod"
region = "us-east-1"
mode = "patterns"
keys = ["orders", "mail"]
[[stores]]
name = "lax"
path_prefix = "/lax"
region = "us-east-1"
mode = "trust-provider"
aad = "sha256"
keys = ["mail"]
[[stores]]
name = "hard"
path_prefix = "/a/hard"
region = "eu-central-1"
mode = "strict"
caller_proof = "checked"
keys = ["orders"]
[[stores]]
name = "azure"
path_prefix = "/azure"
dialect = "azure-ekm"
mode = "trust-provider"
client_subject = "one.managedhsmclient.azure.net"
client_ca_sha256 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
keys = ["mail"]
[[keys]]
id = "orders"
hsms = ["east", "west"]
accept = ["was-extractable"]
[[keys.versions]]
number = 1
label = "orders-1"
[[keys.versions]]
number = 3
object_id = "0aff"
[[keys]]
id = "mail"
hsms = ["west"]
label = "mail"
[[rules]]
name = "apps"
effect = "allow"
stores = ["prod"]
keys = ["orders"]
principals = ["arn:aws:sts::111122223333:assumed-role/app-*/*"]
[[rules]]
name = "ebs"
effect = "allow"
stores = ["prod"]
accounts = ["111122223333"]
via_services = ["ebs"]
kms_keys = ["arn:aws:kms:us-east-1:111122223333:key/1*"]
[[rules]]
name = "no-intern"
effect = "deny"
principals = ["*/intern", "arn:aws:iam::*:user/intern"]
[[rules]]
name = "the-one"
effect = "allow"
stores = ["hard"]
keys = ["orders"]
principals = ["arn:aws:iam::111122223333:role/one"]
operations = ["Decrypt"]
"#;

fn key(id: &str) -> ExternalKeyId {
    ExternalKeyId::parse(id).unwrap()
}

#[test]
fn decisions_and_their_rules() {
    let policy = Policy::parse(GOOD).unwrap();
    let app = "arn:aws:sts::111122223333:assumed-role/app-7/i-1";
    let other_account = "arn:aws:sts::999999999999:assumed-role/app-7/i-1";
    let role = "arn:aws:iam::111122223333:role/x";
    let ask = |store, id: &str, principal, operation, kms_key, via_service| {
        let question = Question { principal, operation, kms_key, via_service, ..Question::default() };
        let explanation = policy.store(store).unwrap().decide(&key(id), &question);
        (explanation.allowed, explanation.reason)
    };
    let kms_1 = Some("arn:aws:kms:us-east-1:111122223333:key/1234");
    let kms_2 = Some("arn:aws:kms:us-east-1:111122223333:key/2234");
    assert_eq!(ask("prod", "orders", app, "Decrypt", kms_1, None), (true, "rule \"apps\"".into()));
    assert!(!ask("prod", "mail", app, "Decrypt", kms_1, None).0, "the rule is for another key");
    assert!(!ask("prod", "orders", other_account, "Decrypt", kms_1, None).0);
    assert_eq!(ask("prod", "mail", role, "Decrypt", kms_1, Some("ebs")), (true, "rule \"ebs\"".into()));
    assert!(!ask("prod", "mail", role, "Decrypt", kms_2, Some("ebs")).0);
    assert!(!ask("prod", "mail", role, "Decrypt", kms_1, None).0, "what is not told is not allowed");
    assert!(ask("prod", "mail", role, "CreateKey", None, None).0, "a key that is being made has no ARN yet");
    assert!(!ask("prod", "mail", "AWS Internal", "Decrypt", kms_1, Some("ebs")).0, "it has no account");
    let intern = "arn:aws:iam::111122223333:user/intern";
    assert_eq!(ask("lax", "mail", intern, "Decrypt", None, None), (false, "rule \"no-intern\" denies".into()));
    assert!(ask("lax", "mail", "AWS Internal", "Whatever", None, None).0);
    let one = "arn:aws:iam::111122223333:role/one";
    assert!(ask("hard", "orders", one, "Decrypt", kms_1, None).0);
    assert!(!ask("hard", "orders", one, "Encrypt", kms_1, None).0);
    let explained = policy.explain("prod", &key("orders"), &Question { principal: app, ..Question::default() });
    assert_eq!(explained.reason, "rule \"apps\"; through HSM user east, then west");
    assert!(!policy.explain("lax", &key("orders"), &Question::default()).allowed);
}

#[test]
fn versions_and_purposes() {
    let policy = Policy::parse(GOOD).unwrap();
    let orders = policy.key(&key("orders")).unwrap();
    assert_eq!(orders.newest(), (3, &TokenObject { label: None, id: Some(vec![0x0a, 0xff]) }));
    assert_eq!(orders.version(1), Some(&TokenObject::labelled("orders-1")));
    assert_eq!((orders.version(2), orders.oldest().0), (None, 1));
    assert_eq!(orders.purpose.iter().count(), 2);
    assert_eq!(policy.key(&key("mail")).unwrap().purpose.iter().count(), 4, "for data and for keys");
    let Dialect::AwsXks { caller_proof, .. } = policy.store("hard").unwrap().dialect else { panic!() };
    assert_eq!(caller_proof, CallerProof::Required, "strict mode makes of checked required");
}

#[test]
fn nonsense_is_refused_by_name() {
    for (from, to, why) in [
        ("version = 1", "version = 2", "version"),
        ("mode = \"patterns\"", "mode = \"paterns\"", "paterns"),
        ("name = \"lax\"", "name = \"prod\"", "two stores"),
        ("path_prefix = \"/lax\"", "path_prefix = \"/prod\"", "path_prefix"),
        ("path_prefix = \"/lax\"", "path_prefix = \"/lax/\"", "path_prefix"),
        ("region = \"eu-central-1\"\n", "", "region"),
        ("keys = [\"mail\"]", "keys = [\"male\"]", "male"),
        ("hsms = [\"west\"]", "hsms = []", "hsms"),
        ("number = 3", "number = 1", "versions"),
        ("object_id = \"0aff\"", "object_id = \"0af\"", "hex"),
        ("label = \"mail\"\n", "", "versions"),
        ("accept = [\"was-extractable\"]", "accept = [\"everything\"]", "everything"),
        ("effect = \"deny\"", "effect = \"denny\"", "effect"),
        ("name = \"ebs\"", "name = \"apps\"", "name of its own"),
        ("operations = [\"Decrypt\"]", "operations = []", "empty list"),
        ("principals = [\"arn:aws:iam::111122223333:role/one\"]", "principals = [\"arn:aws:iam::1:role/*\"]", "strict"),
        ("client_ca_sha256 = \"0011", "client_ca_sha256 = \"11", "client_ca_sha256"),
        ("aad = \"sha256\"", "aad = \"md5\"", "md5"),
        ("accounts =", "acounts =", "unknown field"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = Policy::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(error.0.contains(why), "{to}: {error}");
    }
}

/// What the manual shows is a policy.
#[test]
fn the_example_of_the_manual_is_valid() {
    let manual = include_str!("../../../../docs/policy.md");
    let example: String =
        manual.lines().filter_map(|line| line.strip_prefix("    ")).flat_map(|line| [line, "\n"]).collect();
    let policy = Policy::parse(&example).unwrap();
    assert_eq!((policy.stores().len(), policy.keys().count()), (2, 2));
    let question = Question {
        principal: "arn:aws:sts::111122223333:assumed-role/orders-7/i-1",
        operation: "Decrypt",
        kms_key: Some("arn:aws:kms:eu-central-1:111122223333:key/1"),
        via_service: Some("ebs"),
        source_vpc: Some("vpc-0abc"),
        source_vpce: Some("vpce-0abc"),
    };
    assert_eq!(
        policy.explain("prod", &key("orders"), &question).reason,
        "rule \"order-service\"; through HSM user east, then west"
    );
}

"""Who may: key policies, identity policies, grants, conditions, accounts; each in allow and in deny."""
import json

import pytest
from service import ACCOUNT, OTHER_ACCOUNT, allow, document, iam, refused

ROOT = {"Sid": "Root", "Effect": "Allow", "Principal": {"AWS": iam("root")}, "Action": "kms:*", "Resource": "*"}
BOB, ALICE = {"AWS": iam("user/bob")}, {"AWS": iam("user/alice")}


def statement(action, principal=BOB, effect="Allow", **more) -> dict:
    return {"Effect": effect, "Principal": principal, "Action": action, "Resource": "*"} | more


@pytest.fixture
def key(kms) -> str:
    return kms.create_key()["KeyMetadata"]["Arn"]


def put(kms, key: str, *statements: dict, root=ROOT) -> None:
    kms.put_key_policy(KeyId=key, Policy=json.dumps(document(*([root] if root else []), *statements)))


def may(client, key: str, context: dict | None = None) -> bool:
    """Whether a principal may encrypt."""
    try:
        client.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context or {})
        return True
    except client.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDeniedException", error
        return False


def test_the_default_policy_leaves_it_to_the_account(kms, service, key):
    policy = json.loads(kms.get_key_policy(KeyId=key)["Policy"])
    assert policy["Statement"][0]["Principal"] == {"AWS": iam("root")}
    assert kms.list_key_policies(KeyId=key)["PolicyNames"] == ["default"]
    with refused("NotFoundException"):
        kms.get_key_policy(KeyId=key, PolicyName="other")
    assert may(service.client("alice"), key), "her own policy says so"
    assert not may(service.client("bob"), key), "he has none"
    assert not may(service.client("stranger"), key), "another account"
    with refused("AccessDeniedException") as error:
        service.client("bob").describe_key(KeyId=key)
    assert iam("user/bob") in error.message and "kms:DescribeKey" in error.message and key in error.message


def test_key_policies(kms, service, key):
    bob, alice = service.client("bob"), service.client("alice")
    put(kms, key, statement(["kms:Enc*", "kms:Describe?ey"]))
    assert may(bob, key) and bob.describe_key(KeyId=key)
    with refused("AccessDeniedException"):
        bob.generate_data_key(KeyId=key, KeySpec="AES_256")
    # Deny wins over whatever allows, the account's root included.
    put(kms, key, statement("kms:Encrypt"), statement("kms:Encrypt", {"AWS": "*"}, "Deny", Condition={"StringNotEquals": {"aws:PrincipalArn": iam("user/alice")}}))
    assert not may(bob, key) and not may(kms, key) and may(alice, key)
    with refused("AccessDeniedException") as error:
        bob.encrypt(KeyId=key, Plaintext=b"x")
    assert "explicit deny" in error.message
    # An identity's own deny wins, too.
    put(kms, key, statement("kms:*", {"AWS": iam("user/denied")}))
    denied = service.client("denied")
    blob = denied.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    with refused("AccessDeniedException"):
        denied.decrypt(CiphertextBlob=blob)
    # Without the account in the policy, policies of identities count for nothing.
    put(kms, key, statement("kms:*", {"AWS": iam("user/admin")}), statement("kms:Encrypt"), root=statement("kms:PutKeyPolicy", {"AWS": iam("root")}))
    assert may(bob, key) and not may(alice, key) and may(service.client("admin"), key)


def test_nobody_locks_everybody_out(kms, service, key):
    only_bob = json.dumps(document(statement("kms:*")))
    with refused("MalformedPolicyDocumentException") as error:
        kms.put_key_policy(KeyId=key, Policy=only_bob)
    assert "in the future" in error.message
    with refused("MalformedPolicyDocumentException"):
        kms.create_key(Policy=only_bob)
    kms.put_key_policy(KeyId=key, Policy=only_bob, BypassPolicyLockoutSafetyCheck=True)
    with refused("AccessDeniedException"):
        kms.get_key_policy(KeyId=key)
    put(service.client("bob"), key, statement("kms:*"))
    assert kms.get_key_policy(KeyId=key)
    for bad in ("{", "[]", json.dumps(document(statement("kms:*", {"AWS": iam("user/nobody")}))),
                json.dumps(document(ROOT, statement("kms:Encrypt", Condition={"StringSort": {"a": "b"}})))):
        with refused("MalformedPolicyDocumentException"):
            kms.put_key_policy(KeyId=key, Policy=bad)


@pytest.mark.parametrize(("condition", "allowed", "denied"), [
    ({"StringEquals": {"kms:EncryptionContext:tenant": "blue"}}, {"tenant": "blue"}, {"tenant": "red"}),
    ({"StringEquals": {"kms:EncryptionContext:tenant": "blue"}}, {"tenant": "blue", "more": "x"}, {}),
    ({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["a", "b"]}}, {"a": "1", "b": "2"}, {"a": "1", "c": "2"}),
    ({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "a"}}, {"a": "1", "c": "2"}, {"c": "2"}),
    ({"ForAnyValue:StringNotEquals": {"kms:EncryptionContextKeys": ["a", "b"]}}, {"a": "1", "c": "2"}, {"a": "1", "b": "2"}),
    ({"Null": {"kms:EncryptionContext:tenant": "false"}}, {"tenant": ""}, {"other": ""}),
    ({"StringLike": {"kms:EncryptionContext:path": "${aws:PrincipalTag/team}/*"}}, {"path": "red/x"}, {"path": "blue/x"}),
])
def test_conditions_on_the_encryption_context(kms, service, key, condition, allowed, denied):
    put(kms, key, statement("kms:Encrypt", Condition=condition))
    bob = service.client("bob")
    assert may(bob, key, allowed) and not may(bob, key, denied)


@pytest.mark.parametrize(("condition", "holds"), [
    ({"StringEquals": {"kms:CallerAccount": ACCOUNT}}, True),
    ({"StringEquals": {"kms:CallerAccount": OTHER_ACCOUNT}}, False),
    ({"StringEquals": {"kms:KeySpec": "SYMMETRIC_DEFAULT", "kms:KeyUsage": "ENCRYPT_DECRYPT", "kms:KeyOrigin": "AWS_KMS"}}, True),
    ({"StringEquals": {"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}}, True),
    ({"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, True),
    ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, False),
    ({"Bool": {"aws:SecureTransport": "true"}}, True),
    ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, True),
    ({"DateLessThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, False),
    ({"StringEquals": {"aws:PrincipalTag/team": "red"}}, True),
    ({"StringEquals": {"aws:PrincipalTag/Team": "red"}}, False),
    ({"StringEquals": {"aws:ResourceTag/stage": "test"}}, True),
    ({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/b*"}}, True),
    ({"StringEquals": {"aws:RequestedRegion": "us-east-1"}}, True),
    ({"Null": {"kms:ViaService": "true"}}, True),
    ({"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/conditions"}}, True),
    ({"StringEquals": {"kms:RequestAlias": "alias/conditions"}}, False),
    ({"StringEquals": {"no:SuchKey": "x"}}, False),
    ({"StringEqualsIfExists": {"no:SuchKey": "x"}}, True),
])
def test_other_conditions(kms, service, key, condition, holds):
    kms.tag_resource(KeyId=key, Tags=[{"TagKey": "stage", "TagValue": "test"}])
    kms.create_alias(AliasName="alias/conditions", TargetKeyId=key)
    try:
        put(kms, key, statement("kms:Encrypt", Condition=condition))
        assert may(service.client("bob"), key) == holds
        # The same question, asked of the service by its operator.
        assert service.explain("bob", "kms:Encrypt", key, "--source-ip", "127.0.0.1")["allowed"] == holds or "kms:EncryptionAlgorithm" in str(condition)
        if "kms:RequestAlias" in str(condition):
            assert may(service.client("bob"), "alias/conditions")
    finally:
        kms.delete_alias(AliasName="alias/conditions")


def test_via_service_is_an_identity_not_a_header(kms, service, key):
    put(kms, key, statement("kms:Encrypt", {"AWS": [iam("role/storage"), iam("user/bob")]}, Condition={"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}),
        statement("kms:Encrypt", {"AWS": iam("role/storage")}, "Deny", Condition={"StringNotEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}))
    assert may(service.client("storage"), key) and not may(service.client("bob"), key)
    event = next(event for event in reversed(service.events()) if event["caller"]["oid"] == iam("role/storage"))
    assert event["context"]["via-service"] == "s3.us-east-1.amazonaws.com"


def test_other_accounts_need_both_sides(kms, service, key):
    carol, their_root = service.client("stranger"), service.client("stranger-root")
    put(kms, key, statement("kms:Encrypt", {"AWS": OTHER_ACCOUNT}))
    assert may(carol, key) and may(their_root, key), "the account is let in, and its own policies allow"
    put(kms, key, statement("kms:Encrypt", {"AWS": iam("user/carol", OTHER_ACCOUNT)}))
    assert may(carol, key) and not may(their_root, key)
    with refused("NotFoundException"):
        carol.encrypt(KeyId=key.rsplit("/", 1)[1], Plaintext=b"x")
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    with refused("AccessDeniedException") as error:
        carol.decrypt(CiphertextBlob=blob)
    assert "you are not allowed to access" in error.message and key not in error.message


def test_what_other_accounts_never_do(kms, service, key):
    """Even if the key's policy lets them do everything: a key is administered from its own account."""
    put(kms, key, statement("kms:*", {"AWS": iam("user/carol", OTHER_ACCOUNT)}))
    carol = service.client("stranger")
    assert may(carol, key) and carol.describe_key(KeyId=key)["KeyMetadata"]["Arn"] == key
    for use in (lambda: carol.put_key_policy(KeyId=key, Policy="{}"), lambda: carol.get_key_policy(KeyId=key), lambda: carol.disable_key(KeyId=key),
                lambda: carol.schedule_key_deletion(KeyId=key), lambda: carol.list_resource_tags(KeyId=key), lambda: carol.rotate_key_on_demand(KeyId=key),
                lambda: carol.get_key_last_usage(KeyId=key)):
        with refused("AccessDeniedException"):
            use()
    assert not service.explain("stranger", "kms:PutKeyPolicy", key)["allowed"]


def test_re_encrypt_needs_both_keys(kms, service, key):
    other = kms.create_key()["KeyMetadata"]["Arn"]
    bob = service.client("bob")
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    put(kms, key, statement("kms:ReEncryptFrom"))
    with refused("AccessDeniedException"):
        bob.re_encrypt(CiphertextBlob=blob, DestinationKeyId=other)
    put(kms, other, statement("kms:ReEncryptTo", Condition={"Bool": {"kms:ReEncryptOnSameKey": "false"}}))
    assert bob.re_encrypt(CiphertextBlob=blob, DestinationKeyId=other)["KeyId"] == other
    put(kms, key, statement(["kms:ReEncryptFrom"]), statement("kms:ReEncryptTo", Condition={"Bool": {"kms:ReEncryptOnSameKey": "false"}}))
    with refused("AccessDeniedException"):
        bob.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key)


def test_account_wide_actions(service, kms):
    for name, allowed in (("alice", True), ("bob", False), ("admin", True)):
        client = service.client(name)
        if allowed:
            client.list_keys()
        else:
            with refused("AccessDeniedException"):
                client.list_keys()
    for use in (lambda c: c.create_key(), lambda c: c.generate_random(NumberOfBytes=8), lambda c: c.describe_custom_key_stores(),
                lambda c: c.connect_custom_key_store(CustomKeyStoreId="cks-1")):
        with refused("AccessDeniedException"):
            use(service.client("alice"))


def grant(kms, key, *operations, grantee="user/bob", **more) -> dict:
    return kms.create_grant(KeyId=key, GranteePrincipal=iam(grantee), Operations=list(operations), **more)


def test_grants(kms, service, key):
    bob = service.client("bob")
    made = grant(kms, key, "Encrypt", "DescribeKey", Name="one", RetiringPrincipal=iam("user/alice"))
    assert len(made["GrantId"]) == 64 and may(bob, key) and bob.describe_key(KeyId=key)
    blob = bob.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=[made["GrantToken"]])["CiphertextBlob"]
    with refused("AccessDeniedException"):
        bob.decrypt(CiphertextBlob=blob)
    with refused("InvalidGrantTokenException"):
        bob.encrypt(KeyId=key, Plaintext=b"x", GrantTokens=["bogus"])
    again = grant(kms, key, "Encrypt", "DescribeKey", Name="one", RetiringPrincipal=iam("user/alice"))
    assert again["GrantId"] == made["GrantId"], "a retry is the same grant"
    listed = kms.list_grants(KeyId=key)["Grants"]
    assert [(g["GrantId"], g["Name"], g["GranteePrincipal"], g["Operations"]) for g in listed] == [
        (made["GrantId"], "one", iam("user/bob"), ["Encrypt", "DescribeKey"])]
    # A grant allows; it never overrules a deny.
    put(kms, key, statement("kms:Encrypt", effect="Deny"))
    assert not may(bob, key)
    put(kms, key)
    service.restart(9)
    assert may(bob, key), "grants outlive a kill"
    assert [g["GrantId"] for g in service.client("alice").list_retirable_grants(RetiringPrincipal=iam("user/alice"))["Grants"]] == [made["GrantId"]]
    with refused("AccessDeniedException"):
        bob.retire_grant(GrantToken=made["GrantToken"])
    service.client("alice").retire_grant(GrantToken=made["GrantToken"])
    assert not may(bob, key) and kms.list_grants(KeyId=key)["Grants"] == []
    own = grant(kms, key, "Encrypt", "RetireGrant")
    bob.retire_grant(KeyId=key, GrantId=own["GrantId"])
    other = grant(kms, key, "Encrypt")
    with refused("AccessDeniedException"):
        bob.revoke_grant(KeyId=key, GrantId=other["GrantId"])
    kms.revoke_grant(KeyId=key, GrantId=other["GrantId"])
    assert not may(bob, key)
    with refused("NotFoundException"):
        kms.revoke_grant(KeyId=key, GrantId=other["GrantId"])
    with refused("InvalidGrantIdException"):
        kms.revoke_grant(KeyId=key, GrantId="x")


def test_grant_constraints(kms, service, key):
    bob = service.client("bob")
    made = grant(kms, key, "Encrypt", "DescribeKey", Constraints={"EncryptionContextSubset": {"Tenant": "blue"}})
    assert may(bob, key, {"tenant": "blue", "x": "y"}), "names without case"
    assert not may(bob, key, {"Tenant": "Blue"}) and not may(bob, key), "values with it"
    assert bob.describe_key(KeyId=key), "operations without a context are not constrained"
    kms.revoke_grant(KeyId=key, GrantId=made["GrantId"])
    grant(kms, key, "Encrypt", Constraints={"EncryptionContextEquals": {"tenant": "blue"}})
    assert may(bob, key, {"tenant": "blue"}) and not may(bob, key, {"tenant": "blue", "x": "y"})
    signing = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    for name, asked, code in [
        (key, {"Operations": ["Sign"]}, "ValidationException"), (signing, {"Operations": ["Encrypt"]}, "ValidationException"),
        (key, {"Operations": []}, "ValidationException"), (key, {"Operations": ["Everything"]}, "ValidationException"),
        (signing, {"Operations": ["Sign"], "Constraints": {"EncryptionContextEquals": {"a": "b"}}}, "ValidationException"),
        (key, {"Operations": ["Encrypt"], "GranteePrincipal": iam("user/nobody")}, "InvalidArnException"),
        (key, {"Operations": ["Encrypt"], "Constraints": {"EncryptionContextSubset": {str(n): "" for n in range(9)}}}, "ValidationException"),
    ]:
        with refused(code):
            kms.create_grant(**{"KeyId": name, "GranteePrincipal": iam("user/bob")} | asked)


def test_a_grant_made_by_a_grant_is_no_wider(kms, service, key):
    grant(kms, key, "CreateGrant", "Encrypt", Constraints={"EncryptionContextSubset": {"tenant": "blue"}})
    bob = service.client("bob")
    for operations, constraints in [(["Encrypt", "Decrypt"], {"EncryptionContextSubset": {"tenant": "blue"}}), (["Encrypt"], None),
                                    (["Encrypt"], {"EncryptionContextSubset": {"tenant": "red"}})]:
        with refused("AccessDeniedException"):
            grant(bob, key, *operations, grantee="user/alice", **({"Constraints": constraints} if constraints else {}))
    grant(bob, key, "Encrypt", grantee="user/alice", Constraints={"EncryptionContextSubset": {"tenant": "blue", "more": "x"}})
    assert kms.list_grants(KeyId=key, GranteePrincipal=iam("user/alice"))["Grants"][0]["IssuingAccount"]


def test_grants_by_condition(kms, service, key):
    """A service may make grants for its own resources only."""
    put(kms, key, statement("kms:CreateGrant", {"AWS": [iam("role/storage"), iam("user/bob")]}, Condition={"Bool": {"kms:GrantIsForAWSResource": "true"},
        "ForAllValues:StringEquals": {"kms:GrantOperations": ["Decrypt", "Encrypt"]}}))
    grant(service.client("storage"), key, "Decrypt")
    with refused("AccessDeniedException"):
        grant(service.client("storage"), key, "Decrypt", "DescribeKey")
    with refused("AccessDeniedException"):
        grant(service.client("bob"), key, "Decrypt")


def test_explain_names_the_statement(kms, service, key):
    put(kms, key, {"Sid": "BobMay"} | statement("kms:Encrypt", Condition={"StringEquals": {"kms:EncryptionContext:tenant": "blue"}}))
    yes = service.explain("bob", "kms:Encrypt", key, "--context", "tenant=blue")
    assert yes["allowed"] and yes["lines"][-1] == "allowed by key policy, statement BobMay", yes
    no = service.explain("bob", "kms:Encrypt", key, "--context", "tenant=red")
    assert not no["allowed"] and no["lines"][-1].startswith("denied:"), no
    made = grant(kms, key, "Decrypt")
    assert service.explain("bob", "kms:Decrypt", key)["lines"][-1] == f"allowed by grant {made['GrantId']}"
    assert "explicit deny" in service.explain("denied", "kms:Decrypt", key)["lines"][-1]
    done = service.holdfast("kms", "explain", "--data-dir", service.data_dir, "--principal", iam("user/nobody"), "--action", "kms:Encrypt", check=False)
    assert done.returncode == 1 and "there is no principal" in done.stderr

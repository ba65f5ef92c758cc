"""Services: grants that name them, and on whose behalf they say that they ask."""
import contextlib
import json

import pytest
from botocore.exceptions import ClientError
from service import ACCOUNT, REGION, allow, document, iam, refused
from test_wire import Caller, assert_refused


@pytest.fixture
def key(kms) -> str:
    return kms.create_key()["KeyMetadata"]["Arn"]


BUCKET, OTHER_BUCKET = f"arn:aws:s3:{REGION}:{ACCOUNT}:bucket/one", f"arn:aws:s3:{REGION}:{ACCOUNT}:bucket/two"
S3, BACKUP = "s3.amazonaws.com", "backup.amazonaws.com"


@contextlib.contextmanager
def on_behalf_of(client, arn: str | None):
    """Requests of this client say so, under its signature."""
    def add(request, **_):
        if arn is not None:
            request.headers["x-amz-source-arn"] = arn

    client.meta.events.register("before-sign.kms", add)
    try:
        yield client
    finally:
        client.meta.events.unregister("before-sign.kms", add)


def outcome(use) -> str:
    try:
        use()
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "done"


def test_grants_to_service_principals(service, kms, key):
    storage, backup, bob = (service.client(name) for name in ("storage", "backup", "bob"))
    terms = {"KeyId": key, "GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": S3, "Operations": ["Encrypt", "DescribeKey"],
             "Constraints": {"SourceArn": BUCKET}, "Name": "of-a-service"}
    made = kms.create_grant(**terms)
    assert kms.create_grant(**terms)["GrantId"] == made["GrantId"], "a retry is the same grant"
    other = kms.create_grant(**terms | {"Constraints": {"SourceArn": OTHER_BUCKET}})
    assert other["GrantId"] != made["GrantId"]
    kms.revoke_grant(KeyId=key, GrantId=other["GrantId"])
    [listed] = kms.list_grants(KeyId=key)["Grants"]
    assert (listed["GranteeServicePrincipal"], listed["RetiringServicePrincipal"], listed["Constraints"]) == (BACKUP, S3, {"SourceArn": BUCKET})
    assert "GranteePrincipal" not in listed and "RetiringPrincipal" not in listed and listed["IssuingAccount"] == iam("root")

    def use(client, arn) -> str:
        with on_behalf_of(client, arn):
            return outcome(lambda: client.encrypt(KeyId=key, Plaintext=b"x"))

    for _ in range(2):
        assert use(backup, BUCKET) == "done"
        assert use(backup, OTHER_BUCKET) == use(backup, None) == "AccessDeniedException", "not on behalf of anything else"
        assert use(bob, None) == "AccessDeniedException" and use(bob, BUCKET) == "AccessDeniedException", "only a service is believed"
        with on_behalf_of(backup, BUCKET):
            assert backup.describe_key(KeyId=key)
            assert outcome(lambda: backup.decrypt(KeyId=key, CiphertextBlob=b"x")) == "AccessDeniedException", "not among its operations"
        # It is there after a kill, as it was.
        service.restart(9)
    # Listings by service are for services.
    with refused("AccessDeniedException"):
        kms.list_grants(KeyId=key, GranteeServicePrincipal=BACKUP)
    with refused("AccessDeniedException"):
        kms.list_retirable_grants(RetiringServicePrincipal=S3)
    with refused("AccessDeniedException"):
        backup.list_retirable_grants(RetiringServicePrincipal=S3)
    kms.put_key_policy(KeyId=key, Policy=json.dumps(document(allow("kms:*", Principal={"AWS": iam("root")}), allow("kms:ListGrants", Principal={"Service": BACKUP}))))
    assert [grant["GrantId"] for grant in backup.list_grants(KeyId=key, GranteeServicePrincipal=BACKUP)["Grants"]] == [made["GrantId"]]
    assert backup.list_grants(KeyId=key, GranteeServicePrincipal=S3)["Grants"] == []
    assert [grant["GrantId"] for grant in storage.list_retirable_grants(RetiringServicePrincipal=S3)["Grants"]] == [made["GrantId"]]
    # The retiring service retires it, and no other does.
    for client in (bob, backup):
        with refused("AccessDeniedException"):
            client.retire_grant(GrantToken=made["GrantToken"])
    storage.retire_grant(GrantToken=made["GrantToken"])
    assert use(backup, BUCKET) == "AccessDeniedException"


def test_service_grants_with_both_constraints(service, kms, key):
    backup = service.client("backup")
    kms.create_grant(KeyId=key, GranteeServicePrincipal=BACKUP, RetiringPrincipal=iam("user/alice"), Operations=["Encrypt"],
                     Constraints={"SourceArn": BUCKET, "EncryptionContextSubset": {"tenant": "blue"}})
    [listed] = kms.list_grants(KeyId=key)["Grants"]
    assert listed["Constraints"] == {"SourceArn": BUCKET, "EncryptionContextSubset": {"tenant": "blue"}} and listed["RetiringPrincipal"] == iam("user/alice")
    for arn, context, wanted in [(BUCKET, {"tenant": "blue", "more": "x"}, "done"), (BUCKET, {}, "AccessDeniedException"),
                                 (None, {"tenant": "blue"}, "AccessDeniedException"), (BUCKET + "x", {"tenant": "blue"}, "AccessDeniedException")]:
        with on_behalf_of(backup, arn):
            assert outcome(lambda: backup.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)) == wanted, (arn, context)
    said = service.explain("backup", "kms:Encrypt", key, "--context", "tenant=blue", "--source-arn", BUCKET)
    assert said["allowed"] and "allowed by grant" in said["lines"][-1]
    assert not service.explain("backup", "kms:Encrypt", key, "--context", "tenant=blue")["allowed"]


def test_a_source_constraint_is_for_named_principals_too(service, kms, key):
    storage = service.client("storage")
    kms.put_key_policy(KeyId=key, Policy=json.dumps(document(allow("kms:*", Principal={"AWS": iam("user/admin")}), allow(
        ["kms:CreateGrant", "kms:GetKeyPolicy", "kms:PutKeyPolicy"], Principal={"AWS": iam("root")}))), BypassPolicyLockoutSafetyCheck=True)
    kms.create_grant(KeyId=key, GranteePrincipal=iam("role/storage"), Operations=["GenerateMac", "Encrypt"][1:], Constraints={"SourceArn": BUCKET})
    with on_behalf_of(storage, BUCKET):
        storage.encrypt(KeyId=key, Plaintext=b"x")
    with refused("AccessDeniedException"):
        storage.encrypt(KeyId=key, Plaintext=b"x")


def test_a_grant_made_by_a_service_grant_is_no_wider(service, kms, key):
    backup = service.client("backup")
    kms.create_grant(KeyId=key, GranteeServicePrincipal=BACKUP, RetiringServicePrincipal=BACKUP, Operations=["CreateGrant", "Encrypt"],
                     Constraints={"SourceArn": BUCKET})

    def make_one(**more):
        return outcome(lambda: backup.create_grant(**{"KeyId": key, "GranteePrincipal": iam("user/bob"), "Operations": ["Encrypt"]} | more))

    with on_behalf_of(backup, BUCKET):
        assert make_one() == make_one(Constraints={"SourceArn": OTHER_BUCKET}) == "AccessDeniedException", "without its constraint it would be wider"
        assert make_one(Constraints={"SourceArn": BUCKET}) == "done"
        assert make_one(Constraints={"SourceArn": BUCKET}, Operations=["Encrypt", "Decrypt"]) == "AccessDeniedException"
    assert make_one(Constraints={"SourceArn": BUCKET}) == "AccessDeniedException", "not on behalf of nothing"


@pytest.mark.parametrize("more", [
    {"GranteeServicePrincipal": BACKUP}, {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": BACKUP},
    {"GranteeServicePrincipal": BACKUP, "Constraints": {"SourceArn": BUCKET}},
    {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": BACKUP, "Constraints": {"EncryptionContextSubset": {"a": "b"}}},
    {"GranteeServicePrincipal": BACKUP, "GranteePrincipal": iam("user/bob"), "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": BUCKET}},
    {"GranteePrincipal": iam("user/bob"), "RetiringServicePrincipal": BACKUP, "RetiringPrincipal": iam("user/bob")},
    {"GranteeServicePrincipal": "backup", "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": BUCKET}},
    {"GranteeServicePrincipal": "backup.com", "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": BUCKET}},
    {"GranteeServicePrincipal": iam("user/bob"), "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": BUCKET}},
    {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": "a" * 129, "Constraints": {"SourceArn": BUCKET}},
    {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": "bucket"}},
    {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": BUCKET + "b" * 512}},
    {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": BACKUP, "Constraints": {"SourceArn": "arn:aws:s3:::bucket-without-account"}},
    {"GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": BACKUP, "Operations": ["CreateGrant"], "Constraints": {"SourceArn": BUCKET}},
    {},
])
def test_service_grants_that_are_none(kms, key, more):
    with refused("ValidationException"):
        kms.create_grant(**{"KeyId": key, "Operations": ["Encrypt"]} | more)
    assert kms.list_grants(KeyId=key)["Grants"] == []


def test_filters_exclude_each_other(service, kms, key):
    for name in ("root", "backup"):
        client = service.client(name)
        with refused("ValidationException"):
            client.list_grants(KeyId=key, GranteePrincipal=iam("user/bob"), GranteeServicePrincipal=BACKUP)
        with refused("ValidationException"):
            client.list_retirable_grants(RetiringPrincipal=iam("user/bob"), RetiringServicePrincipal=BACKUP)
        with refused("ValidationException"):
            client.list_retirable_grants()


def test_policies_may_ask_on_whose_behalf_a_service_asks(service, kms, key):
    backup, bob = service.client("backup"), service.client("bob")
    for condition in ({"ArnEquals": {"aws:SourceArn": BUCKET}}, {"StringEquals": {"aws:SourceArn": BUCKET, "aws:SourceAccount": ACCOUNT}}):
        kms.put_key_policy(KeyId=key, Policy=json.dumps(document(
            allow("kms:*", Principal={"AWS": iam("root")}),
            allow("kms:Encrypt", Principal={"Service": BACKUP}, Condition=condition),
            allow("kms:Encrypt", Principal={"AWS": iam("user/bob")}, Condition=condition))))
        for client, arn, wanted in [(backup, BUCKET, "done"), (backup, OTHER_BUCKET, "AccessDeniedException"), (backup, None, "AccessDeniedException"),
                                    (bob, BUCKET, "AccessDeniedException"), (bob, None, "AccessDeniedException")]:
            with on_behalf_of(client, arn):
                assert outcome(lambda: client.encrypt(KeyId=key, Plaintext=b"x")) == wanted, (condition, arn)
    with on_behalf_of(backup, BUCKET):
        backup.encrypt(KeyId=key, Plaintext=b"x")
    assert service.events()[-1]["context"]["source-arn"] == BUCKET


def test_what_is_not_under_the_signature_is_not_believed(service, symmetric):
    backup = Caller(service, "backup")
    body = json.dumps({"KeyId": symmetric, "Plaintext": "eA=="}).encode()
    headers = backup.signed("Encrypt", body)
    assert_refused(backup.send(body, headers | {"x-amz-source-arn": BUCKET}), "IncompleteSignatureException")
    signed = backup.signed("Encrypt", body, headers={"x-amz-source-arn": BUCKET})
    assert_refused(backup.send(body, signed), "AccessDeniedException")
    assert_refused(backup.send(body, signed | {"x-amz-source-arn": OTHER_BUCKET}), "InvalidSignatureException")
    assert_refused(backup.call("Encrypt", body, headers={"x-amz-source-arn": "bucket"}), "ValidationException")
    message = assert_refused(Caller(service, "root").call("Encrypt", body, headers={"x-amz-source-arn": BUCKET}), "AccessDeniedException")
    assert "no service" in message


def test_conditions_on_the_making_of_service_grants(service, kms, key):
    admin = service.client("admin")
    terms = {"KeyId": key, "GranteeServicePrincipal": BACKUP, "RetiringServicePrincipal": S3, "Operations": ["Encrypt"], "Constraints": {"SourceArn": BUCKET}}
    for condition, fits in [({"StringEquals": {"kms:GranteeServicePrincipal": BACKUP, "kms:RetiringServicePrincipal": S3}}, True),
                            ({"StringEquals": {"kms:GranteeServicePrincipal": S3}}, False), ({"ArnEquals": {"kms:GrantConstraintSourceArn": BUCKET}}, True),
                            ({"ArnEquals": {"kms:GrantConstraintSourceArn": OTHER_BUCKET}}, False), ({"Null": {"kms:GranteePrincipal": "true"}}, True),
                            ({"ForAnyValue:StringEquals": {"kms:GrantConstraintType": "SourceArn"}}, True),
                            ({"StringEquals": {"kms:GrantConstraintType": "EncryptionContextSubset"}}, False)]:
        kms.put_key_policy(KeyId=key, Policy=json.dumps(document(
            allow(["kms:PutKeyPolicy", "kms:RevokeGrant"], Principal={"AWS": iam("root")}),
            allow("kms:CreateGrant", Principal={"AWS": iam("user/admin")}, Condition=condition))))
        assert outcome(lambda: admin.create_grant(**terms)) == ("done" if fits else "AccessDeniedException"), condition

"""The newest botocore model of KMS, walked: each operation with each required member left out, and the codes that each of them answers."""
import json

import botocore.session
import pytest
from service import ACCOUNT, OTHER_REGION, REGION, document, allow, iam
from test_wire import Caller, assert_refused

MODEL = botocore.session.get_session().get_service_model("kms")
NOWHERE = "1234abcd-12ab-34cd-56ef-1234567890ab"
POLICY = json.dumps(document(allow("kms:*", Principal={"AWS": iam("root")})))
# What any operation may answer (AWS KMS API reference, "Common errors", in the form of the JSON protocol). NotAuthorizedException is what the
# service says of aliases that are its own.
COMMON = {"AccessDeniedException", "NotAuthorizedException", "SerializationException", "ThrottlingException", "ValidationException"}
# Values that the model alone does not give.
VALUES = {
    "AliasName": "alias/model", "CustomKeyStoreName": "model", "CustomKeyStoreId": "cks-0123456789abcdef0", "Description": "d", "GrantId": "0" * 64,
    "ImportToken": "eA==", "Operations": ["Decrypt"], "Policy": POLICY, "PrimaryRegion": OTHER_REGION, "ReplicaRegion": OTHER_REGION,
    "TagKeys": ["a"], "Tags": [{"TagKey": "a", "TagValue": "b"}], "GranteePrincipal": iam("user/bob"),
}


def required(operation: str) -> list[str]:
    return MODEL.operation_model(operation).input_shape.required_members


def codes(operation: str) -> set[str]:
    return {shape.name for shape in MODEL.operation_model(operation).error_shapes}


def value(shape, name: str, key: str):
    if name.endswith("KeyId") and name != "XksKeyId":
        return key
    if name in VALUES:
        return VALUES[name]
    assert shape.type_name in ("string", "blob"), (name, shape)
    return shape.enum[0] if getattr(shape, "enum", None) else "eA=="


def whole(operation: str, key: str = NOWHERE) -> dict:
    """The request with each required member, and no other."""
    shape = MODEL.operation_model(operation).input_shape
    return {name: value(shape.members[name], name, key) for name in shape.required_members}


@pytest.fixture(scope="module")
def caller(service):
    return Caller(service)


@pytest.fixture(scope="module")
def nobody(service):
    """Somebody who may do nothing: what is wrong with a request is said before that."""
    return Caller(service, "bob")


def camel(name: str) -> str:
    return name[0].lower() + name[1:]


@pytest.mark.parametrize(("operation", "member"), [(operation, member) for operation in MODEL.operation_names for member in required(operation)])
def test_each_required_member_is_missed_before_anything_else(caller, nobody, symmetric, operation, member):
    constraint = f"Value null at '{camel(member)}' failed to satisfy constraint: Member must not be null"
    for key in (NOWHERE, symmetric, f"arn:aws:kms:eu-north-1:{ACCOUNT}:key/{NOWHERE}", "alias/none", "arn:no:arn"):
        request = whole(operation, key)
        del request[member]
        for body in (request, request | {member: None}, request | {camel(member): "x"}, request | {"More": {member: "x"}}):
            for who in (caller, nobody):
                assert assert_refused(who.call(operation, body), "ValidationException") == f"1 validation error detected: {constraint}"
    # Two at once are both told.
    for other in required(operation):
        if other != member:
            request = {name: content for name, content in whole(operation).items() if name not in (member, other)}
            message = assert_refused(caller.call(operation, request), "ValidationException")
            assert message.startswith("2 validation errors detected: ") and constraint in message and f"Value null at '{camel(other)}'" in message


@pytest.mark.parametrize("operation", MODEL.operation_names)
def test_empty_requests(caller, nobody, operation):
    for body in (b"{}", b"", b" {} "):
        for who in (caller, nobody):
            answer = who.call(operation, body)
            if required(operation):
                message = assert_refused(answer, "ValidationException")
                assert all(f"Value null at '{camel(member)}'" in message for member in required(operation))
            elif answer.status_code != 200:
                code = answer.json()["__type"]
                assert code in codes(operation) | COMMON, (operation, code)
    # What a member is comes before which are missing; and both before anything else.
    for body in (b"[]", b'"x"', b"1", b"null", b"{", b'{"KeyId": ', b"\xff"):
        assert_refused(caller.call(operation, body), "SerializationException")


@pytest.mark.parametrize(("operation", "body", "missing"), [
    ("Decrypt", {}, "Value null at 'ciphertextBlob'"), ("Decrypt", {"KeyId": NOWHERE}, "Value null at 'ciphertextBlob'"),
    ("ReEncrypt", {"DestinationKeyId": NOWHERE}, "Value null at 'ciphertextBlob'"), ("GenerateRandom", {}, "NumberOfBytes is required."),
    ("GenerateDataKey", {"KeyId": NOWHERE}, "Please specify either number of bytes or key spec."),
    ("GenerateDataKeyWithoutPlaintext", {"KeyId": NOWHERE}, "Please specify either number of bytes or key spec."),
    ("CreateGrant", {"KeyId": NOWHERE, "Operations": ["Decrypt"]}, "GranteePrincipal"), ("RetireGrant", {}, "grant"),
    ("RetireGrant", {"KeyId": NOWHERE}, "grant"), ("ListRetirableGrants", {}, "RetiringPrincipal"),
    ("TagResource", {"KeyId": NOWHERE, "Tags": [{"TagKey": "a", "TagValue": "b"}, {"TagKey": "b"}]}, "Value null at 'tags.2.member.tagValue'"),
    ("CreateKey", {"Tags": [{"TagValue": "b"}]}, "Value null at 'tags.1.member.tagKey'"),
    ("ReplicateKey", {"KeyId": NOWHERE, "ReplicaRegion": OTHER_REGION, "Tags": [{}]}, "2 validation errors detected"),
    ("CreateCustomKeyStore", {"CustomKeyStoreName": "n", "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyAuthenticationCredential": {}},
     "Value null at 'xksProxyAuthenticationCredential.accessKeyId'"),
    ("UpdateCustomKeyStore", {"CustomKeyStoreId": "cks-1", "XksProxyAuthenticationCredential": {"AccessKeyId": "A" * 20}},
     "Value null at 'xksProxyAuthenticationCredential.rawSecretAccessKey'"),
])
def test_members_that_are_needed_though_the_model_does_not_say_so(caller, nobody, operation, body, missing):
    for who in (caller, nobody):
        assert missing in assert_refused(who.call(operation, body), "ValidationException")


@pytest.fixture(scope="module")
def keys(kms):
    """A key of each sort and state."""
    def make(**more) -> str:
        return kms.create_key(**more)["KeyMetadata"]["Arn"]

    found = {"symmetric": make(), "rsa": make(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT"), "signing": make(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY"),
             "mac": make(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC"), "agreeing": make(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT"),
             "kem": make(KeySpec="ML_KEM_768", KeyUsage="ENCAPSULATE_DECAPSULATE"), "external": make(Origin="EXTERNAL"), "disabled": make(), "dying": make(),
             "multi-region": make(MultiRegion=True)}
    kms.disable_key(KeyId=found["disabled"])
    kms.schedule_key_deletion(KeyId=found["dying"], PendingWindowInDays=7)
    return found


@pytest.mark.parametrize("operation", MODEL.operation_names)
def test_every_code_is_one_of_the_model(service, kms, keys, operation):
    """Bad names, keys of a wrong sort or state, callers who may not, members out of all bounds: each refusal is one that the model lists."""
    names = [NOWHERE, "x", "", "alias/none", f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/none", f"arn:aws:kms:eu-north-1:{ACCOUNT}:key/{NOWHERE}", "arn:aws:kms",
             keys["symmetric"].replace("aws:kms", "aws:s3"), keys["symmetric"].replace(ACCOUNT, "999999999999"), "x" * 3000, "ä\n", *keys.values()]
    seen, allowed = {}, codes(operation) | COMMON
    callers = [Caller(service, name) for name in ("root", "bob", "stranger")]

    def send(who: Caller, body: dict) -> None:
        answer = who.call(operation, body)
        if answer.status_code != 200:
            seen.setdefault(answer.json()["__type"], body)

    members = MODEL.operation_model(operation).input_shape.members
    for who in callers:
        for name in names:
            if operation in ("CancelKeyDeletion", "DisableKey", "EnableKey", "ScheduleKeyDeletion") and name in keys.values() and who.name == "root":
                continue  # It would be done, and the others need the keys as they are.
            send(who, whole(operation, name))
    for name in (keys["symmetric"], keys["signing"]):
        for member, shape in members.items():
            request = whole(operation, name)
            bad = {"string": ["", "\n", "x" * 300_000 if member == "Policy" else "x" * 9000], "blob": ["", "eA==", "A" * 16_000], "integer": [-1, 0, 10**9],
                   "list": [[], ["x"] * 60], "map": [{"": ""}, {"a": "x" * 9000}], "structure": [{}], "boolean": [True], "timestamp": [-1, 10**11]}
            for content in bad[shape.type_name]:
                if member not in ("KeyId", "DryRun", "MultiRegion"):
                    send(callers[0], request | {member: content})
    assert set(seen) <= allowed, {code: body for code, body in seen.items() if code not in allowed}
    assert "ConflictException" not in seen

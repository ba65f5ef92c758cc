"""What public bug reports and other people's clients found: the answers of the original, which clients rely on."""
import base64
import concurrent.futures
import contextlib
import json
import os
import re
import socket
import ssl
import time

import pytest
from botocore.exceptions import ClientError
from service import ACCOUNT, OTHER_ACCOUNT, OTHER_REGION, REGION, allow, document, iam, later, refused
from test_wire import Caller, assert_refused

NOWHERE = "1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture
def key(kms) -> str:
    return kms.create_key()["KeyMetadata"]["Arn"]


@pytest.fixture(scope="module")
def caller(service):
    return Caller(service)


def make(kms, spec: str, usage: str) -> str:
    return kms.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"]


# Keys without a policy of one's own.

def test_a_key_without_a_policy_needs_create_key_alone(service, kms):
    maker = service.client("maker")
    made = maker.create_key(Description="mine")["KeyMetadata"]
    policy = json.loads(kms.get_key_policy(KeyId=made["KeyId"])["Policy"])
    assert policy["Statement"][0]["Principal"] == {"AWS": iam("root")} and policy["Statement"][0]["Action"] == "kms:*"
    with refused("AccessDeniedException"):
        maker.get_key_policy(KeyId=made["KeyId"])
    # The look that nobody locks himself out is for policies that the caller gives.
    own = json.dumps(document(allow("kms:*", Principal={"AWS": iam("root")})))
    with refused("MalformedPolicyDocumentException") as error:
        maker.create_key(Policy=own)
    assert error.message == "The new key policy will not allow you to update the key policy in the future."
    assert maker.create_key(Policy=own, BypassPolicyLockoutSafetyCheck=True)["KeyMetadata"]["Enabled"]
    with refused("AccessDeniedException"):
        maker.create_key(Tags=[{"TagKey": "a", "TagValue": "b"}])
    # Specs and stores go the same way.
    assert maker.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["KeySpec"] == "HMAC_256"
    assert maker.create_key(Origin="EXTERNAL")["KeyMetadata"]["KeyState"] == "PendingImport"


def test_a_replica_without_a_policy_needs_no_more(service, kms, elsewhere):
    maker = service.client("maker")
    key = maker.create_key(MultiRegion=True)["KeyMetadata"]["KeyId"]
    with refused("AccessDeniedException"):
        maker.replicate_key(KeyId=key, ReplicaRegion=OTHER_REGION, Tags=[{"TagKey": "a", "TagValue": "b"}])
    own = json.dumps(document(allow("kms:*", Principal={"AWS": iam("root")})))
    with refused("MalformedPolicyDocumentException"):
        maker.replicate_key(KeyId=key, ReplicaRegion=OTHER_REGION, Policy=own)
    made = maker.replicate_key(KeyId=key, ReplicaRegion=OTHER_REGION)
    assert made["ReplicaKeyMetadata"]["KeyId"] == key and "Enable IAM User Permissions" in made["ReplicaPolicy"]
    assert elsewhere.describe_key(KeyId=key)["KeyMetadata"]["Enabled"]


# Two at once.

def at_once(*calls) -> list:
    """What came of each: an answer, or the code of a refusal."""
    def run(call):
        try:
            return call()
        except ClientError as error:
            return error.response["Error"]["Code"]

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def test_changes_of_one_alias_are_done_one_after_the_other(service, kms):
    client = service.client("root", max_pool_connections=32)
    first, second = (kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
    for number in range(4):
        name = f"alias/at-once-{number}"
        made = at_once(*[lambda: client.create_alias(AliasName=name, TargetKeyId=first)] * 16)
        assert made.count("AlreadyExistsException") == 15 and sum(isinstance(answer, dict) for answer in made) == 1, made
        for _ in range(3):
            moved = at_once(*[lambda target=target: client.update_alias(AliasName=name, TargetKeyId=target) for target in (first, second)] * 8)
            assert all(isinstance(answer, dict) for answer in moved), moved
            assert kms.describe_key(KeyId=name)["KeyMetadata"]["KeyId"] in (first, second)
        gone = at_once(*[lambda: client.delete_alias(AliasName=name)] * 16)
        assert gone.count("NotFoundException") == 15, gone
        mixed = at_once(*[lambda: client.create_alias(AliasName=name, TargetKeyId=first), lambda: client.update_alias(AliasName=name, TargetKeyId=second),
                          lambda: client.delete_alias(AliasName=name)] * 8)
        assert {answer for answer in mixed if isinstance(answer, str)} <= {"AlreadyExistsException", "NotFoundException"}, mixed


def test_nothing_else_answers_conflict(service, kms, key):
    client = service.client("root", max_pool_connections=32)
    grants = [kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["Encrypt"]) for _ in range(2)]
    for call, others in [
        (lambda: client.revoke_grant(KeyId=key, GrantId=grants[0]["GrantId"]), "NotFoundException"),
        (lambda: client.retire_grant(KeyId=key, GrantId=grants[1]["GrantId"]), "NotFoundException"),
    ]:
        ended = at_once(*[call] * 12)
        assert ended.count(others) == 11 and sum(isinstance(answer, dict) for answer in ended) == 1, ended
    same = at_once(*[lambda: client.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["Encrypt"], Name="same")] * 12)
    assert len({answer["GrantId"] for answer in same}) == 1
    for call in (lambda: client.update_key_description(KeyId=key, Description=os.urandom(4).hex()),
                 lambda: client.tag_resource(KeyId=key, Tags=[{"TagKey": os.urandom(1).hex(), "TagValue": ""}]),
                 lambda: client.enable_key_rotation(KeyId=key, RotationPeriodInDays=100)):
        assert all(isinstance(answer, dict) for answer in at_once(*[call] * 12))
    rotated = at_once(*[lambda: client.rotate_key_on_demand(KeyId=key)] * 12)
    assert {answer for answer in rotated if isinstance(answer, str)} <= {"ConflictException"}, "the one operation whose model lists it"
    assert sum(isinstance(answer, dict) for answer in rotated) == len(kms.list_key_rotations(KeyId=key)["Rotations"])
    going = at_once(*[lambda: client.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)] * 12)
    assert going.count("KMSInvalidStateException") == 11


def test_a_key_that_goes_takes_its_aliases_and_no_more(own):
    """Aliases made and moved while keys are deleted: none is left that names nothing."""
    kms = own.client("root", max_pool_connections=32)
    dying, stays = (kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
    for number in range(8):
        kms.create_alias(AliasName=f"alias/of-it-{number}", TargetKeyId=dying)
    kms.schedule_key_deletion(KeyId=dying, PendingWindowInDays=7)
    own.restart(prefix=later(8))
    deadline = time.monotonic() + 20
    while not any(event["operation"] == "DeleteKey" for event in own.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    own.restart()
    assert kms.list_aliases()["Aliases"] == []
    for number in range(8):
        kms.create_alias(AliasName=f"alias/of-it-{number}", TargetKeyId=stays)


def test_who_hangs_up_leaves_no_alias_behind_that_nobody_can_change(service, kms, caller):
    """Cut while it changes: what was asked happens or does not, and the next change finds the alias as it is."""
    keys = [kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2)]
    kms.create_alias(AliasName="alias/cut", TargetKeyId=keys[0])
    context = ssl.create_default_context(cafile=service.ca_file)
    for number in range(150):
        body = json.dumps({"AliasName": "alias/cut", "TargetKeyId": keys[number % 2]}).encode()
        headers = caller.signed("UpdateAlias", body)
        head = "POST / HTTP/1.1\r\n" + "".join(f"{name}: {content}\r\n" for name, content in ({"Host": f"localhost:{service.port}"} | headers).items())
        with socket.create_connection(("localhost", service.port)) as raw, contextlib.suppress(OSError):
            stream = context.wrap_socket(raw, server_hostname="localhost")
            stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(number % 10 / 2000)
            stream.close()
    for target in keys:
        kms.update_alias(AliasName="alias/cut", TargetKeyId=target)
        assert kms.describe_key(KeyId="alias/cut")["KeyMetadata"]["KeyId"] == target
    kms.delete_alias(AliasName="alias/cut")


# Tags, grants, ciphertexts.

@pytest.mark.parametrize("bad", ["a&b", "a,b", "a;b", "a#b", "a(b)", "a!b", "a*b", "a\"b", "a'b", "a\\b", "a|b", "a<b>", "a?b", "a%b", "a^b", "a~b", "a`b", "a{b}", "a[b]",
                                 "a$b", "\U0001f511", "a\x00b", "\u200b"])
def test_tags_of_other_characters(kms, key, bad):
    for tag in ({"TagKey": bad, "TagValue": "x"}, {"TagKey": "x", "TagValue": bad}):
        for use in (lambda tag: kms.tag_resource(KeyId=key, Tags=[tag]), lambda tag: kms.create_key(Tags=[{"TagKey": "fine", "TagValue": ""}, tag])):
            with refused("TagException") as error:
                use(tag)
            assert error.message.startswith("Invalid tag")
    assert kms.list_resource_tags(KeyId=key)["Tags"] == []


@pytest.mark.parametrize("good", ["", "a b", "a\tb", "\u00a0", "a_b.c:d/e=f+g-h@i", "Zürich", "日本語", "١٢", "Ⅷ", "AWS", "kubernetes.io/cluster/x", "user@example.com"])
def test_tags_of_letters_digits_and_a_few_signs(kms, key, good):
    kms.tag_resource(KeyId=key, Tags=[{"TagKey": good or "empty", "TagValue": good}])
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": good or "empty", "TagValue": good}]


def test_the_words_about_tags(kms, key):
    def words(code: str, *tags) -> str:
        said = []
        for use in (lambda: kms.tag_resource(KeyId=key, Tags=list(tags)), lambda: kms.create_key(Tags=list(tags))):
            with refused(code) as error:
                use()
            said.append(error.message)
        assert said[0] == said[1]
        return said[0]

    def tag(name: str, content: str = "v") -> dict:
        return {"TagKey": name, "TagValue": content}

    assert words("TagException", tag("a"), tag("a", "w")) == "Duplicate tag keys"
    assert words("TagException", tag("aws:a")) == words("TagException", tag("AWS:a")) == "Tags beginning with aws: are reserved"
    assert words("TagException", *[tag(str(number)) for number in range(51)]) == "Too many tags"
    assert words("ValidationException", tag("a" * 129)) == (
        f"1 validation error detected: Value '{'a' * 129}' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length less than or "
        "equal to 128")
    assert "at 'tags.2.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256" in words(
        "ValidationException", tag("a"), tag("b", "v" * 257))


def test_a_grant_of_create_grant_alone(kms, key):
    for operations in (["CreateGrant"], ["CreateGrant", "CreateGrant"]):
        with refused("ValidationException"):
            kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=operations)
    assert kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["CreateGrant", "RetireGrant"])["GrantId"]


def test_the_issuer_of_a_grant_is_an_account(service, kms, key):
    kms.put_key_policy(KeyId=key, Policy=json.dumps(document(allow("kms:*", Principal={"AWS": [iam("root"), iam("user/carol", OTHER_ACCOUNT)]}))))
    for name, account in (("root", ACCOUNT), ("admin", ACCOUNT), ("stranger", OTHER_ACCOUNT)):
        made = service.client(name).create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["Encrypt"])
        listed = kms.list_grants(KeyId=key, GrantId=made["GrantId"])["Grants"]
        assert [grant["IssuingAccount"] for grant in listed] == [f"arn:aws:iam::{account}:root"]


def test_a_ciphertext_with_the_name_of_another_key(service, kms, symmetric, key):
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    others = [symmetric, make(kms, "RSA_2048", "SIGN_VERIFY"), make(kms, "ECC_NIST_P256", "SIGN_VERIFY"), make(kms, "HMAC_256", "GENERATE_VERIFY_MAC"),
              make(kms, "ECC_NIST_P256", "KEY_AGREEMENT"), make(kms, "RSA_2048", "ENCRYPT_DECRYPT"), make(kms, "ML_KEM_768", "ENCAPSULATE_DECAPSULATE")]
    for other in others:
        for use in (lambda: kms.decrypt(CiphertextBlob=blob, KeyId=other), lambda: kms.re_encrypt(CiphertextBlob=blob, SourceKeyId=other, DestinationKeyId=symmetric),
                    lambda: kms.decrypt(CiphertextBlob=blob, KeyId=other, EncryptionAlgorithm="SYMMETRIC_DEFAULT", DryRun=True)):
            with refused("IncorrectKeyException") as error:
                use()
            assert error.message == "The key ID in the request does not identify a CMK that can perform this operation."
    # What is no ciphertext of ours, and what is asked by another algorithm, is the key's own affair.
    with refused("InvalidKeyUsageException"):
        kms.decrypt(CiphertextBlob=blob, KeyId=others[1], EncryptionAlgorithm="RSAES_OAEP_SHA_256")
    with refused("InvalidKeyUsageException"):
        kms.decrypt(CiphertextBlob=b"x" * 256, KeyId=others[2])
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=b"x" * 256, KeyId=symmetric)
    # Who may not use the key that he names is told that.
    with refused("AccessDeniedException"):
        service.client("bob").decrypt(CiphertextBlob=blob, KeyId=others[0])
    assert kms.decrypt(CiphertextBlob=blob, KeyId=key)["Plaintext"] == b"x"


# Policies.

@pytest.mark.parametrize("statement", [
    {"Principal": {"AWS": []}}, {"Principal": {}}, {"Principal": {"Service": []}}, {"Principal": {"AWS": [iam("root")], "Service": []}}, {"Principal": {"AWS": ""}},
    {"Principal": {"Service": ""}}, {"Principal": []}, {"Action": []}, {"Resource": []}, {"Condition": {"StringEquals": {"kms:CallerAccount": []}}},
    {"Effect": "Deny", "NotPrincipal": {"AWS": []}},
])
def test_who_names_nobody_has_made_a_mistake(kms, key, statement):
    open_to_root = allow("kms:*", Principal={"AWS": iam("root")})
    bad = allow("kms:Encrypt", Principal={"AWS": iam("user/bob")}) | statement
    if "NotPrincipal" in statement:
        del bad["Principal"]
    text = json.dumps(document(open_to_root, bad))
    for use in (lambda: kms.put_key_policy(KeyId=key, Policy=text), lambda: kms.create_key(Policy=text, BypassPolicyLockoutSafetyCheck=True)):
        with refused("MalformedPolicyDocumentException"):
            use()
    kms.put_key_policy(KeyId=key, Policy=json.dumps(document(open_to_root, allow("kms:Encrypt", Principal={"AWS": [iam("user/bob")]}))))


# Names, and the sentences that clients match on.

def test_the_words_about_keys_that_are_not_there(kms, caller, key):
    def words(code: str, use) -> str:
        with refused(code) as error:
            use()
        return error.message

    bare = key.rsplit("/", 1)[1]
    uses = {"DescribeKey": lambda name: kms.describe_key(KeyId=name), "Encrypt": lambda name: kms.encrypt(KeyId=name, Plaintext=b"x"),
            "Sign": lambda name: kms.sign(KeyId=name, Message=b"x", SigningAlgorithm="ECDSA_SHA_256"), "GetKeyPolicy": lambda name: kms.get_key_policy(KeyId=name),
            "GenerateMac": lambda name: kms.generate_mac(KeyId=name, Message=b"x", MacAlgorithm="HMAC_SHA_256"), "DisableKey": lambda name: kms.disable_key(KeyId=name),
            "ListAliases": lambda name: kms.list_aliases(KeyId=name), "Decrypt": lambda name: kms.decrypt(CiphertextBlob=b"x", KeyId=name),
            "CreateAlias": lambda name: kms.create_alias(AliasName="alias/words", TargetKeyId=name)}
    for use in uses.values():
        for bad in ("fake-key-id", "134f2428cec14b25a1ae9048164dba47", "mrk-fake-key-id", bare.upper(), bare + " ", "../" + bare):
            assert words("NotFoundException", lambda: use(bad)) == f"Invalid keyId '{bad}'"
            assert words("NotFoundException", lambda: use(f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{bad}")) == f"Invalid keyId '{bad}'"
        for absent in (NOWHERE, "mrk-d3b95762d3b95762d3b95762d3b95762"):
            arn = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{absent}"
            assert words("NotFoundException", lambda: use(absent)) == words("NotFoundException", lambda: use(arn)) == f"Key '{arn}' does not exist"
        assert words("NotFoundException", lambda: use(key.replace(REGION, "ap-southeast-1"))) == "Invalid arn ap-southeast-1"
        assert words("NotFoundException", lambda: use(key.replace(REGION, OTHER_REGION))) == f"Invalid arn {OTHER_REGION}"
    for name in ("DescribeKey", "Encrypt", "Sign", "GenerateMac", "Decrypt"):
        assert words("NotFoundException", lambda: uses[name]("alias/none")) == f"Alias arn:aws:kms:{REGION}:{ACCOUNT}:alias/none is not found."
    # Where an alias does not do, it is not looked for.
    kms.create_alias(AliasName="alias/words-of-keys", TargetKeyId=key)
    for alias in ("alias/words-of-keys", "alias/none"):
        for name in ("GetKeyPolicy", "DisableKey", "ListAliases"):
            assert words("NotFoundException", lambda: uses[name](alias)) == f"Invalid keyId '{alias}'"
        for form in (alias, f"arn:aws:kms:{REGION}:{ACCOUNT}:{alias}"):
            assert words("InvalidArnException", lambda: kms.create_grant(KeyId=form, GranteePrincipal=iam("user/bob"), Operations=["Encrypt"])) == (
                "Key Aliases are not supported for this operation.")
            assert words("ValidationException", lambda: uses["CreateAlias"](form)) == "Aliases must refer to keys. Not aliases"
    # A malformed ARN has a code of its own, where the model lists it.
    for bad in ("arn:aws:kms", key.replace("aws:kms", "aws:s3"), key.replace(":key/", ":thing/")):
        assert words("InvalidArnException", lambda: uses["DescribeKey"](bad)) == f"Invalid arn {bad}"
        assert words("NotFoundException", lambda: uses["Encrypt"](bad)) == f"Invalid keyId '{bad}'"


def test_the_words_about_aliases(kms, key):
    prefix = 'Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html'
    pattern = "failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"
    for use in (lambda name: kms.create_alias(AliasName=name, TargetKeyId=key), lambda name: kms.update_alias(AliasName=name, TargetKeyId=key),
                lambda name: kms.delete_alias(AliasName=name)):
        for name, message in [("some-nice-alias-name", prefix), ("Alias/x", prefix), ("alias/Service:Test", "alias/Service:Test contains invalid characters for an alias"),
                              ("alias/Service.Test", f"1 validation error detected: Value 'alias/Service.Test' at 'aliasName' {pattern}"),
                              ("alias/a b", f"1 validation error detected: Value 'alias/a b' at 'aliasName' {pattern}")]:
            with refused("ValidationException") as error:
                use(name)
            assert error.message == message
        with refused("NotAuthorizedException"):
            use("alias/aws/s3")


def test_the_words_about_what_a_key_is_for(kms, symmetric):
    keys = {"ENCRYPT_DECRYPT": symmetric, "SIGN_VERIFY": make(kms, "RSA_2048", "SIGN_VERIFY"), "GENERATE_VERIFY_MAC": make(kms, "HMAC_224", "GENERATE_VERIFY_MAC"),
            "KEY_AGREEMENT": make(kms, "ECC_NIST_P256", "KEY_AGREEMENT")}
    rsa = make(kms, "RSA_2048", "ENCRYPT_DECRYPT")
    algorithms = {"Sign": {"SigningAlgorithm": "RSASSA_PSS_SHA_256"}, "Verify": {"SigningAlgorithm": "ECDSA_SHA_256", "Signature": b"random text"},
                  "GenerateMac": {"MacAlgorithm": "HMAC_SHA_224"}, "VerifyMac": {"MacAlgorithm": "HMAC_SHA_224", "Mac": b"m"}}
    uses = {name: (usage, {"Message": b"some message"} | algorithms[name]) for name, usage in
            {"Sign": "SIGN_VERIFY", "Verify": "SIGN_VERIFY", "GenerateMac": "GENERATE_VERIFY_MAC", "VerifyMac": "GENERATE_VERIFY_MAC"}.items()}
    uses |= {"Encrypt": ("ENCRYPT_DECRYPT", {"Plaintext": b"x"}), "GenerateDataKey": ("ENCRYPT_DECRYPT", {"KeySpec": "AES_256"}),
             "GenerateDataKeyWithoutPlaintext": ("ENCRYPT_DECRYPT", {"KeySpec": "AES_256"}),
             "GenerateDataKeyPair": ("ENCRYPT_DECRYPT", {"KeyPairSpec": "ECC_NIST_P256"}),
             "DeriveSharedSecret": ("KEY_AGREEMENT", {"KeyAgreementAlgorithm": "ECDH", "PublicKey": kms.get_public_key(KeyId=keys["KEY_AGREEMENT"])["PublicKey"]}),
             "Encapsulate": ("ENCAPSULATE_DECAPSULATE", {"EncapsulationAlgorithm": "ML_KEM"}),
             "Decapsulate": ("ENCAPSULATE_DECAPSULATE", {"EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": b"x" * 1088})}
    for operation, (right, more) in uses.items():
        call = getattr(kms, re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower())
        for usage, name in keys.items():
            if usage != right:
                with refused("InvalidKeyUsageException") as error:
                    call(KeyId=name, **more)
                assert error.message == f"{name} key usage is {usage} which is not valid for {operation}."
    with refused("InvalidKeyUsageException") as error:
        kms.re_encrypt(CiphertextBlob=kms.encrypt(KeyId=symmetric, Plaintext=b"x")["CiphertextBlob"], DestinationKeyId=keys["SIGN_VERIFY"])
    assert error.message == f"{keys['SIGN_VERIFY']} key usage is SIGN_VERIFY which is not valid for ReEncrypt."
    with refused("InvalidKeyUsageException") as error:
        kms.generate_data_key(KeyId=rsa, KeySpec="AES_256")
    assert error.message == f"{rsa} key spec is RSA_2048 which is not valid for GenerateDataKey."
    with refused("InvalidKeyUsageException") as error:
        kms.sign(KeyId=keys["SIGN_VERIFY"], Message=b"m", SigningAlgorithm="ECDSA_SHA_256")
    assert error.message == "Algorithm ECDSA_SHA_256 is incompatible with key spec RSA_2048."


def test_the_words_about_what_is_not_allowed(service, kms, key):
    def words(name: str, use) -> str:
        with refused("AccessDeniedException") as error:
            use(service.client(name))
        return error.message

    def said(name: str, action: str, resource: str, because: str) -> str:
        return f"User: {iam(name)} is not authorized to perform: {action} on resource: {resource} {because}"

    def encrypt(client):
        return client.encrypt(KeyId=key, Plaintext=b"x")

    open_to_root = allow("kms:*", Principal={"AWS": iam("root")})
    assert words("bob", encrypt) == said("user/bob", "kms:Encrypt", key, "because no identity-based policy allows the kms:Encrypt action")
    assert words("bob", lambda client: client.list_keys()) == said("user/bob", "kms:ListKeys", "*", "because no identity-based policy allows the kms:ListKeys action")
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert words("denied", lambda client: client.decrypt(KeyId=key, CiphertextBlob=blob)) == said(
        "user/denied", "kms:Decrypt", key, "with an explicit deny in an identity-based policy")
    kms.put_key_policy(KeyId=key, Policy=json.dumps(document(open_to_root, allow("kms:Encrypt", Principal="*") | {"Effect": "Deny"})))
    assert words("alice", encrypt) == said("user/alice", "kms:Encrypt", key, "with an explicit deny in a resource-based policy")
    kms.put_key_policy(KeyId=key, BypassPolicyLockoutSafetyCheck=True, Policy=json.dumps(document(allow("kms:*", Principal={"AWS": iam("user/admin")}))))
    assert words("alice", encrypt) == said("user/alice", "kms:Encrypt", key, "because no resource-based policy allows the kms:Encrypt action")


def test_the_words_about_sizes(kms, symmetric):
    """A blob is not repeated in what is said of it."""
    def words(use) -> str:
        with refused("ValidationException") as error:
            use()
        return error.message

    def length(member: str, which: str, bound: int) -> str:
        return f"1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must have length {which} than or equal to {bound}"

    assert words(lambda: kms.encrypt(KeyId=symmetric, Plaintext=b"x" * 4097)) == length("plaintext", "less", 4096)
    assert words(lambda: kms.encrypt(KeyId=symmetric, Plaintext=b"")) == length("plaintext", "greater", 1)
    assert words(lambda: kms.encrypt(KeyId=NOWHERE, Plaintext=b"x" * 4097)) == length("plaintext", "less", 4096), "before the key is looked for"
    assert words(lambda: kms.decrypt(CiphertextBlob=b"")) == length("ciphertextBlob", "greater", 1)
    assert words(lambda: kms.decrypt(CiphertextBlob=b"x" * 6145)) == length("ciphertextBlob", "less", 6144)
    assert words(lambda: kms.sign(KeyId=symmetric, Message=b"x" * 4097, SigningAlgorithm="ECDSA_SHA_256")) == length("message", "less", 4096)
    assert words(lambda: kms.verify(KeyId=symmetric, Message=b"x", Signature=b"", SigningAlgorithm="ECDSA_SHA_256")) == length("signature", "greater", 1)
    assert words(lambda: kms.verify_mac(KeyId=symmetric, Message=b"x", Mac=b"x" * 6145, MacAlgorithm="HMAC_SHA_256")) == length("mac", "less", 6144)
    assert words(lambda: kms.generate_random(NumberOfBytes=1025)) == (
        "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024")
    # A secret is not repeated, either.
    secret = "not base64 !" * 4
    message = words(lambda: kms.create_custom_key_store(
        CustomKeyStoreName="n", CustomKeyStoreType="EXTERNAL_KEY_STORE", XksProxyAuthenticationCredential={"AccessKeyId": "A" * 20, "RawSecretAccessKey": secret}))
    assert "Value at 'xksProxyAuthenticationCredential.rawSecretAccessKey' failed to satisfy constraint" in message and secret not in message


@pytest.mark.parametrize(("offset", "shape"), [
    (-600, r"Signature expired: (\d{8}T\d{6}Z) is now earlier than (\d{8}T\d{6}Z) \((\d{8}T\d{6}Z) - 5 min\.\)"),
    (600, r"Signature not yet current: (\d{8}T\d{6}Z) is still later than (\d{8}T\d{6}Z) \((\d{8}T\d{6}Z) \+ 5 min\.\)"),
])
def test_a_clock_that_is_wrong_is_told_which_way(caller, offset, shape):
    message = assert_refused(caller.call("ListKeys", {}, offset=offset), "InvalidSignatureException")
    found = re.fullmatch(shape, message)
    assert found, message
    signed, bound, now = (time.mktime(time.strptime(moment, "%Y%m%dT%H%M%SZ")) for moment in found.groups())
    assert bound - now == (300 if offset > 0 else -300) and abs(signed - now - offset) < 60


def test_the_words_about_scopes(caller):
    for sign in ({"region": "eu-central-1"}, {"signed_service": "s3"}):
        message = assert_refused(caller.call("ListKeys", {}, **sign), "InvalidSignatureException")
        assert message.startswith("Credential should be scoped to ")


# JSON is JSON.

def spellings(text: str) -> list[str]:
    """One string in the ways of JSON."""
    return [json.dumps(text), json.dumps(text).replace("/", "\\/"), '"' + "".join(f"\\u{ord(character):04x}" for character in text) + '"']


def test_blobs_in_every_spelling_of_json(caller, symmetric):
    plaintext = base64.b64encode(b"\xff\xef\xbf" * 7).decode()
    assert "/" in plaintext
    for spelled in spellings(plaintext):
        for name in spellings(symmetric):
            answer = caller.call("Encrypt", f'{{"\\u004beyId":{name},"Plaintext":{spelled},"EncryptionContext":{{"a\\/b":"\\u00e4"}}}}'.encode())
            assert answer.status_code == 200, answer.text
            blob = answer.json()["CiphertextBlob"]
            for again in spellings(blob):
                answer = caller.call("Decrypt", f'{{"CiphertextBlob":{again},"EncryptionContext":{{"a/b":"ä"}}}}'.encode())
                assert answer.json()["Plaintext"] == plaintext
    for bad in ('"a\\\\/8="', '"a\\/8"', '"a_8="', '"a/8=\\n"', '" a/8="'):
        assert_refused(caller.call("Encrypt", f'{{"KeyId":{json.dumps(symmetric)},"Plaintext":{bad}}}'.encode()), "SerializationException")


def test_all_other_members_in_every_spelling(kms, caller, key):
    signing, mac = make(kms, "ECC_NIST_P256", "SIGN_VERIFY"), make(kms, "HMAC_256", "GENERATE_VERIFY_MAC")
    message = base64.b64encode(b"\xff\xef\xbf" * 5).decode()

    def all_of(operation: str, **members) -> list[dict]:
        answers = []
        for which in range(3):
            body = "{" + ",".join(f"{spellings(name)[which]}:{spellings(content)[which]}" for name, content in members.items()) + "}"
            answer = caller.call(operation, body.encode())
            assert answer.status_code == 200, (operation, answer.text)
            answers.append(answer.json())
        return answers

    for answer in all_of("Sign", KeyId=signing, Message=message, SigningAlgorithm="ECDSA_SHA_256"):
        all_of("Verify", KeyId=signing, Message=message, Signature=answer["Signature"], SigningAlgorithm="ECDSA_SHA_256")
    for answer in all_of("GenerateMac", KeyId=mac, Message=message, MacAlgorithm="HMAC_SHA_256"):
        all_of("VerifyMac", KeyId=mac, Message=message, Mac=answer["Mac"], MacAlgorithm="HMAC_SHA_256")
    for answer in all_of("GenerateDataKey", KeyId=key, KeySpec="AES_256"):
        all_of("Decrypt", CiphertextBlob=answer["CiphertextBlob"])
        all_of("ReEncrypt", CiphertextBlob=answer["CiphertextBlob"], DestinationKeyId=key)
    all_of("PutKeyPolicy", KeyId=key, Policy=json.dumps(document(allow("kms:*", Principal={"AWS": iam("root")}))))
    all_of("UpdateKeyDescription", KeyId=key, Description="a/b")
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["Description"] == "a/b"

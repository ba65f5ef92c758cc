"""Keys, their metadata, states, aliases, tags, listings; and what is wrong with a request, in the service's words."""
import time

import pytest
from service import ACCOUNT, OTHER_REGION, REGION, later, refused

ALGORITHMS = ("EncryptionAlgorithms", "SigningAlgorithms", "MacAlgorithms", "KeyAgreementAlgorithms", "EncapsulationAlgorithms")
RSA_SIGN = [f"RSASSA_{kind}_SHA_{bits}" for kind in ("PSS", "PKCS1_V1_5") for bits in (256, 384, 512)]
SPECS = [
    ("SYMMETRIC_DEFAULT", None, "ENCRYPT_DECRYPT", ["SYMMETRIC_DEFAULT"]),
    *((f"RSA_{bits}", "ENCRYPT_DECRYPT", "ENCRYPT_DECRYPT", ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]) for bits in (2048, 3072, 4096)),
    *((f"RSA_{bits}", "SIGN_VERIFY", "SIGN_VERIFY", RSA_SIGN) for bits in (2048,)),
    ("ECC_NIST_P256", "SIGN_VERIFY", "SIGN_VERIFY", ["ECDSA_SHA_256"]),
    ("ECC_NIST_P384", "SIGN_VERIFY", "SIGN_VERIFY", ["ECDSA_SHA_384"]),
    ("ECC_NIST_P521", "SIGN_VERIFY", "SIGN_VERIFY", ["ECDSA_SHA_512"]),
    ("ECC_SECG_P256K1", "SIGN_VERIFY", "SIGN_VERIFY", ["ECDSA_SHA_256"]),
    ("ECC_NIST_EDWARDS25519", "SIGN_VERIFY", "SIGN_VERIFY", ["ED25519_SHA_512"]),
    *((f"ECC_NIST_P{bits}", "KEY_AGREEMENT", "KEY_AGREEMENT", ["ECDH"]) for bits in (256, 384, 521)),
    *((f"HMAC_{bits}", "GENERATE_VERIFY_MAC", "GENERATE_VERIFY_MAC", [f"HMAC_SHA_{bits}"]) for bits in (224, 256, 384, 512)),
    *((f"ML_DSA_{size}", "SIGN_VERIFY", "SIGN_VERIFY", ["ML_DSA_SHAKE_256"]) for size in (44, 65, 87)),
    *((f"ML_KEM_{size}", "ENCAPSULATE_DECAPSULATE", "ENCAPSULATE_DECAPSULATE", ["ML_KEM"]) for size in (512, 768, 1024)),
]


@pytest.mark.parametrize(("spec", "usage", "expected", "algorithms"), SPECS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_spec(kms, spec, usage, expected, algorithms):
    asked = {"KeySpec": spec} | ({"KeyUsage": usage} if usage else {})
    made = kms.create_key(**asked)["KeyMetadata"]
    assert made == kms.describe_key(KeyId=made["KeyId"])["KeyMetadata"]
    assert (made["KeySpec"], made["KeyUsage"], made["KeyState"], made["Enabled"]) == (spec, expected, "Enabled", True)
    assert made["Arn"] == f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{made['KeyId']}"
    assert (made["AWSAccountId"], made["Origin"], made["KeyManager"], made["MultiRegion"]) == (ACCOUNT, "AWS_KMS", "CUSTOMER", False)
    lists = {name: made[name] for name in ALGORITHMS if name in made}
    assert list(lists.values()) == [algorithms], "the one list that suits the usage"
    new = spec.startswith(("ML_", "ECC_NIST_EDWARDS"))
    assert made.get("CustomerMasterKeySpec") == (None if new else spec)
    assert ("CurrentKeyMaterialId" in made) == (spec == "SYMMETRIC_DEFAULT")
    if usage:
        with refused("ValidationException"):
            kms.create_key(KeySpec=spec)
    kms.schedule_key_deletion(KeyId=made["KeyId"], PendingWindowInDays=7)


@pytest.mark.parametrize(("asked", "code"), [
    ({"KeySpec": "HMAC_256", "KeyUsage": "SIGN_VERIFY"}, "ValidationException"),
    ({"KeySpec": "ECC_SECG_P256K1", "KeyUsage": "KEY_AGREEMENT"}, "ValidationException"),
    ({"KeySpec": "AES_512"}, "ValidationException"),
    ({"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"}, "UnsupportedOperationException"),
    ({"KeySpec": "RSA_2048", "CustomerMasterKeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}, "ValidationException"),
    ({"Origin": "EXTERNAL_KEY_STORE"}, "ValidationException"),
    ({"XksKeyId": "orders"}, "ValidationException"),
    ({"Description": "d" * 8193}, "ValidationException"),
    ({"Tags": [{"TagKey": "aws:x", "TagValue": ""}]}, "TagException"),
    ({"Tags": [{"TagKey": "a", "TagValue": "1"}, {"TagKey": "a", "TagValue": "2"}]}, "TagException"),
    ({"Policy": "{}"}, "MalformedPolicyDocumentException"),
    ({"Policy": " " * 33000}, "LimitExceededException"),
])
def test_what_cannot_be_made(kms, asked, code):
    with refused(code):
        kms.create_key(**asked)


def test_states(kms, symmetric):
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.disable_key(KeyId=key)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    for use in (lambda: kms.encrypt(KeyId=key, Plaintext=b"x"), lambda: kms.decrypt(CiphertextBlob=blob),
                lambda: kms.generate_data_key(KeyId=key, KeySpec="AES_256"), lambda: kms.enable_key_rotation(KeyId=key),
                lambda: kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=symmetric),
                lambda: kms.create_grant(KeyId=key, GranteePrincipal=f"arn:aws:iam::{ACCOUNT}:user/bob", Operations=["Decrypt"])):
        with refused("DisabledException"):
            use()
    with refused("KMSInvalidStateException"):
        kms.cancel_key_deletion(KeyId=key)
    kms.enable_key(KeyId=key)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    for days in (6, 31):
        with refused("ValidationException"):
            kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=days)
    scheduled = kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert scheduled["KeyState"] == "PendingDeletion" and scheduled["KeyId"].endswith(key)
    assert abs(scheduled["DeletionDate"].timestamp() - time.time() - 7 * 86400) < 60
    for use in (lambda: kms.decrypt(CiphertextBlob=blob), lambda: kms.enable_key(KeyId=key), lambda: kms.disable_key(KeyId=key),
                lambda: kms.schedule_key_deletion(KeyId=key), lambda: kms.tag_resource(KeyId=key, Tags=[{"TagKey": "a", "TagValue": "b"}]),
                lambda: kms.create_alias(AliasName="alias/of-a-dying-key", TargetKeyId=key),
                lambda: kms.update_key_description(KeyId=key, Description="d")):
        with refused("KMSInvalidStateException"):
            use()
    assert kms.cancel_key_deletion(KeyId=key)["KeyId"].endswith(key)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled", "it comes back disabled"
    kms.enable_key(KeyId=key)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"


def test_names_of_keys(kms, symmetric, service):
    key = symmetric.rsplit("/", 1)[1]
    kms.create_alias(AliasName="alias/names", TargetKeyId=key)
    for name in (key, symmetric, "alias/names", f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/names"):
        assert kms.describe_key(KeyId=name)["KeyMetadata"]["Arn"] == symmetric
        assert kms.encrypt(KeyId=name, Plaintext=b"x")["KeyId"] == symmetric, "the ARN, whatever it was called"
    for name in ("alias/names", f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/names"):
        with refused("NotFoundException"):
            kms.disable_key(KeyId=name)
    for name, code in [(key.upper(), "NotFoundException"), ("alias/none", "NotFoundException"), ("x" * 2049, "ValidationException"),
                       (symmetric.replace(REGION, "eu-north-1"), "NotFoundException"), (symmetric.replace("aws:kms", "aws:s3"), "InvalidArnException"),
                       (f"arn:aws:kms:{REGION}:999999999999:key/{key}", "NotFoundException"), ("../" + key, "NotFoundException")]:
        with refused(code):
            kms.describe_key(KeyId=name)
    with refused("NotFoundException"):
        service.client("root", OTHER_REGION).describe_key(KeyId=key)
    kms.delete_alias(AliasName="alias/names")


def test_aliases(kms, symmetric):
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/moving", TargetKeyId=symmetric)
    with refused("AlreadyExistsException"):
        kms.create_alias(AliasName="alias/moving", TargetKeyId=other)
    first = next(a for a in kms.list_aliases()["Aliases"] if a["AliasName"] == "alias/moving")
    assert first["TargetKeyId"] == symmetric.rsplit("/", 1)[1] and first["AliasArn"].endswith(":alias/moving")
    time.sleep(0.01)
    kms.update_alias(AliasName="alias/moving", TargetKeyId=symmetric)
    same = kms.list_aliases(KeyId=symmetric)["Aliases"][0]
    assert same["LastUpdatedDate"] > first["LastUpdatedDate"] and same["CreationDate"] == first["CreationDate"], "the same target moves the date"
    kms.update_alias(AliasName="alias/moving", TargetKeyId=other)
    assert kms.encrypt(KeyId="alias/moving", Plaintext=b"x")["KeyId"].endswith(other)
    mac = kms.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["KeyId"]
    with refused("ValidationException"):
        kms.update_alias(AliasName="alias/moving", TargetKeyId=mac)
    for name, code in [("moving", "ValidationException"), ("alias/a b", "ValidationException"), ("alias/", "InvalidAliasNameException"),
                       ("alias/aws/s3", "NotAuthorizedException"), ("alias/" + "a" * 251, "ValidationException")]:
        with refused(code):
            kms.create_alias(AliasName=name, TargetKeyId=other)
    kms.delete_alias(AliasName="alias/moving")
    with refused("NotFoundException"):
        kms.delete_alias(AliasName="alias/moving")
    with refused("NotFoundException"):
        kms.encrypt(KeyId="alias/moving", Plaintext=b"x")
    for number in range(50):
        kms.create_alias(AliasName=f"alias/many-{number:02}", TargetKeyId=other)
    with refused("LimitExceededException"):
        kms.create_alias(AliasName="alias/one-too-many", TargetKeyId=other)
    pages = list(kms.get_paginator("list_aliases").paginate(KeyId=other, PaginationConfig={"PageSize": 7}))
    names = [alias["AliasName"] for page in pages for alias in page["Aliases"]]
    assert len(pages) == 8 and names == sorted(names) and len(set(names)) == 50


def test_tags_and_descriptions(kms):
    key = kms.create_key(Tags=[{"TagKey": "a", "TagValue": "1"}])["KeyMetadata"]["KeyId"]
    kms.tag_resource(KeyId=key, Tags=[{"TagKey": "b", "TagValue": ""}, {"TagKey": "a", "TagValue": "2"}])
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "a", "TagValue": "2"}, {"TagKey": "b", "TagValue": ""}]
    page = kms.list_resource_tags(KeyId=key, Limit=1)
    assert page["Truncated"] and kms.list_resource_tags(KeyId=key, Marker=page["NextMarker"])["Tags"] == [{"TagKey": "b", "TagValue": ""}]
    with refused("InvalidMarkerException"):
        kms.list_resource_tags(KeyId=key, Marker="zzz")
    kms.untag_resource(KeyId=key, TagKeys=["a", "unknown"])
    assert kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "b", "TagValue": ""}]
    with refused("TagException"):
        kms.tag_resource(KeyId=key, Tags=[{"TagKey": str(number), "TagValue": ""} for number in range(50)])
    kms.update_key_description(KeyId=key, Description="new \u00e4")
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["Description"] == "new \u00e4"


def test_listing_pages(own):
    kms = own.client("root")
    made = {kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(7)}
    pages = list(kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 3}))
    keys = [key for page in pages for key in page["Keys"]]
    assert len(pages) == 3 and {key["KeyId"] for key in keys} == made and all(key["KeyArn"].endswith(key["KeyId"]) for key in keys)
    assert own.client("stranger").list_keys()["Keys"] == [] and own.client("root", OTHER_REGION).list_keys()["Keys"] == []
    assert kms.list_keys(ResourceOwners=["OTHER_ACCOUNTS_VIA_RAM"])["Keys"] == []
    for asked, code in [({"Limit": 1001}, "ValidationException"), ({"Marker": "x"}, "InvalidMarkerException")]:
        with refused(code):
            kms.list_keys(**asked)
    # What was answered is there after a kill.
    own.restart(9)
    assert {key["KeyId"] for key in kms.list_keys()["Keys"]} == made


def test_a_key_whose_window_is_over_is_gone_with_all_that_is_its(own):
    kms = own.client("root")
    key, stays = (kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.create_alias(AliasName="alias/gone", TargetKeyId=key)
    kms.create_grant(KeyId=key, GranteePrincipal=f"arn:aws:iam::{ACCOUNT}:user/bob", Operations=["Decrypt"], Name="g")
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    kms.schedule_key_deletion(KeyId=stays, PendingWindowInDays=30)
    # Eight days pass.
    own.restart(prefix=later(8))
    deadline = time.monotonic() + 20
    while not any(event["operation"] == "DeleteKey" for event in own.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    own.restart()
    with refused("NotFoundException"):
        kms.describe_key(KeyId=key)
    with refused("AccessDeniedException") as error:
        kms.decrypt(CiphertextBlob=blob)
    assert "does not exist" in error.message
    assert kms.list_aliases()["Aliases"] == []
    assert kms.describe_key(KeyId=stays)["KeyMetadata"]["KeyState"] == "PendingDeletion"

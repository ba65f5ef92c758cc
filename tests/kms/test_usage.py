"""When a key was last used: by what, in which request; kept over restarts, gone with the key."""
import datetime

from service import refused


def last(kms, key: str) -> dict:
    answer = kms.get_key_last_usage(KeyId=key)
    assert answer["KeyId"] in key and answer["TrackingStartDate"] == answer["KeyCreationDate"]
    return answer["KeyLastUsage"]


def test_only_successful_uses_count(kms, service):
    key = kms.create_key()["KeyMetadata"]["Arn"]
    assert last(kms, key) == {}
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")
    usage = last(kms, key)
    assert usage["Operation"] == "Encrypt" and usage["KmsRequestId"] == blob["ResponseMetadata"]["RequestId"]
    assert abs((datetime.datetime.now(datetime.UTC) - usage["Timestamp"]).total_seconds()) < 60
    # The event of the audit log under that id is the use.
    [event] = [event for event in service.events() if event["request_id"] == usage["CloudTrailEventId"]]
    assert event["operation"] == "Encrypt" and event["key"] == key
    kms.describe_key(KeyId=key)
    with refused("DryRunOperationException"):
        kms.generate_data_key(KeyId=key, KeySpec="AES_256", DryRun=True)
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=blob["CiphertextBlob"], EncryptionContext={"another": "context"})
    with refused("AccessDeniedException"):
        service.client("bob").encrypt(KeyId=key, Plaintext=b"x")
    assert last(kms, key) == usage
    kms.decrypt(CiphertextBlob=blob["CiphertextBlob"])
    assert last(kms, key)["Operation"] == "Decrypt"


def test_both_keys_of_a_re_encryption(kms):
    source, target = (kms.create_key()["KeyMetadata"]["Arn"] for _ in range(2))
    blob = kms.encrypt(KeyId=source, Plaintext=b"x")["CiphertextBlob"]
    request = kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=target)["ResponseMetadata"]["RequestId"]
    for key in (source, target):
        assert (last(kms, key)["Operation"], last(kms, key)["KmsRequestId"]) == ("ReEncrypt", request)


def test_replicas_have_their_own(kms, elsewhere):
    key = kms.create_key(MultiRegion=True)["KeyMetadata"]["KeyId"]
    kms.replicate_key(KeyId=key, ReplicaRegion="eu-west-1")
    elsewhere.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert last(kms, key) == {} and last(elsewhere, key)["Operation"] == "GenerateDataKey"


def test_it_is_kept(own):
    kms = own.client("root")
    sign = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["KeyId"]
    signature = kms.sign(KeyId=sign, Message=b"m", SigningAlgorithm="ECDSA_SHA_256")["Signature"]
    kms.verify(KeyId=sign, Message=b"m", Signature=signature, SigningAlgorithm="ECDSA_SHA_256")
    usage = last(kms, sign)
    assert usage["Operation"] == "Verify"
    own.restart()
    assert last(kms, sign) == usage
    # And once more over what was written.
    kms.sign(KeyId=sign, Message=b"m", SigningAlgorithm="ECDSA_SHA_256")
    own.restart()
    assert last(kms, sign)["Operation"] == "Sign"


def test_who_may_ask(kms, service):
    key = kms.create_key()["KeyMetadata"]["Arn"]
    with refused("AccessDeniedException"):
        service.client("bob").get_key_last_usage(KeyId=key)
    with refused("AccessDeniedException"):
        service.client("stranger").get_key_last_usage(KeyId=key)
    kms.create_alias(AliasName="alias/last-usage", TargetKeyId=key)
    with refused("NotFoundException"):
        kms.get_key_last_usage(KeyId="alias/last-usage")
    kms.delete_alias(AliasName="alias/last-usage")

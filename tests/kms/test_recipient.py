"""Attested callers (`Recipient`): answered under the key in their evidence, by policy over what it proves, and never in clear."""
import json
import time

import pytest
from attested import IMAGE, Authority, Enclave, spki
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from service import Service, allow, document, iam, refused


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def trusting(tmp_path_factory, authority):
    """A service that trusts the authority."""
    directory = tmp_path_factory.mktemp("trusting")
    root = authority.write_root(directory / "nitro-root.pem")
    service = Service(directory / "kms", more=f'[attestation]\nnitro_root_files = ["{root}"]\n').start()
    yield service
    service.check_end()


@pytest.fixture(scope="module")
def enclave(tmp_path_factory, authority) -> Enclave:
    return Enclave(authority, tmp_path_factory.mktemp("enclave"))


def only_for(condition: dict) -> str:
    """A key policy: the root administers; alice uses the key where the evidence fits."""
    return json.dumps(document(
        allow("kms:*", Principal={"AWS": iam("root")}),
        allow(["kms:Decrypt", "kms:GenerateDataKey"], Principal={"AWS": iam("user/bob")}, Condition=condition)))


def test_each_operation_answers_the_enclave_alone(trusting, enclave):
    kms = trusting.client("root")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    context = {"tenant": "blue"}
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=context, Recipient=enclave.recipient())
    assert "Plaintext" not in made and "KeyMaterialId" not in made
    data_key = enclave.open(made["CiphertextForRecipient"])
    assert len(data_key) == 32
    assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context)["Plaintext"] == data_key
    got = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context, Recipient=enclave.recipient(tagged=True))
    assert "Plaintext" not in got and "KeyMaterialId" not in got and got["KeyId"] == key
    assert got["CiphertextForRecipient"] != made["CiphertextForRecipient"] and enclave.open(got["CiphertextForRecipient"]) == data_key
    got = kms.generate_random(NumberOfBytes=1024, Recipient=enclave.recipient())
    assert "Plaintext" not in got and len(enclave.open(got["CiphertextForRecipient"])) == 1024
    pair = kms.generate_data_key_pair(KeyId=key, KeyPairSpec="ECC_NIST_P256", Recipient=enclave.recipient())
    assert "PrivateKeyPlaintext" not in pair
    private = serialization.load_der_private_key(enclave.open(pair["CiphertextForRecipient"]), None)
    assert spki(private) == pair["PublicKey"]


@pytest.mark.parametrize("plaintext", [b"x", b"\x00" * 15, b"b" * 16, b"c" * 4096])
def test_every_length_comes_back(trusting, enclave, plaintext):
    kms = trusting.client("root")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    blob = kms.encrypt(KeyId=key, Plaintext=plaintext)["CiphertextBlob"]
    assert enclave.open(kms.decrypt(CiphertextBlob=blob, Recipient=enclave.recipient())["CiphertextForRecipient"]) == plaintext


def test_a_shared_secret_goes_to_the_enclave(trusting, enclave):
    kms = trusting.client("root")
    key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")["KeyMetadata"]["Arn"]
    peer = ec.generate_private_key(ec.SECP256R1())
    asked = {"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": spki(peer)}
    got = kms.derive_shared_secret(**asked, Recipient=enclave.recipient())
    assert "SharedSecret" not in got
    public = serialization.load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    assert enclave.open(got["CiphertextForRecipient"]) == peer.exchange(ec.ECDH(), public)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_keys_of_the_enclave(trusting, authority, tmp_path, bits):
    enclave = Enclave(authority, tmp_path, bits)
    got = trusting.client("root").generate_random(NumberOfBytes=32, Recipient=enclave.recipient())
    assert len(enclave.open(got["CiphertextForRecipient"])) == 32


def test_policies_decide_over_the_measurements(trusting, enclave):
    kms, bob = trusting.client("root"), trusting.client("bob")
    for condition, changes, allowed in [
        ({"StringEquals": {"kms:RecipientAttestation:ImageSha384": IMAGE.hex()}}, {}, True),
        ({"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": IMAGE.hex().upper()}}, {}, True),
        ({"StringEquals": {"kms:RecipientAttestation:ImageSha384": IMAGE.hex()}}, {"pcrs": {0: b"\x01" * 48}}, False),
        ({"StringEquals": {"kms:RecipientAttestation:PCR4": "44" * 48}}, {}, True),
        ({"StringEquals": {"kms:RecipientAttestation:PCR8": "44" * 48}}, {}, False),
        # An enclave in debug mode has zeros: they are never a measurement.
        ({"StringEquals": {"kms:RecipientAttestation:PCR1": "00" * 48}}, {}, False),
        ({"StringEquals": {"kms:RecipientAttestation:NitroTPMPCR0": IMAGE.hex()}}, {}, False),
        ({"StringEquals": {"kms:RecipientAttestation:NitroTPMPCR4": "44" * 48, "kms:RecipientAttestation:NitroTPMPCR12": "00" * 48}},
         {"pcrs": None, "nitrotpm_pcrs": {4: b"\x44" * 48, 12: bytes(48)}}, True),
        ({"StringEquals": {"kms:RecipientAttestation:PCR4": "44" * 48}}, {"pcrs": None, "nitrotpm_pcrs": {4: b"\x44" * 48}}, False),
    ]:
        key = kms.create_key(Policy=only_for(condition))["KeyMetadata"]["Arn"]
        ask = {"KeyId": key, "KeySpec": "AES_256"}
        if allowed:
            got = bob.generate_data_key(**ask, Recipient=enclave.recipient(**changes))
            assert len(enclave.open(got["CiphertextForRecipient"])) == 32
        else:
            with refused("AccessDeniedException"):
                bob.generate_data_key(**ask, Recipient=enclave.recipient(**changes))
        # Without evidence the condition does not hold.
        with refused("AccessDeniedException"):
            bob.generate_data_key(**ask)


def test_evidence_that_is_not_taken(trusting, authority, enclave):
    kms = trusting.client("root")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"never in clear")["CiphertextBlob"]
    good = enclave.recipient()["AttestationDocument"]
    other, now = Authority(), int(time.time() * 1000)
    expired = authority.issue("leaf", authority.leaf_key, "middle", authority.middle_key, False, days=-1)
    p256 = ec.generate_private_key(ec.SECP256R1())
    small = authority.issue("leaf", p256, "middle", authority.middle_key, False)
    public = spki(enclave.key)
    bad = {
        "another root": other.document(public),
        "a root in the bundle alone": other.document(public, cabundle=[other.root, other.middle, authority.root]),
        "an intermediate as the signer": authority.document(public, certificate=authority.middle, signer=authority.middle_key, cabundle=[authority.root]),
        "signed by another key": authority.document(public, signer=other.leaf_key),
        "without its intermediate": authority.document(public, cabundle=[authority.root]),
        "an expired leaf": authority.document(public, certificate=expired),
        "a leaf on another curve": authority.document(public, certificate=small, signer=p256),
        "too old": authority.document(public, timestamp=now - 6 * 60 * 1000),
        "of the future": authority.document(public, timestamp=now + 6 * 60 * 1000),
        "no time": authority.document(public, timestamp=None),
        "another algorithm": authority.document(public, header={1: -7}),
        "no algorithm": authority.document(public, header={}),
        "another digest": authority.document(public, digest="SHA256"),
        "no registers": authority.document(public, pcrs=None),
        "both kinds of registers": authority.document(public, nitrotpm_pcrs={0: IMAGE}),
        "a register of a wrong length": authority.document(public, pcrs={0: b"short"}),
        "no key": authority.document(None),
        "no RSA key": authority.document(spki(p256)),
        "a key that is none": authority.document(b"\x30\x00"),
        "something behind it": good + b"\x00",
        "cut": good[:-1],
        "nothing of the kind": b"document",
        "nested without end": b"\x81" * 200_000,
        "a long array promised": b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
    }
    for at in range(0, len(good), 97):
        bad[f"a changed byte at {at}"] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1:]
    for name, evidence in bad.items():
        with refused("ValidationException") as error:
            answer = kms.decrypt(CiphertextBlob=blob, Recipient=enclave.says(evidence))
            assert not answer, name
        assert "attestation document" in error.message, (name, error.message)
    assert enclave.open(kms.decrypt(CiphertextBlob=blob, Recipient=enclave.says(good))["CiphertextForRecipient"]) == b"never in clear"


def test_a_recipient_that_is_not_whole(trusting, enclave):
    kms = trusting.client("root")
    whole = enclave.recipient()
    for recipient in ({}, {"AttestationDocument": whole["AttestationDocument"]}, {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
                      whole | {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_1"}, whole | {"AttestationDocument": b"x" * 262_145}):
        with refused("ValidationException"):
            kms.generate_random(NumberOfBytes=8, Recipient=recipient)


def test_only_tried(trusting, enclave):
    kms = trusting.client("root")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    with refused("DryRunOperationException"):
        kms.generate_data_key(KeyId=key, KeySpec="AES_256", Recipient=enclave.recipient(), DryRun=True)


def test_the_audit_log_says_who_was_answered(trusting, enclave):
    kms = trusting.client("root")
    request = kms.generate_random(NumberOfBytes=8, Recipient=enclave.recipient())["ResponseMetadata"]["RequestId"]
    context = next(event for event in trusting.events() if event["request_id"] == request)["context"]
    assert context["recipient"] == "nitro i-0123-enc4567"
    assert context["recipient-measurements"].split(" ")[0] == f"0:{IMAGE.hex()}"

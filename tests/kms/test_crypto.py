"""Every cryptographic operation, its result checked with `cryptography`."""
import hashlib
import hmac
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from service import OTHER_REGION, iam, refused

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def make(kms, spec: str, usage: str) -> str:
    return kms.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"]


def test_encrypt_and_decrypt(kms, symmetric):
    for size in (1, 32, 4096):
        plaintext = os.urandom(size)
        answer = kms.encrypt(KeyId=symmetric, Plaintext=plaintext, EncryptionContext={"tenant": "blue"})
        blob = answer["CiphertextBlob"]
        assert (answer["KeyId"], answer["EncryptionAlgorithm"]) == (symmetric, "SYMMETRIC_DEFAULT")
        assert plaintext not in blob or size == 1
        assert len(blob) - size < 150, "the overhead"
        back = kms.decrypt(CiphertextBlob=blob, EncryptionContext={"tenant": "blue"})
        assert back["Plaintext"] == plaintext and back["KeyId"] == symmetric
        assert back["KeyMaterialId"] == kms.describe_key(KeyId=symmetric)["KeyMetadata"]["CurrentKeyMaterialId"]
    assert kms.encrypt(KeyId=symmetric, Plaintext=b"x")["CiphertextBlob"] != kms.encrypt(KeyId=symmetric, Plaintext=b"x")["CiphertextBlob"]
    with refused("ValidationException") as error:
        kms.encrypt(KeyId=symmetric, Plaintext=b"x" * 4097)
    assert "less than or equal to 4096" in error.message and "xxx" not in error.message, "what was sent is not repeated"


def test_what_a_ciphertext_is_bound_to(kms, symmetric):
    context = {"tenant": "blue", "a": "bc"}
    blob = kms.encrypt(KeyId=symmetric, Plaintext=b"secret", EncryptionContext=context)["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext=dict(reversed(context.items())))["Plaintext"] == b"secret", "order is no matter"
    for other in ({}, {"tenant": "blue"}, {"tenant": "Blue", "a": "bc"}, {"Tenant": "blue", "a": "bc"}, {"tenant": "blue", "ab": "c"},
                  {"tenant": "blue", "a": "bc", "x": ""}):
        with refused("InvalidCiphertextException"):
            kms.decrypt(CiphertextBlob=blob, EncryptionContext=other)
    for at in range(len(blob)):
        broken = bytearray(blob)
        broken[at] ^= 1
        try:
            kms.decrypt(CiphertextBlob=bytes(broken), EncryptionContext=context)
        except kms.exceptions.ClientError as error:
            # A changed key id names a key that nobody has.
            assert error.response["Error"]["Code"] in ("InvalidCiphertextException", "AccessDeniedException"), at
        else:
            raise AssertionError(f"byte {at} may be changed")
    for cut in (0, 1, 37, 38, len(blob) - 1):
        with pytest.raises(Exception):
            kms.decrypt(CiphertextBlob=blob[:cut], EncryptionContext=context)
    other = kms.create_key()["KeyMetadata"]["KeyId"]
    with refused("IncorrectKeyException"):
        kms.decrypt(CiphertextBlob=blob, KeyId=other, EncryptionContext=context)
    # The blob's body under another key's header.
    foreign = kms.encrypt(KeyId=other, Plaintext=b"x", EncryptionContext=context)["CiphertextBlob"]
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=foreign[:38] + blob[38:], EncryptionContext=context)
    assert kms.decrypt(CiphertextBlob=blob, KeyId=symmetric, EncryptionContext=context)["Plaintext"] == b"secret"
    with refused("ValidationException"):
        kms.encrypt(KeyId=symmetric, Plaintext=b"x", EncryptionContext={"a": "b" * 8192})


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsa_encryption(kms, bits):
    key = make(kms, f"RSA_{bits}", "ENCRYPT_DECRYPT")
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    assert isinstance(public, rsa.RSAPublicKey) and public.key_size == bits
    for name, digest, most in (("RSAES_OAEP_SHA_1", hashes.SHA1(), bits // 8 - 42), ("RSAES_OAEP_SHA_256", hashes.SHA256(), bits // 8 - 66)):
        plaintext = os.urandom(most)
        blob = kms.encrypt(KeyId=key, Plaintext=plaintext, EncryptionAlgorithm=name)["CiphertextBlob"]
        assert len(blob) == bits // 8
        assert kms.decrypt(KeyId=key, CiphertextBlob=blob, EncryptionAlgorithm=name)["Plaintext"] == plaintext
        outside = public.encrypt(b"from outside", padding.OAEP(padding.MGF1(digest), digest, None))
        assert kms.decrypt(KeyId=key, CiphertextBlob=outside, EncryptionAlgorithm=name)["Plaintext"] == b"from outside"
        with refused("ValidationException"):
            kms.encrypt(KeyId=key, Plaintext=plaintext + b"x", EncryptionAlgorithm=name)
        for bad in (blob[:-1], b"\0" * len(blob), blob[:-1] + bytes([blob[-1] ^ 1])):
            with refused("InvalidCiphertextException"):
                kms.decrypt(KeyId=key, CiphertextBlob=bad, EncryptionAlgorithm=name)
    with refused("ValidationException"):
        kms.decrypt(CiphertextBlob=blob, EncryptionAlgorithm=name)
    with refused("InvalidKeyUsageException"):
        kms.encrypt(KeyId=key, Plaintext=b"x")
    with refused("ValidationException"):
        kms.encrypt(KeyId=key, Plaintext=b"x", EncryptionAlgorithm=name, EncryptionContext={"a": "b"})
    with refused("InvalidKeyUsageException"):
        kms.sign(KeyId=key, Message=b"m", SigningAlgorithm="RSASSA_PSS_SHA_256")


def test_re_encrypt(kms, symmetric):
    other = kms.create_key()["KeyMetadata"]["Arn"]
    rsa_key = make(kms, "RSA_2048", "ENCRYPT_DECRYPT")
    blob = kms.encrypt(KeyId=symmetric, Plaintext=b"moves", EncryptionContext={"a": "1"})["CiphertextBlob"]
    moved = kms.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext={"a": "1"}, DestinationKeyId=other, DestinationEncryptionContext={"b": "2"})
    assert (moved["SourceKeyId"], moved["KeyId"]) == (symmetric, other)
    assert moved["SourceKeyMaterialId"] != moved["DestinationKeyMaterialId"]
    assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"b": "2"})["Plaintext"] == b"moves"
    out = kms.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext={"a": "1"}, DestinationKeyId=rsa_key, DestinationEncryptionAlgorithm="RSAES_OAEP_SHA_256")
    assert kms.decrypt(KeyId=rsa_key, CiphertextBlob=out["CiphertextBlob"], EncryptionAlgorithm="RSAES_OAEP_SHA_256")["Plaintext"] == b"moves"
    back = kms.re_encrypt(CiphertextBlob=out["CiphertextBlob"], SourceKeyId=rsa_key, SourceEncryptionAlgorithm="RSAES_OAEP_SHA_256", DestinationKeyId=symmetric)
    assert kms.decrypt(CiphertextBlob=back["CiphertextBlob"])["Plaintext"] == b"moves"
    with refused("InvalidCiphertextException"):
        kms.re_encrypt(CiphertextBlob=blob, SourceEncryptionContext={"a": "2"}, DestinationKeyId=other)
    with refused("IncorrectKeyException"):
        kms.re_encrypt(CiphertextBlob=blob, SourceKeyId=other, SourceEncryptionContext={"a": "1"}, DestinationKeyId=other)


def test_data_keys(kms, symmetric):
    for asked, size in (({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16), ({"NumberOfBytes": 1024}, 1024), ({"NumberOfBytes": 1}, 1)):
        key = kms.generate_data_key(KeyId=symmetric, EncryptionContext={"a": "b"}, **asked)
        assert len(key["Plaintext"]) == size and key["KeyId"] == symmetric and len(key["KeyMaterialId"]) == 64
        assert kms.decrypt(CiphertextBlob=key["CiphertextBlob"], EncryptionContext={"a": "b"})["Plaintext"] == key["Plaintext"]
        blind = kms.generate_data_key_without_plaintext(KeyId=symmetric, **asked)
        assert "Plaintext" not in blind and len(kms.decrypt(CiphertextBlob=blind["CiphertextBlob"])["Plaintext"]) == size
    for asked in ({}, {"KeySpec": "AES_256", "NumberOfBytes": 32}, {"NumberOfBytes": 1025}, {"KeySpec": "AES_512"}):
        with refused("ValidationException"):
            kms.generate_data_key(KeyId=symmetric, **asked)
    with refused("InvalidKeyUsageException"):
        kms.generate_data_key(KeyId=make(kms, "RSA_2048", "ENCRYPT_DECRYPT"), KeySpec="AES_256")


@pytest.mark.parametrize("spec", ["RSA_2048", "RSA_3072", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519"])
def test_data_key_pairs(kms, symmetric, spec):
    pair = kms.generate_data_key_pair(KeyId=symmetric, KeyPairSpec=spec, EncryptionContext={"a": "b"})
    private = load_der_private_key(pair["PrivateKeyPlaintext"], None)
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert private.public_key().public_bytes(*form) == pair["PublicKey"] and pair["KeyPairSpec"] == spec
    assert kms.decrypt(CiphertextBlob=pair["PrivateKeyCiphertextBlob"], EncryptionContext={"a": "b"})["Plaintext"] == pair["PrivateKeyPlaintext"]
    blind = kms.generate_data_key_pair_without_plaintext(KeyId=symmetric, KeyPairSpec=spec)
    assert "PrivateKeyPlaintext" not in blind and load_der_public_key(blind["PublicKey"])


def test_random(kms):
    assert len({kms.generate_random(NumberOfBytes=32)["Plaintext"] for _ in range(10)}) == 10
    assert len(kms.generate_random(NumberOfBytes=1024)["Plaintext"]) == 1024
    for asked, code in [({"NumberOfBytes": 1025}, "ValidationException"), ({}, "ValidationException"),
                        ({"NumberOfBytes": 1, "CustomKeyStoreId": "cks-1"}, "UnsupportedOperationException")]:
        with refused(code):
            kms.generate_random(**asked)


def test_rsa_signatures(kms):
    key = make(kms, "RSA_2048", "SIGN_VERIFY")
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    for kind in ("PSS", "PKCS1_V1_5"):
        for bits, algorithm in HASHES.items():
            name = f"RSASSA_{kind}_SHA_{bits}"
            # The salt is as long as the hash, and nothing else verifies.
            scheme = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if kind == "PSS" else padding.PKCS1v15()
            digest = hashlib.new(f"sha{bits}", b"message").digest()
            for message, message_type in ((b"message", "RAW"), (digest, "DIGEST")):
                signature = kms.sign(KeyId=key, Message=message, MessageType=message_type, SigningAlgorithm=name)["Signature"]
                public.verify(signature, b"message", scheme, algorithm)
                assert kms.verify(KeyId=key, Message=message, MessageType=message_type, Signature=signature, SigningAlgorithm=name)["SignatureValid"] is True
            with refused("KMSInvalidSignatureException"):
                kms.verify(KeyId=key, Message=b"massage", Signature=signature, SigningAlgorithm=name)
            with refused("ValidationException"):
                kms.sign(KeyId=key, Message=b"short", MessageType="DIGEST", SigningAlgorithm=name)
    with refused("InvalidKeyUsageException"):
        kms.sign(KeyId=key, Message=b"m", SigningAlgorithm="ECDSA_SHA_256")
    with refused("InvalidKeyUsageException"):
        kms.encrypt(KeyId=key, Plaintext=b"x", EncryptionAlgorithm="RSAES_OAEP_SHA_256")


@pytest.mark.parametrize(("spec", "bits", "curve"), [("ECC_NIST_P256", "256", ec.SECP256R1), ("ECC_NIST_P384", "384", ec.SECP384R1),
                                                     ("ECC_NIST_P521", "512", ec.SECP521R1), ("ECC_SECG_P256K1", "256", ec.SECP256K1)])
def test_ecdsa(kms, spec, bits, curve):
    key, name = make(kms, spec, "SIGN_VERIFY"), f"ECDSA_SHA_{bits}"
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    assert isinstance(public.curve, curve)
    digest = hashlib.new(f"sha{bits}", b"message").digest()
    for _ in range(5):
        signature = kms.sign(KeyId=key, Message=b"message", SigningAlgorithm=name)["Signature"]
        public.verify(signature, digest, ec.ECDSA(Prehashed(HASHES[bits])))
        assert kms.verify(KeyId=key, Message=digest, MessageType="DIGEST", Signature=signature, SigningAlgorithm=name)["SignatureValid"]
    for bad in (signature[:-1], b"\x30\x00", bytes(64), signature + b"\0"):
        with refused("KMSInvalidSignatureException"):
            kms.verify(KeyId=key, Message=b"message", Signature=bad, SigningAlgorithm=name)
    with pytest.raises(InvalidSignature):
        public.verify(signature, hashlib.new(f"sha{bits}", b"other").digest(), ec.ECDSA(Prehashed(HASHES[bits])))


def test_ed25519(kms):
    key = make(kms, "ECC_NIST_EDWARDS25519", "SIGN_VERIFY")
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    signature = kms.sign(KeyId=key, Message=b"message", SigningAlgorithm="ED25519_SHA_512")["Signature"]
    public.verify(signature, b"message")
    assert kms.verify(KeyId=key, Message=b"message", Signature=signature, SigningAlgorithm="ED25519_SHA_512")["SignatureValid"]
    with refused("KMSInvalidSignatureException"):
        kms.verify(KeyId=key, Message=b"massage", Signature=signature, SigningAlgorithm="ED25519_SHA_512")
    with refused("ValidationException"):
        kms.sign(KeyId=key, Message=bytes(64), MessageType="DIGEST", SigningAlgorithm="ED25519_SHA_512")
    with refused("UnsupportedOperationException"):
        kms.sign(KeyId=key, Message=bytes(64), MessageType="DIGEST", SigningAlgorithm="ED25519_PH_SHA_512")


@pytest.mark.parametrize("size", [44, 65, 87])
def test_ml_dsa(kms, size):
    from cryptography.hazmat.primitives.asymmetric import mldsa
    key = make(kms, f"ML_DSA_{size}", "SIGN_VERIFY")
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    assert isinstance(public, getattr(mldsa, f"MLDSA{size}PublicKey"))
    signature = kms.sign(KeyId=key, Message=b"message", SigningAlgorithm="ML_DSA_SHAKE_256")["Signature"]
    public.verify(signature, b"message")
    assert kms.verify(KeyId=key, Message=b"message", Signature=signature, SigningAlgorithm="ML_DSA_SHAKE_256")["SignatureValid"]
    with refused("KMSInvalidSignatureException"):
        kms.verify(KeyId=key, Message=b"massage", Signature=signature, SigningAlgorithm="ML_DSA_SHAKE_256")
    with refused("UnsupportedOperationException"):
        kms.sign(KeyId=key, Message=bytes(64), MessageType="EXTERNAL_MU", SigningAlgorithm="ML_DSA_SHAKE_256")


@pytest.mark.parametrize("bits", [224, 256, 384, 512])
def test_macs(kms, bits):
    key, name = make(kms, f"HMAC_{bits}", "GENERATE_VERIFY_MAC"), f"HMAC_SHA_{bits}"
    mac = kms.generate_mac(KeyId=key, Message=b"message", MacAlgorithm=name)
    assert len(mac["Mac"]) == bits // 8 and mac["MacAlgorithm"] == name
    assert kms.verify_mac(KeyId=key, Message=b"message", Mac=mac["Mac"], MacAlgorithm=name)["MacValid"] is True
    for message, tag in ((b"massage", mac["Mac"]), (b"message", mac["Mac"][:-1]), (b"message", bytes(bits // 8))):
        with refused("KMSInvalidMacException"):
            kms.verify_mac(KeyId=key, Message=message, Mac=tag, MacAlgorithm=name)
    with refused("InvalidKeyUsageException"):
        kms.generate_mac(KeyId=key, Message=b"m", MacAlgorithm="HMAC_SHA_224" if bits != 224 else "HMAC_SHA_256")
    with refused("UnsupportedOperationException"):
        kms.get_public_key(KeyId=key)
    assert hmac.compare_digest(mac["Mac"], kms.generate_mac(KeyId=key, Message=b"message", MacAlgorithm=name)["Mac"])


@pytest.mark.parametrize(("spec", "curve"), [("ECC_NIST_P256", ec.SECP256R1), ("ECC_NIST_P384", ec.SECP384R1), ("ECC_NIST_P521", ec.SECP521R1)])
def test_key_agreement(kms, spec, curve):
    key = make(kms, spec, "KEY_AGREEMENT")
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    peer = ec.generate_private_key(curve())
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    derived = kms.derive_shared_secret(KeyId=key, KeyAgreementAlgorithm="ECDH", PublicKey=peer.public_key().public_bytes(*form))
    assert derived["SharedSecret"] == peer.exchange(ec.ECDH(), public) and derived["KeyOrigin"] == "AWS_KMS"
    other = ec.generate_private_key(ec.SECP256R1() if curve is not ec.SECP256R1 else ec.SECP384R1())
    raw = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    for bad in (other.public_key().public_bytes(*form), peer.public_key().public_bytes(*raw), b"x"):
        with refused("ValidationException"):
            kms.derive_shared_secret(KeyId=key, KeyAgreementAlgorithm="ECDH", PublicKey=bad)
    with refused("InvalidKeyUsageException"):
        kms.sign(KeyId=key, Message=b"m", SigningAlgorithm="ECDSA_SHA_256")


@pytest.mark.parametrize(("size", "length"), [(512, 768), (768, 1088), (1024, 1568)])
def test_key_encapsulation(kms, size, length):
    key = make(kms, f"ML_KEM_{size}", "ENCAPSULATE_DECAPSULATE")
    made = kms.encapsulate(KeyId=key, EncapsulationAlgorithm="ML_KEM")
    blob = made["SharedSecretCiphertextBlob"]
    assert len(blob) == length and len(made["SharedSecret"]) == 32
    back = kms.decapsulate(KeyId=key, EncapsulationAlgorithm="ML_KEM", SharedSecretCiphertextBlob=blob)
    assert back["SharedSecret"] == made["SharedSecret"]
    changed = bytes([blob[0] ^ 1]) + blob[1:]
    other = kms.decapsulate(KeyId=key, EncapsulationAlgorithm="ML_KEM", SharedSecretCiphertextBlob=changed)["SharedSecret"]
    assert other != made["SharedSecret"], "implicit rejection"
    with refused("InvalidCiphertextException"):
        kms.decapsulate(KeyId=key, EncapsulationAlgorithm="ML_KEM", SharedSecretCiphertextBlob=blob[:-1])
    if size != 512:
        from cryptography.hazmat.primitives.asymmetric import mlkem
        public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
        assert isinstance(public, getattr(mlkem, f"MLKEM{size}PublicKey"))
        secret, ciphertext = public.encapsulate()
        outside = kms.decapsulate(KeyId=key, EncapsulationAlgorithm="ML_KEM", SharedSecretCiphertextBlob=ciphertext)
        assert outside["SharedSecret"] == secret


def test_dry_run_does_nothing_and_says_so(kms, symmetric, service):
    sign, mac = make(kms, "ECC_NIST_P256", "SIGN_VERIFY"), make(kms, "HMAC_256", "GENERATE_VERIFY_MAC")
    blob = kms.encrypt(KeyId=symmetric, Plaintext=b"x")["CiphertextBlob"]
    for use in (lambda c: c.encrypt(KeyId=symmetric, Plaintext=b"x", DryRun=True),
                lambda c: c.decrypt(CiphertextBlob=blob, DryRun=True),
                lambda c: c.decrypt(KeyId=symmetric, DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"]),
                lambda c: c.re_encrypt(CiphertextBlob=blob, DestinationKeyId=symmetric, DryRun=True),
                lambda c: c.generate_data_key(KeyId=symmetric, KeySpec="AES_256", DryRun=True),
                lambda c: c.generate_data_key_pair(KeyId=symmetric, KeyPairSpec="RSA_4096", DryRun=True),
                lambda c: c.sign(KeyId=sign, Message=b"m", SigningAlgorithm="ECDSA_SHA_256", DryRun=True),
                lambda c: c.generate_mac(KeyId=mac, Message=b"m", MacAlgorithm="HMAC_SHA_256", DryRun=True),
                lambda c: c.create_grant(KeyId=symmetric, GranteePrincipal=iam("user/bob"), Operations=["Decrypt"], DryRun=True)):
        with refused("DryRunOperationException"):
            use(kms)
        with refused("AccessDeniedException"):
            use(service.client("bob"))
    assert kms.list_grants(KeyId=symmetric)["Grants"] == []
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=blob[:-1] + bytes([blob[-1] ^ 1]), DryRun=True)
    with refused("ValidationException"):
        kms.decrypt(KeyId=symmetric, DryRunModifiers=["IGNORE_CIPHERTEXT"])


def test_recipient_is_never_ignored(kms, symmetric):
    recipient = {"AttestationDocument": b"document", "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    blob = kms.encrypt(KeyId=symmetric, Plaintext=b"x")["CiphertextBlob"]
    for use in (lambda: kms.decrypt(CiphertextBlob=blob, Recipient=recipient), lambda: kms.generate_random(NumberOfBytes=8, Recipient=recipient),
                lambda: kms.generate_data_key(KeyId=symmetric, KeySpec="AES_256", Recipient=recipient),
                lambda: kms.generate_data_key_pair(KeyId=symmetric, KeyPairSpec="ECC_NIST_P256", Recipient=recipient)):
        with refused("UnsupportedOperationException"):
            use()


def test_multi_region_keys(kms, elsewhere):
    key = kms.create_key(MultiRegion=True, Description="primary")["KeyMetadata"]
    assert key["KeyId"].startswith("mrk-") and key["MultiRegionConfiguration"]["MultiRegionKeyType"] == "PRIMARY"
    blob = kms.encrypt(KeyId=key["KeyId"], Plaintext=b"anywhere")["CiphertextBlob"]
    with refused("AccessDeniedException"):
        elsewhere.decrypt(CiphertextBlob=blob)
    made = kms.replicate_key(KeyId=key["KeyId"], ReplicaRegion=OTHER_REGION, Description="replica", Tags=[{"TagKey": "a", "TagValue": "b"}])
    replica = made["ReplicaKeyMetadata"]
    assert replica["KeyId"] == key["KeyId"] and replica["Arn"] == key["Arn"].replace("us-east-1", OTHER_REGION)
    assert replica["MultiRegionConfiguration"]["MultiRegionKeyType"] == "REPLICA" and made["ReplicaTags"] == [{"TagKey": "a", "TagValue": "b"}]
    assert elsewhere.decrypt(CiphertextBlob=blob)["KeyId"] == replica["Arn"]
    with refused("AlreadyExistsException"):
        kms.replicate_key(KeyId=key["KeyId"], ReplicaRegion=OTHER_REGION)
    with refused("UnsupportedOperationException"):
        kms.replicate_key(KeyId=key["KeyId"], ReplicaRegion="ap-south-1")
    # Rotation follows the primary; state, policy and tags are each region's own.
    kms.rotate_key_on_demand(KeyId=key["KeyId"])
    newer = elsewhere.encrypt(KeyId=key["KeyId"], Plaintext=b"newer")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=newer)["Plaintext"] == b"newer"
    with refused("UnsupportedOperationException"):
        elsewhere.rotate_key_on_demand(KeyId=key["KeyId"])
    elsewhere.disable_key(KeyId=key["KeyId"])
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"anywhere"
    elsewhere.enable_key(KeyId=key["KeyId"])
    kms.update_primary_region(KeyId=key["KeyId"], PrimaryRegion=OTHER_REGION)
    assert kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["MultiRegionConfiguration"]["MultiRegionKeyType"] == "REPLICA"
    # A primary goes after its replicas.
    assert elsewhere.schedule_key_deletion(KeyId=key["KeyId"], PendingWindowInDays=7)["KeyState"] == "PendingReplicaDeletion"
    elsewhere.cancel_key_deletion(KeyId=key["KeyId"])

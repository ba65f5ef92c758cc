"""Rotation and import: new material behind the same key, old ciphertext that still opens."""
import datetime
import os
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import load_der_public_key
from service import later, refused


def test_rotation_on_demand(kms, service):
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    blobs = []
    for number in range(4):
        blobs.append(kms.encrypt(KeyId=key, Plaintext=b"%d" % number)["CiphertextBlob"])
        kms.rotate_key_on_demand(KeyId=key)
    answers = [kms.decrypt(CiphertextBlob=blob) for blob in blobs]
    assert [answer["Plaintext"] for answer in answers] == [b"0", b"1", b"2", b"3"]
    assert len({answer["KeyMaterialId"] for answer in answers}) == 4, "each by its own material"
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] not in {answer["KeyMaterialId"] for answer in answers}
    rotations = kms.list_key_rotations(KeyId=key)["Rotations"]
    assert len(rotations) == 4 and {rotation["RotationType"] for rotation in rotations} == {"ON_DEMAND"}
    everything = kms.list_key_rotations(KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    assert [material["KeyMaterialState"] for material in everything] == ["NON_CURRENT"] * 4 + ["CURRENT"]
    page = kms.list_key_rotations(KeyId=key, Limit=3)
    assert page["Truncated"] and len(kms.list_key_rotations(KeyId=key, Marker=page["NextMarker"])["Rotations"]) == 1
    service.restart(9)
    assert kms.decrypt(CiphertextBlob=blobs[0])["Plaintext"] == b"0"
    for _ in range(21):
        kms.rotate_key_on_demand(KeyId=key)
    with refused("LimitExceededException"):
        kms.rotate_key_on_demand(KeyId=key)


def test_rotation_status(kms):
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    kms.enable_key_rotation(KeyId=key, RotationPeriodInDays=90)
    status = kms.get_key_rotation_status(KeyId=key)
    assert (status["KeyRotationEnabled"], status["RotationPeriodInDays"]) == (True, 90)
    assert abs(status["NextRotationDate"].timestamp() - time.time() - 90 * 86400) < 60
    kms.schedule_key_deletion(KeyId=key)
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    kms.cancel_key_deletion(KeyId=key)
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True
    kms.enable_key(KeyId=key)
    kms.disable_key_rotation(KeyId=key)
    for days in (89, 2561):
        with refused("ValidationException"):
            kms.enable_key_rotation(KeyId=key, RotationPeriodInDays=days)
    mac = kms.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["KeyId"]
    for use in (kms.enable_key_rotation, kms.get_key_rotation_status, kms.rotate_key_on_demand, kms.list_key_rotations):
        with refused("UnsupportedOperationException"):
            use(KeyId=mac)


def test_automatic_rotation(own):
    kms = own.client("root")
    key, disabled = (kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2))
    blob = kms.encrypt(KeyId=key, Plaintext=b"before")["CiphertextBlob"]
    for name in (key, disabled):
        kms.enable_key_rotation(KeyId=name, RotationPeriodInDays=90)
    kms.disable_key(KeyId=disabled)
    own.restart(prefix=later(91))
    deadline = time.monotonic() + 20
    while not any(event["operation"] == "RotateKeyAutomatic" for event in own.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    own.restart()
    rotations = kms.list_key_rotations(KeyId=key)["Rotations"]
    assert [rotation["RotationType"] for rotation in rotations] == ["AUTOMATIC"]
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"before"
    assert kms.list_key_rotations(KeyId=disabled)["Rotations"] == [], "a disabled key is not rotated"


def wrap(parameters: dict, algorithm: str, material: bytes) -> bytes:
    public = load_der_public_key(parameters["PublicKey"])
    digest = hashes.SHA256() if algorithm.endswith("256") else hashes.SHA1()
    oaep = padding.OAEP(padding.MGF1(digest), digest, None)
    if algorithm.startswith("RSAES"):
        return public.encrypt(material, oaep)
    ephemeral = os.urandom(32)
    return public.encrypt(ephemeral, oaep) + aes_key_wrap_with_padding(ephemeral, material)


def import_material(kms, key: str, material: bytes, algorithm: str = "RSAES_OAEP_SHA_256", spec: str = "RSA_2048", **more) -> dict:
    parameters = kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec=spec)
    if "ValidTo" not in more:
        more.setdefault("ExpirationModel", "KEY_MATERIAL_DOES_NOT_EXPIRE")
    return kms.import_key_material(KeyId=key, ImportToken=parameters["ImportToken"],
                                   EncryptedKeyMaterial=wrap(parameters, algorithm, material), **more)


def external(kms, **more) -> str:
    made = kms.create_key(Origin="EXTERNAL", **more)["KeyMetadata"]
    assert (made["KeyState"], made["Enabled"]) == ("PendingImport", False)
    return made["KeyId"]


ALGORITHMS = ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("spec", ["RSA_2048", "RSA_4096"])
def test_symmetric_import(kms, algorithm, spec):
    key, material = external(kms), os.urandom(32)
    with refused("KMSInvalidStateException"):
        kms.encrypt(KeyId=key, Plaintext=b"x")
    first = import_material(kms, key, material, algorithm, spec)
    metadata = kms.describe_key(KeyId=key)["KeyMetadata"]
    assert (metadata["KeyState"], metadata["ExpirationModel"]) == ("Enabled", "KEY_MATERIAL_DOES_NOT_EXPIRE")
    blob = kms.encrypt(KeyId=key, Plaintext=b"mine")["CiphertextBlob"]
    for _ in range(2):
        assert kms.delete_imported_key_material(KeyId=key)["KeyId"]
        assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "PendingImport"
    with refused("KMSInvalidStateException"):
        kms.decrypt(CiphertextBlob=blob)
    with refused("IncorrectKeyMaterialException"):
        import_material(kms, key, os.urandom(32), algorithm, spec)
    again = import_material(kms, key, material, algorithm, spec)
    assert again["KeyMaterialId"] == first["KeyMaterialId"], "the same bytes have the same id"
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"mine"


def test_asymmetric_and_hmac_import(kms):
    pkcs8 = (serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private = {"RSA_2048": rsa.generate_private_key(65537, 2048), "ECC_NIST_P384": ec.generate_private_key(ec.SECP384R1()),
               "ECC_SECG_P256K1": ec.generate_private_key(ec.SECP256K1()), "ECC_NIST_EDWARDS25519": ed25519.Ed25519PrivateKey.generate()}
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for spec, secret in private.items():
        key = external(kms, KeySpec=spec, KeyUsage="SIGN_VERIFY")
        import_material(kms, key, secret.private_bytes(*pkcs8), "RSA_AES_KEY_WRAP_SHA_256")
        assert kms.get_public_key(KeyId=key)["PublicKey"] == secret.public_key().public_bytes(*form)
    secret = os.urandom(48)
    key = external(kms, KeySpec="HMAC_384", KeyUsage="GENERATE_VERIFY_MAC")
    import_material(kms, key, secret)
    import hashlib
    import hmac
    mac = kms.generate_mac(KeyId=key, Message=b"m", MacAlgorithm="HMAC_SHA_384")["Mac"]
    assert mac == hmac.new(secret, b"m", hashlib.sha384).digest()
    with refused("IncorrectKeyMaterialException"):
        import_material(kms, external(kms, KeySpec="HMAC_384", KeyUsage="GENERATE_VERIFY_MAC"), os.urandom(32))
    with refused("IncorrectKeyMaterialException"):
        import_material(kms, external(kms, KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY"),
                        ec.generate_private_key(ec.SECP384R1()).private_bytes(*pkcs8), "RSA_AES_KEY_WRAP_SHA_256")


def test_what_is_wrong_with_an_import(kms):
    key, other, material = external(kms), external(kms), os.urandom(32)
    parameters = kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048")
    assert abs(parameters["ParametersValidTo"].timestamp() - time.time() - 86400) < 60
    wrapped = wrap(parameters, "RSAES_OAEP_SHA_256", material)
    good = {"KeyId": key, "ImportToken": parameters["ImportToken"], "EncryptedKeyMaterial": wrapped, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    for changed, code in [
        ({"KeyId": other}, "InvalidImportTokenException"),
        ({"ImportToken": parameters["ImportToken"][:-1] + b"x"}, "InvalidImportTokenException"),
        ({"ImportToken": b"x"}, "InvalidImportTokenException"),
        ({"EncryptedKeyMaterial": wrapped[:-1] + bytes([wrapped[-1] ^ 1])}, "InvalidCiphertextException"),
        ({"EncryptedKeyMaterial": wrap(parameters, "RSAES_OAEP_SHA_1", material)}, "InvalidCiphertextException"),
        ({"EncryptedKeyMaterial": wrap(parameters, "RSAES_OAEP_SHA_256", b"short")}, "IncorrectKeyMaterialException"),
        ({"ExpirationModel": "KEY_MATERIAL_EXPIRES"}, "ValidationException"),
        ({"ValidTo": soon}, "ValidationException"),
        ({"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": soon - datetime.timedelta(hours=2)}, "ValidationException"),
        ({"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": soon + datetime.timedelta(days=366)}, "ValidationException"),
        ({"KeyMaterialId": "0" * 64}, "IncorrectKeyMaterialException"),
    ]:
        with refused(code):
            kms.import_key_material(**good | changed)
    kms.import_key_material(**good)
    kms.import_key_material(**good | {"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": soon})
    metadata = kms.describe_key(KeyId=key)["KeyMetadata"]
    assert metadata["ExpirationModel"] == "KEY_MATERIAL_EXPIRES" and abs((metadata["ValidTo"] - soon).total_seconds()) < 1
    hosted = kms.create_key()["KeyMetadata"]["KeyId"]
    for use in (lambda: kms.get_parameters_for_import(KeyId=hosted, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"),
                lambda: kms.delete_imported_key_material(KeyId=hosted),
                lambda: kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm="RSAES_PKCS1_V1_5", WrappingKeySpec="RSA_2048"),
                lambda: kms.get_parameters_for_import(KeyId=external(kms, KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY"),
                                                      WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048")):
        with refused("UnsupportedOperationException"):
            use()


def test_imported_keys_are_rotated_with_new_imported_material(kms):
    key, first, second = external(kms), os.urandom(32), os.urandom(32)
    import_material(kms, key, first, KeyMaterialDescription="first")
    blob = kms.encrypt(KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    with refused("KMSInvalidStateException"):
        kms.rotate_key_on_demand(KeyId=key)
    pending = import_material(kms, key, second, ImportType="NEW_KEY_MATERIAL")["KeyMaterialId"]
    with refused("KMSInvalidStateException"):
        import_material(kms, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL")
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] != pending
    kms.rotate_key_on_demand(KeyId=key)
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] == pending
    new = kms.encrypt(KeyId=key, Plaintext=b"new")["CiphertextBlob"]
    listed = kms.list_key_rotations(KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    assert [(m["KeyMaterialState"], m["ImportState"]) for m in listed] == [("NON_CURRENT", "IMPORTED"), ("CURRENT", "IMPORTED")]
    assert listed[0]["KeyMaterialDescription"] == "first"
    # Any of them missing makes the whole key wait.
    kms.delete_imported_key_material(KeyId=key, KeyMaterialId=listed[0]["KeyMaterialId"])
    with refused("KMSInvalidStateException"):
        kms.decrypt(CiphertextBlob=new)
    import_material(kms, key, first)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"old" and kms.decrypt(CiphertextBlob=new)["Plaintext"] == b"new"


def test_imported_material_expires(own):
    kms = own.client("root")
    key, material = external(kms), os.urandom(32)
    import_material(kms, key, material, ValidTo=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1))
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    own.restart(prefix=later(2))
    deadline = time.monotonic() + 20
    while not any(event["operation"] == "DeleteExpiredKeyMaterial" for event in own.events()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    own.restart()
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "PendingImport", "it was erased, not only hidden"
    import_material(kms, key, material)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"

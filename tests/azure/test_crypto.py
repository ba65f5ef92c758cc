"""Every key type and every algorithm, through the SDK where it asks the service; checked with `cryptography`."""
import hashlib
import os

import pytest
from azure.keyvault.keys import KeyCurveName
from azure.keyvault.keys.crypto import EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm
from conftest import assert_error, b64, unb64
from cryptography.hazmat.primitives import hashes, hmac, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def rsa_public(key):
    return rsa.RSAPublicNumbers(int.from_bytes(key.key.e), int.from_bytes(key.key.n)).public_key()


def oaep(hash_):
    return padding.OAEP(padding.MGF1(hash_), hash_, None)


RSA_ENCRYPTION = {"RSA1_5": padding.PKCS1v15(), "RSA-OAEP": oaep(hashes.SHA1()), "RSA-OAEP-256": oaep(hashes.SHA256())}


@pytest.fixture(scope="module", params=[2048, 3072, 4096])
def rsa_key(request, key_client):
    return key_client.create_rsa_key(f"rsa-{request.param}", size=request.param, hardware_protected=True)


def test_rsa_shape(rsa_key):
    assert rsa_key.key_type == "RSA-HSM"
    assert rsa_key.key.d is None and rsa_key.key.p is None
    assert set(rsa_key.key_operations) == {"encrypt", "decrypt", "wrapKey", "unwrapKey", "sign", "verify"}


@pytest.mark.parametrize("algorithm", RSA_ENCRYPTION)
def test_rsa_decrypts_what_others_encrypt(rsa_key, crypto_client, rest, algorithm):
    secret = os.urandom(32)
    ciphertext = rsa_public(rsa_key).encrypt(secret, RSA_ENCRYPTION[algorithm])
    crypto = crypto_client(rsa_key)
    assert crypto.decrypt(EncryptionAlgorithm(algorithm), ciphertext).plaintext == secret
    assert crypto.unwrap_key(KeyWrapAlgorithm(algorithm), ciphertext).key == secret
    # The SDK encrypts and wraps by itself with the public key; the service does it too.
    for operation, undo in (("encrypt", "decrypt"), ("wrapkey", "unwrapkey")):
        made = rest.ok("POST", f"/keys/{rsa_key.name}/{rsa_key.properties.version}/{operation}", {"alg": algorithm, "value": b64(secret)})
        assert made["kid"] == rsa_key.id
        back = rest.ok("POST", f"/keys/{rsa_key.name}/{undo}", {"alg": algorithm, "value": made["value"]})
        assert unb64(back["value"]) == secret


@pytest.mark.parametrize("scheme", ["RS", "PS"])
@pytest.mark.parametrize("bits", HASHES)
def test_rsa_signs(rsa_key, crypto_client, rest, scheme, bits):
    hash_ = HASHES[bits]
    digest = hashlib.new(f"sha{bits}", b"message").digest()
    signature = crypto_client(rsa_key).sign(SignatureAlgorithm(scheme + bits), digest).signature
    salted = padding.PSS(padding.MGF1(hash_), hash_.digest_size)
    rsa_public(rsa_key).verify(signature, digest, padding.PKCS1v15() if scheme == "RS" else salted, utils.Prehashed(hash_))
    path = f"/keys/{rsa_key.name}/verify"
    body = {"alg": scheme + bits, "digest": b64(digest), "value": b64(signature)}
    assert rest.ok("POST", path, body) == {"value": True}
    assert rest.ok("POST", path, body | {"value": b64(signature[:-1] + bytes([signature[-1] ^ 1]))}) == {"value": False}
    assert_error(rest("POST", f"/keys/{rsa_key.name}/sign", {"alg": scheme + bits, "value": b64(digest[:-1])}), 400, "BadParameter")


def test_rsa_public_exponent(key_client, crypto_client):
    key = key_client.create_rsa_key("rsa-e17", size=2048, public_exponent=17, hardware_protected=True)
    assert int.from_bytes(key.key.e) == 17
    ciphertext = rsa_public(key).encrypt(b"secret", oaep(hashes.SHA256()))
    assert crypto_client(key).decrypt(EncryptionAlgorithm.rsa_oaep_256, ciphertext).plaintext == b"secret"


def test_rsa1_5_is_no_oracle(rsa_key, rest):
    """A badly padded ciphertext unwraps to something, always the same, and never to an error."""
    path = f"/keys/{rsa_key.name}/unwrapkey"
    bad = b"\x00" + os.urandom(rsa_key.key.n.__len__() - 1)
    first = rest.ok("POST", path, {"alg": "RSA1_5", "value": b64(bad)})
    assert first["value"] == rest.ok("POST", path, {"alg": "RSA1_5", "value": b64(bad)})["value"]
    other = rest.ok("POST", path, {"alg": "RSA1_5", "value": b64(bad[:-1] + bytes([bad[-1] ^ 1]))})
    assert other["value"] != first["value"]
    assert_error(rest("POST", path, {"alg": "RSA-OAEP-256", "value": b64(bad)}), 400, "BadParameter")


CURVES = {
    "P-256": (KeyCurveName.p_256, "ES256", ec.SECP256R1(), hashes.SHA256(), 32),
    "P-256K": (KeyCurveName.p_256_k, "ES256K", ec.SECP256K1(), hashes.SHA256(), 32),
    "P-384": (KeyCurveName.p_384, "ES384", ec.SECP384R1(), hashes.SHA384(), 48),
    "P-521": (KeyCurveName.p_521, "ES512", ec.SECP521R1(), hashes.SHA512(), 66),
}


@pytest.mark.parametrize("crv", CURVES)
def test_ec_signs(key_client, crypto_client, rest, crv):
    curve, algorithm, theirs, hash_, size = CURVES[crv]
    key = key_client.create_ec_key(f"ec-{crv}", curve=curve, hardware_protected=True)
    assert key.key_type == "EC-HSM" and key.key.crv == crv
    assert len(key.key.x) == len(key.key.y) == size
    assert set(key.key_operations) == {"sign", "verify"}
    digest = os.urandom(hash_.digest_size)
    signature = crypto_client(key).sign(SignatureAlgorithm(algorithm), digest).signature
    assert len(signature) == 2 * size
    r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
    public = ec.EllipticCurvePublicNumbers(int.from_bytes(key.key.x), int.from_bytes(key.key.y), theirs).public_key()
    public.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hash_)))
    body = {"alg": algorithm, "digest": b64(digest), "value": b64(signature)}
    assert rest.ok("POST", f"/keys/ec-{crv}/verify", body) == {"value": True}
    assert rest.ok("POST", f"/keys/ec-{crv}/verify", body | {"value": b64(bytes(2 * size))}) == {"value": False}
    wrong = "ES384" if algorithm != "ES384" else "ES256"
    assert_error(rest("POST", f"/keys/ec-{crv}/sign", {"alg": wrong, "value": b64(digest)}), 400, "BadParameter")


@pytest.fixture(scope="module", params=[128, 192, 256])
def aes(request, rest):
    """An AES key whose bytes are known, imported."""
    raw = os.urandom(request.param // 8)
    name = f"aes-{request.param}"
    rest.ok("PUT", f"/keys/{name}", {"key": {"kty": "oct-HSM", "k": b64(raw)}})
    return request.param, name, raw


def test_aes_create(key_client):
    for size in (128, 192, 256):
        key = key_client.create_oct_key(f"oct-{size}", size=size, hardware_protected=True)
        assert key.key_type == "oct-HSM" and key.key.k is None
        assert set(key.key_operations) == {"encrypt", "decrypt", "wrapKey", "unwrapKey"}


def test_aes_gcm(aes, rest):
    size, name, raw = aes
    alg, secret, aad = f"A{size}GCM", os.urandom(50), b"context"
    made = rest.ok("POST", f"/keys/{name}/encrypt", {"alg": alg, "value": b64(secret), "aad": b64(aad)})
    assert unb64(made["aad"]) == aad and len(unb64(made["iv"])) == 12 and len(unb64(made["tag"])) == 16
    assert AESGCM(raw).decrypt(unb64(made["iv"]), unb64(made["value"]) + unb64(made["tag"]), aad) == secret
    body = {"alg": alg} | {member: made[member] for member in ("value", "iv", "tag", "aad")}
    assert unb64(rest.ok("POST", f"/keys/{name}/decrypt", body)["value"]) == secret
    for member in ("value", "iv", "tag", "aad"):
        flipped = bytearray(unb64(made[member]))
        flipped[0] ^= 1
        assert_error(rest("POST", f"/keys/{name}/decrypt", body | {member: b64(bytes(flipped))}), 400, "BadParameter")
    assert_error(rest("POST", f"/keys/{name}/encrypt", {"alg": alg, "value": b64(secret), "iv": b64(bytes(12))}), 400, "BadParameter")
    assert_error(rest("POST", f"/keys/{name}/decrypt", {k: v for k, v in body.items() if k != "tag"}), 400, "BadParameter")


def test_aes_gcm_by_sdk(key_client, crypto_client):
    key = key_client.create_oct_key("oct-gcm", size=256, hardware_protected=True)
    crypto = crypto_client(key)
    made = crypto.encrypt(EncryptionAlgorithm.a256_gcm, b"secret", additional_authenticated_data=b"aad")
    back = crypto.decrypt(EncryptionAlgorithm.a256_gcm, made.ciphertext, iv=made.iv, authentication_tag=made.tag,
                          additional_authenticated_data=made.aad)
    assert back.plaintext == b"secret"


@pytest.mark.parametrize("length", [16, 19, 48])
def test_aes_cbc(aes, rest, length):
    size, name, raw = aes
    secret, iv = os.urandom(length), os.urandom(16)
    decryptor = lambda data: Cipher(algorithms.AES(raw), modes.CBC(iv)).decryptor().update(data)
    for alg, padded in ((f"A{size}CBC", secret + bytes(-length % 16)), (f"A{size}CBCPAD", secret + bytes([16 - length % 16]) * (16 - length % 16))):
        made = rest.ok("POST", f"/keys/{name}/encrypt", {"alg": alg, "value": b64(secret), "iv": b64(iv)})
        assert decryptor(unb64(made["value"])) == padded
        back = rest.ok("POST", f"/keys/{name}/decrypt", {"alg": alg, "value": made["value"], "iv": b64(iv)})
        # Without padding the zeros that filled the last block come back, as in the real service.
        assert unb64(back["value"]) == (secret if alg.endswith("PAD") else padded)
    assert_error(rest("POST", f"/keys/{name}/decrypt", {"alg": f"A{size}CBC", "value": b64(bytes(15)), "iv": b64(iv)}), 400, "BadParameter")


def test_aes_key_wrap(aes, rest):
    size, name, raw = aes
    dek = os.urandom(32)
    for alg, unwrap in ((f"A{size}KW", keywrap.aes_key_unwrap), ("CKM_AES_KEY_WRAP", keywrap.aes_key_unwrap),
                        ("CKM_AES_KEY_WRAP_PAD", keywrap.aes_key_unwrap_with_padding)):
        made = rest.ok("POST", f"/keys/{name}/wrapkey", {"alg": alg, "value": b64(dek)})
        assert unwrap(raw, unb64(made["value"])) == dek
        assert unb64(rest.ok("POST", f"/keys/{name}/unwrapkey", {"alg": alg, "value": made["value"]})["value"]) == dek
    short = rest.ok("POST", f"/keys/{name}/wrapkey", {"alg": "CKM_AES_KEY_WRAP_PAD", "value": b64(b"x")})
    assert keywrap.aes_key_unwrap_with_padding(raw, unb64(short["value"])) == b"x"
    assert_error(rest("POST", f"/keys/{name}/unwrapkey", {"alg": f"A{size}KW", "value": b64(bytes(40))}), 400, "BadParameter")
    assert_error(rest("POST", f"/keys/{name}/wrapkey", {"alg": f"A{size}KW", "value": b64(b"x" * 15)}), 400, "BadParameter")
    other = {128: 256, 192: 128, 256: 192}[size]
    assert_error(rest("POST", f"/keys/{name}/wrapkey", {"alg": f"A{other}KW", "value": b64(dek)}), 400, "BadParameter")


def test_hmac(rest):
    raw = os.urandom(32)
    rest.ok("PUT", "/keys/mac", {"key": {"kty": "oct-HSM", "k": b64(raw), "key_ops": ["sign", "verify"]}})
    for bits, hash_ in HASHES.items():
        signature = rest.ok("POST", "/keys/mac/sign", {"alg": f"HS{bits}", "value": b64(b"message")})["value"]
        mac = hmac.HMAC(raw, hash_)
        mac.update(b"message")
        mac.verify(unb64(signature))
        body = {"alg": f"HS{bits}", "digest": b64(b"message"), "value": signature}
        assert rest.ok("POST", "/keys/mac/verify", body) == {"value": True}
        assert rest.ok("POST", "/keys/mac/verify", body | {"digest": b64(b"other")}) == {"value": False}
    assert_error(rest("POST", "/keys/mac/encrypt", {"alg": "A256GCM", "value": b64(b"x")}), 403, "Forbidden")


def test_random_bytes(key_client, rest):
    assert len(key_client.get_random_bytes(128)) == 128
    assert key_client.get_random_bytes(32) != key_client.get_random_bytes(32)
    for count in (0, 129, -1):
        assert_error(rest("POST", "/rng", {"count": count}), 400, "BadParameter")


def test_wrap_a_data_key_under_a_kek(key_client, crypto_client):
    """What the whole project stands on."""
    kek = key_client.create_rsa_key("kek", size=3072, hardware_protected=True)
    crypto, dek = crypto_client(kek), os.urandom(32)
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, dek)
    assert wrapped.key_id == kek.id
    assert crypto.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped.encrypted_key).key == dek

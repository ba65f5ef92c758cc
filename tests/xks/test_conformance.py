"""Every rule of the protocol, stricter than AWS's own client: status codes, sizes, recovered plaintext, order of errors.

Each test runs over a real SoftHSM2 and over the software HSM."""
import base64
import hashlib
import json
import socket
import ssl
import struct

import pytest
from conftest import softhsm_only
from proxy import KMS_KEY, Credential, Kms, assert_refused, b64, unb64


def test_metadata(blue):
    answer = blue.raw("metadata", {"requestMetadata": blue.metadata("CreateKey", kmsKeyArn=None)})
    assert answer.status_code == 200 and "\n" not in answer.text
    assert answer.json() == {"keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED"}


def test_metadata_tells_what_a_key_may_do(blue):
    usage = lambda key: blue.raw("metadata", {"requestMetadata": blue.metadata()}, key).json()["keyUsage"]  # noqa: E731
    assert usage("encrypt-only") == ["ENCRYPT"]
    assert usage("decrypt-only") == ["DECRYPT"]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 4300, 16384])
@pytest.mark.parametrize("aad", [None, b"", b"tenant=blue", b"\0" * 8192])
def test_round_trip(blue, size, aad):
    plaintext = bytes(range(256)) * (size // 256 + 1)
    plaintext = plaintext[:size]
    sealed = blue.encrypt(plaintext, aad=aad, cdiv=True)
    assert len(unb64(sealed["ciphertext"])) == size
    assert len(unb64(sealed["initializationVector"])) == 12
    assert len(unb64(sealed["authenticationTag"])) == 16
    assert 1 <= len(unb64(sealed["ciphertextMetadata"])) <= 20
    assert size < 16 or unb64(sealed["ciphertext"]) != plaintext
    assert blue.decrypt(sealed, aad=aad) == plaintext


def test_json_is_json(blue):
    """`\\/` is legal for `/`, and Base64 has it; so is any character by its number."""
    def escaped(value, write):
        if isinstance(value, dict):
            return "{" + ",".join(f"{escaped(name, write)}:{escaped(one, write)}" for name, one in value.items()) + "}"
        return '"' + write(value) + '"'
    slash = lambda text: text.replace("/", "\\/")  # noqa: E731
    number = lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text)  # noqa: E731
    plaintext, aad = b"\xff" * 33, b"\xfb\xff/" * 10
    assert "/" in b64(plaintext) and "/" in b64(aad)
    for write in (slash, number):
        body = escaped(blue.encrypt_body(plaintext, aad, cdiv=True), write)
        answer = blue.raw("encrypt", body.encode())
        assert answer.status_code == 200, answer.text
        sealed = answer.json()
        assert blue.decrypt(sealed, aad=aad) == plaintext
        answer = blue.raw("decrypt", escaped(blue.decrypt_body(sealed, aad), write).encode())
        assert answer.status_code == 200 and unb64(answer.json()["plaintext"]) == plaintext, answer.text
    for bad in (r'"\x"', r'"\ud800"', "1", "[]"):
        answer = blue.raw("encrypt", json.dumps(blue.encrypt_body()).replace(json.dumps(b64(b"k" * 32)), bad).encode())
        assert_refused(answer, 400, "ValidationException")


def test_the_integrity_value_is_the_one_aws_computes(blue):
    sealed = blue.encrypt(b"k" * 32, cdiv=True)
    parts = [b"tenant=blue"] + [unb64(sealed[name]) for name in ("ciphertextMetadata", "initializationVector", "ciphertext", "authenticationTag")]
    assert unb64(sealed["ciphertextDataIntegrityValue"]) == hashlib.sha256(b"".join(parts)).digest()
    assert "ciphertextDataIntegrityValue" not in blue.encrypt()


def test_ivs_do_not_repeat(blue):
    assert len({blue.encrypt()["initializationVector"] for _ in range(400)}) == 400


@softhsm_only
def test_the_aad_is_the_specifications(blue, softhsm):
    """Decrypted by PKCS #11 itself: u16(len A) || A || u8(len M) || M."""
    sealed = blue.encrypt(b"seen by the HSM", aad=b"tenant=blue")
    metadata = unb64(sealed["ciphertextMetadata"])
    aad = struct.pack(">H", 11) + b"tenant=blue" + bytes([len(metadata)]) + metadata
    iv, data = unb64(sealed["initializationVector"]), unb64(sealed["ciphertext"]) + unb64(sealed["authenticationTag"])
    softhsm._run(
        "from pkcs11 import GCMParams\n"
        f"key = session.get_key(label='orders')\n"
        f"plain = key.decrypt({data!r}, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=GCMParams({iv!r}, {aad!r}, 128))\n"
        "assert plain == b'seen by the HSM', plain", "east", "9182736450")


def test_absent_and_empty_aad_are_one(blue):
    assert blue.decrypt(blue.encrypt(b"x", aad=None), aad=b"") == b"x"
    assert blue.decrypt(blue.encrypt(b"x", aad=b""), aad=None) == b"x"


@pytest.mark.parametrize("what", ["ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata"])
def test_every_part_is_bound(blue, what):
    sealed = blue.encrypt()
    for at in (0, -1):
        changed = bytearray(unb64(sealed[what]))
        changed[at] ^= 1
        answer = blue.raw("decrypt", blue.decrypt_body(sealed | {what: b64(bytes(changed))}))
        assert_refused(answer, 400, "InvalidCiphertextException")


def test_metadata_and_aad_of_another(blue):
    sealed, other = blue.encrypt(), blue.encrypt(key="other")
    refused = lambda body, key=None: assert_refused(blue.raw("decrypt", body, key), 400, "InvalidCiphertextException")  # noqa: E731
    refused(blue.decrypt_body(sealed, aad=b"tenant=green"))
    refused(blue.decrypt_body(sealed, aad=None))
    refused(blue.decrypt_body(sealed), "other")
    refused(blue.decrypt_body(other))
    refused(blue.decrypt_body({**sealed, "ciphertextMetadata": None}))
    # The lengths under the tag: moving the border between AAD and metadata is a change.
    moved = b"tenant=blue" + unb64(sealed["ciphertextMetadata"])
    refused(blue.decrypt_body({**sealed, "ciphertextMetadata": None}, aad=moved))


def test_versions(blue):
    """The newest version encrypts; each ciphertext finds its own."""
    new = blue.encrypt(b"new", key="versioned")
    assert unb64(new["ciphertextMetadata"]) == b"\x01" + struct.pack(">I", 2)
    assert blue.decrypt(new, key="versioned") == b"new"
    old = blue.encrypt(b"old", key="other")
    assert unb64(old["ciphertextMetadata"]) == b"\x01" + struct.pack(">I", 1)
    assert blue.decrypt(old, key="versioned") == b"old", "version 1 of it is the key `other`"
    unknown = {**new, "ciphertextMetadata": b64(b"\x01" + struct.pack(">I", 9))}
    assert_refused(blue.raw("decrypt", blue.decrypt_body(unknown), "versioned"), 400, "InvalidCiphertextException")


@softhsm_only
def test_ciphertext_of_awss_sample_proxy(sample, softhsm):
    """It hashes the AAD and may send no metadata: made here by PKCS #11, opened by a store in that mode."""
    iv = bytes(range(12))
    made = softhsm.directory / "sample.bin"
    for aad, metadata in ((b"tenant=blue", b""), (b"tenant=blue", b"key_version=1")):
        full = struct.pack(">H", len(aad)) + hashlib.sha256(aad).digest() + bytes([len(metadata)]) + metadata
        softhsm._run(
            "from pkcs11 import GCMParams\nkey = session.get_key(label='orders')\n"
            f"data = key.encrypt(b'from the sample', mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=GCMParams({iv!r}, {full!r}, 128))\n"
            f"open({str(made)!r}, 'wb').write(data)", "east", "9182736450")
        data = made.read_bytes()
        sealed = {"ciphertext": b64(data[:-16]), "authenticationTag": b64(data[-16:]), "initializationVector": b64(iv),
                  "ciphertextMetadata": b64(metadata) if metadata else None}
        assert sample.decrypt(sealed, aad=aad) == b"from the sample"
        assert_refused(sample.raw("decrypt", sample.decrypt_body(sealed, aad=b"other")), 400, "InvalidCiphertextException")


def test_the_sample_mode_round_trips_and_differs(sample, blue):
    sealed = sample.encrypt(b"x", cdiv=True)
    assert sample.decrypt(sealed) == b"x"
    assert_refused(blue.raw("decrypt", blue.decrypt_body(sealed)), 400, "InvalidCiphertextException")
    assert sample.decrypt(sample.encrypt(b"x", aad=None), aad=None) == b"x"


def test_one_sided_keys(blue):
    encrypt = blue.raw("encrypt", blue.encrypt_body(), "encrypt-only")
    assert encrypt.status_code == 200
    assert_refused(blue.raw("encrypt", blue.encrypt_body(cdiv=True), "encrypt-only"), 400, "InvalidKeyUsageException")
    assert_refused(blue.raw("decrypt", blue.decrypt_body(encrypt.json()), "encrypt-only"), 400, "InvalidKeyUsageException")
    assert_refused(blue.raw("encrypt", blue.encrypt_body(), "decrypt-only"), 400, "InvalidKeyUsageException")
    for operation, body in (("encrypt", blue.encrypt_body()), ("decrypt", blue.decrypt_body(encrypt.json()))):
        assert_refused(blue.raw(operation, body, "neither"), 400, "InvalidKeyUsageException")


def test_unknown_keys(blue, green):
    body = blue.encrypt_body()
    assert_refused(blue.raw("encrypt", body, "missing"), 404, "KeyNotFoundException")
    assert_refused(blue.raw("encrypt", body, "never-heard-of"), 404, "KeyNotFoundException")
    assert_refused(blue.raw("metadata", {"requestMetadata": blue.metadata()}, "never-heard-of"), 404, "KeyNotFoundException")
    assert_refused(green.raw("encrypt", body, "orders"), 404, "KeyNotFoundException")
    assert_refused(blue.raw("encrypt", body, "Orders"), 404, "KeyNotFoundException")


def test_health(blue, proxy):
    proxy.wait_for_hsm("east")
    body = {"requestMetadata": {"kmsRequestId": "x", "kmsOperation": "KmsHealthCheck"}}
    answer = blue.raw("health", body)
    assert answer.status_code == 200
    health = answer.json()
    assert health["xksProxyFleetSize"] == 1
    assert health["xksProxyVendor"] == "Holdfast" and health["xksProxyModel"]
    (entry,) = health["ekmFleetDetails"]
    assert entry["id"] == "east" and entry["healthStatus"] == "ACTIVE"
    assert ("SoftHSM" in health["ekmVendor"] + entry["model"]) == (proxy.backend == "softhsm")


@pytest.mark.parametrize("operation", ["metadata", "encrypt", "decrypt", "health"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"requestMetadata": {}}', b'{"requestMetadata": []}', b"\xff\xfe", b"[" * 10000])
def test_bodies_that_are_none(blue, operation, body):
    assert_refused(blue.raw(operation, body), 400, "ValidationException")


def without(body: dict, *path: str) -> dict:
    copy = json.loads(json.dumps(body))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


def test_members_that_must_be_there(blue):
    sealed = blue.encrypt()
    bodies = {"encrypt": blue.encrypt_body(), "decrypt": blue.decrypt_body(sealed), "metadata": {"requestMetadata": blue.metadata()},
              "health": {"requestMetadata": blue.metadata("KmsHealthCheck")}}
    always = [("requestMetadata",), ("requestMetadata", "kmsRequestId"), ("requestMetadata", "kmsOperation")]
    caller = [("requestMetadata", "awsPrincipalArn")]
    key = [("requestMetadata", "kmsKeyArn"), ("encryptionAlgorithm",)]
    required = {
        "health": always,
        "metadata": always + caller,
        "encrypt": always + caller + key + [("plaintext",)],
        "decrypt": always + caller + key + [("ciphertext",), ("initializationVector",), ("authenticationTag",)],
    }
    for operation, paths in required.items():
        assert blue.raw(operation, bodies[operation]).status_code == 200
        for path in paths:
            assert_refused(blue.raw(operation, without(bodies[operation], *path)), 400, "ValidationException")
    optional = {"metadata": [("requestMetadata", "kmsKeyArn")], "health": caller}
    for operation, paths in optional.items():
        for path in paths:
            assert blue.raw(operation, without(bodies[operation], *path)).status_code == 200


def test_unknown_members_and_values_are_accepted(blue):
    body = blue.encrypt_body() | {"tomorrow": {"a": [1]}}
    body["requestMetadata"] |= {"sourceIdentity": "x", "kmsOperation": "SomethingNew", "kmsRequestId": "not a uuid \u00e4",
                                "kmsViaService": "ebs", "awsSourceVpc": "vpc-1", "awsSourceVpce": "vpce-1"}
    assert blue.raw("encrypt", body).status_code == 200


def test_arns_of_2048_characters(blue):
    long = "arn:aws:iam::123456789012:role/" + "r" * (2048 - 31)
    assert blue.raw("encrypt", blue.encrypt_body(awsPrincipalArn=long, kmsKeyArn=KMS_KEY + "x" * (2048 - len(KMS_KEY)))).status_code == 200


@pytest.mark.parametrize("principal", ["AWS Internal", "ec2.amazonaws.com"])
def test_principals_that_are_no_arns(green, blue, principal):
    assert green.raw("encrypt", green.encrypt_body(awsPrincipalArn=principal)).status_code == 200
    assert_refused(blue.raw("encrypt", blue.encrypt_body(awsPrincipalArn=principal)), 403, "AccessDeniedException")


def test_sizes_and_encodings(blue):
    sealed = blue.encrypt()
    encrypt, decrypt = blue.encrypt_body(), blue.decrypt_body(sealed)
    wrong = [
        ("encrypt", encrypt | {"encryptionAlgorithm": "AES_CBC"}),
        ("encrypt", encrypt | {"ciphertextDataIntegrityValueAlgorithm": "SHA_1"}),
        ("encrypt", encrypt | {"plaintext": "####"}),
        ("encrypt", encrypt | {"plaintext": b64(b"kkkk").rstrip("=")}),
        ("encrypt", encrypt | {"plaintext": base64.urlsafe_b64encode(b"\xfb\xff\xfe").decode()}),
        ("encrypt", encrypt | {"plaintext": 7}),
        ("encrypt", encrypt | {"additionalAuthenticatedData": "a"}),
        ("encrypt", encrypt | {"additionalAuthenticatedData": b64(b"a" * 65536)}),
        ("decrypt", decrypt | {"encryptionAlgorithm": "aes_gcm"}),
        ("decrypt", decrypt | {"initializationVector": b64(b"i" * 11)}),
        ("decrypt", decrypt | {"initializationVector": b64(b"i" * 13)}),
        ("decrypt", decrypt | {"authenticationTag": b64(b"t" * 15)}),
        ("decrypt", decrypt | {"authenticationTag": b64(b"t" * 17)}),
        ("decrypt", decrypt | {"ciphertextMetadata": b64(b"m" * 21)}),
        ("decrypt", decrypt | {"ciphertext": "####"}),
    ]
    for operation, body in wrong:
        assert_refused(blue.raw(operation, body), 400, "ValidationException")
    # A 16-byte IV is legal; this one is just not the right one.
    sixteen = decrypt | {"initializationVector": b64(b"i" * 16)}
    assert_refused(blue.raw("decrypt", sixteen), 400, "InvalidCiphertextException")


def test_beyond_what_is_taken(blue):
    assert_refused(blue.raw("encrypt", blue.encrypt_body(b"p" * 16385)), 501, "UnsupportedOperationException")
    assert_refused(blue.raw("encrypt", b"{" + b" " * 300_000), 501, "UnsupportedOperationException")
    # The longest AAD there is.
    longest = b"a" * 65535
    assert blue.decrypt(blue.encrypt(b"x", aad=longest, cdiv=True), aad=longest) == b"x"


@pytest.mark.parametrize("path", ["/kms/xks/v1/health", "/red/kms/xks/v1/health", "/blue/invalid/kms/xks/v1/health", "/blue/kms/xks/v2/health",
                                  "/blue/kms/xks/v1/keys/orders/sign", "/blue/kms/xks/v1/keys/orders", "/", "/blue", "/green/kms/xks/v1/health",
                                  "/blue/kms/xks/v1/keys/or%2Fders/encrypt", "/blue/kms/xks/v1/" + "x" * 300])
def test_unknown_paths_come_before_authentication(blue, path):
    body = json.dumps(blue.encrypt_body()).encode()
    assert_refused(blue.send(path, body, {}), 404, "InvalidUriPathException")
    assert_refused(blue.send(path, body, blue.signed(path, body)), 404, "InvalidUriPathException")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("operation", ["metadata", "encrypt", "decrypt", "health"])
def test_other_methods(blue, method, operation):
    path = blue.path(operation)
    for headers in ({}, blue.signed(path, b"", method=method)):
        answer = blue.send(path, b"", headers, method)
        assert_refused(answer, 405, "UnsupportedOperationException")
        assert answer.headers["Allow"] == "POST"


def test_the_order_of_errors(blue):
    """Path, method, signature, body, key, policy, usage: each with everything later wrong as well."""
    bad = Credential("A" * 20, "x" * 43, blue.credential.uri_path)
    body = blue.encrypt_body(awsPrincipalArn="arn:aws:iam::999999999999:user/Eve") | {"encryptionAlgorithm": "X"}
    assert_refused(blue.raw("encrypt", body, "never-heard-of", credential=bad), 401, "AuthenticationFailedException")
    assert_refused(blue.raw("encrypt", body, "never-heard-of"), 400, "ValidationException")
    body = blue.encrypt_body(awsPrincipalArn="arn:aws:iam::999999999999:user/Eve")
    assert_refused(blue.raw("encrypt", body, "never-heard-of"), 404, "KeyNotFoundException")
    assert_refused(blue.raw("encrypt", body, "decrypt-only"), 403, "AccessDeniedException")
    assert_refused(blue.raw("encrypt", blue.encrypt_body(), "decrypt-only"), 400, "InvalidKeyUsageException")


def test_denials_do_not_tell_their_rule_but_the_log_does(blue, proxy):
    message = assert_refused(blue.raw("encrypt", blue.encrypt_body(awsPrincipalArn="arn:aws:iam::123456789012:user/Mallory")), 403, "AccessDeniedException")
    assert "mallory" not in message.lower()
    event = next(event for event in reversed(proxy.events()) if event.get("error") == "AccessDeniedException")
    assert event["reason"] == 'rule "not-mallory" denies' and event["outcome"] == "denied"
    assert "not-mallory" in proxy.log().read_text()


def test_the_log_tells_who_asked_for_what(blue, proxy):
    answer = blue.raw("encrypt", blue.encrypt_body(operation="GenerateDataKey", kmsViaService="ebs", kmsRequestId="cloudtrail-joins-on-this"))
    assert answer.status_code == 200
    event = next(event for event in proxy.events() if event.get("client_request_id") == "cloudtrail-joins-on-this")
    assert event["operation"] == "Encrypt" and event["key"] == "orders" and event["version"] == "1" and event["status"] == 200
    assert event["reason"] == 'rule "the-account"' and event["caller"]["tenant"] == "blue"
    assert int(event["context"].pop("generation")) > 0
    assert event["context"] == {"store": "blue", "hsm": "east", "awsPrincipalArn": "arn:aws:iam::123456789012:user/Alice", "kmsKeyArn": KMS_KEY,
                                "kmsOperation": "GenerateDataKey", "kmsViaService": "ebs"}


def test_no_plaintext_is_written_anywhere(blue, proxy):
    secret = b"never-write-this-down-0123456789"
    blue.decrypt(blue.encrypt(secret))
    for file in [*proxy.state.rglob("*"), proxy.log()]:
        if file.is_file():
            content = file.read_bytes()
            assert secret not in content and b64(secret).encode() not in content, file


def handshake(proxy, minimum, maximum, ciphers=None):
    context = ssl.create_default_context(cafile=proxy.ca_file)
    context.minimum_version, context.maximum_version = minimum, maximum
    if ciphers:
        context.set_ciphers(ciphers)
    with socket.create_connection(("localhost", proxy.ports["a"])) as raw, context.wrap_socket(raw, server_hostname="localhost") as tls:
        return tls.version(), tls.cipher()[0]


def test_tls(proxy):
    assert handshake(proxy, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"
    assert handshake(proxy, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384")
    with pytest.raises(ssl.SSLError):
        handshake(proxy, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256")


def test_the_probe_of_load_balancers(proxy):
    answer = proxy.requests.get(proxy.url() + "/ping", verify=proxy.ca_file, timeout=5)
    assert answer.status_code == 200 and answer.text == "pong\n"


def test_metrics_have_the_names_that_aws_users_know(blue, proxy):
    blue.encrypt()
    blue.raw("encrypt", b"")
    assert proxy.metric("holdfast_xks_proxy_latency_seconds_count", operation="Encrypt", store="blue") > 0
    assert proxy.metric("holdfast_xks_proxy_errors_total", error="ValidationException") > 0
    assert 80 < proxy.metric("holdfast_xks_proxy_certificate_days_to_expire") <= 91
    assert 0 <= proxy.metric("holdfast_xks_proxy_credential_age_days", store="blue") < 1
    assert proxy.metric("holdfast_xks_external_key_manager_states", hsm="east", state="active") == 1

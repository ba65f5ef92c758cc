"""Attacks on the signature, and requests that are no requests. Each is refused in the service's own form."""
import concurrent.futures
import json
import re
import socket
import ssl
import time

import pytest
import requests
from botocore.awsrequest import AWSRequest
from service import REGION
from signing import sign


class Caller:
    """Signs as botocore does, and lets the test change anything."""

    def __init__(self, service, name: str = "root"):
        self.service, self.name = service, name
        self.session = requests.Session()

    def signed(self, operation: str, body: bytes, *, region: str = REGION, signed_service: str = "kms", key: tuple | None = None,
               offset: int = 0, path: str = "/", method: str = "POST", headers: dict | None = None) -> dict:
        access_key, secret = key or self.service.keys[self.name]
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService." + operation} | (headers or {})
        request = AWSRequest(method, self.service.url + path, data=body, headers=headers)
        return sign(request, access_key, secret, signed_service, region, offset)

    def send(self, body: bytes, headers: dict, path: str = "/", method: str = "POST") -> requests.Response:
        return self.session.request(method, self.service.url + path, data=body, headers=headers, verify=self.service.ca_file, timeout=30)

    def call(self, operation: str, body, **sign) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(data, self.signed(operation, data, **sign), sign.get("path", "/"), sign.get("method", "POST"))


def assert_refused(answer: requests.Response, code: str, status: int = 400) -> str:
    assert (answer.status_code, answer.json()["__type"]) == (status, code), (answer.status_code, answer.text)
    assert answer.headers["Content-Type"] == "application/x-amz-json-1.1" and re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-amzn-RequestId"])
    return answer.json()["message"]


@pytest.fixture(scope="module")
def caller(service):
    return Caller(service)


@pytest.fixture
def body(symmetric):
    return json.dumps({"KeyId": symmetric, "Plaintext": "eA=="}).encode()


@pytest.mark.parametrize(("offset", "taken"), [(-290, True), (290, True), (-310, False), (310, False), (-86400, False), (86400, False)])
def test_stale_and_early_signatures(caller, body, offset, taken):
    answer = caller.call("Encrypt", body, offset=offset)
    if taken:
        assert answer.status_code == 200
    else:
        words = "Signature expired: " if offset < 0 else "Signature not yet current: "
        assert assert_refused(answer, "InvalidSignatureException").startswith(words)


@pytest.mark.parametrize(("change", "code"), [
    (lambda h: {k: v for k, v in h.items() if k != "Authorization"}, "MissingAuthenticationTokenException"),
    (lambda h: {k: v for k, v in h.items() if k != "X-Amz-Date"}, "IncompleteSignatureException"),
    (lambda h: h | {"Authorization": "Bearer x"}, "IncompleteSignatureException"),
    (lambda h: h | {"Authorization": h["Authorization"][:-1]}, "IncompleteSignatureException"),
    (lambda h: h | {"Authorization": h["Authorization"].replace("host;", "")}, "IncompleteSignatureException"),
    (lambda h: h | {"Authorization": h["Authorization"].replace("AWS4-HMAC", "AWS3-HMAC")}, "IncompleteSignatureException"),
    (lambda h: h | {"Authorization": h["Authorization"].replace("aws4_request", "aws4_reques")}, "IncompleteSignatureException"),
    (lambda h: h | {"Authorization": re.sub("Signature=.*", "Signature=" + "0" * 64, h["Authorization"])}, "InvalidSignatureException"),
    (lambda h: h | {"X-Amz-Target": "TrentService.Decrypt"}, "InvalidSignatureException"),
    (lambda h: h | {"Host": "kms.example.com"}, "InvalidSignatureException"),
    (lambda h: h | {"Authorization": h["Authorization"].replace("AKROOT", "AKNOBODY")}, "UnrecognizedClientException"),
    (lambda h: h | {"X-Amz-Security-Token": "a token"}, "UnrecognizedClientException"),
    (lambda h: h | {"Authorization": h["Authorization"] + ", Signature=" + "0" * 64}, "IncompleteSignatureException"),
])
def test_mutilated_headers(caller, service, body, change, code):
    def told():
        denied = [event for event in service.events() if (event["outcome"], event.get("error")) == ("denied", code)]
        return sum(int(event.get("context", {}).get("count", 1)) for event in denied)
    before = told()
    assert_refused(caller.send(body, change(caller.signed("Encrypt", body))), code)
    # What is refused to nobody that is known is counted, and told when the second is over.
    for _ in range(60):
        if told() > before:
            break
        time.sleep(0.05)
    assert told() > before


def test_other_signatures(caller, service, body):
    assert_refused(caller.call("Encrypt", body, signed_service="s3"), "InvalidSignatureException")
    assert_refused(caller.call("Encrypt", body, region="ap-south-1"), "InvalidSignatureException")
    assert_refused(caller.call("Encrypt", body, key=("AKROOT", "not the secret")), "InvalidSignatureException")
    # One principal's id with another's secret.
    assert_refused(caller.call("Encrypt", body, key=(service.keys["root"][0], service.keys["bob"][1])), "InvalidSignatureException")
    headers = caller.signed("Encrypt", body)
    for other in (body + b" ", body[:-1], b""):
        assert_refused(caller.send(other, headers), "InvalidSignatureException")
    assert_refused(caller.send(body, headers, "/?a=b"), "IncompleteSignatureException")


@pytest.mark.parametrize(("operation", "sent", "code", "status"), [
    ("Encrypt", b"{", "SerializationException", 400), ("Encrypt", b"[]", "SerializationException", 400),
    ("Encrypt", b'{"KeyId": 1}', "SerializationException", 400), ("Encrypt", b"\xff\xfe", "SerializationException", 400),
    ("Encrypt", b'{"KeyId": "k", "Plaintext": "!"}', "SerializationException", 400),
    ("Encrypt", b'{"KeyId": "k", "Plaintext": "eA==", "EncryptionContext": {"a": "1", "a": "2"}}', "SerializationException", 400),
    ("Encrypt", b'{"KeyId": "k", "Plaintext": "eA==", "EncryptionContext": {"a": 1}}', "SerializationException", 400),
    ("Encrypt", b'{"Plaintext": "eA=="}', "ValidationException", 400), ("Encrypt", b"", "ValidationException", 400),
    ("Encrypt", b'{"KeyId": null, "Plaintext": "eA=="}', "ValidationException", 400),
    ("Encrypt", b"[" * 100_000, "SerializationException", 400),
    ("Decrypt", b'{"CiphertextBlob": "eA=="}', "InvalidCiphertextException", 400), ("Decrypt", b"{}", "ValidationException", 400),
    ("NoSuchThing", b"{}", "UnknownOperationException", 400), ("encrypt", b"{}", "UnknownOperationException", 400),
    ("GetKeyLastUsage", b"{}", "ValidationException", 400),
])
def test_what_is_no_request(caller, operation, sent, code, status):
    message = assert_refused(caller.call(operation, sent), code, status)
    assert "eA==" not in message


@pytest.mark.parametrize("moment", ["-1e300", "1e300", "0", "-0.0", "9223372036854775807"])
def test_moments_out_of_all_bounds(kms, caller, moment):
    key = kms.create_key(Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    body = f'{{"KeyId": "{key}", "ImportToken": "eA==", "EncryptedKeyMaterial": "eA==", "ValidTo": {moment}}}'.encode()
    assert "ValidTo must be in the future" in assert_refused(caller.call("ImportKeyMaterial", body), "ValidationException")


def test_the_words_of_the_service(caller):
    message = assert_refused(caller.call("Encrypt", b"{}"), "ValidationException")
    assert message == ("2 validation errors detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null; "
                       "Value null at 'plaintext' failed to satisfy constraint: Member must not be null")


def test_unknown_members_are_passed_over_and_null_is_absent(caller, symmetric):
    answer = caller.call("Encrypt", {"KeyId": symmetric, "Plaintext": "eA==", "GrantTokens": None, "DryRun": None, "NewMember": {"a": [1]}})
    assert answer.status_code == 200 and answer.json()["KeyId"] == symmetric


def test_other_methods_and_paths(caller, body):
    for method, path in (("GET", "/"), ("PUT", "/"), ("POST", "/kms"), ("DELETE", "/")):
        assert_refused(caller.call("Encrypt", body, method=method, path=path), "UnknownOperationException")


def test_bodies_that_are_too_large(caller, service):
    sent = b'{"KeyId": "' + b"k" * 2_000_000 + b'"}'
    assert_refused(caller.call("Encrypt", sent), "RequestEntityTooLargeException", 413)
    assert caller.call("ListKeys", b"{}").status_code == 200, "the next request is served"


def test_a_body_that_never_ends_keeps_nobody_waiting(caller, service):
    context = ssl.create_default_context(cafile=service.ca_file)
    with socket.create_connection(("localhost", service.port)) as plain, context.wrap_socket(plain, server_hostname="localhost") as stream:
        stream.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: TrentService.Encrypt\r\nContent-Length: 100\r\n\r\n{")
        assert caller.call("ListKeys", b"{}").status_code == 200


def test_many_at_once(service, symmetric):
    client = service.client("admin", max_pool_connections=32)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        blobs = list(pool.map(lambda n: client.encrypt(KeyId=symmetric, Plaintext=b"%d" % n)["CiphertextBlob"], range(300)))
        assert [int(plain["Plaintext"]) for plain in pool.map(lambda blob: client.decrypt(CiphertextBlob=blob), blobs)] == list(range(300))
    assert len(set(blobs)) == 300


def test_a_secret_is_nowhere_in_the_log(service, kms, symmetric):
    marker = b"marker-of-a-plaintext-that-nobody-logs"
    blob = kms.encrypt(KeyId=symmetric, Plaintext=marker, EncryptionContext={"name": "a-context-value-that-is-hashed"})["CiphertextBlob"]
    kms.decrypt(CiphertextBlob=blob, EncryptionContext={"name": "a-context-value-that-is-hashed"})
    text = service.log.read_text() + json.dumps(service.events())
    assert marker.decode() not in text and "a-context-value-that-is-hashed" not in text
    events = [event for event in service.events() if "caller" in event][-2:]
    assert [event["operation"] for event in events] == ["Encrypt", "Decrypt"]
    assert all(event["key"] == symmetric and len(event["context"]["encryption-context-sha256"]) == 64 for event in events)


def test_metrics_and_health(service):
    answer = requests.get(service.url + "/readyz", verify=service.ca_file, timeout=10).json()
    assert answer["role"] == "kms" and answer["keys"] >= 1
    metrics = requests.get(service.url + "/metrics", verify=service.ca_file, timeout=10).text
    assert 'holdfast_kms_requests_total{operation="Encrypt",outcome="allowed"}' in metrics
    assert "holdfast_kms_request_duration_seconds" in metrics and "AKROOT" not in metrics

"""Bad input of every sort: a clear error in Key Vault's form, no panic, and service goes on."""
import concurrent.futures
import json
import socket
import ssl
import time
import urllib.parse
import warnings

import pytest
import requests
from conftest import assert_error, b64


@pytest.fixture(autouse=True)
def service_goes_on(rest):
    yield
    assert rest("GET", "/keys").status_code == 200


def raw(server, data: bytes, *, timeout=5.0) -> bytes:
    """Sends bytes over TLS and reads until the server closes or is silent."""
    parsed = urllib.parse.urlparse(server.url)
    context = ssl.create_default_context(cafile=server.ca_file)
    with socket.create_connection((parsed.hostname, parsed.port), timeout=timeout) as plain:
        with context.wrap_socket(plain, server_hostname=parsed.hostname) as tls:
            tls.sendall(data)
            answer = b""
            try:
                while chunk := tls.recv(65536):
                    answer += chunk
                    if b"\r\n\r\n" in answer and b"onnection: close" not in answer:
                        break
            except (TimeoutError, ssl.SSLError, ConnectionError):
                pass
            return answer


def test_api_versions(rest):
    assert_error(rest("GET", "/keys", version="1.0"), 400, "BadParameter")
    assert_error(rest("GET", "/keys", version=None), 400, "BadParameter")
    for version in ("7.2", "7.6-preview.2", "2025-07-01", "2026-01-01-preview"):
        assert rest("GET", "/keys", version=version).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"x"', b'{"kty":', b"\xff\xfe", b'{"kty":1}', b"{" * 5000, b'{"kty":"RSA-HSM","key_size":1e99}',
                                  b'{"kty":"oct-HSM","kty":"RSA-HSM"}'])
def test_malformed_json(server, rest, body):
    url = f"{server.url}/keys/malformed/create?api-version=7.5"
    answer = requests.post(url, data=body, headers={"Authorization": f"Bearer {rest.token}"}, verify=server.ca_file)
    assert_error(answer, 400, "BadParameter")


def test_messages_do_not_repeat_secrets(server, rest):
    secret = "c2VjcmV0LWtleS1tYXRlcmlhbA"
    for body in ({"key": {"kty": "oct-HSM", "k": secret}}, {"key": {"kty": "oct-HSM", "k": secret + "!"}}, {"key": {"kty": "oct-HSM", "k": [secret]}}):
        answer = rest("PUT", "/keys/secretive", body)
        assert answer.status_code == 400 and secret not in answer.text
    log = server.log.read_text() + "".join(path.read_text() for path in (server.data_dir / "audit").iterdir())
    assert secret not in log and rest.token not in log and server.env["HOLDFAST_CLIENT_SECRET"] not in log


def test_bodies_over_the_limit(server, rest):
    headers = {"Authorization": f"Bearer {rest.token}"}
    url = f"{server.url}/keys/restore?api-version=7.5"
    assert_error(requests.post(url, data=b'{"value":"' + b"A" * (1 << 20) + b'"}', headers=headers, verify=server.ca_file), 413, "RequestTooLarge")

    def chunks():
        for _ in range(40):
            yield b"A" * 65536
    assert_error(requests.post(url, data=chunks(), headers=headers, verify=server.ca_file), 413, "RequestTooLarge")
    lie = f"POST /keys/restore?api-version=7.5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rest.token}\r\nContent-Length: 104857600\r\n\r\n"
    assert raw(server, lie.encode()).startswith(b"HTTP/1.1 413 ")


def test_headers_over_the_limit(server):
    assert raw(server, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"A" * 100_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    many = b"".join(b"X-%d: y\r\n" % number for number in range(200))
    assert raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100,
                                  b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                                  b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
def test_not_http(server, data):
    answer = raw(server, data, timeout=2)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ", b"HTTP/1.0 400 ")), answer[:100]


def test_slow_body(server, rest):
    """A body that does not arrive costs the client a 408, and nobody else anything."""
    begin = f"POST /keys/slow/create?api-version=7.5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rest.token}\r\nContent-Length: 100\r\n\r\n{{"
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(raw, server, begin.encode(), timeout=15) for _ in range(8)]
        for _ in range(20):
            assert rest("GET", "/settings").elapsed.total_seconds() < 1
        for answer in slow:
            assert answer.result().startswith(b"HTTP/1.1 408 ")
    assert 9 < time.monotonic() - start < 14


def test_plain_http_and_old_tls(server):
    parsed = urllib.parse.urlparse(server.url)
    with socket.create_connection((parsed.hostname, parsed.port), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=server.ca_file)
        context.minimum_version = context.maximum_version = version
        with socket.create_connection((parsed.hostname, parsed.port)) as plain, context.wrap_socket(plain, server_hostname=parsed.hostname) as tls:
            assert tls.version() == version.name.replace("_", ".")
    context = ssl.create_default_context(cafile=server.ca_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((parsed.hostname, parsed.port)) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname=parsed.hostname)


def test_paths_and_methods(rest):
    assert_error(rest("GET", "/secrets"), 404, "NotFound")
    assert_error(rest("DELETE", "/keys"), 405, "MethodNotAllowed")
    assert_error(rest("GET", "/keys/under_score"), 400, "BadParameter")
    assert_error(rest("GET", "/keys/" + "a" * 128), 400, "BadParameter")
    assert_error(rest("GET", "/keys/nobody"), 404, "KeyNotFound")
    assert_error(rest("GET", "/keys/nobody/xyz"), 400, "BadParameter")
    assert_error(rest("POST", "/keys/nobody/encrypt", {"alg": "RSA-OAEP", "value": ""}), 404, "KeyNotFound")


def test_closed_doors(rest):
    for method, path in (("POST", "/securitydomain/download"), ("GET", "/securitydomain/download/pending"), ("GET", "/securitydomain/upload"),
                         ("POST", "/backup"), ("PUT", "/restore"), ("POST", "/prebackup"), ("GET", "/ekm"), ("POST", "/ekm/create"),
                         ("PUT", "/keys/k/restore"), ("POST", "/keys/k//release"), ("GET", "/keys/k//attestation"),
                         ("GET", "/backup/00000000000000000000000000000000/pending")):
        assert_error(rest(method, path), 501, "NotSupported")
    assert_error(rest("GET", "/restore/0/pending", version=None), 501, "NotSupported")


def test_headers_of_answers(rest):
    answer = rest("GET", "/keys", headers={"x-ms-client-request-id": "mine"})
    assert answer.headers["x-ms-client-request-id"] == "mine" and len(answer.headers["x-ms-request-id"]) == 36
    assert answer.headers["Cache-Control"] == "no-cache" and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "x-ms-client-request-id" not in rest("GET", "/keys", headers={"x-ms-client-request-id": "x" * 1000}).headers


def test_algorithms_and_values(rest):
    rest.ok("POST", "/keys/values/create", {"kty": "RSA-HSM"})
    for body in ({"alg": "RSA-OAEP"}, {"value": "AA"}, {"alg": "RSA-OAEP", "value": "*"}, {"alg": "x" * 10_000, "value": "AA"}, {"alg": "RSNULL", "value": "AA"},
                 {"alg": "RSA-OAEP", "value": b64(bytes(300))}, {"alg": "A256GCM", "value": "AA"}, {"alg": "É", "value": "AA"}):
        assert_error(rest("POST", "/keys/values/encrypt", body), 400, "BadParameter")
    assert_error(rest("POST", "/keys/values/decrypt", {"alg": "RSA-OAEP", "value": b64(bytes(255))}), 400, "BadParameter")
    assert rest.ok("POST", "/keys/values/encrypt", {"alg": "RSA-OAEP", "value": "AA=="})["value"], "padding is tolerated"


def test_private_key_work_is_throttled_not_queued(rest, server):
    """Over capacity the answer is 429 at once, in Key Vault's form, and AES callers go on."""
    key = rest.ok("POST", "/keys/heavy/create", {"kty": "RSA-HSM", "key_size": 4096})
    wrapped = rest.ok("POST", "/keys/heavy/wrapkey", {"alg": "RSA-OAEP-256", "value": b64(b"k" * 32)})["value"]
    session_count, statuses = 400, []

    def work(_):
        return rest("POST", f"/keys/heavy/{key['key']['kid'].rsplit('/', 1)[1]}/unwrapkey", {"alg": "RSA-OAEP-256", "value": wrapped})
    with concurrent.futures.ThreadPoolExecutor(session_count) as pool:
        answers = list(pool.map(work, range(session_count)))
    for answer in answers:
        if answer.status_code == 429:
            assert_error(answer, 429, "Throttled")
            assert answer.headers["Retry-After"] == "1"
        else:
            assert answer.status_code == 200, answer.text
        statuses.append(answer.status_code)
    assert 200 in statuses
    text = requests.get(f"{server.url}/metrics", verify=server.ca_file).text
    assert "holdfast_crypto_pool_queue_length" in text
    assert json.loads(requests.get(f"{server.url}/readyz", verify=server.ca_file).text)["status"] == "ready"

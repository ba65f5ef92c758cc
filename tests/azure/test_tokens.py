"""Wrong tokens: each gets 401, learns nothing, and leaves its reason in the audit log."""
import base64
import json
import subprocess
import time

import jwt
import pytest
import requests
from conftest import BINARY, Rest, Server, assert_error, b64
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "https://managedhsm.azure.net"


def claims_of(token):
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


def header_of(token):
    return json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))


def join(header, claims, signature=b""):
    part = lambda value: b64(value if isinstance(value, bytes) else json.dumps(value).encode())
    return ".".join([part(header), part(claims), b64(signature)])


@pytest.fixture(scope="module")
def good(server):
    return server.token()


def refused(server, token):
    message = assert_error(Rest(server, token)("GET", "/keys"), 401, "Unauthorized")
    assert "signature" not in message.lower()
    return message


def test_the_challenge(server):
    answer = requests.get(f"{server.url}/keys/any", verify=server.ca_file)
    assert answer.status_code == 401
    challenge = answer.headers["WWW-Authenticate"]
    tenant = server.env["HOLDFAST_TENANT_ID"]
    host = server.url.removeprefix("https://")
    resource = "https://" + host.split(".", 1)[1]
    assert challenge == f'Bearer authorization="{server.env["HOLDFAST_AUTHORITY_URL"]}/{tenant}", resource="{resource}"'
    assert ("." + resource.removeprefix("https://")) in host, "the SDKs' own check"
    # Before the path, the method, the version or the body is looked at.
    for method, path in (("GET", "/nothing"), ("PUT", "/keys"), ("POST", "/keys/restore"), ("DELETE", "/"), ("POST", "/keys/a_b/create")):
        answer = requests.request(method, server.url + path, verify=server.ca_file, data=b"{" * 10)
        assert answer.status_code == 401 and "WWW-Authenticate" in answer.headers, (method, path)
    foreign = requests.get(f"{server.url}/keys", headers={"Host": "hsm.attacker.example"}, verify=server.ca_file)
    assert resource in foreign.headers["WWW-Authenticate"], "a foreign name gets the canonical challenge"


def test_audiences(server):
    for scope in (AUDIENCE + "/.default", AUDIENCE + "//.default", "https://0.0.1:%d/.default" % server.port):
        token = server.holdfast("token", "--env-file", server.env_file, "--scope", scope).stdout.strip()
        assert Rest(server, token)("GET", "/keys").status_code == 200, scope
    for scope in ("https://vault.azure.net/.default", "https://attacker.example/.default", server.url + "/.default"):
        token = server.holdfast("token", "--env-file", server.env_file, "--scope", scope).stdout.strip()
        assert "but expected aud=" in refused(server, token)
    # An audience taken from the Host header would let tokens for others be replayed.
    token = server.holdfast("token", "--env-file", server.env_file, "--scope", "https://attacker.example/.default").stdout.strip()
    answer = Rest(server, token)("GET", "/keys", headers={"Host": "hsm.attacker.example"})
    assert answer.status_code == 401


def test_forged_tokens(server, good):
    header, claims = header_of(good), claims_of(good)
    key = rsa.generate_private_key(65537, 2048)
    jwks_url = f'{server.env["HOLDFAST_AUTHORITY_URL"]}/{server.env["HOLDFAST_TENANT_ID"]}/discovery/v2.0/keys'
    jwk = requests.get(jwks_url, verify=server.ca_file).json()["keys"][0]
    public = rsa.RSAPublicNumbers(*(int.from_bytes(base64.urlsafe_b64decode(jwk[m] + "==")) for m in ("e", "n"))).public_key()
    signature = base64.urlsafe_b64decode(good.split(".")[2] + "==")
    resign = lambda header, claims: jwt.encode(claims, key, "RS256", headers=header)
    tokens = {
        "none": join(header | {"alg": "none"}, claims),
        "None": join(header | {"alg": "None"}, claims, signature),
        "nOnE": join(header | {"alg": "nOnE"}, claims),
        "other key": resign({"kid": header["kid"]}, claims),
        "unknown kid": resign({"kid": "unknown"}, claims),
        "no kid": resign({}, claims),
        "kid with path": resign({"kid": "../../etc/passwd"}, claims),
        "kid with sql": resign({"kid": "' OR 1=1 --"}, claims),
        "own jwk": resign({"kid": header["kid"], "jwk": jwk}, claims),
        "jku": resign({"kid": header["kid"], "jku": "https://attacker.example/keys"}, claims),
        "crit": resign({"kid": header["kid"], "crit": ["exp"]}, claims),
        "signature of another payload": join(header, claims | {"oid": "00000000-0000-0000-0000-000000000000"}, signature),
        "no signature": ".".join(good.split(".")[:2]) + ".",
        "truncated signature": join(header, claims, signature[:-1]),
        "zero signature": join(header, claims, bytes(256)),
        "two parts": ".".join(good.split(".")[:2]),
        "five parts": good + ".a.b",
        "trailing space": good + "%20",
        "wrong issuer": resign(header, claims | {"iss": "https://sts.windows.net/other/"}),
        "empty": "",
        "nonsense": "a.b.c",
        "deep": join(header, b'{"a":' * 2000 + b"1" + b"}" * 2000),
    }
    secret = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = ".".join(join(header | {"alg": "HS256"}, claims).split(".")[:2])
    mac = hmac.HMAC(secret, hashes.SHA256())
    mac.update(signed.encode())
    tokens["hmac with the public key"] = f"{signed}.{b64(mac.finalize())}"
    psychic = ec.generate_private_key(ec.SECP256R1())
    tokens["psychic"] = join(header | {"alg": "ES256"}, claims, bytes(64))
    tokens["other algorithm"] = jwt.encode(claims, psychic, "ES256", headers={"kid": header["kid"]})
    for what, token in tokens.items():
        assert Rest(server, token)("GET", "/keys").status_code == 401, what
    assert Rest(server, good)("GET", "/keys").status_code == 200


def test_the_authorization_header(server, good):
    rest = Rest(server, good)
    for value in (good, f"Basic {good}", "Bearer", "Bearer ", f"Digest {good}", "Bearer " + "A" * 20_000):
        assert rest("GET", "/keys", headers={"Authorization": value}).status_code == 401, value[:40]
    assert rest("GET", "/keys", headers={"Authorization": f"bearer {good}"}).status_code == 200
    huge = rest("GET", "/keys", headers={"Authorization": "Bearer " + "A" * 100_000})
    assert huge.status_code == 431
    assert rest("GET", "/keys").status_code == 200


def test_reasons_are_in_the_audit_log(server, good):
    rest = Rest(server, join(header_of(good) | {"alg": "none"}, claims_of(good)))
    marker = f"marker-{time.time_ns()}"
    rest("GET", "/keys", headers={"x-ms-client-request-id": marker})
    # Refusals like others of this second are counted, and told when it is over.
    for _ in range(100):
        lines = server.holdfast("audit", "export", "--log", server.data_dir / "audit").stdout.splitlines()
        found = [event for event in map(json.loads, lines) if event.get("client_request_id") == marker]
        if found:
            break
        time.sleep(0.05)
    [event] = found
    assert event["outcome"] == "denied" and event["status"] == 401 and "caller" not in event
    assert event["reason"] == "the token's signature does not hold"


@pytest.fixture(scope="module")
def own_issuer(tmp_path_factory):
    """A Managed HSM whose issuer is ours, so that any claim can be signed properly."""
    import http.server
    import ssl
    import threading

    directory = tmp_path_factory.mktemp("issuer")
    other = Server(tmp_path_factory.mktemp("certificates")).start()
    other.stop()
    key = rsa.generate_private_key(65537, 2048)
    number = lambda value: b64(value.to_bytes((value.bit_length() + 7) // 8))
    jwk = {"kty": "RSA", "kid": "1", "use": "sig", "n": number(key.public_key().public_numbers().n), "e": number(65537)}
    state = {"keys": [jwk], "fetches": 0, "up": True}

    from cryptography import x509
    import datetime, ipaddress
    tls_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(tls_key.public_key()).serial_number(1)
                   .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
                   .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
                   .sign(tls_key, hashes.SHA256()))
    pem = directory / "issuer.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem = directory / "issuer.key"
    key_pem.write_bytes(tls_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state["fetches"] += 1
            document = {"issuer": url, "jwks_uri": f"{url}/keys"} if "openid" in self.path else {"keys": state["keys"]}
            body = json.dumps(document).encode()
            self.send_response(200 if state["up"] else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{listener.server_port}/tenant"
    from conftest import free_ports
    port = free_ports()
    config = directory / "holdfast.toml"
    config.write_text(f"""
[listen]
address = "127.0.0.1:{port}"
host_names = ["127.0.0.1:{port}"]
metrics_address = "127.0.0.1:{port + 1}"
[hsm]
data_dir = "{directory}/data"
initial_administrators = ["admin"]
[silicon]
kind = "software-insecure"
root_file = "{directory}/silicon.root"
[identity]
authority = "{url}"
[[identity.issuers]]
url = "{url}"
tenant = "the-tenant"
aliases = ["https://alias.example/"]
ca_file = "{pem}"
""")
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen([BINARY, "managed-hsm", "--config", config], stderr=log)
    hsm = Server.__new__(Server)
    hsm.env = {"HOLDFAST_HSM_URL": f"https://127.0.0.1:{port}", "HOLDFAST_CA_FILE": str(directory / "data/ca.pem")}
    hsm.metrics = f"http://127.0.0.1:{port + 1}"
    for _ in range(200):
        try:
            if requests.get(f"{hsm.metrics}/readyz").status_code == 200:
                break
        except requests.ConnectionError:
            time.sleep(0.05)
    base = {"iss": url, "aud": AUDIENCE, "tid": "the-tenant", "oid": "admin", "exp": int(time.time()) + 3600}

    def sign(claims=None, drop=(), **headers):
        payload = {k: v for k, v in (base | (claims or {})).items() if k not in drop}
        return jwt.api_jws.encode(json.dumps(payload).encode(), key, "RS256", headers={"kid": "1"} | headers)

    yield hsm, sign, state, key
    process.terminate()
    process.wait(20)
    listener.shutdown()


def test_claims(own_issuer):
    hsm, sign, _, _ = own_issuer
    status = lambda token: Rest(hsm, token)("GET", "/settings").status_code
    now = int(time.time())
    assert status(sign()) == 200
    assert status(sign({"iss": "https://alias.example/"})) == 200
    assert status(sign({"aud": ["https://other.example", AUDIENCE + "/"]})) == 200
    assert status(sign({"oid": "somebody"})) == 403
    for what, token in {
        "expired": sign({"exp": now - 301}), "not yet": sign({"nbf": now + 600}), "no exp": sign(drop=["exp"]),
        "exp as text": sign({"exp": str(now + 600)}), "exp as float": sign({"exp": now + 600.5}), "exp absurd": sign({"exp": 1e300}),
        "other tenant": sign({"tid": "another"}), "no tenant": sign(drop=["tid"]), "no oid": sign(drop=["oid"]), "empty oid": sign({"oid": ""}),
        "no audience": sign(drop=["aud"]), "other audience": sign({"aud": "https://vault.azure.net"}), "audience as number": sign({"aud": 1}),
        "other issuer": sign({"iss": "https://alias.example"}), "no issuer": sign(drop=["iss"]),
    }.items():
        assert status(token) == 401, what


def test_groups_are_for_people(own_issuer):
    hsm, sign, _, _ = own_issuer
    status = lambda token: Rest(hsm, token)("GET", "/settings").status_code
    assert status(sign({"oid": "u", "groups": ["admin"], "scp": "user_impersonation"})) == 200
    assert status(sign({"oid": "u", "groups": ["admin"], "idtyp": "user"})) == 200
    assert status(sign({"oid": "u", "groups": ["admin"], "idtyp": "app"})) == 403
    assert status(sign({"oid": "u", "groups": ["admin"]})) == 403


def test_duplicate_claims(own_issuer):
    hsm, _, _, key = own_issuer
    payload = b'{"iss":"x","iss":"y","aud":"z","tid":"the-tenant","oid":"admin","exp":9999999999}'
    token = jwt.api_jws.encode(payload, key, "RS256", headers={"kid": "1"})
    assert Rest(hsm, token)("GET", "/settings").status_code == 401


def test_unknown_keys_refresh_seldom_and_outages_are_survived(own_issuer):
    hsm, sign, state, _ = own_issuer
    assert Rest(hsm, sign())("GET", "/settings").status_code == 200
    before = state["fetches"]
    for number in range(20):
        assert Rest(hsm, sign(kid=f"unknown-{number}"))("GET", "/settings").status_code == 401
    assert state["fetches"] - before <= 4, "an attacker must not be able to make us hammer the issuer"
    state["up"] = False
    assert Rest(hsm, sign({"nbf": 1}))("GET", "/settings").status_code == 200, "known keys serve while the issuer is away"
    state["up"] = True


def test_metrics_listener(own_issuer):
    hsm, *_ = own_issuer
    text = requests.get(f"{hsm.metrics}/metrics").text
    assert "holdfast_hsm_requests_total{" in text and 'le="0.00005"' in text and "holdfast_hsm_keys 0" in text
    assert requests.get(f"{hsm.metrics}/healthz").text == "ok\n"
    assert requests.get(f"{hsm.metrics}/keys").status_code == 404
    assert requests.get(f'{hsm.env["HOLDFAST_HSM_URL"]}/metrics', verify=hsm.ca_file).status_code == 401

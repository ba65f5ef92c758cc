"""Caller proof, key hygiene, explain, strict stores, mutual TLS."""
import base64
import datetime
import json
import subprocess
import time

import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from authority import Authority
from conftest import check_end, hsm_config
from proxy import ALICE, KMS_KEY, Kms, Proxy, assert_refused
from softhsm import PIN, SoftHsm

BOB = ALICE.replace("Alice", "Bob")
STRICT = f"""
version = 1
[[stores]]
name = "strict"
path_prefix = "/strict"
region = "us-east-1"
mode = "strict"
caller_proof = "checked"
keys = ["orders"]
[[stores]]
name = "checked"
path_prefix = "/checked"
region = "us-east-1"
mode = "trust-provider"
caller_proof = "checked"
keys = ["orders"]
[[keys]]
id = "orders"
hsms = ["east"]
label = "orders"
[[rules]]
name = "alice-and-bob"
effect = "allow"
stores = ["strict"]
keys = ["orders"]
principals = ["{ALICE}", "{BOB}"]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    proxy = Proxy(tmp_path_factory.mktemp("policy"), '[[hsms]]\nname = "east"\nsoftware_insecure = true\n').start()
    proxy.change("key-create", "--key-id", "orders", "--hsm", "east", "--label", "orders")
    proxy.set_policy(STRICT)
    proxy.change("caller-add", "--access-key-id", "AKIAALICE", "--principal", ALICE, secret="alices-own-secret")
    yield proxy
    check_end(proxy)


@pytest.fixture(scope="module")
def strict(own):
    return Kms(own, own.add_credential("strict"))


def callers_request(operation: str, body: dict, access_key: str = "AKIAALICE", secret: str = "alices-own-secret", offset: int = 0, show_body: bool = True) -> dict:
    """What a key service forwards: the caller's request to it, as boto3 signs it."""
    data = json.dumps(body).encode()
    request = AWSRequest("POST", "https://kms.us-east-1.amazonaws.com/", data=data,
                         headers={"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{operation}"})
    signer = SigV4Auth(Credentials(access_key, secret), "kms", "us-east-1")
    signer.add_auth(request)
    if offset:
        moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset)
        request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
        del request.headers["Authorization"]
        request.headers.replace_header("X-Amz-Date", request.context["timestamp"])
        text = signer.string_to_sign(request, signer.canonical_request(request))
        signer._inject_signature_to_request(request, signer.signature(text, request))
    signed = request.headers["Authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    values = {name.lower(): value for name, value in request.headers.items()} | {"host": "kms.us-east-1.amazonaws.com"}
    import hashlib
    proof = {"version": 1, "method": "POST", "path": "/", "headers": [[name, values[name]] for name in signed],
             "authorization": values["authorization"], "payloadSha256": hashlib.sha256(data).hexdigest()}
    return proof | ({"body": base64.b64encode(data).decode()} if show_body else {})


def decrypt_request(nonce: str = "") -> dict:
    return {"CiphertextBlob": "AAAA" + nonce, "KeyId": KMS_KEY}


def test_without_proof_a_strict_store_refuses(strict, own):
    assert_refused(strict.raw("encrypt", strict.encrypt_body()), 403, "AccessDeniedException")
    event = own.events()[-1]
    assert event["context"]["callerProof"] == "missing" and "requires proof" in event["reason"]


def test_a_callers_own_request_is_proof(strict, own):
    sealed = strict.encrypt(operation="GenerateDataKey", holdfastCallerProof=callers_request("GenerateDataKey", {"KeyId": KMS_KEY, "KeySpec": "AES_256"}))
    assert strict.decrypt(sealed, operation="Decrypt", holdfastCallerProof=callers_request("Decrypt", decrypt_request())) == b"k" * 32
    assert own.events()[-1]["context"]["callerProof"] == "verified"
    # An Encrypt need not show its plaintext to the proxy.
    strict.encrypt(operation="Encrypt", holdfastCallerProof=callers_request("Encrypt", {"KeyId": KMS_KEY, "Plaintext": "c2VjcmV0"}, show_body=False))


def test_a_key_service_that_invents_callers(strict, own):
    sealed = strict.encrypt(operation="GenerateDataKey", holdfastCallerProof=callers_request("GenerateDataKey", {"KeyId": KMS_KEY, "n": 1}))
    good = callers_request("Decrypt", decrypt_request("BBBB"))
    attempts = {
        "not enrolled": callers_request("Decrypt", decrypt_request(), access_key="AKIABOB"),
        "signature does not match": callers_request("Decrypt", decrypt_request(), secret="a guess"),
        "another operation": callers_request("DescribeKey", {"KeyId": KMS_KEY}),
        "five minutes": callers_request("Decrypt", decrypt_request(), offset=-400),
        "does not show the body": callers_request("Decrypt", decrypt_request("CCCC"), show_body=False),
        "another key": callers_request("Decrypt", {"CiphertextBlob": "AAAA", "KeyId": KMS_KEY[:-1] + "f"}),
        "unknown version": good | {"version": 2},
        "not the one that was signed": good | {"body": base64.b64encode(json.dumps(decrypt_request("DDDD")).encode()).decode()},
    }
    for reason, proof in attempts.items():
        answer = strict.raw("decrypt", strict.decrypt_body(sealed, operation="Decrypt", holdfastCallerProof=proof))
        assert_refused(answer, 403, "AccessDeniedException")
        assert reason in own.events()[-1]["reason"], (reason, own.events()[-1])
    # Another principal under Alice's statement; the same statement twice.
    body = strict.decrypt_body(sealed, operation="Decrypt", holdfastCallerProof=good, awsPrincipalArn=BOB)
    assert_refused(strict.raw("decrypt", body), 403, "AccessDeniedException")
    assert strict.decrypt(sealed, operation="Decrypt", holdfastCallerProof=good) == b"k" * 32
    assert_refused(strict.raw("decrypt", strict.decrypt_body(sealed, operation="Decrypt", holdfastCallerProof=good)), 403, "AccessDeniedException")
    assert own.events()[-1]["reason"] == "the caller's proof was used before"


def test_checked_proof_may_be_absent_but_not_wrong(own):
    kms = Kms(own, own.add_credential("checked"))
    kms.encrypt()
    wrong = callers_request("Encrypt", {"KeyId": KMS_KEY}, secret="a guess")
    assert_refused(kms.raw("encrypt", kms.encrypt_body(operation="Encrypt", holdfastCallerProof=wrong)), 403, "AccessDeniedException")
    assert_refused(kms.raw("encrypt", kms.encrypt_body(holdfastCallerProof={"version": "x"})), 400, "ValidationException")


def test_explain(own):
    def explain(*args):
        done = own.holdfast("xks", "explain", "--state-dir", own.state, "--key-id", "orders", *args, check=False)
        return done.returncode, done.stdout.strip()
    assert explain("--store", "strict", "--principal", ALICE) == (0, 'allowed: rule "alice-and-bob"; through HSM user east')
    assert explain("--store", "strict", "--principal", "arn:aws:iam::1:user/Eve") == (3, 'denied: no rule of store "strict" allows it')
    assert explain("--store", "checked", "--principal", "AWS Internal") == (0, 'allowed: store "checked" trusts the provider; through HSM user east')
    assert explain("--store", "nowhere", "--principal", ALICE) == (3, 'denied: there is no store "nowhere"')
    file = own.directory / "policy.toml"
    offline = own.holdfast("xks", "explain", "--policy", file, "--store", "strict", "--key-id", "orders", "--principal", ALICE)
    assert offline.stdout.startswith("allowed")


HYGIENE = ["good", "leaky", "readable", "busy"]


def hygiene_policy(accept: dict) -> str:
    keys = "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\naccept = {json.dumps(accept.get(key, []))}\n' for key in HYGIENE)
    return ('version = 1\n[[stores]]\nname = "s"\npath_prefix = "/s"\nregion = "us-east-1"\nmode = "trust-provider"\n'
            f"keys = {json.dumps(HYGIENE)}\n" + keys)


def test_keys_that_the_hsm_holds_badly(tmp_path):
    softhsm = SoftHsm(tmp_path / "softhsm")
    softhsm.init_token("east")
    softhsm.aes("east", "good")
    softhsm.aes("east", "leaky", extractable=True)
    softhsm.aes("east", "readable", sensitive=False)
    softhsm.aes("east", "busy", wrap=True)
    softhsm.aes("east", "foreign")
    proxy = Proxy(tmp_path / "proxy", hsm_config(softhsm, "east", "east")).start()
    proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
    proxy.wait_for_hsm("east")
    proxy.set_policy(hygiene_policy({}))
    kms = Kms(proxy, proxy.add_credential("s"))
    kms.encrypt(key="good")
    for key, word in (("leaky", "extractable"), ("readable", "not-sensitive"), ("busy", "other-usage")):
        for operation, body in (("encrypt", kms.encrypt_body()), ("metadata", {"requestMetadata": kms.metadata()})):
            assert word in assert_refused(kms.raw(operation, body, key), 400, "InvalidStateException")
    shown = proxy.holdfast("xks", "keys", "--state-dir", proxy.state).stdout
    assert "good version 1 in east (label \"good\"): ok" in shown and "leaky version 1 in east (label \"leaky\"): refused" in shown
    assert "can use 1 keys that the policy does not name for it" in shown
    # Accepted by name, and only what is named.
    proxy.set_policy(hygiene_policy({"leaky": ["extractable", "was-extractable"], "readable": ["extractable"], "busy": ["other-usage"]}))
    kms.encrypt(key="leaky")
    kms.encrypt(key="busy")
    assert_refused(kms.raw("encrypt", kms.encrypt_body(), "readable"), 400, "InvalidStateException")
    # Said at the start as well.
    proxy.stop()
    proxy.start()
    deadline = time.monotonic() + 15
    while "a key cannot be used" not in proxy.log().read_text() or "can use keys that the policy does not name" not in proxy.log().read_text():
        assert time.monotonic() < deadline, proxy.log().read_text()
        time.sleep(0.1)
    check_end(proxy)


def test_an_hsm_user_that_can_use_more_than_its_own_keys(tmp_path):
    """With own_keys_only it is not used at all, until the other key is gone from its reach or in the policy."""
    softhsm = SoftHsm(tmp_path / "softhsm")
    softhsm.init_token("east")
    for key in ("orders", "holdfast-health", "foreign"):
        softhsm.aes("east", key)
    config = hsm_config(softhsm, "east", "east", health_key="holdfast-health") + "own_keys_only = true\n"
    proxy = Proxy(tmp_path / "proxy", config).start()
    proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
    proxy.wait_for_hsm("east")
    policy = 'version = 1\n[[stores]]\nname = "s"\nregion = "us-east-1"\nmode = "trust-provider"\nkeys = ["orders"]\n[[keys]]\nid = "orders"\nhsms = ["east"]\nlabel = "orders"\n'
    proxy.set_policy(policy)
    kms = Kms(proxy, proxy.add_credential("s"))

    def until(status: int, error: str | None, text: str = "") -> None:
        deadline = time.monotonic() + 8
        while (answer := kms.raw("encrypt", kms.encrypt_body())).status_code != status or answer.json().get("errorName") != error or text not in answer.text:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)
    until(400, "InvalidStateException", "can use 1 keys")
    proxy.set_policy(policy + '[[keys]]\nid = "foreign"\nhsms = ["east"]\nlabel = "foreign"\n')
    until(200, None)
    proxy.set_policy(policy)
    until(400, "InvalidStateException")
    softhsm.delete("east", "foreign")
    until(200, None)
    check_end(proxy)


def test_a_key_of_another_kind(tmp_path):
    softhsm = SoftHsm(tmp_path / "softhsm")
    softhsm.init_token("east")
    softhsm.aes("east", "short", bits=128)
    softhsm.aes("east", "twin")
    softhsm.aes("east", "twin")
    proxy = Proxy(tmp_path / "proxy", hsm_config(softhsm, "east", "east")).start()
    proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
    proxy.wait_for_hsm("east")
    keys = "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\n' for key in ("short", "twin"))
    proxy.set_policy('version = 1\n[[stores]]\nname = "s"\nregion = "us-east-1"\nmode = "trust-provider"\nkeys = ["short", "twin"]\n' + keys)
    kms = Kms(proxy, proxy.add_credential("s"))
    assert kms.raw("metadata", {"requestMetadata": kms.metadata()}, "short").json()["keySpec"] == "AES_128", "KMS refuses it"
    assert_refused(kms.raw("encrypt", kms.encrypt_body(), "short"), 400, "InvalidKeyUsageException")
    assert "several keys" in assert_refused(kms.raw("encrypt", kms.encrypt_body(), "twin"), 501, "UnsupportedOperationException")
    check_end(proxy)


CKS = "cks.kms.us-east-1.amazonaws.com"


def test_mutual_tls(tmp_path):
    """Subject and CA must both be right; the handshake ends on any other, by the alert that AWS's client looks for."""
    good, other = Authority(tmp_path, "good"), Authority(tmp_path, "other")
    proxy = Proxy(tmp_path / "proxy", '[[hsms]]\nname = "east"\nsoftware_insecure = true\n',
                  tls=f'client_ca_file = "{good.file}"\nclient_subjects = ["{CKS}"]').start()

    def ping(certificate):
        return requests.get(proxy.url() + "/ping", cert=certificate, verify=proxy.ca_file, timeout=5)
    assert ping(good.client(CKS)).text == "pong\n"
    for certificate in (None, good.client("somebody"), other.client(CKS), good.client(CKS, days=-1)):
        with pytest.raises(requests.ConnectionError):
            ping(certificate)
    pem, key = good.client("somebody")
    command = ["openssl", "s_client", "-connect", f"localhost:{proxy.ports['a']}", "-cert", pem, "-key", key, "-tls1_2"]
    refused = subprocess.run(command, input=b"", capture_output=True)
    assert b"handshake failure" in refused.stderr, refused.stderr
    check_end(proxy)


def test_keys_made_and_imported_in_an_hsm_by_quorum(tmp_path):
    softhsm = SoftHsm(tmp_path / "softhsm")
    softhsm.init_token("east")
    proxy = Proxy(tmp_path / "proxy", hsm_config(softhsm, "east", "east")).start()
    proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
    proxy.wait_for_hsm("east")
    proxy.change("key-create", "--key-id", "made", "--hsm", "east", "--label", "made")
    proxy.change("key-import", "--key-id", "known", "--hsm", "east", "--label", "known", secret=bytes(range(32)).hex())
    keys = "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\n' for key in ("made", "known"))
    policy = 'version = 1\n[[stores]]\nname = "s"\nregion = "us-east-1"\nmode = "trust-provider"\nkeys = ["made", "known"]\n' + keys
    proxy.set_policy(policy)
    kms = Kms(proxy, proxy.add_credential("s"))
    assert kms.decrypt(kms.encrypt(key="made", cdiv=True), key="made") == b"k" * 32
    # A key that came in could have been anywhere: it is refused until the policy accepts that of it by name.
    assert "was-extractable" in assert_refused(kms.raw("encrypt", kms.encrypt_body(), "known"), 400, "InvalidStateException")
    proxy.set_policy(policy + 'accept = ["was-extractable"]\n')
    sealed = {"ciphertext": "rn0QQSrrVdAQCePy", "authenticationTag": "poy+Gi04m2JKwC7JnEnnBg==",
              "initializationVector": base64.b64encode(bytes(range(0xA0, 0xAC))).decode()}
    assert kms.decrypt(sealed, key="known", aad=None) == b"Hello World!", "a vector under a known key, out of a real token"
    # A name is taken once.
    proposal = proxy.propose("ann", "key-create", "--key-id", "made", "--hsm", "east", "--label", "made").stdout.split()[0]
    done = proxy.decide("approve", "ben", proposal).stdout
    assert "failed" in done and "name already" in done
    check_end(proxy)

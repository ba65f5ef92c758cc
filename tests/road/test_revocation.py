"""The law: when a revocation has returned, no result that depends on what was revoked is handed out any more, not even of uses that waited.

Uses wait for a slow proxy, for a slow HSM, or for their turn with private keys; whatever has not arrived when the revocation returns must be a
refusal. A run by hand with more: `--trials 1000`. The control of the checks themselves (the same race in a build that does not look again) is in
`crates/service/src/tests.rs` and `crates/core/src/gate.rs`; here without a revocation each use is given.
"""
import base64
import contextlib
import itertools
import json
import pathlib
import random
import ssl
import subprocess
import time

import pytest
from between import Between
from botocore.awsrequest import AWSRequest
from chain import Chain, connect
from cutting import Door, Request
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, Hsm, KMS as KMS_CLIENT, ROLES
from process import b64
from proxy import Kms, Proxy, free_port
from racing import race_often
from service import REGION, allow, document, iam
from signing import sign
from softhsm import MODULE, PIN, SoftHsm

WAIT = 0.3
"""Seconds that a use may wait."""


@pytest.fixture(scope="session")
def trials(request) -> int:
    return request.config.getoption("--trials")


# The key management service: external keys behind a slow proxy, and hosted ones whose private keys are slow.


class KeyManagement:
    def __init__(self, directory: pathlib.Path, seed: int):
        port = free_port()
        (directory / "between").mkdir(parents=True)
        more = f'[[proxies]]\nendpoint = "https://localhost:{port}"\nca_file = "{directory}/between/between.pem"\n'
        chain = self.chain = Chain(directory, ["orders", "second", "spare"], more=more, limits="store_budget_ms = 5000\n")

        def prepare(proxy):
            self.between = Between(directory / "between", proxy.url(), proxy.ca_file, port, ["localhost"])
        chain.start(prepare)
        self.service, self.kms = chain.service, chain.kms
        self.store = chain.create_store("slow", XksProxyUriEndpoint=f"https://localhost:{port}")
        assert connect(self.kms, self.store)["ConnectionState"] == "CONNECTED"
        self.external, self.other = (chain.create_key(name, CustomKeyStoreId=self.store) for name in ("spare", "second"))
        self.hosted = self.kms.create_key(KeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
        self.policies = {key: self.kms.get_key_policy(KeyId=key)["Policy"] for key in (self.external, self.hosted)}
        self.kms.create_alias(AliasName="alias/race", TargetKeyId=self.external)
        self.door = Door(self.service.port, ssl.create_default_context(cafile=self.service.ca_file))
        chance = random.Random(seed)
        self.between.before = lambda path: time.sleep(chance.uniform(0, WAIT)) if path.endswith("crypt") else None

    def request(self, who: str, operation: str, **members) -> Request:
        body = json.dumps(members).encode()
        host = f"localhost:{self.service.port}"
        headers = {"Host": host, "Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService." + operation}
        asked = AWSRequest("POST", f"https://{host}/", data=body, headers=headers)
        return Request.http("POST", "/", sign(asked, *self.service.keys[who], "kms", REGION), body)

    def uses(self, who: str, key: str):
        if key == self.hosted:
            members = {"KeyId": key, "Message": "bWVzc2FnZQ==", "SigningAlgorithm": "RSASSA_PSS_SHA_512"}
            return itertools.repeat(self.request(who, "Sign", **members))
        made = [self.request(who, "Encrypt", KeyId=key, Plaintext="c2VjcmV0")]
        if not key.startswith("alias/"):
            blob = self.kms.encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
            made += [self.request(who, "Decrypt", CiphertextBlob=base64.b64encode(blob).decode())]
        return itertools.cycle(made)

    def enable(self, key: str) -> None:
        self.kms.enable_key(KeyId=key)

    def recover(self, key: str) -> None:
        self.kms.cancel_key_deletion(KeyId=key)
        self.enable(key)

    def put(self, key: str, *more: dict) -> None:
        policy = json.loads(self.policies[key])
        self.kms.put_key_policy(KeyId=key, Policy=json.dumps(policy | {"Statement": policy["Statement"] + list(more)}))

    def grant(self, key: str) -> None:
        operations = ["Sign"] if key == self.hosted else ["Encrypt", "Decrypt"]
        self.made = self.kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), RetiringPrincipal=iam("root"), Operations=operations)["GrantId"]


@pytest.fixture(scope="module")
def management(tmp_path_factory, seed):
    management = KeyManagement(tmp_path_factory.mktemp("race") / "kms", seed)
    yield management
    management.between.honest()
    withheld = [event for event in management.service.events() if event["outcome"] == "withheld"]
    management.chain.check_end()
    management.between.stop()
    assert withheld, "what was done and not told stands in the log"


@pytest.mark.parametrize("kind", ["external", "hosted"])
@pytest.mark.parametrize("way", ["nothing", "disabled", "to be deleted", "policy", "grant revoked", "grant retired"])
def test_a_key_of_the_kms(management, trials, seed, way, kind):
    it, key = management, getattr(management, kind)
    user, deny = "admin", {"Effect": "Deny", "Principal": {"AWS": iam("user/admin")}, "Action": ["kms:Encrypt", "kms:Decrypt", "kms:Sign"], "Resource": "*"}
    if way.startswith("grant"):
        user = "bob"
        it.grant(key)
    revoke = {
        "nothing": None,
        "disabled": lambda: it.kms.disable_key(KeyId=key),
        "to be deleted": lambda: it.kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7),
        "policy": lambda: it.put(key, deny),
        "grant revoked": lambda: it.kms.revoke_grant(KeyId=key, GrantId=it.made),
        "grant retired": lambda: it.kms.retire_grant(KeyId=key, GrantId=it.made),
    }[way]
    restore = {"disabled": lambda: it.enable(key), "to be deleted": lambda: it.recover(key), "policy": lambda: it.put(key)}.get(way, lambda: it.grant(key))
    race_often(it.door, trials, seed, WAIT, lambda: it.uses(user, key), revoke, restore)
    if way.startswith("grant"):
        it.kms.revoke_grant(KeyId=key, GrantId=it.made)


@pytest.mark.parametrize("way", ["disabled", "policy"])
def test_that_a_ciphertext_is_not_valid_is_a_result(management, trials, seed, way):
    it, key = management, management.external
    blob = it.kms.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext={"of": "another"})["CiphertextBlob"]
    refused = it.request("admin", "Decrypt", CiphertextBlob=base64.b64encode(blob).decode())
    deny = {"Effect": "Deny", "Principal": {"AWS": iam("user/admin")}, "Action": "kms:Decrypt", "Resource": "*"}
    revoke, restore = {"disabled": (lambda: it.kms.disable_key(KeyId=key), lambda: it.enable(key)),
                       "policy": (lambda: it.put(key, deny), lambda: it.put(key))}[way]
    race_often(it.door, trials, seed, WAIT, lambda: itertools.repeat(refused), revoke, restore,
               lambda status, body: b"InvalidCiphertextException" in body)


def test_no_grant_is_made_by_one_that_was_revoked(management, seed):
    """More are asked for than can be made at once, and the grant that allows it is revoked among them: by the numbers of the changes they end with it."""
    it, key, revoked = management, management.hosted, {}
    for trial in range(5):
        made = it.kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["CreateGrant", "Sign"], Name=f"of bob {trial}".replace(" ", "-"))["GrantId"]
        asked = [it.request("bob", "CreateGrant", KeyId=key, GranteePrincipal=iam("user/alice"), Operations=["Sign"], Name=f"late-{trial}-{n}") for n in range(16)]
        sent = asked[:6] + [it.request("admin", "RevokeGrant", KeyId=key, GrantId=made)] + asked[6:]
        with contextlib.ExitStack() as open_streams:
            streams = [open_streams.enter_context(it.door.connect()) for _ in sent]
            for stream, each in zip(streams, sent):
                stream.sendall(each.head + each.body)
            answers = [stream.recv(65536) for stream in streams]
        assert answers[6].startswith(b"HTTP/1.1 200"), answers[6]
        for grant in it.kms.list_grants(KeyId=key)["Grants"]:
            it.kms.revoke_grant(KeyId=key, GrantId=grant["GrantId"])
    changes = sorted((event for event in it.service.events() if event.get("revision") and event["operation"] in ("CreateGrant", "RevokeGrant")),
                     key=lambda event: event["revision"])
    rights, late = False, []
    for event in changes:
        if event["caller"]["oid"] == iam("user/bob"):
            late += [] if rights else [event]
        elif event["operation"] == "CreateGrant":
            rights = True
        else:
            rights = False
    assert not late, f"{len(late)} grants by one that was revoked, such as {late[0]}"


def test_an_alias_that_is_given_to_another_key(management, trials, seed):
    it = management
    race_often(it.door, trials, seed, WAIT, lambda: it.uses("admin", "alias/race"),
               lambda: it.kms.update_alias(AliasName="alias/race", TargetKeyId=it.other),
               lambda: it.kms.update_alias(AliasName="alias/race", TargetKeyId=it.external),
               lambda status, body: status == 200 and json.loads(body)["KeyId"] == it.external)


def test_a_store_that_is_disconnected(management, trials, seed):
    it = management
    race_often(it.door, trials, seed, WAIT, lambda: it.uses("admin", it.external),
               lambda: it.kms.disconnect_custom_key_store(CustomKeyStoreId=it.store), lambda: connect(it.kms, it.store))


# The Managed HSM: uses wait for their turn with private keys.


@pytest.fixture(scope="module")
def hsm(tmp_path_factory):
    hsm = Hsm(tmp_path_factory.mktemp("race") / "hsm")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    hsm.role = hsm.grant(CRYPTO_USER, KMS_CLIENT[1])
    hsm("POST", "/keys/race/create", {"kty": "RSA-HSM", "key_size": 4096})
    yield hsm
    hsm.stop()
    assert "panicked" not in hsm.log.read_text()


@pytest.mark.parametrize("way", ["nothing", "disabled", "deleted", "may sign no more", "role removed"])
def test_a_key_of_the_managed_hsm(hsm, trials, seed, way):
    door = Door(hsm.port, ssl.create_default_context(cafile=hsm.data_dir / "ca.pem"), "127.0.0.1")
    headers = {"Host": f"127.0.0.1:{hsm.port}", "Authorization": f"Bearer {hsm.token('kms')}", "Content-Type": "application/json"}
    body = json.dumps({"alg": "PS512", "value": b64(b"d" * 64)}).encode()
    request = Request.http("POST", "/keys/race/sign?api-version=7.5", headers, body)

    def operations(*names: str) -> None:
        hsm("PATCH", "/keys/race", {"key_ops": list(names)})

    def grant() -> None:
        hsm.role = hsm.grant(CRYPTO_USER, KMS_CLIENT[1])
    revoke, restore = {
        "nothing": (None, lambda: None),
        "disabled": (lambda: hsm.enable("race", False), lambda: hsm.enable("race", True)),
        "deleted": (lambda: hsm("DELETE", "/keys/race"), lambda: hsm("POST", "/deletedkeys/race/recover")),
        "may sign no more": (lambda: operations("verify"), lambda: operations("sign", "verify")),
        "role removed": (lambda: hsm("DELETE", f"{ROLES}/{hsm.role}"), grant),
    }[way]
    race_often(door, trials, seed, 0.1, lambda: itertools.repeat(request), revoke, restore, waiting=25)


# The external key store proxy: uses wait for a slow HSM.


STORE = '[[stores]]\nname = "blue"\npath_prefix = "/blue"\nregion = "us-east-1"\nmode = "trust-provider"\nrequests_per_sec = 100000\nkeys = {}\n'
KEY = '[[keys]]\nid = "{0}"\nhsms = ["east"]\nlabel = "{0}"\naccept = ["was-extractable", "extractable", "other-usage"]\n'


class SlowProxy:
    """Over a SoftHSM2 that takes its time. It has two keys, so that a policy without the one is a policy."""

    def __init__(self, directory: pathlib.Path):
        directory.mkdir()
        shim = directory / "shim.so"
        source = pathlib.Path(__file__).parents[1] / "xks" / "shim.c"
        subprocess.run(["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        softhsm = SoftHsm(directory / "softhsm")
        softhsm.init_token("east")
        for name in ("orders", "other"):
            softhsm.aes("east", name)
        self.control = directory / "control"
        self.control.write_text("")
        self.proxy = Proxy(directory / "proxy", f'[[hsms]]\nname = "east"\nmodule = "{shim}"\ntoken_label = "east"\nsessions = 16\n'
                           f'environment = {{ SOFTHSM2_CONF = "{softhsm.conf}", P11SHIM_MODULE = "{MODULE}", P11SHIM_CONTROL = "{self.control}" }}\n')
        self.proxy.start()
        self.proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
        self.proxy.wait_for_hsm("east")
        self.whole()
        self.credential = self.proxy.add_credential("blue")
        self.door = Door(int(self.proxy.url().rsplit(":", 1)[1]), ssl.create_default_context(cafile=self.proxy.ca_file))

    def whole(self, *keys: str) -> None:
        keys = keys or ("orders", "other")
        self.proxy.set_policy("version = 1\n" + STORE.format(json.dumps(keys)) + "".join(KEY.format(key) for key in keys))

    def uses(self):
        kms = Kms(self.proxy, self.credential)
        path, body = kms.path("encrypt"), json.dumps(kms.encrypt_body()).encode()
        host = self.proxy.url().removeprefix("https://")
        return itertools.repeat(Request.http("POST", path, {"Host": host} | kms.signed(path, body), body))

    def new_credential(self) -> None:
        self.credential = self.proxy.add_credential("blue")


@pytest.fixture(scope="module")
def slow_proxy(tmp_path_factory):
    slow = SlowProxy(tmp_path_factory.mktemp("race") / "xks")
    yield slow
    slow.control.write_text("")
    slow.proxy.verify_audit()
    slow.proxy.stop()
    assert "panicked" not in slow.proxy.log().read_text()


@pytest.mark.parametrize("way", ["nothing", "killed", "credential removed", "policy"])
def test_a_key_behind_the_proxy(slow_proxy, trials, seed, way):
    it, chance, state = slow_proxy, random.Random(seed), {}

    def uses():
        # Less than the budget of an HSM, which is 150 ms.
        it.control.write_text(f"sleep {chance.randrange(100_000)}")
        if way == "credential removed":
            change = ("credential-remove", "--store", "blue", "--access-key-id", it.credential.access_key)
        elif way == "policy":
            file = it.proxy.directory / "less.toml"
            file.write_text("version = 1\n" + STORE.format(["other"]).replace("'", '"') + KEY.format("other"))
            change = ("policy", file)
        else:
            return it.uses()
        state["proposal"] = it.proxy.propose("ann", *change).stdout.split()[0]
        return it.uses()

    def approve() -> None:
        assert "executed" in it.proxy.decide("approve", "ben", state["proposal"]).stdout

    revoke, restore = {
        "nothing": (None, lambda: None),
        "killed": (lambda: it.proxy.kill("--all", "--reason", "race"), lambda: it.proxy.change("lift", "--all")),
        "credential removed": (approve, it.new_credential),
        "policy": (approve, it.whole),
    }[way]
    race_often(it.door, trials, seed, 0.05, uses, revoke, restore)

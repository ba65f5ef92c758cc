"""External keys end to end: boto3 -> kms -> xks-proxy -> SoftHSM2; then every way in which the other side can fail."""
import base64
import concurrent.futures
import contextlib
import json
import os
import shutil
import threading
import time

import pytest
from between import Between
from botocore.exceptions import ClientError
from chain import Chain, connect
from proxy import Kms, free_port
from service import Service, iam, refused
from softhsm import MODULE, PIN, SoftHsm

KEYS = ["orders", "second", "spare", "encrypt-only", "gone", "proof"]
SLOW = "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry the request. " \
       "If you see this error repeatedly, report it to your external key store proxy administrator"
SLOWER = 1.6
"""Seconds that are more than the budget, which is a second here: 250 ms are too few where all of it runs on a busy machine."""
AWAY = "AWS KMS cannot communicate with the external key store proxy"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    softhsm = SoftHsm(directory / "softhsm")
    softhsm.init_token("east")
    for name in KEYS:
        softhsm.aes("east", name, decrypt=name != "encrypt-only")
    hsms = (f'[[hsms]]\nname = "east"\nmodule = "{MODULE}"\ntoken_label = "east"\nenvironment = {{ SOFTHSM2_CONF = "{softhsm.conf}" }}\n'
            'sessions = 4\nrelist_secs = 1\n')
    ports = {name: free_port() for name in ("between", "stranger", "nobody")}
    # What is in between comes up after the real proxy, whose port it must know; the KMS is told of it before.
    more = "".join(f'[[proxies]]\nendpoint = "https://localhost:{port}"\nca_file = "{directory}/{name}/between.pem"\n' for name, port in ports.items())
    for name in ports:
        (directory / name).mkdir()
    (directory / "nobody" / "between.pem").write_text("")
    chain = Chain(directory, KEYS, hsms=hsms, more=more)
    chain.softhsm, chain.ports = softhsm, ports

    def prepare(proxy):
        proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
        proxy.wait_for_hsm("east")
        for name, host in (("between", ["localhost"]), ("stranger", [])):
            made = Between(directory / name, proxy.url(), proxy.ca_file, ports[name], host)
            setattr(chain, name, made)
    chain.start(prepare)
    yield chain
    chain.check_end()
    chain.between.stop()
    chain.stranger.stop()


def through(chain, name: str, **more) -> str:
    """A store that leads through what is in between."""
    return chain.create_store(name, **{"XksProxyUriEndpoint": f"https://localhost:{chain.ports['between']}"} | more)


# A store that still has keys pending deletion stays; it is made to lead elsewhere, so that its endpoint is free.
ELSEWHERE = {"XksProxyUriEndpoint": "https://localhost:1", "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE",
             "XksProxyVpcEndpointServiceName": "com.amazonaws.vpce.us-east-1.vpce-svc-1"}


@pytest.fixture(scope="module")
def middle(chain):
    """A store through the middle with a key, for all tests that need one."""
    chain.between.honest()
    store = through(chain, "through")
    assert connect(chain.kms, store)["ConnectionState"] == "CONNECTED"
    return store, chain.create_key("spare", CustomKeyStoreId=store)


@pytest.fixture
def between(chain, middle):
    """What is in between, the store that leads through it, and its key; honest and connected until the test says otherwise."""
    yield chain.between, *middle
    chain.between.honest()
    state = chain.kms.describe_custom_key_stores(CustomKeyStoreId=middle[0])["CustomKeyStores"][0]["ConnectionState"]
    if state != "CONNECTED":
        chain.kms.disconnect_custom_key_store(CustomKeyStoreId=middle[0])
        connect(chain.kms, middle[0])


def test_reference_keys_work(chain):
    kms, key = chain.kms, chain.keys["orders"]
    metadata = kms.describe_key(KeyId=key)["KeyMetadata"]
    assert (metadata["Origin"], metadata["CustomKeyStoreId"], metadata["XksKeyConfiguration"]) == ("EXTERNAL_KEY_STORE", chain.store, {"Id": "orders"})
    assert "CurrentKeyMaterialId" not in metadata
    for size in (1, 32, 4096):
        plaintext = os.urandom(size)
        blob = kms.encrypt(KeyId=key, Plaintext=plaintext, EncryptionContext={"tenant": "blue"})["CiphertextBlob"]
        assert len(blob) <= 6144
        assert kms.decrypt(CiphertextBlob=blob, EncryptionContext={"tenant": "blue"})["Plaintext"] == plaintext
        with refused("InvalidCiphertextException"):
            kms.decrypt(CiphertextBlob=blob, EncryptionContext={"tenant": "red"})
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    kms.generate_data_key_without_plaintext(KeyId=key, KeySpec="AES_256")
    for target in (chain.keys["second"], chain.hosted[0]):
        moved = kms.re_encrypt(CiphertextBlob=made["CiphertextBlob"], DestinationKeyId=target)
        assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    for use in (lambda: kms.generate_data_key_pair(KeyId=key, KeyPairSpec="ECC_NIST_P256"), lambda: kms.rotate_key_on_demand(KeyId=key),
                lambda: kms.enable_key_rotation(KeyId=key), lambda: kms.get_key_rotation_status(KeyId=key), lambda: kms.get_public_key(KeyId=key),
                lambda: kms.get_parameters_for_import(KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"),
                lambda: kms.generate_random(NumberOfBytes=8, CustomKeyStoreId=chain.store)):
        with refused("UnsupportedOperationException"):
            use()


def test_every_byte_of_a_doubled_ciphertext_counts(chain):
    blob = chain.kms.encrypt(KeyId=chain.keys["orders"], Plaintext=b"secret")["CiphertextBlob"]
    for at in range(len(blob)):
        broken = bytearray(blob)
        broken[at] ^= 1
        try:
            chain.kms.decrypt(CiphertextBlob=bytes(broken))
        except chain.kms.exceptions.ClientError as error:
            code = error.response["Error"]["Code"]
            # A changed length or metadata byte reaches the proxy as something that it does not take.
            assert code in ("InvalidCiphertextException", "AccessDeniedException", "KMSInvalidStateException"), (at, error)
        else:
            raise AssertionError(f"byte {at} may be changed")


def test_both_logs_tell_the_same_request(chain):
    client = chain.service.client("admin")
    answer = client.encrypt(KeyId=chain.keys["orders"], Plaintext=b"x", EncryptionContext={"tenant": "blue"})
    request_id = answer["ResponseMetadata"]["RequestId"]
    ours = next(event for event in chain.service.events() if event["request_id"] == request_id)
    theirs = next(event for event in chain.proxy.events() if event.get("client_request_id") == request_id)
    assert ours["caller"]["oid"] == iam("user/admin") and ours["context"]["external-key"] == "orders"
    assert len(ours["context"]["encryption-context-sha256"]) == 64 and "blue" not in json.dumps(ours)
    assert theirs["context"]["awsPrincipalArn"] == iam("user/admin") and theirs["context"]["kmsKeyArn"] == chain.keys["orders"]
    assert theirs["context"]["kmsOperation"] == "Encrypt"


def test_what_a_reference_must_be(chain):
    for name, code in [("no-such-key", "XksKeyNotFoundException"), ("encrypt-only", "XksKeyInvalidConfigurationException"),
                       ("orders", "XksKeyAlreadyInUseException"), ("a/b", "ValidationException")]:
        with refused(code):
            chain.create_key(name)
    with refused("CustomKeyStoreNotFoundException"):
        chain.create_key("spare", CustomKeyStoreId="cks-0")
    for more in ({"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}, {"MultiRegion": True}):
        with refused("UnsupportedOperationException"):
            chain.create_key("spare", **more)


def test_stores(chain):
    kms = chain.kms
    chain.between.honest()
    with refused("CustomKeyStoreNameInUseException"):
        through(chain, "store")
    with refused("XksProxyUriInUseException"):
        chain.create_store("again")
    with refused("XksProxyUriUnreachableException"):
        chain.create_store("nowhere", XksProxyUriEndpoint="https://169.254.169.254")
    with refused("XksProxyUriUnreachableException"):
        chain.create_store("nobody", XksProxyUriEndpoint=f"https://localhost:{chain.ports['nobody']}")
    with refused("XksProxyUriUnreachableException"):
        chain.create_store("stranger", XksProxyUriEndpoint=f"https://localhost:{chain.ports['stranger']}")
    with refused("XksProxyIncorrectAuthenticationCredentialException"):
        through(chain, "wrong", XksProxyAuthenticationCredential=chain.pair(RawSecretAccessKey="a" * 43))
    with refused("XksProxyInvalidConfigurationException"):
        through(chain, "path", XksProxyUriPath="/other/kms/xks/v1")
    for more in ({"XksProxyUriEndpoint": "http://localhost:1"}, {"XksProxyUriPath": "/blue"}, {"XksProxyAuthenticationCredential": {"AccessKeyId": "short"}},
                 {"XksProxyConnectivity": "TELEPATHY"}):
        with refused("ValidationException"):
            through(chain, "bad", **more)
    chain.between.before = lambda path: (200, {"xksProxyFleetSize": 1})
    with refused("XksProxyInvalidResponseException"):
        through(chain, "odd")
    manager = {"id": "1", "model": "m", "healthStatus": "UNAVAILABLE"}
    health = {"xksProxyFleetSize": 1, "xksProxyVendor": "v", "xksProxyModel": "m", "ekmVendor": "e", "ekmFleetDetails": [manager]}
    chain.between.before = lambda path: (200, health)
    with refused("XksProxyUriUnreachableException"):
        through(chain, "ill")
    chain.between.slow(SLOWER)
    with refused("XksProxyUriUnreachableException"):
        through(chain, "slow")
    chain.between.honest()
    store = through(chain, "good")
    entry = kms.describe_custom_key_stores(CustomKeyStoreName="good")["CustomKeyStores"][0]
    assert (entry["CustomKeyStoreId"], entry["ConnectionState"], entry["CustomKeyStoreType"]) == (store, "DISCONNECTED", "EXTERNAL_KEY_STORE")
    assert entry["XksProxyConfiguration"]["AccessKeyId"] == chain.credential.access_key and chain.credential.secret not in json.dumps(entry, default=str)
    with refused("CustomKeyStoreInvalidStateException"):
        chain.create_key("gone", CustomKeyStoreId=store)
    with refused("CustomKeyStoreInvalidStateException"):
        kms.delete_custom_key_store(CustomKeyStoreId=chain.store)
    assert connect(kms, store)["ConnectionState"] == "CONNECTED"
    with refused("CustomKeyStoreInvalidStateException"):
        kms.connect_custom_key_store(CustomKeyStoreId=store)
    with refused("CustomKeyStoreInvalidStateException"):
        kms.update_custom_key_store(CustomKeyStoreId=store, XksProxyUriEndpoint=chain.proxy.url())
    with refused("XksProxyIncorrectAuthenticationCredentialException"):
        kms.update_custom_key_store(CustomKeyStoreId=store, XksProxyAuthenticationCredential=chain.pair(RawSecretAccessKey="b" * 43))
    # The credential is replaced without an outage.
    fresh = chain.proxy.add_credential("blue")
    kms.update_custom_key_store(CustomKeyStoreId=store, NewCustomKeyStoreName="better",
                                XksProxyAuthenticationCredential={"AccessKeyId": fresh.access_key, "RawSecretAccessKey": fresh.secret})
    key = chain.create_key("gone", CustomKeyStoreId=store)
    kms.encrypt(KeyId=key, Plaintext=b"x")
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    kms.disconnect_custom_key_store(CustomKeyStoreId=store)
    with refused("CustomKeyStoreHasCMKsException"):
        kms.delete_custom_key_store(CustomKeyStoreId=store)
    with refused("CustomKeyStoreNotFoundException"):
        kms.describe_custom_key_stores(CustomKeyStoreId="cks-0")
    kms.update_custom_key_store(CustomKeyStoreId=store, **ELSEWHERE)
    empty = through(chain, "empty")
    kms.delete_custom_key_store(CustomKeyStoreId=empty)
    with refused("CustomKeyStoreNotFoundException"):
        kms.delete_custom_key_store(CustomKeyStoreId=empty)


def test_disconnect_takes_effect_at_once_and_lasts(chain, between):
    middle, store, key = between
    kms = chain.kms
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    for _ in range(3):
        kms.disconnect_custom_key_store(CustomKeyStoreId=store)
    asked = len(middle.seen)
    for _ in range(2):
        assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Unavailable"
        for use in (lambda: kms.decrypt(CiphertextBlob=blob), lambda: kms.encrypt(KeyId=key, Plaintext=b"x")):
            with refused("KMSInvalidStateException"):
                use()
        chain.service.restart(9)
    assert len(middle.seen) == asked, "nothing more was asked of the proxy"
    assert connect(kms, store)["ConnectionState"] == "CONNECTED"
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    chain.service.restart(9)
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x", "it comes back as it was"


def test_one_external_key_serves_one_key_of_a_store(chain, between):
    """Two at once, as a rule both looked up at the proxy before either is made."""
    middle, store, _ = between
    both = threading.Barrier(2)

    def together(path):
        if path.endswith("/metadata"):
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.1)

    def create():
        try:
            return chain.create_key("second", CustomKeyStoreId=store)
        except ClientError as error:
            return error.response["Error"]["Code"]

    middle.before = together
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(create), pool.submit(create)]]
    assert sorted(found)[0] == "XksKeyAlreadyInUseException" and sorted(found)[1].startswith("arn:"), found


@pytest.mark.parametrize(("before", "code", "words", "connection"), [
    (lambda path: time.sleep(SLOWER), "KMSInvalidStateException", SLOW, "XKS_PROXY_TIMED_OUT"),
    (lambda path: (503, {"errorName": "DependencyTimeoutException"}), "KMSInvalidStateException", SLOW, "XKS_PROXY_TIMED_OUT"),
    (lambda path: (401, {"errorName": "AuthenticationFailedException"}), "KMSInvalidStateException", "credential", "INVALID_CREDENTIALS"),
    (lambda path: (403, {"errorName": "AccessDeniedException"}), "KMSInvalidStateException", "denied access", "XKS_PROXY_ACCESS_DENIED"),
    (lambda path: (404, {"errorName": "InvalidUriPathException"}), "KMSInvalidStateException", "URI path", "XKS_PROXY_INVALID_CONFIGURATION"),
    (lambda path: (404, {"errorName": "KeyNotFoundException"}), "KMSInvalidStateException", "does not find", "XKS_PROXY_INVALID_RESPONSE"),
    (lambda path: (400, {"errorName": "InvalidStateException"}), "KMSInvalidStateException", "is disabled", "XKS_PROXY_INVALID_RESPONSE"),
    (lambda path: (429, {"errorName": "ThrottlingException"}), "KMSInvalidStateException", "very high request rate", "XKS_PROXY_NOT_REACHABLE"),
    (lambda path: (500, {"errorName": "InternalException", "errorMessage": "tell nobody"}), "KMSInvalidStateException", "interpret", "XKS_PROXY_INVALID_RESPONSE"),
    (lambda path: (200, b"<html>"), "KMSInvalidStateException", "interpret", "XKS_PROXY_INVALID_RESPONSE"),
    (lambda path: (302, b""), "KMSInvalidStateException", "interpret", "XKS_PROXY_INVALID_RESPONSE"),
    (lambda path: (200, b"x" * 1_000_000), "KMSInvalidStateException", "interpret", "XKS_PROXY_INVALID_RESPONSE"),
])
def test_each_failure_has_its_exception(chain, between, before, code, words, connection):
    middle, store, key = between
    kms = chain.kms
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    middle.before = before
    for use in (lambda: kms.encrypt(KeyId=key, Plaintext=b"x"), lambda: kms.decrypt(CiphertextBlob=blob), lambda: kms.generate_data_key(KeyId=key, KeySpec="AES_256")):
        with refused(code) as error:
            use()
        assert words in error.message and "tell nobody" not in error.message, error.message
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Enabled", "a proxy that fails does not change the key"
    # A hosted key does not notice.
    assert kms.encrypt(KeyId=chain.hosted[0], Plaintext=b"x")
    kms.disconnect_custom_key_store(CustomKeyStoreId=store)
    entry = connect(kms, store)
    assert (entry["ConnectionState"], entry["ConnectionErrorCode"]) == ("FAILED", connection)
    with refused("CustomKeyStoreInvalidStateException"):
        kms.connect_custom_key_store(CustomKeyStoreId=store)
    kms.disconnect_custom_key_store(CustomKeyStoreId=store)
    middle.honest()
    assert connect(kms, store)["ConnectionState"] == "CONNECTED"
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"


def flip(name: str):
    def change(path, status, answer):
        if name in answer:
            value = bytearray(base64.b64decode(answer[name]) or b"\0")
            value[0] ^= 1
            answer[name] = base64.b64encode(bytes(value)).decode()
        return status, answer
    return change


def put(name: str, value):
    def change(path, status, answer):
        if path.endswith("/encrypt"):
            answer[name] = value
        return status, {key: found for key, found in answer.items() if found is not None}
    return change


@pytest.mark.parametrize("change", [
    flip("ciphertext"), flip("initializationVector"), flip("authenticationTag"), flip("ciphertextMetadata"), flip("ciphertextDataIntegrityValue"),
    put("ciphertextDataIntegrityValue", None), put("ciphertext", ""), put("initializationVector", base64.b64encode(bytes(11)).decode()),
    put("authenticationTag", "!"), put("ciphertextMetadata", base64.b64encode(bytes(21)).decode()),
])
def test_a_proxy_that_lies_loses_no_data(chain, between, change):
    middle, _, key = between
    middle.change = change
    with refused("KMSInvalidStateException") as error:
        chain.kms.encrypt(KeyId=key, Plaintext=b"x")
    assert "interpret" in error.message
    middle.honest()
    blob = chain.kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    middle.change = flip("plaintext")
    with refused("InvalidCiphertextException"):
        chain.kms.decrypt(CiphertextBlob=blob)
    middle.change = lambda path, status, answer: (status, {"plaintext": ""})
    with refused("KMSInvalidStateException"):
        chain.kms.decrypt(CiphertextBlob=blob)
    middle.honest()
    assert chain.kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"


def test_what_the_proxy_sees_is_no_plaintext(chain, between):
    middle, _, key = between
    del middle.seen[:]
    plaintext = b"not to be seen by anybody in between"
    blob = chain.kms.encrypt(KeyId=key, Plaintext=plaintext, EncryptionContext={"a": "b"})["CiphertextBlob"]
    chain.kms.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "b"})
    encrypt, decrypt = middle.seen
    sent = base64.b64decode(encrypt[1]["plaintext"])
    assert plaintext not in sent and len(sent) <= len(plaintext) + 204
    assert encrypt[1]["additionalAuthenticatedData"] == decrypt[1]["additionalAuthenticatedData"]
    assert encrypt[1]["ciphertextDataIntegrityValueAlgorithm"] == "SHA_256"
    assert decrypt[1]["requestMetadata"]["kmsOperation"] == "Decrypt"


def test_keys_taken_away_in_the_hsm(chain):
    kms, key = chain.kms, chain.keys["second"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    chain.proxy.kill("--key-id", "second")
    with refused("KMSInvalidStateException"):
        kms.decrypt(CiphertextBlob=blob)
    chain.proxy.change("lift", "--key-id", "second")
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    chain.softhsm.delete("east", "second")
    deadline = time.monotonic() + 10
    while True:
        try:
            kms.decrypt(CiphertextBlob=blob)
        except kms.exceptions.ClientError as error:
            if "does not find" in error.response["Error"]["Message"]:
                assert error.response["Error"]["Code"] == "KMSInvalidStateException"
                break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # What needs no proxy still goes.
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)


def test_the_proxy_goes_away_and_comes_back(chain):
    kms, key = chain.kms, chain.keys["orders"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    chain.proxy.stop("a", 9)
    for _ in range(10):
        with refused("KMSInvalidStateException") as error:
            kms.decrypt(CiphertextBlob=blob)
        assert AWAY in error.message
    assert kms.describe_custom_key_stores(CustomKeyStoreId=chain.store)["CustomKeyStores"][0]["ConnectionState"] == "CONNECTED"
    chain.service.restart(9)
    assert kms.encrypt(KeyId=chain.hosted[0], Plaintext=b"x"), "a proxy that is away does not keep the service from starting"
    chain.proxy.start("a")
    chain.proxy.wait_for_hsm("east")
    deadline = time.monotonic() + 10
    while True:
        try:
            assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
            break
        except kms.exceptions.ClientError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_two_thousand_wait_without_a_thread_each(chain, between):
    """A slow proxy holds nobody else up, and requests that wait for it hold no thread."""
    middle, _, key = between
    pid = chain.service.process.pid
    threads = lambda: len(os.listdir(f"/proc/{pid}/task"))
    before = threads()
    middle.slow(0.15)
    client = chain.service.client("admin", max_pool_connections=64)
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        waiting = [pool.submit(client.encrypt, KeyId=key, Plaintext=b"x") for _ in range(128)]
        for _ in range(20):
            chain.kms.encrypt(KeyId=chain.hosted[0], Plaintext=b"x")
        most = threads()
        for future in waiting:
            try:
                future.result()
            except chain.kms.exceptions.ClientError as error:
                assert error.response["Error"]["Code"] == "KMSInvalidStateException", error
    assert most <= before + 2, (before, most)


@pytest.mark.parametrize("way", ["nothing", "disabled", "disconnected"])
@pytest.mark.parametrize("use", ["encrypt", "decrypt", "generate_data_key"])
def test_a_use_that_waits_for_the_proxy_does_not_outlive_its_key(chain, between, use, way):
    """The key is taken out of use while the other side has the request: no result is given. The control: with nothing done there is one."""
    middle, store, key = between
    blob = chain.kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    arguments = {"encrypt": {"KeyId": key, "Plaintext": b"x"}, "decrypt": {"CiphertextBlob": blob}, "generate_data_key": {"KeyId": key, "KeySpec": "AES_256"}}[use]
    came, go = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if path.endswith("crypt"):
            came.set()
            go.wait(5)

    middle.before = hold
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(getattr(chain.kms, use), **arguments)
        assert came.wait(5)
        if way == "disabled":
            chain.kms.disable_key(KeyId=key)
        elif way == "disconnected":
            chain.kms.disconnect_custom_key_store(CustomKeyStoreId=store)
        go.set()
        middle.honest()
        try:
            if way == "nothing":
                assert waiting.result()["KeyId"] == key
            else:
                with refused("DisabledException" if way == "disabled" else "KMSInvalidStateException"):
                    waiting.result()
        finally:
            if way == "disabled":
                chain.kms.enable_key(KeyId=key)
            elif way == "disconnected":
                assert connect(chain.kms, store)["ConnectionState"] == "CONNECTED"


def test_neither_side_alone_can_read(tmp_path):
    """With the KMS's whole disk and its silicon but no HSM, and with the HSM but no KMS: nothing."""
    chain = Chain(tmp_path / "one", ["orders", "other"]).start()
    plaintext = b"neither of them alone"
    blob = chain.kms.encrypt(KeyId=chain.keys["orders"], Plaintext=plaintext)["CiphertextBlob"]
    # The KMS's operator: everything that is the KMS's, and a proxy of his own with a key of the same name.
    chain.service.stop()
    chain.proxy.stop()
    thief = Chain(tmp_path / "two", ["orders", "other"])
    thief.proxy.ports, thief.proxy.metrics = chain.proxy.ports, chain.proxy.metrics
    thief.proxy.start()
    for name in thief.names:
        thief.proxy.change("key-create", "--key-id", name, "--hsm", "east", "--label", name)
    thief.proxy.set_policy(thief.policy)
    shutil.copy(thief.proxy.ca_file, chain.proxy.ca_file)
    credential = thief.proxy.add_credential("blue")
    chain.service.start()
    chain.kms.update_custom_key_store(CustomKeyStoreId=chain.store, XksProxyAuthenticationCredential={
        "AccessKeyId": credential.access_key, "RawSecretAccessKey": credential.secret})
    assert chain.kms.encrypt(KeyId=chain.keys["orders"], Plaintext=b"his own works")
    with refused("InvalidCiphertextException"):
        chain.kms.decrypt(CiphertextBlob=blob)
    thief.proxy.stop()
    chain.service.stop()
    # The HSM's owner: the key, and the outer layer taken off with it; what is inside is the KMS's.
    chain.proxy.start()
    owner = Kms(chain.proxy, chain.credential, key="orders")
    outer = blob[38:]
    iv_len = outer[0]
    iv, tag = outer[1:1 + iv_len], outer[1 + iv_len:17 + iv_len]
    metadata_len = outer[17 + iv_len]
    metadata, ciphertext = outer[18 + iv_len:18 + iv_len + metadata_len], outer[18 + iv_len + metadata_len:]
    b64 = lambda data: base64.b64encode(data).decode()
    sealed = {"ciphertext": b64(ciphertext), "initializationVector": b64(iv), "authenticationTag": b64(tag), "ciphertextMetadata": b64(metadata)}
    inner = owner.decrypt(sealed, aad=None)
    assert plaintext not in inner and len(inner) == len(plaintext) + 44, "salt, nonce and tag of a layer that is not his"
    # Both together.
    chain.service.start()
    chain.kms.update_custom_key_store(CustomKeyStoreId=chain.store, XksProxyAuthenticationCredential=chain.pair())
    assert chain.kms.decrypt(CiphertextBlob=blob)["Plaintext"] == plaintext
    chain.check_end()


def test_a_kms_that_invents_callers_is_refused(tmp_path):
    """The proxy sees the original caller's own signature, and takes nobody's word for it."""
    chain = Chain(tmp_path / "proof", ["orders", "other"], proof="required")
    names = {"root": iam("root"), "alice": iam("user/alice")}
    chain.proxy.start()
    for name in chain.names:
        chain.proxy.change("key-create", "--key-id", name, "--hsm", "east", "--label", name)
    chain.proxy.set_policy(chain.policy)
    chain.credential = chain.proxy.add_credential("blue")
    chain.service = Service(chain.directory / "kms", chain.service_more, chain.limits).start()
    chain.kms = chain.service.client("root")
    for name, arn in names.items():
        access_key, secret = chain.service.keys[name]
        chain.proxy.change("caller-add", "--principal", arn, "--access-key-id", access_key, secret=secret)
    chain.store = chain.create_store("store")
    assert connect(chain.kms, chain.store)["ConnectionState"] == "CONNECTED"
    key = chain.create_key("orders")
    blob = chain.kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert chain.kms.decrypt(CiphertextBlob=blob, KeyId=key)["Plaintext"] == b"x"
    alice = chain.service.client("alice")
    assert alice.decrypt(CiphertextBlob=blob, KeyId=key)["Plaintext"] == b"x", "somebody else who is enrolled"
    # Somebody whom the KMS knows, and the proxy does not: his request is real, and not one of an enrolled caller.
    with refused("KMSInvalidStateException") as error:
        chain.service.client("admin").decrypt(CiphertextBlob=blob, KeyId=key)
    assert "denied access" in error.message
    # A KMS gone bad holds the store's credential, and says what it likes.
    liar = Kms(chain.proxy, chain.credential, key="orders")
    for metadata in ({}, {"awsPrincipalArn": iam("user/alice")}):
        answer = liar.raw("encrypt", liar.encrypt_body(**metadata))
        assert (answer.status_code, answer.json()["errorName"]) == (403, "AccessDeniedException"), answer.text
    chain.check_end()


"""Real faults: a token taken away, an HSM that is slow, hangs, breaks or dies, sessions used up, a process killed.

The client sees throttling or a dependency error within 250 ms, and full service returns by itself."""
import concurrent.futures
import pathlib
import signal
import subprocess
import time

import pytest
import requests
from conftest import POLICY, check_end, hsm_config, keys_of
from proxy import Kms, Proxy
from softhsm import MODULE, PIN, SoftHsm

# From the client's side, connection and Python included.
ANSWER_SECONDS = 0.25
DEPENDENCY = {(503, "DependencyTimeoutException"), (429, "ThrottlingException")}


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> pathlib.Path:
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = pathlib.Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Bench:
    """Two tokens with the same keys behind shims, one proxy."""

    def __init__(self, directory: pathlib.Path, shim: pathlib.Path, *names: str, limits: str = "", **options):
        self.names = names
        self.softhsm = {name: SoftHsm(directory / name) for name in names}
        self.control = {name: directory / f"{name}.control" for name in names}
        hsms = ""
        for name in names:
            hsm = self.softhsm[name]
            hsm.init_token(name)
            # The same value in both: what a cluster of HSMs does by itself.
            hsm._run("key = bytes(range(32))\nfor label in ('orders', 'other'):\n"
                     "    session.create_object({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES, Attribute.VALUE: key,\n"
                     "      Attribute.LABEL: label, Attribute.TOKEN: True, Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False,\n"
                     "      Attribute.ENCRYPT: True, Attribute.DECRYPT: True, Attribute.WRAP: False, Attribute.UNWRAP: False, Attribute.SIGN: False, Attribute.VERIFY: False})",
                     name, PIN)
            self.tell(name, "")
            environment = f', P11SHIM_MODULE = "{MODULE}", P11SHIM_CONTROL = "{self.control[name]}"'
            hsms += hsm_config(hsm, name, name, module=str(shim), environment=environment, **options)
        self.proxy = Proxy(directory / "proxy", hsms, limits=limits)
        self.proxy.start()
        for name in names:
            self.proxy.change("hsm-pin", "--hsm", name, secret=PIN)
        for name in names:
            self.proxy.wait_for_hsm(name)
        self.proxy.set_policy(POLICY + keys_of(*names, accept=("was-extractable",)))
        self.kms = Kms(self.proxy, self.proxy.add_credential("blue"))

    def tell(self, name: str, line: str) -> None:
        replacement = self.control[name].with_suffix(".new")
        replacement.write_text(line)
        replacement.rename(self.control[name])

    def timed(self, body: dict | None = None):
        start = time.monotonic()
        answer = self.kms.raw("encrypt", body or self.kms.encrypt_body())
        return answer, time.monotonic() - start

    def outcome(self):
        """(status, error name); and that it came in time. A machine that stalls as a whole is given two more chances."""
        for _ in range(3):
            answer, elapsed = self.timed()
            if elapsed < ANSWER_SECONDS:
                return answer.status_code, answer.json().get("errorName")
        raise AssertionError((elapsed, answer.status_code, answer.text))

    def returns(self, seconds: float = 15) -> None:
        """Full service is back by itself."""
        deadline = time.monotonic() + seconds
        while True:
            answer, elapsed = self.timed()
            if answer.status_code == 200:
                break
            assert (answer.status_code, answer.json()["errorName"]) in DEPENDENCY, answer.text
            assert time.monotonic() < deadline, (answer.status_code, answer.text)
            time.sleep(0.05)
        for _ in range(20):
            assert self.kms.decrypt(self.kms.encrypt(cdiv=True)) == b"k" * 32


@pytest.fixture(scope="module")
def bench(shim, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"), shim, "one")
    yield bench
    check_end(bench.proxy)


@pytest.fixture(autouse=True)
def warm(request):
    """A kept connection, as AWS KMS has one."""
    if "bench" in request.fixturenames:
        bench = request.getfixturevalue("bench")
        bench.returns()
        yield
        bench.tell("one", "")
        bench.returns()
    else:
        yield


def test_a_token_that_is_taken_away_and_brought_back(bench):
    tokens = bench.softhsm["one"].tokens
    away = tokens.with_name("away")
    tokens.rename(away)
    try:
        outcomes = set()
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            outcomes.add(bench.outcome())
            time.sleep(0.05)
        # As long as the library has the key in its memory it serves; then it is a dependency error, never "no such key".
        assert outcomes <= DEPENDENCY | {(200, None)}, outcomes
        assert outcomes & DEPENDENCY, outcomes
    finally:
        away.rename(tokens)
    bench.returns()


def test_an_hsm_that_is_slow(bench):
    bench.tell("one", "sleep 20000")
    assert bench.outcome() == (200, None)
    bench.tell("one", "sleep 400000")
    assert bench.outcome() in DEPENDENCY


def test_an_hsm_that_hangs(bench):
    bench.tell("one", "hang")
    for _ in range(8):
        assert bench.outcome() in DEPENDENCY
    # All sessions hang for longer than hang_secs: the library's process is killed, and a new one finds the HSM well.
    bench.tell("one", "")
    bench.returns()
    assert bench.proxy.metric("holdfast_hsm_host_starts_total", hsm="one") >= 1


def test_a_library_that_hangs_for_good_is_replaced(bench):
    before = bench.proxy.metric("holdfast_hsm_host_starts_total", hsm="one")
    bench.tell("one", "hang")
    for _ in range(6):
        assert bench.outcome() in DEPENDENCY
    bench.proxy.wait_for_hsm("one", "UNAVAILABLE", seconds=8)
    bench.tell("one", "")
    bench.returns()
    assert bench.proxy.metric("holdfast_hsm_host_starts_total", hsm="one") > before


def test_a_library_that_dies_in_the_middle_of_a_call(bench):
    bench.tell("one", "die")
    assert bench.outcome() in DEPENDENCY
    assert bench.outcome() in DEPENDENCY
    bench.tell("one", "")
    bench.returns()


@pytest.mark.parametrize("code, name", [(0x30, "CKR_DEVICE_ERROR"), (0x32, "CKR_DEVICE_REMOVED"), (0xB3, "CKR_SESSION_HANDLE_INVALID"), (0x101, "CKR_USER_NOT_LOGGED_IN"), (0x5, "CKR_GENERAL_ERROR")])
def test_an_hsm_that_breaks(bench, code, name):
    bench.tell("one", f"fail {code}")
    assert bench.outcome() in DEPENDENCY, name


def test_sessions_used_up(bench):
    """Four sessions and a queue of 64: what is more is throttled at once, and what waits too long is told so."""
    bench.tell("one", "sleep 60000")
    answers = [answer for _ in range(3) for answer in bench.kms.all_at_once("encrypt", [bench.kms.encrypt_body() for _ in range(100)])]
    outcomes = {(status, answer.get("errorName")) for status, answer in answers}
    assert outcomes == DEPENDENCY | {(200, None)}
    bench.tell("one", "")
    bench.returns()
    time.sleep(1.2)
    throttled = [event for event in bench.proxy.events() if event["operation"] == "Throttled"]
    assert throttled and sum(int(event["context"]["count"]) for event in throttled) == sum(status == 429 for status, _ in answers)


def test_a_key_that_is_deleted_or_changed_in_the_hsm_is_noticed(bench):
    hsm = bench.softhsm["one"]
    hsm.set_usage("one", "other", decrypt=False)
    sealed = bench.kms.encrypt(key="other")
    deadline = time.monotonic() + 5
    while (answer := bench.kms.raw("decrypt", bench.kms.decrypt_body(sealed), "other")).status_code == 200:
        assert time.monotonic() < deadline, "relist_secs is 2"
        time.sleep(0.1)
    assert answer.json()["errorName"] == "InvalidKeyUsageException"
    hsm.delete("one", "other")
    deadline = time.monotonic() + 5
    while (answer := bench.kms.raw("encrypt", bench.kms.encrypt_body(), "other")).status_code == 200:
        assert time.monotonic() < deadline, "relist_secs is 2"
        time.sleep(0.1)
    assert answer.json()["errorName"] == "KeyNotFoundException", answer.text


def test_two_hsms_stand_in_for_each_other(shim, tmp_path):
    bench = Bench(tmp_path, shim, "one", "two")
    assert bench.kms.decrypt(bench.kms.encrypt()) == b"k" * 32
    for line in ("sleep 400000", "die", "fail 48"):
        bench.tell("one", line)
        for _ in range(10):
            assert bench.outcome() == (200, None), line
        bench.tell("one", "")
        bench.proxy.wait_for_hsm("one")
    bench.tell("one", "hang")
    assert bench.outcome() == (200, None)
    health = bench.kms.raw("health", {"requestMetadata": bench.kms.metadata("KmsHealthCheck")}).json()["ekmFleetDetails"]
    assert [entry["id"] for entry in health] == ["one", "two"]
    bench.tell("two", "hang")
    assert bench.outcome() in DEPENDENCY
    # A key that only the one that is away may have is not "not found".
    bench.tell("two", "")
    bench.softhsm["two"].delete("two", "other")
    deadline = time.monotonic() + 8
    while (answer := bench.kms.raw("encrypt", bench.kms.encrypt_body(), "other")).status_code == 200 or answer.json()["errorName"] == "InvalidStateException":
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    assert (answer.status_code, answer.json()["errorName"]) in DEPENDENCY, answer.text
    bench.tell("one", "")
    bench.tell("two", "")
    bench.returns()
    served = {event["context"].get("hsm") for event in bench.proxy.events() if event["operation"] == "Encrypt"}
    assert served >= {"one", "two"}
    check_end(bench.proxy)


def test_a_wrong_pin_is_not_tried_again(shim, tmp_path):
    softhsm = SoftHsm(tmp_path / "softhsm")
    softhsm.init_token("east")
    softhsm.aes("east", "orders")
    proxy = Proxy(tmp_path / "proxy", hsm_config(softhsm, "east", "east"))
    proxy.start()
    assert proxy.status()["hsms"]["east"]["detail"] == "no PIN has been entered"
    proxy.change("hsm-pin", "--hsm", "east", secret="0000")
    deadline = time.monotonic() + 10
    while "PIN_INCORRECT" not in (detail := proxy.status()["hsms"]["east"]["detail"]):
        assert time.monotonic() < deadline, detail
        time.sleep(0.05)
    starts = proxy.metric("holdfast_hsm_host_starts_total", hsm="east")
    time.sleep(2)
    assert proxy.metric("holdfast_hsm_host_starts_total", hsm="east") == starts, "it would lock the token"
    proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
    proxy.wait_for_hsm("east")
    check_end(proxy)


def test_a_second_process_is_killed(softhsm, tmp_path):
    proxy = Proxy(tmp_path, '[[hsms]]\nname = "east"\nsoftware_insecure = true\n')
    proxy.start("a")
    proxy.start("b")
    for key in ("orders", "other"):
        proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key)
    proxy.set_policy(POLICY + keys_of("east"))
    credential = proxy.add_credential("blue")
    first, second = Kms(proxy, credential, process="a"), Kms(proxy, credential, process="b")
    sealed = first.encrypt(b"shared")
    # It may know neither the store (404) nor its credential (401) yet.
    deadline = time.monotonic() + 5
    while (answer := second.raw("decrypt", second.decrypt_body(sealed))).status_code in (401, 404):
        assert time.monotonic() < deadline, f"policy and credential reach the other process within a moment: {answer.text}"
        time.sleep(0.01)
    assert second.decrypt(sealed) == b"shared", "processes share keys and credentials"
    time.sleep(1.1)
    health = {"requestMetadata": first.metadata("KmsHealthCheck")}
    assert first.raw("health", health).json()["xksProxyFleetSize"] == 2
    proxy.stop("b", signal.SIGKILL)
    for _ in range(50):
        assert first.decrypt(sealed) == b"shared"
    with pytest.raises(requests.ConnectionError):
        second.raw("health", health)
    time.sleep(1.1)
    assert first.raw("health", health).json()["xksProxyFleetSize"] == 1
    proxy.start("b")
    assert Kms(proxy, credential, process="b").decrypt(sealed) == b"shared"
    # The name is taken while it lives.
    again = proxy.holdfast("xks", "serve", "--config", proxy.directory / "b.toml", check=False)
    assert again.returncode != 0
    check_end(proxy)


def test_a_store_has_a_quota_of_its_own(tmp_path):
    """What is over it is throttled at once, counted once, and does not touch another store."""
    proxy = Proxy(tmp_path, '[[hsms]]\nname = "east"\nsoftware_insecure = true\n').start()
    for key in ("orders", "other"):
        proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key)
    proxy.set_policy((POLICY + keys_of("east")).replace("requests_per_sec = 100000", "requests_per_sec = 1", 1))
    blue, green = Kms(proxy, proxy.add_credential("blue")), Kms(proxy, proxy.add_credential("green"), key="other")
    answers = [blue.raw("encrypt", blue.encrypt_body()) for _ in range(60)]
    throttled = [answer for answer in answers if answer.status_code == 429]
    assert 20 < len(throttled) < 40, "32 may come at once"
    assert all(answer.json()["errorName"] == "ThrottlingException" and answer.headers["Retry-After"] for answer in throttled)
    assert green.encrypt()
    time.sleep(1.3)
    events = [event for event in proxy.events() if event["operation"] == "Throttled"]
    assert sum(int(event["context"]["count"]) for event in events) == len(throttled)
    assert proxy.metric("holdfast_external_key_store_throttle_total", store="blue") == len(throttled)
    check_end(proxy)

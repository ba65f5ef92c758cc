"""Changes by quorum, and the kill switch: one person can pull the plug, and only a quorum can put it back."""
import json
import re
import subprocess
import threading
import time

import pytest
from conftest import POLICY, check_end, keys_of
from proxy import Kms, Proxy, assert_refused

SOFT = '[[hsms]]\nname = "east"\nsoftware_insecure = true\n'


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A proxy of its own, with two processes."""
    proxy = Proxy(tmp_path_factory.mktemp("quorum"), SOFT)
    proxy.start("a")
    proxy.start("b")
    for key in ("orders", "other"):
        proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key)
    proxy.set_policy(POLICY + keys_of("east"))
    yield proxy
    check_end(proxy)


@pytest.fixture(scope="module")
def kms(own):
    credential = own.add_credential("blue")
    pair = [Kms(own, credential, process="a"), Kms(own, credential, process="b")]
    deadline = time.monotonic() + 2
    while pair[1].raw("encrypt", pair[1].encrypt_body()).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pair


def events(proxy, operation):
    found = [event for process in proxy.ports for event in proxy.events(process) if event["operation"] == operation]
    return sorted(found, key=lambda event: event["time"])


def test_one_operator_alone_changes_nothing(own, kms):
    before = own.holdfast("xks", "policy", "--state-dir", own.state).stdout
    file = own.directory / "wide-open.toml"
    file.write_text(before.replace('mode = "patterns"', 'mode = "trust-provider"'))
    done = own.propose("ann", "policy", file).stdout
    proposal = done.split()[0]
    assert "open" in done and "1 of 2" in done
    # Saying it twice is saying it once.
    assert "1 of 2" in own.decide("approve", "ann", proposal).stdout
    assert own.holdfast("xks", "policy", "--state-dir", own.state).stdout == before
    assert_refused(kms[0].raw("encrypt", kms[0].encrypt_body(awsPrincipalArn="AWS Internal")), 403, "AccessDeniedException")
    # Nor can ann speak with another's voice.
    forged = own.decide("approve", "ben", proposal, key="ann", check=False)
    assert forged.returncode == 3 and "signature" in forged.stderr
    assert events(own, "QuorumApprove")[-1]["outcome"] == "denied"
    assert "rejected" in own.decide("reject", "ben", proposal).stdout + own.decide("reject", "cat", proposal, check=False).stdout
    too_late = own.decide("approve", "ben", proposal, check=False)
    assert too_late.returncode != 0 and "decided already" in too_late.stderr


def test_approvals_carry_out_exactly_once(own):
    proposal = own.propose("ann", "key-create", "--key-id", "fresh", "--hsm", "east", "--label", "fresh").stdout.split()[0]
    results = []
    threads = [threading.Thread(target=lambda who=who: results.append(own.decide("approve", who, proposal, check=False))) for who in ("ben", "cat")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    shown = own.holdfast("quorum", "show", "--state-dir", own.state, "--json", proposal).stdout
    assert json.loads(shown)["status"] == "executed"
    executed = [event for event in events(own, "QuorumExecute") if event["context"]["proposal"] == proposal]
    assert [event["outcome"] for event in executed] == ["allowed"]


def control_socket(proxy, process="a"):
    return (proxy.state / "processes" / process / "admin-socket.path").read_text()


def ask(proxy, request: dict) -> dict:
    import socket
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(control_socket(proxy))
        stream.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(stream.makefile().readlines()[-1])


def sign(proxy, operator: str, statement: bytes) -> str:
    file = proxy.directory / "statement.bin"
    file.write_bytes(statement)
    done = subprocess.run(["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", proxy.keys[operator], "-in", file], capture_output=True, check=True)
    import base64
    return base64.b64encode(done.stdout).decode()


def statement(text: str, word: str = "approve") -> bytes:
    import hashlib
    return f"holdfast quorum v1\n{word}\n{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def request_text(own, change: dict, **more) -> str:
    now = int(time.time())
    instance = ask(own, {"op": "hello"})["instance"]
    return json.dumps({"instance": instance, "proposer": "ann", "created": now, "expires": now + 600, "nonce": str(time.monotonic_ns()), "change": change} | more)


def test_a_request_that_openssl_signed_is_taken(own):
    text = request_text(own, {"act": "lift", "scope": {"kind": "all"}})
    answer = ask(own, {"op": "propose", "text": text, "signature": sign(own, "ann", statement(text))})
    assert answer["error"] == "that kill switch is not pulled"


def test_altered_requests_and_approvals(own):
    """Every byte of a request is under the signature, and an approval is of that request only."""
    change = {"act": "credential-remove", "store": "green", "access_key_id": "A" * 20}
    text = request_text(own, change)
    signature = sign(own, "ann", statement(text))
    altered = text.replace("green", "blue")
    answer = ask(own, {"op": "propose", "text": altered, "signature": signature})
    assert answer["denied"] and "changed" in answer["error"]
    assert events(own, "QuorumPropose")[-1]["outcome"] == "denied"
    for wrong in ({"instance": "0" * 32}, {"expires": int(time.time()) - 1}, {"expires": int(time.time()) + 10**6}, {"created": int(time.time()) - 1000}, {"proposer": "eve"}):
        bad = request_text(own, change, **wrong)
        assert "error" in ask(own, {"op": "propose", "text": bad, "signature": sign(own, "ann", statement(bad))}), wrong
    one = own.propose("ann", "key-create", "--key-id", "x1", "--hsm", "east", "--label", "x1").stdout.split()[0]
    two = own.propose("ann", "key-create", "--key-id", "x2", "--hsm", "east", "--label", "x2").stdout.split()[0]
    text_one = json.loads(own.holdfast("quorum", "show", "--state-dir", own.state, "--json", one).stdout)["text"]
    moved = ask(own, {"op": "decide", "id": two, "operator": "ben", "approve": True, "signature": sign(own, "ben", statement(text_one))})
    assert moved["denied"]
    turned = ask(own, {"op": "decide", "id": one, "operator": "ben", "approve": True, "signature": sign(own, "ben", statement(text_one, "reject"))})
    assert turned["denied"]


def test_a_secret_of_another_request_is_refused(own):
    text = request_text(own, {"act": "credential-add", "store": "blue", "access_key_id": "A" * 20, "commitment": "0" * 64})
    secret = {"blind": "A" * 43 + "=", "secret": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"}
    answer = ask(own, {"op": "propose", "text": text, "signature": sign(own, "ann", statement(text)), "secret": secret})
    assert answer["error"] == "the request and its secret do not belong together"


@pytest.mark.parametrize("request_", ["", "{", "[]", '{"op":"nothing"}', '{"op":"decide"}', '{"op":"kill","scope":{"kind":"moon"},"reason":""}'])
def test_nonsense_at_the_control_socket(own, request_):
    import socket
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(control_socket(own))
        stream.sendall(request_.encode() + b"\n")
        assert json.loads(stream.makefile().readline())["done"] is False


def test_p256_operators_and_changing_them(own):
    """The threshold holds for its own change; who is no longer an operator no longer counts."""
    key = own.directory / "dan.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key], check=True, capture_output=True)
    key.chmod(0o600)
    public = subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True, capture_output=True).stdout
    import base64
    people = own.quorum.replace("[quorum]\n", "").replace("quorum.operators", "operators")
    file = own.directory / "operators.toml"
    file.write_text(people + f'[[operators]]\nname = "dan"\npublic_key = "{base64.b64encode(public).decode()}"\n')
    pending = own.propose("ann", "key-create", "--key-id", "later", "--hsm", "east", "--label", "later").stdout.split()[0]
    own.change("operators", file)
    own.keys["dan"] = key
    assert "executed" in own.decide("approve", "dan", pending).stdout
    # Without ann, her word on open proposals is worth nothing.
    pending = own.propose("ann", "key-create", "--key-id", "later2", "--hsm", "east", "--label", "later2").stdout.split()[0]
    without = re.sub(r'\[\[operators\]\]\nname = "ann"\n[^\n]*\n', "", file.read_text())
    file.write_text(without)
    assert "executed" in own.decide("approve", "ben", own.propose("dan", "operators", file).stdout.split()[0]).stdout
    shown = json.loads(own.holdfast("quorum", "show", "--state-dir", own.state, "--json", pending).stdout)
    assert shown["approvals"] == 0
    assert own.propose("ann", "key-create", "--key-id", "y", "--hsm", "east", "--label", "y", check=False).returncode == 3
    file.write_text(people)
    assert "executed" in own.decide("approve", "ben", own.propose("dan", "operators", file).stdout.split()[0]).stdout


def test_a_world_readable_key_is_refused(own):
    key = own.keys["ann"]
    key.chmod(0o644)
    refused = own.propose("ann", "lift", "--all", check=False)
    key.chmod(0o600)
    assert refused.returncode == 1 and "chmod 600" in refused.stderr


def test_import_of_a_known_key(own, kms):
    """A ciphertext that other software made under a known key."""
    own.change("key-import", "--key-id", "orders", "--hsm", "east", "--label", "imported", secret=bytes(range(32)).hex())
    own.set_policy((POLICY + keys_of("east")).replace('label = "orders"\n[[keys]]\nid = "encrypt-only"', 'label = "imported"\n[[keys]]\nid = "encrypt-only"'))
    from proxy import b64
    iv = bytes(range(0xA0, 0xB0))
    sealed = {"ciphertext": "rn0QQSrrVdAQCePy", "authenticationTag": "poy+Gi04m2JKwC7JnEnnBg==", "initializationVector": b64(iv[:12])}
    assert kms[0].decrypt(sealed, aad=None) == b"Hello World!"
    own.set_policy(POLICY + keys_of("east"))


@pytest.mark.parametrize("scope, what", [(["--all"], "everything"), (["--store", "blue"], 'store "blue"'), (["--key-id", "orders"], 'key "orders"')])
def test_the_plug(own, kms, scope, what):
    done = own.kill(*scope, "--reason", "drill").stdout
    measured = re.fullmatch(rf"stopped: {what}; ([0-9.]+) ms until the last of 2 processes refused\n", done)
    assert measured and float(measured[1]) < 1000, done
    print(done)
    for client in kms:
        for operation, body in (("encrypt", client.encrypt_body()), ("metadata", {"requestMetadata": client.metadata()})):
            assert_refused(client.raw(operation, body), 400, "InvalidStateException")
    other = kms[0].raw("encrypt", kms[0].encrypt_body(), "other")
    assert (other.status_code == 200) == (scope[0] == "--key-id")
    health = kms[0].raw("health", {"requestMetadata": kms[0].metadata("KmsHealthCheck")})
    assert (health.status_code == 200) == (scope[0] == "--key-id")
    assert events(own, "Kill")[-1]["reason"] == "drill"
    refusal = next(event for event in reversed(own.events("a")) if event.get("error") == "InvalidStateException")
    assert refusal["client_request_id"].startswith("request-") and refusal["context"]["kmsOperation"]
    # Durable over restarts.
    own.stop("b")
    own.start("b")
    assert_refused(kms[1].raw("encrypt", kms[1].encrypt_body()), 400, "InvalidStateException")
    # One alone cannot put it back.
    alone = own.propose("ann", "lift", *scope).stdout.split()[0]
    assert_refused(kms[0].raw("encrypt", kms[0].encrypt_body()), 400, "InvalidStateException")
    assert "executed" in own.decide("approve", "cat", alone).stdout
    assert kms[0].raw("encrypt", kms[0].encrypt_body()).status_code == 200
    deadline = time.monotonic() + 1
    while kms[1].raw("encrypt", kms[1].encrypt_body()).status_code != 200:
        assert time.monotonic() < deadline


def test_no_answer_leaves_after_the_plug_is_pulled(own, kms):
    """Requests run all the while; whatever was answered with a ciphertext was asked before the command returned."""
    stop, served, refused = threading.Event(), [], []

    def hammer(client):
        while not stop.is_set():
            asked = time.monotonic()
            answer = client.raw("encrypt", client.encrypt_body())
            (served if answer.status_code == 200 else refused).append(asked)
    threads = [threading.Thread(target=hammer, args=(client,)) for client in kms for _ in range(4)]
    [thread.start() for thread in threads]
    time.sleep(0.5)
    own.kill("--all")
    pulled = time.monotonic()
    time.sleep(0.5)
    stop.set()
    [thread.join() for thread in threads]
    assert served and max(served) < pulled
    assert len([asked for asked in refused if asked > pulled]) > 10
    own.change("lift", "--all")


def test_the_plug_without_a_process(own, kms):
    own.stop()
    refused = own.kill("--all", check=False)
    assert refused.returncode == 4 and "--config" in refused.stderr
    done = own.holdfast("xks", "kill", "--config", own.directory / "a.toml", "--all")
    assert "0 processes" in done.stdout
    own.start("a")
    own.start("b")
    for client in kms:
        assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
    own.change("lift", "--all")
    own.verify_audit("command")


def test_damaged_state_serves_nothing(own, kms):
    time.sleep(2.5)  # Until the processes have nothing left to write by themselves.
    good = (own.state / "rows.shared").read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], b"", bytes([good[0] ^ 1]) + good[1:]):
        replacement = own.state / "rows.bad"
        replacement.write_bytes(bad)
        replacement.rename(own.state / "rows.shared")
        time.sleep(0.2)
        assert kms[0].raw("encrypt", kms[0].encrypt_body()).status_code == 500
        replacement.write_bytes(good)
        replacement.rename(own.state / "rows.shared")
        deadline = time.monotonic() + 2
        while kms[0].raw("encrypt", kms[0].encrypt_body()).status_code != 200:
            assert time.monotonic() < deadline


def test_state_on_another_machine_does_not_open(own, tmp_path):
    """The state without its silicon is of no use: PINs, credentials and the software HSM's keys stay shut."""
    import shutil
    shutil.copytree(own.state, tmp_path / "state")
    config = (own.directory / "a.toml").read_text()
    config = config.replace(str(own.state), str(tmp_path / "state")).replace("silicon.root", "other-silicon.root")
    (tmp_path / "stolen.toml").write_text(config)
    stolen = own.holdfast("xks", "serve", "--config", tmp_path / "stolen.toml", check=False)
    assert stolen.returncode != 0 and "silicon" in stolen.stderr


def test_a_pin_is_typed_without_echo(own):
    """At a terminal, twice; never as an argument, never shown."""
    import os
    import pty
    import termios
    from process import BINARY
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(BINARY, [str(BINARY), "quorum", "propose", "--state-dir", str(own.state), "--operator", "ann", "--key", str(own.keys["ann"]), "hsm-pin", "--hsm", "east"])
    shown = b""
    for answer in (b"typed-pin-1\n", b"typed-pin-1\n"):
        while not shown.endswith(b": "):
            shown += os.read(terminal, 1024)
        # The prompt comes a moment before the echo goes.
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.005)
        os.write(terminal, answer)
        shown += b"|"
    try:
        while chunk := os.read(terminal, 1024):
            shown += chunk
    except OSError:
        pass
    os.waitpid(pid, 0)
    assert b"typed-pin" not in shown and b"1 of 2" in shown, shown
    done = subprocess.run([BINARY, "quorum", "propose", "--state-dir", own.state, "--operator", "ann", "--key", own.keys["ann"], "hsm-pin", "--hsm", "east"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2 and "--secret-fd" in done.stderr


def test_kill_9_in_the_middle_of_changes(own):
    """Whatever was said to be done is done after the crash; nothing is half done."""
    import signal
    carried_out = []
    for round_ in range(8):
        stop = threading.Event()

        def change(round_=round_, stop=stop):
            number = 0
            while not stop.is_set():
                key = f"crash-{round_}-{number}"
                number += 1
                proposal = own.propose("ann", "key-create", "--key-id", key, "--hsm", "east", "--label", key, check=False)
                if proposal.returncode == 0 and "executed" in own.decide("approve", "ben", proposal.stdout.split()[0], check=False).stdout:
                    carried_out.append(key)
        thread = threading.Thread(target=change)
        before = len(carried_out)
        thread.start()
        while len(carried_out) == before:
            time.sleep(0.01)
        time.sleep(0.05 * round_)
        own.stop("a", signal.SIGKILL)
        own.stop("b", signal.SIGKILL)
        stop.set()
        thread.join()
        own.start("a")
        own.start("b")
    assert len(carried_out) >= 8
    policy = POLICY.replace('keys = ["orders", ', f'keys = {json.dumps(carried_out)[:-1]}, "orders", ') + keys_of("east")
    own.set_policy(policy + "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\n' for key in carried_out))
    report = json.loads(own.holdfast("xks", "keys", "--state-dir", own.state, "--json").stdout)
    problems = {key["key"]: key["problem"] for key in report["keys"]}
    assert [problems[key] for key in carried_out] == [None] * len(carried_out)

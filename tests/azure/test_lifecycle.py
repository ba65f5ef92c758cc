"""The instance as its operator sees it: restarts, copies, files, the audit log, the command line."""
import base64
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import time
import warnings

import pytest
import requests
import urllib3
from azure.keyvault.keys import KeyClient
from conftest import BINARY, Rest, Server, assert_error, b64
from process import start


@pytest.fixture
def own(tmp_path):
    server = Server(tmp_path).start()
    yield server
    server.stop()


def test_restart_keeps_everything(own):
    rest = Rest(own, own.token())
    made = rest.ok("POST", "/keys/kept/create", {"kty": "RSA-HSM"})
    wrapped = rest.ok("POST", "/keys/kept/wrapkey", {"alg": "RSA-OAEP-256", "value": b64(b"k" * 32)})["value"]
    ca, oid = pathlib.Path(own.ca_file).read_bytes(), own.env["HOLDFAST_OBJECT_ID"]
    own.stop()
    assert not own.env_file.exists(), "no env file outlives its server"
    own.start()
    assert pathlib.Path(own.ca_file).read_bytes() == ca and own.env["HOLDFAST_OBJECT_ID"] == oid
    rest = Rest(own, own.token())
    assert rest.ok("GET", "/keys/kept")["key"] == made["key"]
    assert rest.ok("POST", "/keys/kept/unwrapkey", {"alg": "RSA-OAEP-256", "value": wrapped})["value"] == b64(b"k" * 32)


def published(own) -> list[str]:
    """Which keys the issuer tells of."""
    env = own.env
    keys = requests.get(f"{env['HOLDFAST_AUTHORITY_URL']}/{env['HOLDFAST_TENANT_ID']}/discovery/v2.0/keys", verify=False, timeout=10).json()["keys"]
    assert all(key.keys() == {"kty", "use", "alg", "kid", "n", "e"} for key in keys)
    return [key["kid"] for key in keys]


def test_a_token_from_before_a_restart_is_good(own):
    """Clients keep them for an hour."""
    token = own.token()
    for how in (signal.SIGTERM, signal.SIGKILL):
        [kid] = published(own)
        own.process.send_signal(how)
        own.process.wait(30)
        own.env_file.unlink(missing_ok=True)
        own.start()
        assert published(own) == [kid] and Rest(own, token).ok("GET", "/keys") is not None


def test_the_issuers_keys_change_with_overlap(own):
    """After 90 days there is another one; it signs a day later, and the old one goes when no token can rest on it any more."""
    def kid_of(token: str) -> str:
        return json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"]
    [first], seen = published(own), []
    assert kid_of(own.token()) == first
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    for days in (91, 93):
        own.stop()
        later = ["env", f"LD_PRELOAD={library}", f"FAKETIME=+{days}d", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
        own.process = start([*later, BINARY, "dev", "--data-dir", own.data_dir, "--port-base", own.port, "--env-file", own.env_file], own.log, own.env_file.exists)
        token = subprocess.run([*later, BINARY, "token", "--env-file", own.env_file], capture_output=True, text=True, check=True).stdout.strip()
        answer = requests.get(f"{own.url}/keys?api-version=7.5", headers={"Authorization": f"Bearer {token}"}, verify=False, timeout=10)
        assert answer.status_code == 200, answer.text
        seen.append((published(own), kid_of(token)))
    [(both, signs), (left, signs_now)] = seen
    assert len(both) == 2 and both[0] == first == signs
    assert left == [both[1]] and signs_now == both[1] != first
    log = "".join(path.read_text() for path in sorted((own.data_dir / "audit").glob("*.jsonl")))
    assert log.count('"IssuerKeyCreate"') == 2 and log.count('"IssuerKeyDelete"') == 1


def test_an_assignment_from_before_a_restart_ends_with_its_key(own):
    """Assignment, purge and restart in every order; a kill between purge and restart loses nothing of either."""
    rest = Rest(own, own.token())
    assignment = {"properties": {"roleDefinitionId": "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3", "principalId": "33333333-3333-4333-8333-333333333333"}}
    path = "/keys/mortal/providers/Microsoft.Authorization/roleAssignments"
    rest.ok("POST", "/keys/mortal/create", {"kty": "oct-HSM"})
    rest.ok("PUT", f"{path}/44444444-4444-4444-8444-444444444444", assignment, status=201)
    own.stop()
    own.start()
    rest = Rest(own, own.token())
    assert len(rest.ok("GET", path)["value"]) == 1
    rest.ok("DELETE", "/keys/mortal")
    rest.ok("DELETE", "/deletedkeys/mortal", status=204)
    own.stop(signal.SIGKILL)
    own.env_file.unlink()
    own.start()
    rest = Rest(own, own.token())
    assert rest.ok("GET", path)["value"] == []
    rest.ok("POST", "/keys/mortal/create", {"kty": "oct-HSM"})
    assert rest.ok("GET", path)["value"] == []
    rest.ok("PUT", f"{path}/44444444-4444-4444-8444-444444444444", assignment, status=201)


def test_an_assignment_ends_with_a_key_whose_retention_ends(own):
    """91 days later the key goes by itself, and its assignments with it."""
    warnings.filterwarnings("ignore", category=urllib3.exceptions.InsecureRequestWarning)
    rest = Rest(own, own.token())
    assignment = {"properties": {"roleDefinitionId": "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3", "principalId": "33333333-3333-4333-8333-333333333333"}}
    path = "/keys/mortal/providers/Microsoft.Authorization/roleAssignments"
    rest.ok("POST", "/keys/mortal/create", {"kty": "oct-HSM"})
    rest.ok("PUT", f"{path}/44444444-4444-4444-8444-444444444444", assignment, status=201)
    rest.ok("DELETE", "/keys/mortal")
    own.stop()
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    later = ["env", f"LD_PRELOAD={library}", "FAKETIME=+91d", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    own.process = start([*later, BINARY, "dev", "--data-dir", own.data_dir, "--port-base", own.port, "--env-file", own.env_file], own.log, own.env_file.exists)
    token = subprocess.run([*later, BINARY, "token", "--env-file", own.env_file], capture_output=True, text=True, check=True).stdout.strip()
    # Its certificate is not valid yet by our clock.
    get = lambda path: requests.get(f"{own.url}{path}?api-version=7.5", headers={"Authorization": f"Bearer {token}"}, verify=False, timeout=10)
    deadline = time.monotonic() + 60
    while (answer := get("/deletedkeys/mortal")).status_code == 200:
        assert time.monotonic() < deadline, "maintenance comes every 30 s"
        time.sleep(0.5)
    assert_error(answer, 404, "KeyNotFound")
    assert get(path).json()["value"] == []


def test_a_copy_without_its_silicon_does_not_open(own, tmp_path):
    own.stop()
    copy = tmp_path / "copy"
    shutil.copytree(own.data_dir, copy)
    start = lambda *more: subprocess.run([BINARY, "dev", "--data-dir", copy, "--port-base", str(own.port), *more], capture_output=True, text=True, timeout=20)
    refused = start()
    assert refused.returncode == 1 and "silicon" in refused.stderr and "not on this machine" in refused.stderr
    other = Server(tmp_path / "other", data_dir=tmp_path / "other-data")
    other.directory.mkdir()
    other.start()
    other.stop()
    refused = start("--silicon", tmp_path / "other-data.silicon")
    assert refused.returncode == 1 and "was sealed by silicon" in refused.stderr
    inside = start("--silicon", copy / "silicon")
    assert inside.returncode == 2 and "must not lie in the data directory" in inside.stderr
    silicon = pathlib.Path(f"{own.data_dir}.silicon")
    silicon.chmod(0o644)
    refused = start("--silicon", silicon)
    assert refused.returncode == 1 and "chmod 600" in refused.stderr


def test_no_secret_on_disk_in_clear(own):
    marker = os.urandom(32)
    rest = Rest(own, own.token())
    rest.ok("PUT", "/keys/marked/", {"key": {"kty": "oct-HSM", "k": b64(marker)}, "tags": {"secretname": "visible-nowhere"}})
    own.stop()
    silicon = pathlib.Path(f"{own.data_dir}.silicon")
    assert stat.S_IMODE(silicon.stat().st_mode) == 0o600
    for path in [silicon, *(path for path in own.data_dir.rglob("*") if path.is_file())]:
        content = path.read_bytes()
        assert marker not in content and b64(marker).encode() not in content and marker.hex().encode() not in content, path
        assert b"PRIVATE KEY" not in content and b"visible-nowhere" not in content, path
        if path.suffix == ".redb":
            assert b"marked" not in content, "names of keys are not visible either"


@pytest.mark.parametrize("file", ["instance.sealed", "records.redb"])
def test_damaged_files_are_refused(own, file):
    rest = Rest(own, own.token())
    for number in range(5):
        rest.ok("POST", f"/keys/k{number}/create", {"kty": "oct-HSM"})
    own.stop()
    path = own.data_dir / file
    good = path.read_bytes()
    start = lambda: subprocess.run([BINARY, "dev", "--data-dir", own.data_dir, "--port-base", str(own.port)], capture_output=True, text=True, timeout=20)
    path.write_bytes(good[: len(good) // 2])
    refused = start()
    assert refused.returncode == 1 and "panicked" not in refused.stderr, refused.stderr
    path.unlink()
    if file == "instance.sealed":
        refused = start()
        assert refused.returncode == 1 and "instance.sealed is missing, but records.redb, watermark.slots, audit are there" in refused.stderr
    path.write_bytes(good)
    path.chmod(0o600)
    own.start()


def test_a_second_process_is_refused(own):
    second = subprocess.run([BINARY, "dev", "--data-dir", own.data_dir, "--port-base", str(own.port)], capture_output=True, text=True, timeout=20)
    assert second.returncode == 4 and "another port" in second.stderr
    from conftest import free_ports
    second = subprocess.run([BINARY, "dev", "--data-dir", own.data_dir, "--port-base", str(free_ports())], capture_output=True, text=True, timeout=20)
    assert second.returncode == 1 and "another process" in second.stderr


def test_audit_log(own):
    rest = Rest(own, own.token())
    rest.ok("POST", "/keys/seen/create", {"kty": "oct-HSM"})
    rest("GET", "/keys/unseen")
    log = own.data_dir / "audit"
    tail = own.holdfast("audit", "tail", "--log", log).stdout
    assert "KeyCreate" in tail and "seen/" in tail and "failed  404 KeyGet" in tail
    own.stop()
    events = [json.loads(line) for line in own.holdfast("audit", "export", "--log", log).stdout.splitlines()]
    [create] = [event for event in events if event.get("operation") == "KeyCreate" and event["key"] == "seen"]
    assert create["outcome"] == "allowed" and create["caller"]["oid"] == own.env["HOLDFAST_OBJECT_ID"]
    assert create["key"] == "seen" and len(create["version"]) == 32 and create["reason"].startswith("role assignment ")
    report = json.loads(own.holdfast("audit", "verify", "--log", log, "--json").stdout)
    assert report["ok"] and report["lines"] == len(events) == report["signed_up_to"]
    assert own.holdfast("audit", "verify", "--log", log, "--key", report["key"]).returncode == 0
    assert "signed by another key" in own.holdfast("audit", "verify", "--log", log, "--key", "00", check=False).stderr
    kept = own.directory / "kept-line"
    [segment] = log.iterdir()
    lines = segment.read_bytes().splitlines(keepends=True)
    kept.write_bytes(lines[-1])
    assert own.holdfast("audit", "verify", "--log", log, "--known-line", kept).returncode == 0

    def finding(changed):
        segment.write_bytes(b"".join(changed))
        result = own.holdfast("audit", "verify", "--log", log, "--known-line", kept, check=False)
        assert result.returncode == 1
        return result.stderr
    number = events.index(create)
    assert f"line {number + 2}:" in finding(lines[:number] + [lines[number].replace(b"allowed", b"denied ")] + lines[number + 1:])
    assert f"line {number + 1} is missing" in finding(lines[:number] + lines[number + 1:])
    assert "not in the log" in finding(lines[:-2])
    assert "not in the log" in finding(lines[:-1] + [lines[-1][:-5]])
    # Without a line kept elsewhere that is what a crash leaves, too: told, and no finding.
    assert "torn" in own.holdfast("audit", "verify", "--log", log).stdout
    # The service itself remembers how far the log had come, and does not go on as if nothing had happened.
    segment.write_bytes(b"".join(lines[:3]))
    refused = subprocess.run([BINARY, "dev", "--data-dir", own.data_dir, "--port-base", str(own.port)], capture_output=True, text=True, timeout=20)
    assert refused.returncode == 1 and "lines were removed or replaced" in refused.stderr
    segment.write_bytes(b"".join(lines))
    own.start()


def test_requests_fail_when_the_audit_log_cannot_be_written(tmp_path):
    """A full disk, played by a limit on file size: no key is used without its line in the log."""
    server = Server(tmp_path)
    import resource
    limit = 3 << 20
    command = [BINARY, "dev", "--data-dir", server.data_dir, "--port-base", str(server.port), "--env-file", server.env_file]

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with open(server.log, "wb") as log:
        server.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, preexec_fn=limited)
    for _ in range(300):
        if server.env_file.exists():
            break
        time.sleep(0.02)
    server.env = dict(line.split("=", 1) for line in server.env_file.read_text().splitlines())
    rest = Rest(server, server.token())
    rest.ok("POST", "/keys/k/create", {"kty": "oct-HSM"})
    session = requests.Session()
    session.trust_env = False  # a CA bundle named in the environment would go before ours
    session.verify, session.headers["Authorization"] = server.ca_file, f"Bearer {rest.token}"
    url, body = f"{server.url}/keys/k/wrapkey?api-version=7.5", {"alg": "A256KW", "value": b64(b"k" * 32)}
    refused = None
    for _ in range(10_000):
        answer = session.post(url, json=body)
        if answer.status_code != 200:
            refused = answer
            break
    assert_error(refused, 503, "AuditUnavailable")
    # Room again: service goes on by itself, in a new segment, and the log is whole.
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert session.post(url, json=body).status_code == 200
    server.stop()
    report = json.loads(server.holdfast("audit", "verify", "--log", server.data_dir / "audit", "--json").stdout)
    assert report["ok"], report


def test_stopping_lets_requests_end(own):
    rest = Rest(own, own.token())
    import concurrent.futures
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = [pool.submit(rest, "POST", f"/keys/slow-{n}/create", {"kty": "RSA-HSM", "key_size": 3072}) for n in range(3)]
        time.sleep(0.15)
        own.process.send_signal(signal.SIGTERM)
        assert all(answer.result().status_code == 200 for answer in slow)
    assert own.process.wait(20) == 0


def test_command_line(own, tmp_path):
    run = lambda *args: own.holdfast(*args, check=False)
    status = json.loads(run("status", "--env-file", own.env_file, "--json").stdout)
    assert status["status"] == "ready" and status["memory_isolated"] is False
    assert run("status", "--url", own.url, "--ca-file", own.ca_file).returncode == 0
    nobody = run("status", "--url", "https://127.0.0.1:1", "--ca-file", own.ca_file)
    assert nobody.returncode == 4 and nobody.stdout == ""
    assert run("token", "--env-file", own.env_file).stdout.count(".") == 2
    assert run("token", "--env-file", tmp_path / "nothing").returncode == 1
    stale = tmp_path / "stale.env"
    stale.write_text(own.env_file.read_text().replace(own.env["HOLDFAST_CLIENT_SECRET"], "wrong"))
    refused = run("token", "--env-file", stale)
    assert refused.returncode == 3 and "Invalid client secret" in refused.stderr
    example = tmp_path / "holdfast.toml"
    example.write_text(run("config", "example").stdout)
    assert run("config", "check", "--config", example).returncode == 0
    example.write_text(example.read_text().replace("purge_protection", "purge_protectoin"))
    refused = run("config", "check", "--config", example)
    assert refused.returncode == 2 and "purge_protectoin" in refused.stderr
    assert run("nonsense").returncode == 2
    assert stat.S_IMODE(own.env_file.stat().st_mode) == 0o600
    secret = own.env["HOLDFAST_CLIENT_SECRET"]
    assert secret.encode() not in pathlib.Path(f"/proc/{own.process.pid}/cmdline").read_bytes()


def test_core_dumps_are_off(own):
    limits = pathlib.Path(f"/proc/{own.process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]


def test_purge_protection_and_retention(tmp_path, own):
    """By configuration, with the embedded issuer named in it."""
    from conftest import free_ports
    port = free_ports()
    secret = tmp_path / "client.secret"
    secret.write_text("a-secret-of-some-length\n")
    config = tmp_path / "holdfast.toml"
    config.write_text(f"""
[listen]
address = "127.0.0.1:{port}"
host_names = ["127.0.0.1:{port}"]
[hsm]
data_dir = "{tmp_path}/protected"
soft_delete_retention_days = 7
purge_protection = true
initial_administrators = ["33333333-3333-3333-3333-333333333333"]
[silicon]
kind = "software-insecure"
root_file = "{tmp_path}/protected.silicon"
[identity]
authority = "https://127.0.0.1:{port + 1}/tenant"
[embedded_issuer]
address = "127.0.0.1:{port + 1}"
url = "https://127.0.0.1:{port + 1}"
tenant = "tenant"
[[embedded_issuer.clients]]
client_id = "client"
object_id = "33333333-3333-3333-3333-333333333333"
secret_file = "{secret}"
""")
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([BINARY, "managed-hsm", "--config", config], stderr=log)
    ca = tmp_path / "protected/ca.pem"
    for _ in range(200):
        try:
            requests.get(f"https://127.0.0.1:{port}/readyz", verify=ca)
            break
        except (requests.ConnectionError, OSError):
            time.sleep(0.05)
    form = {"grant_type": "client_credentials", "client_id": "client", "client_secret": "a-secret-of-some-length", "scope": "https://managedhsm.azure.net/.default"}
    token = requests.post(f"https://127.0.0.1:{port + 1}/tenant/oauth2/v2.0/token", data=form, verify=ca).json()["access_token"]
    hsm = Server.__new__(Server)
    hsm.env = {"HOLDFAST_HSM_URL": f"https://127.0.0.1:{port}", "HOLDFAST_CA_FILE": str(ca)}
    rest = Rest(hsm, token)
    # The administrator of a new HSM cannot use keys before they give themselves a role, as in the real service.
    assert_error(rest("POST", "/keys/k/create", {"kty": "oct-HSM"}), 403, "AccessDenied")
    for role, guid in (("21dbd100-6940-42c2-9190-5d6cb909625b", "1" * 8), ("515eb02d-2335-4d2d-92f2-b1cbdf9c3778", "2" * 8)):
        body = {"properties": {"roleDefinitionId": role, "principalId": "33333333-3333-3333-3333-333333333333"}}
        rest.ok("PUT", f"/providers/Microsoft.Authorization/roleAssignments/{guid}-0000-0000-0000-000000000000", body, status=201)
    made = rest.ok("POST", "/keys/k/create", {"kty": "oct-HSM"})
    assert made["attributes"]["recoverableDays"] == 7 and made["attributes"]["recoveryLevel"] == "CustomizedRecoverable"
    rest.ok("DELETE", "/keys/k")
    assert_error(rest("DELETE", "/deletedkeys/k"), 403, "Forbidden")
    rest.ok("POST", "/deletedkeys/k/recover")
    process.terminate()
    assert process.wait(20) == 0

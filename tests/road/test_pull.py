"""Somebody keeps a copy of the audit log elsewhere: it is the log, byte by byte, and shows it when log or store are put back."""
import hashlib
import json
import random
import secrets
import shutil
import subprocess
import threading
import time

import pytest
import requests
from authority import Authority
from process import BINARY
import proxy as xks
from pulled import DENIED, FORMAT, HISTORY, PATH, UNAVAILABLE, Between, OfHsm, OfKms, OfStorage, OfXks, copied, every_role, is_copy, of_storage, original, taken_apart, verify


@every_role
def test_a_copy_is_the_log_and_goes_on(there, tmp_path):
    copy = tmp_path / "copy"
    there.busy(20)
    said = there.pull(copy).stdout
    assert "signed for at" in said
    is_copy(copy, there)
    known = len(copied(copy).splitlines())
    # A pull is told, each request of it once, and what it tells does not make it go on for ever.
    assert [pull["outcome"] for pull in there.pulls()] == ["allowed"] and there.pulls()[0]["caller"]["oid"]
    there.pull(copy)
    assert known < len(copied(copy).splitlines()) <= known + 4
    for restart in range(2):
        there.change()
        there.stop(9 if restart else 15)
        there.start()
        there.busy(3)
        there.pull(copy)
        is_copy(copy, there)
    assert len(list(copy.glob("audit-*.jsonl"))) == 3, "each start begins a segment"
    assert sum(pull["outcome"] == "allowed" for pull in there.pulls()) < 20


@every_role
def test_who_may_not_is_denied_and_told(there, tmp_path):
    for who in (*there.strangers, "wrong"):
        done = there.pull(tmp_path / who, who=who, code=DENIED)
        assert "denied" in done.stderr.lower() or "refused" in done.stderr or "401" in done.stderr, done.stderr
        assert not list((tmp_path / who).glob("audit-*"))
    denied = [pull for pull in there.pulls() if pull["outcome"] == "denied"]
    known = [pull for pull in denied if pull.get("caller")]
    assert len(known) == len(there.strangers) and all(pull["status"] == 403 and pull["error"] == "AccessDenied" for pull in known), denied
    # Nobody at all.
    answer = requests.post(there.url + PATH, json={"format": FORMAT, "nonce": "0" * 64}, verify=there.ca or True, timeout=10)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "Unauthenticated" and "head" not in answer.json()
    assert there.pull(tmp_path / "copy")


@pytest.mark.parametrize("there", [OfKms, OfXks, OfStorage], indirect=True)
def test_a_signature_is_for_this_door_alone(there):
    body = json.dumps({"format": FORMAT, "nonce": "0" * 64}).encode()
    services = {"kms": "kms", "xks": "kms-xks-proxy", "storage": "s3"}
    for scope in ({"service": services[there.role], "region": "us-east-1"}, {"region": "us-east-1"}):
        answer = requests.post(there.url + PATH, data=body, headers=there.signed(body, **scope), verify=there.ca or True, timeout=10)
        assert answer.status_code == 401, answer.text
    changed = requests.post(there.url + PATH, data=body.replace(b"0", b"1"), headers=there.signed(body), verify=there.ca or True, timeout=10)
    assert changed.status_code == 401
    session = there.signed(body, headers={"X-Amz-Security-Token": "x"})
    assert requests.post(there.url + PATH, data=body, headers=session, verify=there.ca or True, timeout=10).status_code == 401
    # The positive control.
    assert there.ask(body).status_code == 200


@pytest.mark.parametrize("there", [OfHsm], indirect=True)
def test_a_role_that_is_taken_away_ends_at_once(there, tmp_path):
    there.pull(tmp_path / "copy")
    there.hsm("DELETE", f"/providers/Microsoft.Authorization/roleAssignments/{there.assignment}")
    there.pull(tmp_path / "copy", code=DENIED)


@of_storage
def test_whoever_is_killed_while_he_pulls_goes_on(there, tmp_path):
    copy, between = tmp_path / "copy", Between(there.url)
    there.busy(400)

    def slowly(out, content):
        for at in range(0, len(content), 4096):
            out.write(content[at:at + 4096])
            out.flush()
            time.sleep(0.001)
    between.give = slowly
    chance = random.Random(7)
    for _ in range(25):
        pull = subprocess.Popen(there.command(copy, url=between.url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.random() * 0.25)
        pull.kill()
        pull.wait()
        there.busy(3)
        if list(copy.glob("audit-*.jsonl")):
            assert original(there).startswith(copied(copy)[:copied(copy).rfind(b"\n") + 1])
    there.pull(copy, url=between.url)
    is_copy(copy, there)
    between.close()


@of_storage
def test_a_copy_that_was_left_between_two_writes(there, tmp_path):
    """Whatever of an append is there and whatever is not: the state is written after the lines."""
    copy = tmp_path / "copy"
    there.busy(20)
    there.pull(copy)
    first = tmp_path / "first"
    shutil.copytree(copy, first)
    there.busy(50)
    there.stop()
    there.start()
    there.busy(10)
    there.pull(copy)
    segments = sorted(copy.glob("audit-*.jsonl"))
    whole = {path.name: path.read_bytes() for path in segments}
    old = (first / "copy.json").read_bytes()
    begin = (first / segments[0].name).stat().st_size
    for torn in [begin, begin + 1, begin + 700, len(whole[segments[0].name]) - 1, len(whole[segments[0].name])]:
        cut = tmp_path / f"cut-{torn}"
        shutil.copytree(first, cut)
        (cut / segments[0].name).write_bytes(whole[segments[0].name][:torn])
        if torn == len(whole[segments[0].name]):
            (cut / segments[1].name).write_bytes(b"")
        assert (cut / "copy.json").read_bytes() == old
        there.pull(cut)
        is_copy(cut, there)
    # The state is missing altogether.
    (copy / "copy.json").unlink()
    there.pull(copy)
    is_copy(copy, there)
    # Bytes of somebody else are no crash.
    for name, change in {"a proved line": lambda text: text.replace(b'"seq":3', b'"seq":4', 1), "cut": lambda text: text[:len(text) // 2]}.items():
        bad = tmp_path / name.replace(" ", "-")
        shutil.copytree(first, bad)
        (bad / segments[0].name).write_bytes(change((bad / segments[0].name).read_bytes()))
        assert "damaged" in there.pull(bad, code=1).stderr if name == "cut" else True


@pytest.mark.parametrize("there", [OfKms], indirect=True)
def test_the_key_is_pinned(there, tmp_path):
    copy = tmp_path / "copy"
    key = verify(there.log)["key"]
    assert "another key" in there.pull(tmp_path / "wrong", "--key", "0" * 64, code=HISTORY).stderr
    there.pull(copy, "--key", key.upper())
    other = OfKms(tmp_path / "elsewhere")
    try:
        # Another instance at the address, with a log of its own, and even with this one's lines.
        assert other.pull(copy, code=HISTORY).returncode == HISTORY
    finally:
        other.stop()
    there.pull(copy)
    is_copy(copy, there)


@pytest.mark.parametrize("there", [OfXks], indirect=True)
def test_each_process_has_its_own_log(there, tmp_path):
    copy = tmp_path / "copy"
    there.pull(copy)
    there.proxy.start("b")
    done = there.pull(copy, url=there.proxy.url("b"), code=1)
    assert "OtherLog" in done.stderr and "xks-proxy/b" in done.stderr
    there.pull(tmp_path / "of-b", url=there.proxy.url("b"))
    there.pull(copy)
    is_copy(copy, there)


@pytest.mark.parametrize("there", [OfKms, OfStorage], indirect=True)
def test_odd_requests(there):
    good = {"format": FORMAT, "nonce": "ab" * 32}
    first = there.ask(good)
    head, lines = taken_apart(first.content)
    assert first.status_code == 200 and lines.startswith(b'{"seq":1,')
    line = lines.splitlines(keepends=True)[0]
    place = {"seq": 1, "hash": hashlib.sha256(b"\0" + line[:-1]).hexdigest(), "segment": 1, "offset": len(line)}
    assert taken_apart(there.ask(good | {"after": place}).content)[1].startswith(b'{"seq":2,')
    # A place that is not where the line ends is looked for.
    for odd in ({"offset": 0}, {"offset": len(line) - 1}, {"offset": 2**63}, {"segment": 0}, {"segment": 2**64 - 1}, {"segment": 999}):
        answer = there.ask(good | {"after": place | odd})
        assert answer.status_code == 200 and taken_apart(answer.content)[1].startswith(b'{"seq":2,'), (odd, answer.text[:200])
    for after, code in [({"seq": 2**64 - 1}, "LogShorter"), ({"seq": 10**6}, "LogShorter"), ({"hash": "00" * 32}, "LogDiffers"), ({"seq": 2}, "LogDiffers")]:
        answer = there.ask(good | {"after": place | after})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, code) and answer.json()["head"]["nonce"] == good["nonce"]
    for bad in ({"format": "holdfast-audit-pull-2"}, {"nonce": "ab"}, {"nonce": "zz" * 32}, {"nonce": None}, {"more": 1}, {"max_bytes": 0}, {"max_bytes": 1024},
                {"max_bytes": 2**60}, {"max_bytes": -1}, {"max_bytes": "1"}, {"after": {}}, {"after": place | {"seq": 0}}, {"after": place | {"hash": "x"}},
                {"after": place | {"seq": 2**64}}, {"after": place | {"offset": -1}}, {"log": "a\nb"}, {"log": ""}, {"log": "x" * 200}):
        answer = there.ask(good | bad)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidRequest"), (bad, answer.text)
    assert there.ask(good | {"log": "another"}).json()["error"]["code"] == "OtherLog"
    for body in (b"", b"{", b"[]", b"\xff\xfe", b"null", b"{}" * 10):
        assert there.ask(body).status_code == 400
    assert there.ask(json.dumps(good | {"log": "x" * 8000}).encode()).status_code == 413
    assert requests.get(there.url + PATH, verify=there.ca or True, timeout=10).status_code == 405
    query = requests.post(there.url + PATH + "?x=1", data=b"{}", headers=there.signed(b"{}"), verify=there.ca or True, timeout=10)
    assert query.status_code == 400
    assert there.ask(good).status_code == 200


@of_storage
def test_a_log_that_is_long_comes_in_pieces_while_it_is_written(tmp_path, there):
    """More than one answer, over rotations, while others write."""
    copy, between, stop = tmp_path / "copy", Between(there.url), threading.Event()
    there.stop()
    there.config.write_text(there.config.read_text() + "[audit]\nsegment_mib = 1\n")
    there.start()

    def write():
        client = there.storage.client()
        client.meta.events.register("before-sign", lambda request, **_: request.headers.__setitem__("User-Agent", "u" * 120))
        while not stop.is_set():
            client.head_bucket(Bucket="bucket")
    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for _ in range(6):
        there.pull(copy, url=between.url)
        time.sleep(1)
    while original(there).count(b"\n") < 4000:
        time.sleep(0.1)
    there.pull(tmp_path / "late", url=between.url)
    stop.set()
    for writer in writers:
        writer.join()
    there.pull(copy, url=between.url)
    is_copy(copy, there)
    is_copy(tmp_path / "late", there)
    assert len(list(copy.glob("audit-*.jsonl"))) > 2
    between.close()


@of_storage
def test_many_at_once(there, tmp_path):
    there.busy(50)
    pulls = [subprocess.Popen(there.command(tmp_path / f"copy-{n}"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for n in range(8)]
    for pull in pulls:
        out, _ = pull.communicate(timeout=120)
        assert pull.returncode == 0, out
    for number in range(8):
        is_copy(tmp_path / f"copy-{number}", there)
    # Two in one directory: one waits for nobody.
    with open(tmp_path / "copy-0" / "copy.lock", "a") as lock:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another pull" in there.pull(tmp_path / "copy-0", code=UNAVAILABLE).stderr


@of_storage
def test_a_copy_that_follows(there, tmp_path):
    copy = tmp_path / "copy"
    follow = subprocess.Popen(there.command(copy, "--follow", "--interval", "1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while not list(copy.glob("audit-*.jsonl")):
            assert time.monotonic() < until and follow.poll() is None
            time.sleep(0.1)
        there.stop(9)
        time.sleep(1.5)
        there.start()
        there.change()
        last = there.lines()[-1]["seq"]
        while b'"seq":%d,' % last not in copied(copy):
            assert time.monotonic() < until and follow.poll() is None
            time.sleep(0.1)
    finally:
        follow.kill()
        follow.wait()
    there.pull(copy)
    is_copy(copy, there)


@of_storage
def test_a_configuration_that_names_nobody(there):
    there.stop()
    there.config.write_text(there.config.read_text().replace('readers = ["bob"]', 'readers = ["nobody"]'))
    done = subprocess.run([BINARY, "storage", "serve", "--config", there.config], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "nobody" in done.stderr, done.stderr


@of_storage
def test_a_disk_that_takes_no_more(there, tmp_path):
    """Whatever of the lines was written before: the next pull goes on."""
    copy = tmp_path / "copy"
    there.busy(200)
    for kibibytes in (8, 20, 21, 40, 60):
        shell = f"ulimit -f {kibibytes}; trap '' XFSZ; exec " + " ".join(there.command(copy))
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
        assert done.returncode, done.stdout
    there.pull(copy)
    is_copy(copy, there)


def test_a_proxy_that_wants_a_client_certificate(tmp_path):
    """The reader shows one, and is still asked for his signature; without one, or with another, nothing is asked."""
    good, other = Authority(tmp_path, "good"), Authority(tmp_path, "other")
    secret = tmp_path / "auditor.secret"
    secret.write_text(secrets.token_hex(32))
    readers = f'[[audit_pull.readers]]\nname = "auditor"\naccess_key_id = "{"A" * 20}"\nsecret_file = "{secret}"\n'
    proxy = xks.Proxy(tmp_path / "proxy", '[[hsms]]\nname = "east"\nsoftware_insecure = true\n' + readers,
                      tls=f'client_ca_file = "{good.file}"\nclient_subjects = ["auditor"]').start()
    env = tmp_path / "env"
    env.write_text(f"AWS_ACCESS_KEY_ID={'A' * 20}\nAWS_SECRET_ACCESS_KEY={secret.read_text()}\n")

    def pull(*more) -> subprocess.CompletedProcess:
        command = [BINARY, "audit", "pull", "--role", "xks", "--url", proxy.url(), "--ca", proxy.ca_file, "--env-file", env, "--to", tmp_path / "copy", *more]
        return subprocess.run(command, capture_output=True, text=True)

    def shows(pair) -> tuple:
        return "--client-cert", pair[0], "--client-key", pair[1]
    try:
        for more in ((), shows(other.client("auditor")), shows(good.client("somebody"))):
            assert pull(*more).returncode == 4, more
        certificate, key = good.client("auditor")
        assert pull("--client-cert", certificate).returncode == 2, "one without the other"
        wrong = pull("--client-cert", certificate, "--client-key", other.client("auditor")[1])
        assert wrong.returncode not in (0, 4) and "is the key the certificate's?" in wrong.stderr, wrong
        done = pull(*shows((certificate, key)))
        assert done.returncode == 0, done
        proxy.holdfast("audit", "verify", "--log", proxy.state / "processes/a/audit", "--against", tmp_path / "copy")
    finally:
        proxy.stop()

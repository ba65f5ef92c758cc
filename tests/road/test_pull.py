"""Somebody keeps a copy of the audit log elsewhere: it is the log, byte by byte, and shows it when log or store are put back."""
import hashlib
import json
import pathlib
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
from pulled import DENIED, FORMAT, HISTORY, PATH, UNAVAILABLE, Between, Logged, OfHsm, OfKms, OfStorage, OfXks, put_together, taken_apart

ROLES = [OfHsm, OfKms, OfXks, OfStorage]


@pytest.fixture
def there(request, tmp_path):
    logged: Logged = request.param(tmp_path)
    yield logged
    logged.stop()
    assert "panicked" not in logged.process_log.read_text()


def every_role(test):
    return pytest.mark.parametrize("there", ROLES, indirect=True)(test)


def of_storage(test):
    return pytest.mark.parametrize("there", [OfStorage], indirect=True)(test)


def verify(log: pathlib.Path, *more, code: int = 0) -> dict:
    done = subprocess.run([str(part) for part in (BINARY, "audit", "verify", "--log", log, "--json", *more)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def copied(copy: pathlib.Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(copy.glob("audit-*.jsonl")))


def original(there: Logged) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(there.log.glob("audit-*.jsonl")))


def is_copy(copy: pathlib.Path, there: Logged) -> None:
    """Byte by byte, as far as it goes, under the same names."""
    assert original(there).startswith(copied(copy)) and copied(copy).endswith(b"\n")
    for path in copy.glob("audit-*.jsonl"):
        assert (there.log / path.name).read_bytes().startswith(path.read_bytes())
    assert verify(copy)["ok"]
    assert verify(there.log, "--against", copy)["against"]["longer"] in ("log", None)


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


@every_role
def test_a_log_and_its_store_put_back_together(there, tmp_path):
    """The case that the instance alone cannot see."""
    copy, kept = tmp_path / "copy", tmp_path / "kept"
    there.change()
    there.stop()
    there.keep(kept)
    there.start()
    there.change()
    there.busy(30)
    there.pull(copy)
    before = copied(copy)
    there.stop()
    there.put_back(kept)
    # The positive control: it starts, and knows nothing.
    there.start()
    assert "log put back" in there.pull(copy, code=HISTORY).stderr
    assert copied(copy) == before, "the copy is what it was"
    # It grows past the line that the copy has, and is another one.
    while len(there.lines()) <= len(before.splitlines()) + 5:
        there.busy(10)
    assert "log replaced" in there.pull(copy, code=HISTORY).stderr
    assert copied(copy) == before and verify(copy)["ok"]
    assert "log replaced" in verify(there.log, "--against", copy, code=HISTORY)["error"]
    evidence = [json.loads(path.read_text()) for path in sorted(copy.glob("finding-*.json"))]
    assert len(evidence) == 2 and all(found["answered"]["signature"] and found["known"]["signature"] for found in evidence)
    assert evidence[0]["answered"]["head"]["seq"] < evidence[0]["known"]["head"]["seq"]
    told = [pull["error"] for pull in there.pulls() if pull["outcome"] == "failed"]
    assert told == ["LogShorter", "LogDiffers"], "the instance tells it, too"
    # Another copy may begin.
    there.pull(tmp_path / "other")


@pytest.mark.parametrize("there", [OfHsm, OfKms], indirect=True)
def test_a_store_put_back_that_somebody_accepts(there, tmp_path):
    copy, kept = tmp_path / "copy", tmp_path / "kept"
    there.stop()
    there.keep(kept)
    there.start()
    for _ in range(3):
        there.change()
    there.pull(copy)
    there.stop()
    shutil.copy(kept / "data" / "records.redb", there.directory / "data" / "records.redb")
    there.accept_loss(True)
    there.start()
    done = there.pull(copy, code=HISTORY)
    assert "store put back" in done.stderr and "accepted" in done.stderr, done.stderr
    # It is the log all the same, and goes on: what was accepted is told once.
    is_copy(copy, there)
    there.accept_loss(False)
    there.stop()
    there.start()
    there.pull(copy)
    is_copy(copy, there)
    assert len(verify(copy)["accepted"]) == 1


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


@of_storage
def test_liars_between(there, tmp_path):
    between = Between(there.url)
    there.busy(20)
    honest = tmp_path / "honest"
    there.pull(honest, url=between.url)
    answers: list[bytes] = []

    def keeps(status, content):
        answers.append(content)
        return status, content
    between.lie = keeps
    there.pull(tmp_path / "seen", url=between.url)
    there.busy(20)

    def on_lines(change):
        def lie(status, content):
            if status != 200:
                return status, content
            head, lines = taken_apart(content)
            return status, put_together(head, change(lines))
        return lie

    def on_head(**change):
        def lie(status, content):
            head, lines = taken_apart(content)
            head["head"] |= change
            return status, put_together(head, lines)
        return lie

    def forged(lines: bytes) -> bytes:
        """A chain that holds, of lines that nobody signed."""
        whole = lines.splitlines()
        one = json.loads(whole[0])
        more, prev = whole[:1], hashlib.sha256(b"\0" + whole[0]).hexdigest()
        for seq in range(one["seq"] + 1, one["seq"] + 5):
            line = json.dumps({"seq": seq, "type": "event", "time": one["time"], "operation": "Nothing", "prev": prev}, separators=(",", ":")).encode()
            more.append(line)
            prev = hashlib.sha256(b"\0" + line).hexdigest()
        return b"".join(line + b"\n" for line in more)

    drop = lambda lines: b"".join(line for at, line in enumerate(lines.splitlines(keepends=True)) if at != 2)  # noqa: E731
    lies = {
        "an old answer": (lambda status, content: (200, answers[0]), HISTORY, "old answer"),
        "a line dropped": (on_lines(drop), HISTORY, "log altered"),
        "a byte changed": (on_lines(lambda lines: lines.replace(b'"outcome":"allowed"', b'"outcome":"alloweD"', 1)), HISTORY, "log altered"),
        "the end withheld": (on_lines(lambda lines: b""), HISTORY, "log altered"),
        "lines of somebody else": (on_lines(forged), HISTORY, "log altered"),
        "another head": (on_head(revision=10**9), HISTORY, "not signed"),
        "an earlier time": (on_head(time="2020-01-01T00:00:00.000Z"), HISTORY, "not signed"),
        "another verdict": (lambda status, content: (409, json.dumps({"error": {"code": "LogShorter", "message": "x"},
                                                                      "head": taken_apart(content)[0]["head"] | {"verdict": "shorter"}}).encode()), HISTORY, "not signed"),
        "a refusal that is signed for going on": (lambda status, content: (409, json.dumps({"error": {"code": "LogShorter", "message": "x"},
                                                                                           "head": taken_apart(content)[0]["head"]}).encode()), HISTORY, "false answer"),
        "half an answer": (lambda status, content: (200, content[:len(content) // 2]), 1, "no answer"),
        "no answer": (lambda status, content: (200, b"hello"), 1, "no answer"),
        "an endless head": (lambda status, content: (200, b"{" * 100_000), 1, "no answer"),
        "a flood": (lambda status, content: (200, content + b"x" * 2_000_000), UNAVAILABLE, ""),
        "an outage": (lambda status, content: (503, b""), UNAVAILABLE, "503"),
        "a missing page": (lambda status, content: (404, b"<html>\x1b[2J"), 1, "404"),
    }
    for name, (lie, code, word) in lies.items():
        copy = tmp_path / name.replace(" ", "-")
        shutil.copytree(honest, copy)
        before = copied(copy)
        between.lie = lie
        done = there.pull(copy, url=between.url, code=code)
        assert word in done.stderr and "\x1b" not in done.stderr, (name, done.stderr)
        assert copied(copy).startswith(before) and verify(copy), name
        # A first pull meets him: what it knows then does not stand in the way of the log either, not even without the lines.
        if name == "lines of somebody else":
            fresh = tmp_path / "fresh"
            there.pull(fresh, url=between.url, code=HISTORY)
            lines_gone = tmp_path / "lines-gone"
            shutil.copytree(fresh, lines_gone)
            for path in lines_gone.glob("audit-*.jsonl"):
                path.unlink()
            for met in (fresh, lines_gone):
                there.pull(met)
                is_copy(met, there)
        # An honest answer later, and the copy is the log.
        between.lie = lambda status, content: (status, content)
        there.pull(copy, url=between.url)
        is_copy(copy, there)
    between.close()


@of_storage
def test_lines_that_nobody_signed_for_are_set_aside(there, tmp_path):
    """A liar's lines hold as a chain and go no further than what is proved: the copy goes on without them, and they are kept."""
    copy, between = tmp_path / "copy", Between(there.url)
    there.pull(copy)
    there.busy(5)

    def lie(status, content):
        # The head is honest, and far away: these lines do not come to it.
        if status != 200:
            return status, content
        head, lines = taken_apart(content)
        first = lines.splitlines()[0]
        return status, put_together(head, first + b"\n" + json.dumps(
            {"seq": json.loads(first)["seq"] + 1, "type": "event", "time": "x", "operation": "Nothing", "prev": hashlib.sha256(b"\0" + first).hexdigest()},
            separators=(",", ":")).encode() + b"\n")
    between.lie = lie
    assert "again and again" in there.pull(copy, url=between.url, code=HISTORY).stderr
    assert b"Nothing" in copied(copy)
    done = there.pull(copy)
    assert "never signed for" in done.stderr
    is_copy(copy, there)
    aside = list(copy.glob("unproved-*.jsonl"))
    assert len(aside) == 2 and all(b"Nothing" in path.read_bytes() for path in aside) and b"Nothing" not in copied(copy)
    between.close()


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
def test_a_log_that_was_written_to_while_it_runs(there, tmp_path):
    """Whoever may write the files and has no key gets nothing signed: what is signed is what the instance knows, not what stands in the files."""
    copy = tmp_path / "copy"
    there.busy(20)
    there.pull(copy)
    there.busy(20)
    path = sorted(there.log.glob("audit-*.jsonl"))[-1]
    text = path.read_bytes()
    at = text.rindex(b'"outcome":"allowed"')
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b'"outcome":"denied!"')
    assert "log altered" in there.pull(copy, code=HISTORY).stderr
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b'"outcome":"allowed"')
    there.pull(copy)
    is_copy(copy, there)


@of_storage
def test_a_configuration_that_names_nobody(there):
    there.stop()
    there.config.write_text(there.config.read_text().replace('readers = ["bob"]', 'readers = ["nobody"]'))
    done = subprocess.run([BINARY, "storage", "serve", "--config", there.config], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "nobody" in done.stderr, done.stderr


@pytest.mark.parametrize("there", [OfXks], indirect=True)
def test_a_shared_state_put_back_that_operators_accept(there, tmp_path):
    copy, rows = tmp_path / "copy", there.proxy.state / "rows.shared"
    there.stop()
    before = rows.read_bytes()
    there.start()
    for _ in range(4):
        there.change()
    there.pull(copy)
    there.stop()
    rows.write_bytes(before)
    for operator in ("ann", "ben"):
        there.proxy.holdfast("xks", "accept-restore", "--config", there.config, "--operator", operator, "--key", there.proxy.keys[operator])
    there.start()
    # It goes on above every number that was known, and so does the copy; the command's log says who accepted what.
    there.pull(copy)
    is_copy(copy, there)
    assert [event["operation"] for event in there.proxy.events("command")].count("AcceptRestore") == 1


@of_storage
def test_a_copy_that_somebody_wrote_to(there, tmp_path):
    copy = tmp_path / "copy"
    there.busy(20)
    there.pull(copy)
    whole = copied(copy).splitlines(keepends=True)
    segment, = copy.glob("audit-*.jsonl")
    state = json.loads((copy / "copy.json").read_text())
    assert verify(copy)["copy"]["signed_line"] == state["signed"]["head"]["seq"] == len(whole)

    def changed(**more) -> bytes:
        return json.dumps(state | more).encode()
    cases = {
        "lines gone": (segment, b"".join(whole[:-3])),
        "a line changed": (segment, b"".join(whole).replace(b"HeadBucket", b"HeadBuckey", 1)),
        "lines made up": (segment, b"".join(whole[:-3]) + whole[-1]),
        "another head": (copy / "copy.json", changed(signed=state["signed"] | {"revision": 10**6})),
        "an older head that nobody signed": (copy / "copy.json", changed(signed=state["signed"] | {"head": state["proved"] | {"seq": 1}})),
        "another key": (copy / "copy.json", changed(key="00" * 32)),
        "another line proved": (copy / "copy.json", changed(proved=state["proved"] | {"hash": "00" * 32})),
        "a place that is none": (copy / "copy.json", changed(proved=state["proved"] | {"offset": 17})),
        "no state": (copy / "copy.json", b"{"),
        "an endless state": (copy / "copy.json", b"[" * 1_000_000),
    }
    for name, (path, content) in cases.items():
        good = path.read_bytes()
        path.write_bytes(content)
        done = subprocess.run([str(part) for part in (BINARY, "audit", "verify", "--log", copy)], capture_output=True, text=True, timeout=60)
        # Where the proved line ends in its file only a pull looks at, and what stands before it only `verify`.
        assert (done.returncode in (1, HISTORY)) == (name != "a place that is none"), (name, done.stdout, done.stderr)
        if name != "a line changed":
            refused = subprocess.run(there.command(copy), capture_output=True, text=True, timeout=60)
            assert refused.returncode in (1, HISTORY) and "panicked" not in refused.stderr, (name, refused.stdout, refused.stderr)
        path.write_bytes(good)
    # The control: it was these files.
    there.pull(copy)
    is_copy(copy, there)


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

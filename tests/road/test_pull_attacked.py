"""Log, store or copy are put back or written to, and somebody lies between: the copy of the log shows it."""
import hashlib
import json
import shutil
import subprocess

import pytest
from process import BINARY
from pulled import HISTORY, UNAVAILABLE, Between, OfHsm, OfKms, OfXks, copied, every_role, is_copy, of_storage, put_together, taken_apart, verify


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

"""An installation of every role that an earlier version made opens, has all that was in it, goes on, and opens again.

How it was made, and why it is never made again: tests/fixtures/README.md.
"""
import json
import pathlib

import changed
import found
import pytest
from installation import LOGS, Installation, Ports, unpack

FIXTURE = pathlib.Path(__file__).resolve().parents[1] / "fixtures/installation-v1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
SAYS_SO: dict[str, str] = {"proxy": "the shared state was upgraded to version 2"}
"""By process, what it says in its log when it takes an installation of the first version for its own: once, and never again."""


@pytest.fixture
def at(tmp_path, request):
    with Ports():
        directory = tmp_path / "installation"
        unpack(FIXTURE / "installation.tar.xz", request.param, directory)
        at = Installation(directory, EXPECTED["secrets"])
        yield at
        at.stop()


def segments(at: Installation, name: str) -> list[pathlib.Path]:
    return sorted((at.directory / LOGS[name]).glob("audit-*.jsonl"))


def last_checkpoint(at: Installation, name: str) -> bytes:
    lines = [line for path in segments(at, name) for line in path.read_bytes().splitlines() if b'"type":"checkpoint"' in line]
    return lines[-1]


def verify(at: Installation, known: dict[str, bytes]) -> None:
    """The logs hold, and have in them what was signed before the upgrade."""
    for name, line in known.items():
        file = at.directory / f"{name}.known"
        file.write_bytes(line + b"\n")
        at.holdfast("audit", "verify", "--log", at.directory / LOGS[name], "--known-line", file)


def starts(at: Installation, name: str) -> list[str]:
    return [line["detail"] for path in segments(at, name) for line in map(json.loads, path.read_text().splitlines()) if line["type"] == "start"]


@pytest.mark.parametrize("at", ["stopped", "killed"], indirect=True)
def test_it_opens_goes_on_and_opens_again(at):
    known = {name: last_checkpoint(at, name) for name in LOGS}
    at.start()
    found.keep(at, EXPECTED)
    found.begin(at, EXPECTED)
    said = {name: at.log(name).read_text() for name in at.processes}
    made = changed.change(at, EXPECTED)
    found.keep(at, EXPECTED)
    at.stop()
    verify(at, known)
    at.start()
    found.keep(at, EXPECTED)
    changed.check(at, EXPECTED, made)
    at.stop(9)
    at.start()
    found.keep(at, EXPECTED)
    at.stop()
    verify(at, known)
    for name, text in said.items():
        whole = at.log(name).read_text()
        assert "panicked" not in whole and " ERROR " not in whole, whole
        if name in SAYS_SO:
            assert SAYS_SO[name] in text and whole.count(SAYS_SO[name]) == 1, whole


@pytest.mark.parametrize("at", ["killed"], indirect=True)
def test_a_last_line_that_was_torn(at):
    """A crash of the machine: half a line at the end of each log, which nobody was ever told of."""
    known = {name: last_checkpoint(at, name) for name in LOGS}
    for name in LOGS:
        with open(segments(at, name)[-1], "ab") as file:
            file.write(b'{"seq":100000,"type":"event","time":"2026-')
    at.start()
    found.keep(at, EXPECTED)
    found.begin(at, EXPECTED)
    at.stop()
    verify(at, known)
    for name in LOGS:
        assert "torn" in starts(at, name)[-1] or "cut" in starts(at, name)[-1], starts(at, name)


@pytest.mark.parametrize("at", ["stopped"], indirect=True)
@pytest.mark.parametrize("name", ["hsm", "proxy", "kms"])
def test_it_opens_nowhere_without_its_silicon(at, name):
    """The control of what opens: sealed secrets do not open by another root."""
    silicon = at.directory / name / "silicon"
    root = bytearray(silicon.read_bytes())
    root[-1] ^= 1
    silicon.write_bytes(root)
    with pytest.raises(AssertionError, match="silicon"):
        at.start()

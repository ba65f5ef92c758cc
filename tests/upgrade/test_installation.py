"""An installation of every role that an earlier version made opens, has all that was in it, goes on, and opens again.

How it was made, and why it is never made again: tests/fixtures/README.md.
"""
import json
import pathlib

import changed
import found
import pytest
from installation import ACCOUNT, COMMANDS, KMS, LOGS, Installation, Ports, unpack

FIXTURE = pathlib.Path(__file__).resolve().parents[1] / "fixtures/installation-v1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
UPGRADED = {"hsm", "proxy", "kms"}
"""Whose state has a newer version now: it is upgraded once, and an event says so, of the operation StateUpgrade."""

FOUNDED = ("storage", "clear")
"""Which had no instance: they found one at the first start, and an event says so, of the operation FoundInstance. Another says that the rows of
their index have MACs from then on."""


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


def lines(at: Installation, name: str) -> list[dict]:
    return [json.loads(line) for path in segments(at, name) for line in path.read_text().splitlines()]


def starts(at: Installation, name: str) -> list[str]:
    return [line["detail"] for line in lines(at, name) if line["type"] == "start"]


def upgrades(at: Installation, name: str) -> int:
    return sum(line.get("operation") == "StateUpgrade" for line in lines(at, name))


@pytest.mark.parametrize("at", ["stopped", "killed"], indirect=True)
def test_it_opens_goes_on_and_opens_again(at):
    known = {name: last_checkpoint(at, name) for name in LOGS}
    at.start()
    found.keep(at, EXPECTED)
    found.begin(at, EXPECTED)
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
    for name in COMMANDS:
        text = at.log(name).read_text()
        assert "panicked" not in text and " ERROR " not in text, text
    for name in LOGS:
        assert upgrades(at, name) == (1 if name in UPGRADED else 0), name
    for name in FOUNDED:
        directory = at.directory / name / "data/audit"
        told = [json.loads(line).get("operation") for path in sorted(directory.glob("audit-*.jsonl")) for line in path.read_text().splitlines()]
        assert told.count("StateUpgrade") == 1
        assert told.count("FoundInstance") == 1 and at.log(name).read_text().count("the index of an earlier version is taken over") == 1
        at.holdfast("audit", "verify", "--log", directory)


@pytest.mark.parametrize("at", ["stopped"], indirect=True)
def test_a_log_of_the_first_format_is_copied(at):
    """From its first line on, into the lines of the present format, and after another start."""
    config, copy, env = at.directory / "kms.toml", at.directory / "copy", at.directory / "reader.env"
    config.write_text(config.read_text() + f'[audit_pull]\nreaders = ["arn:aws:iam::{ACCOUNT}:root"]\n')
    access_key, secret = at.secrets["kms"]["root"]
    env.write_text(f"AWS_ACCESS_KEY_ID={access_key}\nAWS_SECRET_ACCESS_KEY={secret}\n")
    for _ in range(2):
        at.start()
        at.holdfast("audit", "pull", "--role", "kms", "--url", f"https://localhost:{KMS}", "--ca", at.directory / "kms/data/ca.pem", "--env-file", env, "--to", copy)
        at.stop()
        at.holdfast("audit", "verify", "--log", at.directory / LOGS["kms"], "--against", copy)
    formats = [json.loads(path.read_text().splitlines()[0])["format"] for path in sorted(copy.glob("audit-*.jsonl"))]
    assert formats[0] == "holdfast-audit-1" and formats[-1] == "holdfast-audit-2", formats


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


@pytest.mark.parametrize("at", ["stopped"], indirect=True)
@pytest.mark.parametrize("files", [["rows.shared"], ["rows.shared", "instance.sealed"]], ids=" and ".join)
def test_what_was_upgraded_is_not_put_back(at, files):
    """The shared state as it was before the upgrade is as old as any other."""
    state = at.directory / "proxy/state"
    before = {name: (state / name).read_bytes() for name in files}
    at.start()
    at.stop()
    after = {name: (state / name).read_bytes() for name in files}
    for name, content in before.items():
        (state / name).write_bytes(content)
    with pytest.raises(AssertionError, match="xks accept-restore"):
        at.start()
    at.stop()
    # The control: it was these files.
    for name, content in after.items():
        (state / name).write_bytes(content)
    at.start()

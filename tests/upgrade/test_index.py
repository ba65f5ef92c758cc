"""The storage's index of an earlier version, whose rows have no MACs: taken over once, whatever interrupts that, and never again."""
import json
import random
import subprocess
import time

import found
import pytest
from index_file import IndexFile, editor
from installation import COMMANDS, Installation, Ports, unpack
from process import BINARY
from test_installation import EXPECTED, FIXTURE

MANY = 60_000
"""Rows beside those of the installation: the upgrade takes a second."""


@pytest.fixture
def at(tmp_path):
    with Ports():
        directory = tmp_path / "installation"
        unpack(FIXTURE / "installation.tar.xz", "stopped", directory)
        at = Installation(directory, EXPECTED["secrets"])
        yield at
        at.stop()


def index(at: Installation, table: str) -> IndexFile:
    return IndexFile(at.directory / "storage/data/index.redb", table)


def planted(at: Installation, table: str) -> tuple[bytes, bytes]:
    """An object in clear, as a service with encryption off writes it, of somebody who has no key."""
    file = index(at, table)
    bucket, object_id, stream = file.bucket("container"), bytes(range(16)), bytes(range(16, 32))
    record = {"v": 1, "key": "planted", "object": object_id.hex(), "version": "null", "seq": 1, "modified": 1_700_000_000_000, "size": 7, "etag": "x",
              "encryption": {"mode": "off"}, "stream": {"id": stream.hex(), "size": 7, "inline": True}, "content": {}, "mac": ""}
    header = b"HFOS\x01\x00\x10\x00" + bytes(16) + bucket + object_id + stream + bytes(56)
    text = json.dumps(record).encode()
    return b"O" + bucket + b"planted", bytes(file.tag) + len(text).to_bytes(4) + text + header + b"planted"


def events(at: Installation, operation: str) -> list[dict]:
    logs = sorted((at.directory / "storage/data/audit").glob("audit-*.jsonl"))
    lines = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("operation") == operation]


def test_a_row_without_a_mac_is_taken_by_the_upgrade_and_never_after(at):
    """The control is the upgrade itself: it cannot know who wrote a row of version 1."""
    name, row = planted(at, "index v1")
    index(at, "index v1").put(name, row)
    at.start()
    s3 = at.s3()
    assert s3.get_object(Bucket="container", Key="planted")["Body"].read() == b"planted", "the row is well made"
    s3.delete_object(Bucket="container", Key="planted")
    at.stop()
    name, row = planted(at, "index v2")
    index(at, "index v2").put(name, row)
    at.start()
    found.refused("InternalError", lambda: s3.get_object(Bucket="container", Key="planted"))
    at.stop()
    index(at, "index v2").remove(name)
    # The rows of version 1, where they lay and on their way.
    index(at, "index v1 taken over").put(name, row[32:])
    at.start()
    found.refused("NoSuchKey", lambda: s3.get_object(Bucket="container", Key="planted"))
    at.holdfast("storage", "verify", "--data-dir", at.directory / "storage/data", "--blobs")


def test_the_index_of_before_is_not_put_back(at):
    path = at.directory / "storage/data/index.redb"
    before = path.read_bytes()
    at.start()
    found.keep(at, EXPECTED)
    at.stop()
    after = path.read_bytes()
    path.write_bytes(before)
    with pytest.raises(AssertionError, match="it was put back"):
        at.start()
    at.stop()
    path.write_bytes(after)
    at.start()
    found.keep(at, EXPECTED)
    assert len(events(at, "StateUpgrade")) == 1


def test_an_upgrade_that_is_killed_goes_on(at):
    old = index(at, "index v1")
    bucket = old.bucket("container")
    done = json.dumps({"v": 1, "completed": 4_000_000_000_000, "parts": "", "etag": "e"}).encode()
    value = (len(done).to_bytes(4) + done).hex()
    names = [b"C" + bucket + b"many-%08d" % number + b"\0" + number.to_bytes(16) for number in range(MANY)]
    lines = "".join(f"put {name.hex()} {value}\n" for name in names)
    subprocess.run([editor(), old.path, old.table, "apply"], input=lines, text=True, check=True)
    rows = len(old.rows())
    command, _ = COMMANDS["storage"]
    left, kills, wait = rows, 0, 0.05
    while left:
        with open(at.log("storage"), "ab") as log:
            process = subprocess.Popen([BINARY, *command, "--config", at.directory / "storage.toml"], stderr=log)
        time.sleep(wait + random.random() * 0.1)
        ended = process.poll()
        process.kill()
        process.wait()
        assert ended is None, at.log("storage").read_text()
        # How far it came; a process that was killed before it began has left the rows where they were.
        try:
            now = len(index(at, "index v1 taken over").rows())
        except subprocess.CalledProcessError:
            now = rows if left == rows and not moved(at) else 0
        kills += now < left
        # Where it gets nowhere it is given longer.
        wait = wait if now < left else wait * 1.5
        left = now
    at.start()
    found.keep(at, EXPECTED)
    at.stop()
    new = index(at, "index v2").rows()
    assert all(name in new for name in names) and kills > 1, kills
    at.start()
    at.holdfast("storage", "verify", "--data-dir", at.directory / "storage/data")
    assert len(events(at, "StateUpgrade")) == 1 and len(events(at, "FoundInstance")) == 1


def moved(at: Installation) -> bool:
    try:
        return bool(index(at, "index v2").rows())
    except subprocess.CalledProcessError:
        return False

"""Backups of services that run, under load, and what becomes of them: restored elsewhere with their silicon, refused without, changed, cut, interrupted,
older than what is there."""
import concurrent.futures
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import threading
import time

import pytest
from process import BINARY
from test_log import OfKeyVault, OfKms, OfS3

FLIPS = 24


class Hsm(OfKeyVault):
    role = "managed-hsm"
    server = property(lambda self: self.hsm)
    config = property(lambda self: self.hsm.directory / "hsm.toml")
    silicon = property(lambda self: self.hsm.directory / "silicon")


class Kms(OfKms):
    role = "kms"
    server = property(lambda self: self.service)
    config = property(lambda self: self.service.directory / "kms.toml")
    silicon = property(lambda self: self.service.directory / "silicon")


class Storage(OfS3):
    role = "storage"
    server = property(lambda self: self.storage)
    config = property(lambda self: self.storage.directory / "storage.toml")
    silicon = property(lambda self: self.data_dir_silicon(self.storage.data_dir))

    @staticmethod
    def data_dir_silicon(data_dir: pathlib.Path) -> pathlib.Path:
        return data_dir.with_name(data_dir.name + ".silicon")


ROLES = [Hsm, Kms, Storage]


def holdfast(*args, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def backup(there, to: pathlib.Path) -> dict:
    done = holdfast("backup", "--role", there.role, "--config", there.config, "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def restore(there, path: pathlib.Path, *more) -> subprocess.CompletedProcess:
    return holdfast("restore", "--role", there.role, "--config", there.config, "--from", path, *more)


def restored(there, path: pathlib.Path, *more) -> str:
    done = restore(there, path, *more)
    assert done.returncode == 0, done.stderr
    return done.stderr


def move(there, name: str) -> pathlib.Path:
    """The same service on another data directory, with the silicon of the first; blobs are copied, as somebody would whose disk is new."""
    server, old = there.server, there.server.data_dir
    new = old.with_name(name)
    there.config.write_text(there.config.read_text().replace(f'"{old}"', f'"{new}"'))
    if there.role == "storage":
        shutil.copytree(old / "blobs", new / "blobs")
        shutil.copy2(Storage.data_dir_silicon(old), Storage.data_dir_silicon(new))
    # What clients trust lies there, and is written at the start; it is the same.
    server.data_dir = new
    return new


def begin(there) -> None:
    """Starts it where it is now."""
    there.restart(kill=False)


def told(there, operation: str) -> list[dict]:
    lines = [json.loads(line) for path in sorted(there.audit.glob("audit-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if line.get("operation") == operation]


def verified(there) -> None:
    done = holdfast("audit", "verify", "--log", there.audit)
    assert done.returncode == 0, done.stderr


class Load:
    """Changes one after the other, from several threads; each mark that was answered."""

    def __init__(self, there, threads: int = 4):
        self.there, self.done, self.stop = there, [], threading.Event()
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.running = [self.pool.submit(self.run, number) for number in range(threads)]

    def run(self, number: int) -> None:
        count = 0
        while not self.stop.is_set():
            mark = f"load-{number}-{count}"
            status = self.there.change(mark)
            # A change that is throttled did not happen.
            assert status // 100 == 2 or status in (400, 429, 503), status
            if status // 100 == 2:
                self.done.append(mark)
            count += 1

    def until(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.done) < count:
            assert time.monotonic() < deadline and not any(future.done() for future in self.running), len(self.done)
            time.sleep(0.01)

    def end(self) -> None:
        self.stop.set()
        for future in self.running:
            future.result(60)
        self.pool.shutdown()


@pytest.mark.parametrize("role", ROLES)
def test_under_load_and_restored_elsewhere(role, tmp_path):
    there = role(tmp_path, 0)
    load = Load(there)
    load.until(20)
    before = list(load.done)
    path = tmp_path / "one.backup"
    taken = backup(there, path)
    named = backup(there, tmp_path)
    load.until(len(before) + 20)
    load.end()
    assert there.use() == 200
    assert pathlib.Path(named["file"]).parent == tmp_path and named["revision"] >= taken["revision"]
    events = told(there, "TakeBackup")
    assert [event["context"]["backup"] for event in events] == [taken["id"], named["id"]], events
    assert os.stat(path).st_mode & 0o777 == 0o600
    secret = there.silicon.read_bytes()[5:]
    assert secret not in path.read_bytes()
    there.halt()
    changes_then = {line["revision"]: line for line in changes(there)}
    new = move(there, "elsewhere")
    assert "change is undone" not in restored(there, path)
    begin(there)
    found = there.there()
    assert all(found[mark] for mark in before), "what was answered before the backup is there"
    events = told(there, "RestoreBackup")
    assert [event["context"]["backup"] for event in events] == [taken["id"]], events
    # Log and outbox tell of each change up to the revision, as the first log did, and of none behind it.
    there.halt()
    now = [line for line in changes(there) if line["revision"] <= taken["revision"]]
    assert [line["revision"] for line in now] == list(range(1, taken["revision"] + 1))
    for line in now:
        then = changes_then[line["revision"]]
        assert (line["request_id"], line["operation"]) == (then["request_id"], then["operation"])
    verified(there)
    begin(there)
    assert there.change("after") // 100 == 2 and there.use() == 200
    there.halt()
    begin(there)
    assert len(told(there, "RestoreBackup")) == 1 and there.there()["after"]
    there.halt()
    assert not (new / "restore.note").exists() and not (new / "restoring").exists()
    # At rest, too; the first one opens as before.
    again = backup(there, tmp_path / "rest.backup")
    assert again["revision"] > taken["revision"]


def changes(there) -> list[dict]:
    lines = [json.loads(line) for path in sorted(there.audit.glob("audit-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if line["type"] == "event" and "revision" in line]


@pytest.mark.parametrize("role", ROLES)
def test_without_its_silicon_changed_or_cut_it_is_refused(role, tmp_path):
    there = role(tmp_path, 0)
    assert there.change("one") // 100 == 2
    path = tmp_path / "one.backup"
    taken = backup(there, path)
    there.halt()
    new = move(there, "elsewhere")
    # Others' backups and services.
    other = next(name for name in ("kms", "managed-hsm", "storage") if name != there.role)
    done = holdfast("restore", "--role", other, "--config", there.config, "--from", path)
    assert done.returncode != 0
    silicon = there.silicon
    kept = silicon.read_bytes()
    silicon.unlink()
    done = restore(there, path)
    assert done.returncode != 0 and taken["instance"] in done.stderr and "silicon" in done.stderr, done.stderr
    assert not silicon.exists(), "silicon is not made by a restore"
    silicon.write_bytes(kept[:5] + secrets.token_bytes(32))
    silicon.chmod(0o600)
    done = restore(there, path)
    assert done.returncode != 0 and "another silicon" in done.stderr, done.stderr
    silicon.write_bytes(kept)
    good, bad = path.read_bytes(), tmp_path / "bad.backup"
    for at in [0, 5, 40, *(secrets.randbelow(len(good)) for _ in range(FLIPS)), len(good) - 1]:
        bad.write_bytes(good[:at] + bytes([good[at] ^ 1 << secrets.randbelow(8)]) + good[at + 1:])
        done = restore(there, bad)
        assert done.returncode != 0 and "panicked" not in done.stderr, (at, done.stderr)
        assert not (new / "records.redb").exists(), at
    for length in (0, 3, len(good) // 2, len(good) - 1):
        bad.write_bytes(good[:length])
        assert restore(there, bad).returncode != 0
    bad.write_bytes(good + b"x")
    assert "changed" in restore(there, bad).stderr
    done = restore(there, path, "--check")
    assert done.returncode == 0 and taken["id"] in done.stdout, done.stderr
    restored(there, path)
    begin(there)
    assert there.there()["one"] and there.use() == 200
    there.halt()


@pytest.mark.parametrize("role", ROLES)
def test_a_restore_that_is_killed_is_mended_by_the_next(role, tmp_path):
    there = role(tmp_path, 0)
    for number in range(40):
        assert there.change(f"key-{number}") // 100 == 2
    expected = there.there()
    path = tmp_path / "one.backup"
    taken = backup(there, path)
    there.halt()
    new = move(there, "elsewhere")
    command = [str(BINARY), "restore", "--role", there.role, "--config", str(there.config), "--from", str(path)]
    for delay in [number * 0.02 for number in range(1, 30)]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
        said = process.communicate()[1].decode()
        # Killed when all was in its place and the marker was gone, it had ended.
        had_ended = process.returncode == 2 and "restore.note are there" in said and not (new / "restore.unfinished").exists()
        if process.returncode == 0 or had_ended:
            break
        assert process.returncode == -9, said
        if (new / "restore.unfinished").exists():
            with pytest.raises(AssertionError) as caught:
                begin(there)
            assert "did not end" in str(caught.value)
    else:
        restored(there, path)
    begin(there)
    assert there.there() == expected
    assert [event["context"]["backup"] for event in told(there, "RestoreBackup")] == [taken["id"]]
    there.halt()
    assert not (new / "restore.unfinished").exists() and not (new / "restoring").exists()


@pytest.mark.parametrize("role", ROLES)
def test_yesterday_over_today_is_told_and_needs_the_word(role, tmp_path):
    there = role(tmp_path, 0)
    assert there.change("yesterday") // 100 == 2
    path = tmp_path / "yesterday.backup"
    taken = backup(there, path)
    assert there.change("today") // 100 == 2 and there.use() == 200
    done = restore(there, path, "--over", "--yes")
    assert done.returncode == 4 and "a service runs on it" in done.stderr, done.stderr
    there.halt()
    today = log(there)
    done = restore(there, path)
    assert done.returncode == 2 and "is not empty" in done.stderr, done.stderr
    done = restore(there, path, "--over")
    assert done.returncode == 3 and "undone" in done.stderr, done.stderr
    begin(there)
    assert there.there()["today"], "nothing was restored"
    there.halt()
    today = log(there)
    data_dir = there.server.data_dir
    said = restored(there, path, "--over", "--yes")
    assert "1 change is undone" in said or "changes are undone" in said, said
    note = (data_dir / "restore.note").read_bytes()
    begin(there)
    found = there.there()
    assert found["yesterday"] and not found["today"]
    event, = told(there, "RestoreBackup")
    assert event["context"]["backup"] == taken["id"] and int(event["context"]["undone"]) >= 1, event
    assert not told(there, "AcceptLoss")
    there.halt()
    assert log(there).startswith(today), "the log goes on: what was undone is told"
    verified(there)
    aside, = data_dir.glob("before-restore-*")
    assert (aside / "records.redb").exists()
    # The note lets pass that restore beside that end of the log, and no other: store and note of then are not taken again.
    begin(there)
    assert there.change("later") // 100 == 2
    there.halt()
    kept = {name: (data_dir / name).read_bytes() for name in ("records.redb", "index.redb") if (data_dir / name).exists()}
    (data_dir / "restore.note").write_bytes(note)
    old = tmp_path / "old"
    shutil.copytree(data_dir, old)
    unpacked = unpack(there, path, tmp_path / "unpacked")
    for name in kept:
        shutil.copy2(unpacked / name, data_dir / name)
    with pytest.raises(AssertionError) as caught:
        begin(there)
    assert "older than" in str(caught.value), caught.value
    for name, content in kept.items():
        (data_dir / name).write_bytes(content)
    (data_dir / "restore.note").write_bytes(bytes([note[0]]) + note[1:-1] + bytes([note[-1] ^ 1]))
    with pytest.raises(AssertionError) as caught:
        begin(there)
    assert "restore.note" in str(caught.value), caught.value
    (data_dir / "restore.note").unlink()
    begin(there)
    assert there.there()["later"]
    there.halt()


def log(there) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(there.audit.glob("audit-*.jsonl")))


def unpack(there, path: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """The state of a backup, in a directory that nobody serves."""
    config = there.config.read_text()
    here = there.server.data_dir
    try:
        there.config.write_text(config.replace(f'"{here}"', f'"{to}"'))
        if there.role == "storage":
            shutil.copy2(Storage.data_dir_silicon(here), Storage.data_dir_silicon(to))
        restored(there, path)
    finally:
        there.config.write_text(config)
    return to


@pytest.mark.parametrize("role", ROLES)
def test_over_a_state_that_is_lost(role, tmp_path):
    """Its store is damaged and its log is gone: the backup's log takes its place, and the event says so."""
    there = role(tmp_path, 0)
    assert there.change("one") // 100 == 2
    path = tmp_path / "one.backup"
    backup(there, path)
    assert there.change("two") // 100 == 2
    there.halt()
    data_dir = there.server.data_dir
    for file in ("records.redb", "index.redb"):
        if (data_dir / file).exists():
            (data_dir / file).write_bytes(b"\0" * 8192)
    segment = sorted(there.audit.glob("audit-*.jsonl"))[0]
    lines = segment.read_bytes().split(b"\n")
    segment.write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    said = restored(there, path, "--over", "--yes")
    assert "set aside" in said, said
    begin(there)
    found = there.there()
    assert found["one"] and not found["two"] and there.use() == 200
    there.halt()
    assert len(told(there, "RestoreBackup")) == 1
    verified(there)


def test_a_backup_of_another_instance_is_not_laid_over_this_one(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    here, there = Kms(tmp_path / "a", 0), Kms(tmp_path / "b", 0)
    path = tmp_path / "a.backup"
    backup(here, path)
    here.halt()
    there.halt()
    shutil.copy2(here.silicon, there.silicon)
    done = restore(there, path, "--over", "--yes")
    assert done.returncode == 2 and "of instance" in done.stderr, done.stderr


def test_a_plain_copy_says_what_happened(tmp_path):
    there = Kms(tmp_path, 0)
    there.halt()
    store = there.server.data_dir / "records.redb"
    content = bytearray(store.read_bytes())
    # Both roots: what a copy has that was made while they were written.
    content[64:320] = bytes(256)
    store.write_bytes(content)
    with pytest.raises(AssertionError) as caught:
        begin(there)
    said = str(caught.value)
    assert "holdfast restore" in said and "another process" not in said, said


def stores_of(data_dir: pathlib.Path) -> dict[str, bytes]:
    return {name: (data_dir / name).read_bytes() for name in ("records.redb", "index.redb") if (data_dir / name).exists()}


def lay(data_dir: pathlib.Path, stores: dict[str, bytes]) -> None:
    for name, content in stores.items():
        (data_dir / name).write_bytes(content)


@pytest.mark.parametrize("role", ROLES)
def test_no_number_is_given_twice_and_the_other_backup_can_be_taken_after_all(role, tmp_path):
    there = role(tmp_path, 0)
    data_dir = there.server.data_dir
    assert there.change("yesterday") // 100 == 2
    wrong, right = tmp_path / "wrong.backup", tmp_path / "right.backup"
    backup(there, wrong)
    assert there.change("today") // 100 == 2 and there.change("evening") // 100 == 2
    there.halt()
    backup(there, right)
    old = stores_of(data_dir)
    restored(there, wrong, "--over", "--yes")
    begin(there)
    assert there.change("other") // 100 == 2
    there.halt()
    numbers = [line["revision"] for line in changes(there)]
    assert len(numbers) == len(set(numbers)) and numbers == sorted(numbers), numbers
    verified(there)
    # The store of the history that was undone: of no number is there another one than that of this log.
    new = stores_of(data_dir)
    lay(data_dir, old)
    with pytest.raises(AssertionError) as caught:
        begin(there)
    assert "older than" in str(caught.value), caught.value
    lay(data_dir, new)
    said = restored(there, right, "--over", "--yes")
    assert "undone" in said and "no change" not in said, said
    begin(there)
    found = there.there()
    assert found["today"] and found["evening"] and not found["other"]
    assert there.change("after-all") // 100 == 2 and there.use() == 200
    there.halt()
    begin(there)
    assert there.there()["after-all"]
    there.halt()
    numbers = [line["revision"] for line in changes(there)]
    assert len(numbers) == len(set(numbers)) and numbers == sorted(numbers), numbers
    assert len(told(there, "RestoreBackup")) == 2 and not told(there, "AcceptLoss")
    verified(there)


@pytest.mark.parametrize("role", ROLES)
def test_a_backup_after_a_restore_opens_in_an_empty_directory(role, tmp_path):
    there = role(tmp_path, 0)
    assert there.change("yesterday") // 100 == 2
    path, later = tmp_path / "yesterday.backup", tmp_path / "later.backup"
    backup(there, path)
    for number in range(3):
        assert there.change(f"today-{number}") // 100 == 2
    there.halt()
    restored(there, path, "--over", "--yes")
    done = holdfast("backup", "--role", there.role, "--config", there.config, "--to", later)
    assert done.returncode != 0 and "start its service once" in done.stderr, done.stderr
    begin(there)
    assert there.change("new") // 100 == 2
    backup(there, later)
    assert there.change("newer") // 100 == 2
    there.halt()
    move(there, "elsewhere")
    restored(there, later)
    begin(there)
    found = there.there()
    assert found["yesterday"] and found["new"] and not found["newer"] and not found["today-0"], found
    there.halt()
    verified(there)


@pytest.mark.parametrize("role", ROLES)
def test_a_log_whose_end_was_cut_is_set_aside_and_that_is_told(role, tmp_path):
    there = role(tmp_path, 0)
    data_dir = there.server.data_dir
    assert there.change("one") // 100 == 2
    path = tmp_path / "one.backup"
    backup(there, path)
    assert there.change("two") // 100 == 2 and there.use() == 200
    there.halt()
    segment = sorted(there.audit.glob("audit-*.jsonl"))[-1]
    whole = segment.read_bytes()
    # The mark in the store knows of the last line; the watermark is gone with it.
    segment.write_bytes(b"".join(whole.splitlines(keepends=True)[:-3]))
    watermark = (data_dir / "watermark.slots").read_bytes()
    (data_dir / "watermark.slots").unlink()
    said = restored(there, path, "--over", "--yes")
    assert "it is set aside" in said and "that are known" in said, said
    begin(there)
    event, = told(there, "RestoreBackup")
    assert "line" in event["context"]["log_set_aside"], event
    assert not there.there()["two"]
    there.halt()
    verified(there)
    # Control: whole, it is kept.
    aside, = data_dir.glob("before-restore-*")
    (aside / "audit" / segment.name).write_bytes(whole)
    for file in [*aside.iterdir()]:
        target = data_dir / file.name
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        shutil.move(file, target)
    (data_dir / "watermark.slots").write_bytes(watermark)
    assert "the log that is there goes on" in restored(there, path, "--over", "--yes")


def test_what_lies_there_and_was_not_left_by_a_restore_ends_none(tmp_path):
    there = Kms(tmp_path, 0)
    data_dir = there.server.data_dir
    assert there.change("one") // 100 == 2
    path = tmp_path / "one.backup"
    taken = backup(there, path)
    assert there.change("two") // 100 == 2
    there.halt()
    marker = data_dir / "restore.unfinished"
    for aside in ("x", "before-restore-7"):
        marker.write_text(json.dumps({"phase": "swap", "backup": taken["id"], "aside": aside, "old": [], "new": []}))
        done = restore(there, path, "--over", "--yes")
        assert done.returncode != 0 and "restored" not in done.stdout and "restore.unfinished" in done.stderr, done
    marker.unlink()
    sealed = data_dir / "instance.sealed"
    sealed.rename(tmp_path / "sealed")
    os.mkfifo(sealed)
    done = holdfast("restore", "--role", "kms", "--config", there.config, "--from", path, "--over", "--yes", timeout=60)
    assert done.returncode == 0, done.stderr
    begin(there)
    found = there.there()
    assert found["one"] and not found["two"]
    there.halt()

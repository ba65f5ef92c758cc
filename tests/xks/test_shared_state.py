"""The state that the proxy's processes share: whoever may write its files but holds no key changes nothing unseen, and whatever
hangs or is full, the plug comes out."""
import fcntl
import hashlib
import json
import shutil
import signal
import struct
import subprocess
import threading
import time

import pytest
from conftest import PIN, POLICY, check_end, hsm_config, keys_of
from proxy import Kms, Proxy, assert_refused

SOFT = '[[hsms]]\nname = "east"\nsoftware_insecure = true\n'
TAG_BYTES = 32
# A change of the file is to be noticed in this time.
NOTICED_SECONDS = 0.3


def stocked(directory, hsms: str, *, pin: str | None = None) -> Proxy:
    proxy = Proxy(directory, hsms)
    proxy.start("a")
    proxy.start("b")
    if pin:
        proxy.change("hsm-pin", "--hsm", "east", secret=pin)
        proxy.wait_for_hsm("east")
        proxy.wait_for_hsm("east", process="b")
    else:
        for key in ("orders", "other"):
            proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key)
    proxy.set_policy(POLICY + keys_of("east"))
    return proxy


@pytest.fixture(scope="module", params=["software", "softhsm"])
def own(request, softhsm, tmp_path_factory):
    directory = tmp_path_factory.mktemp(f"shared-{request.param}")
    if request.param == "softhsm":
        proxy = stocked(directory, hsm_config(softhsm, "east", "east"), pin=PIN)
    else:
        proxy = stocked(directory, SOFT)
    yield proxy
    check_end(proxy)


@pytest.fixture(scope="module")
def kms(own):
    credential = own.add_credential("blue")
    pair = [Kms(own, credential, process=process) for process in ("a", "b")]
    wait_for(lambda: all(serves(client) for client in pair))
    return pair


def serves(client: Kms) -> bool:
    return client.raw("encrypt", client.encrypt_body()).status_code == 200


def wait_for(holds, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settle(proxy) -> None:
    """Until nothing is left that a process would write by itself, and all have seen it."""
    def settled() -> bool:
        states = [proxy.status(name)["state"] for name in proxy.processes]
        known = {(state["generation"], state["kills_to_take_in"], state["events_to_tell"]) for state in states}
        return len(known) == 1 and known.pop()[1:] == (0, 0)
    wait_for(settled)


def rows(proxy):
    return proxy.state / "rows.shared"


def put(path, content: bytes) -> None:
    """As a person with a shell would: a new file in the place of the old one."""
    replacement = path.with_name("planted")
    replacement.write_bytes(content)
    replacement.rename(path)


def split(content: bytes) -> tuple[bytes, int, list[bytes], bytes]:
    """Magic, generation, rows, tag."""
    magic, generation, at, found = content[:5], struct.unpack(">Q", content[5:13])[0], 13, []
    while at < len(content) - TAG_BYTES:
        length = 45 + struct.unpack(">I", content[at + 41:at + 45])[0]
        found.append(content[at:at + length])
        at += length
    return magic, generation, found, content[-TAG_BYTES:]


def join(magic: bytes, generation: int, found: list[bytes], tag: bytes | None) -> bytes:
    """Without a tag: version 1, with the digest that anybody can make."""
    body = magic + struct.pack(">Q", generation) + b"".join(found)
    return body + (tag if tag is not None else hashlib.sha256(body).digest())


def distrusted(proxy, process: str) -> str | None:
    return proxy.status(process)["state"]["distrusted"]


def refuses_to_start(proxy, process: str = "a") -> str:
    done = proxy.holdfast("xks", "serve", "--config", proxy.config(process), check=False, timeout=30)
    assert done.returncode != 0, "it serves"
    return done.stderr


def restart(proxy) -> None:
    proxy.stop()
    proxy.start("a")
    proxy.start("b")


def snapshot(proxy, name: str):
    """All files of the state, to be put back later."""
    copy = proxy.directory / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(proxy.state, copy)
    return copy


def accept(proxy, operator: str, check: bool = True):
    return proxy.holdfast("xks", "accept-restore", "--config", proxy.config("a"), "--operator", operator, "--key", proxy.keys[operator], check=check)


def command_events(proxy, operation: str) -> list[dict]:
    return [event for event in proxy.events("command") if event["operation"] == operation]


def forgeries(good: bytes, older: bytes) -> dict[str, bytes]:
    magic, generation, found, tag = split(good)
    _, _, old_rows, old_tag = split(older)
    newer = struct.pack(">Q", generation + 1000)
    return {
        "a row dropped": join(magic, generation, found[1:], tag),
        "the last row dropped": join(magic, generation, found[:-1], tag),
        "all rows dropped": join(magic, generation, [], tag),
        "two rows swapped": join(magic, generation, [found[1], found[0], *found[2:]], tag),
        "an older row put back": join(magic, generation, old_rows, tag),
        "the older file": older,
        "the older file with a higher number": older[:5] + newer + older[13:],
        "the older rows with a higher number": join(magic, generation + 1000, old_rows, old_tag),
        "a higher number": join(magic, generation + 1000, found, tag),
        "version 1 of the same rows": join(b"HFSR\x01", generation, found, None),
        "version 1, newer": join(b"HFSR\x01", generation + 1000, found, None),
        "version 1 without a row": join(b"HFSR\x01", generation + 1000, found[1:], None),
        "nothing": b"",
    }


def test_forged_and_older_files_while_it_runs(own, kms):
    settle(own)
    older = rows(own).read_bytes()
    own.kill("--store", "green")
    settle(own)
    good = rows(own).read_bytes()
    wait_for(lambda: all(serves(client) for client in kms))
    for what, content in forgeries(good, older).items():
        put(rows(own), content)
        time.sleep(NOTICED_SECONDS)
        for client in kms:
            assert client.raw("encrypt", client.encrypt_body()).status_code == 500, what
            assert distrusted(own, client.process), what
        # Nor is anything changed on such ground.
        assert own.propose("ann", "lift", "--store", "green", check=False).returncode != 0, what
        put(rows(own), good)
        wait_for(lambda: all(serves(client) for client in kms))
    rows(own).unlink()
    time.sleep(NOTICED_SECONDS)
    assert kms[0].raw("encrypt", kms[0].encrypt_body()).status_code == 500
    put(rows(own), good)
    wait_for(lambda: all(serves(client) for client in kms))
    assert distrusted(own, "a") is None
    own.change("lift", "--store", "green")


def test_forged_and_older_files_at_the_start(own, kms):
    settle(own)
    older = rows(own).read_bytes()
    own.kill("--store", "green")
    settle(own)
    own.stop()
    good = rows(own).read_bytes()
    for what, content in forgeries(good, older).items():
        put(rows(own), content)
        told = refuses_to_start(own)
        if what == "the older file":
            assert "has seen" in told and "accept-restore" in told, told
        if what.startswith("version 1"):
            assert "version 1" in told, told
    rows(own).unlink()
    assert "has seen" in refuses_to_start(own)
    put(rows(own), good)
    own.start("a")
    own.start("b")
    wait_for(lambda: all(serves(client) for client in kms))
    own.change("lift", "--store", "green")


def test_yesterdays_state_is_found_out_by_each_of_its_witnesses(own, kms):
    """By the mark of any process, and by any log; not if all of them are put back with it: that is written down in the docs."""
    settle(own)
    before = snapshot(own, "yesterday")
    own.kill("--store", "green")
    settle(own)
    # Uses name the state that they were judged by, in each log.
    assert all(serves(client) for client in kms)
    own.stop()
    after = snapshot(own, "today")

    def put_back(*names: str) -> None:
        for source in (after, before):
            for name in (names if source == before else ("rows.shared", "processes", "instance.sealed")):
                here = own.state / name
                shutil.rmtree(here, ignore_errors=True) if here.is_dir() else here.unlink(missing_ok=True)
                if (source / name).is_dir():
                    shutil.copytree(source / name, here)
                elif (source / name).exists():
                    shutil.copy(source / name, here)
    put_back("rows.shared")
    assert "the mark of process" in refuses_to_start(own)
    for one, other in (("a", "b"), ("b", "a")):
        put_back("rows.shared", f"processes/{one}")
        assert f"process {other} has seen" in refuses_to_start(own)
    marks = [f"processes/{process}/mark.slots" for process in ("a", "b", "command")]
    put_back("rows.shared", *marks)
    assert "the audit log of process" in refuses_to_start(own)
    put_back("rows.shared", *marks, "processes/a/audit")
    assert "the audit log of process b" in refuses_to_start(own)
    # The control: with all that could know of it put back as well it is not found out.
    put_back("rows.shared", "processes")
    own.start("a")
    own.stop("a")
    put_back()
    own.start("a")
    own.start("b")
    wait_for(lambda: all(serves(client) for client in kms))
    own.change("lift", "--store", "green")


def test_a_restore_is_accepted_by_as_many_as_a_change_takes(own, kms):
    settle(own)
    older = rows(own).read_bytes()
    own.kill("--store", "green")
    own.change("lift", "--store", "green")
    own.kill("--store", "sample")
    settle(own)
    assert "nothing to accept" in accept(own, "ann", check=False).stderr
    own.stop()
    put(rows(own), older)
    refuses_to_start(own)
    # Nobody alone, nobody twice, nobody else.
    stranger = own.directory / "eve.key"
    stranger.unlink(missing_ok=True)
    own.holdfast("quorum", "keygen", stranger)
    for name, key in (("eve", stranger), ("ben", stranger)):
        refused = own.holdfast("xks", "accept-restore", "--config", own.config("a"), "--operator", name, "--key", key, check=False)
        assert refused.returncode == 3, refused.stderr
    for _ in range(2):
        assert "1 of 2" in accept(own, "ann").stdout
        refuses_to_start(own)
    # A word that was written by hand is worth nothing.
    said = json.loads((own.state / "restore.accepted").read_text())
    forged = said | {"signatures": [*said["signatures"], ["ben", said["signatures"][0][1]]]}
    (own.state / "restore.accepted").write_text(json.dumps(forged))
    assert "1 of 2" in accept(own, "ann").stdout
    done = accept(own, "ben").stdout
    assert "ann, ben (2 of 2)" in done and "in force" in done
    event = command_events(own, "AcceptRestore")[-1]
    assert event["context"]["operators"] == "ann, ben" and int(event["context"]["newest"]) > int(event["context"]["found"])
    own.start("a")
    own.start("b")
    wait_for(lambda: all(serves(client) for client in kms))
    # Kills that were written down after the state that was restored are in force: nothing says that they were lifted.
    assert {kill["scope"] for kill in own.status()["kill_switches"]} == {'store "green"', 'store "sample"'}
    own.change("lift", "--store", "green")
    own.change("lift", "--store", "sample")
    # What was given up stays given up: the older file is older still.
    own.stop()
    put(rows(own), older)
    assert "has seen" in refuses_to_start(own)
    for operator in ("ann", "cat"):
        accept(own, operator)
    own.start("a")
    own.start("b")
    wait_for(lambda: all(serves(client) for client in kms))
    for kill in own.status()["kill_switches"]:
        own.change("lift", "--store", kill["scope"].split('"')[1])


def test_a_restore_under_running_processes(own, kms):
    settle(own)
    older = rows(own).read_bytes()
    own.kill("--store", "green")
    settle(own)
    put(rows(own), older)
    wait_for(lambda: distrusted(own, "a") and distrusted(own, "b"))
    for operator in ("ann", "ben"):
        accept(own, operator)
    wait_for(lambda: all(serves(client) for client in kms))
    if own.status()["kill_switches"]:
        own.change("lift", "--store", "green")


@pytest.fixture
def stuck(own):
    """The lock of the state, held as by a process that was stopped while it had it."""
    with open(own.state / "rows.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def test_a_stopped_process_with_the_lock_stops_nobodys_kill(own, kms, stuck):
    own.processes["a"].send_signal(signal.SIGSTOP)
    try:
        done = own.kill("--all", check=False)
        # It says which process did not answer, and that the others have stopped.
        assert done.returncode == 4 and "stopped: everything" in done.stdout and "/a" in done.stderr, (done.stdout, done.stderr)
        assert_refused(kms[1].raw("encrypt", kms[1].encrypt_body()), 400, "InvalidStateException")
        # Nothing else waits for ever, and it is said who is in the way.
        said = own.propose("ann", "lift", "--all", check=False)
        assert said.returncode == 4 and "rows.lock has been held" in said.stderr and "pid" in said.stderr, said.stderr
    finally:
        own.processes["a"].send_signal(signal.SIGCONT)
    wait_for(lambda: own.status("a")["kill_switches"])
    assert_refused(kms[0].raw("encrypt", kms[0].encrypt_body()), 400, "InvalidStateException")
    blocked = own.propose("ann", "lift", "--all", check=False)
    assert blocked.returncode == 4 and "rows.lock has been held" in blocked.stderr, blocked.stderr
    # It is taken into the state when the lock is free; a restart before that forgets nothing.
    assert own.status("b")["state"]["kills_to_take_in"] > 0
    restart(own)
    for client in kms:
        assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
    fcntl.flock(stuck, fcntl.LOCK_UN)
    settle(own)
    kills = [event for process in ("a", "b") for event in own.events(process) if event["operation"] == "Kill" and event["context"]["scope"] == "everything"]
    assert kills
    own.change("lift", "--all")
    wait_for(lambda: all(serves(client) for client in kms))


def test_a_lift_is_of_the_kills_before_it(own, kms):
    """Pulled twice, by two processes: one lift is of both; one that is pulled afterwards stays."""
    for _ in range(3):
        own.kill("--store", "blue")
    own.change("lift", "--store", "blue")
    wait_for(lambda: all(serves(client) for client in kms))
    restart(own)
    # The HSM takes a moment to get ready.
    wait_for(lambda: all(serves(client) for client in kms))
    own.kill("--store", "blue")
    own.kill("--key-id", "other")
    own.change("lift", "--key-id", "other")
    for client in kms:
        assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
    restart(own)
    for client in kms:
        assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
    own.change("lift", "--store", "blue")
    wait_for(lambda: all(serves(client) for client in kms))


def test_kills_that_are_taken_away(own, kms, stuck):
    """Before they are in the state: while it runs and at the start; torn, zeroed, the file put back or gone."""
    files = {process: own.state / "processes" / process / "kills.slots" for process in ("a", "b")}
    before = {process: file.read_bytes() for process, file in files.items()}
    own.kill("--store", "green")
    changed = [process for process, file in files.items() if file.read_bytes() != before[process]]
    assert len(changed) == 1
    file, good = files[changed[0]], files[changed[0]].read_bytes()
    assert all(serves(client) for client in kms)
    other = files["b" if changed == ["a"] else "a"].read_bytes()
    bads = {"put back": before[changed[0]], "zeroed": bytes(len(good)), "cut": good[:100], "another's": other}
    for what, bad in bads.items():
        file.write_bytes(bad)
        time.sleep(NOTICED_SECONDS)
        for client in kms:
            assert client.raw("encrypt", client.encrypt_body()).status_code == 500, what
            assert "KILLS WERE TAKEN AWAY" in distrusted(own, client.process)
        file.write_bytes(good)
        wait_for(lambda: all(serves(client) for client in kms))
    file.unlink()
    time.sleep(NOTICED_SECONDS)
    assert kms[0].raw("encrypt", kms[0].encrypt_body()).status_code == 500
    own.stop()
    assert "KILLS WERE TAKEN AWAY" in refuses_to_start(own, "b")
    file.write_bytes(good)
    fcntl.flock(stuck, fcntl.LOCK_UN)
    own.start("a")
    own.start("b")
    settle(own)
    own.change("lift", "--store", "green")


def test_a_lost_kill_can_be_given_up_by_quorum(own, kms, stuck):
    own.kill("--store", "green")
    own.stop()
    for process in ("a", "b"):
        file = own.state / "processes" / process / "kills.slots"
        file.write_bytes(bytes(file.stat().st_size))
    assert "accept-restore" in refuses_to_start(own)
    fcntl.flock(stuck, fcntl.LOCK_UN)
    for operator in ("ann", "ben"):
        said = accept(own, operator).stdout
    assert "given up" in said and "in force" in said
    own.start("a")
    own.start("b")
    wait_for(lambda: all(serves(client) for client in kms))
    # A new kill of the same process counts, though its room was emptied.
    own.kill("--store", "green")
    assert own.status()["kill_switches"]
    own.change("lift", "--store", "green")


def test_a_stopped_command_is_in_no_commands_way(own, kms):
    own.stop()
    directory = own.state / "processes" / "command"
    with open(directory / "alive.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = own.holdfast("xks", "kill", "--config", own.config("a"), "--all", timeout=60)
        assert "stopped: everything" in done.stdout
    own.start("a")
    own.start("b")
    for client in kms:
        assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
    own.change("lift", "--all")
    wait_for(lambda: all(serves(client) for client in kms))


def test_kill_9_right_after_the_plug(own, kms):
    """Whatever was said to be stopped is stopped after a crash, and has its event."""
    for round_ in range(4):
        own.kill("--all", "--reason", f"round {round_}")
        own.stop(how=signal.SIGKILL)
        own.start("a")
        own.start("b")
        for client in kms:
            assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
        told = [event for process in ("a", "b") for event in own.events(process) if event.get("reason") == f"round {round_}" and event["operation"] == "Kill"]
        assert told
        own.change("lift", "--all")
        wait_for(lambda: all(serves(client) for client in kms))


@pytest.fixture
def small_disk(tmp_path):
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mounted], capture_output=True, text=True)
    assert done.returncode == 0, f"this test mounts a small disk, which takes root: {done.stderr}"
    yield mounted
    subprocess.run(["umount", "--lazy", mounted], check=True)


def fill(disk) -> None:
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    ballast.write(bytes(size))
            except OSError:
                pass


def test_the_plug_on_a_full_disk(small_disk, tmp_path):
    proxy = Proxy(tmp_path / "full", SOFT)
    proxy.state = small_disk / "state"
    proxy.start("a")
    proxy.start("b")
    for key in ("orders", "other"):
        proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key)
    proxy.set_policy(POLICY + keys_of("east"))
    clients = [Kms(proxy, proxy.add_credential("blue"), process=process) for process in ("a", "b")]
    wait_for(lambda: all(serves(client) for client in clients))
    before = rows(proxy).read_bytes()
    fill(small_disk)
    # The control: any other change needs room.
    assert proxy.propose("ann", "lift", "--all", check=False).returncode != 0
    assert proxy.propose("ann", "key-create", "--key-id", "x", "--hsm", "east", "--label", "x", check=False).returncode != 0
    assert rows(proxy).read_bytes() == before and not (proxy.state / "rows.new").exists()
    done = proxy.kill("--all", "--reason", "on a full disk")
    assert "last of 2 processes" in done.stdout
    for client in clients:
        assert client.raw("encrypt", client.encrypt_body()).status_code != 200
        assert proxy.status(client.process)["kill_switches"]
    # Nor does a crash undo it.
    proxy.stop(how=signal.SIGKILL)
    (small_disk / "ballast").unlink()
    proxy.start("a")
    proxy.start("b")
    for client in clients:
        assert_refused(client.raw("encrypt", client.encrypt_body()), 400, "InvalidStateException")
    settle(proxy)
    assert any(event.get("reason") == "on a full disk" for process in ("a", "b") for event in proxy.events(process))
    proxy.change("lift", "--all")
    wait_for(lambda: all(serves(client) for client in clients))
    check_end(proxy)


def told(proxy, proposal: str) -> dict[str, set[str]]:
    """Events of a proposal by operation; one that is in two logs counts once, by its id."""
    found: dict[str, set[str]] = {}
    for process in ("a", "b"):
        for event in proxy.events(process):
            if event.get("context", {}).get("proposal") == proposal and event["outcome"] == "allowed":
                found.setdefault(event["operation"], set()).add(event["request_id"])
    return found


def test_a_log_that_cannot_be_written_loses_no_event(own, kms, small_disk):
    """Its changes wait in the state; another process tells them when the one that made them is gone."""
    directory, moved = own.state / "processes" / "a" / "audit", small_disk / "audit"
    own.stop("a")
    shutil.copytree(directory, moved)
    shutil.rmtree(directory)
    directory.symlink_to(moved)
    own.start("a")
    wait_for(lambda: serves(kms[0]))
    fill(small_disk)
    # The control: a use is not answered without its event.
    wait_for(lambda: kms[0].raw("encrypt", kms[0].encrypt_body()).status_code == 500)
    proposal = own.propose("ann", "policy", own.directory / "policy.toml").stdout.split()[0]
    assert "executed" in own.decide("approve", "ben", proposal).stdout
    assert own.status("a")["state"]["events_to_tell"] >= 3
    own.stop("a", signal.SIGKILL)
    wait_for(lambda: own.status("b")["state"]["events_to_tell"] == 0)
    (small_disk / "ballast").unlink()
    directory.unlink()
    shutil.copytree(moved, directory)
    assert {operation: len(ids) for operation, ids in told(own, proposal).items()} == {"QuorumPropose": 1, "QuorumApprove": 1, "QuorumExecute": 1}
    own.start("a")
    wait_for(lambda: all(serves(client) for client in kms))


def test_every_change_has_its_event_whatever_crashes(own, kms):
    for round_ in range(5):
        stop = threading.Event()

        def change(stop=stop):
            while not stop.is_set():
                done = own.propose("ann", "policy", own.directory / "policy.toml", check=False)
                if done.returncode == 0:
                    own.decide("approve", "ben", done.stdout.split()[0], check=False)
        thread = threading.Thread(target=change)
        thread.start()
        time.sleep(0.4 + 0.07 * round_)
        own.stop(how=signal.SIGKILL)
        stop.set()
        thread.join()
        own.start("a")
        own.start("b")
    wait_for(lambda: own.status()["state"]["events_to_tell"] == 0)
    proposals = json.loads(own.holdfast("quorum", "show", "--state-dir", own.state, "--json").stdout)
    proposals = [entry for entry in proposals if "policy" in entry["summary"]]
    assert len(proposals) > 5
    for entry in proposals:
        events = told(own, entry["id"])
        assert len(events.get("QuorumPropose", ())) == 1, entry
        assert len(events.get("QuorumExecute", ())) == (entry["status"] == "executed"), (entry, events)
        assert len(events.get("QuorumApprove", ())) == len(entry["verdicts"]) - 1, (entry, events)
    known = {entry["id"] for entry in proposals}
    executed = {event["context"]["proposal"] for process in ("a", "b") for event in own.events(process)
                if event["operation"] == "QuorumExecute" and "replace the policy" in event["reason"]}
    assert executed <= known

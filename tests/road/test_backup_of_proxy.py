"""Backups of an external key store proxy whose processes run: restored elsewhere, refused without silicon or changed, and over a newer state left to its
operators."""
import json
import secrets
import threading

import pytest
from proxy import Kms, Proxy
from of_xks import KEY, SOFTWARE, STORE
from test_backup import FLIPS, holdfast

POLICY = "version = 1\n" + KEY.format("data") + KEY.format("other") + STORE.format("blue", '["data"]')


class There:
    """Two processes over the software HSM, and a client of each."""

    def __init__(self, directory):
        self.proxy = Proxy(directory / "proxy", SOFTWARE).start("a")
        self.proxy.set_policy(POLICY)
        self.proxy.change("key-create", "--key-id", "data", "--hsm", "east", "--label", "data")
        credential = self.proxy.add_credential("blue")
        # It knows the credential from its first moment on.
        self.proxy.start("b")
        self.clients = [Kms(self.proxy, credential, key="data", process=name) for name in "ab"]
        for client in self.clients:
            client.encrypt()

    def service(self):
        return "--role", "xks", "--config", self.proxy.config("a")

    def backup(self, path) -> dict:
        done = holdfast("backup", *self.service(), "--to", path, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def restore(self, path, *more):
        return holdfast("restore", *self.service(), "--from", path, *more)

    def events(self, operation: str) -> list[dict]:
        return [event for name in "ab" for event in self.proxy.events(name) if event["operation"] == operation]

    def accept(self) -> None:
        for operator in ("ann", "ben"):
            self.proxy.holdfast("xks", "accept-restore", "--config", self.proxy.config("a"), "--operator", operator, "--key", self.proxy.keys[operator])


def test_under_load_and_restored_elsewhere(tmp_path):
    there, path = There(tmp_path), tmp_path / "one.backup"
    proxy, stop, failed = there.proxy, threading.Event(), []

    def load(client):
        try:
            while not stop.is_set():
                client.encrypt()
        except Exception as error:
            failed.append(error)
    threads = [threading.Thread(target=load, args=[client]) for client in there.clients]
    for thread in threads:
        thread.start()
    proxy.kill("--key-id", "other")
    taken = there.backup(path)
    assert there.backup(tmp_path / "two.backup")["id"] != taken["id"]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert (proxy.directory / "silicon.root").read_bytes()[5:] not in path.read_bytes()
    switches = proxy.status()["kill_switches"]
    done = there.restore(path)
    assert done.returncode == 4 and "processes run" in done.stderr, done.stderr
    policy = proxy.holdfast("xks", "policy", "--state-dir", proxy.state).stdout
    proxy.stop()
    proxy.state = proxy.state.with_name("elsewhere")
    silicon = proxy.directory / "silicon.root"
    kept = silicon.read_bytes()
    silicon.write_bytes(kept[:5] + secrets.token_bytes(32))
    done = there.restore(path)
    assert done.returncode != 0 and "another silicon" in done.stderr, done.stderr
    silicon.unlink()
    done = there.restore(path)
    assert done.returncode != 0 and taken["instance"] in done.stderr, done.stderr
    silicon.write_bytes(kept)
    silicon.chmod(0o600)
    good, bad = path.read_bytes(), tmp_path / "bad.backup"
    for at in [0, *(secrets.randbelow(len(good)) for _ in range(FLIPS)), len(good) - 1]:
        bad.write_bytes(good[:at] + bytes([good[at] ^ 1 << secrets.randbelow(8)]) + good[at + 1:])
        done = there.restore(bad)
        assert done.returncode != 0 and "panicked" not in done.stderr, (at, done.stderr)
        assert not (proxy.state / "rows.shared").exists()
    done = there.restore(path)
    assert done.returncode == 0, done.stderr
    proxy.start("a").start("b")
    for client in there.clients:
        client.encrypt()
    assert proxy.status()["kill_switches"] == switches
    assert proxy.holdfast("xks", "policy", "--state-dir", proxy.state).stdout == policy
    assert [event["context"]["backup"] for event in there.events("RestoreBackup")] == [taken["id"]]
    proxy.stop()
    for name in "ab":
        proxy.verify_audit(name)
    proxy.start("a").start("b")
    assert len(there.events("RestoreBackup")) == 1
    proxy.stop()


def test_over_a_newer_state_the_operators_decide(tmp_path):
    there, path = There(tmp_path), tmp_path / "yesterday.backup"
    proxy = there.proxy
    there.backup(path)
    proxy.kill("--key-id", "data")
    proxy.set_policy(POLICY + "\n# today\n")
    proxy.stop()
    done = there.restore(path)
    assert done.returncode == 2 and "is not empty" in done.stderr, done.stderr
    done = there.restore(path, "--over")
    assert done.returncode == 3 and "undone" in done.stderr, done.stderr
    proxy.start("a")
    assert "# today" in proxy.holdfast("xks", "policy", "--state-dir", proxy.state).stdout, "nothing was restored"
    proxy.stop()
    done = there.restore(path, "--over", "--yes")
    assert done.returncode == 0 and "accept-restore" in done.stdout, (done.stdout, done.stderr)
    with pytest.raises(AssertionError) as caught:
        proxy.start("a")
    assert "accept-restore" in str(caught.value)
    proxy.stop()
    there.accept()
    proxy.start("a").start("b")
    assert "# today" not in proxy.holdfast("xks", "policy", "--state-dir", proxy.state).stdout
    aside, = proxy.state.glob("before-restore-*")
    assert (aside / "rows.shared").exists()
    proxy.stop()

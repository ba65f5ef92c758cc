"""Files of an installation put back to an earlier state while it is stopped, alone and in pairs: what happens is what the table in
docs/proof/history.md says.

`same`: it opens, and all is as it was. `NOT SEEN`: it opens, and something of yesterday is taken for today's. Everything else is what the refusal
says. With `--table FILE` the table is written as it was found.
"""
import itertools
import json
import os
import pathlib
import shutil
import time

import pytest
from of_xks import KEY, SOFTWARE, STORE
from proxy import Kms, Proxy
from test_log import OfKeyVault, OfKms, OfS3

TABLE = pathlib.Path(__file__).resolve().parents[2] / "docs/proof/history.md"
EMBEDDED = ["instance.sealed", "records.redb", "watermark.slots", "audit", "ca.pem"]


POLICY = "version = 1\n" + KEY.format("data") + STORE.format("blue", '["data"]')


class OfProxy:
    """A proxy over the software HSM. Today a key is stopped that could be used yesterday, and there is one more. No use comes after that."""

    def __init__(self, directory, cuts: int):
        self.proxy = Proxy(directory / "proxy", SOFTWARE).start()
        self.proxy.set_policy(POLICY)
        self.proxy.change("key-create", "--key-id", "data", "--hsm", "east", "--label", "data")
        kms = Kms(self.proxy, self.proxy.add_credential("blue"), key="data")
        kms.encrypt()

    def change(self, mark: str) -> int:
        self.proxy.kill("--key-id", "data")
        self.proxy.set_policy(POLICY + STORE.format("more", "[]"))
        return 200

    def use(self) -> int:
        return 200

    def there(self):
        """Without a use, which would tell the log of the state."""
        kills = {entry["scope"] for entry in self.proxy.status()["kill_switches"]}
        return kills, self.proxy.holdfast("xks", "policy", "--state-dir", self.proxy.state).stdout

    @property
    def audit(self) -> pathlib.Path:
        return self.proxy.state / "processes/a/audit"

    @property
    def data_dir(self) -> pathlib.Path:
        return self.proxy.state

    @property
    def log(self) -> pathlib.Path:
        return self.proxy.log()

    def halt(self, how: int = 15) -> None:
        self.proxy.stop(how=how)

    def restart(self, kill: bool) -> None:
        self.halt()
        self.proxy.start()

    def stop(self) -> None:
        self.halt()



class Hsm(OfKeyVault):
    data_dir = property(lambda self: self.hsm.data_dir)
    log = property(lambda self: self.hsm.log)


class KeyService(OfKms):
    data_dir = property(lambda self: self.service.data_dir)
    log = property(lambda self: self.service.log)


class Storage(OfS3):
    data_dir = property(lambda self: self.storage.data_dir)
    log = property(lambda self: self.storage.log)


ROLES = {
    "managed-hsm": (Hsm, EMBEDDED),
    "kms": (KeyService, EMBEDDED),
    "storage": (Storage, ["instance.sealed", "records.redb", "index.redb", "watermark.slots", "audit", "blobs"]),
    "xks-proxy": (OfProxy, ["instance.sealed", "rows.shared", "processes/a/rows.shared", "processes/a/mark.slots", "processes/a/kills.slots",
                            "processes/a/watermark.slots", "processes/a/audit"]),
}


def expected() -> dict:
    """The table: (role, what was done) to the verdict."""
    rows = [line.strip("|").split("|") for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip().strip("`") for cell in row] for row in rows]
    return {(role, what): verdict for role, what, verdict in (row for row in rows if len(row) == 3)}


def replace(path: pathlib.Path, by: pathlib.Path | None) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if by is not None and by.is_dir():
        shutil.copytree(by, path)
    elif by is not None and by.exists():
        shutil.copy2(by, path)


class Installation:
    """Of one role, as it was at the end of two days."""

    def __init__(self, role: str, directory: pathlib.Path):
        self.kind, self.files = ROLES[role]
        self.there = there = self.kind(directory, 0)
        assert there.use() == 200 and (role == "xks-proxy" or there.change("of-yesterday") // 100 == 2)
        self.yesterday, self.was = self.day(directory / "yesterday")
        there.restart(kill=False)
        assert there.change("of-today") // 100 == 2 and there.use() == 200
        self.today, self.now = self.day(directory / "today")
        assert self.was != self.now

    def day(self, directory: pathlib.Path):
        """Ends it; gives where its files are kept, and what was there."""
        found = self.there.there()
        self.there.halt()
        shutil.copytree(self.there.data_dir, directory)
        return directory, found

    def lines(self, directory: pathlib.Path) -> bytes:
        audit = directory / self.there.audit.relative_to(self.there.data_dir)
        return b"".join(path.read_bytes() for path in sorted(audit.glob("audit-*.jsonl")))

    def verdict(self, put_back: tuple[str, ...], change=lambda directory: None) -> str:
        there, today = self.there, self.lines(self.today)
        replace(there.data_dir, self.today)
        for name in put_back:
            replace(there.data_dir / name, self.yesterday / name)
        change(there.data_dir)
        told = there.log.stat().st_size
        try:
            there.restart(kill=False)
        except AssertionError:
            said = there.log.read_bytes()[told:].decode()
            assert "panicked" not in said, said
            return said
        found = there.there()
        whole = self.lines(there.data_dir).startswith(today)
        there.halt()
        return "same" if found == self.now and whole else "NOT SEEN"


def test_files_of_yesterday_while_the_proxy_runs(tmp_path, request):
    """The other roles read none of these while they run; a proxy reads what its other processes write."""
    at = Installation("xks-proxy", tmp_path)
    there, done = at.there, {}
    for name in at.files:
        replace(there.data_dir, at.today)
        there.restart(kill=False)
        now = there.data_dir / name
        before = tmp_path / "before"
        replace(before, now)
        if not now.is_dir():
            # In one step, as somebody would who does not want to be seen.
            shutil.copy2(at.yesterday / name, tmp_path / "put")
            (tmp_path / "put").rename(now)
        else:
            replace(now, at.yesterday / name)
        until_looked_at(there.proxy)
        said = there.proxy.status()["state"]["distrusted"] or ("same" if there.there() == at.now else "NOT SEEN")
        replace(now, before)
        until_looked_at(there.proxy)
        assert there.there() == at.now, "control: it is served again when all is as it was"
        there.halt()
        done[f"{name} of yesterday while it runs"] = said
    judge("xks-proxy", done, request)


def until_looked_at(proxy) -> None:
    """The state is read again every second, whatever the times of its file say."""
    time.sleep(2.5)


def judge(role: str, done: dict, request) -> None:
    if table := request.config.getoption("--table"):
        with open(table, "a") as out:
            out.writelines(f"| `{role}` | {what} | {found.strip()[-600:]} |\n" for what, found in done.items())
    told = expected()
    wrong = {what: (told.get((role, what)), found) for what, found in done.items() if (told.get((role, what)) or "no line") not in found}
    assert not wrong, wrong


def pipe(name: str):
    def put(directory: pathlib.Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)
    return put


def last_segment(directory: pathlib.Path) -> pathlib.Path:
    return sorted(directory.glob("audit-*.jsonl"))[-1]


def refused(proxy: Proxy, process: str, why: str) -> None:
    with pytest.raises(AssertionError) as caught:
        proxy.start(process)
    proxy.stop(process)
    assert why in str(caught.value), caught.value


def test_a_process_that_is_taken_away_is_missed_until_operators_accept_it(tmp_path):
    proxy = OfProxy(tmp_path, 0).proxy
    proxy.start("b")
    proxy.stop()
    kept = tmp_path / "kept"
    for gone in ("a", "b"):
        shutil.move(proxy.state / "processes" / gone, kept)
        refused(proxy, "a", f"WHAT PROCESSES HAVE SEEN WAS TAKEN AWAY: of {gone}")
        shutil.rmtree(proxy.state / "processes" / gone, ignore_errors=True)
        shutil.move(kept, proxy.state / "processes" / gone)
    proxy.start("a")
    proxy.stop()
    shutil.rmtree(proxy.state / "processes" / "b")
    command = ("xks", "accept-restore", "--config", proxy.config("a"))
    assert proxy.holdfast(*command, "--operator", "ann", "--key", proxy.keys["ben"], check=False).returncode == 3, "not by her key"
    proxy.holdfast(*command, "--operator", "ann", "--key", proxy.keys["ann"])
    refused(proxy, "a", "of b the mark")
    proxy.holdfast(*command, "--operator", "ben", "--key", proxy.keys["ben"])
    [event] = [event for event in proxy.events("command") if event["operation"] == "AcceptRestore"]
    assert event["context"]["lost_processes"] == "b" and event["context"]["operators"] == "ann, ben"
    proxy.start("a").start("b")
    proxy.stop()
    proxy.start("a")
    proxy.stop()


def test_a_line_without_a_mac_says_nothing_of_a_generation(tmp_path):
    """Of a process that does not run, whose log nobody else opens."""
    there = OfProxy(tmp_path, 0)
    proxy = there.proxy
    proxy.start("b")
    proxy.stop()
    log = last_segment(proxy.state / "processes/b/audit")
    ours = log.read_bytes()
    line = {"seq": 10**6, "type": "event", "time": "", "context": {"generation": str(2**64 - 2)}, "prev": "0" * 64, "mac": "0" * 32}
    log.write_bytes(ours + json.dumps(line).encode() + b"\n")
    proxy.start("a")
    assert not proxy.status()["state"]["distrusted"]
    # In no place of the chain, and without a MAC of ours: it is cut, as what a power cut leaves is, and that is told.
    proxy.start("b")
    proxy.stop()
    assert log.read_bytes() == ours and b"never acknowledged, was cut" in last_segment(log.parent).read_bytes()


@pytest.mark.parametrize("name", ["rows.lock", "ca.pem", "processes/a/alive.lock", "processes/a/admin-socket.path", "processes/a/mark.slots",
                                  "processes/b/mark.slots", "processes/b/rows.shared", "audit"])
def test_pipes_among_the_files_of_a_proxy_stop_nobody_for_long(tmp_path, name):
    """A start, and a change, end with a refusal that names the file, or go on."""
    proxy = OfProxy(tmp_path, 0).proxy
    proxy.start("b")
    proxy.stop()
    path = last_segment(proxy.state / "processes/b/audit") if name == "audit" else proxy.state / name
    path.unlink()
    os.mkfifo(path)
    try:
        proxy.start("a")
        if name.endswith("admin-socket.path"):
            # Bound last: health is told by then.
            assert proxy.processes["a"].wait(30) != 0, proxy.log().read_text()
            raise AssertionError(proxy.log().read_text())
    except AssertionError as error:
        assert str(path) in str(error) and "should be a regular file" in str(error), error
    else:
        assert name in ("rows.lock", "processes/b/rows.shared"), "what a start opens"
        if name == "rows.lock":
            refusal = proxy.propose("ann", "key-create", "--key-id", "x", "--hsm", "east", "--label", "x", check=False)
            assert refusal.returncode and "should be a regular file" in refusal.stderr, refusal
    proxy.stop()


@pytest.mark.parametrize("role", ROLES)
def test_files_of_yesterday(role, tmp_path, request):
    at = Installation(role, tmp_path)
    done = {f"{' and '.join(names)} of yesterday": at.verdict(names) for count in (1, 2) for names in itertools.combinations(at.files, count)}
    done["everything of yesterday"] = at.verdict(tuple(at.files))
    done |= {f"{name} gone": at.verdict((), lambda directory, name=name: replace(directory / name, None)) for name in at.files}
    done |= {f"a pipe in the place of {name}": at.verdict((), pipe(name)) for name in at.files if not (at.today / name).is_dir()}
    judge(role, done, request)
    # The control: as it was left it opens.
    assert at.verdict(()) == "same"
    at.there.restart(kill=False)
    at.there.stop()

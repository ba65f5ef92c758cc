"""A store that cannot be written: no change is told as done, health says why, nothing is lost, and when it is mended all goes on without a restart.

The store is taken away in two ways: its file is made immutable, so that writes to it fail under the database; or the disk of the whole data
directory is full, log and all.
"""
import concurrent.futures
import contextlib
import pathlib
import time

import pytest
import requests
from taken_away import Full, Immutable
from test_log import SECONDS_TO_MEND, THREADS, OfKeyVault, OfKms, check_changes, until_used

CHANGES = 200
THROTTLED = (b"Throttl", b"SlowDown", b"TooManyRequests", b"Rate exceeded")
LINES_MAX = 20
"""The log of the process tells of each change of state, and not of each attempt."""


class ImmutableStore(Immutable):
    """The database takes no byte more; the log does."""

    @property
    def files(self) -> list[pathlib.Path]:
        return [self.directory / "records.redb"]


class FullDisk(Full):
    """The whole data directory is full."""

    size = "128m"


class KeyVaultStore(OfKeyVault):
    data = property(lambda self: self.hsm.data_dir)
    process_log = property(lambda self: self.hsm.log)

    def change_answer(self, mark: str):
        from of_key_vault import OCT
        return self.door.call(self.request("POST", f"/keys/{mark}/create", OCT, mark))

    def metrics_text(self) -> str:
        return requests.get(f"{self.hsm.url}/metrics", verify=self.hsm.data_dir / "ca.pem", timeout=10).text


class KmsStore(OfKms):
    data = property(lambda self: self.service.data_dir)
    process_log = property(lambda self: self.service.log)

    def change_answer(self, mark: str):
        from service import iam
        terms = {"KeyId": self.key, "GranteePrincipal": iam("user/bob"), "Operations": ["Decrypt"], "Name": mark}
        return self.ask("CreateGrant", terms, mark=mark)

    def metrics_text(self) -> str:
        return requests.get(f"{self.service.url}/metrics", verify=self.service.ca_file, timeout=10).text


def gauge(there, name: str) -> float:
    lines = [line for line in there.metrics_text().splitlines() if line.split(" ")[0].split("{")[0] == name]
    return float(lines[0].split()[-1]) if lines else 0.0


def until_well(there) -> None:
    deadline = time.monotonic() + SECONDS_TO_MEND
    while there.health()["status"] != "ready":
        assert time.monotonic() < deadline, f"it is mended, and says still: {there.health()}"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [ImmutableStore, FullDisk])
@pytest.mark.parametrize("role", [KeyVaultStore, KmsStore])
def test_changes_without_a_store(role, how, tmp_path):
    there = role(tmp_path, 0)
    store = how(there.data)
    there.halt()
    store.prepare()
    try:
        there.restart(kill=False)
        assert there.change("before") // 100 == 2 and there.use() == 200
        until_well(there)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            store.take()
            marks = [f"c{number}" for number in range(CHANGES)]
            answers = dict(zip(marks, pool.map(there.change_answer, marks)))
        for mark, answer in answers.items():
            assert answer.status in (500, 503), (mark, answer)
            assert not any(word in answer.body for word in THROTTLED), (mark, answer)
        told = there.health()
        assert told["status"] == "degraded" and "the store takes no changes: " in told["store_fault"], told
        assert gauge(there, "holdfast_store_faulty") == 1
        if how is ImmutableStore:
            assert there.use() == 200, "a use changes nothing"
        assert len(there.process_log.read_text().splitlines()) < CHANGES + LINES_MAX, "one line a change of state, and one a request"
        store.mend()
        until_used(there)
        until_well(there)
        assert gauge(there, "holdfast_store_faulty") == 0
        answered = {mark: answer.status for mark, answer in answers.items()} | {"before": 200}
        check_changes(there, answered)
        assert there.change("afterwards") // 100 == 2
        there.restart(kill=True)
        check_changes(there, answered | {"afterwards": 200})
        there.stop()
    finally:
        # What is stopped is not in the way of who cleans up.
        with contextlib.suppress(Exception):
            there.halt(9)
        store.close()


@pytest.mark.parametrize("role", [KeyVaultStore, KmsStore])
def test_a_store_put_back_while_it_could_not_be_written_is_not_taken(role, tmp_path):
    there = role(tmp_path, 0)
    store = ImmutableStore(there.data)
    file = store.files[0]
    try:
        assert there.change("before") // 100 == 2
        yesterday = file.read_bytes()
        assert there.change("today") // 100 == 2
        store.take()
        assert there.change("while") in (500, 503)
        today = file.read_bytes()
        store.mend()
        file.write_bytes(yesterday)
        deadline = time.monotonic() + SECONDS_TO_MEND
        while "NOT THOSE OF ITS LAST COMMIT" not in there.health().get("store_fault", ""):
            assert time.monotonic() < deadline, there.health()
            time.sleep(0.1)
        assert there.change("under-old-rows") in (500, 503)
        file.write_bytes(today)
        until_well(there)
        assert there.change("afterwards") // 100 == 2
        there.restart(kill=True)
        check_changes(there, {"before": 200, "today": 200, "while": 500, "under-old-rows": 500, "afterwards": 200})
        there.stop()
    finally:
        with contextlib.suppress(Exception):
            there.halt(9)
        store.close()


@pytest.mark.parametrize("role", [KeyVaultStore, KmsStore])
def test_a_stop_while_the_store_cannot_be_written(role, tmp_path):
    there = role(tmp_path, 0)
    store = FullDisk(there.data)
    there.halt()
    store.prepare()
    try:
        there.restart(kill=False)
        assert there.change("before") // 100 == 2
        store.take()
        assert there.change("while") in (500, 503)
        # As soon as on any other day: see `stop`, which waits so long and no longer.
        there.halt()
        store.mend()
        there.restart(kill=False)
        check_changes(there, {"before": 200, "while": 500})
        there.stop()
    finally:
        with contextlib.suppress(Exception):
            there.halt(9)
        store.close()

"""A store that cannot be written: no change is told as done, health says why, nothing is lost, and when it is mended all goes on without a restart.

The store is taken away in three ways: its file is made immutable, so that writes to it fail under the database; writes and syncs end with an I/O
error; or the disk of the whole data directory is full, log and all.
"""
import concurrent.futures
import contextlib
import pathlib
import time

import pytest
import requests
from of_s3 import BUCKET, SMALL
from taken_away import Failing, Full, Immutable, preloaded
from test_log import SECONDS_TO_MEND, THREADS, OfKeyVault, OfKms, OfS3, check_changes, until_used

CHANGES = 200
THROTTLED = (b"Throttl", b"SlowDown", b"TooManyRequests", b"Rate exceeded")
LINES_MAX = 20
"""The log of the process tells of each change of state, and not of each attempt."""


pytestmark = pytest.mark.usefixtures(preloaded.__name__)


class OneFile:
    """The database takes no byte more; the log does."""

    @property
    def files(self) -> list[pathlib.Path]:
        """That of the role's changes."""
        return [file for name in ("index.redb", "records.redb", "rows.shared") if (file := self.directory / name).exists()][:1]


class ImmutableStore(OneFile, Immutable):
    pass


class FailingStore(OneFile, Failing):
    pass


class FullDisk(Full):
    """The whole data directory is full."""

    size = "128m"


WAYS = [ImmutableStore, FailingStore, FullDisk]


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


class S3Store(OfS3):
    data = property(lambda self: self.storage.data_dir)
    process_log = property(lambda self: self.storage.log)

    def change_answer(self, mark: str):
        return self.ask("PUT", f"/{BUCKET}/{mark}", SMALL, mark=mark)

    def metrics_text(self) -> str:
        return requests.get(f"{self.storage.url}/metrics", timeout=10).text


ROLES = [KeyVaultStore, KmsStore, S3Store]


def refused(there, answer) -> bool:
    """Storage refuses new data before its disk is full, and that is told with the health; what is deleted needs the index only."""
    return answer.status in (500, 503) or (isinstance(there, S3Store) and answer.status == 507)


def gauge(there, name: str) -> float:
    lines = [line for line in there.metrics_text().splitlines() if line.split(" ")[0].split("{")[0] == name]
    return float(lines[0].split()[-1]) if lines else 0.0


def until_well(there) -> None:
    deadline = time.monotonic() + SECONDS_TO_MEND
    while there.health()["status"] != "ready":
        assert time.monotonic() < deadline, f"it is mended, and says still: {there.health()}"
        time.sleep(0.1)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("role", ROLES)
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
            assert refused(there, answer), (mark, answer)
            assert not any(word in answer.body for word in THROTTLED), (mark, answer)
        if isinstance(there, S3Store):
            answer = there.ask("DELETE", f"/{BUCKET}/before", mark="deleted")
            assert answer.status == 503, answer
        told = there.health()
        assert told["status"] == "degraded" and "the store takes no changes: " in told["store_fault"], told
        assert gauge(there, "holdfast_store_faulty") == 1
        if how is not FullDisk:
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


@pytest.mark.parametrize("role", ROLES)
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


@pytest.mark.parametrize("role", ROLES)
def test_a_stop_while_the_store_cannot_be_written(role, tmp_path):
    there = role(tmp_path, 0)
    store = FullDisk(there.data)
    there.halt()
    store.prepare()
    try:
        there.restart(kill=False)
        assert there.change("before") // 100 == 2
        store.take()
        assert refused(there, there.change_answer("while"))
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

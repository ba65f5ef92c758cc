"""A log that cannot be written: no change without its event, none beyond the bound of what may wait, and all is told when the log is mended.

The log is taken away in two ways: its files are made immutable, or its file system is full. Changes go on as long as their events find
room beside them in the store; then they are refused before they commit. Uses are refused at once: their event would be nowhere.
"""
import collections
import concurrent.futures
import contextlib
import pathlib
import ssl
import time

import pytest
import requests
from cutting import Door
from of_key_vault import OCT, KeyVault
from of_kms import KeyManagement
from of_s3 import BUCKET, SMALL, S3
from process import b64
from service import Service, iam
from taken_away import Full, Immutable

THREADS = 16
WAITING_MAX = 4096
"""Events of changes that may wait for the log."""
SECONDS_TO_MEND = 30


class OfKeyVault(KeyVault):
    def change(self, mark: str) -> int:
        return self.door.call(self.request("POST", f"/keys/{mark}/create", OCT, mark)).status

    def use(self) -> int:
        return self.ask("POST", "/keys/shared/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)}).status

    def there(self) -> collections.Counter:
        return collections.Counter(item["kid"].rsplit("/", 1)[1] for item in self.listed("/keys"))

    @property
    def audit(self) -> pathlib.Path:
        return self.hsm.data_dir / "audit"

    def health(self) -> dict:
        return requests.get(f"{self.hsm.url}/readyz", verify=self.hsm.data_dir / "ca.pem", timeout=10).json()

    def halt(self, how: int = 15) -> None:
        self.hsm.stop(how)


class OfKms(KeyManagement):
    """Without external keys: grants on one key."""

    def __init__(self, directory, cuts: int):
        self.service = Service(directory / "kms").start()
        self.root, self.accounts = self.service.keys["root"], {}
        self.door = Door(self.service.port, ssl.create_default_context(cafile=self.service.ca_file))
        self.key = self.create()

    def change(self, mark: str) -> int:
        terms = {"KeyId": self.key, "GranteePrincipal": iam("user/bob"), "Operations": ["Decrypt"], "Name": mark}
        return self.ask("CreateGrant", terms, mark=mark).status

    def use(self) -> int:
        return self.ask("Encrypt", {"KeyId": self.key, "Plaintext": "eA=="}).status

    def there(self) -> collections.Counter:
        found, marker = [], {}
        while True:
            page = self.do("ListGrants", {"KeyId": self.key, "Limit": 100} | marker)
            found += [grant["Name"] for grant in page["Grants"]]
            if not page["Truncated"]:
                return collections.Counter(found)
            marker = {"Marker": page["NextMarker"]}

    @property
    def audit(self) -> pathlib.Path:
        return self.service.data_dir / "audit"

    def health(self) -> dict:
        return requests.get(f"{self.service.url}/readyz", verify=self.service.ca_file, timeout=10).json()

    def halt(self, how: int = 15) -> None:
        self.service.stop(how)

    def stop(self) -> None:
        self.service.check_end()


class OfS3(S3):
    def change(self, mark: str) -> int:
        return self.ask("PUT", f"/{BUCKET}/{mark}", SMALL, mark=mark).status

    def use(self) -> int:
        return self.ask("GET", f"/{BUCKET}/source").status

    def there(self) -> collections.Counter:
        pages = self.storage.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return collections.Counter(entry["Key"] for page in pages for entry in page.get("Contents", []))

    @property
    def audit(self) -> pathlib.Path:
        return self.storage.data_dir / "audit"

    def health(self) -> dict:
        return requests.get(f"{self.storage.url}/readyz", timeout=10).json()

    def halt(self, how: int = 15) -> None:
        self.storage.stop(how)


ROLES = [OfKeyVault, OfKms, OfS3]
"""`OfKeyVault` and `OfKms` join when their changes are committed with their events; until then a change of theirs is answered with an
error while it is in force."""


@contextlib.contextmanager
def without_log(role, how, directory: pathlib.Path):
    there = role(directory, 0)
    log = how(there.audit)
    there.halt()
    log.prepare()
    try:
        there.restart(kill=False)
        assert there.use() == 200
        yield there, log
        there.stop()
    finally:
        # What is stopped is not in the way of who cleans up.
        with contextlib.suppress(Exception):
            there.halt(9)
        log.close()


def until_refused(there) -> None:
    """What is left of a page of a full file system takes a few lines yet."""
    for _ in range(100):
        if (status := there.use()) != 200:
            assert status in (500, 503), status
            return
    raise AssertionError("uses go on without a log")


def waiting(told: dict) -> int:
    """Events of changes that are in the store only."""
    return told["audit_waiting"] if "audit_waiting" in told else told["audit_outbox"]


def until_used(there) -> None:
    deadline = time.monotonic() + SECONDS_TO_MEND
    while there.use() != 200:
        assert time.monotonic() < deadline, f"the log is mended, and uses are refused still: {there.health()}"
        time.sleep(0.1)


def check_changes(there, answered: dict[str, int]) -> None:
    """What was answered as done is there and has one event; what was refused is not there, and has none that says that it was done."""
    found = there.there()
    told = collections.defaultdict(set)
    for number, event in enumerate(there.events()):
        if event["outcome"] == "allowed" and (mark := there.mark_of(event)) in answered:
            told[mark].add(event.get("revision") or f"line {number}")
    for mark, status in answered.items():
        done = status // 100 == 2
        assert found[mark] == done, f"{mark} was answered {status}, and is {'there' if found[mark] else 'not there'}"
        assert len(told[mark]) == done, f"{mark} was answered {status}, and has {len(told[mark])} events"


@pytest.mark.parametrize("how", [Immutable, Full])
@pytest.mark.parametrize("role", ROLES)
def test_changes_without_a_log(role, how, tmp_path):
    with without_log(role, how, tmp_path) as (there, log), concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        log.take()
        until_refused(there)
        marks = [f"c{number}" for number in range(WAITING_MAX + 10 * THREADS)]
        answered = dict(zip(marks, pool.map(there.change, marks)))
        done = sum(status // 100 == 2 for status in answered.values())
        assert done <= WAITING_MAX, f"{done} changes wait for a log that holds {WAITING_MAX}"
        assert there.change("one-more") // 100 == 5
        told = there.health()
        assert told["status"] != "ready" and told["audit_fault"] and waiting(told) == done, told
        log.mend()
        until_used(there)
        check_changes(there, answered | {"one-more": 500})
        assert there.change("afterwards") // 100 == 2
        # A use is told after the changes before it.
        until_used(there)
        told = there.health()
        assert told["status"] == "ready" and not told.get("audit_fault") and waiting(told) == 0, told
        there.restart(kill=True)
        check_changes(there, answered | {"one-more": 500, "afterwards": 200})


@pytest.mark.parametrize("how", [Immutable, Full])
@pytest.mark.parametrize("role", ROLES)
def test_killed_while_changes_wait_for_the_log(role, how, tmp_path):
    """What waited in the store is told first when the process is there again."""
    with without_log(role, how, tmp_path) as (there, log), concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        log.take()
        until_refused(there)
        marks = [f"c{number}" for number in range(100)]
        answered = dict(zip(marks, pool.map(there.change, marks)))
        assert all(status // 100 == 2 for status in answered.values()), collections.Counter(answered.values())
        there.halt(9)
        log.mend()
        there.restart(kill=False)
        check_changes(there, answered)

"""The shared state of the external key store proxy cannot be written: no change is told as done, the plug is pulled all the same, health says
why, uses go on where their events can be written, and when it is mended all goes on without a restart."""
import collections
import contextlib
import time

import pytest
from of_xks import Xks
from taken_away import Failing, Full, Immutable, preloaded
from test_log import SECONDS_TO_MEND, until_used

pytestmark = pytest.mark.usefixtures(preloaded.__name__)
LINES_MAX = 20
"""The log of the process tells of each change of state, and not of each attempt: it tries to take the kill into the state each second."""


class ImmutableState(Immutable):
    """Nobody can put another file in its place."""

    @property
    def files(self):
        return [self.directory / "rows.shared"]


class FailingState(Failing):
    """What is written beside it, to take its place, ends with an I/O error."""

    @property
    def files(self):
        return [self.directory / "rows.new"]


class FullDisk(Full):
    """The whole state directory is full, logs and all."""

    size = "128m"


class Used(Xks):
    def use(self) -> int:
        return self.aws.raw("encrypt", self.aws.encrypt_body()).status_code

    def health(self) -> dict:
        return self.proxy.status()


def until(there, holds, what: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_MEND
    while not holds(there.health()):
        assert time.monotonic() < deadline, f"{what}: {there.health()}"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [ImmutableState, FailingState, FullDisk])
def test_changes_of_a_proxy_without_its_state(how, tmp_path):
    there = Used(tmp_path, 0)
    store = how(there.proxy.state)
    there.proxy.stop()
    store.prepare()
    try:
        there.proxy.start()
        there.restart(kill=False)
        assert there.use() == 200
        until(there, lambda told: told["status"] == "ready", "before")
        before, lines = len(there.events()), len(there.proxy.log().read_text().splitlines())
        store.take()
        policy = there.proxy.directory / "policy.toml"
        for _ in range(3):
            refused = there.proxy.propose("ann", "policy", policy, check=False)
            assert refused.returncode != 0 and not refused.stdout, refused
        told = there.health()
        assert told["status"] == "degraded" and "the store takes no changes: " in told["store_fault"], told
        assert there.proxy.metric("holdfast_store_faulty") == 1
        if how is not FullDisk:
            assert there.use() == 200, "a use changes nothing"
        # One person pulls the plug, on a full disk, too; and it stays out.
        there.proxy.kill("--key-id", "data")
        assert there.use() != 200
        time.sleep(5)
        assert there.use() != 200 and there.health()["store_fault"]
        said = there.proxy.log().read_text().splitlines()[lines:]
        assert len(said) < LINES_MAX, said
        store.mend()
        until(there, lambda told: told["status"] == "ready", "it is mended")
        assert there.use() != 200
        there.proxy.change("policy", policy)
        there.proxy.change("lift", "--key-id", "data")
        until_used(there)
        done = collections.Counter(event["operation"] for event in there.events()[before:] if event["outcome"] == "allowed")
        assert [done[operation] for operation in ("Kill", "QuorumPropose", "QuorumExecute")] == [1, 2, 2], done
        there.restart(kill=True)
        until_used(there)
        there.stop()
    finally:
        # What is stopped is not in the way of who cleans up.
        with contextlib.suppress(Exception):
            there.proxy.stop(how=9)
        store.close()

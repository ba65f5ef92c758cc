"""The log of the external key store proxy cannot be written: no use is answered, changes go on as far as their events find room in the state, the
plug is pulled all the same, and health says why."""
import collections
import json
import pathlib
import time

import pytest
from of_xks import QuorumSwitches, Xks
from taken_away import Full, Immutable
from test_log import SECONDS_TO_MEND, until_refused, until_used, without_log

EVENTS_MAX = 256
"""Events of changes that may wait in the state."""


class OfXks(Xks):
    def use(self) -> int:
        return self.aws.raw("encrypt", self.aws.encrypt_body()).status_code


class OfQuorum(QuorumSwitches):
    """Changes over the admin socket; the uses are those of `Xks`."""

    def use(self) -> int:
        """A look is no use: that the log is well shows with the health."""
        return 500 if self.health().get("audit_fault") else 200


def audited(role):
    class There(role):
        @property
        def audit(self) -> pathlib.Path:
            return self.proxy.state / "processes" / "a" / "audit"

        def health(self) -> dict:
            return self.proxy.status()

        def halt(self, how: int = 15) -> None:
            self.proxy.stop(how=how)
    return There


@pytest.mark.parametrize("how", [Immutable, Full])
def test_uses_of_external_keys_without_a_log(how, tmp_path):
    with without_log(audited(OfXks), how, tmp_path) as (there, log):
        before = len(there.events())
        log.take()
        until_refused(there)
        # One person can pull the plug on a full disk, too.
        there.proxy.kill("--key-id", "data")
        told = there.health()
        assert told["audit_fault"], told
        log.mend()
        there.proxy.change("lift", "--key-id", "data")
        until_used(there)
        assert [event for event in there.events()[before:] if event["operation"] == "Kill"]


@pytest.mark.parametrize("how", [Immutable, Full])
def test_changes_by_quorum_without_a_log(how, tmp_path):
    with without_log(audited(OfQuorum), how, tmp_path) as (there, log):
        before = len(there.events())
        log.take()
        asked, answers = [], []
        for number in range(EVENTS_MAX // 2):
            members = there.proposal(f"p{number}", {"act": "policy", "text": f"version = 1\n# {number}\n"})
            decided = there.of_proposal(members), members["text"]
            answers += [there.ask(**members), there.ask(**there.decide(decided, "ben"))]
            asked.append(decided[0])
        refused = [answer for answer in answers if not answer["done"]]
        assert refused and not answers[-1]["done"], "changes go on for ever"
        assert all("audit log" in answer["error"] or "no proposal" in answer["error"] for answer in refused), refused[:3]
        told = there.health()
        assert told["status"] != "ready" and told["audit_fault"], told
        done = {name for name, answer in zip(asked, answers[1::2]) if answer["done"]}
        assert 0 < len(done) <= EVENTS_MAX, len(done)
        log.mend()
        until_used(there)
        deadline = time.monotonic() + SECONDS_TO_MEND
        # What waited is told, and leaves the state, a second later.
        while there.health()["state"]["events_to_tell"]:
            assert time.monotonic() < deadline, there.health()
            time.sleep(0.1)
        there.proxy.set_policy("version = 1\n")
        events = there.events()[before:]
        executed = collections.Counter(event["context"]["proposal"] for event in events if event["operation"] == "QuorumExecute")
        assert {name for name in asked if executed[name]} == done and max(executed.values()) == 1, json.dumps(executed)

"""The log of the external key store proxy cannot be written: no use is answered, the plug is pulled all the same, and health says why."""
import pathlib

import pytest
from of_xks import Xks
from taken_away import Full, Immutable
from test_log import until_refused, until_used, without_log


@pytest.mark.parametrize("how", [Immutable, Full])
def test_uses_of_external_keys_without_a_log(how, tmp_path):
    class OfXks(Xks):
        def use(self) -> int:
            return self.aws.raw("encrypt", self.aws.encrypt_body()).status_code

        @property
        def audit(self) -> pathlib.Path:
            return self.proxy.state / "processes" / "a" / "audit"

        def health(self) -> dict:
            return self.proxy.status()

        def halt(self, how: int = 15) -> None:
            self.proxy.stop(how=how)

    with without_log(OfXks, how, tmp_path) as (there, log):
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

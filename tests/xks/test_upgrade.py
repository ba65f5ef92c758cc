"""A proxy of the version whose processes had one MAC key for all their logs (audit log 2)."""
import json
import pathlib
import shutil
import signal
import tarfile

import pytest
import requests
from proxy import Credential, Kms, Proxy

ARCHIVE = pathlib.Path(__file__).resolve().parents[1] / "fixtures/proxy-of-audit-2.tar.xz"


class Kept(Proxy):
    """The proxy of the archive: process a was stopped in order, process b was killed."""

    def __init__(self, directory: pathlib.Path):
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(directory, filter="data")
        kept = json.loads((directory / "kept.json").read_text())
        self.directory, self.hsms, self.tls, self.listen, self.limits = directory, kept["hsms"], "", "", ""
        self.state, self.quorum = directory / "state", kept["quorum"]
        self.keys = {name: directory / f"{name}.key" for name in ("ann", "ben", "cat")}
        self.processes, self.ports, self.metrics, self.requests = {}, {}, {}, requests.Session()
        self.credential, self.encrypted = Credential(*kept["credential"]), kept["encrypted"]

    def audit(self, process: str) -> pathlib.Path:
        return self.state / "processes" / process / "audit"

    def formats(self, process: str) -> list[str]:
        return [json.loads(path.read_text().splitlines()[0])["format"][-1] for path in sorted(self.audit(process).glob("audit-*.jsonl"))]

    def uses(self, process: str) -> None:
        kms = Kms(self, self.credential, process=process, key="data")
        for encrypted in self.encrypted:
            assert kms.decrypt(encrypted) == b"k" * 32

    def refused(self, process: str, why: str) -> None:
        with pytest.raises(AssertionError, match=why):
            self.start(process)


@pytest.fixture
def kept(tmp_path):
    proxy = Kept(tmp_path)
    yield proxy
    proxy.stop()


def test_it_is_upgraded_once_and_goes_on(kept):
    for _ in range(2):
        for process in ("b", "a", "c"):
            kept.start(process)
            kept.uses(process)
        kept.stop("a")
        kept.stop(how=signal.SIGKILL)
    for process in ("a", "b", "c"):
        kept.verify_audit(process)
    assert kept.formats("a")[0] == "2" and kept.formats("a")[-1] == "3" and set(kept.formats("c")) == {"3"}
    told = [event["operation"] for process in ("a", "b", "c") for event in kept.events(process)]
    assert told.count("StateUpgrade") == 1 and told.count("AcceptLoss") == 0


def test_the_log_of_one_process_is_not_the_past_of_another(kept):
    """Of today, and from before the upgrade: copied to one that never ran."""
    before = {process: kept.directory / f"audit-before-{process}" for process in "ab"}
    for process, path in before.items():
        shutil.copytree(kept.audit(process), path)
    kept.start("a")
    kept.uses("a")
    kept.stop()
    for name, log in {"c": before["a"], "d": before["b"], "e": kept.audit("a")}.items():
        shutil.copytree(log, kept.audit(name))
        kept.refused(name, "was written to by somebody else")
        shutil.rmtree(kept.audit(name))
        kept.start(name)
        kept.stop()


def test_secrets_of_before_the_upgrade_are_not_put_back(kept):
    sealed = (kept.state / "instance.sealed").read_bytes()
    kept.start("a")
    kept.stop()
    today = (kept.state / "instance.sealed").read_bytes()
    (kept.state / "instance.sealed").write_bytes(sealed)
    kept.refused("a", "instance.sealed: it is older than the shared state")
    (kept.state / "instance.sealed").write_bytes(today)
    kept.start("a")
    kept.uses("a")

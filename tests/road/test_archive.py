"""Old segments of a log are moved to an archive while its service runs; what is left verifies behind them, with them, and not if somebody else took them."""
import gzip
import json
import pathlib
import shutil

import pytest
from pulled import OfKms as Pulled
from test_backup import ROLES, Kms, Load, backup, holdfast, log, move, restored, told
from test_backup_of_proxy import There


def archive(there, to: pathlib.Path, *more):
    return holdfast("audit", "archive", "--log", there.audit, "--to", to, *more)


def archived(there, to: pathlib.Path) -> None:
    done = archive(there, to)
    assert done.returncode == 0, done.stderr


def verify(audit: pathlib.Path, *more):
    return holdfast("audit", "verify", "--log", audit, "--json", *more)


def verified(audit: pathlib.Path, *more) -> dict:
    done = verify(audit, *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def settled(there, *more) -> dict:
    """Verified, once the line that tells of the hand-over is signed: a second later at most."""
    there.restart(kill=False)
    return verified(there.audit, *more)


def content(there, to: pathlib.Path) -> bytes:
    return b"".join(gzip.decompress(path.read_bytes()) for path in sorted(to.glob("*.gz"))) + log(there)


def segments(audit: pathlib.Path) -> list[pathlib.Path]:
    return sorted(audit.glob("audit-*.jsonl"))


def grown(there, starts: int = 4) -> None:
    """A segment ends at each start."""
    for number in range(starts):
        assert there.change(f"grown-{number}") // 100 == 2
        there.restart(kill=number == 1)


@pytest.mark.parametrize("role", ROLES)
def test_archived_under_load_and_verified_with_and_without(role, tmp_path):
    there, to = role(tmp_path, 0), tmp_path / "archive"
    grown(there)
    before = log(there)
    load = Load(there, 2)
    load.until(10)
    archived(there, to)
    load.until(len(load.done) + 10)
    load.end()
    assert there.use() == 200
    assert len(segments(there.audit)) == 2 and list(to.glob("*.gz")) and not list(to.glob("*.new"))
    assert content(there, to).startswith(before), "nothing is lost"
    event, = told(there, "HandOverAuditLog")
    report = settled(there)
    assert report["begins_behind"]["line"] == int(event["context"]["line"]) and report["begins_behind"]["archive"] == str(to.resolve())
    whole = verified(there.audit, "--archive", to)
    assert whole["lines"] == report["lines"] and whole["head"] == report["head"] and whole["events"] > report["events"]
    # It goes on, and once more.
    for kill in (True, False):
        there.restart(kill=kill)
        assert there.change(f"after-{kill}") // 100 == 2
    archived(there, to)
    # One that a crash has ended goes together with the next one that ends with a signature.
    assert len(segments(there.audit)) in (2, 3)
    whole = settled(there, "--archive", to)
    assert content(there, to).startswith(before) and verified(there.audit)["head"] == whole["head"]
    # A backup of it, elsewhere.
    taken = backup(there, tmp_path / "one.backup")
    there.halt()
    move(there, "elsewhere")
    restored(there, tmp_path / "one.backup")
    there.restart(kill=False)
    assert there.there()["after-False"] and told(there, "RestoreBackup")[0]["context"]["backup"] == taken["id"]
    there.halt()
    verified(there.audit, "--archive", to)


def test_what_nobody_handed_over_is_missed(tmp_path):
    there, to = Kms(tmp_path, 0), tmp_path / "archive"
    there.change("one")
    there.restart(kill=False)
    done = archive(there, to)
    assert done.returncode == 0 and "nothing to hand over" in done.stdout
    grown(there)
    copy = tmp_path / "copy"
    shutil.copytree(there.audit, copy)
    archived(there, to)
    settled(there)
    there.halt()
    done = archive(there, to)
    anchor_file = there.audit / "audit.anchor"
    anchor = json.loads(anchor_file.read_text())
    # Segments taken away, with an anchor that is a checkpoint of the log, and nobody told of it.
    first, second = segments(copy)[:2]
    last = first.read_bytes().splitlines()[-1].decode()
    assert '"checkpoint"' in last
    forged = anchor | {"segment": 1, "checkpoint": last}
    first.unlink()
    assert verify(copy).returncode != 0
    for revision in range(0, 40):
        (copy / "audit.anchor").write_text(json.dumps(forged | {"revision": revision}))
        done = verify(copy)
        assert done.returncode != 0
        if "no line that is signed tells" in done.stderr:
            break
    else:
        raise AssertionError(done.stderr)
    # The real anchor: changed, another segment gone, an archive that is not whole.
    anchor_file.write_text(json.dumps(anchor | {"revision": anchor["revision"] + 1}))
    assert verified(there.audit)["accepted"], "what the next line says is believed, and that it differs is told"
    for changed in ({"segment": anchor["segment"] - 1}, {"checkpoint": last}):
        anchor_file.write_text(json.dumps(anchor | changed))
        assert verify(there.audit).returncode != 0, changed
    anchor_file.write_text(json.dumps(anchor))
    verified(there.audit)
    packed = sorted(to.glob("*.gz"))[0]
    good = packed.read_bytes()
    lines = gzip.decompress(good)
    packed.write_bytes(gzip.compress(lines.replace(b'"status":200', b'"status":201', 1)))
    assert verify(there.audit, "--archive", to).returncode != 0
    packed.unlink()
    assert verify(there.audit, "--archive", to).returncode != 0
    packed.write_bytes(good)
    verified(there.audit, "--archive", to)
    assert second.exists()


def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path):
    there, to = Kms(tmp_path, 0), tmp_path / "archive"
    grown(there)
    kept = {path: path.read_bytes() for path in segments(there.audit)[:2]}
    # Written, and not renamed or handed over.
    to.mkdir()
    (to / "audit-000000000001.jsonl.new").write_bytes(b"half")
    archived(there, to)
    # Handed over, and not taken away.
    for path, content_ in kept.items():
        path.write_bytes(content_)
    settled(there)
    archived(there, to)
    assert not any(path.exists() for path in kept)
    # Another archive for the same log is a mistake.
    done = archive(there, tmp_path / "other")
    assert done.returncode == 2 and str(to.resolve()) in done.stderr
    there.halt()
    grown_there = segments(there.audit)
    done = archive(there, to)
    assert segments(there.audit) == grown_there and done.returncode in (0, 4)


def test_a_pull_from_before_the_archive_names_it(tmp_path):
    there, to = Pulled(tmp_path), tmp_path / "archive"
    there.busy()
    early, late = tmp_path / "early", tmp_path / "late"
    there.pull(early)
    for _ in range(4):
        there.change()
        there.stop()
        there.start()
    there.pull(late)
    done = holdfast("audit", "archive", "--log", there.log, "--to", to)
    assert done.returncode == 0, done.stderr
    done = there.pull(early, code=1)
    assert "LogArchived" in done.stderr and str(to.resolve()) in done.stderr, done.stderr
    there.pull(late)
    there.change()
    there.pull(late)
    done = holdfast("audit", "verify", "--log", there.log, "--against", late)
    assert done.returncode == 0, done.stderr
    there.stop()


def test_the_log_of_a_process_of_a_proxy(tmp_path):
    there, to = There(tmp_path), tmp_path / "archive"
    for _ in range(4):
        there.proxy.stop("a")
        there.proxy.start("a")
        there.clients[0].encrypt()
    audit = there.proxy.state / "processes/a/audit"
    done = holdfast("audit", "archive", "--log", audit, "--to", to)
    assert done.returncode == 0, done.stderr
    assert len(segments(audit)) == 2
    for kill in (9, 15):
        there.proxy.stop("a", how=kill)
        there.proxy.start("a")
        there.clients[0].encrypt()
    there.proxy.stop()
    verified(audit)
    verified(audit, "--archive", to)
    taken = there.backup(tmp_path / "one.backup")
    there.proxy.state = there.proxy.state.with_name("elsewhere")
    done = there.restore(tmp_path / "one.backup")
    assert done.returncode == 0, done.stderr
    there.proxy.start("a").start("b")
    there.clients[0].encrypt()
    assert [event["context"]["backup"] for event in there.events("RestoreBackup")] == [taken["id"]]
    there.proxy.stop()

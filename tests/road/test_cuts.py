"""Clients that hang up: see `battery.py` for what must hold.

    pytest tests/road/test_cuts.py --cuts 20
    pytest tests/road/test_cuts.py --moments 30 --cuts 100 --table docs/proof/cuts.md
"""
import pathlib
import statistics

import pytest
from battery import Battery
from of_key_vault import KeyVault
from of_kms import KeyManagement
from of_s3 import S3
from of_xks import QuorumCredentials, QuorumKeys, QuorumSwitches, Xks


def add(rows: dict, more: dict) -> dict:
    """The sum of two tables."""
    for title, row in more.items():
        kept = rows.setdefault(title, [0, 0, 0, 0, 0, []])
        for column, value in enumerate((row.cuts, row.whole, row.answered, row.logged, row.changed)):
            kept[column] += value
        kept[5].append(row.milliseconds)
    return rows


def write(file: pathlib.Path, dialect: str, rows: dict) -> None:
    lines = [f"\n## {dialect}\n", "| operation | takes, ms | cuts | arrived whole | answered before | events | changes |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {title} | {statistics.median(row[5]):.1f} | " + " | ".join(map(str, row[:5])) + " |" for title, row in rows.items()]
    with file.open("a") as out:
        out.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("dialect", [KeyVault, KeyManagement, S3, Xks, QuorumKeys, QuorumCredentials, QuorumSwitches])
def test_cuts(dialect, tmp_path, request, seed):
    option = request.config.getoption
    rows = {}
    for moment in range(option("--moments")):
        directory = tmp_path / str(moment)
        directory.mkdir()
        there = dialect(directory, option("--cuts"))
        battery = Battery(there, option("--cuts"), seed + moment).run()
        there.stop()
        if battery.faults:
            pytest.fail(battery.report(), pytrace=False)
        rows = add(rows, battery.rows)
    if option("--table"):
        write(pathlib.Path(option("--table")), dialect.__name__, rows)

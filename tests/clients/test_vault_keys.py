"""azure-keyvault-keys as it was before 2022 (4.4.0, on msrest), and 4.8.0: applications keep what they once pinned."""
import sys

import pytest
from conftest import HERE, ROOT, run

PYTHON = {"4.4.0": ROOT / "target/python-clients-old/bin/python", "4.8.0": sys.executable}
# Not "uses" of 4.4.0: its CryptographyClient drops the port of a key's URL.
PARTS = [("4.4.0", "listings"), ("4.4.0", "properties"), ("4.8.0", "listings"), ("4.8.0", "uses"), ("4.8.0", "properties")]


@pytest.mark.parametrize("version, part", PARTS)
def test_old_sdk(dev, version, part):
    assert run(PYTHON[version], HERE / "vault_keys.py", part, version, env=dev.env).stdout == "done\n"

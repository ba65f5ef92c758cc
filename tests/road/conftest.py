"""A request lives once, and a change happens whole: whoever hangs up, whatever cannot be written."""
import os
import pathlib
import random
import sys

import pytest

os.environ.setdefault("HOLDFAST_PYTHON", sys.executable)
for directory in ("..", "../xks", "../kms", "../s3", "."):
    sys.path.insert(0, str((pathlib.Path(__file__).resolve().parent / directory).resolve()))


def pytest_addoption(parser):
    parser.addoption("--cuts", type=int, default=20, help="cuts of each operation")
    parser.addoption("--moments", type=int, default=1, help="how often all of that, each time with a fresh instance")
    parser.addoption("--trials", type=int, default=100, help="uses against each way to revoke")
    parser.addoption("--seed", type=int, default=None, help="of all chance")
    parser.addoption("--table", default=None, help="a file for what was found, as a table")


@pytest.fixture(scope="session")
def seed(request) -> int:
    seed = request.config.getoption("--seed")
    return random.SystemRandom().randrange(1 << 32) if seed is None else seed


@pytest.fixture
def there(request, tmp_path):
    """A service with a log, of the class that is the test's parameter."""
    logged = request.param(tmp_path)
    yield logged
    logged.stop()
    assert "panicked" not in logged.process_log.read_text()

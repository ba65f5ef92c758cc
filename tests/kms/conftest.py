"""The key management service, driven by boto3 and what is built on it."""
import os
import pathlib
import sys

import pytest

os.environ.setdefault("HOLDFAST_PYTHON", sys.executable)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "xks"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from service import OTHER_REGION, Service  # noqa: E402

@pytest.fixture(scope="session")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("kms")).start()
    yield service
    service.check_end()


@pytest.fixture(scope="session")
def kms(service):
    """As the account's root."""
    return service.client("root")


@pytest.fixture(scope="session")
def elsewhere(service):
    """The same, in the other region."""
    return service.client("root", OTHER_REGION)


@pytest.fixture
def own(tmp_path):
    """An instance of the test's own."""
    service = Service(tmp_path / "kms").start()
    yield service
    service.check_end()


@pytest.fixture(scope="session")
def symmetric(kms) -> str:
    """ARN of a symmetric key that no test changes."""
    return kms.create_key(Description="symmetric")["KeyMetadata"]["Arn"]

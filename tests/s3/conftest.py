"""A storage service on a Managed HSM, with a key management service beside it, as fixtures."""
import pathlib
import sys
import uuid

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "kms"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "xks"))
from chain import Chain  # noqa: E402
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, ROLES, STORAGE, Hsm  # noqa: E402, F401
from process import BINARY  # noqa: E402, F401
from storage_service import Storage  # noqa: E402


@pytest.fixture(scope="session")
def hsm(tmp_path_factory):
    hsm = Hsm(tmp_path_factory.mktemp("hsm") / "h")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    hsm.grant(ENCRYPTION_USER, STORAGE[1])
    for name in ("default", "kek-a", "kek-b"):
        hsm.create_kek(name)
    yield hsm
    hsm.stop()
    assert "panicked" not in hsm.log.read_text()


def start_storage(tmp_path_factory, hsm, **options):
    kek = options.pop("default_kek", f"{hsm.url}/keys/default")
    return Storage(tmp_path_factory.mktemp("s3") / "s", hsm, kek, **options).start()


@pytest.fixture(scope="session")
def kms(tmp_path_factory):
    """A key management service with hosted keys, and with reference keys in an external key store."""
    chain = Chain(tmp_path_factory.mktemp("chain"), ["kek-a", "kek-b", "own"]).start()
    yield chain
    chain.check_end()


@pytest.fixture(scope="session")
def storage(tmp_path_factory, hsm, kms):
    storage = start_storage(tmp_path_factory, hsm, kms=kms)
    yield storage
    storage.stop()
    assert "panicked" not in storage.log.read_text()


@pytest.fixture
def make_storage(tmp_path_factory, hsm):
    """Storage services with options of their own."""
    made = []

    def make(**options):
        made.append(start_storage(tmp_path_factory, hsm, **options))
        return made[-1]
    yield make
    for storage in made:
        storage.stop()
        assert "panicked" not in storage.log.read_text()


@pytest.fixture(scope="session")
def s3(storage):
    return storage.client()


@pytest.fixture
def bucket(s3):
    name = f"b-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def keks(hsm):
    return f"{hsm.url}/keys/kek-a", f"{hsm.url}/keys/kek-b"

"""Whole clients, unmodified, against servers that are processes of their own.

Each S3 client meets two doors: plain HTTP, where it signs what it sends, and TLS, where many send a trailer instead.
"""
import dataclasses
import os
import pathlib
import subprocess
import sys
import uuid

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "kms"))
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, STORAGE, Hsm  # noqa: E402
from process import ROOT, Server  # noqa: E402
from service import REGION, Service  # noqa: E402
from storage_service import Storage  # noqa: E402

# Command lines that pip installs beside the interpreter of this environment.
BIN = pathlib.Path(sys.executable).parent
EMOJI = "päth/🔑 & <clé> +%41 'q'.txt"
# What the tests of this folder set anew must not come from the machine.
UNSET = {"AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}


def run(*command, env: dict | None = None, ok: bool = True, seconds: int = 120, **more) -> subprocess.CompletedProcess:
    """Runs a client to its end, without the machine's own settings of such clients."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    done = subprocess.run([str(part) for part in command], env=kept | (env or {}), capture_output=True, text=True, timeout=seconds, **more)
    assert not ok or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done


def node(script: str, *arguments, env: dict) -> subprocess.CompletedProcess:
    """One of this folder's programs, with the packages of its lock file."""
    modules = ROOT / "target/node-clients/node_modules"
    assert modules.is_dir(), "the packages of tests/clients/package.json are missing: cargo xtask test installs them"
    return run("node", HERE / script, *arguments, env={"NODE_PATH": str(modules)} | env)


@dataclasses.dataclass
class Door:
    """Where an S3 client goes, and as whom."""
    url: str
    access_key: str
    secret: str
    ca: str | None
    kek: str

    @property
    def host(self) -> str:
        return self.url.split("://")[1]

    @property
    def secure(self) -> bool:
        return self.ca is not None

    def env(self, home: pathlib.Path) -> dict:
        found = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
                 "HOME": str(home), "S3_URL": self.url}
        return found | ({"AWS_CA_BUNDLE": self.ca, "NODE_EXTRA_CA_CERTS": self.ca, "SSL_CERT_FILE": self.ca} if self.ca else {})


@pytest.fixture(scope="session")
def dev(tmp_path_factory):
    """All roles behind TLS."""
    server = Server(tmp_path_factory.mktemp("dev")).start()
    yield server
    server.stop()
    assert "panicked" not in server.log.read_text()


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    hsm = Hsm(tmp_path_factory.mktemp("hsm") / "h")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    hsm.grant(ENCRYPTION_USER, STORAGE[1])
    hsm.create_kek("default")
    hsm.create_kek("other")
    storage = Storage(tmp_path_factory.mktemp("s3") / "s", hsm, f"{hsm.url}/keys/default").start()
    yield storage
    for process in (storage, hsm):
        process.stop()
        assert "panicked" not in process.log.read_text()


@pytest.fixture(scope="session", params=["http", "tls"])
def door(request):
    if request.param == "http":
        storage = request.getfixturevalue("storage")
        return Door(storage.url, *storage.keys["alice"], None, f"{storage.hsm.url}/keys/other")
    env = request.getfixturevalue("dev").env
    return Door(env["HOLDFAST_S3_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["HOLDFAST_CA_FILE"], env["HOLDFAST_S3_KEY_1"])


@pytest.fixture(scope="session")
def kms(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("kms")).start()
    yield service
    service.check_end()


@pytest.fixture
def kms_env(kms, tmp_path):
    access_key, secret = kms.keys["root"]
    return {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL_KMS": kms.url,
            "AWS_CA_BUNDLE": kms.ca_file, "HOME": str(tmp_path)}


@pytest.fixture
def bucket():
    return f"b-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def tree(tmp_path):
    """A directory of files small, empty, large and oddly named."""
    directory = tmp_path / "tree"
    contents = {"a.txt": b"a", "deep/b +%&.bin": os.urandom(200_000), "deep/er/ü": b"", "deep/🔑.key": b"emoji", "big": os.urandom(12_000_000)}
    for name, content in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

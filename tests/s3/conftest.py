"""A storage service on a Managed HSM that is a process of its own, and boto3 pointed at it."""
import json
import pathlib
import secrets
import signal
import sys
import uuid

import boto3
import pytest
import requests
from botocore.config import Config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "kms"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "xks"))
from chain import Chain  # noqa: E402
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, ROLES, STORAGE, TENANT, Hsm  # noqa: E402, F401
from process import BINARY, free_ports, start  # noqa: E402

class Storage:
    """`holdfast storage serve` on an HSM."""

    def __init__(self, directory: pathlib.Path, hsm: Hsm, default_kek: str, more: str = "", kms: Chain | None = None, **options):
        self.directory, self.hsm, self.port = directory, hsm, free_ports()
        directory.mkdir()
        self.data_dir, self.log = directory / "d", directory / "storage.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys = {name: (f"AK{name.upper()}", secrets.token_hex(20)) for name in ("alice", "bob")}
        keys = ""
        for name, (access_key, secret) in self.keys.items():
            (directory / f"{name}.secret").write_text(secret)
            keys += f'[[access_keys]]\nid = "{access_key}"\nsecret_file = "{directory / name}.secret"\nprincipal = "{name}"\n'
        lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
        (directory / "storage.toml").write_text(f'''
[listen]
address = "127.0.0.1:{self.port}"
insecure_http = true
[storage]
data_dir = "{self.data_dir}"
default_kek = "{default_kek}"
{lines}
{keys}
[key_service]
hsm_urls = ["{hsm.url}"]
ca_file = "{hsm.data_dir / 'ca.pem'}"
authority = "{hsm.authority}/{TENANT}"
authority_ca_file = "{hsm.data_dir / 'ca.pem'}"
client_id = "{STORAGE[0]}"
client_secret_file = "{hsm.directory / 'storage.secret'}"
{kms.storage_config() if kms else ""}
{more}
''')
        self.process = None

    def ready(self) -> bool:
        try:
            return requests.get(self.url + "/readyz", timeout=1).ok
        except requests.RequestException:
            return False

    def start(self) -> "Storage":
        self.process = start([BINARY, "storage", "serve", "--config", self.directory / "storage.toml"], self.log, self.ready)
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def client(self, who: str = "alice", **config):
        access_key, secret = self.keys[who]
        config = {"retries": {"max_attempts": 0}, "s3": {"addressing_style": "path"}, "read_timeout": 60} | config
        return boto3.client("s3", endpoint_url=self.url, aws_access_key_id=access_key, aws_secret_access_key=secret,
                            region_name="us-east-1", config=Config(**config))

    def raw_bytes(self) -> bytes:
        """Everything that is at rest: index and blobs."""
        return b"".join(path.read_bytes() for path in sorted(self.data_dir.rglob("*")) if path.is_file())

    def blobs(self) -> list[pathlib.Path]:
        return sorted(path for path in (self.data_dir / "blobs").rglob("*") if path.is_file())


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

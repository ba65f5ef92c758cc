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
from process import BINARY, ROOT, free_ports, start  # noqa: E402

TENANT = "11111111-1111-4111-8111-111111111111"
ADMIN = ("22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333")
STORAGE = ("44444444-4444-4444-8444-444444444444", "55555555-5555-4555-8555-555555555555")
CRYPTO_USER = "21dbd100-6940-42c2-9190-5d6cb909625b"
CRYPTO_OFFICER = "515eb02d-2335-4d2d-92f2-b1cbdf9c3778"
ENCRYPTION_USER = "33413926-3206-4cdd-b39a-83574fe37a17"
ROLES = "/providers/Microsoft.Authorization/roleAssignments"


class Hsm:
    """`holdfast managed-hsm` with its embedded issuer; its secrets outlive a restart."""

    def __init__(self, directory: pathlib.Path):
        self.directory, self.port = directory, free_ports()
        directory.mkdir()
        self.url = f"https://127.0.0.1:{self.port}"
        self.authority = f"https://127.0.0.1:{self.port + 1}"
        self.data_dir, self.log = directory / "data", directory / "hsm.log"
        self.secrets = {}
        clients = ""
        for name, (client_id, object_id) in {"admin": ADMIN, "storage": STORAGE}.items():
            self.secrets[name] = secrets.token_hex(24)
            (directory / f"{name}.secret").write_text(self.secrets[name])
            clients += f'[[embedded_issuer.clients]]\nclient_id = "{client_id}"\nobject_id = "{object_id}"\nsecret_file = "{directory / name}.secret"\n'
        (directory / "hsm.toml").write_text(f'''
[listen]
address = "127.0.0.1:{self.port}"
host_names = ["127.0.0.1:{self.port}"]
[hsm]
data_dir = "{self.data_dir}"
initial_administrators = ["{ADMIN[1]}"]
[silicon]
kind = "software-insecure"
root_file = "{directory / 'silicon'}"
[identity]
authority = "{self.authority}/{TENANT}"
[embedded_issuer]
address = "127.0.0.1:{self.port + 1}"
url = "{self.authority}"
tenant = "{TENANT}"
{clients}''')
        self.process = None

    def ready(self) -> bool:
        try:
            return requests.get(self.url + "/readyz", verify=False, timeout=1).ok
        except requests.RequestException:
            return False

    def start(self):
        self.process = start([BINARY, "managed-hsm", "--config", self.directory / "hsm.toml"], self.log, self.ready)

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(30)

    def token(self) -> str:
        form = {"grant_type": "client_credentials", "client_id": ADMIN[0], "client_secret": self.secrets["admin"],
                "scope": "https://managedhsm.azure.net/.default"}
        answer = requests.post(f"{self.authority}/{TENANT}/oauth2/v2.0/token", data=form, verify=self.data_dir / "ca.pem", timeout=10)
        return answer.json()["access_token"]

    def __call__(self, method: str, path: str, body=None, ok=True):
        answer = requests.request(method, self.url + path, params={"api-version": "7.5"}, json=body, timeout=30,
                                  headers={"Authorization": f"Bearer {self.token()}"}, verify=self.data_dir / "ca.pem")
        assert not ok or answer.ok, answer.text
        return answer.json() if answer.content else None

    def grant(self, role: str, principal: str) -> str:
        name = str(uuid.uuid4())
        definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{role}"
        self("PUT", f"{ROLES}/{name}", {"properties": {"roleDefinitionId": definition, "principalId": principal}})
        return name

    def events(self, operation: str) -> int:
        """How often the storage service had this done, by the audit log."""
        lines = [json.loads(line) for path in sorted((self.data_dir / "audit").glob("*.jsonl")) for line in path.read_text().splitlines()]
        return sum(line.get("operation") == operation and line.get("caller", {}).get("oid") == STORAGE[1] for line in lines)

    def create_kek(self, name: str, **more) -> str:
        self("POST", f"/keys/{name}/create", {"kty": "RSA-HSM", "key_size": 2048, "key_ops": ["wrapKey", "unwrapKey"]} | more)
        return f"{self.url}/keys/{name}"

    def enable(self, name: str, enabled: bool):
        self("PATCH", f"/keys/{name}", {"attributes": {"enabled": enabled}})


class Storage:
    """`holdfast storage serve` on an HSM."""

    def __init__(self, directory: pathlib.Path, hsm: Hsm, default_kek: str, more: str = "", **options):
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
def storage(tmp_path_factory, hsm):
    storage = start_storage(tmp_path_factory, hsm)
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

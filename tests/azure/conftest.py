"""A started `holdfast dev`, and the real clients pointed at it."""
import base64
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import time
import uuid

import pytest
import requests
from azure.identity import ClientSecretCredential
from azure.keyvault.administration import KeyVaultAccessControlClient, KeyVaultSettingsClient
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/holdfast"
API_VERSION = "7.5"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def free_ports() -> int:
    """A port base with two free ports."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            base = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", base + 1))
            except OSError:
                continue
            if base < 65000:
                return base


class Server:
    """One `holdfast dev` process."""

    def __init__(self, directory: pathlib.Path, *extra: str, data_dir: pathlib.Path | None = None):
        self.directory = directory
        self.data_dir = data_dir or directory / "data"
        self.env_file = directory / "dev.env"
        self.log = directory / "server.log"
        self.port = free_ports()
        self.extra = extra
        self.process: subprocess.Popen | None = None
        self.env: dict[str, str] = {}

    def start(self) -> "Server":
        command = [BINARY, "dev", "--data-dir", self.data_dir, "--port-base", str(self.port), "--env-file", self.env_file, *self.extra]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 30
        while not self.env_file.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        self.env = dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())
        return self

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    @property
    def url(self) -> str:
        return self.env["HOLDFAST_HSM_URL"]

    @property
    def ca_file(self) -> str:
        return self.env["HOLDFAST_CA_FILE"]

    def credential(self, client: str = "") -> ClientSecretCredential:
        prefix = f"HOLDFAST_{client.upper()}_" if client else "HOLDFAST_"
        return ClientSecretCredential(
            self.env["HOLDFAST_TENANT_ID"], self.env[prefix + "CLIENT_ID"], self.env[prefix + "CLIENT_SECRET"],
            authority=self.env["HOLDFAST_AUTHORITY_URL"], disable_instance_discovery=True, connection_verify=self.ca_file,
        )

    def holdfast(self, *args: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True, check=check)

    def token(self, client: str | None = None) -> str:
        more = ["--client", client] if client else []
        return self.holdfast("token", "--env-file", self.env_file, *more).stdout.strip()


@dataclasses.dataclass
class Rest:
    """The bare API, for what the SDKs do not send."""
    server: Server
    token: str

    def __call__(self, method: str, path: str, body=None, *, version: str | None = API_VERSION, headers=None, **more) -> requests.Response:
        params = dict(more.pop("params", {}))
        if version:
            params["api-version"] = version
        sent = {"Authorization": f"Bearer {self.token}"} | (headers or {})
        return requests.request(method, self.server.url + path, params=params, json=body,
                                headers={k: v for k, v in sent.items() if v is not None},
                                verify=self.server.ca_file, timeout=30, **more)

    def ok(self, method: str, path: str, body=None, status: int = 200, **more):
        answer = self(method, path, body, **more)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return answer.json() if answer.content else None


def assert_error(answer: requests.Response, status: int, code: str) -> str:
    """An error in Key Vault's form; returns its message."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["Content-Type"].startswith("application/json")
    error = answer.json()["error"]
    assert error["code"] == code, error
    assert f"(Activity ID: {answer.headers['x-ms-request-id']})" in error["message"], error
    return error["message"]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("holdfast"), "--client", "alice", "--client", "bob").start()
    yield server
    server.stop()
    log = server.log.read_text()
    assert "panicked" not in log, log
    # Every error line of the server is a defect: no test here provokes a fault inside.
    assert " ERROR " not in log, log
    report = server.holdfast("audit", "verify", "--log", server.data_dir / "audit")
    assert "checkpoints" in report.stdout


@pytest.fixture(scope="session")
def key_client(server):
    return KeyClient(server.url, server.credential(), connection_verify=server.ca_file)


@pytest.fixture(scope="session")
def crypto_client(server):
    credential = server.credential()

    def make(key):
        return CryptographyClient(key, credential, connection_verify=server.ca_file)
    return make


@pytest.fixture(scope="session")
def access(server):
    return KeyVaultAccessControlClient(server.url, server.credential(), connection_verify=server.ca_file)


@pytest.fixture(scope="session")
def settings(server):
    return KeyVaultSettingsClient(server.url, server.credential(), connection_verify=server.ca_file)


@pytest.fixture(scope="session")
def rest(server):
    return Rest(server, server.token())


@pytest.fixture
def name():
    return f"k-{uuid.uuid4().hex[:12]}"

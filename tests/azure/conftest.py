"""A started `holdfast dev`, and the real clients pointed at it."""
import dataclasses
import pathlib
import sys
import uuid

import pytest
import requests
from azure.keyvault.administration import KeyVaultAccessControlClient, KeyVaultSettingsClient
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from process import BINARY, ROOT, Server, b64, free_ports, unb64  # noqa: E402, F401  (the tests import them from here)

API_VERSION = "7.5"


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

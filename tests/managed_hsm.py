"""A Managed HSM that is a process of its own, with its embedded issuer and three clients."""
import json
import pathlib
import secrets
import signal
import uuid

import requests
from process import BINARY, free_ports, start

TENANT = "11111111-1111-4111-8111-111111111111"
ADMIN = ("22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333")
STORAGE = ("44444444-4444-4444-8444-444444444444", "55555555-5555-4555-8555-555555555555")
KMS = ("66666666-6666-4666-8666-666666666666", "77777777-7777-4777-8777-777777777777")
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
        for name, (client_id, object_id) in {"admin": ADMIN, "storage": STORAGE, "kms": KMS}.items():
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

    def token(self, name: str = "admin") -> str:
        client_id, _ = {"admin": ADMIN, "storage": STORAGE, "kms": KMS}[name]
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": self.secrets[name],
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
        lines = [json.loads(line) for path in sorted((self.data_dir / "audit").glob("*.jsonl")) for line in path.read_text().splitlines(keepends=True)
                 if line.endswith("\n")]  # one that is being written has no end yet
        return sum(line.get("operation") == operation and line.get("caller", {}).get("oid") == STORAGE[1] for line in lines)

    def create_kek(self, name: str, **more) -> str:
        self("POST", f"/keys/{name}/create", {"kty": "RSA-HSM", "key_size": 2048, "key_ops": ["wrapKey", "unwrapKey"]} | more)
        return f"{self.url}/keys/{name}"

    def enable(self, name: str, enabled: bool):
        self("PATCH", f"/keys/{name}", {"attributes": {"enabled": enabled}})

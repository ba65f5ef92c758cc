"""An installation of every role in one directory: its processes, and clients of each.

Its configuration files lie in the directory with everything else; `@DIR@` stands in them for where the directory is. The ports are
fixed: keys are named by URLs that hold them, in envelopes and in records.
"""
import fcntl
import json
import pathlib
import signal
import subprocess
import tarfile
import tempfile
import warnings

import boto3
import requests
from azure.identity import ClientSecretCredential
from azure.keyvault.administration import KeyVaultAccessControlClient, KeyVaultSettingsClient
from azure.keyvault.keys import KeyClient
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from process import BINARY, start
from signing import sign

# Below the range from which systems give ports by themselves.
HSM, ISSUER, PROXY, PROXY_METRICS, KMS, STORAGE, CLEAR, EKM, PROXY_B, PROXY_B_METRICS = range(26441, 26451)
TENANT = "11111111-1111-4111-8111-111111111111"
REGION, OTHER_REGION, ACCOUNT = "us-east-1", "eu-west-1", "111122223333"
COMMANDS = {
    "hsm": (["managed-hsm"], f"https://127.0.0.1:{HSM}/readyz"),
    "proxy": (["xks", "serve"], f"http://127.0.0.1:{PROXY_METRICS}/healthz"),
    "proxy-b": (["xks", "serve"], f"http://127.0.0.1:{PROXY_B_METRICS}/healthz"),
    "kms": (["kms", "serve"], f"https://localhost:{KMS}/readyz"),
    "storage": (["storage", "serve"], f"http://127.0.0.1:{STORAGE}/readyz"),
    "clear": (["storage", "serve"], f"http://127.0.0.1:{CLEAR}/readyz"),
}
LOGS = {"hsm": "hsm/data/audit", "proxy": "proxy/state/processes/a/audit", "proxy-b": "proxy/state/processes/b/audit", "kms": "kms/data/audit"}
"""Audit logs that an installation of the first version has."""


class Ports:
    """One installation at a time on this machine: its ports are fixed."""

    def __enter__(self):
        self.file = open(pathlib.Path(tempfile.gettempdir()) / "holdfast-installation.lock", "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self.file.close()


def unpack(archive: pathlib.Path, which: str, directory: pathlib.Path) -> None:
    """What the archive holds under that name, made whole: its configuration names the directory."""
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.name.startswith(which + "/"):
                member.name = member.name.removeprefix(which + "/")
                packed.extract(member, directory, filter=lambda member, _: member)
    for secret in directory.rglob("*.secret"):
        # Their modes were not looked at when this was made.
        secret.chmod(0o600)
    for config in directory.glob("*.toml"):
        config.write_text(config.read_text().replace("@DIR@", str(directory)))


class Installation:
    def __init__(self, directory: pathlib.Path, secrets: dict):
        self.directory, self.secrets = directory, secrets
        self.processes: dict[str, subprocess.Popen] = {}
        self.requests = requests.Session()

    # Processes.

    def start(self) -> "Installation":
        for name, (command, url) in COMMANDS.items():
            def ready() -> bool:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        return requests.get(url, verify=False, timeout=1).ok
                except requests.RequestException:
                    return False
            self.processes[name] = start([BINARY, *command, "--config", self.directory / f"{name}.toml"], self.log(name), ready)
        return self

    def log(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.log"

    def stop(self, how: int = signal.SIGTERM) -> None:
        for name in list(COMMANDS)[::-1]:
            process = self.processes.pop(name, None)
            if process and process.poll() is None:
                process.send_signal(how)
                process.wait(30)

    def holdfast(self, *args, **more) -> str:
        done = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True, **more)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    # The Managed HSM.

    url = f"https://127.0.0.1:{HSM}"
    authority = f"https://127.0.0.1:{ISSUER}"

    @property
    def hsm_ca(self) -> str:
        return str(self.directory / "hsm/data/ca.pem")

    def credential(self, who: str) -> ClientSecretCredential:
        client = self.secrets["clients"][who]
        return ClientSecretCredential(TENANT, client["client_id"], client["secret"], authority=self.authority,
                                      disable_instance_discovery=True, connection_verify=self.hsm_ca)

    def keys(self, who: str = "admin") -> KeyClient:
        return KeyClient(self.url, self.credential(who), connection_verify=self.hsm_ca, retry_total=0)

    def access(self) -> KeyVaultAccessControlClient:
        return KeyVaultAccessControlClient(self.url, self.credential("admin"), connection_verify=self.hsm_ca)

    def settings(self) -> KeyVaultSettingsClient:
        return KeyVaultSettingsClient(self.url, self.credential("admin"), connection_verify=self.hsm_ca)

    def rest(self, method: str, path: str, body=None, who: str = "admin"):
        token = self.credential(who).get_token("https://managedhsm.azure.net/.default").token
        answer = requests.request(method, self.url + path, params={"api-version": "7.5"}, json=body, timeout=30,
                                  headers={"Authorization": f"Bearer {token}"}, verify=self.hsm_ca)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    # The key management service, storage.

    def kms(self, who: str = "root", region: str = REGION):
        access_key, secret = self.secrets["kms"][who]
        return boto3.Session().client("kms", endpoint_url=f"https://localhost:{KMS}", region_name=region, aws_access_key_id=access_key,
                                      aws_secret_access_key=secret, verify=str(self.directory / "kms/data/ca.pem"),
                                      config=Config(retries={"max_attempts": 0}, read_timeout=30))

    def s3(self, who: str = "alice", port: int = STORAGE):
        access_key, secret = self.secrets["s3"][who]
        return boto3.Session().client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name=REGION, aws_access_key_id=access_key,
                                      aws_secret_access_key=secret,
                                      config=Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}, read_timeout=60))

    # The external key store proxy.

    def xks(self, credential: dict, path: str, body: dict, port: int = PROXY) -> requests.Response:
        data = json.dumps(body).encode()
        url = f"https://localhost:{port}{credential['uri_path']}/{path}"
        headers = sign(AWSRequest("POST", url, data=data, headers={"Content-Type": "application/json"}),
                       credential["access_key"], credential["secret"], "kms-xks-proxy", REGION)
        return self.requests.post(url, data=data, headers=headers, verify=str(self.directory / "proxy/state/ca.pem"), timeout=30)

    def ekm(self, path: str, **more) -> dict:
        body = {"request_context": {"correlation_id": "c", "pool_name": "pool-1", "request_id": "r"}} | more
        answer = self.requests.post(f"https://localhost:{EKM}/azure/pool-1/{path}?api-version=0.1-preview", json=body, timeout=30,
                                    cert=(str(self.directory / "proxy/pool.crt"), str(self.directory / "proxy/pool.key")),
                                    verify=str(self.directory / "proxy/state/ca.pem"))
        assert answer.ok, answer.text
        return answer.json()

    @property
    def state(self) -> pathlib.Path:
        return self.directory / "proxy/state"

    def propose(self, operator: str, *change, secret: str | None = None, hours: int = 1) -> str:
        """The id of the proposal."""
        command = ["quorum", "propose", "--state-dir", self.state, "--operator", operator, "--key", self.directory / f"proxy/{operator}.key",
                   "--hours", hours, *change]
        if secret is None:
            return self.holdfast(*command).split()[0]
        with tempfile.TemporaryFile() as file:
            file.write(secret.encode())
            file.seek(0)
            return self.holdfast(*command, "--secret-fd", file.fileno(), pass_fds=[file.fileno()]).split()[0]

    def decide(self, word: str, operator: str, proposal: str) -> str:
        return self.holdfast("quorum", word, "--state-dir", self.state, "--operator", operator, "--key", self.directory / f"proxy/{operator}.key", "--yes", proposal)

    def change(self, *change, **more) -> None:
        assert "executed" in self.decide("approve", "ben", self.propose("ann", *change, **more))

    def add_credential(self, store: str) -> dict:
        with tempfile.TemporaryDirectory() as directory:
            handover = pathlib.Path(directory) / "handover.json"
            self.change("credential-add", "--store", store, "--handover", handover)
            given = json.loads(handover.read_text())
        pair = given["XksProxyAuthenticationCredential"]
        return {"uri_path": given["XksProxyUriPath"], "access_key": pair["AccessKeyId"], "secret": pair["RawSecretAccessKey"]}

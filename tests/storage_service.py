"""A storage service that is a process of its own, on a Managed HSM that is one too, and boto3 pointed at it."""
import json
import pathlib
import secrets
import signal
import time

import boto3
import requests
from botocore.config import Config
from managed_hsm import STORAGE, TENANT, Hsm
from process import BINARY, free_ports, start


class Storage:
    """`holdfast storage serve` on an HSM."""

    def __init__(self, directory: pathlib.Path, hsm: Hsm, default_kek: str, more: str = "", more_listen: str = "", kms=None, **options):
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
{more_listen}
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

    def events(self) -> list[dict]:
        """What the audit log tells, in order; a line that is being written left out."""
        lines = [line for path in sorted((self.data_dir / "audit").glob("audit-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
        return [line for line in map(json.loads, lines) if line["type"] == "event"]

    def settle(self):
        """Waits until the log has the events of all changes that were answered."""
        deadline = time.monotonic() + 30
        while requests.get(self.url + "/readyz", timeout=5).json()["audit_waiting"]:
            assert time.monotonic() < deadline, "the log does not take the events"
            time.sleep(0.01)

    def events_of(self, request_id: str) -> list[dict]:
        self.settle()
        return [event for event in self.events() if event["request_id"] == request_id]

    def blobs(self) -> list[pathlib.Path]:
        """Finished ones and those that are being written, without the mark of their owner."""
        return sorted(path for path in (self.data_dir / "blobs").rglob("*") if path.is_file() and path.name != "owner")

    def metric(self, name: str) -> float | None:
        lines = requests.get(self.url + "/metrics", headers={"Host": "localhost"}, timeout=5).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.split(" ")[0] == name), None)

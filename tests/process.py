"""Starts the real binary, for the end-to-end tests and the crash loops."""
import atexit
import base64
import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

from azure.identity import ClientSecretCredential

# As whoever writes secrets to files does: services refuse those that others may read.
os.umask(0o077)

ROOT = pathlib.Path(__file__).resolve().parents[1]
BINARY = pathlib.Path(os.environ.get("HOLDFAST_BINARY", ROOT / "target/debug/holdfast"))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# Above what services of the machine have, below where ports of clients begin (32768 on Linux).
SERVER_PORTS = (10_000, 32_000)


def free_ports(count: int = 5) -> int:
    """A port base with so many free ports, none of those that the kernel gives to clients: a connection of somebody else's would take one of them
    before its server has started."""
    while True:
        base = random.SystemRandom().randrange(*SERVER_PORTS)
        with contextlib.ExitStack() as held:
            try:
                for port in range(base, base + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base


def start(command: list, log: pathlib.Path, ready, seconds: float = 30) -> subprocess.Popen:
    """Starts a process and waits until `ready()` holds."""
    with open(log, "ab") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=out)
    # A test that fails half-way leaves nothing behind.
    atexit.register(lambda: process.poll() is None and process.kill())
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return process


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
        self.process = start(command, self.log, self.env_file.exists)
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

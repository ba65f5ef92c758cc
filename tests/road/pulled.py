"""Services whose audit log somebody takes a copy of, and those who lie between them."""
import contextlib
import http.client
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import proxy as xks
import pytest
import requests
import service as kms
from botocore.awsrequest import AWSRequest
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, KMS, STORAGE, TENANT, Hsm
from process import BINARY
from signing import sign
from storage_service import Storage

AUDIT_READER = "6f1d2c6a-6f0b-4a57-9c53-8d2f3f6b7a10"
PATH = "/_holdfast/audit"
FORMAT = "holdfast-audit-pull-1"
HISTORY, DENIED, UNAVAILABLE = 5, 3, 4


class Logged:
    """A service with a log. `directory` is all of it: state, silicon, configuration."""

    role: str
    directory: pathlib.Path
    url: str
    ca: pathlib.Path | None
    log: pathlib.Path

    def variables(self, who: str) -> dict[str, str]:
        raise NotImplementedError

    def busy(self, count: int = 10) -> None:
        """Makes so many lines, at least."""
        raise NotImplementedError

    def change(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, how: int = signal.SIGTERM) -> None:
        raise NotImplementedError

    # The command.

    def command(self, to: pathlib.Path, *more, who: str = "reader", url: str | None = None) -> list[str]:
        file = to.with_suffix(f".{who}.env")
        file.write_text("".join(f"{name}={value}\n" for name, value in self.variables(who).items()))
        command = [BINARY, "audit", "pull", "--url", url or self.url, "--role", self.role, "--to", to, "--env-file", file, *more]
        if self.ca:
            command += ["--ca", self.ca]
        if (url or self.url).startswith("http:"):
            command.append("--insecure-http")
        return list(map(str, command))

    def pull(self, to: pathlib.Path, *more, code: int = 0, **how) -> subprocess.CompletedProcess:
        done = subprocess.run(self.command(to, *more, **how), capture_output=True, text=True, timeout=120)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr, self.tail())
        return done

    # The log itself.

    def tail(self) -> str:
        return self.process_log.read_text()[-3000:]

    def lines(self) -> list[dict]:
        found = [line for path in sorted(self.log.glob("audit-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
        return [json.loads(line) for line in found]

    def pulls(self) -> list[dict]:
        return [line for line in self.lines() if line.get("operation") == "AuditLogPull"]

    # Another moment.

    def keep(self, to: pathlib.Path) -> None:
        """Everything as it is now. The service is stopped."""
        shutil.copytree(self.directory, to)

    def put_back(self, kept: pathlib.Path, *names: str) -> None:
        """Everything as it was then, or these files and directories of it."""
        for name in names or os.listdir(kept):
            there, then = self.directory / name, kept / name
            shutil.rmtree(there, ignore_errors=True) if there.is_dir() else there.unlink(missing_ok=True)
            shutil.copytree(then, there) if then.is_dir() else shutil.copy2(then, there)

    def accept_loss(self, accept: bool) -> None:
        """Sets it, or takes it away."""
        text = self.config.read_text().replace("[audit]\naccept_loss = true\n", "")
        self.config.write_text(text + ("[audit]\naccept_loss = true\n" if accept else ""))

    # Requests by hand.

    def signed(self, body: bytes, who: str = "reader", service: str = "holdfast-audit", region: str = "local", headers=None) -> dict:
        variables = self.variables(who)
        request = AWSRequest("POST", self.url + PATH, data=body, headers=headers or {})
        return sign(request, variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], service, region)

    def ask(self, body, who: str = "reader") -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return requests.post(self.url + PATH, data=data, headers=self.signed(data, who), verify=self.ca or True, timeout=30)


class OfHsm(Logged):
    role = "managed-hsm"

    def __init__(self, directory: pathlib.Path):
        self.hsm = Hsm(directory / "hsm")
        self.directory, self.url, self.log = self.hsm.directory, self.hsm.url, self.hsm.data_dir / "audit"
        self.ca, self.process_log, self.config = directory / "ca.pem", self.hsm.log, self.hsm.directory / "hsm.toml"
        self.hsm.start()
        shutil.copy(self.hsm.data_dir / "ca.pem", self.ca)
        for role in (CRYPTO_USER, CRYPTO_OFFICER):
            self.hsm.grant(role, ADMIN[1])
        self.assignment = self.hsm.grant(AUDIT_READER, STORAGE[1])
        # Every other role at once reads no log.
        for role in (CRYPTO_USER, CRYPTO_OFFICER, ENCRYPTION_USER):
            self.hsm.grant(role, KMS[1])
        self.hsm("POST", "/keys/used/create", {"kty": "oct-HSM", "key_size": 256})

    def variables(self, who: str) -> dict[str, str]:
        name = {"reader": "storage", "administrator": "admin", "user": "kms"}.get(who, "storage")
        client, _ = {"admin": ADMIN, "storage": STORAGE, "kms": KMS}[name]
        secret = self.hsm.secrets[name] if who != "wrong" else "x" * 40
        return {"HOLDFAST_AUTHORITY_URL": self.hsm.authority, "HOLDFAST_TENANT_ID": TENANT, "HOLDFAST_CLIENT_ID": client, "HOLDFAST_CLIENT_SECRET": secret}

    strangers = ("administrator", "user")

    def busy(self, count: int = 10) -> None:
        headers = {"Authorization": f"Bearer {self.hsm.token()}"}
        with requests.Session() as session:
            for _ in range(count):
                assert session.get(f"{self.url}/keys/used?api-version=7.5", headers=headers, verify=self.ca, timeout=10).ok

    def change(self) -> None:
        self.hsm("PATCH", "/keys/used", {"tags": {"now": secrets.token_hex(4)}})

    def start(self) -> None:
        self.hsm.start()

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.hsm.process.poll() is None:
            self.hsm.stop(how)


class OfKms(Logged):
    role = "kms"
    strangers = ("admin", "stranger-root", "root")

    def __init__(self, directory: pathlib.Path, more: str = ""):
        readers = f'[audit_pull]\nreaders = ["{kms.iam("user/bob")}"]\n'
        self.service = kms.Service(directory / "kms", more=readers + more).start()
        self.directory, self.url, self.log = self.service.directory, self.service.url, self.service.data_dir / "audit"
        self.ca, self.process_log, self.config = directory / "ca.pem", self.service.log, self.directory / "kms.toml"
        shutil.copy(self.service.ca_file, self.ca)
        self.key = self.service.client().create_key()["KeyMetadata"]["KeyId"]

    def variables(self, who: str) -> dict[str, str]:
        access_key, secret = self.service.keys["bob" if who in ("reader", "wrong") else who]
        return {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret if who != "wrong" else "x" * 40}

    def busy(self, count: int = 10) -> None:
        for _ in range(count):
            self.service.client().describe_key(KeyId=self.key)

    def change(self) -> None:
        self.service.client().update_key_description(KeyId=self.key, Description=secrets.token_hex(4))

    def start(self) -> None:
        self.service.start()

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.service.stop(how)


class OfXks(Logged):
    role = "xks"
    strangers = ()
    POLICY = 'version = 1\n[[stores]]\nname = "blue"\npath_prefix = "/blue"\nregion = "us-east-1"\nmode = "trust-provider"\nrequests_per_sec = {}\nkeys = []\n'

    def __init__(self, directory: pathlib.Path):
        self.secret = secrets.token_hex(32)
        place = directory / "xks"
        place.mkdir()
        (directory / "auditor.secret").write_text(self.secret)
        hsms = '[[hsms]]\nname = "east"\nsoftware_insecure = true\n'
        readers = f'[[audit_pull.readers]]\nname = "auditor"\naccess_key_id = "{"A" * 20}"\nsecret_file = "{directory / "auditor.secret"}"\n'
        self.proxy = xks.Proxy(place, hsms + readers).start()
        self.directory, self.url, self.log = place, self.proxy.url(), self.proxy.state / "processes" / "a" / "audit"
        self.ca, self.process_log, self.config = directory / "ca.pem", self.proxy.log(), place / "a.toml"
        shutil.copy(self.proxy.ca_file, self.ca)
        self.change()
        # The key service's own credential reads no log.
        credential = self.proxy.add_credential("blue")
        self.of_store = (credential.access_key, credential.secret)

    def variables(self, who: str) -> dict[str, str]:
        access_key, secret = ("A" * 20, self.secret if who != "wrong" else "x" * 43) if who in ("reader", "wrong") else self.of_store
        return {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret}

    def busy(self, count: int = 10) -> None:
        for _ in range((count + 9) // 10):
            self.change()

    def change(self) -> None:
        self.proxy.set_policy(self.POLICY.format(1000 + secrets.randbelow(100_000)))

    def start(self) -> None:
        self.proxy.start()

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.proxy.stop(how=how)


class OfStorage(Logged):
    role = "storage"
    strangers = ("alice",)

    def __init__(self, directory: pathlib.Path, **options):
        self.hsm = Hsm(directory / "hsm")
        self.hsm.start()
        for role in (CRYPTO_USER, CRYPTO_OFFICER):
            self.hsm.grant(role, ADMIN[1])
        self.hsm.grant(ENCRYPTION_USER, STORAGE[1])
        self.storage = Storage(directory / "s3", self.hsm, self.hsm.create_kek("kek"), more='[audit_pull]\nreaders = ["bob"]\n', **options).start()
        self.directory, self.url, self.log = self.storage.directory, self.storage.url, self.storage.data_dir / "audit"
        self.ca, self.process_log, self.config = None, self.storage.log, self.directory / "storage.toml"
        self.storage.client().create_bucket(Bucket="bucket")

    def variables(self, who: str) -> dict[str, str]:
        access_key, secret = self.storage.keys["bob" if who in ("reader", "wrong") else who]
        return {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret if who != "wrong" else "x" * 40}

    def busy(self, count: int = 10) -> None:
        client = self.storage.client()
        for _ in range(count):
            client.head_bucket(Bucket="bucket")

    def change(self) -> None:
        self.storage.client().put_object(Bucket="bucket", Key=secrets.token_hex(4), Body=b"x")

    def start(self) -> None:
        self.storage.start()

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.storage.stop(how)


class Between:
    """A proxy between a copy and its log, which may change answers."""

    def __init__(self, url: str):
        host, port = url.removeprefix("http://").split(":")
        there = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                upstream = http.client.HTTPConnection(host, int(port), timeout=30)
                upstream.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(body)
                answer = upstream.getresponse()
                status, content = answer.status, answer.read()
                there.asked.append(json.loads(body))
                status, content = there.lie(status, content)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/octet-stream")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    there.give(self.wfile, content)

            def log_message(self, *_):
                pass

        self.asked: list[dict] = []
        self.lie = lambda status, content: (status, content)
        self.give = lambda out, content: out.write(content)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()


def taken_apart(content: bytes) -> tuple[dict, bytes]:
    head, lines = content.split(b"\n", 1)
    return json.loads(head), lines


def put_together(head: dict, lines: bytes) -> bytes:
    return json.dumps(head | {"bytes": len(lines)}, separators=(",", ":")).encode() + b"\n" + lines


ROLES = [OfHsm, OfKms, OfXks, OfStorage]


def every_role(test):
    return pytest.mark.parametrize("there", ROLES, indirect=True)(test)


def of_storage(test):
    return pytest.mark.parametrize("there", [OfStorage], indirect=True)(test)


def verify(log: pathlib.Path, *more, code: int = 0) -> dict:
    done = subprocess.run([str(part) for part in (BINARY, "audit", "verify", "--log", log, "--json", *more)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def copied(copy: pathlib.Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(copy.glob("audit-*.jsonl")))


def original(there: Logged) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(there.log.glob("audit-*.jsonl")))


def is_copy(copy: pathlib.Path, there: Logged) -> None:
    """Byte by byte, as far as it goes, under the same names."""
    assert original(there).startswith(copied(copy)) and copied(copy).endswith(b"\n")
    for path in copy.glob("audit-*.jsonl"):
        assert (there.log / path.name).read_bytes().startswith(path.read_bytes())
    assert verify(copy)["ok"]
    assert verify(there.log, "--against", copy)["against"]["longer"] in ("log", None)

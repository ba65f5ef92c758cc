"""A proxy with its operators, and a client that signs as AWS KMS does, with AWS's own signer."""
import base64
import http.client
import json
import pathlib
import signal
import ssl
import subprocess
import threading
import time
import urllib.parse

import requests
from botocore.awsrequest import AWSRequest
from process import BINARY, free_ports, start
from signing import sign

REGION = "us-east-1"
ALICE = "arn:aws:iam::123456789012:user/Alice"
KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OPERATORS = ("ann", "ben", "cat")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def free_port() -> int:
    return free_ports(1)


class Proxy:
    """One instance: operators with a threshold of two, and any number of processes."""

    def __init__(self, directory: pathlib.Path, hsms: str, *, tls: str = "", listen: str = "", limits: str = ""):
        self.directory, self.hsms, self.tls, self.listen, self.limits = directory, hsms, tls, listen, limits
        directory.mkdir(parents=True, exist_ok=True)
        self.state = directory / "state"
        self.keys = {name: directory / f"{name}.key" for name in OPERATORS}
        publics = {name: self.holdfast("quorum", "keygen", file).stdout.strip() for name, file in self.keys.items()}
        people = "".join(f'[[quorum.operators]]\nname = "{name}"\n{public}\n' for name, public in publics.items())
        self.quorum = f"[quorum]\nthreshold = 2\n{people}"
        self.processes: dict[str, subprocess.Popen] = {}
        self.ports: dict[str, int] = {}
        self.metrics: dict[str, int] = {}
        self.requests = requests.Session()

    def holdfast(self, *args, check: bool = True, **more) -> subprocess.CompletedProcess:
        done = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True, **more)
        assert not check or done.returncode == 0, (args, done.stdout, done.stderr)
        return done

    def config(self, process: str) -> pathlib.Path:
        port, metrics = self.ports.setdefault(process, free_port()), self.metrics.setdefault(process, free_port())
        path = self.directory / f"{process}.toml"
        path.write_text(
            f'[listen]\naddress = "127.0.0.1:{port}"\nmetrics_address = "127.0.0.1:{metrics}"\nhost_names = ["localhost"]\n{self.listen}\n'
            f'[tls]\n{self.tls}\n[state]\ndirectory = "{self.state}"\nprocess = "{process}"\n'
            f'[silicon]\nkind = "software-insecure"\nroot_file = "{self.directory}/silicon.root"\n{self.quorum}\n{self.hsms}\n[limits]\n{self.limits}\n')
        return path

    def log(self, process: str = "a") -> pathlib.Path:
        return self.directory / f"{process}.log"

    def start(self, process: str = "a") -> "Proxy":
        config = self.config(process)

        def ready() -> bool:
            try:
                return requests.get(f"http://127.0.0.1:{self.metrics[process]}/healthz", timeout=1).ok
            except requests.RequestException:
                return False
        self.processes[process] = start([BINARY, "xks", "serve", "--config", config], self.log(process), ready)
        return self

    def stop(self, process: str | None = None, how: int = signal.SIGTERM) -> None:
        for name in [process] if process else list(self.processes):
            running = self.processes.pop(name, None)
            if running and running.poll() is None:
                running.send_signal(how)
                running.wait(30)

    def url(self, process: str = "a") -> str:
        return f"https://localhost:{self.ports[process]}"

    @property
    def ca_file(self) -> str:
        return str(self.state / "ca.pem")

    # Administration.

    def propose(self, operator: str, *change, secret: str | None = None, check: bool = True, hours: int = 1):
        command = ["quorum", "propose", "--state-dir", self.state, "--operator", operator, "--key", self.keys[operator], "--hours", hours, *change]
        if secret is None:
            return self.holdfast(*command, check=check)
        file = self.directory / "secret.tmp"
        file.write_text(secret)
        with open(file) as stream:
            return self.holdfast(*command, "--secret-fd", stream.fileno(), check=check, pass_fds=[stream.fileno()])

    def decide(self, word: str, operator: str, proposal: str, *, key: str | None = None, check: bool = True):
        return self.holdfast("quorum", word, "--state-dir", self.state, "--operator", operator, "--key", self.keys[key or operator],
                             "--yes", proposal, check=check)

    def change(self, *change, secret: str | None = None) -> None:
        """Proposed by one operator, approved by another, and so carried out."""
        proposal = self.propose("ann", *change, secret=secret).stdout.split()[0]
        done = self.decide("approve", "ben", proposal).stdout
        assert "executed" in done, done

    def set_policy(self, text: str) -> None:
        file = self.directory / "policy.toml"
        file.write_text(text)
        self.change("policy", file)

    def add_credential(self, store: str) -> "Credential":
        handover = self.directory / f"{store}-{time.monotonic_ns()}.json"
        self.change("credential-add", "--store", store, "--handover", handover)
        given = json.loads(handover.read_text())
        pair = given["XksProxyAuthenticationCredential"]
        return Credential(pair["AccessKeyId"], pair["RawSecretAccessKey"], given["XksProxyUriPath"])

    def kill(self, *scope, check: bool = True, **more):
        return self.holdfast("xks", "kill", "--state-dir", self.state, *scope, check=check, **more)

    def wait_for_hsm(self, name: str, state: str = "ACTIVE", seconds: float = 20, process: str = "a") -> None:
        deadline = time.monotonic() + seconds
        while (found := self.status(process)["hsms"][name])["state"] != state:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def status(self, process: str = "a") -> dict:
        return requests.get(f"http://127.0.0.1:{self.metrics[process]}/readyz", timeout=5).json()

    def metric(self, name: str, process: str = "a", **labels: str) -> float:
        text = requests.get(f"http://127.0.0.1:{self.metrics[process]}/metrics", timeout=5).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name and all(w in line for w in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def events(self, process: str = "a") -> list[dict]:
        done = self.holdfast("audit", "export", "--log", self.state / "processes" / process / "audit")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return [line for line in lines if line["type"] == "event"]

    def verify_audit(self, process: str = "a") -> None:
        self.holdfast("audit", "verify", "--log", self.state / "processes" / process / "audit")


class Credential:
    def __init__(self, access_key: str, secret: str, uri_path: str):
        self.access_key, self.secret, self.uri_path = access_key, secret, uri_path


class Kms:
    """Calls the proxy as AWS KMS does. Checks what AWS KMS would check, and more."""

    def __init__(self, proxy: Proxy, credential: Credential, key: str = "orders", process: str = "a"):
        self.proxy, self.credential, self.key, self.process = proxy, credential, key, process
        self.request_id = 0
        # A session of its own for each thread: `requests` promises nothing else.
        self.local = threading.local()

    def metadata(self, operation: str = "Encrypt", **more) -> dict:
        self.request_id += 1
        whole = {"awsPrincipalArn": ALICE, "kmsKeyArn": KMS_KEY, "kmsOperation": operation, "kmsRequestId": f"request-{self.request_id}"} | more
        return {name: value for name, value in whole.items() if value is not None}

    def path(self, operation: str, key: str | None = None) -> str:
        if operation == "health":
            return self.credential.uri_path + "/health"
        return f"{self.credential.uri_path}/keys/{key or self.key}/{operation}"

    def signed(self, path: str, body: bytes, *, method: str = "POST", service: str = "kms-xks-proxy", region: str = REGION,
               credential: Credential | None = None, offset: int = 0) -> dict:
        credential = credential or self.credential
        request = AWSRequest(method, self.proxy.url(self.process) + path, data=body, headers={"Content-Type": "application/json"})
        return sign(request, credential.access_key, credential.secret, service, region, offset)

    def send(self, path: str, body: bytes, headers: dict, method: str = "POST") -> requests.Response:
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
        return self.local.session.request(method, self.proxy.url(self.process) + path, data=body, headers=headers,
                                          verify=self.proxy.ca_file, timeout=30)

    def raw(self, operation: str, body, key: str | None = None, **sign) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = self.path(operation, key)
        return self.send(path, data, self.signed(path, data, **sign))

    def all_at_once(self, operation: str, bodies: list[dict]) -> list[tuple[int, dict]]:
        """Signs and connects first, then sends each request on a connection of its own, and only then reads: (status, answer) of each. So the
        requests are at work together, however slow the client."""
        path, context = self.path(operation), ssl.create_default_context(cafile=self.proxy.ca_file)
        data = [json.dumps(body).encode() for body in bodies]
        signed = [self.signed(path, each) for each in data]
        port = urllib.parse.urlsplit(self.proxy.url(self.process)).port
        connections = [http.client.HTTPSConnection("localhost", port, context=context, timeout=30) for _ in bodies]
        try:
            for connection in connections:
                connection.connect()
            for connection, body, headers in zip(connections, data, signed):
                connection.request("POST", path, body, headers)
            answers = [connection.getresponse() for connection in connections]
            return [(answer.status, json.loads(answer.read())) for answer in answers]
        finally:
            for connection in connections:
                connection.close()

    def encrypt_body(self, plaintext: bytes = b"k" * 32, aad: bytes | None = b"tenant=blue", cdiv: bool = False, **metadata) -> dict:
        body = {"requestMetadata": self.metadata(**metadata), "plaintext": b64(plaintext), "encryptionAlgorithm": "AES_GCM"}
        if aad is not None:
            body["additionalAuthenticatedData"] = b64(aad)
        if cdiv:
            body["ciphertextDataIntegrityValueAlgorithm"] = "SHA_256"
        return body

    def decrypt_body(self, sealed: dict, aad: bytes | None = b"tenant=blue", **metadata) -> dict:
        body = {"requestMetadata": self.metadata(metadata.pop("operation", "Decrypt"), **metadata), "encryptionAlgorithm": "AES_GCM"}
        body |= {name: sealed[name] for name in ("ciphertext", "initializationVector", "authenticationTag")}
        if sealed.get("ciphertextMetadata"):
            body["ciphertextMetadata"] = sealed["ciphertextMetadata"]
        if aad is not None:
            body["additionalAuthenticatedData"] = b64(aad)
        return body

    def encrypt(self, plaintext: bytes = b"k" * 32, key: str | None = None, **more) -> dict:
        answer = self.raw("encrypt", self.encrypt_body(plaintext, **more), key)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def decrypt(self, sealed: dict, key: str | None = None, **more) -> bytes:
        answer = self.raw("decrypt", self.decrypt_body(sealed, **more), key)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        assert list(answer.json()) == ["plaintext"]
        return unb64(answer.json()["plaintext"])


def assert_refused(answer: requests.Response, status: int, name: str) -> str:
    """An error in the protocol's form; gives its message."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["Content-Type"] == "application/json"
    assert "\n" not in answer.text, "AWS's test client reads the last line"
    body = answer.json()
    assert set(body) <= {"errorName", "errorMessage", "holdfastCause"} and body["errorName"] == name, body
    # A key service of ours is told by a code, and nothing that a caller did is an outage.
    assert body["holdfastCause"] in ({429: ("busy",), 500: ("outage", "refusal"), 503: ("outage", "refusal")}.get(status) or ("refusal",)), body
    message = body.get("errorMessage", "")
    assert len(message) < 512 and all(" " <= letter <= "~" for letter in message), message
    return message

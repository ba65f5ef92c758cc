"""A `holdfast kms serve` process with several principals of two accounts, and boto3 pointed at it."""
import json
import pathlib
import secrets
import signal
import subprocess
import warnings

import boto3
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from process import BINARY, free_ports, start

REGION, OTHER_REGION = "us-east-1", "eu-west-1"
ACCOUNT, OTHER_ACCOUNT = "111122223333", "444455556666"


LIBFAKETIME = next(iter(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def later(days: int) -> tuple[str, ...]:
    """Before a command: the same so many days later. (The program `faketime` would stand between us and the process.)"""
    assert LIBFAKETIME, "libfaketime is missing: apt-get install libfaketime"
    return ("env", f"LD_PRELOAD={LIBFAKETIME}", f"FAKETIME=+{days}d", "FAKETIME_DONT_FAKE_MONOTONIC=1")


def iam(name: str, account: str = ACCOUNT) -> str:
    return f"arn:aws:iam::{account}:{name}"


def allow(action, resource="*", **more) -> dict:
    return {"Effect": "Allow", "Action": action, "Resource": resource} | more


def document(*statements: dict) -> dict:
    return {"Version": "2012-10-17", "Statement": list(statements)}


# Name: ARN, service, tags, policy.
PRINCIPALS = {
    "root": (iam("root"), None, {}, None),
    "admin": (iam("user/admin"), None, {}, document(allow("kms:*"))),
    "alice": (iam("user/alice"), None, {"team": "blue"}, document(allow(["kms:Encrypt", "kms:Decrypt", "kms:ListKeys", "kms:ListAliases"]))),
    "bob": (iam("user/bob"), None, {"team": "red"}, None),
    "denied": (iam("user/denied"), None, {}, document(allow("kms:*"), {"Effect": "Deny", "Action": "kms:Decrypt", "Resource": "*"})),
    "maker": (iam("user/maker"), None, {}, document(allow(["kms:CreateKey", "kms:ReplicateKey"]))),
    "backup": (iam("role/backup"), "backup", {}, None),
    "storage": (iam("role/storage"), "s3", {}, document(allow(["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"]))),
    "stranger": (iam("user/carol", OTHER_ACCOUNT), None, {}, document(allow("kms:*"))),
    "stranger-root": (iam("root", OTHER_ACCOUNT), None, {}, None),
}


class Service:
    """One instance. `more` is TOML: proxies, clusters."""

    def __init__(self, directory: pathlib.Path, more: str = "", limits: str = "", prefix: tuple = ()):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port, self.prefix = directory, free_ports(), prefix
        self.data_dir, self.log = directory / "data", directory / "kms.log"
        self.url = f"https://localhost:{self.port}"
        self.keys, text = {}, ""
        for name, (arn, service, tags, policy) in PRINCIPALS.items():
            access_key, secret = f"AK{name.upper().replace('-', '')}", secrets.token_hex(20)
            self.keys[name] = (access_key, secret)
            (directory / f"{name}.secret").write_text(secret)
            text += f'[[principals]]\narn = "{arn}"\n'
            text += f'service = "{service}"\n' if service else ""
            text += "".join(f'tags.{key} = "{value}"\n' for key, value in tags.items())
            if policy:
                (directory / f"{name}-policy.json").write_text(json.dumps(policy))
                text += f'policy_files = ["{directory}/{name}-policy.json"]\n'
            text += f'[[credentials]]\naccess_key_id = "{access_key}"\nsecret_file = "{directory}/{name}.secret"\nprincipal = "{arn}"\n'
        (directory / "kms.toml").write_text(
            f'[listen]\naddress = "127.0.0.1:{self.port}"\nhost_names = ["localhost"]\n[kms]\ndata_dir = "{self.data_dir}"\n'
            f'regions = ["{REGION}", "{OTHER_REGION}"]\n[silicon]\nkind = "software-insecure"\nroot_file = "{directory}/silicon"\n'
            f'[limits]\nstore_requests_per_sec = 1000000\n{limits}\n{text}{more}')
        self.process: subprocess.Popen | None = None
        self.clients: dict = {}

    def ready(self) -> bool:
        try:
            # Unverified: of a service that lives in the future the certificate is not valid yet.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return requests.get(self.url + "/readyz", verify=False, timeout=1).ok
        except requests.RequestException:
            return False

    def start(self, prefix: tuple = ()) -> "Service":
        self.process = start([*prefix, BINARY, "kms", "serve", "--config", self.directory / "kms.toml"], self.log, self.ready)
        return self

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def restart(self, how: int = signal.SIGTERM, prefix: tuple = ()) -> None:
        self.stop(how)
        self.start(prefix)

    @property
    def ca_file(self) -> str:
        return str(self.data_dir / "ca.pem")

    def client(self, name: str = "root", region: str = REGION, **more):
        """boto3 as one of the principals, without retries."""
        if (name, region) not in self.clients or more:
            access_key, secret = self.keys[name]
            # What is wrong with a request is the service's to say, not the client's.
            config = Config(**{"retries": {"max_attempts": 0}, "read_timeout": 30, "parameter_validation": False} | more)
            self.clients[name, region] = boto3.Session().client(
                "kms", endpoint_url=self.url, region_name=region, aws_access_key_id=access_key, aws_secret_access_key=secret,
                verify=self.ca_file, config=config)
        return self.clients[name, region]

    def holdfast(self, *args, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run([str(BINARY), *map(str, args)], capture_output=True, text=True)
        assert not check or done.returncode == 0, (args, done.stdout, done.stderr)
        return done

    def explain(self, principal: str, action: str, key: str | None = None, *more: str) -> dict:
        named = ["--key-id", key] if key else []
        done = self.holdfast("kms", "explain", "--data-dir", self.data_dir, "--principal", PRINCIPALS[principal][0], "--action", action,
                             *named, *more, "--json", check=False)
        assert done.returncode in (0, 3), done.stderr
        return json.loads(done.stdout)

    def events(self) -> list[dict]:
        lines = [json.loads(line) for path in sorted((self.data_dir / "audit").glob("*.jsonl")) for line in path.read_text().splitlines(keepends=True)
                 if line.endswith("\n")]  # one that is being written has no end yet
        return [line for line in lines if line.get("type") == "event"]

    def verify_audit(self) -> None:
        self.holdfast("audit", "verify", "--log", self.data_dir / "audit")

    def check_end(self, *secret_texts: str) -> None:
        """After any test: no panic, no secret in a log, an audit log that holds, nothing secret in the files."""
        self.stop()
        log = self.log.read_text()
        assert "panicked" not in log, log
        kept = [secret for _, secret in self.keys.values()] + list(secret_texts)
        for secret in kept:
            assert secret not in log
        for file in self.data_dir.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert not any(secret.encode() in content for secret in kept), file
        self.verify_audit()


class refused:
    """`with refused("DisabledException"): ...`, and `.message` after it."""

    def __init__(self, code: str, status: int = 400):
        self.code, self.status, self.message = code, status, ""

    def __enter__(self) -> "refused":
        return self

    def __exit__(self, kind, error, trace) -> bool:
        assert error is not None, f"{self.code} was expected, and nothing was refused"
        if not isinstance(error, ClientError):
            return False
        found = error.response["Error"]
        assert found["Code"] == self.code, found
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status == self.status, (status, found)
        assert error.response["ResponseMetadata"]["RequestId"], "a request id comes with each answer"
        self.message = found["Message"]
        return True

"""`holdfast dev` as a person who has just cloned it meets it."""
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
import requests
from conftest import BINARY, free_ports

SECRET = re.compile("SECRET|AWS_ACCESS_KEY_ID")


class Dev:
    """`holdfast dev` with its two streams."""

    def __init__(self, directory: pathlib.Path, *args: str):
        self.directory, self.port = directory, free_ports()
        self.page, self.log = directory / "page", directory / "log"
        temporary = directory / "tmp"
        temporary.mkdir()
        with open(self.page, "wb") as page, open(self.log, "wb") as log:
            self.process = subprocess.Popen([BINARY, "dev", "--port-base", str(self.port), *args], stdout=page, stderr=log,
                                            env=os.environ | {"TMPDIR": str(temporary)})
        deadline = time.monotonic() + 30
        while "README.md" not in self.page.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        # The page says where the variables are.
        self.env_file = pathlib.Path(re.search(r"set -a; \. (\S+); set \+a", self.page.read_text())[1])

    def variables(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())

    def shell(self, script: str) -> subprocess.CompletedProcess:
        """In another terminal: nothing but a home, a path and the variables."""
        clean = {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.directory)}
        return subprocess.run(["sh", "-ec", f"set -a; . {self.env_file}; set +a\n{script}"], env=clean, cwd=self.directory, capture_output=True, text=True, timeout=60)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    dev = Dev(tmp_path_factory.mktemp("dev"))
    yield dev
    dev.stop()
    assert not dev.env_file.exists(), "no secret outlives its server"
    log = dev.log.read_text()
    assert dev.process.returncode == 0 and " ERROR " not in log and "panicked" not in log, log


def resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, 1))
    except socket.gaierror:
        return False


def test_the_page_is_for_a_person(dev):
    page = dev.page.read_text()
    assert len(page.splitlines()) < 40 and max(map(len, page.splitlines())) < 250, page
    for number in range(5):
        assert f":{dev.port + number}" in page, page
    assert "Ctrl-C" in page and "README.md" in page


def test_secrets_are_in_the_env_file_alone(dev):
    secrets = {value for name, value in dev.variables().items() if SECRET.search(name)}
    assert len(secrets) >= 4
    for text in (dev.page.read_text(), dev.log.read_text()):
        assert not any(secret in text for secret in secrets)
    assert stat.S_IMODE(dev.env_file.stat().st_mode) == 0o600


def test_the_first_command_works(dev):
    """As it is printed, in a terminal that has nothing but the variables."""
    page = dev.page.read_text()
    command = page[page.index("  curl "):page.index("The rest (")]
    done = dev.shell(command.replace("curl ", "curl -sS "))
    assert done.returncode == 0 and '"kty":"RSA-HSM"' in done.stdout, (command, done.stdout, done.stderr)


def test_variables_are_what_clients_look_for(dev):
    """`aws` by environment alone, and the KEK's name as it is in the file: `aws` would fetch a URL."""
    (dev.directory / "file").write_text("hello")
    done = dev.shell("""
        aws s3 mb s3://first
        aws s3 cp file s3://first/own-dek --sse aws:kms --sse-kms-key-id $HOLDFAST_S3_KEY_1
        aws s3api head-object --bucket first --key own-dek
        aws s3 cp s3://first/own-dek -
        aws kms encrypt --key-id alias/hosted --plaintext aGVsbG8= --query KeyId
    """)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "storage-key-1" in done.stdout and "hello" in done.stdout and "arn:aws:kms:" in done.stdout, done.stdout


def test_azure_identity_by_environment(dev):
    script = """
import os
from azure.identity import EnvironmentCredential
from azure.keyvault.keys import KeyClient
tls = {"connection_verify": os.environ["HOLDFAST_CA_FILE"]}
credential = EnvironmentCredential(disable_instance_discovery=True, **tls)
print(KeyClient(os.environ["HOLDFAST_HSM_URL"], credential, **tls).create_ec_key("by-environment", hardware_protected=True).key_type)
"""
    (dev.directory / "script.py").write_text(script)
    done = dev.shell("python script.py")
    assert done.returncode == 0 and "EC_HSM" in done.stdout, done.stderr


def test_a_name_that_the_resolver_does_not_know_is_told_at_once(dev):
    """With what to type; and where it is known, it is the name that clients are given."""
    page, log, url = dev.page.read_text(), dev.log.read_text(), dev.variables()["HOLDFAST_HSM_URL"]
    line = "echo '127.0.0.1 hsm.localhost' | sudo tee -a /etc/hosts"
    if resolves("hsm.localhost"):
        assert url == f"https://hsm.localhost:{dev.port}" and "/etc/hosts" not in page
    else:
        assert url == f"https://127.0.0.1:{dev.port}" and line in page
        # Before anything else, and before the page.
        told = next(number for number, text in enumerate(log.splitlines()) if "/etc/hosts" in text)
        assert told < next(number for number, text in enumerate(log.splitlines()) if "ready" in text)


def test_the_challenge_under_either_name(dev):
    """The SDKs for JavaScript and Rust parse the challenge's resource as a URL; the host must end with "." and its host."""
    for name, resource in (("hsm.localhost", "localhost"), ("127.0.0.1", "0.0.1")):
        answer = requests.get(f"https://127.0.0.1:{dev.port}/keys?api-version=7.5", headers={"Host": f"{name}:{dev.port}"}, verify=dev.variables()["HOLDFAST_CA_FILE"])
        assert f'resource="https://{resource}:{dev.port}"' in answer.headers["WWW-Authenticate"]


def test_a_second_one_is_refused_and_leaves_the_first_alone(tmp_path):
    dev = Dev(tmp_path, "--data-dir", str(tmp_path / "data"))
    try:
        assert dev.env_file == tmp_path / "data.env"
        second = subprocess.run([BINARY, "dev", "--data-dir", tmp_path / "data", "--port-base", str(free_ports())], capture_output=True, text=True, timeout=30)
        assert second.returncode == 1 and second.stdout == "" and "another process" in second.stderr
        assert dev.shell("curl -sSf --cacert $HOLDFAST_CA_FILE $HOLDFAST_HSM_URL/readyz").returncode == 0
    finally:
        dev.stop()


def test_a_data_dir_with_a_blank_in_its_name(tmp_path):
    dev = Dev(tmp_path, "--data-dir", str(tmp_path / "a b" / "it's"), "--env-file", str(tmp_path / "e"))
    try:
        assert dev.shell('test -d "$HOLDFAST_AUDIT_DIR" && test -f "$HOLDFAST_CA_FILE"').returncode == 0
        token = subprocess.run([BINARY, "token", "--env-file", dev.env_file], capture_output=True, text=True)
        assert token.returncode == 0 and token.stdout.count(".") == 2, token.stderr
    finally:
        dev.stop()

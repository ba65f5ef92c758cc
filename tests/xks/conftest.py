"""The proxy over a real SoftHSM2 and over the software HSM, from the same test code."""
import os
import pathlib
import sys

import pytest

os.environ.setdefault("HOLDFAST_PYTHON", sys.executable)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from proxy import Kms, Proxy  # noqa: E402
from softhsm import MODULE, PIN, SoftHsm  # noqa: E402

# A strict store is in `test_policy.py`; the others share these.
POLICY = """
version = 1
[[stores]]
name = "blue"
path_prefix = "/blue"
region = "us-east-1"
mode = "patterns"
requests_per_sec = 100000
keys = ["orders", "encrypt-only", "decrypt-only", "neither", "missing", "other", "versioned"]
[[stores]]
name = "green"
path_prefix = "/green/deep"
region = "us-east-1"
mode = "trust-provider"
requests_per_sec = 100000
keys = ["other"]
[[stores]]
name = "sample"
path_prefix = "/sample"
region = "us-east-1"
mode = "trust-provider"
aad = "sha256"
requests_per_sec = 100000
keys = ["orders"]
[[rules]]
name = "the-account"
effect = "allow"
stores = ["blue"]
accounts = ["123456789012"]
[[rules]]
name = "not-mallory"
effect = "deny"
principals = ["arn:aws:iam::123456789012:user/Mallory"]
"""
KEYS = ["orders", "encrypt-only", "decrypt-only", "neither", "missing", "other"]


def keys_of(*hsms: str, accept: tuple[str, ...] = ()) -> str:
    """All keys, each in each of `hsms`."""
    names = ", ".join(f'"{hsm}"' for hsm in hsms)

    def key(name: str, rest: str) -> str:
        # In the software HSM a key for nothing at all cannot be made: this one is for something else.
        accepted = [*accept, *(["other-usage"] if name == "neither" else [])]
        return f'[[keys]]\nid = "{name}"\nhsms = [{names}]\naccept = {accepted}\n{rest}'.replace("'", '"')
    versions = "".join(f'[[keys.versions]]\nnumber = {n}\nlabel = "{label}"\n' for n, label in ((1, "other"), (2, "orders")))
    return "".join(key(name, f'label = "{name}"\n') for name in KEYS) + key("versioned", versions)


def hsm_config(softhsm: SoftHsm, name: str, token: str, *, module: str = MODULE, environment: str = "", **more) -> str:
    more = {"sessions": 4, "relist_secs": 2, "hang_secs": 1} | more
    options = "".join(f"{option} = {value!r}\n".replace("'", '"') for option, value in more.items())
    return (f'[[hsms]]\nname = "{name}"\nmodule = "{module}"\ntoken_label = "{token}"\n'
            f'environment = {{ SOFTHSM2_CONF = "{softhsm.conf}"{environment} }}\n{options}')


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory) -> SoftHsm:
    softhsm = SoftHsm(tmp_path_factory.mktemp("softhsm"))
    softhsm.init_token("east")
    softhsm.aes("east", "orders")
    softhsm.aes("east", "other")
    softhsm.aes("east", "encrypt-only", decrypt=False)
    softhsm.aes("east", "decrypt-only", encrypt=False)
    softhsm.aes("east", "neither", encrypt=False, decrypt=False)
    softhsm.aes("east", "holdfast-health")
    return softhsm


def check_end(proxy: Proxy) -> None:
    """After any test: no panic, no secret in a log, an audit log that holds."""
    proxy.stop()
    for log in proxy.directory.glob("*.log"):
        text = log.read_text()
        assert "panicked" not in text, text
        assert PIN not in text
        for secret in ("RawSecretAccessKey", "PRIVATE KEY"):
            assert secret not in text
    for process in proxy.ports:
        proxy.verify_audit(process)
    for file in proxy.state.rglob("*"):
        if file.is_file():
            assert PIN.encode() not in file.read_bytes(), file


@pytest.fixture(scope="session", params=["softhsm", "software"])
def proxy(request, softhsm, tmp_path_factory):
    """A proxy with the keys and stores that most tests use."""
    directory = tmp_path_factory.mktemp(f"proxy-{request.param}")
    if request.param == "softhsm":
        proxy = Proxy(directory, hsm_config(softhsm, "east", "east", health_key="holdfast-health"))
        proxy.start()
        proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
        proxy.wait_for_hsm("east")
    else:
        proxy = Proxy(directory, '[[hsms]]\nname = "east"\nsoftware_insecure = true\nhealth_key = "orders"\n')
        proxy.start()
        usages = {"orders": "data", "other": "data", "encrypt-only": "encrypt", "decrypt-only": "decrypt", "neither": "keys"}
        for key, usage in usages.items():
            proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key, "--usage", usage)
    proxy.backend = request.param
    proxy.set_policy(POLICY + keys_of("east"))
    yield proxy
    check_end(proxy)


# For what only PKCS #11 itself can show: there is no other road to a key of the software HSM.
softhsm_only = pytest.mark.parametrize("proxy", ["softhsm"], indirect=True)


@pytest.fixture(scope="session")
def blue(proxy) -> Kms:
    return Kms(proxy, proxy.add_credential("blue"))


@pytest.fixture(scope="session")
def green(proxy) -> Kms:
    return Kms(proxy, proxy.add_credential("green"), key="other")


@pytest.fixture(scope="session")
def sample(proxy) -> Kms:
    return Kms(proxy, proxy.add_credential("sample"))

"""Modules of other makers, run for real: what they offer works, what they lack is told."""
import os
import time

import pytest
from authority import Authority
from conftest import check_end, hsm_config
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from modules import Nss, OpenCryptoki
from pool import POOL, Azure, dec, enc
from proxy import Kms, Proxy, assert_refused, free_port
from softhsm import PIN, SoftHsm

LACKS = ("no AES-GCM: its AES keys cannot serve an external key store of AWS KMS; "
         "no AES key wrap: its AES keys cannot serve a Managed HSM")


def errors(proxy: Proxy) -> list[str]:
    """Lines of the log that say that something is wrong, whoever wrote them."""
    return [line for log in proxy.directory.glob("*.log") for line in log.read_text().splitlines() if "ERROR" in line or "error" in line.lower()]


@pytest.fixture(scope="module")
def opencryptoki():
    token = OpenCryptoki("holdfast-east")
    try:
        token.rsa(token.label, "rsa", pin=token.pin)
        token.aes(token.label, "orders", pin=token.pin)
        token.aes(token.label, "kek", encrypt=False, decrypt=False, wrap=True, pin=token.pin)
        yield token
    finally:
        token.stop()


@pytest.fixture(scope="module")
def azure(opencryptoki, tmp_path_factory):
    directory = tmp_path_factory.mktemp("opencryptoki")
    authority, port = Authority(directory, "azure-ca"), free_port()
    proxy = Proxy(directory / "proxy", opencryptoki.hsm_config("east"), tls=f'ekm_client_ca_file = "{authority.file}"', listen=f'ekm_address = "127.0.0.1:{port}"')
    proxy.start()
    proxy.change("hsm-pin", "--hsm", "east", secret=opencryptoki.pin)
    proxy.wait_for_hsm("east")
    keys = "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\n' for key in ("rsa", "orders", "kek"))
    proxy.set_policy(
        f'version = 1\n[[stores]]\nname = "azure"\npath_prefix = "/azure/pool-1"\ndialect = "azure-ekm"\nmode = "trust-provider"\n'
        f'client_subject = "{POOL}"\nclient_ca_sha256 = "{authority.sha256()}"\nkeys = ["rsa", "orders", "kek"]\n'
        '[[stores]]\nname = "aws"\npath_prefix = "/aws"\nregion = "us-east-1"\nmode = "trust-provider"\nkeys = ["orders"]\n' + keys)
    azure = Azure(proxy, port, authority.client(POOL))
    yield azure
    check_end(proxy)


def test_opencryptoki_is_found_by_its_label(azure):
    """Its clock tells "17:12:49", which is no time of the standard."""
    found = azure.proxy.status()["hsms"]["east"]
    assert found["state"] == "ACTIVE" and found["detail"] == LACKS, found


def test_opencryptoki_serves_a_managed_hsm_by_rsa(azure):
    metadata = azure.ok("rsa/metadata")
    assert metadata["key_type"] == "RSA" and metadata["key_size"] == 2048
    public = rsa.RSAPublicNumbers(int.from_bytes(dec(metadata["e"])), int.from_bytes(dec(metadata["n"]))).public_key()
    for _ in range(20):
        dek = os.urandom(32)
        wrapped = azure.ok("rsa/wrapkey", alg="RSA-OAEP", value=enc(dek))["value"]
        assert dec(azure.ok("rsa/unwrapkey", alg="RSA-OAEP", value=wrapped)["value"]) == dek
    elsewhere = public.encrypt(b"d" * 32, padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None))
    assert dec(azure.ok("rsa/unwrapkey", alg="RSA-OAEP", value=enc(elsewhere))["value"]) == b"d" * 32
    damaged = bytearray(elsewhere)
    damaged[100] ^= 1
    azure.refused("rsa/unwrapkey", 400, "BadRequest", alg="RSA-OAEP", value=enc(bytes(damaged)))
    assert azure.proxy.status()["hsms"]["east"]["state"] == "ACTIVE"


def test_what_opencryptoki_lacks_is_refused_and_told(azure):
    azure.refused("kek/wrapkey", 400, "BadRequest", alg="A256KW", value=enc(bytes(32)))
    kms = Kms(azure.proxy, azure.proxy.add_credential("aws"))
    answer = kms.raw("encrypt", kms.encrypt_body())
    assert_refused(answer, 501, "UnsupportedOperationException")
    assert "does not offer" in answer.json()["errorMessage"], answer.text
    assert "does not offer everything" in azure.proxy.log().read_text()


def test_a_start_over_opencryptoki_is_quiet(azure):
    assert errors(azure.proxy) == []


def test_a_start_over_softhsm_is_quiet(tmp_path):
    """SoftHSM's own complaints at a start that is well, above all."""
    softhsm = SoftHsm(tmp_path / "softhsm")
    softhsm.init_token("east")
    for key in ("orders", "other"):
        softhsm.aes("east", key)
    softhsm.rsa("east", "rsa")
    proxy = Proxy(tmp_path / "proxy", hsm_config(softhsm, "east", "east")).start()
    proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
    proxy.wait_for_hsm("east")
    keys = "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\n' for key in ("orders", "other"))
    proxy.set_policy('version = 1\n[[stores]]\nname = "aws"\npath_prefix = "/aws"\nregion = "us-east-1"\nmode = "trust-provider"\nkeys = ["orders", "other"]\n' + keys)
    kms = Kms(proxy, proxy.add_credential("aws"))
    assert kms.decrypt(kms.encrypt()) == b"k" * 32
    assert "orders" in proxy.holdfast("xks", "keys", "--state-dir", proxy.state).stdout
    assert errors(proxy) == []
    check_end(proxy)


def test_a_library_that_wants_parameters(tmp_path):
    """With them it opens; without them, or with others, it is told why not. (NSS 3.87 tells too short a length for what it encrypts by
    AES-GCM, and so cannot serve AWS KMS.)"""
    nss = Nss(tmp_path / "nss")
    wrong = nss.hsm_config("wrong", library_parameters="configdir='sql:/nowhere/at/all'")
    without = nss.hsm_config("without").replace("library_parameters", "# library_parameters")
    proxy = Proxy(tmp_path / "proxy", nss.hsm_config("east") + wrong + without).start()
    for name in ("east", "wrong", "without"):
        proxy.change("hsm-pin", "--hsm", name, secret=nss.pin)
    proxy.wait_for_hsm("east")
    proxy.change("key-create", "--key-id", "orders", "--hsm", "east", "--label", "orders")
    proxy.set_policy('version = 1\n[[stores]]\nname = "aws"\npath_prefix = "/aws"\nregion = "us-east-1"\nmode = "trust-provider"\nkeys = ["orders"]\n'
                     '[[keys]]\nid = "orders"\nhsms = ["east"]\nlabel = "orders"\n')
    kms = Kms(proxy, proxy.add_credential("aws"))
    answer = kms.raw("metadata", {"requestMetadata": kms.metadata("CreateKey")})
    assert answer.status_code == 200 and answer.json()["keySpec"] == "AES_256", answer.text
    for name in ("wrong", "without"):
        deadline = time.monotonic() + 10
        while (found := proxy.status()["hsms"][name])["detail"] == "no PIN has been entered":
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        assert found["state"] == "UNAVAILABLE" and ("C_Initialize" in found["detail"] or "no slot" in found["detail"]), found
    check_end(proxy)

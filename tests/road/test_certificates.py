"""Certificates while a service runs: our own are issued anew when the clock says so, the operator's are read again, and SIGHUP ends nothing."""
import datetime
import pathlib
import signal
import ssl
import socket
import time

import pytest
from authority import Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from managed_hsm import ADMIN, CRYPTO_USER, ENCRYPTION_USER, STORAGE, Hsm
from process import BINARY, free_ports, start
from storage_service import Storage

FAKETIME = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def shown(port: int) -> x509.Certificate:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=10)) as stream:
        return x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))


def until(what, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def signed(authority: Authority, request: x509.CertificateSigningRequest, days: int) -> bytes:
    """A chain for the key of a request."""
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (x509.CertificateBuilder().subject_name(request.subject).issuer_name(authority.certificate.subject).public_key(request.public_key())
               .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=400)).not_valid_after(now + datetime.timedelta(days=days)))
    for extension in request.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    leaf = builder.sign(authority.key, hashes.SHA256())
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in (leaf, authority.certificate))


@pytest.fixture
def hsm(tmp_path):
    hsm = Hsm(tmp_path / "hsm")
    hsm.start()
    yield hsm
    hsm.stop()


def test_the_operators_chain_is_read_again(hsm, tmp_path):
    authority, chain = Authority(tmp_path, "operator"), tmp_path / "chain.pem"
    request = x509.load_pem_x509_csr((hsm.data_dir / "tls.csr").read_bytes())
    chain.write_bytes(signed(authority, request, 90))
    hsm.stop()
    config = hsm.directory / "hsm.toml"
    config.write_text(config.read_text() + f'[tls]\ncertificate_file = "{chain}"\n')
    hsm.start()
    first = shown(hsm.port)
    assert first.issuer == authority.certificate.subject
    # One that ends soon is taken, and told of.
    chain.write_bytes(signed(authority, request, 5))
    hsm.process.send_signal(signal.SIGHUP)
    until(lambda: shown(hsm.port).serial_number != first.serial_number)
    second = shown(hsm.port)
    until(lambda: "will soon be no longer valid" in hsm.log.read_text())
    # One that cannot be read is not.
    for bad in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", authority.file.read_bytes()):
        told = hsm.log.read_text().count("could not be renewed")
        chain.write_bytes(bad)
        hsm.process.send_signal(signal.SIGHUP)
        if not told:
            until(lambda: "could not be renewed" in hsm.log.read_text())
        time.sleep(0.3)
        assert shown(hsm.port).serial_number == second.serial_number and hsm.process.poll() is None
    # One that is over is shown, loudly: whoever put it there is told, and clients say the same.
    chain.write_bytes(signed(authority, request, -1))
    hsm.process.send_signal(signal.SIGHUP)
    until(lambda: shown(hsm.port).serial_number != second.serial_number)
    until(lambda: "IS NO LONGER VALID" in hsm.log.read_text())


def test_a_storages_files_are_read_again(hsm, tmp_path):
    authority = Authority(tmp_path, "ca")
    pem, key = map(pathlib.Path, authority.client("one"))
    hsm.grant(CRYPTO_USER, ADMIN[1])
    hsm.grant(ENCRYPTION_USER, STORAGE[1])
    storage = Storage(tmp_path / "storage", hsm, hsm.create_kek("kek"))
    config = storage.directory / "storage.toml"
    port = free_ports()
    listen = f'certificate_file = "{pem}"\nkey_file = "{key}"\nmetrics_address = "127.0.0.1:{port}"'
    config.write_text(config.read_text().replace("insecure_http = true", listen))
    storage.ready = lambda: "ready" in storage.log.read_text()
    storage.start()
    try:
        first = shown(storage.port)
        other_pem, other_key = map(pathlib.Path, authority.client("two"))
        # Between the two writes they do not belong together.
        key.write_bytes(other_key.read_bytes())
        storage.process.send_signal(signal.SIGHUP)
        until(lambda: "do not belong together" in storage.log.read_text())
        assert shown(storage.port).serial_number == first.serial_number
        pem.write_bytes(other_pem.read_bytes())
        storage.process.send_signal(signal.SIGHUP)
        until(lambda: shown(storage.port).serial_number != first.serial_number)
        assert storage.process.poll() is None
    finally:
        storage.stop()


def test_our_own_is_issued_anew_when_the_clock_moves(hsm, tmp_path):
    """By the clock on the wall, and not by how long the process runs: a machine may sleep, and clocks are set."""
    hsm.stop()
    clock = tmp_path / "clock"
    clock.write_text("+0d")
    faked = ["env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    hsm.process = start([*faked, BINARY, "managed-hsm", "--config", hsm.directory / "hsm.toml"], hsm.log, hsm.ready)
    ends = shown(hsm.port).not_valid_after_utc
    for move, days in (("+40d", 40), ("+200d", 200), ("+0d", 0)):
        clock.write_text(move)
        hsm.process.send_signal(signal.SIGHUP)
        wanted = ends + datetime.timedelta(days=days)
        until(lambda: abs(shown(hsm.port).not_valid_after_utc - wanted) <= datetime.timedelta(days=1))
    assert hsm.process.poll() is None

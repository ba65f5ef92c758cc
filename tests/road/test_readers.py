"""Who does not read his answers keeps one change waiting, and no other, however many connections he opens for it."""
import contextlib
import json
import socket
import ssl
import time

import pytest
import requests
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, Hsm

KEYS = 25
TAGS = {f"{number:03}": "t" * 250 for number in range(14)}
PIPELINED = 80
"""Answers of some 100 KB that are asked for at once: more than the kernel keeps for somebody who does not read."""
SECONDS_TO_STALL = 30
KEPT_WAITING = "holdfast_changes_kept_waiting_total"


@pytest.fixture(scope="module")
def hsm(tmp_path_factory):
    hsm = Hsm(tmp_path_factory.mktemp("readers") / "hsm")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    for number in range(KEYS):
        hsm("POST", f"/keys/key-{number}/create", {"kty": "oct-HSM", "key_size": 256, "tags": TAGS})
    yield hsm
    hsm.stop()
    assert "panicked" not in hsm.log.read_text()


def metric(hsm, name: str, **labels: str) -> float:
    text = requests.get(f"{hsm.url}/metrics", verify=hsm.data_dir / "ca.pem", timeout=10).text
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name and all(w in line for w in wanted)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def who_does_not_read(hsm, address: str) -> socket.socket:
    """Asks for much, and takes nothing of it. When this returns, an answer waits for him."""
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream.bind((address, 0))
    stream.connect(("127.0.0.1", hsm.port))
    stream.settimeout(60)
    stream = ssl.create_default_context(cafile=hsm.data_dir / "ca.pem").wrap_socket(stream, server_hostname="127.0.0.1")
    head = (f"GET /keys?api-version=7.5 HTTP/1.1\r\nHost: 127.0.0.1:{hsm.port}\r\nAuthorization: Bearer {hsm.token('admin')}\r\n\r\n").encode()
    before = answered = metric(hsm, "holdfast_hsm_requests_total", operation="KeyList")
    stream.sendall(head * PIPELINED)
    deadline, same = time.monotonic() + SECONDS_TO_STALL, 0
    while same < 5:
        assert time.monotonic() < deadline, "he is answered on and on"
        time.sleep(0.05)
        now = metric(hsm, "holdfast_hsm_requests_total", operation="KeyList")
        same = same + 1 if now == answered and now > before else 0
        answered = now
    assert answered - before < PIPELINED, "all of it fits into the kernel"
    return stream


def change(hsm) -> None:
    hsm("PATCH", "/keys/key-0", {"tags": TAGS | {"at": str(time.monotonic_ns())}})


def test_who_does_not_read_keeps_one_change_waiting(hsm):
    change(hsm)
    assert metric(hsm, KEPT_WAITING) == 0, "nobody is there"
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(who_does_not_read(hsm, "127.0.0.2"))
            for _ in range(2):
                change(hsm)
        assert metric(hsm, KEPT_WAITING) == 1
        # The control: another address is not known for it.
        for number in (3, 4):
            held.enter_context(who_does_not_read(hsm, f"127.0.0.{number}"))
            for _ in range(2):
                change(hsm)
        assert metric(hsm, KEPT_WAITING) == 3
        # Nor is anybody kept from his answers there, if he reads them.
        with socket.socket() as plain:
            plain.bind(("127.0.0.2", 0))
            plain.connect(("127.0.0.1", hsm.port))
            plain.settimeout(60)
            with ssl.create_default_context(cafile=hsm.data_dir / "ca.pem").wrap_socket(plain, server_hostname="127.0.0.1") as stream:
                stream.sendall(f"GET /keys?api-version=7.5 HTTP/1.1\r\nHost: 127.0.0.1:{hsm.port}\r\nAuthorization: Bearer {hsm.token('admin')}\r\n"
                               "Connection: close\r\n\r\n".encode())
                whole = b"".join(iter(lambda: stream.recv(65536), b""))
        assert len(json.loads(whole.partition(b"\r\n\r\n")[2])["value"]) == KEYS
